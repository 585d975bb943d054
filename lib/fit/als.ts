/**
 * Alternating least squares of a base that all heads share and a residual of low rank for each: with Y_h = C^{1/2}·W_h·N_h
 * of an `Objective`, min Σ_h ‖Y_h − S·G_h − R_h‖² over S, what the gauge leaves free of G_h, and R_h of rank r_h.
 *
 * Nothing is ever as large as the inputs are: the best S and R_h are combinations of the columns of Y = [Y_1 … Y_H],
 * S = Y·c, so that products of J = Yᵀ·Y are all that is needed. Squares in J halve the digits: what is below 1e-8 of Y
 * is not told from zero, which is why errors that are reported are measured from the factors themselves.
 */

import { transpose } from '../analysis/matrix';
import { basisOf, eigenOf, float64, type Matrices } from '../linalg';
import { normals } from '../random';
import { attempt } from '../read';
import type { CheckedRope } from '../rope';
import { type Steps, step } from '../steps';
import {
  add,
  inner,
  matrices,
  type Run,
  regroup,
  repeat,
  spectralMap,
  subtract,
  symmetricInner,
  times,
} from './algebra';
import { diagonalBlocks, type Objective, pairOf } from './moments';

/** What lies between the shared base and a head: any matrix, a complex number a rotary pair, nothing; or no base. */
export type Gauge = 'free' | 'rope-pair' | 'identity' | 'none';

export interface FitPlan {
  readonly gauge: Gauge;
  /** Of 'rope-pair', and where latents are whole pairs. */
  readonly rope: CheckedRope | null;
  /** Residuals are made of whole rotary pairs of their head, so that they rotate as it does ('intertwined'). */
  readonly pairs: boolean;
  readonly iterations: number;
  /** Called after every iteration with Σ_h ‖Y_h − S·G_h − R_h‖². */
  readonly onIteration?: (iteration: number, error: number) => void;
}

/** A base with its gauges, and the residuals' directions, all of them by descending energy, whatever rank is kept. */
export interface Factors {
  readonly gauge: Gauge;
  /** c `[heads·width, width]` of the base S = Y·c; null where there is none. */
  readonly base: Matrices | null;
  /** G_h `[heads, width, width]`, null where there is no base. */
  readonly gauges: Matrices | null;
  /** `[heads, width, width]`, an orthonormal basis, a direction a column: a residual of rank r is Y_h − S·G_h on the first r. */
  readonly directions: Matrices;
  /** `[heads, width]`: energy of Y_h − S·G_h along each direction. */
  readonly spectra: Float64Array;
  /** Σ_h ‖Y_h − S·G_h − R_h‖² after each iteration. */
  readonly history: readonly number[];
}

/** An iteration that betters the error by a smaller share is the last, */
const leastGain = 1e-12;
/** but not where the error is so small a share of the energy that rounding hides what an iteration gains. */
const hidden = 1e-14;
/** Directions of the base with less than this share of the largest energy are none. */
const negligible = 1e-14;

/** Fits residuals of so many directions a head, and the base under them. */
export function* alternate(objective: Objective, ranks: readonly number[], plan: FitPlan, run: Run): Steps<Factors> {
  const { heads, gram, energies } = objective;
  const blocks = diagonalBlocks(gram, heads);
  const { gauge } = plan;
  if (gauge === 'none') {
    const { directions, spectra } = yield* directionsOf(blocks, plan, run);
    const error = tailOf(spectra, ranks);
    plan.onIteration?.(1, error);
    return { gauge, base: null, gauges: null, directions, spectra, history: [error] };
  }
  let base = yield* startOf(objective, plan, run);
  const energy = energies.reduce((sum, each) => sum + each, 0);
  const history: number[] = [];
  /** What the residuals are of: the base and gauges they were taken under. */
  let before: { base: Matrices; gauges: Matrices; kept: Matrices } | undefined;
  for (let iteration = 1; ; iteration++) {
    // Y_hᵀ·S head after head, and Sᵀ·S.
    let cross = yield* inner(gram, base, run);
    let square = yield* symmetricInner(cross, base, run);
    if (gauge === 'free') {
      const unit = yield* spectralMap(square, inverseRoot, run);
      base = yield* times(base, unit, run);
      cross = yield* times(cross, unit, run);
      square = yield* symmetricInner(cross, base, run);
    }
    const gauges = yield* gaugesOf(objective, plan, { cross, square, before }, run);

    // (Y_h − S·G_h)ᵀ·(Y_h − S·G_h)
    const mixed = yield* times(regroup(cross, heads), gauges, run);
    const based = yield* symmetricInner(gauges, yield* inner(repeat(square, heads), gauges, run), run);
    const residuals = { ...blocks, data: blocks.data.slice() };
    add(subtract(subtract(residuals, mixed), transpose(mixed)), based);
    const { directions, spectra } = yield* directionsOf(residuals, plan, run);
    const error = tailOf(spectra, ranks);
    history.push(error);
    attempt('onProgress', () => plan.onIteration?.(iteration, error));
    const last = history.at(-2);
    const settled = last !== undefined && last - error <= leastGain * error && error > hidden * energy;
    if (settled || iteration >= plan.iterations) return { gauge, base, gauges, directions, spectra, history };

    // S = Σ (Y_h − R_h)·G_hᵀ·(Σ G_h·G_hᵀ)⁻¹, where R_h = (Y_h − S·G_h)·B·Bᵀ of the directions B that are kept.
    const kept = keep(directions, ranks);
    const ofGauges = transpose(gauges);
    const onto = yield* inner(kept, ofGauges, run);
    const rest = subtract(ofGauges, yield* times(kept, onto, run));
    const stackedOnto = regroup(onto, 1);
    const share = yield* symmetricInner(stackedOnto, stackedOnto, run);
    const next = add(regroup(rest, 1), yield* times(base, share, run));
    const stackedGauges = regroup(transpose(gauges), 1);
    const weight = yield* spectralMap(yield* symmetricInner(stackedGauges, stackedGauges, run), inverse, run);
    before = { base, gauges, kept };
    base = yield* times(next, weight, run);
  }
}

