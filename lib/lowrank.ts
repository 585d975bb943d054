import {
  type Call,
  type CallOptions,
  callOptionNames,
  checkFlag,
  checkLayout,
  nothing,
  outlessOptionNames,
} from './call';
import { checkInteger, checkOptions, checkOut, checkTensor, type Operand } from './check';
import { expected } from './errors';
import { checkScale, type Layout } from './full-options';
import { float64 } from './linalg';
import { type Product, productCall } from './matmul';
import { addon, typeNumbers } from './native';
import { checkQk, type Qk, qkExtents } from './qkv';
import { checkSeed } from './random';
import { attempt } from './read';
import { runStepsAsync, runStepsSync, type Steps, step } from './steps';
import { allocate, type Tensor, type TensorOf } from './tensor';

/** What the randomised decomposition of attention matrices is told, whatever is made of it. */
export interface SketchOptions extends Omit<CallOptions, 'out'> {
  /** Query i sees keys j ≤ i + keys − queries only. Default false. */
  readonly causal?: boolean;
  /** Multiplies q·k before the softmax. Any finite number. Default 1/√headDim. */
  readonly scale?: number;
  /** Axis order of q and k. Default `'bhld'`. */
  readonly layout?: Layout;
  /**
   * Columns that the passes carry beyond those asked for: each adds to accuracy and cost. A whole number ≥ 0; no more
   * columns are carried than the matrices have. Default 8.
   */
  readonly oversample?: number;
  /**
   * Power iterations, each two more passes over all scores. A whole number from 0 to 100. More of them help where
   * singular values fall slowly, as those of causal attention do. Default 2.
   */
  readonly powerIterations?: number;
  /** Of the random start, which all matrices share. A whole number from 0 to 2³² − 1. Default 0. */
  readonly seed?: number;
}

/** Options of {@link attentionFactors}. Exactly one of `rank` and `energy` is given. */
export interface FactorOptions extends SketchOptions {
  /** Columns of the factors, from 1 to the smaller of queries and keys. */
  readonly rank?: number;
  /**
   * Share of Σσ² = ‖A‖_F² that the factors of every matrix keep, in (0, 1]: each gets the smallest rank that does, as
   * far as the rounding of float32 logits can tell.
   */
  readonly energy?: number;
  /**
   * Most columns that `energy` may take; the passes cost as if all were taken. From 1 to the smaller of queries and
   * keys. Default that, but at most 256.
   */
  readonly maxRank?: number;
}

/** Low-rank factors of attention matrices, A ≈ u·vᵀ. */
export interface AttentionFactors {
  /** `[batch, heads, queries, rank]`, multiplied by the singular values. */
  readonly u: TensorOf<'float32'>;
  /** `[batch, heads, keys, rank]`, orthonormal columns. */
  readonly v: TensorOf<'float32'>;
  /** `[batch, heads, rank]`, descending. */
  readonly singularValues: TensorOf<'float32'>;
  /**
   * `[batch, heads]`, row-major: the rank of each matrix. With `energy` they differ; factors and singular values of a
   * matrix are zero from its own rank on.
   */
  readonly ranks: Int32Array;
}

export const sketchOptionNames = [
  ...outlessOptionNames,
  ...(['causal', 'scale', 'layout', 'oversample', 'powerIterations', 'seed'] as const),
];
const factorOptionNames: ReadonlySet<string> = new Set([...sketchOptionNames, 'rank', 'energy', 'maxRank']);

const whole = 'nothing: a matrix is factored as a whole';

/** Options of exact attention that factors cannot have, and why. */
export const sketchRefused: Readonly<Record<string, string>> = {
  window: whole,
  queryOffset: whole,
  mask: whole,
  keyMask: whole,
  keyLengths: whole,
  queryLengths: whole,
  softcap: whole,
  sinks: whole,
};
const applyOptionNames: ReadonlySet<string> = new Set(callOptionNames);

/** More would only repeat the rounding of float32. */
const mostPowerIterations = 100;

