import { expected, guard } from '../errors';
import type { Tensor } from '../tensor';
import { checkValues, type Float64Values, sumOfSquares } from './matrix';

/** How far a tensor lies from another. */
export interface ApproximationError {
  /** ‖approximation − exact‖_F / ‖exact‖_F over all elements; if `exact` is zero, 0 where it is met and else infinity. */
  readonly relativeFrobenius: number;
  /** Largest |approximation − exact|. */
  readonly maxAbs: number;
}

/**
 * The error of an approximate result, outputs of attention for example, in float64.
 *
 * @param approximation of any dims and element type
 * @param exact of the same dims
 * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT (a number that is not finite), ERR_MEMORY
 */
export function approximationError(approximation: Tensor, exact: Tensor): ApproximationError {
  return guard(approximationError, () => {
    const [found, wanted] = checkPair('approximation', approximation, 'exact', exact);
    const difference = found.data.map((value, i) => value - (wanted.data[i] as number));
    const distance = Math.sqrt(sumOfSquares(difference));
    const norm = Math.sqrt(sumOfSquares(wanted.data));
    return {
      relativeFrobenius: distance === 0 ? 0 : distance / norm,
      maxAbs: difference.reduce((most, value) => Math.max(most, Math.abs(value)), 0),
    };
  });
}

/** How far rows of approximate attention weights lie from the exact ones. */
export interface AttentionRowKl {
  /**
   * Mean over the rows where it is finite of Σⱼ pⱼ·ln(pⱼ/qⱼ) − pⱼ + qⱼ, in nats: the Kullback-Leibler divergence where
   * both rows sum to 1, and never negative where they do not. NaN if there is no such row.
   */
  readonly mean: number;
  /** Largest of these; NaN if there is none. */
  readonly max: number;
  /** Rows that approximate a weight above 0 by one that is not: their divergence is infinite. */
  readonly infiniteRows: number;
  /** Smallest weight of the approximation. Truncation makes weights negative. */
  readonly smallestWeight: number;
  /** Largest |Σⱼ qⱼ − Σⱼ pⱼ| of a row. */
  readonly maxRowSumError: number;
}

/**
 * Divergence of attention weights row by row, in float64. It needs the matrices, so it is for short sequences: the exact
 * ones are exact attention onto an identity matrix as values, those of factors are `matmul(u, v, { transposeB: true })`.
 *
 * @param exact `[…, queries, keys]`, weights ≥ 0, of any element type
 * @param approximation of the same dims
 * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT (a number that is not finite, a negative exact weight),
 *   ERR_MEMORY
 */
export function attentionRowKl(exact: Tensor, approximation: Tensor): AttentionRowKl {
  return guard(attentionRowKl, () => {
    const [p, q] = checkPair('exact', exact, 'approximation', approximation);
    if (p.dims.length < 2) throw expected('ERR_SHAPE', 'exact', 'at least 2 dims', p.dims);
    const negative = p.data.findIndex((weight) => weight < 0);
    if (negative >= 0)
      throw expected('ERR_ARGUMENT', 'exact', `weights >= 0 (element ${negative} is not)`, p.data[negative]);
    const keys = p.dims.at(-1) as number;
    const divergences: number[] = [];
    let infiniteRows = 0;
    let maxRowSumError = 0;
    for (let start = 0; start < p.data.length; start += keys) {
      let divergence = 0;
      let difference = 0;
      for (let j = start; j < start + keys; j++) {
        const [weight, approximate] = [p.data[j] as number, q.data[j] as number];
        difference += approximate - weight;
        if (weight > 0) divergence += approximate > 0 ? weight * Math.log(weight / approximate) : Infinity;
      }
      maxRowSumError = Math.max(maxRowSumError, Math.abs(difference));
      if (divergence === Infinity) infiniteRows++;
      // Rounding may leave a divergence of 0 below it.
      else divergences.push(Math.max(0, divergence + difference));
    }
    return {
      mean: divergences.reduce((sum, value) => sum + value, 0) / divergences.length,
      max: divergences.length === 0 ? NaN : divergences.reduce((most, value) => Math.max(most, value), 0),
      infiniteRows,
      smallestWeight: q.data.reduce((least, value) => Math.min(least, value), Infinity),
      maxRowSumError,
    };
  });
}

function checkPair(nameA: string, a: Tensor, nameB: string, b: Tensor): readonly [Float64Values, Float64Values] {
  const [first, second] = [checkValues(nameA, a), checkValues(nameB, b)];
  if (first.dims.join() !== second.dims.join())
    throw expected('ERR_SHAPE', nameB, `dims [${first.dims.join(', ')}] as in \`${nameA}\``, second.dims);
  return [first, second];
}
