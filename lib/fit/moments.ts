/**
 * What a fit minimises: Σ_h ‖C^{1/2}·(W_h − Ŵ_h)·N_h‖², N_h = M_h^{1/2}, for the keys or the values of a layer.
 *
 * C = E[x·xᵀ] is what enters the projections. M_h weighs the outputs of head h by what becomes of them: of keys it is
 * Σ E[q·qᵀ] over the query heads that share them, so that the objective is the expected squared error of the logits; of
 * values Σ W_O·W_Oᵀ, so that it is that of the head's output. Rotary embedding turns queries and keys by angles that
 * depend on their distance; averaged over all angles alike, E[q·qᵀ] becomes diagonal and equal on the members of a pair.
 */
import { transpose } from '../analysis/matrix';
import { float64, type Matrices } from '../linalg';
import { type CheckedRope, pairings } from '../rope';
import type { Steps } from '../steps';
import { inner, joinHeads, matrices, type Run, spectralMap, splitHeads } from './algebra';

/** Of inputs with a last one that is always 1, which is what biases are multiplied by. */
export interface SecondMoment {
  /** E[x·xᵀ] `[inputs, inputs]`, null for the identity. */
  readonly matrix: Matrices | null;
  /** With the damping that makes it invertible; null for the identity. */
  readonly damped: Matrices | null;
}

/** The keys or the values of a layer, ready to be fitted. */
export interface Objective {
  readonly heads: number;
  /** Columns of a head. */
  readonly width: number;
  readonly moment: SecondMoment;
  /** W_h `[inputs, heads·width]`; the last input is the bias's. */
  readonly weights: Matrices;
  /** N_h and its inverse `[heads, width, width]`, symmetric. */
  readonly roots: Matrices;
  readonly inverseRoots: Matrices;
  /** Y = W_h·N_h `[inputs, heads·width]`. */
  readonly weighted: Matrices;
  /** Yᵀ·C·Y `[heads·width, heads·width]`. */
  readonly gram: Matrices;
  /** `[heads]`, ‖C^{1/2}·Y_h‖². */
  readonly energies: Float64Array;
}

/** Eigenvalues of a metric below this share of the largest are raised to it, so that its root can be inverted. */
const metricFloor = 1e-10;

/** E[x·xᵀ] of rows of hidden states and of a 1 beside each. `damping`, of the mean diagonal, is added to the states' own. */
export function* momentOf(hidden: Matrices | null, damping: number, run: Run): Steps<SecondMoment> {
  if (hidden === null) return { matrix: null, damped: null };
  const { rows: tokens, columns } = hidden;
  const inputs = columns + 1;
  const data = float64('calibration', tokens * inputs);
  const scale = 1 / Math.sqrt(tokens);
  for (let token = 0; token < tokens; token++) {
    for (let i = 0; i < columns; i++) data[token * inputs + i] = (hidden.data[token * columns + i] as number) * scale;
    data[token * inputs + columns] = scale;
  }
  const rows = matrices(data, 1, tokens, inputs);
  const matrix = yield* inner(rows, rows, run);
  let trace = 0;
  for (let i = 0; i < columns; i++) trace += matrix.data[i * (inputs + 1)] as number;
  const damped = { ...matrix, data: matrix.data.slice() };
  for (let i = 0; i < columns; i++)
    damped.data[i * (inputs + 1)] = (damped.data[i * (inputs + 1)] as number) + (damping * trace) / columns;
  return { matrix, damped };
}

/** C·a, which the identity leaves as it is. */
export function* underMoment(moment: Matrices | null, a: Matrices, run: Run): Steps<Matrices> {
  return moment === null ? a : yield* inner(moment, a, run);
}