/**
 * Factors of the attention matrices A = softmax(scale·QKᵀ), A ≈ u·vᵀ, on a worker thread: the randomised singular value
 * decomposition (Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1). A is never formed: each of
 * 2·powerIterations + 2 passes is one exact attention with values of rank + oversample columns, and memory is
 * O(n·(headDim + rank + oversample)) for every matrix, all of them at once.
 *
 * What it is for: looking at attention, and using the same A on many values ({@link lowRankAttention}). It costs more than
 * one exact attention, so it makes no single call faster. A truncated A is no attention matrix: its rows do not sum to 1
 * and it has negative weights. A causal A is triangular with a positive diagonal, so it is of full rank always: it takes
 * many more components than the same data without causality, and fewer of them let a query see keys after it.
 *
 * The error is ‖A − u·vᵀ‖_F² = ‖A‖_F² − Σσ²; the best of this rank has the true singular values there, which those found
 * never exceed. Both hold up to rounding: entries of A carry a relative error of about 1e-7·|logit|, small singular values
 * an absolute one of 1e-7 times the largest. A matrix that holds NaN has NaN factors, and its neighbours have not.
 *
 * The same bits whatever stands beside a sequence in its batch, and on any number of threads.
 *
 * @param q `[batch, heads, queries, headDim]`
 * @param k `[batch, kvHeads, keys, headDim]`, heads a multiple of kvHeads
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT (also where `maxRank` columns do not keep
 *   `energy`), ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function attentionFactors(q: Tensor, k: Tensor, options: FactorOptions): Promise<AttentionFactors> {
  return await runStepsAsync(attentionFactors, factorSteps(q, k, options));
}

/** {@link attentionFactors} on the calling thread. */
export function attentionFactorsSync(q: Tensor, k: Tensor, options: FactorOptions): AttentionFactors {
  return runStepsSync(attentionFactorsSync, factorSteps(q, k, options));
}

/** A ≈ u·vᵀ of every head. */
export interface LowRankFactors {
  /** `[batch, heads, queries, rank]`. */
  readonly u: Tensor;
  /** `[batch, heads, keys, rank]`. */
  readonly v: Tensor;
}

/**
 * u·(vᵀ·x), on a worker thread: attention by the factors of its matrix, O(n·rank·d) for each use.
 *
 * It is for factors that are used again: {@link attentionFactors}, which says what a truncated matrix gets wrong, costs more
 * than the exact attention it replaces. Do not decode with the factors of a causal matrix: they see the future.
 *
 * @param factors u `[batch, heads, queries, rank]` and v `[batch, heads, keys, rank]`, of any element types
 * @param x `[batch, kvHeads, keys, dim]`, heads a multiple of kvHeads
 * @returns `[batch, heads, queries, dim]` of x's type; sums are accumulated in float32
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function lowRankAttention(factors: LowRankFactors, x: Tensor, options?: CallOptions): Promise<Tensor> {
  return await runStepsAsync(lowRankAttention, productSteps(factors, x, options));
}

/** {@link lowRankAttention} on the calling thread. */
export function lowRankAttentionSync(factors: LowRankFactors, x: Tensor, options?: CallOptions): Tensor {
  return runStepsSync(lowRankAttentionSync, productSteps(factors, x, options));
}

/** What comes of a decomposition before anything is made of it: as many columns as were asked for. */
export interface Sketch {
  readonly qk: Qk;
  /** Columns asked for. */
  readonly rank: number;
  /** `[batch, heads, rank]`, descending. */
  readonly singularValues: Float64Array;
  /** `[batch, heads]`, ‖A‖_F². */
  readonly energies: Float64Array | null;
  /** `[batch, heads]`, 0 where `energy` is not reached. */
  readonly ranks: Int32Array;
  /** Rows of the largest of `ranks`, in memory for rows of `rank`. */
  readonly u: Tensor | null;
  readonly v: Tensor | null;
}

/** Checked options of a decomposition. */
export interface SketchPlan {
  readonly qk: Qk;
  readonly rank: number;
  readonly oversample: number;
  readonly powerIterations: number;
  /** Share of ‖A‖_F² to be kept, 0 if `rank` alone decides. */
  readonly energy: number;
  readonly withEnergies: boolean;
  readonly withFactors: boolean;
}

