import type { Tensor } from '../lib/tensor';
import { toFloat64 } from './half';
import type { Answer } from './reference';

export interface MatmulMeaning {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
}

/** A batched product with every index spelled out: matrix `i` of the result is matrix `a[i]` times matrix `b[i]`. */
export interface MatmulPlan {
  readonly rows: number;
  readonly columns: number;
  readonly terms: number;
  readonly dims: readonly number[];
  /** For each matrix of the result, where its factors start. */
  readonly starts: readonly { readonly a: number; readonly b: number }[];
  /** Steps within a from one row, and one term, to the next. */
  readonly rowStepA: number;
  readonly termStepA: number;
  /** Steps within b from one term, and one column, to the next. */
  readonly termStep: number;
  readonly columnStep: number;
}

/** numpy's rule: axes before the last two are aligned on the right, and an extent of 1 (or none) repeats. */
export function planMatmul(
  a: Tensor,
  b: Tensor,
  { transposeA = false, transposeB = false }: MatmulMeaning,
): MatmulPlan {
  const [rows, terms] = transposeA ? a.dims.slice(-2).reverse() : a.dims.slice(-2);
  const columns = b.dims.at(transposeB ? -2 : -1) as number;
  const rank = Math.max(a.dims.length, b.dims.length) - 2;
  const align = (dims: readonly number[]) => [...Array<number>(rank - dims.length + 2).fill(1), ...dims.slice(0, -2)];
  const [aBatch, bBatch] = [align(a.dims), align(b.dims)];
  const batch = aBatch.map((extent, axis) => (extent === 1 ? bBatch[axis] : extent));

  const count = batch.reduce((x, y) => x * y, 1);
  const starts = Array.from({ length: count }, (_, index) => {
    const at = batch.map((_extent, axis) => {
      const inner = batch.slice(axis + 1).reduce((x, y) => x * y, 1);
      return Math.floor(index / inner) % batch[axis];
    });
    const matrix = (extents: number[]) =>
      extents.reduce((sum, extent, axis) => sum * extent + (extent === 1 ? 0 : at[axis]), 0);
    return { a: matrix(aBatch) * rows * terms, b: matrix(bBatch) * terms * columns };
  });
  const [termStep, columnStep] = transposeB ? [1, terms] : [columns, 1];
  const [rowStepA, termStepA] = transposeA ? [1, rows] : [terms, 1];
  return { rows, columns, terms, dims: [...batch, rows, columns], starts, rowStepA, termStepA, termStep, columnStep };
}

/** a · b in float64, either of them transposed if wanted. */
export function referenceMatmul(a: Tensor, b: Tensor, options: MatmulMeaning = {}): Answer {
  const plan = planMatmul(a, b, options);
  const [as, bs] = [toFloat64(a), toFloat64(b)];
  const { rows, columns, terms, dims, starts } = plan;
  const values = new Float64Array(starts.length * rows * columns);
  const scale = new Float64Array(values.length);
  let at = 0;
  for (const start of starts) {
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, at++) {
        for (let term = 0; term < terms; term++) {
          const left = as[start.a + row * plan.rowStepA + term * plan.termStepA];
          const right = bs[start.b + column * plan.columnStep + term * plan.termStep];
          values[at] += left * right;
          scale[at] += Math.abs(left * right);
        }
      }
    }
  }
  return { values, scale, dims };
}