/** Σ over the columns of each head of aᵀ·C·a, `[heads]`. */
export function* headEnergies(moment: Matrices | null, a: Matrices, heads: number, run: Run): Steps<Float64Array> {
  const product = yield* underMoment(moment, a, run);
  const energies = new Float64Array(heads);
  const width = a.columns / heads;
  for (let row = 0; row < a.rows; row++) {
    for (let head = 0; head < heads; head++) {
      let sum = 0;
      for (let i = row * a.columns + head * width; i < row * a.columns + (head + 1) * width; i++)
        sum += (a.data[i] as number) * (product.data[i] as number);
      energies[head] = (energies[head] as number) + sum;
    }
  }
  return energies;
}

/** Σ over the heads of each group of the matrices `[heads, width, width]`: `[groups, width, width]`. */
function sumOfGroups({ data, batch, rows, columns }: Matrices, groups: number): Matrices {
  const size = rows * columns;
  const sums = float64('weights', groups * size);
  const group = batch / groups;
  for (let i = 0; i < data.length; i++) {
    const at = Math.floor(Math.floor(i / size) / group) * size + (i % size);
    sums[at] = (sums[at] as number) + (data[i] as number);
  }
  return matrices(sums, groups, rows, columns);
}

/** Σ W_O·W_Oᵀ over the heads of each group, of an output projection `[heads·valueDim, outDim]`. */
export function* valueMetric(output: Matrices, heads: number, kvHeads: number, run: Run): Steps<Matrices> {
  const parts = transpose(matrices(output.data, heads, output.rows / heads, output.columns));
  return sumOfGroups(yield* inner(parts, parts, run), kvHeads);
}

/** What is known of the norms of queries and keys: the mean squares of a head are taken for those of every token. */
export interface Norms {
  /** `[headDim]` gains where there is normalisation; null where there is none. */
  readonly query: ArrayLike<number> | null;
  readonly key: ArrayLike<number> | null;
}

/** Σ E[q·qᵀ] over the query heads of each group; diagonal and equal on pairs where there is rotary embedding. */
export function* keyMetric(
  { query, key }: { readonly query: Matrices; readonly key: Matrices },
  moment: SecondMoment,
  { heads, kvHeads, rope, norms }: { heads: number; kvHeads: number; rope: CheckedRope | null; norms: Norms },
  run: Run,
): Steps<Matrices> {
  const ownMoments = function* (of: Matrices, count: number): Steps<Matrices> {
    const product = yield* underMoment(moment.damped, of, run);
    return yield* inner(splitHeads(of, count), splitHeads(product, count), run);
  };
  const ofQueries = yield* ownMoments(query, heads);
  if (norms.query !== null) normalise(ofQueries, norms.query);
  const metric = sumOfGroups(ofQueries, kvHeads);
  if (norms.key !== null) {
    const ofKeys = yield* ownMoments(key, kvHeads);
    scaleBy(metric, norms.key, meanSquares(ofKeys));
  }
  return rope === null ? metric : averageOverAngles(metric, rope);
}

/** Mean of the diagonal of each matrix. */
function meanSquares({ data, batch, rows }: Matrices): Float64Array {
  return Float64Array.from({ length: batch }, (_, item) => {
    let trace = 0;
    for (let i = 0; i < rows; i++) trace += data[item * rows * rows + i * (rows + 1)] as number;
    return trace / rows;
  });
}

/** Moments of queries that were divided by their root mean square and multiplied by gains. */
function normalise(moments: Matrices, gain: ArrayLike<number>): void {
  scaleBy(moments, gain, meanSquares(moments));
}

/** diag(gain)·M·diag(gain) / square of each; a head whose mean square is 0 stays as it is. */
function scaleBy({ data, rows }: Matrices, gain: ArrayLike<number>, squares: Float64Array): void {
  for (let i = 0; i < data.length; i++) {
    const square = squares[Math.floor(i / (rows * rows))] as number;
    const gains = (gain[Math.floor(i / rows) % rows] as number) * (gain[i % rows] as number);
    data[i] = ((data[i] as number) * gains) / (square > 0 ? square : 1);
  }
}

