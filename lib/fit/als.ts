/**
 * Alternating least squares of a base that all heads share and a residual of low rank for each: with Y_h = C^{1/2}·W_h·N_h
 * of an `Objective`, min Σ_h ‖Y_h − S·G_h − R_h‖² over S, what the gauge leaves free of G_h, and R_h of rank r_h.
 * Alternation alone creeps, so every iteration begins beyond where the one before led, see `Momentum`; where that is no
 * better, it is done again from there, and the error never rises.
 *
 * Nothing is ever as large as the inputs are: the best S and R_h are combinations of the columns of Y = [Y_1 … Y_H],
 * S = Y·c, so that products of J = Yᵀ·Y are all that is needed. Squares in J halve the digits: what is below 1e-8 of Y
 * is not told from zero, which is why errors that are reported are measured from the factors themselves.
 */

import { transpose } from '../analysis/matrix';
import { eigenOf, float64, type Matrices } from '../linalg';
import { attempt } from '../read';
import type { CheckedRope } from '../rope';
import { type Steps, step } from '../steps';
import {
  add,
  inner,
  inverse,
  inverseRoot,
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
import { Momentum, type Point } from './momentum';
import { startOf } from './start';

/** What lies between the shared base and a head: any matrix, a complex number a rotary pair, nothing; or no base. */
export type Gauge = 'free' | 'rope-pair' | 'identity' | 'none';

export interface FitPlan {
  readonly gauge: Gauge;
  /** Of 'rope-pair', and where latents are whole pairs. */
  readonly rope: CheckedRope | null;
  /** Residuals are made of whole rotary pairs of their head, so that they rotate as it does ('intertwined'). */
  readonly pairs: boolean;
  /** Most iterations; one that led to nothing better and is done again from another point counts once. */
  readonly iterations: number;
  /** Called after every iteration that counts with Σ_h ‖Y_h − S·G_h − R_h‖². */
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
  /** Σ_h ‖Y_h − S·G_h − R_h‖² after each iteration that counts. */
  readonly history: readonly number[];
}

/** Where so many iterations together better the error by a smaller share, the last of them is the last of all; */
const [lately, slow] = [10, 3e-4];
/** so is one of the alternation itself that gains next to nothing, as where there is nothing to alternate. */
const leastGain = 1e-12;
/** Errors that are so small a share of the energy end nothing: rounding hides what an iteration gains. */
const hidden = 1e-14;

/** Fits residuals of so many directions a head, and the base under them. */
export function* alternate(objective: Objective, ranks: readonly number[], plan: FitPlan, run: Run): Steps<Factors> {
  const { heads, gram, energies } = objective;
  const blocks = diagonalBlocks(gram, heads);
  const { gauge } = plan;
  if (gauge === 'none') {
    const { directions, spectra } = yield* directionsOf(blocks, plan, run);
    const error = tailOf(spectra, ranks);
    attempt('onProgress', () => plan.onIteration?.(1, error));
    return { gauge, base: null, gauges: null, directions, spectra, history: [error] };
  }
  const noise = hidden * energies.reduce((sum, each) => sum + each, 0);
  const history: number[] = [];
  const gains = (since: number | undefined, error: number, share: number): boolean =>
    since === undefined || since - error > share * error || error <= noise;
  const momentum = new Momentum();
  const start = yield* startOf(objective, plan, run);
  let point = yield* withGauges(objective, plan, { base: start, cross: yield* inner(gram, start, run) }, null, run);
  /** Where the alternation itself leads, if the point lies beyond that. */
  let plain: Point | null = null;
  for (;;) {
    const under = yield* residualsUnder(objective, blocks, plan, point, run);
    const { directions, spectra } = yield* directionsOf(under.residuals, plan, run);
    const error = tailOf(spectra, ranks);
    const gained = gains(history.at(-1), error, leastGain);
    if (plain !== null && !gained) {
      [point, plain] = [plain, null];
      momentum.restart();
      continue;
    }
    history.push(error);
    const iteration = history.length;
    attempt('onProgress', () => plan.onIteration?.(iteration, error));
    if (!gained || !gains(history.at(-1 - lately), error, slow) || iteration >= plan.iterations)
      return { gauge, base: under.base, gauges: under.gauges, directions, spectra, history };

    const kept = keep(directions, ranks);
    const next = yield* baseUnder(under, kept, run);
    const cross = yield* inner(gram, next, run);
    plain = yield* withGauges(objective, plan, { base: next, cross }, { ...under, kept }, run);
    point = momentum.next(under, plain);
  }
}

/** A point, and what is left of the heads there. */
interface Under {
  readonly base: Matrices;
  readonly cross: Matrices;
  /** Sᵀ·S. */
  readonly square: Matrices;
  readonly gauges: Matrices;
  /** (Y_h − S·G_h)ᵀ·(Y_h − S·G_h) */
  readonly residuals: Matrices;
}

function* residualsUnder(
  { heads, roots }: Objective,
  blocks: Matrices,
  { gauge }: FitPlan,
  point: Point,
  run: Run,
): Steps<Under> {
  let { base, cross } = point;
  let square = yield* symmetricInner(cross, base, run);
  if (gauge === 'free') {
    const unit = yield* spectralMap(square, inverseRoot, run);
    base = yield* times(base, unit, run);
    cross = yield* times(cross, unit, run);
    square = yield* symmetricInner(cross, base, run);
  }
  // Under 'free' the base is orthonormal, and the best residual is orthogonal to it: G_h = Sᵀ·Y_h.
  const gauges = point.gauges ?? (gauge === 'identity' ? roots : transpose(regroup(cross, heads)));
  const mixed = yield* times(regroup(cross, heads), gauges, run);
  const based = yield* symmetricInner(gauges, yield* inner(repeat(square, heads), gauges, run), run);
  const residuals = { ...blocks, data: blocks.data.slice() };
  add(subtract(subtract(residuals, mixed), transpose(mixed)), based);
  return { base, cross, square, gauges, residuals };
}

/** c of the best base S = Σ (Y_h − R_h)·G_hᵀ·(Σ G_h·G_hᵀ)⁻¹, where R_h = (Y_h − S·G_h)·B·Bᵀ of the directions B that are kept. */
function* baseUnder({ base, gauges }: Under, kept: Matrices, run: Run): Steps<Matrices> {
  const ofGauges = transpose(gauges);
  const onto = yield* inner(kept, ofGauges, run);
  const rest = subtract(ofGauges, yield* times(kept, onto, run));
  const stackedOnto = regroup(onto, 1);
  const share = yield* symmetricInner(stackedOnto, stackedOnto, run);
  const next = add(regroup(rest, 1), yield* times(base, share, run));
  const stackedGauges = regroup(transpose(gauges), 1);
  const weight = yield* spectralMap(yield* symmetricInner(stackedGauges, stackedGauges, run), inverse, run);
  return yield* times(next, weight, run);
}

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

/** The point of a base: of rotary pairs with its best gauges for residuals that were taken under another. */
function* withGauges(
  objective: Objective,
  { gauge, rope }: FitPlan,
  { base, cross }: Omit<Point, 'gauges'>,
  before: (Under & { readonly kept: Matrices }) | null,
  run: Run,
): Steps<Point> {
  if (gauge !== 'rope-pair') return { base, cross, gauges: null };
  const { heads } = objective;
  const square = yield* symmetricInner(cross, base, run);
  // Sᵀ·Y_h
  const ofHeads = transpose(regroup(cross, heads));
  if (before !== null) {
    // Sᵀ·R_h with R_h = (Y_h − S′·G′_h)·B·Bᵀ of the iteration before.
    const old = yield* inner(cross, before.base, run);
    const based = yield* inner(repeat(transpose(old), heads), before.gauges, run);
    const residual = subtract({ ...ofHeads, data: ofHeads.data.slice() }, based);
    const along = yield* times(residual, before.kept, run);
    subtract(ofHeads, yield* times(along, transpose(before.kept), run));
  }
  return { base, cross, gauges: pairGauges(ofHeads, square, rope as CheckedRope) };
}

/** The best G_h of a complex number a rotary pair, from Sᵀ·(Y_h − R_h) and Sᵀ·S. */
function pairGauges(ofHeads: Matrices, square: Matrices, rope: CheckedRope): Matrices {
  const { batch: heads, rows: width } = ofHeads;
  const gauges = float64('weights', ofHeads.data.length);
  for (let head = 0; head < heads; head++) {
    for (let pair = 0; pair < width / 2; pair++) {
      const [a, b] = pairOf(pair, width, rope);
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
