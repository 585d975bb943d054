import type { CallOptions } from '../../call';
import { attentionFactors } from '../../lowrank';
import { type Tensor, zeros } from '../../tensor';
import { driftingInputs, headsOf } from '../inputs';
import type { LowrankMethod } from '../method';
import { fullReference } from '../reference/full';
import { product, transposed } from '../reference/matrix';
import type { Shape } from '../suite';
import type { Approximation } from './approximation';

/**
 * Centres of the inputs: fewer than the factors have columns, and nothing around them, so that the attention matrix has
 * this rank and its factors must give exact attention.
 */
const centres = 24;

/**
 * Errors of orthonormal bases are relative to the norm of a whole column, not to its elements, which are √n times smaller;
 * those of the first rows, where the reflections are, do not average out.
 */
const allowance = 25;

export function lowrank(
  { rank, oversample, powerIterations }: LowrankMethod,
  shape: Shape,
  inputs = driftingInputs(shape, centres, 0),
): Approximation {
  const { q, k, v } = inputs;
  const call = (options: CallOptions) =>
    attentionFactors(q, k, { ...options, rank, oversample, powerIterations, seed: 1 });
  return {
    inputs,
    call,
    answer: async (options) => applied(await call(options), v),
    reference: () => fullReference(inputs, { causal: false }, allowance),
  };
}

/** u (vᵀ value), in float64 and rounded at the end. */
function applied({ u, v }: { readonly u: Tensor; readonly v: Tensor }, value: Tensor): Tensor {
  const [, heads, n, rank] = u.dims as [number, number, number, number];
  const output = zeros([1, heads, n, value.dims[3] as number]);
  const [left, right, values, outputs] = [headsOf(u), headsOf(v), headsOf(value), headsOf(output)];
  for (let head = 0; head < heads; head++) {
    const sums = product(transposed(right(head), rank), values(head), n);
    outputs(head).set(product(left(head), sums, rank));
  }
  return output;
}
