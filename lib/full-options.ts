import { types } from 'node:util';

import type { CallOptions } from './call';
import { callOptionNames, checkFlag } from './call';
import { checkDims, checkExtent, checkFinite, checkInteger, checkLengths, checkNumbers, readTensor } from './check';
import { expected } from './errors';
import { isArray, readList } from './read';
import { allocate, type MaskTensor, type TensorOf } from './tensor';

/** Axis order of queries, keys, values and outputs: `[batch, heads, length, dim]` or `[batch, length, heads, dim]`. */
export type Layout = 'bhld' | 'blhd';

/** What exact attention computes, whether keys and values come as tensors or from a cache. */
export interface ScoreOptions {
  /** Multiplies q·k before everything else. Any finite number. Default 1/√headDim. */
  readonly scale?: number;
  /** Axis order of the tensors of this call. Masks and `lse` are `[batch, heads, …]` always. Default `'bhld'`. */
  readonly layout?: Layout;
  /** Query i sees keys j ≤ i + offset. Default false for tensors, true for caches. */
  readonly causal?: boolean;
  /**
   * Key position of query 0, for `causal` and `window`. Any whole number.
   * Default: the last query stands at the last valid key, of each sequence for itself.
   */
  readonly queryOffset?: number;
  /**
   * Numbers of keys seen before and after the query's own position, which is always seen itself. Each a whole number
   * ≥ 0 or `Infinity`. Default both `Infinity`.
   */
  readonly window?: readonly [left: number, right: number];
  /**
   * `'bool'` (1 = may see) or additive `'float32'` in natural-log units (−∞ hides). Rank 2 to 4, aligned at the last
   * axis with `[batch, heads, queries, keys]`; every axis but the last may be 1 or missing. A key that a mask hides
   * contributes nothing, even if its key or value is NaN. Default none.
   */
  readonly mask?: MaskTensor;
  /** s ← softcap·tanh(s/softcap) after `scale`, before masks (Gemma 2, arXiv 2408.00118). > 0; 0 = off. Default off. */
  readonly softcap?: number;
  /**
   * One logit a query head that takes part in the softmax denominator and has no value (attention sinks, arXiv
   * 2309.17453). `lse` counts it in. Length heads; each below infinity, −∞ is none, NaN and +∞ are refused. Default none.
   */
  readonly sinks?: Float32Array | readonly number[];
}

/** Options of exact attention over tensors. */
export interface AttentionOptions extends CallOptions, ScoreOptions {
  /** Valid keys of each sequence, 0 to keys; the rest is padding and never read. Default all. */
  readonly keyLengths?: readonly number[] | Int32Array;
  /** Valid queries of each sequence, 0 to queries; output rows past them are zero, `lse` −∞. Default all. */
  readonly queryLengths?: readonly number[] | Int32Array;
}

export const scoreOptionNames = [
  'scale',
  'layout',
  'causal',
  'queryOffset',
  'window',
  'mask',
  'softcap',
  'sinks',
] as const;
export const attentionOptionNames: ReadonlySet<string> = new Set([
  ...callOptionNames,
  ...scoreOptionNames,
  'keyLengths',
  'queryLengths',
]);

/** Masks as numbers: kinds of core/full.h. */
const maskKinds = { none: 0, bool: 1, float32: 2 } as const;

export interface CheckedMask {
  readonly kind: number;
  readonly data: Uint8Array | Float32Array | null;
  readonly batchStride: number;
  readonly headStride: number;
  readonly queryStride: number;
}

const noMask: CheckedMask = { kind: maskKinds.none, data: null, batchStride: 0, headStride: 0, queryStride: 0 };

/** Checks a mask against the scores' dims [batch, heads, queries, keys]; strides of broadcast axes are 0. */
export function checkMask(mask: unknown, scores: readonly [number, number, number, number]): CheckedMask {
  if (mask === undefined) return noMask;
  const given = readTensor('mask', mask);
  const { type } = given;
  if (type !== 'bool' && type !== 'float32') throw expected('ERR_TYPE', 'mask', "type 'bool' or 'float32'", type);
  if (type === 'bool' ? !types.isUint8Array(given.data) : !types.isFloat32Array(given.data)) {
    throw expected(
      'ERR_TYPE',
      'mask',
      type === 'bool' ? "a Uint8Array for type 'bool'" : "a Float32Array for type 'float32'",
      given.data,
    );
  }
  const data = given.data as Uint8Array | Float32Array;
  const dims = checkDims('mask', given.dims);
  const missing = 4 - dims.length;
  const shape = `dims that broadcast to [${scores.join(', ')}], the last one ${scores[3]}`;
  if (missing < 0 || missing > 2) throw expected('ERR_SHAPE', 'mask', `${shape} (rank 2 to 4)`, dims);
  const extents = scores.map((_, axis) => (axis < missing ? 1 : (dims[axis - missing] as number)));
  for (let axis = 0; axis < 4; axis++) {
    if (extents[axis] !== scores[axis] && (axis === 3 || extents[axis] !== 1))
      throw expected('ERR_SHAPE', 'mask', shape, dims);
  }
  const [batch, heads, queries, keys] = extents as [number, number, number, number];
  checkExtent('mask', data, dims);
  return {
    kind: maskKinds[type],
    data,
    batchStride: batch === 1 ? 0 : heads * queries * keys,
    headStride: heads === 1 ? 0 : queries * keys,
    queryStride: queries === 1 ? 0 : keys,
  };
}