/** Queries and keys of which there is something to decompose, at least where there is a batch at all. */
export function checkMatrices(q: Tensor, k: Tensor, { layout }: SketchOptions): { qk: Qk; most: number } {
  const qk = checkQk(q, k, checkLayout(layout));
  if (qk.queries === 0) throw expected('ERR_SHAPE', 'q', 'at least one row', qk.query.dims);
  if (qk.keys === 0) throw expected('ERR_SHAPE', 'k', 'at least one row', qk.key.dims);
  return { qk, most: Math.min(qk.queries, qk.keys) };
}

export function checkOversample(oversample: unknown): number {
  return oversample === undefined ? 8 : checkInteger('oversample', oversample, 0);
}

export function checkPowerIterations(iterations: unknown): number {
  return iterations === undefined ? 2 : checkInteger('powerIterations', iterations, 0, mostPowerIterations);
}

/** The native call of a decomposition. */
export function sketchCall(plan: SketchPlan, options: SketchOptions): Call<Sketch> {
  const { qk, rank, oversample, powerIterations, energy, withEnergies, withFactors } = plan;
  const { query, key, batch, heads, queries, keys, headDim, rowsBeforeHeads } = qk;
  const causal = checkFlag('causal', options.causal);
  const scale = checkScale(options.scale, headDim);
  const seed = options.seed === undefined ? 0 : checkSeed(options.seed);
  const width = Math.min(rank + oversample, queries, keys);
  const matrices = batch * heads;
  const singularValues = float64('rank', matrices * rank);
  const energies = withEnergies ? float64('q', matrices) : null;
  const ranks = new Int32Array(matrices);
  const u = withFactors ? allocate('rank', [batch, heads, queries, rank], 'float32') : null;
  const v = withFactors ? allocate('rank', [batch, heads, keys, rank], 'float32') : null;
  return {
    op: batch === 0 ? nothing : addon.lowrank,
    operands: [query.data, key.data, singularValues, energies, ranks, u?.data ?? null, v?.data ?? null],
    numbers: Float64Array.of(
      typeNumbers[query.type],
      typeNumbers[key.type],
      ...qkExtents(qk),
      rowsBeforeHeads ? 1 : 0,
      scale,
      causal ? 1 : 0,
      rank,
      width,
      powerIterations,
      seed,
      energy,
    ),
    options,
    result: { qk, rank, singularValues, energies, ranks, u, v },
  };
}

function* factorSteps(q: Tensor, k: Tensor, given: FactorOptions): Steps<AttentionFactors> {
  const options: FactorOptions = checkOptions('options', given, factorOptionNames, sketchRefused);
  const { qk, most } = checkMatrices(q, k, options);
  const { rank, energy, maxRank } = options;
  if (rank === undefined && energy === undefined)
    throw expected('ERR_ARGUMENT', 'rank', 'a whole number (or `energy` instead)', rank);
  if (rank !== undefined && energy !== undefined)
    throw expected('ERR_ARGUMENT', 'energy', 'nothing beside `rank`', energy);
  if (rank !== undefined && maxRank !== undefined)
    throw expected('ERR_ARGUMENT', 'maxRank', 'nothing beside `rank`', maxRank);
  if (energy !== undefined && !(typeof energy === 'number' && energy > 0 && energy <= 1))
    throw expected('ERR_ARGUMENT', 'energy', 'a number in (0, 1]', energy);
  const columns =
    rank !== undefined
      ? checkInteger('rank', rank, 1, most)
      : maxRank !== undefined
        ? checkInteger('maxRank', maxRank, 1, most)
        : Math.min(256, most);
  const plan: SketchPlan = {
    qk,
    rank: columns,
    oversample: checkOversample(options.oversample),
    powerIterations: checkPowerIterations(options.powerIterations),
    energy: energy ?? 0,
    withEnergies: energy !== undefined,
    withFactors: true,
  };
  return factorsOf(yield* step(sketchCall(plan, options)), plan.energy);
}