/** The members of pair i of a head that is rotated. */
export function pairOf(pair: number, width: number, rope: CheckedRope): readonly [number, number] {
  return rope.pairing === pairings.interleaved ? [2 * pair, 2 * pair + 1] : [pair, pair + width / 2];
}

function averageOverAngles({ data, batch, rows: width }: Matrices, rope: CheckedRope): Matrices {
  const metric = float64('weights', data.length);
  for (let head = 0; head < batch; head++) {
    const first = head * width * width;
    for (let pair = 0; pair < width / 2; pair++) {
      const [a, b] = pairOf(pair, width, rope).map((i) => first + i * (width + 1)) as [number, number];
      const mean = ((data[a] as number) + (data[b] as number)) / 2;
      metric[a] = mean;
      metric[b] = mean;
    }
  }
  return matrices(metric, batch, width, width);
}

/**
 * Roots of a metric and their inverses, with small eigenvalues raised. A head that nothing reads keeps a metric too, next
 * to nothing beside the others'.
 */
function* rootsOf(metric: Matrices, diagonal: boolean, run: Run): Steps<readonly [Matrices, Matrices]> {
  const { data, batch, rows } = metric;
  const largestOfAll = meanSquares(metric).reduce((most, mean) => Math.max(most, mean), 0);
  const raised = (value: number, largest: number): number =>
    largest > 0 ? Math.max(value, metricFloor * largest) : metricFloor * largestOfAll || 1;
  const root = (value: number, largest: number): number => Math.sqrt(raised(value, largest));
  const inverse = (value: number, largest: number): number => 1 / Math.sqrt(raised(value, largest));
  if (!diagonal) return [yield* spectralMap(metric, root, run), yield* spectralMap(metric, inverse, run)];
  // Members of a pair must stay equal to the last bit, as no decomposition would leave them.
  const of = (power: (value: number, largest: number) => number): Matrices => {
    const result = float64('weights', data.length);
    for (let head = 0; head < batch; head++) {
      const at = (i: number): number => head * rows * rows + i * (rows + 1);
      let largest = 0;
      for (let i = 0; i < rows; i++) largest = Math.max(largest, data[at(i)] as number);
      for (let i = 0; i < rows; i++) result[at(i)] = power(data[at(i)] as number, largest);
    }
    return matrices(result, batch, rows, rows);
  };
  return [of(root), of(inverse)];
}

/** The objective of weights `[inputs, heads·width]` under a moment of as many inputs and a metric `[heads, width, width]`. */
export function* objectiveOf(
  weights: Matrices,
  heads: number,
  moment: SecondMoment,
  metric: Matrices,
  diagonal: boolean,
  run: Run,
): Steps<Objective> {
  const width = weights.columns / heads;
  const [roots, inverseRoots] = yield* rootsOf(metric, diagonal, run);
  const parts = transpose(splitHeads(weights, heads));
  const weighted = joinHeads(transpose(yield* inner(roots, parts, run)));
  const gram = yield* inner(weighted, yield* underMoment(moment.damped, weighted, run), run);
  const energies = new Float64Array(heads);
  for (let i = 0; i < gram.rows; i++) {
    const head = Math.floor(i / width);
    energies[head] = (energies[head] as number) + (gram.data[i * (gram.rows + 1)] as number);
  }
  return { heads, width, moment, weights, roots, inverseRoots, weighted, gram, energies };
}

/** Blocks g = h of a matrix `[heads·width, heads·width]`: `[heads, width, width]`. */
export function diagonalBlocks({ data, rows }: Matrices, heads: number): Matrices {
  const width = rows / heads;
  const blocks = float64('weights', rows * width);
  for (let row = 0; row < rows; row++) {
    const first = row * rows + Math.floor(row / width) * width;
    blocks.set(data.subarray(first, first + width), row * width);
  }
  return matrices(blocks, heads, width, width);
}
