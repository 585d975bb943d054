/** Products of row-major float64 matrices, as steps of a fit. */
import type { CallOptions } from '../call';
import { eigenOf, float64, type Matrices, productOf } from '../linalg';
import { type Steps, step } from '../steps';

/** How every native call of a fit runs. */
export type Run = Pick<CallOptions, 'threads' | 'signal' | 'device'>;

export function matrices(data: Float64Array, batch: number, rows: number, columns: number): Matrices {
  return { data, batch, rows, columns };
}

/** aᵀ·b of every pair. */
export function* inner(a: Matrices, b: Matrices, run: Run): Steps<Matrices> {
  return matrices(yield* step(productOf(a, b, run)), a.batch, a.columns, b.columns);
}

/** aᵀ·b of every pair, which is known to be symmetric. */
export function* symmetricInner(a: Matrices, b: Matrices, run: Run): Steps<Matrices> {
  return matrices(yield* step(productOf(a, b, run, { symmetric: true })), a.batch, a.columns, b.columns);
}

/** a·b of every pair. */
export function* times(a: Matrices, b: Matrices, run: Run): Steps<Matrices> {
  return matrices(yield* step(productOf(a, b, run, { plain: true })), a.batch, a.rows, b.columns);
}

/** Every head `[rows, width]` of `[rows, heads·width]` times a matrix of its own. */
export function* timesHeads(a: Matrices, b: Matrices, run: Run): Steps<Matrices> {
  return joinHeads(yield* times(splitHeads(a, b.batch), b, run));
}

/** The same matrices as a batch of another number: rows that follow each other are cut, or joined. */
export function regroup({ data, batch, rows, columns }: Matrices, into: number): Matrices {
  return matrices(data, into, (batch * rows) / into, columns);
}

/** `[rows, heads·width]` as `[heads, rows, width]`. */
export function splitHeads({ data, rows, columns }: Matrices, heads: number): Matrices {
  const width = columns / heads;
  const parts = float64('weights', data.length);
  for (let row = 0; row < rows; row++) {
    for (let head = 0; head < heads; head++) {
      const from = row * columns + head * width;
      parts.set(data.subarray(from, from + width), (head * rows + row) * width);
    }
  }
  return matrices(parts, heads, rows, width);
}

/** `[heads, rows, width]` as `[rows, heads·width]`. */
export function joinHeads({ data, batch: heads, rows, columns: width }: Matrices): Matrices {
  const whole = float64('weights', data.length);
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < rows; row++) {
      const from = (head * rows + row) * width;
      whole.set(data.subarray(from, from + width), (row * heads + head) * width);
    }
  }
  return matrices(whole, 1, rows, heads * width);
}

/** One matrix, `batch` times. */
export function repeat({ data, rows, columns }: Matrices, batch: number): Matrices {
  const copies = float64('weights', data.length * batch);
  for (let item = 0; item < batch; item++) copies.set(data, item * data.length);
  return matrices(copies, batch, rows, columns);
}

/** Whichever power of each symmetric positive semidefinite matrix `of` maps eigenvalues to, at most `largest` each. */
export function* spectralMap(of: Matrices, map: (value: number, largest: number) => number, run: Run): Steps<Matrices> {
  const { batch, rows: size } = of;
  const { values, vectors } = yield* step(eigenOf(of, true, run));
  const bases = vectors as Float64Array;
  // V·f(Λ)·Vᵀ as (Vᵀ)ᵀ·(f(Λ)·Vᵀ).
  const rows = float64('weights', bases.length);
  const scaled = float64('weights', bases.length);
  for (let item = 0; item < batch; item++) {
    const largest = Math.max(0, values[(item + 1) * size - 1] as number);
    for (let vector = 0; vector < size; vector++) {
      const factor = map(values[item * size + vector] as number, largest);
      for (let row = 0; row < size; row++) {
        const value = bases[(item * size + row) * size + vector] as number;
        rows[(item * size + vector) * size + row] = value;
        scaled[(item * size + vector) * size + row] = value * factor;
      }
    }
  }
  return yield* symmetricInner(matrices(rows, batch, size, size), matrices(scaled, batch, size, size), run);
}

/** Eigenvalues below this share of the largest are none. */
const negligible = 1e-14;
export const inverse = (value: number, largest: number): number => (value > negligible * largest ? 1 / value : 0);
export const inverseRoot = (value: number, largest: number): number => Math.sqrt(inverse(value, largest));

/** a − b, in place of a. */
export function subtract(a: Matrices, b: Matrices): Matrices {
  const [left, right] = [a.data, b.data];
  for (let i = 0; i < left.length; i++) left[i] = (left[i] as number) - (right[i] as number);
  return a;
}

/** a + factor·b, in place of a; b may have fewer rows. */
export function add(a: Matrices, b: Matrices, factor = 1): Matrices {
  const [left, right] = [a.data, b.data];
  for (let i = 0; i < right.length; i++) left[i] = (left[i] as number) + factor * (right[i] as number);
  return a;
}
