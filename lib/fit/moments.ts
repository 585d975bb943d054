/**
 * What a fit minimises: Σ_h ‖C^{1/2}·(W_h − Ŵ_h)·N_h‖², N_h = M_h^{1/2}, for the keys or the values of a layer.
 *
 * C = E[x·xᵀ] is what enters the projections. M_h weighs the outputs of head h by what becomes of them: of keys it is
 * Σ E[q·qᵀ] over the query heads that share them, so that the objective is the expected squared error of the logits; of
 * values Σ W_O·W_Oᵀ, so that it is that of the head's output. Rotary embedding turns queries and keys by angles that
 * depend on their distance; averaged over all angles alike, E[q·qᵀ] becomes diagonal and equal on the members of a pair.
 * Gains of QK-norm stand on the side of the rotation where the model has them.
 */
import { transpose } from '../analysis/matrix';
import { float64, type Matrices } from '../linalg';
import { type CheckedRmsNorm, type CheckedRope, pairings } from '../rope';
import type { Steps } from '../steps';
import type { DataType } from '../tensor';
import { add, matrices, type Run, spectralMap, splitHeads, symmetricInner, times, timesHeads } from './algebra';

/**
 * C = E[x·xᵀ] of inputs with a last one that is always 1, which is what biases are multiplied by. Of fewer rows than
 * inputs C is never formed, as products with the rows are less work.
 */
export interface SecondMoment {
  /** `'rows'`: x/√tokens `[tokens, inputs]`; `'matrix'`: C `[inputs, inputs]`; `'identity'`: C = 1. */
  readonly kind: 'rows' | 'matrix' | 'identity';
  readonly of: Matrices | null;
  /** What is added to the diagonal but for the last input, so that the sum can be inverted. */
  readonly damping: number;
}

/** Columns, and what a moment makes of them: enough for aᵀ·C·a, and as linear in a. */
export interface Seen {
  /** a `[inputs, columns]`. */
  readonly own: Matrices;
  /** X·a, C·a or a itself, without damping. */
  readonly image: Matrices;
}

/** The keys or the values of a layer, as far as it takes to fit them. */
export interface Objective {
  readonly heads: number;
  /** Columns of a head. */
  readonly width: number;
  /** N_h and its inverse `[heads, width, width]`, symmetric. */
  readonly roots: Matrices;
  readonly inverseRoots: Matrices;
  /** Yᵀ·C·Y `[heads·width, heads·width]` of Y = W_h·N_h. */
  readonly gram: Matrices;
  /** `[heads]`, ‖C^{1/2}·Y_h‖². */
  readonly energies: Float64Array;
}

/** What an objective is of. */
export interface Projection {
  readonly moment: SecondMoment;
  /** W_h `[inputs, heads·width]`; the last input is the bias's. */
  readonly weights: Matrices;
  /** Y = W_h·N_h `[inputs, heads·width]`. */
  readonly weighted: Seen;
  /** Element type that what is fitted to it is rounded to. */
  readonly type: DataType;
}

/** Eigenvalues of a metric below this share of the largest are raised to it, so that its root can be inverted. */
const metricFloor = 1e-10;

/** E[x·xᵀ] of rows of hidden states and of a 1 beside each. `damping`, of the mean diagonal, is added to the states' own. */
export function* momentOf(hidden: Matrices | null, damping: number, run: Run): Steps<SecondMoment> {
  if (hidden === null) return { kind: 'identity', of: null, damping: 0 };
  const { rows: tokens, columns } = hidden;
  const inputs = columns + 1;
  const data = float64('calibration', tokens * inputs);
  const scale = 1 / Math.sqrt(tokens);
  let trace = 0;
  for (let token = 0; token < tokens; token++) {
    for (let i = 0; i < columns; i++) {
      const value = (hidden.data[token * columns + i] as number) * scale;
      data[token * inputs + i] = value;
      trace += value * value;
    }
    data[token * inputs + columns] = scale;
  }
  const rows = matrices(data, 1, tokens, inputs);
  const added = (damping * trace) / columns;
  if (tokens < inputs) return { kind: 'rows', of: rows, damping: added };
  return { kind: 'matrix', of: yield* symmetricInner(rows, rows, run), damping: added };
}

export function* seenBy({ of }: SecondMoment, own: Matrices, run: Run): Steps<Seen> {
  return { own, image: of === null ? own : yield* times(of, own, run) };
}

/** Each head of what was seen, times a matrix of its own on the right. */
export function* seenTimesHeads({ own, image }: Seen, by: Matrices, run: Run): Steps<Seen> {
  const product = yield* timesHeads(own, by, run);
  return { own: product, image: image === own ? product : yield* timesHeads(image, by, run) };
}

/** Columns `a` whose image times what stands on the right is aᵀ·C·a. */
const partnerOf = ({ kind }: SecondMoment, { own, image }: Seen): Matrices => (kind === 'rows' ? image : own);

/** All rows but the last. */
function undampedRow({ data, batch, rows, columns }: Matrices): Matrices {
  return matrices(data.subarray(0, (rows - 1) * columns), batch, rows - 1, columns);
}

/** aᵀ·(C + damping)·a of the heads of a, each for itself: `[heads, width, width]`; of all columns with one head. */
export function* gramOf(moment: SecondMoment, seen: Seen, heads: number, run: Run): Steps<Matrices> {
  const { damping } = moment;
  const parts = (of: Matrices): Matrices => (heads === 1 ? of : splitHeads(of, heads));
  const own = undampedRow(seen.own);
  if (moment.kind === 'rows') {
    const image = parts(seen.image);
    const gram = yield* symmetricInner(image, image, run);
    if (damping === 0) return gram;
    const plain = parts(own);
    return add(gram, yield* symmetricInner(plain, plain, run), damping);
  }
  const { image } = seen;
  const damped = damping === 0 ? image : add({ ...image, data: image.data.slice() }, own, damping);
  return yield* symmetricInner(parts(seen.own), parts(damped), run);
}