/** Checks the options of the scores, and gives them as binding/full_problem.h reads them. */
export function scoreNumbers(
  options: ScoreOptions,
  causalByDefault: boolean,
  headDim: number,
  mask: CheckedMask,
): number[] {
  const [left, right] = checkReach(options, causalByDefault);
  return [
    checkScale(options.scale, headDim),
    checkSoftcap(options.softcap),
    left,
    right,
    mask.kind,
    mask.headStride,
    mask.queryStride,
    checkOffset(options.queryOffset),
  ];
}

/** Keys seen on each side of the query's own position, −1 for all: `causal` and `window` in one. */
function checkReach(
  { causal, window }: ScoreOptions,
  causalByDefault: boolean,
): readonly [left: number, right: number] {
  const isCausal = causal === undefined ? causalByDefault : checkFlag('causal', causal);
  const [left, right] = (window === undefined ? [Infinity, Infinity] : checkWindow(window)).map((side) =>
    side === Infinity ? -1 : side,
  ) as [number, number];
  return [left, isCausal ? 0 : right];
}

/** A copy of a window. */
export function checkWindow(window: unknown): readonly [left: number, right: number] {
  const side = (value: unknown, index: number): number =>
    value === Infinity ? Infinity : checkInteger(`window[${index}]`, value, 0);
  const sides = isArray(window) ? readList('window', window, (length) => length === 2, side) : undefined;
  if (sides === undefined) throw expected('ERR_ARGUMENT', 'window', '[left, right]', window);
  return sides as [number, number];
}

/** What exact attention over tensors computes, as native calls take it. */
export interface CheckedAttention {
  /** `[batch, heads, queries]`, where it is wanted. */
  readonly lse: TensorOf<'float32'> | null;
  readonly mask: CheckedMask;
  /** lse, mask, sinks, valid queries and keys: what follows the output among the operands. */
  readonly operands: readonly unknown[];
  /** What follows the shapes among the numbers. */
  readonly numbers: readonly number[];
}

export function checkAttention(
  options: AttentionOptions,
  extents: { batch: number; heads: number; queries: number; keys: number; headDim: number },
  withLse: boolean,
): CheckedAttention {
  const { batch, heads, queries, keys, headDim } = extents;
  const mask = checkMask(options.mask, [batch, heads, queries, keys]);
  const numbers = [...scoreNumbers(options, false, headDim, mask), mask.batchStride];
  const lse = withLse ? (allocate('out', [batch, heads, queries], 'float32') as TensorOf<'float32'>) : null;
  const operands = [
    lse?.data ?? null,
    mask.data,
    checkSinks(options.sinks, heads),
    options.queryLengths === undefined ? null : checkLengths('queryLengths', options.queryLengths, batch, queries),
    options.keyLengths === undefined ? null : checkLengths('keyLengths', options.keyLengths, batch, keys),
  ];
  return { lse, mask, operands, numbers };
}

/** Key position of query 0, NaN for the default alignment. */
function checkOffset(offset: unknown): number {
  const far = 2 ** 47;
  return offset === undefined ? NaN : checkInteger('queryOffset', offset, -far, far);
}

export function checkScale(scale: unknown, headDim: number): number {
  return scale === undefined ? 1 / Math.sqrt(headDim) : checkFinite('scale', scale);
}

function checkSoftcap(softcap: unknown): number {
  const cap = softcap === undefined ? 0 : checkFinite('softcap', softcap, 0);
  // A cap too small for float32 would silently mean none.
  if (cap > 0 && Math.fround(cap) < 2 ** -126)
    throw expected('ERR_ARGUMENT', 'softcap', '0 or a normal float32', softcap);
  return cap;
}

export function checkSinks(sinks: unknown, heads: number): Float32Array | null {
  if (sinks === undefined) return null;
  const check = (logit: unknown, head: number): number => {
    if (typeof logit !== 'number' || !(Math.fround(logit) < Infinity))
      throw expected('ERR_ARGUMENT', `sinks[${head}]`, 'a float32 below infinity', logit);
    return logit;
  };
  const what = `${heads} numbers (one a query head)`;
  return Float32Array.from(checkNumbers('sinks', sinks, types.isFloat32Array, heads, what, check));
}
