/** Our own side of a case. */
import { KvCache } from '../cache';
import { cast } from '../convert';
import { attention, attentionSync } from '../full';
import { type DataType, type Tensor, zeros } from '../tensor';
import { attentionFlops, type Contender, decodeFlops, kvBytes } from './contender';
import { type Inputs, makeInputs, rows } from './inputs';
import { fullReference } from './reference/full';
import type { DecodeCase, PrefillCase, Variant } from './suite';

export const elementBytes: Readonly<Record<DataType, number>> = { float32: 4, float16: 2, bfloat16: 2 };

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
 * One decode step. As many caches take turns as are needed for none to stay in the processor's cache. A step first
 * takes back the position that the last one appended, so that every step is the one to length n.
 */
export function oursDecode(given: DecodeCase, inputs: Inputs, copies: Copies, how: How, variant?: Variant): Contender {
  const { shape } = given;
  const type = variant?.type ?? given.type;
  const threads = variant?.threads ?? how.threads;
  const { q } = inputs;
  const before = shape.n - 1;
  const past = [rows(inputs.k, 0, before), rows(inputs.v, 0, before)] as const;
  const token = [rows(inputs.k, before, shape.n), rows(inputs.v, before, shape.n)] as const;
  const bytes = kvBytes(shape, elementBytes[type]);
  const caches = Array.from({ length: copies(bytes) }, () => {
    const cache = new KvCache({ heads: shape.kvHeads, headDim: shape.dim, type });
    cache.append(...past);
    return cache;
  });
  let turn = 0;
  const call = (): Tensor => {
    const cache = caches[turn++ % caches.length] as KvCache;
    cache.truncate(before);
    cache.append(...token);
    return cache.attendSync(q, { ...how, threads });
  };
  const stored = type === 'float32' ? inputs : { q, k: cast(inputs.k, type), v: cast(inputs.v, type) };
  return {
    name: label(variant),
    side: 'ours',
    flops: decodeFlops(shape),
    bytes,
    call,
    check: async () => {
      const reference = fullReference(stored, { causal: true });
      // Every cache is checked: a fault may sit in one page of one of them.
      return Math.max(...caches.map(() => reference.check(label(variant), call())));
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