const inverse = (value: number, largest: number): number => (value > negligible * largest ? 1 / value : 0);
const inverseRoot = (value: number, largest: number): number => Math.sqrt(inverse(value, largest));

/** Σ of what is left of all heads. */
export function tailOf(spectra: Float64Array, ranks: readonly number[]): number {
  const width = spectra.length / ranks.length;
  let sum = 0;
  for (const [head, rank] of ranks.entries())
    for (let i = rank; i < width; i++) sum += spectra[head * width + i] as number;
  return sum;
}

/** The first directions of each head; the others zero. */
function keep({ data, batch, rows, columns }: Matrices, ranks: readonly number[]): Matrices {
  const kept = data.slice();
  for (let i = 0; i < kept.length; i++) {
    if (i % columns >= (ranks[Math.floor(i / (rows * columns))] as number)) kept[i] = 0;
  }
  return matrices(kept, batch, rows, columns);
}

/** Eigenvectors of residuals' Gram matrices by descending energy; or whole rotary pairs. */
function* directionsOf(
  grams: Matrices,
  { pairs, rope }: FitPlan,
  run: Run,
): Steps<Pick<Factors, 'directions' | 'spectra'>> {
  const { batch: heads, rows: width } = grams;
  const directions = matrices(float64('weights', grams.data.length), heads, width, width);
  const spectra = float64('weights', heads * width);
  if (pairs && rope !== null) {
    for (let head = 0; head < heads; head++) {
      const energy = (i: number): number => Math.max(0, grams.data[head * width * width + i * (width + 1)] as number);
      const byEnergy = Array.from({ length: width / 2 }, (_, pair) => {
        const [a, b] = pairOf(pair, width, rope);
        return { members: [a, b], mean: (energy(a) + energy(b)) / 2 };
      }).sort((one, other) => other.mean - one.mean);
      for (const [place, { members, mean }] of byEnergy.entries()) {
        for (const [which, member] of members.entries()) {
          directions.data[(head * width + member) * width + 2 * place + which] = 1;
          spectra[head * width + 2 * place + which] = mean;
        }
      }
    }
    return { directions, spectra };
  }
  const { values, vectors } = yield* step(eigenOf(grams, true, run));
  const bases = vectors as Float64Array;
  for (let row = 0; row < heads * width; row++) {
    for (let i = 0; i < width; i++) directions.data[row * width + i] = bases[(row + 1) * width - 1 - i] as number;
  }
  for (let i = 0; i < spectra.length; i++) {
    const head = Math.floor(i / width);
    spectra[i] = Math.max(0, values[(2 * head + 1) * width - 1 - i] as number);
  }
  return { directions, spectra };
}

interface Bases {
  readonly cross: Matrices;
  readonly square: Matrices;
  readonly before: { readonly base: Matrices; readonly gauges: Matrices; readonly kept: Matrices } | undefined;
}

/** The best G_h of a base. */
function* gaugesOf(
  { heads, width, roots }: Objective,
  { gauge, rope }: FitPlan,
  { cross, square, before }: Bases,
  run: Run,
): Steps<Matrices> {
  if (gauge === 'identity') return roots;
  // Sᵀ·Y_h
  const ofHeads = transpose(regroup(cross, heads));
  // The base is orthonormal, and the best residual is orthogonal to it: Sᵀ·R_h = 0.
  if (gauge === 'free') return ofHeads;
  if (before !== undefined) {
    // Sᵀ·R_h with R_h = (Y_h − S′·G′_h)·B·Bᵀ of the iteration before.
    const old = yield* inner(cross, before.base, run);
    const based = yield* inner(repeat(transpose(old), heads), before.gauges, run);
    const residual = subtract({ ...ofHeads, data: ofHeads.data.slice() }, based);
    const along = yield* times(residual, before.kept, run);
    subtract(ofHeads, yield* times(along, transpose(before.kept), run));
  }
  const gauges = float64('weights', ofHeads.data.length);
  for (let head = 0; head < heads; head++) {
    for (let pair = 0; pair < width / 2; pair++) {
      const [a, b] = pairOf(pair, width, rope as CheckedRope);
      const of = ({ data }: Matrices, item: number, row: number, column: number): number =>
        data[(item * width + row) * width + column] as number;
      const energy = of(square, 0, a, a) + of(square, 0, b, b);
      if (!(energy > 0)) continue;
      const real = (of(ofHeads, head, a, a) + of(ofHeads, head, b, b)) / energy;
      const imaginary = (of(ofHeads, head, a, b) - of(ofHeads, head, b, a)) / energy;
      const at = (row: number, column: number): number => (head * width + row) * width + column;
      gauges[at(a, a)] = real;
      gauges[at(b, b)] = real;
      gauges[at(a, b)] = imaginary;
      gauges[at(b, a)] = -imaginary;
    }
  }
  return matrices(gauges, heads, width, width);
}

/** c of the best base without residuals. */
function* startOf(objective: Objective, { gauge, rope }: FitPlan, run: Run): Steps<Matrices> {
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
