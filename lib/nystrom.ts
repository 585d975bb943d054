import { types } from 'node:util';

import { type Call, type CallOptions, callOptionNames, checkLayout, nothing, runAsync, runSync } from './call';
import { checkBoolTensor, checkChoice, checkFinite, checkFloat32, checkInteger, checkOptions } from './check';
import { expected, Text } from './errors';
import { checkScale, type Layout } from './full-options';
import { addon } from './native';
import { checkQkv, outputOf, type Qkv, qkvNumbers, qkvOperands } from './qkv';
import { attempt, isArray, readList, view } from './read';
import type { BoolTensor, Tensor, TensorOf } from './tensor';

/** Positions, each at most once. */
export type LandmarkIndices = readonly number[] | Int32Array;

/** Options of {@link nystromAttention}. */
export interface NystromOptions extends CallOptions {
  /** Multiplies q·k in all three softmax matrices. Any finite number. Default 1/√headDim. */
  readonly scale?: number;
  /** Axis order of queries, keys, values and output. Default `'bhld'`. */
  readonly layout?: Layout;
  /**
   * Number of landmarks m, 1 to the smaller of queries and keys. Landmark i is the mean of the i-th of m segments of the
   * positions; the last length % m of them have one position more. Default the smallest of 64, queries and keys.
   */
  readonly landmarks?: number;
  /**
   * These positions as landmarks, instead of segment means: one list where queries and keys are as many, else one for each,
   * as long as each other. The output does not depend on their order. Excludes `landmarks`. Default none.
   */
  readonly landmarkIndices?: LandmarkIndices | { readonly query: LandmarkIndices; readonly key: LandmarkIndices };
  /**
   * How the m × m matrix is inverted: by the paper's iteration, or by singular values in float64, which takes longer and
   * cuts small ones off as `regularization` says. Default `'iterative'`.
   */
  readonly pinv?: 'iterative' | 'svd';
  /**
   * Steps of the iteration, 1 to 100. After six, singular values above about 3 % of the largest are inverted and smaller
   * ones are damped, which is what keeps the result near exact attention: more steps make it worse where the matrix is
   * ill-conditioned, as far off as its exact inverse in the end. Default 6.
   */
  readonly iterations?: number;
  /**
   * With `pinv: 'svd'`: singular values σ are inverted to σ/(σ² + λ²), λ this many times the largest one. ≥ 0; 0 is the
   * pseudo-inverse, far from exact attention where the matrix is ill-conditioned. Default 0.025, about as six iterations.
   */
  readonly regularization?: number;
  /**
   * float32 `[heads, size]`, or `[1, size]` for all heads, size odd, finite: adds Σₜ filter[t]·v[i + t − (size − 1)/2] to
   * output row i, zero beyond the ends (the paper's depthwise convolution, one filter a query head). Needs as many queries
   * as keys. Default none.
   */
  readonly convKernel?: TensorOf<'float32'>;
  /** `[batch, keys]`, 1 = valid: what is masked contributes to nothing, whatever it holds. Default all valid. */
  readonly keyMask?: BoolTensor;
  /**
   * `[batch, queries]`, 1 = valid: masked queries are in no landmark, and their output rows are zero. Not implied by
   * `keyMask`: where queries and keys are the same positions, pass the mask as both. Default all valid.
   */
  readonly queryMask?: BoolTensor;
}

const optionNames: ReadonlySet<string> = new Set([
  ...callOptionNames,
  'scale',
  'layout',
  'landmarks',
  'landmarkIndices',
  'pinv',
  'iterations',
  'regularization',
  'convKernel',
  'keyMask',
  'queryMask',
]);

const future = 'landmarks are means over all positions, future ones included';
const refusedOptions: Readonly<Record<string, string>> = {
  causal: `no causality (${future})`,
  window: `no window (${future})`,
  queryOffset: `no position of the queries (there is no causality: ${future})`,
  mask: 'keyMask and queryMask (a mask over pairs of queries and keys would need the matrix that landmarks stand for)',
  state: `no state (${future})`,
  cache: `no cache (${future})`,
};

/** The same as in the published implementations. */
const defaultLandmarks = 64;
const defaultIterations = 6;
const defaultRegularization = 0.025;
const mostIterations = 100;

