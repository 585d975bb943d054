import { expected } from '../errors';
import { type Matrices, productOf } from '../linalg';
import { runStepsAsync, runStepsSync, type Steps, step } from '../steps';
import type { Tensor } from '../tensor';
import { type AnalysisOptions, centre, checkAnalysisOptions, checkMatrix, sumOfSquares, transpose } from './matrix';

/**
 * Linear centred kernel alignment of two representations of the same samples, ‖YᵀX‖_F² / (‖XᵀX‖_F·‖YᵀY‖_F) with centred
 * columns (Kornblith et al. 2019, arXiv 1905.00414, section 3). Invariant to rotation, isotropic scale and shift of either.
 * It is biased upward where there are fewer samples than features: two unrelated matrices then come near 1.
 *
 * @param x `[samples, features]`, at least 2 samples, of any element type
 * @param y `[samples, otherFeatures]`
 * @returns a number in [0, 1], computed in float64
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT (a number that is not finite, samples that are
 *   all the same), ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function linearCka(x: Tensor, y: Tensor, options?: AnalysisOptions): Promise<number> {
  return await runStepsAsync(linearCka, ckaSteps(x, y, options));
}

/** {@link linearCka} on the calling thread. */
export function linearCkaSync(x: Tensor, y: Tensor, options?: AnalysisOptions): number {
  return runStepsSync(linearCkaSync, ckaSteps(x, y, options));
}

function* ckaSteps(x: Tensor, y: Tensor, given: AnalysisOptions | undefined): Steps<number> {
  const options = checkAnalysisOptions(given);
  const [a, b] = [checkMatrix('x', x, 2), checkMatrix('y', y, 2)];
  if (b.rows !== a.rows) throw expected('ERR_SHAPE', 'y', `${a.rows} rows as in \`x\``, [b.rows, b.columns]);
  for (const [name, matrix] of [
    ['x', a],
    ['y', b],
  ] as const) {
    if (isConstant(matrix)) throw expected('ERR_ARGUMENT', name, 'samples that differ', [matrix.rows, matrix.columns]);
    centre(matrix);
  }
  const gram = function* (left: Matrices, right: Matrices): Steps<Float64Array> {
    return yield* step(productOf(left, right, options));
  };
  if (a.columns + b.columns <= a.rows) {
    const cross = sumOfSquares(yield* gram(a, b));
    const norms = Math.sqrt(sumOfSquares(yield* gram(a, a))) * Math.sqrt(sumOfSquares(yield* gram(b, b)));
    return Math.min(1, cross / norms);
  }
  // With fewer samples than features the same from samples × samples: ‖YᵀX‖_F² = tr(X·Xᵀ·Y·Yᵀ).
  const [rowsA, rowsB] = [transpose(a), transpose(b)];
  const [kernelA, kernelB] = [yield* gram(rowsA, rowsA), yield* gram(rowsB, rowsB)];
  const cross = kernelA.reduce((sum, value, i) => sum + value * (kernelB[i] as number), 0);
  return Math.min(1, cross / (Math.sqrt(sumOfSquares(kernelA)) * Math.sqrt(sumOfSquares(kernelB))));
}

/** Whether every row is the first: centring leaves rounding, not zeros. */
function isConstant({ data, columns }: Matrices): boolean {
  return data.every((value, i) => value === data[i % columns]);
}
