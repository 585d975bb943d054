/** Our own side of a case. */
import { attendBatchSync } from '../cache-batch';
import { attention, attentionSync } from '../full';
import { type Tensor, zeros } from '../tensor';
import { lrkvPast } from './cached/lrkv';
import { wholePast } from './cached/whole';
import { attentionFlops, type Contender } from './contender';
import { type Inputs, makeInputs, makeQueries, rows, unlikeSpans } from './inputs';
import { fullReference } from './reference/full';
import type { DecodeCase, PrefillCase, Variant } from './suite';

/** How a call of ours is made in this run. */
export interface How {
  readonly threads: number;
  readonly isa?: string;
}

/** `attention` as the case, or a variant of it, asks. */
export function oursPrefill(given: PrefillCase, how: How, variant?: Variant): Contender {
  const shape = { ...given.shape, kvHeads: variant?.kvHeads ?? given.shape.kvHeads };
  const window = variant?.unwindowed ? undefined : given.window;
  const type = variant?.type ?? given.type;
  const sync = variant?.sync ?? given.sync;
  const { causal } = given;
  const inputs = makeInputs(shape, type);
  const { q, k, v } = inputs;
  const options = {
    ...how,
    causal,
    ...(variant?.threads === undefined ? {} : { threads: variant.threads }),
    ...(window === undefined ? {} : { window: [window - 1, 0] as const }),
    ...(variant?.out ? { out: zeros(q.dims, type) } : {}),
  };
  const call = () => (sync ? attentionSync(q, k, v, options) : attention(q, k, v, options));
  return {
    name: label(variant),
    side: 'ours',
    flops: attentionFlops(shape, causal, window),
    bytes: 0,
    call,
    check: async () =>
      fullReference(inputs, { causal, ...(window === undefined ? {} : { window }) }).check(
        label(variant),
        await call(),
      ),
  };
}

/**
 * One decode step of one sequence, or of all of a batch in one call. As many caches take turns as are needed for none to
 * stay in the processor's cache.
 */
export function oursDecode(
  given: DecodeCase,
  inputsOf: (kvHeads: number) => Inputs,
  copies: Copies,
  how: How,
  variant?: Variant,
): Contender {
  const shape = { ...given.shape, kvHeads: variant?.kvHeads ?? given.shape.kvHeads };
  const { n, heads, dim } = shape;
  const options = { ...how, threads: variant?.threads ?? how.threads };
  const type = variant?.type ?? given.type;
  const form = variant?.cache ?? given.cache;
  const past = form === 'whole' ? wholePast(inputsOf(shape.kvHeads), shape, type) : lrkvPast(form, shape, type);
  const spans = unlikeSpans(n, variant?.sequences ?? given.sequences);
  const all = makeQueries(heads, spans.length, dim);
  const queries = spans.map((_, i) => rows(all, i, i + 1));
  const bytes = n * past.positionBytes;
  const steps = Array.from({ length: copies(bytes) }, () => {
    const sequences = spans.map((span) => past.sequence(span));
    const items = sequences.map(({ cache }, i) => ({ cache, query: queries[i] as Tensor }));
    return { sequences, items };
  });
  const caches = steps.flatMap(({ items }) => items.map(({ cache }) => cache));
  let turn = 0;
  const call = (): Tensor[] => {
    const { sequences, items } = steps[turn++ % steps.length] as (typeof steps)[number];
    for (const { renew } of sequences) renew();
    const [first] = items;
    if (first === undefined || items.length > 1) return attendBatchSync(items, options);
    return [first.cache.attendSync(first.query, options)];
  };
  return {
    name: label(variant),
    side: 'ours',
    flops: spans.reduce((sum, { start, end }) => sum + past.flops(end - start), 0),
    bytes,
    cacheBytes: caches.reduce((sum, { byteLength }) => sum + byteLength, 0) / steps.length,
    ...(variant?.yardstick ? { yardstick: true } : {}),
    call,
    check: async () => {
      const references = spans.map((span, i) => past.reference(queries[i] as Tensor, span));
      // Every cache is checked: a fault may sit in one page of one of them.
      const errors = steps.flatMap(() => {
        const outputs = call();
        return references.map((reference, i) => reference.check(label(variant), outputs[i] as Tensor));
      });
      return Math.max(...errors);
    },
    dispose: () => {
      for (const cache of caches) cache.dispose();
    },
  };
}

/** How many copies of so many bytes it takes that turning through them always reads from memory. */
export type Copies = (bytes: number) => number;

export function label(variant?: { readonly name: string }): string {
  return variant === undefined ? 'ours' : `ours, ${variant.name}`;
}