/**
 * Nyström attention (Xiong et al. 2021, arXiv 2102.03902): F·Z·(B·V) with F = softmax(scale·QK̃ᵀ), B = softmax(scale·Q̃Kᵀ)
 * and Z the regularised pseudo-inverse of A = softmax(scale·Q̃K̃ᵀ), Q̃ and K̃ being m landmarks. On a worker thread.
 *
 * An approximation of {@link attention} for long inputs: time is linear in the length, O((queries + keys)·m·headDim + m³) a
 * head, and no matrix of queries × keys exists. How near it comes depends on the data. Each of the three matrices is
 * normalised over its own row, also with `landmarkIndices`: columns of the full softmax would take all of it to normalise.
 * Effective weights may be negative and do not sum to one.
 *
 * Not causal: landmarks are means over all positions, so that `causal`, `window`, `mask` and caches are refused.
 * A landmark whose segment has no valid query or no valid key is left out, of each batch item for itself; where none is
 * left, attention adds nothing to the output, which is zero but for `convKernel`.
 * A NaN or infinity that is not masked may make all rows of its head NaN. Rotary embeddings are applied before.
 * Query heads may be a multiple of key/value heads (GQA, MQA), and the value's head size may differ from the key's.
 * The result is the same, bit for bit, whatever stands beside a batch item and however many threads run.
 * Do not write to the tensors of a call, nor transfer their buffers, before its promise settles.
 *
 * @param q `[batch, heads, queries, headDim]`
 * @param k `[batch, kvHeads, keys, headDim]`, heads a multiple of kvHeads
 * @param v `[batch, kvHeads, keys, valueDim]`, of k's type
 * @returns `[batch, heads, queries, valueDim]` of q's type
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_UNSUPPORTED, ERR_DEVICE, ERR_MEMORY,
 *   ERR_ABORTED
 */
export async function nystromAttention(q: Tensor, k: Tensor, v: Tensor, options?: NystromOptions): Promise<Tensor> {
  return await runAsync(nystromAttention, () => prepare(q, k, v, options));
}

/** {@link nystromAttention} on the calling thread. */
export function nystromAttentionSync(q: Tensor, k: Tensor, v: Tensor, options?: NystromOptions): Tensor {
  return runSync(nystromAttentionSync, () => prepare(q, k, v, options));
}

function prepare(q: Tensor, k: Tensor, v: Tensor, given: NystromOptions | undefined): Call<Tensor> {
  const options: NystromOptions = checkOptions('options', given, optionNames, refusedOptions);
  const qkv = checkQkv(q, k, v, checkLayout(options.layout));
  const { batch, queries, keys, headDim } = qkv;
  const landmarks = checkLandmarks(options, qkv);
  const inverse = checkInverse(options);
  const filters = checkFilters(options.convKernel, qkv);
  const keyMask = checkBoolTensor('keyMask', options.keyMask, [batch, keys]);
  const queryMask = checkBoolTensor('queryMask', options.queryMask, [batch, queries]);
  const output = outputOf(qkv, options.out, [filters.data, keyMask, queryMask]);
  return {
    op: view.length(output.data) === 0 ? nothing : addon.nystrom,
    operands: [...qkvOperands(qkv, output), landmarks.query, landmarks.key, filters.data, queryMask, keyMask],
    numbers: Float64Array.of(
      ...qkvNumbers(qkv, output),
      checkScale(options.scale, headDim),
      landmarks.count,
      inverse.iterations,
      inverse.regularization,
      filters.size,
      filters.headStride,
    ),
    options,
    result: options.out ?? (output as Tensor),
  };
}

interface Landmarks {
  readonly count: number;
  /** Null: segment means. */
  readonly query: Int32Array | null;
  readonly key: Int32Array | null;
}

