/** From the factors of a fit to weights in an element type, and what they are off by. */
import { castFinite, float32Of } from '../convert';
import { float64, type Matrices } from '../linalg';
import type { Steps } from '../steps';
import { allocate, type DataType, type Tensor, type TensorOf } from '../tensor';
import { add, inner, joinHeads, matrices, type Run, repeat, subtract, times, timesHeads } from './algebra';
import type { Factors, FitPlan } from './als';
import { energiesOf, type Objective, type Projection, pairOf, type Seen, seenBy, seenTimesHeads } from './moments';

/** The keys or values of a layer as LRKV has them, rounded to the element type, and how near they are. */
export interface FittedSide {
  /** `[modelDim, baseDim]`, baseDim = width or 0. */
  readonly base: Tensor;
  readonly baseBias: Tensor;
  /** `[heads, baseDim, width]`, null where it is the identity or there is no base. */
  readonly gauge: Tensor | null;
  /** `[modelDim, Σ ranks]`. */
  readonly down: Tensor;
  readonly downBias: Tensor;
  /** `[Σ ranks, width]`. */
  readonly up: Tensor;
  /** `[heads]`: ‖C^{1/2}·(W_h − Ŵ_h)·N_h‖² in float64, as the fit leaves it, and of W_h. */
  readonly predicted: Float64Array;
  readonly energies: Float64Array;
  /** `[heads]`: the same through the rounded weights, without the damping of C. */
  readonly measured: Float64Array;
  readonly measuredEnergies: Float64Array;
  /** `[heads, width]`: energies of W_h·N_h less its base along the directions of the fit. */
  readonly spectra: Float64Array;
}

/** Carries out what `factors` say, with residuals of so many directions a head. */
export function* finish(
  objective: Objective,
  { moment, weights, weighted, type }: Projection,
  factors: Factors,
  ranks: readonly number[],
  { pairs, rope }: FitPlan,
  run: Run,
): Steps<FittedSide> {
  const { heads, width, inverseRoots } = objective;
  const inputs = weights.rows;
  const { directions, gauges } = factors;
  const base = factors.base === null ? null : yield* times(weighted.own, factors.base, run);
  // A residual's energy along every direction, kept or not, measured from the residual itself.
  const seenAlong = yield* seenTimesHeads(yield* residualOf(weighted, factors, base, run), directions, run);
  const along = seenAlong.own;
  const spectra = energiesOf(moment, seenAlong, heads * width, true);
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
  const gauge = gauges !== null && free ? yield* times(gauges, inverseRoots, run) : null;
  const rounded = {
    base: round(base ?? matrices(new Float64Array(), 1, inputs, 0), type),
    down: round(down, type),
    up: round(up, type),
    gauge: gauge === null ? null : round(gauge, type),
  };

  const approximation = yield* approximationOf(objective, rounded, ranks, run);
  const error = yield* timesHeads(subtract(approximation, weights), objective.roots, run);
  return {
    ...split(rounded.base, ['base', 'baseBias'], type),
    ...split(rounded.down, ['down', 'downBias'], type),
    gauge: rounded.gauge === null ? null : tensorOf(rounded.gauge.data, [heads, width, width], type),
    up: tensorOf(rounded.up.data, [total, width], type),
    predicted: Float64Array.from(ranks, (rank, head) =>
      spectra.subarray(head * width + rank, (head + 1) * width).reduce((sum, energy) => sum + energy, 0),
    ),
    energies: objective.energies,
    measured: energiesOf(moment, yield* seenBy(moment, error, run), heads, false),
    measuredEnergies: energiesOf(moment, weighted, heads, false),
    spectra,
  };
}

/** Y_h − S·G_h, where `base` is S before C^{1/2}. */
function* residualOf(weighted: Seen, factors: Factors, base: Matrices | null, run: Run): Steps<Seen> {
  const { base: combination, gauges } = factors;
  if (base === null || combination === null || gauges === null) return weighted;
  const wide = joinHeads(gauges);
  const less = function* (of: Matrices, ofBase: Matrices): Steps<Matrices> {
    return subtract({ ...of, data: of.data.slice() }, yield* times(ofBase, wide, run));
  };
  const own = yield* less(weighted.own, base);
  if (weighted.image === weighted.own) return { own, image: own };
  return { own, image: yield* less(weighted.image, yield* times(weighted.image, combination, run)) };
}

interface Rounded {
  readonly base: Matrices;
  readonly down: Matrices;
  readonly up: Matrices;
  readonly gauge: Matrices | null;
}

/** Ŵ_h `[inputs, heads·width]` of weights that were rounded. */
function* approximationOf(
  { heads, width }: Objective,
  { base, down, up, gauge }: Rounded,
  ranks: readonly number[],
  run: Run,
): Steps<Matrices> {
  const inputs = down.rows;
  const whole = matrices(float64('weights', inputs * heads * width), 1, inputs, heads * width);
  if (base.columns > 0) {
    const same = gauge === null ? joinHeads(repeat(base, heads)) : yield* times(base, joinHeads(gauge), run);
    whole.data.set(same.data);
  }
  const most = Math.max(...ranks);
  if (most === 0) return whole;
  // Latents of every head as many as the largest has, and zero where it has fewer: one product for all.
  const downs = matrices(float64('weights', heads * inputs * most), heads, inputs, most);
  const ups = matrices(float64('weights', heads * most * width), heads, most, width);
  let first = 0;
  for (const [head, rank] of ranks.entries()) {
    for (let input = 0; input < inputs; input++) {
      const from = input * down.columns + first;
      downs.data.set(down.data.subarray(from, from + rank), (head * inputs + input) * most);
    }
    ups.data.set(up.data.subarray(first * width, (first + rank) * width), head * most * width);
    first += rank;
  }
  return add(whole, joinHeads(yield* times(downs, ups, run)));
}

/** Rounded in place. */
function round(of: Matrices, type: DataType): Matrices {
  of.data.set(float32Of(tensorOf(of.data, [of.data.length], type)));
  return of;
}

function tensorOf(data: Float64Array, dims: readonly number[], type: DataType): Tensor {
  const tensor = allocate('weights', dims, 'float32') as TensorOf<'float32'>;
  tensor.data.set(data);
  return castFinite('type', tensor, type);
}

/** The last row is what the bias is made of. */
function split<Name extends string>(
  { data, rows, columns }: Matrices,
  [matrix, bias]: readonly [Name, Name],
  type: DataType,
): Record<Name, Tensor> {
  const end = (rows - 1) * columns;
  return {
    [matrix]: tensorOf(data.subarray(0, end), [rows - 1, columns], type),
    [bias]: tensorOf(data.subarray(end), [columns], type),
  } as Record<Name, Tensor>;
}
