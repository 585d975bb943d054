/** From the factors of a fit to weights in float32, and what they are off by. */
import { transpose } from '../analysis/matrix';
import { float64, type Matrices } from '../linalg';
import type { Steps } from '../steps';
import { allocate, type TensorOf } from '../tensor';
import { inner, joinHeads, matrices, type Run, splitHeads, subtract } from './algebra';
import type { Factors, FitPlan } from './als';
import { headEnergies, type Objective, pairOf } from './moments';

/** The keys or values of a layer as LRKV has them, rounded to float32, and how near they are. */
export interface FittedSide {
  /** `[modelDim, baseDim]`, baseDim = width or 0. */
  readonly base: TensorOf<'float32'>;
  readonly baseBias: TensorOf<'float32'>;
  /** `[heads, baseDim, width]`, null where it is the identity or there is no base. */
  readonly gauge: TensorOf<'float32'> | null;
  /** `[modelDim, Σ ranks]`. */
  readonly down: TensorOf<'float32'>;
  readonly downBias: TensorOf<'float32'>;
  /** `[Σ ranks, width]`. */
  readonly up: TensorOf<'float32'>;
  /** `[heads]`: ‖C^{1/2}·(W_h − Ŵ_h)·N_h‖² in float64, as the fit leaves it, and of W_h. */
  readonly predicted: Float64Array;
  readonly energies: Float64Array;
  /** `[heads]`: the same through the float32 weights, without the damping of C. */
  readonly measured: Float64Array;
  readonly measuredEnergies: Float64Array;
  /** `[heads, width]`: energies of W_h·N_h less its base along the directions of the fit. */
  readonly spectra: Float64Array;
}

/** Carries out what `factors` say, with residuals of so many directions a head. */
export function* finish(
  objective: Objective,
  factors: Factors,
  ranks: readonly number[],
  { pairs, rope }: FitPlan,
  run: Run,
): Steps<FittedSide> {
  const { heads, width, weighted, inverseRoots, moment, weights } = objective;
  const inputs = weighted.rows;
  const { directions, gauges } = factors;
  const base = factors.base === null ? null : yield* inner(transpose(weighted), factors.base, run);
  const residual = { ...weighted, data: weighted.data.slice() };
  if (base !== null && gauges !== null) subtract(residual, yield* inner(transpose(base), joinHeads(gauges), run));
  // A residual's energy along every direction, kept or not, measured from the residual itself.
  const along = joinHeads(yield* inner(transpose(splitHeads(residual, heads)), directions, run));
  const spectra = yield* headEnergies(moment.damped, along, heads * width, run);
  const ups = yield* inner(directions, inverseRoots, run);

  const total = ranks.reduce((sum, rank) => sum + rank, 0);
  const down = matrices(float64('rank', inputs * total), 1, inputs, total);
  const up = matrices(float64('rank', total * width), 1, total, width);
  let first = 0;
  for (const [head, rank] of ranks.entries()) {
    for (let i = 0; i < rank; i++) {
      // Latents of a head that rotate are paired as the head is.
      const place = first + (pairs && rope ? (pairOf(i >> 1, rank, rope)[i & 1] as number) : i);
      const row = ups.data.subarray((head * width + i) * width, (head * width + i + 1) * width);
      // Rows of unit length give latents the size of keys or values, which 16-bit caches have the range for.
      const length = Math.hypot(...row);
      for (let column = 0; column < width; column++) up.data[place * width + column] = (row[column] as number) / length;
      for (let input = 0; input < inputs; input++)
        down.data[input * total + place] = (along.data[(input * heads + head) * width + i] as number) * length;
    }
    first += rank;
  }
  const free = factors.gauge === 'free' || factors.gauge === 'rope-pair';
  const gauge = gauges !== null && free ? yield* inner(transpose(gauges), inverseRoots, run) : null;
  const rounded = {
    base: round(base ?? matrices(new Float64Array(), 1, inputs, 0)),
    down: round(down),
    up: round(up),
    gauge: gauge === null ? null : round(gauge),
  };

  const approximation = yield* approximationOf(objective, rounded, ranks, base !== null, run);
  const error = joinHeads(
    transpose(yield* inner(objective.roots, transpose(splitHeads(subtract(approximation, weights), heads)), run)),
  );
  return {
    ...split(rounded.base, ['base', 'baseBias']),
    ...split(rounded.down, ['down', 'downBias']),
    gauge: rounded.gauge === null ? null : tensorOf(rounded.gauge.data, [heads, width, width]),
    up: tensorOf(rounded.up.data, [total, width]),
    predicted: Float64Array.from(ranks, (rank, head) =>
      spectra.subarray(head * width + rank, (head + 1) * width).reduce((sum, energy) => sum + energy, 0),
    ),
    energies: yield* headEnergies(moment.damped, weighted, heads, run),
    measured: yield* headEnergies(moment.matrix, error, heads, run),
    measuredEnergies: yield* headEnergies(moment.matrix, weighted, heads, run),
    spectra,
  };
}

interface Rounded {
  readonly base: Matrices;
  readonly down: Matrices;
  readonly up: Matrices;
  readonly gauge: Matrices | null;
}

/** Ŵ_h `[inputs, heads·width]` of weights that were rounded. */
function* approximationOf(
  { heads, width, weights }: Objective,
  { base, down, up, gauge }: Rounded,
  ranks: readonly number[],
  based: boolean,
  run: Run,
): Steps<Matrices> {
  const inputs = weights.rows;
  const whole = float64('weights', weights.data.length);
  const approximation = matrices(whole, 1, inputs, heads * width);
  if (based) {
    const parts = gauge === null ? null : yield* inner(transpose(base), joinHeads(gauge), run);
    for (let i = 0; i < whole.length; i++) {
      whole[i] =
        parts === null
          ? (base.data[Math.floor(i / (heads * width)) * width + (i % width)] as number)
          : (parts.data[i] as number);
    }
  }
  if (down.columns === 0) return approximation;
  // Rows of `up` in the columns of their head: one product for all.
  const wide = matrices(float64('weights', up.rows * heads * width), 1, up.rows, heads * width);
  let row = 0;
  for (const [head, rank] of ranks.entries()) {
    for (const end = row + rank; row < end; row++)
      wide.data.set(up.data.subarray(row * width, (row + 1) * width), (row * heads + head) * width);
  }
  const residuals = yield* inner(transpose(down), wide, run);
  for (let i = 0; i < whole.length; i++) whole[i] = (whole[i] as number) + (residuals.data[i] as number);
  return approximation;
}

/** Rounded to float32, in place. */
function round(of: Matrices): Matrices {
  for (let i = 0; i < of.data.length; i++) of.data[i] = Math.fround(of.data[i] as number);
  return of;
}

function tensorOf(data: Float64Array, dims: readonly number[]): TensorOf<'float32'> {
  const tensor = allocate('weights', dims, 'float32') as TensorOf<'float32'>;
  tensor.data.set(data);
  return tensor;
}

/** The last row is what the bias is made of. */
function split<Name extends string>(
  { data, rows, columns }: Matrices,
  [matrix, bias]: readonly [Name, Name],
): Record<Name, TensorOf<'float32'>> {
  const end = (rows - 1) * columns;
  return {
    [matrix]: tensorOf(data.subarray(0, end), [rows - 1, columns]),
    [bias]: tensorOf(data.subarray(end), [columns]),
  } as Record<Name, TensorOf<'float32'>>;
}
