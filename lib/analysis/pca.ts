import { outlessOptionNames } from '../call';
import { checkInteger, checkOptions } from '../check';
import { eigenOf, productOf, svdOf } from '../linalg';
import { runStepsAsync, runStepsSync, type Steps, step } from '../steps';
import type { Tensor } from '../tensor';
import { type AnalysisOptions, centre, checkMatrix, sumOfSquares } from './matrix';

/** Options of {@link pca}. */
export interface PcaOptions extends AnalysisOptions {
  /** Components wanted, from 1 to the smaller of samples and features. Default all of these. */
  readonly components?: number;
}

/** Principal components of samples. */
export interface Pca {
  /** Of each feature. */
  readonly mean: Float64Array;
  /**
   * Unit vectors of the features' space, mutually orthogonal, by descending variance. The entry of largest magnitude is
   * positive.
   */
  readonly components: Float64Array[];
  /** Of the samples along each component, with divisor samples − 1. */
  readonly variances: Float64Array;
  /** Each variance as a share of that of all features together; 0 where samples do not differ. */
  readonly explainedRatio: Float64Array;
}

const optionNames: ReadonlySet<string> = new Set([...outlessOptionNames, 'components']);

/**
 * Principal component analysis (Pearson 1901), on a worker thread, in float64: eigenvectors of the covariance where there
 * are no fewer samples than features, else singular vectors of the centred samples. Variances below 1e-15 of the
 * largest are rounding.
 *
 * @param x `[samples, features]`, at least 2 samples, of any element type
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function pca(x: Tensor, options?: PcaOptions): Promise<Pca> {
  return await runStepsAsync(pca, pcaSteps(x, options));
}

/** {@link pca} on the calling thread. */
export function pcaSync(x: Tensor, options?: PcaOptions): Pca {
  return runStepsSync(pcaSync, pcaSteps(x, options));
}

function* pcaSteps(x: Tensor, given: PcaOptions | undefined): Steps<Pca> {
  const matrix = checkMatrix('x', x, 2);
  const { components: wanted, ...options }: PcaOptions = checkOptions('options', given, optionNames);
  const { rows, columns } = matrix;
  const most = Math.min(rows, columns);
  const count = wanted === undefined ? most : checkInteger('components', wanted, 1, most);
  const mean = centre(matrix);
  const total = sumOfSquares(matrix.data) / (rows - 1);
  const variances = new Float64Array(count);
  let vectors: Float64Array;
  let column: (component: number) => number;
  if (rows >= columns) {
    const data = yield* step(productOf(matrix, matrix, options));
    const eigen = yield* step(eigenOf({ data, batch: 1, rows: columns, columns }, true, options));
    vectors = eigen.vectors as Float64Array;
    column = (component) => columns - 1 - component;
    for (let c = 0; c < count; c++) variances[c] = Math.max(0, eigen.values[column(c)] as number) / (rows - 1);
  } else {
    const { values, right } = yield* step(svdOf(matrix, true, options));
    vectors = right as Float64Array;
    column = (component) => component;
    for (let c = 0; c < count; c++) variances[c] = (values[c] as number) ** 2 / (rows - 1);
  }
  const width = vectors.length / columns;
  const components = Array.from({ length: count }, (_, component) => {
    const vector = Float64Array.from(
      { length: columns },
      (_, row) => vectors[row * width + column(component)] as number,
    );
    const largest = vector.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
    return largest < 0 ? vector.map((value) => -value) : vector;
  });
  return { mean, components, variances, explainedRatio: variances.map((value) => (total === 0 ? 0 : value / total)) };
}
