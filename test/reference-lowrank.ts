import { runSync } from '../lib/call';
import { svdOf } from '../lib/linalg';
import type { Tensor } from '../lib/tensor';
import { toFloat32, toFloat64 } from './half';
import type { Layout } from './problem';

/** What decides about an attention matrix. */
export interface MatrixMeaning {
  readonly causal?: boolean;
  readonly scale?: number;
  readonly layout?: Layout;
}

/** Row-major in float64. */
export interface Matrix {
  readonly data: Float64Array;
  readonly rows: number;
  readonly columns: number;
}

/** A = u·diag(values)·vᵀ, rank = min(rows, columns). */
export interface ReferenceSvd {
  readonly values: Float64Array;
  /** `[rows, rank]` and `[columns, rank]`. */
  readonly u: Float64Array;
  readonly v: Float64Array;
}

/** For Jest, where a name of the global object costs more than the arithmetic. */
const f32 = Math.fround;
const unseen = -Infinity;

/**
 * softmax(scale·q·kᵀ) of every batch item and query head, in that order, straight from the definition: each score by
 * itself, then each row. With `single` every step is rounded to float32, as the naive form has it.
 */
export function attentionMatrices(q: Tensor, k: Tensor, meaning: MatrixMeaning = {}, single = false): Matrix[] {
  const { causal = false, layout = 'bhld', scale = 1 / Math.sqrt(q.dims[3]) } = meaning;
  const round = single ? f32 : (value: number) => value;
  const [headAxis, rowAxis] = layout === 'bhld' ? [1, 2] : [2, 1];
  const [batch, heads, rows, headDim] = [q.dims[0], q.dims[headAxis], q.dims[rowAxis], q.dims[3]];
  const [kvHeads, columns] = [k.dims[headAxis], k.dims[rowAxis]];
  const [qs, ks] = single ? [toFloat32(q), toFloat32(k)] : [toFloat64(q), toFloat64(k)];
  const place = (item: number, head: number, row: number, of: number, length: number) =>
    (layout === 'bhld' ? (item * of + head) * length + row : (item * length + row) * of + head) * headDim;
  const matrices: Matrix[] = [];
  for (let item = 0; item < batch; item++) {
    for (let head = 0; head < heads; head++) {
      const data = new Float64Array(rows * columns);
      for (let i = 0; i < rows; i++) {
        const row = data.subarray(i * columns, (i + 1) * columns).fill(unseen);
        const query = place(item, head, i, heads, rows);
        let max = unseen;
        for (let j = 0; j < (causal ? Math.min(columns, i + columns - rows + 1) : columns); j++) {
          const key = place(item, Math.floor(head / (heads / kvHeads)), j, kvHeads, columns);
          let dot = 0;
          for (let d = 0; d < headDim; d++) dot = round(dot + round(qs[query + d] * ks[key + d]));
          row[j] = round(dot * round(scale));
          max = Math.max(max, row[j]);
        }
        if (max === unseen) {
          row.fill(0);
          continue;
        }
        let sum = 0;
        for (let j = 0; j < columns; j++) sum = round(sum + round(Math.exp(round(row[j] - max))));
        // As the transposed pass has it: by the row's log-sum-exp.
        const lse = round(max + round(Math.log(sum)));
        for (let j = 0; j < columns; j++) row[j] = round(Math.exp(round(row[j] - lse)));
      }
      matrices.push({ data, rows, columns });
    }
  }
  return matrices;
}

/** The whole decomposition of a matrix in float64. */
export function referenceSvd({ data, rows, columns }: Matrix): ReferenceSvd {
  const { values, left, right } = runSync(svdOf, () => svdOf({ data, batch: 1, rows, columns }, true));
  return { values, u: left as Float64Array, v: right as Float64Array };
}

/** Singular values by one-sided Jacobi rotations (Hestenes 1958): slow, and nobody else's code. */
export function jacobiSingularValues({ data, rows, columns }: Matrix): number[] {
  const vectors = Array.from({ length: columns }, (_, c) =>
    Float64Array.from({ length: rows }, (_, r) => data[r * columns + c]),
  );
  const dot = (a: Float64Array, b: Float64Array) => {
    let sum = 0;
    for (let i = 0; i < rows; i++) sum += a[i] * b[i];
    return sum;
  };
  for (let sweep = 0, rotated = true; rotated && sweep < 60; sweep++) {
    rotated = false;
    for (let i = 0; i < columns; i++) {
      for (let j = i + 1; j < columns; j++) {
        const [x, y] = [vectors[i], vectors[j]];
        const [a, b, c] = [dot(x, x), dot(y, y), dot(x, y)];
        if (Math.abs(c) <= 1e-15 * Math.sqrt(a * b) || c === 0) continue;
        rotated = true;
        const zeta = (b - a) / (2 * c);
        const tangent = Math.sign(zeta || 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
        const cosine = 1 / Math.sqrt(1 + tangent * tangent);
        const sine = cosine * tangent;
        for (let r = 0; r < rows; r++) [x[r], y[r]] = [cosine * x[r] - sine * y[r], sine * x[r] + cosine * y[r]];
      }
    }
  }
  return vectors.map((vector) => Math.sqrt(dot(vector, vector))).sort((a, b) => b - a);
}

/** a·bᵀ of row-major a [rows, width] and b [columns, width], and the sums of absolute values behind it. */
export function outerProduct(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  width: number,
): { readonly values: Float64Array; readonly scale: Float64Array } {
  const [rows, columns] = [a.length / width, b.length / width];
  const values = new Float64Array(rows * columns);
  const scale = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      let sum = 0;
      let size = 0;
      for (let c = 0; c < width; c++) {
        const term = a[i * width + c] * b[j * width + c];
        sum += term;
        size += Math.abs(term);
      }
      values[i * columns + j] = sum;
      scale[i * columns + j] = size;
    }
  }
  return { values, scale };
}

/** Σ x². */
export const sumOfSquares = (values: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] * values[i];
  return sum;
};

/** ‖a − b‖_F. */
export const distance = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Math.sqrt(sumOfSquares(Float64Array.from(a, (value, i) => value - b[i])));
