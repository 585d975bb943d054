/** The sides of a case of the low-rank family, whichever method it is. */
import { randomNormal } from '../../convert';
import { attention } from '../../full';
import { type Tensor, zeros } from '../../tensor';
import { attentionFlops, type Contender } from '../contender';
import { positionsFirst } from '../inputs';
import { type MethodVariant, methodFlops, passes, width } from '../method';
import { type How, label } from '../ours';
import { nameOf } from '../peer/contenders';
import type { Onnxruntime } from '../peer/onnxruntime';
import { fullReference } from '../reference/full';
import type { ApproximateCase } from '../suite';
import type { Approximation } from './approximation';

/** Our own call, or a variant of it whose method the approximation then is. */
export function oursApproximate(
  { shape, method }: ApproximateCase,
  { call, answer, reference }: Approximation,
  how: How,
  variant?: MethodVariant,
): Contender {
  const { n, heads, dim } = shape;
  const options = {
    ...how,
    ...(variant?.threads === undefined ? {} : { threads: variant.threads }),
    ...(variant?.out ? { out: zeros([1, heads, n, dim]) } : {}),
  };
  return {
    name: label(variant),
    side: 'ours',
    flops: methodFlops(variant?.method ?? method, shape),
    bytes: 0,
    call: () => call(options),
    check: async () => reference().check(label(variant), await answer(options)),
  };
}

/** onnxruntime's side, or undefined where it has none. */
export async function peerApproximate(
  peer: Onnxruntime,
  { shape, method }: ApproximateCase,
  { peer: form, reference }: Approximation,
  threads: number,
): Promise<Contender | undefined> {
  if (form === undefined) return undefined;
  const wrap = (given: Tensor) => {
    if (!form.positionsFirst) return peer.tensor('float32', given.data as Float32Array, given.dims);
    const { data, dims } = positionsFirst(given);
    const [, n, heads, dim] = dims as [number, number, number, number];
    return peer.tensor('float32', data as Float32Array, [1, n, heads * dim]);
  };
  const feeds = Object.fromEntries(Object.entries(form.feeds).map(([name, given]) => [name, wrap(given)]));
  const session = await peer.session(form.model(), threads);
  const name = nameOf(form.form);
  return {
    name,
    side: 'peer',
    flops: methodFlops(method, shape),
    bytes: 0,
    call: () => session.run(feeds),
    check: async () => reference().check(name, (await session.run(feeds)).o as Tensor, form.positionsFirst),
    dispose: () => session.release(),
  };
}

/** Exact attention on the same inputs; beside factors as often, and with values as wide, as their passes are. */
export function exactBeside({ shape, method }: ApproximateCase, { inputs }: Approximation, how: How): Contender {
  const { n, heads, dim } = shape;
  const [count, size] = method.op === 'lowrank' ? [passes(method), width(method, shape)] : [1, dim];
  const { q, k } = inputs;
  const v = size === dim ? inputs.v : randomNormal([1, heads, n, size], { seed: 9 });
  const name = count === 1 ? 'exact attention' : `exact attention, ${count} times, value size ${size}`;
  const causal = method.op === 'lrkv';
  const exact = () => attention(q, k, v, { ...how, causal });
  return {
    name: label({ name }),
    side: 'ours',
    flops: count * attentionFlops({ ...shape, dim: (dim + size) / 2 }, causal),
    bytes: 0,
    call: async () => {
      for (let i = 0; i < count; i++) await exact();
    },
    check: async () => fullReference({ q, k, v }, { causal }).check(label({ name }), await exact()),
  };
}

/** The products that exact attention would need first, by themselves and with it. */
export function productsBeside(given: ApproximateCase, main: Approximation, how: How): Contender[] {
  const { products } = main;
  if (products === undefined) return [];
  const name = label({ name: 'products that make keys and values' });
  const alone: Contender = {
    name,
    side: 'ours',
    flops: products.flops,
    bytes: 0,
    call: () => products.call({ ...how }),
    check: () => products.check(name, { ...how }),
  };
  const exact = exactBeside(given, main, how);
  const both: Contender = {
    ...exact,
    name: label({ name: 'these products, then exact attention' }),
    flops: products.flops + exact.flops,
    call: async () => {
      await alone.call();
      await exact.call();
    },
    check: async () => Math.max((await alone.check?.()) ?? 0, (await exact.check?.()) ?? 0),
  };
  return [alone, both];
}
