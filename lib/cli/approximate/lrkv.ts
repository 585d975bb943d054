import type { CallOptions } from '../../call';
import { lrkvAttention } from '../../lrkv';
import { matmul } from '../../matmul';
import { type Tensor, tensor, zeros } from '../../tensor';
import { Reference } from '../check';
import { headsFirst, headsOf, makeInputs } from '../inputs';
import { type LrkvInputs, makeLrkv } from '../lrkv-inputs';
import { type LrkvMethod, lrkvProductFlops } from '../method';
import { lrkvReference } from '../reference/lrkv';
import { rowOf, weightedSum } from '../reference/matrix';
import type { Shape } from '../suite';
import type { Approximation, Products } from './approximation';

/** Causal. Its keys and values are its own: the inputs are there for the queries, and for exact attention beside it. */
export function lrkv(method: LrkvMethod, shape: Shape, inputs = makeInputs(shape)): Approximation {
  const own = makeLrkv(method, shape);
  const { rows, model, kvHeads } = own;
  const call = (options: CallOptions) =>
    lrkvAttention(inputs.q, { ...rows, ...model }, { ...options, kvHeads, causal: true });
  return {
    inputs,
    call,
    answer: call,
    reference: () => lrkvReference(inputs.q, own),
    products: products(own, method, shape),
  };
}

/** latent·Bᵀ of all heads, and base·A where there are gauges, into tensors that are there. The sums are left out. */
function products({ rows, model }: LrkvInputs, method: LrkvMethod, shape: Shape): Products {
  const { n, kvHeads, dim } = shape;
  const { rank } = method;
  const latents = ({ data }: Tensor) => headsFirst(tensor(data as Float32Array, [1, n, kvHeads, rank]));
  const perHead = ({ data }: Tensor, inner: number) => tensor(data as Float32Array, [1, kvHeads, inner, dim]);
  const pairs = [
    { left: latents(rows.keyLatent), right: perHead(model.keyUp, rank) },
    { left: latents(rows.valueLatent), right: perHead(model.valueUp, rank) },
    ...(model.valueGauge === undefined
      ? []
      : [{ left: tensor(rows.valueBase.data, [1, 1, n, dim]), right: perHead(model.valueGauge, dim) }]),
  ].map((pair) => ({ ...pair, out: zeros([1, kvHeads, n, dim]) }));
  const call = async (options: CallOptions) => {
    for (const { left, right, out } of pairs) await matmul(left, right, { ...options, out });
  };
  return {
    flops: lrkvProductFlops(method, shape),
    call,
    check: async (name, options) => {
      await call(options);
      return Math.max(...pairs.map(({ left, right, out }) => productReference(left, right).check(name, out)));
    },
  };
}

/** left·right of `[1, heads or 1, n, inner]` and `[1, heads, inner, columns]`. */
function productReference(left: Tensor, right: Tensor): Reference {
  const [lefts, rights] = [headsOf(left), headsOf(right)];
  const [, heads, inner] = right.dims as [number, number, number];
  const shared = left.dims[1] === 1;
  return new Reference(heads, left.dims[2] as number, (head, row) =>
    weightedSum(Float64Array.from(rowOf(lefts(shared ? 0 : head), row, inner)), rights(head)),
  );
}