function factorsOf(sketch: Sketch, energy: number): AttentionFactors {
  const { qk, rank: most, ranks } = sketch;
  const { batch, heads, queries, keys } = qk;
  const missed = ranks.indexOf(0);
  if (missed >= 0) {
    const values = sketch.singularValues.subarray(missed * most, (missed + 1) * most);
    const kept = values.reduce((sum, value) => sum + value * value, 0) / (sketch.energies?.[missed] as number);
    const where = `batch item ${Math.floor(missed / heads)}, head ${missed % heads}`;
    const what = `at most what ${most} components keep of ${where} (${kept.toFixed(6)})`;
    throw expected('ERR_ARGUMENT', 'energy', what, energy);
  }
  const rank = energy === 0 ? most : ranks.reduce((largest, own) => Math.max(largest, own), 0);
  const singularValues = allocate('rank', [batch, heads, rank], 'float32') as TensorOf<'float32'>;
  for (const [matrix, own] of ranks.entries()) {
    const values = sketch.singularValues.subarray(matrix * most, matrix * most + own);
    singularValues.data.set(values, matrix * rank);
  }
  const trimmed = (factor: Tensor | null, rows: number): TensorOf<'float32'> => {
    const { data } = factor as TensorOf<'float32'>;
    const length = batch * heads * rows * rank;
    return {
      data: length === data.length ? data : data.slice(0, length),
      dims: [batch, heads, rows, rank],
      type: 'float32',
    };
  };
  return { u: trimmed(sketch.u, queries), v: trimmed(sketch.v, keys), singularValues, ranks };
}

function* productSteps(factors: unknown, givenX: Tensor, given: CallOptions | undefined): Steps<Tensor> {
  const options: CallOptions = checkOptions('options', given, applyOptionNames);
  if (typeof factors !== 'object' || factors === null)
    throw expected('ERR_TYPE', 'factors', 'an object { u, v }', factors);
  const pair = attempt('factors', () => {
    const { u, v } = factors as Partial<LowRankFactors>;
    return { u, v };
  });
  const u = checkTensor('factors.u', pair.u, 4);
  const v = checkTensor('factors.v', pair.v, 4);
  const x = checkTensor('x', givenX, 4);
  const [batch, heads, queries, rank] = u.dims as [number, number, number, number];
  const [vBatch, vHeads, keys, vRank] = v.dims as [number, number, number, number];
  const [xBatch, kvHeads, xRows, dim] = x.dims as [number, number, number, number];
  if (vBatch !== batch || vHeads !== heads || vRank !== rank) {
    const what = `batch ${batch}, ${heads} heads and ${rank} columns as in \`factors.u\``;
    throw expected('ERR_SHAPE', 'factors.v', what, v.dims);
  }
  if (xBatch !== batch || xRows !== keys)
    throw expected('ERR_SHAPE', 'x', `batch ${batch} and ${keys} rows as in \`factors.v\``, x.dims);
  if (heads % kvHeads !== 0)
    throw expected('ERR_SHAPE', 'x', `a number of heads that divides the ${heads} of \`factors.u\``, x.dims);

  const matrices = batch * heads;
  const group = heads / kvHeads;
  const starts = (sizeA: number, sizeB: number, groupB: number): Float64Array => {
    const pairs = float64('factors.u', 2 * matrices);
    for (let matrix = 0; matrix < matrices; matrix++) {
      pairs[2 * matrix] = matrix * sizeA;
      pairs[2 * matrix + 1] = Math.floor(matrix / groupB) * sizeB;
    }
    return pairs;
  };
  const outDims = [batch, heads, queries, dim];
  const output =
    options.out === undefined
      ? (allocate('out', outDims, x.type) as Operand)
      : checkOut(options.out, outDims, [u.data, v.data, x.data]);
  // vᵀ·x, then u times that.
  const reduced = allocate('factors.v', [batch, heads, rank, dim], 'float32') as Operand;
  const reduce: Product = {
    a: v,
    b: x,
    output: reduced,
    starts: starts(keys * rank, keys * dim, group),
    batch: matrices,
    m: rank,
    n: dim,
    k: keys,
    transposeA: true,
    transposeB: false,
    names: { a: 'factors.v', b: 'x' },
  };
  const expand: Product = {
    a: u,
    b: reduced,
    output,
    starts: starts(queries * rank, rank * dim, 1),
    batch: matrices,
    m: queries,
    n: dim,
    k: rank,
    transposeA: false,
    transposeB: false,
    names: { a: 'factors.u', b: 'factors.v' },
  };
  yield* step(productCall(reduce, options));
  yield* step(productCall(expand, options));
  return options.out ?? (output as Tensor);
}
