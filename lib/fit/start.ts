/** What an alternation begins with: the best base of each gauge without residuals. */
import { basisOf, eigenOf, float64, type Matrices } from '../linalg';
import { normals } from '../random';
import type { CheckedRope } from '../rope';
import { type Steps, step } from '../steps';
import {
  inner,
  inverse,
  inverseRoot,
  matrices,
  type Run,
  regroup,
  spectralMap,
  symmetricInner,
  times,
} from './algebra';
import type { FitPlan } from './als';
import { type Objective, pairOf } from './moments';

/** c `[heads·width, width]` of S = Y·c. */
export function* startOf(objective: Objective, { gauge, rope }: FitPlan, run: Run): Steps<Matrices> {
  const { width, roots, gram } = objective;
  if (gauge === 'free') return yield* leadingOf(gram, width, run);
  if (gauge === 'rope-pair') return yield* leadingPairs(objective, rope as CheckedRope, run);
  // Σ Y_h·N_h·(Σ N_h²)⁻¹
  const stacked = regroup(roots, 1);
  return yield* times(stacked, yield* spectralMap(yield* symmetricInner(stacked, stacked, run), inverse, run), run);
}

/** More columns than wanted, and passes: what the alternation begins with need not be exact. */
const oversample = 8;
const passes = 6;

/** c of the leading left singular vectors of Y, by subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4). */
function* leadingOf(gram: Matrices, count: number, run: Run): Steps<Matrices> {
  const size = gram.rows;
  const columns = Math.min(size, count + oversample);
  const next = normals(0);
  let basis = matrices(float64('weights', size * columns).map(next), 1, size, columns);
  for (let pass = 0; pass < passes; pass++) {
    const data = yield* step(basisOf(yield* inner(gram, basis, run), run));
    basis = matrices(data, 1, size, columns);
  }
  const projected = yield* symmetricInner(yield* inner(gram, basis, run), basis, run);
  const { values, vectors } = yield* step(eigenOf(projected, true, run));
  // Columns of unit length in Y·c; directions that Y has not are zero.
  const scaled = matrices(float64('weights', columns * count), 1, columns, count);
  for (let i = 0; i < scaled.data.length; i++) {
    const vector = columns - 1 - (i % count);
    const factor = vector < 0 ? 0 : inverseRoot(values[vector] as number, values[columns - 1] as number);
    scaled.data[i] = factor * ((vectors as Float64Array)[Math.floor(i / count) * columns + vector] as number);
  }
  return yield* times(basis, scaled, run);
}

/**
 * c whose pair j, as the complex column s_j = S_a + i·S_b, is the leading left singular vector of the complex columns of
 * pair j of all heads.
 */
function* leadingPairs({ heads, width, gram }: Objective, rope: CheckedRope, run: Run): Steps<Matrices> {
  const size = 2 * heads;
  const grams = matrices(float64('weights', (width / 2) * size * size), width / 2, size, size);
  const place = (head: number, member: number): number => head * width + member;
  for (let pair = 0; pair < width / 2; pair++) {
    const [a, b] = pairOf(pair, width, rope);
    for (let g = 0; g < heads; g++) {
      for (let h = 0; h < heads; h++) {
        const of = (i: number, j: number): number => gram.data[place(g, i) * gram.rows + place(h, j)] as number;
        const real = of(a, a) + of(b, b);
        const imaginary = of(a, b) - of(b, a);
        // The Hermitian matrix X + iY as the symmetric [[X, −Y], [Y, X]].
        const put = (row: number, column: number, value: number): void => {
          grams.data[(pair * size + row) * size + column] = value;
        };
        put(g, h, real);
        put(g + heads, h + heads, real);
        put(g, h + heads, -imaginary);
        put(g + heads, h, imaginary);
      }
    }
  }
  const { values, vectors } = yield* step(eigenOf(grams, true, run));
  const base = float64('weights', heads * width * width);
  for (let pair = 0; pair < width / 2; pair++) {
    const [a, b] = pairOf(pair, width, rope);
    const value = values[(pair + 1) * size - 1] as number;
    const factor = value > 0 ? 1 / Math.sqrt(value) : 0;
    for (let head = 0; head < heads; head++) {
      const part = (row: number): number =>
        factor * ((vectors as Float64Array)[(pair * size + row + 1) * size - 1] as number);
      const [real, imaginary] = [part(head), part(head + heads)];
      const put = (row: number, column: number, entry: number): void => {
        base[place(head, row) * width + column] = entry;
      };
      put(a, a, real);
      put(b, a, -imaginary);
      put(a, b, imaginary);
      put(b, b, real);
    }
  }
  return matrices(base, 1, heads * width, width);
}
