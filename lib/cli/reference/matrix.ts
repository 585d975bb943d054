/** The arithmetic that the float64 forms share. Matrices are row-major. */

export type Numbers = Float32Array | Float64Array;

/** Row `index` of a matrix of `columns` columns. */
export function rowOf<Matrix extends Numbers>(matrix: Matrix, index: number, columns: number): Matrix {
  return matrix.subarray(index * columns, (index + 1) * columns) as Matrix;
}

/** x · rowᵀ for every row of a matrix. */
export function dots(x: Numbers, matrix: Numbers): Float64Array {
  const columns = x.length;
  const result = new Float64Array(matrix.length / columns);
  for (let row = 0; row < result.length; row++) {
    const start = row * columns;
    let sum = 0;
    for (let d = 0; d < columns; d++) sum += (x[d] as number) * (matrix[start + d] as number);
    result[row] = sum;
  }
  return result;
}

/**
 * softmax(x · keysᵀ · scale): the weights of one query over the rows of `keys`.
 *
 * @param scale default 1/√ of the rows' length
 */
export function softmaxWeights(x: Numbers, keys: Numbers, scale = 1 / Math.sqrt(x.length)): Float64Array {
  const weights = dots(x, keys);
  let max = -Infinity;
  for (const dot of weights) max = Math.max(max, dot * scale);
  let sum = 0;
  for (let i = 0; i < weights.length; i++) {
    weights[i] = Math.exp((weights[i] as number) * scale - max);
    sum += weights[i] as number;
  }
  for (let i = 0; i < weights.length; i++) weights[i] = (weights[i] as number) / sum;
  return weights;
}

/** Σ w · row, and Σ |w| · |scale of row|, where rows that are given have themselves as their scale. */
export interface Sum {
  readonly values: Float64Array;
  readonly scale: Float64Array;
}

/** The sum of a matrix's rows by these weights. */
export function weightedSum(weights: Float64Array, matrix: Numbers, scales: Numbers = matrix): Sum {
  const columns = matrix.length / weights.length;
  const values = new Float64Array(columns);
  const scale = new Float64Array(columns);
  for (let row = 0; row < weights.length; row++) {
    const weight = weights[row] as number;
    const start = row * columns;
    for (let d = 0; d < columns; d++) {
      values[d] = (values[d] as number) + weight * (matrix[start + d] as number);
      scale[d] = (scale[d] as number) + Math.abs(weight * (scales[start + d] as number));
    }
  }
  return { values, scale };
}

/** The columns of a matrix as rows. */
export function transposed<Matrix extends Numbers>(matrix: Matrix, columns: number): Matrix {
  const rows = matrix.length / columns;
  return matrix.map((_, i) => matrix[(i % rows) * columns + Math.floor(i / rows)] as number) as Matrix;
}

/** a · b, of a `[rows, inner]` and b `[inner, columns]`. */
export function product(a: Numbers, b: Numbers, inner: number): Float64Array {
  const rows = a.length / inner;
  const columns = b.length / inner;
  const result = new Float64Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const out = rowOf(result, row, columns);
    for (let i = 0; i < inner; i++) {
      const factor = a[row * inner + i] as number;
      const start = i * columns;
      for (let d = 0; d < columns; d++) out[d] = (out[d] as number) + factor * (b[start + d] as number);
    }
  }
  return result;
}
