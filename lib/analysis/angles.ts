import { expected } from '../errors';
import { float64, type Matrices, productOf, svdOf } from '../linalg';
import { runStepsAsync, runStepsSync, type Steps, step } from '../steps';
import type { Tensor } from '../tensor';
import { type AnalysisOptions, checkAnalysisOptions, checkMatrix, transpose } from './matrix';

/**
 * Principal angles between the spaces that the columns of two matrices span (Björck & Golub 1973, Math. Comp. 27). Angles
 * below 45° come from their sines, as the cosine of a tiny angle is 1 in any precision. Columns that depend on
 * others add nothing.
 *
 * @param x `[rows, columns]`, not all zero, of any element type
 * @param y `[rows, otherColumns]`
 * @returns as many angles as the smaller space has dimensions, in radians, ascending, each in [0, π/2]; computed in float64
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function principalAngles(x: Tensor, y: Tensor, options?: AnalysisOptions): Promise<Float64Array> {
  return await runStepsAsync(principalAngles, anglesSteps(x, y, options));
}

/** {@link principalAngles} on the calling thread. */
export function principalAnglesSync(x: Tensor, y: Tensor, options?: AnalysisOptions): Float64Array {
  return runStepsSync(principalAnglesSync, anglesSteps(x, y, options));
}

function* anglesSteps(x: Tensor, y: Tensor, given: AnalysisOptions | undefined): Steps<Float64Array> {
  const options = checkAnalysisOptions(given);
  const [a, b] = [checkMatrix('x', x, 1), checkMatrix('y', y, 1)];
  if (b.rows !== a.rows) throw expected('ERR_SHAPE', 'y', `${a.rows} rows as in \`x\``, [b.rows, b.columns]);
  const bases = [yield* basisSteps('x', a, options), yield* basisSteps('y', b, options)];
  const [large, small] = bases.sort((left, right) => right.columns - left.columns) as [Matrices, Matrices];
  const cross = yield* step(productOf(large, small, options));
  const cosines = yield* step(
    svdOf({ data: cross, batch: 1, rows: large.columns, columns: small.columns }, false, options),
  );
  // What of the smaller space lies outside the larger: small − large·(largeᵀ·small).
  const inside = yield* step(
    productOf(transpose(large), { data: cross, batch: 1, rows: large.columns, columns: small.columns }, options),
  );
  const outside = small.data.map((value, i) => value - (inside[i] as number));
  const sines = yield* step(svdOf({ ...small, data: outside }, false, options));
  return cosines.values.map((value, i) => {
    const sine = Math.min(1, sines.values[small.columns - 1 - i] as number);
    return sine * sine <= 0.5 ? Math.asin(sine) : Math.acos(Math.min(1, value));
  });
}

/** An orthonormal basis of the columns: left singular vectors of values that are not rounding. */
function* basisSteps(name: string, matrix: Matrices, options: AnalysisOptions): Steps<Matrices> {
  const { rows, columns } = matrix;
  const { values, left } = yield* step(svdOf(matrix, true, options));
  const rank = values.length;
  const smallest = Math.max(rows, columns) * 2 ** -52 * (values[0] as number);
  const kept = values.reduce((count, value) => count + Number(value > smallest), 0);
  if (kept === 0) throw expected('ERR_ARGUMENT', name, 'a column that is not zero', [rows, columns]);
  const data = float64(name, rows * kept);
  for (let row = 0; row < rows; row++) {
    data.set((left as Float64Array).subarray(row * rank, row * rank + kept), row * kept);
  }
  return { data, batch: 1, rows, columns: kept };
}