function checkLandmarks({ landmarks, landmarkIndices }: NystromOptions, { queries, keys }: Qkv): Landmarks {
  const most = Math.min(queries, keys);
  if (landmarkIndices === undefined) {
    const count = landmarks === undefined ? Math.min(defaultLandmarks, most) : checkInteger('landmarks', landmarks, 1);
    if (count > most) {
      throw expected('ERR_ARGUMENT', 'landmarks', `no more than the ${queries} queries and ${keys} keys`, count);
    }
    return { count, query: null, key: null };
  }
  if (landmarks !== undefined) {
    throw expected('ERR_ARGUMENT', 'landmarks', 'no number of landmarks beside `landmarkIndices`', landmarks);
  }
  if (isArray(landmarkIndices) || types.isInt32Array(landmarkIndices)) {
    if (queries !== keys) {
      const what = `{ query, key } where the ${queries} queries and ${keys} keys are not as many`;
      throw expected('ERR_ARGUMENT', 'landmarkIndices', what, landmarkIndices);
    }
    const positions = checkPositions('landmarkIndices', landmarkIndices, keys);
    return { count: positions.length, query: positions, key: positions };
  }
  const what = 'a list of positions, or { query, key }';
  if (typeof landmarkIndices !== 'object' || landmarkIndices === null) {
    throw expected('ERR_ARGUMENT', 'landmarkIndices', what, landmarkIndices);
  }
  const lists = attempt('landmarkIndices', () => {
    const { query, key } = landmarkIndices as { readonly query: unknown; readonly key: unknown };
    return { query, key };
  });
  if (lists.query === undefined || lists.key === undefined) {
    throw expected('ERR_ARGUMENT', 'landmarkIndices', what, landmarkIndices);
  }
  const query = checkPositions('landmarkIndices.query', lists.query, queries);
  const key = checkPositions('landmarkIndices.key', lists.key, keys);
  if (key.length !== query.length) {
    const name = 'landmarkIndices.key';
    throw expected('ERR_SHAPE', name, `${query.length} positions as in \`landmarkIndices.query\``, lists.key);
  }
  return { count: query.length, query, key };
}

/** A list of positions below `length`, none twice. */
function checkPositions(name: string, list: unknown, length: number): Int32Array {
  const most = Math.min(length, 2 ** 31) - 1;
  const seen = new Set<number>();
  const check = (item: unknown, index: number): number => {
    const position = checkInteger(`${name}[${index}]`, item, 0, most);
    if (seen.has(position)) throw expected('ERR_ARGUMENT', `${name}[${index}]`, 'a position not listed before', item);
    seen.add(position);
    return position;
  };
  const fits = (count: number): boolean => count >= 1 && count <= length;
  const positions = isArray(list) || types.isInt32Array(list) ? readList(name, list, fits, check) : undefined;
  if (positions === undefined) throw expected('ERR_SHAPE', name, `1 to ${length} positions`, list);
  return Int32Array.from(positions);
}

/** Iterations, 0 for singular values, and how those are regularised. */
function checkInverse({ pinv, iterations, regularization }: NystromOptions): {
  readonly iterations: number;
  readonly regularization: number;
} {
  if (pinv === undefined || checkChoice('pinv', pinv, ['iterative', 'svd']) === 'iterative') {
    if (regularization !== undefined) {
      throw expected('ERR_ARGUMENT', 'regularization', "nothing without pinv: 'svd'", regularization);
    }
    const steps =
      iterations === undefined ? defaultIterations : checkInteger('iterations', iterations, 1, mostIterations);
    return { iterations: steps, regularization: 0 };
  }
  if (iterations !== undefined) {
    throw expected('ERR_ARGUMENT', 'iterations', "nothing with pinv: 'svd'", iterations);
  }
  const relative = regularization === undefined ? defaultRegularization : regularization;
  return { iterations: 0, regularization: checkFinite('regularization', relative, 0) };
}

interface Filters {
  readonly data: Float32Array | null;
  readonly size: number;
  /** 0: one for all heads. */
  readonly headStride: number;
}

function checkFilters(convKernel: unknown, { heads, queries, keys }: Qkv): Filters {
  if (convKernel === undefined) return { data: null, size: 0, headStride: 0 };
  const { data, dims } = checkFloat32('convKernel', convKernel, 2);
  const [rows, size] = dims as [number, number];
  if ((rows !== 1 && rows !== heads) || size % 2 === 0) {
    throw expected('ERR_SHAPE', 'convKernel', `dims [${heads}, size] or [1, size], size odd`, dims);
  }
  for (let i = 0; i < rows * size; i++) {
    if (!Number.isFinite(data[i])) throw expected('ERR_ARGUMENT', 'convKernel', 'finite weights', data[i]);
  }
  if (queries !== keys) {
    const received = new Text(`a filter beside ${queries} queries and ${keys} keys`);
    throw expected('ERR_SHAPE', 'convKernel', 'no filter unless there are as many queries as keys', received);
  }
  return { data, size, headStride: rows === 1 ? 0 : size };
}