/** E[y] `[columns]` of y = x·a. */
export function meansOf({ kind, of }: SecondMoment, { image }: Seen): Float64Array {
  const { data, rows, columns } = image;
  // C's last row holds the means; of rows the last input does, which is 1/√tokens.
  if (kind !== 'rows') return data.slice((rows - 1) * columns);
  const means = float64('weights', columns);
  const last = (of as Matrices).data.at(-1) as number;
  for (let i = 0; i < data.length; i++)
    means[i % columns] = (means[i % columns] as number) + last * (data[i] as number);
  return means;
}

/** Σ over the columns of each head of aᵀ·C·a, `[heads]`; damped or not. */
export function energiesOf(moment: SecondMoment, seen: Seen, heads: number, damped: boolean): Float64Array {
  const energies = new Float64Array(heads);
  const sum = (a: Matrices, b: Matrices, factor: number): void => {
    const width = a.columns / heads;
    for (let row = 0; row < a.rows; row++) {
      for (let head = 0; head < heads; head++) {
        let part = 0;
        const end = row * a.columns + (head + 1) * width;
        for (let i = end - width; i < end; i++) part += (a.data[i] as number) * (b.data[i] as number);
        energies[head] = (energies[head] as number) + factor * part;
      }
    }
  };
  sum(partnerOf(moment, seen), seen.image, 1);
  const own = undampedRow(seen.own);
  if (damped && moment.damping > 0) sum(own, own, moment.damping);
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
  return sumOfGroups(yield* symmetricInner(parts, parts, run), kvHeads);
}

/** Normalisation of queries and keys: the mean squares of a head are taken for those of every token. */
export interface Norms {
  readonly query: CheckedRmsNorm | null;
  readonly key: CheckedRmsNorm | null;
}

/**
 * Σ E[q·qᵀ] over the query heads of each group, as keys before their normalisation are weighed by it; diagonal where there
 * is rotary embedding, and equal on pairs but for gains of keys before it.
 */
export function* keyMetric(
  { query, key }: { readonly query: Seen; readonly key: Seen },
  moment: SecondMoment,
  { heads, kvHeads, rope, norms }: { heads: number; kvHeads: number; rope: CheckedRope | null; norms: Norms },
  run: Run,
): Steps<Matrices> {
  const ofQueries = yield* gramOf(moment, query, heads, run);
  if (norms.query !== null) divideBy(ofQueries, meanSquares(ofQueries));
  const before = rope === null || norms.query?.gainOrder === 0;
  if (before) gainsOn(ofQueries, norms.query);
  let metric = sumOfGroups(ofQueries, kvHeads);
  if (rope !== null) {
    metric = averageOverAngles(metric, rope);
    // Gains after the rotation stand between those of queries and those of keys: (g·R q)·(g′·R k).
    const after = [norms.query, norms.key].filter((norm) => norm?.gainOrder === 1);
    if (after.length > 0) {
      for (const norm of after) gainsOn(metric, norm as CheckedRmsNorm);
      metric = averageOverAngles(metric, rope);
    }
  }
  if (norms.key === null) return metric;
  if (rope === null || norms.key.gainOrder === 0) gainsOn(metric, norms.key);
  divideBy(metric, meanSquares(yield* gramOf(moment, key, kvHeads, run)));
  return metric;
}

/** Mean of the diagonal of each matrix. */
function meanSquares({ data, batch, rows }: Matrices): Float64Array {
  return Float64Array.from({ length: batch }, (_, item) => {
    let trace = 0;
    for (let i = 0; i < rows; i++) trace += data[item * rows * rows + i * (rows + 1)] as number;
    return trace / rows;
  });
}

/** Each matrix by a number of its own; one whose number is 0 stays as it is. */
function divideBy({ data, rows }: Matrices, by: Float64Array): void {
  for (let i = 0; i < data.length; i++) data[i] = (data[i] as number) / (by[Math.floor(i / (rows * rows))] || 1);
}

/** diag(gain)·M·diag(gain) of each. */
function gainsOn({ data, rows }: Matrices, norm: CheckedRmsNorm | null): void {
  const gain = norm?.gain ?? null;
  if (gain === null) return;
  for (let i = 0; i < data.length; i++)
    data[i] = (data[i] as number) * (gain[Math.floor(i / rows) % rows] as number) * (gain[i % rows] as number);
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
  // Members of a pair that are equal must stay so to the last bit, as no decomposition would leave them.
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

/** The objective of weights `[inputs, heads·width]` under a metric `[heads, width, width]`, and what it is of. */
export function* objectiveOf(
  weights: Seen,
  heads: number,
  moment: SecondMoment,
  metric: Matrices,
  { diagonal, type }: { readonly diagonal: boolean; readonly type: DataType },
  run: Run,
): Steps<{ readonly objective: Objective; readonly projection: Projection }> {
  const width = weights.own.columns / heads;
  const [roots, inverseRoots] = yield* rootsOf(metric, diagonal, run);
  const weighted = yield* seenTimesHeads(weights, roots, run);
  const gram = yield* gramOf(moment, weighted, 1, run);
  const energies = new Float64Array(heads);
  for (let i = 0; i < gram.rows; i++) {
    const head = Math.floor(i / width);
    energies[head] = (energies[head] as number) + (gram.data[i * (gram.rows + 1)] as number);
  }
  return {
    objective: { heads, width, roots, inverseRoots, gram, energies },
    projection: { moment, weights: weights.own, weighted, type },
  };
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
