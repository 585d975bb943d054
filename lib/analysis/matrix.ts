/** Tensors as float64 matrices, which is what the analysis computes in. */
import { type CallOptions, outlessOptionNames } from '../call';
import { checkAnyTensor, checkOptions } from '../check';
import { float32Of } from '../convert';
import { expected } from '../errors';
import { float64, type Matrices } from '../linalg';
import { view } from '../read';

/** How an analysis runs. */
export type AnalysisOptions = Omit<CallOptions, 'out'>;

const known: ReadonlySet<string> = new Set(outlessOptionNames);

export function checkAnalysisOptions(options: AnalysisOptions | undefined): AnalysisOptions {
  return checkOptions('options', options, known);
}

/** Values of a tensor that are all finite, as float64. */
export interface Float64Values {
  readonly data: Float64Array;
  readonly dims: readonly number[];
}

/** Reads a tensor of a given rank, or of any. */
export function checkValues(name: string, value: unknown, rank?: number): Float64Values {
  const tensor = checkAnyTensor(name, value, rank);
  const data = float32Of(tensor);
  const values = float64(name, view.length(data));
  values.set(data);
  // A loop of its own: a function called for each of millions takes seconds.
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i])) continue;
    throw expected('ERR_ARGUMENT', name, `finite numbers (element ${i} is not)`, values[i]);
  }
  return { data: values, dims: tensor.dims };
}

/** Reads `[rows, columns]` with at least so many rows and one column. */
export function checkMatrix(name: string, value: unknown, leastRows: number): Matrices {
  const { data, dims } = checkValues(name, value, 2);
  const [rows, columns] = dims as [number, number];
  if (rows < leastRows || columns === 0) {
    const what = `at least ${leastRows} row${leastRows === 1 ? '' : 's'} and one column`;
    throw expected('ERR_SHAPE', name, what, dims);
  }
  return { data, batch: 1, rows, columns };
}

/** Elements on a side of the squares that are transposed at a time, so that both of their sides stay in the cache. */
const square = 32;

export function transpose({ data, batch, rows, columns }: Matrices): Matrices {
  const result = float64('transpose', data.length);
  for (let item = 0; item < batch; item++) {
    const first = item * rows * columns;
    for (let top = 0; top < rows; top += square) {
      for (let left = 0; left < columns; left += square) {
        const [bottom, right] = [Math.min(rows, top + square), Math.min(columns, left + square)];
        for (let column = left; column < right; column++) {
          for (let row = top; row < bottom; row++)
            result[first + column * rows + row] = data[first + row * columns + column] as number;
        }
      }
    }
  }
  return { data: result, batch, rows: columns, columns: rows };
}

/** Subtracts every column's mean, in place, and returns the means. */
export function centre({ data, rows, columns }: Matrices): Float64Array {
  const mean = new Float64Array(columns);
  for (const [i, value] of data.entries()) mean[i % columns] = (mean[i % columns] as number) + value / rows;
  for (let i = 0; i < data.length; i++) data[i] = (data[i] as number) - (mean[i % columns] as number);
  return mean;
}

/** Σ x² of all elements. */
export function sumOfSquares(values: Float64Array): number {
  let sum = 0;
  for (const value of values) sum += value * value;
  return sum;
}

/** exp of the entropy (natural logarithm, 0·ln 0 = 0) of weights ≥ 0 divided by their sum; 0 where all are 0. */
export function expEntropy(weights: Iterable<number>): number {
  const list = [...weights];
  const total = list.reduce((sum, weight) => sum + weight, 0);
  if (total === 0) return 0;
  const entropy = list.reduce(
    (sum, weight) => (weight > 0 ? sum - (weight / total) * Math.log(weight / total) : sum),
    0,
  );
  return Math.exp(entropy);
}
