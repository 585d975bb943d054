import { types } from 'node:util';

import { checkChoice, checkInteger, checkNumbers, checkTensor } from './check';
import { float32Of } from './convert';
import { expected, Text } from './errors';
import { mostExtent } from './qkv';
import {
  type CheckedRmsNorm,
  type CheckedRope,
  checkFrequencies,
  checkRmsNorm,
  checkRope,
  type RmsNormOptions,
  type Rope,
} from './rope';
import type { DataType, Tensor } from './tensor';

/**
 * How rotary embedding and the residual of the keys go together. A rotation does not commute with B_h, so these are
 * five different functions; n is a query's position, p a key's, R the rotation of heads and R′ that of latents. The base
 * is rotated in all of them.
 *
 * - `'exact'`: the whole key is rotated, (R_n q)·R_p(base·A_h + latent·B_hᵀ). What models are trained with, which form
 *   keys first and rotate them then; the only mode for a converted checkpoint. No query can take B_h over, so the CPU keeps
 *   keys whole and rotated, and factors the values alone.
 * - `'latent'`: latents have rotations of their own, (R′_n B_hᵀq)·(R′_p latent), with `latentFrequencies`. Depends on n − p
 *   only, and costs `rank` a key; for weights trained or tuned with it.
 * - `'none'`: the residual is not rotated, (B_hᵀq)·latent. The cheapest, as in MLA; for weights trained or tuned with it.
 * - `'paper'`: as the paper prints it, (R_n q)·B_h(R′_p latent) with `latentFrequencies`. Scores change when all positions
 *   are shifted alike; for weights trained with this very formula.
 * - `'intertwined'`: B_h couples each pair of latents to pairs of the head of one frequency alone, as a multiplication
 *   by a complex number, so that B_h R′ = R B_h: `'exact'`, `'latent'` and `'paper'` are then the same, and cost `rank` a key.
 *   The latents' frequencies are read off `keyUp`; one that does not intertwine is refused.
 *
 * In the modes 'latent', 'none' and 'paper' the weights of a model trained otherwise give unrelated scores.
 */
export type RopeMode = 'exact' | 'latent' | 'none' | 'paper' | 'intertwined';

/**
 * What is the same for all tokens in LRKV (O'Neill et al. 2026, arXiv 2601.11471, section 3, equations 2 to 5): the keys
 * of head h are base·A_h + latent_h·B_hᵀ, with one base for all heads, and values alike with parts of their own.
 *
 * A_h, the gauge, is not in the paper: there it is the identity, and the heads of trained models are not alike enough for
 * that. Tensors may be of any element type; they are computed with in float32.
 */
export interface LrkvModel {
  /** `[Σ key ranks, headDim]`: B_hᵀ of all heads, one after another. */
  readonly keyUp: Tensor;
  /** `[Σ value ranks, valueDim]`: the same of values. */
  readonly valueUp: Tensor;
  /**
   * `[kvHeads, keyBaseDim, headDim]`: A_h. With rotary embedding in another mode than `'exact'` it must commute with the
   * rotation: one complex number a pair. Default the identity, where keyBaseDim is headDim or, without a base, 0.
   */
  readonly keyGauge?: Tensor;
  /** `[kvHeads, valueBaseDim, valueDim]`. Default the identity, where valueBaseDim is valueDim or 0. */
  readonly valueGauge?: Tensor;
  /**
   * Rank of each key/value head, whole numbers ≥ 0 whose sum is the rows of `keyUp`. Even with the rope modes `'latent'`,
   * `'paper'` and `'intertwined'`. Default all alike.
   */
  readonly keyRanks?: readonly number[] | Int32Array;
  /** The same of values: the rows of `valueUp`, odd or even. Default all alike. */
  readonly valueRanks?: readonly number[] | Int32Array;
  /** Rotary embedding of queries and keys, which come without. Default none. */
  readonly rope?: Rope;
  /** How it meets the residual; refused without `rope`. Default `'exact'`. */
  readonly ropeMode?: RopeMode;
  /**
   * Σ key ranks / 2 frequencies of latent pairs, head after head, paired within each head as `rope.pairing` says. Required by
   * the modes `'latent'` and `'paper'`, refused elsewhere.
   */
  readonly latentFrequencies?: ArrayLike<number>;
  /**
   * RMS normalisation of keys (QK-norm, section 4.3). Queries come normalised. Without `rope` both gain orders are the
   * same. A gain `'before-rotation'` does not go with the modes `'paper'` and `'intertwined'`, nor with `'latent'` and
   * `'none'` beside a `keyGauge`; one `'after-rotation'` not with `'latent'` and `'none'`. Default none.
   */
  readonly keyNorm?: RmsNormOptions;
}

export const lrkvModelNames = [
  'keyUp',
  'valueUp',
  'keyGauge',
  'valueGauge',
  'keyRanks',
  'valueRanks',
  'rope',
  'ropeMode',
  'latentFrequencies',
  'keyNorm',
] as const;

/** The shape that a model must fit. */
export interface LrkvShape {
  readonly kvHeads: number;
  readonly headDim: number;
  /** Default the columns of `valueUp`. */
  readonly valueDim?: number | undefined;
  /** Columns of the bases. Default those of the gauge, or without one the head size. */
  readonly keyBaseDim?: number | undefined;
  readonly valueBaseDim?: number | undefined;
}

/** One side of a checked model. */
export interface LrkvFactors {
  readonly dim: number;
  readonly baseDim: number;
  readonly ranks: Int32Array;
  /** Σ ranks, the columns of the latents. */
  readonly latentDim: number;
  readonly up: Float32Array;
  /** Null for the identity. */
  readonly gauge: Float32Array | null;
}

/** A model as native calls take it. */
export interface CheckedLrkvModel {
  readonly kvHeads: number;
  readonly key: LrkvFactors;
  readonly value: LrkvFactors;
  /** Rope of core/lrkv.h. */
  readonly mode: number;
  /** Null without rotary embedding. */
  readonly rope: CheckedRope | null;
  readonly latentFrequencies: Float64Array | null;
  readonly norm: CheckedRmsNorm | null;
}

/** More key/value heads than any layer has; what is counted by heads is bounded by it. */
export const mostKvHeads = 2 ** 16;

/** Kinds of core/lrkv.h. Intertwined factors are computed as the paper's formula, which is exact for them. */
const modeNumbers = { exact: 1, latent: 2, none: 3, paper: 4, intertwined: 4 } as const;
const modes = Object.keys(modeNumbers) as RopeMode[];
const noRope = 0;

/** Checks a model that has been read by `checkOptions`. Errors name its members as they are called there. */
export function checkLrkvModel(given: Partial<LrkvModel>, shape: LrkvShape): CheckedLrkvModel {
  const model = readModel(given, shape);
  const row = storedElements(lrkvStored(model)) + model.kvHeads;
  if (row > mostExtent)
    throw expected('ERR_SHAPE', 'keyUp', `factors and bases of at most ${mostExtent} stored elements a position`, row);
  return model;
}

function readModel(given: Partial<LrkvModel>, shape: LrkvShape): CheckedLrkvModel {
  const { kvHeads, headDim } = shape;
  const key = checkFactors('key', given, kvHeads, headDim, shape.keyBaseDim);
  const value = checkFactors('value', given, kvHeads, shape.valueDim, shape.valueBaseDim);
  if (key.baseDim + key.latentDim + value.baseDim + value.latentDim === 0)
    throw expected('ERR_SHAPE', 'keyUp', 'rows, where there are no bases and no other ranks', new Text('none'));
  const { rope, ropeMode, latentFrequencies } = given;
  if (rope === undefined) {
    for (const [name, option] of Object.entries({ ropeMode, latentFrequencies }))
      if (option !== undefined) throw expected('ERR_ARGUMENT', name, 'nothing without `rope`', option);
    const norm = checkKeyNorm(given.keyNorm, headDim, undefined, false);
    return { kvHeads, key, value, mode: noRope, rope: null, latentFrequencies: null, norm };
  }
  const checked = checkRope('rope', rope, headDim);
  const mode = ropeMode === undefined ? 'exact' : checkChoice('ropeMode', ropeMode, modes);
  if (mode !== 'exact') checkCommutes(key, kvHeads, checked, mode);
  const norm = checkKeyNorm(given.keyNorm, headDim, mode, key.gauge !== null);
  const latent = checkLatent(latentFrequencies, mode, key, checked);
  return { kvHeads, key, value, mode: modeNumbers[mode], rope: checked, latentFrequencies: latent, norm };
}

function checkFactors(
  side: 'key' | 'value',
  given: Partial<LrkvModel>,
  kvHeads: number,
  givenDim: number | undefined,
  givenBaseDim: number | undefined,
): LrkvFactors {
  const [upName, gaugeName, ranksName] = [`${side}Up`, `${side}Gauge`, `${side}Ranks`] as const;
  const up = checkTensor(upName, given[upName], 2);
  const [latentDim, dim] = up.dims as [number, number];
  if (dim === 0 || (givenDim !== undefined && dim !== givenDim)) {
    const columns = givenDim === undefined ? 'at least one column' : `the head size ${givenDim} as columns`;
    throw expected('ERR_SHAPE', upName, `dims [Σ ${side} ranks, ${side} head size] with ${columns}`, up.dims);
  }
  if (latentDim > mostExtent) throw expected('ERR_SHAPE', upName, `at most ${mostExtent} rows`, up.dims);
  const ranks = checkRanks(ranksName, given[ranksName], kvHeads, latentDim, upName);
  const gauge = given[gaugeName] === undefined ? null : checkTensor(gaugeName, given[gaugeName], 3);
  const baseDim = givenBaseDim ?? gauge?.dims[1] ?? dim;
  if (gauge?.dims.some((extent, axis) => extent !== [kvHeads, baseDim, dim][axis])) {
    const what = `dims [${kvHeads}, ${baseDim}, ${dim}] (kvHeads, ${side}BaseDim, ${side} head size)`;
    throw expected('ERR_SHAPE', gaugeName, what, gauge.dims);
  }
  if (gauge === null && baseDim !== dim && baseDim !== 0) {
    const what = `a gauge beside a base of ${baseDim} columns where the head size is ${dim}`;
    throw expected('ERR_ARGUMENT', gaugeName, what, undefined);
  }
  // A gauge of no rows says nothing.
  const used = gauge === null || baseDim === 0 ? null : float32Of(gauge);
  return { dim, baseDim, ranks, latentDim, up: float32Of(up), gauge: used };
}

function checkRanks(name: string, ranks: unknown, kvHeads: number, rows: number, upName: string): Int32Array {
  if (ranks === undefined) {
    if (rows % kvHeads !== 0) {
      const what = `a multiple of the ${kvHeads} key/value heads as rows, without \`${name}\``;
      throw expected('ERR_SHAPE', upName, what, rows);
    }
    return new Int32Array(kvHeads).fill(rows / kvHeads);
  }
  const check = (rank: unknown, head: number): number => checkInteger(`${name}[${head}]`, rank, 0, mostExtent);
  const what = `${kvHeads} ranks (one a key/value head)`;
  const list = checkNumbers(name, ranks, types.isInt32Array, kvHeads, what, check);
  const sum = list.reduce((total, rank) => total + rank, 0);
  if (sum !== rows) {
    const received = new Text(`${list.length > 8 ? 'some' : `[${list.join(', ')}]`} with the sum ${sum}`);
    throw expected('ERR_SHAPE', name, `ranks whose sum is ${rows}, the rows of \`${upName}\``, received);
  }
  return Int32Array.from(list);
}

/** Elements of pair `index` in a row of `dim`. */
function pairOf({ pairing }: CheckedRope, index: number, dim: number): readonly [first: number, second: number] {
  return pairing === 0 ? [index, index + dim / 2] : [2 * index, 2 * index + 1];
}

/**
 * The one frequency to whose pairs two rows of a matrix of `rope`'s columns belong, if turning the two as a pair is
 * turning what they are mapped to: in each pair of columns [[a, b], [−b, a]], or where nothing turns anything.
 * `'free'` for rows of zeros, `'mixed'` for what does not commute.
 */
function coupledFrequency(first: Float32Array, second: Float32Array, rope: CheckedRope): number | 'free' | 'mixed' {
  let found: number | 'free' = 'free';
  for (const [index, frequency] of rope.frequencies.entries()) {
    const [x, y] = pairOf(rope, index, first.length);
    const [a, b, c, d] = [first[x], first[y], second[x], second[y]] as [number, number, number, number];
    if (a === 0 && b === 0 && c === 0 && d === 0) continue;
    if (found !== 'free' && found !== frequency) return 'mixed';
    if (frequency !== 0 && !(a === d && b === -c)) return 'mixed';
    found = frequency;
  }
  return found;
}

const rowOf = (matrix: Float32Array, row: number, dim: number): Float32Array =>
  matrix.subarray(row * dim, (row + 1) * dim);

/** The base is rotated before the gauge, where keys are not rotated whole: R A_h = A_h R, or it would be another key. */
function checkCommutes({ gauge, dim, baseDim }: LrkvFactors, kvHeads: number, rope: CheckedRope, mode: RopeMode): void {
  if (gauge === null) return;
  const refused = (received: string): Error => {
    const what = `a gauge that commutes with the rotation (ropeMode '${mode}'): one complex number a pair, else zeros,`;
    return expected('ERR_ARGUMENT', 'keyGauge', what, new Text(received));
  };
  if (baseDim !== dim) throw refused(`one of ${baseDim} rows and ${dim} columns`);
  for (let head = 0; head < kvHeads; head++) {
    for (const [index, frequency] of rope.frequencies.entries()) {
      const [x, y] = pairOf(rope, index, dim);
      const [first, second] = [rowOf(gauge, head * dim + x, dim), rowOf(gauge, head * dim + y, dim)];
      const coupled = coupledFrequency(first, second, rope);
      if (coupled !== 'free' && coupled !== frequency)
        throw refused(`one that does not in head ${head} at pair ${index}`);
    }
  }
}

/**
 * The norm of keys. A learned gain goes to the queries, to the base or to B, as far as it can get past the rotation.
 *
 * @param mode undefined without rotary embedding
 * @param gauged whether keys have a gauge
 */
export function checkKeyNorm(
  given: unknown,
  headDim: number,
  mode: RopeMode | undefined,
  gauged: boolean,
): CheckedRmsNorm | null {
  if (given === undefined) return null;
  const norm = checkRmsNorm('keyNorm', given, headDim);
  if (norm.gain === null || mode === undefined || mode === 'exact') return norm;
  const ofLatents = mode === 'paper' || mode === 'intertwined';
  const before = norm.gainOrder === 0;
  const order = `a gain '${before ? 'before' : 'after'}-rotation'`;
  if (before === ofLatents) {
    const what = `no gain or one '${before ? 'after' : 'before'}-rotation' with ropeMode '${mode}'`;
    throw expected('ERR_UNSUPPORTED', 'keyNorm', what, new Text(order));
  }
  if (before && gauged) {
    const what = `no gain with ropeMode '${mode}' and a \`keyGauge\``;
    throw expected('ERR_UNSUPPORTED', 'keyNorm', what, new Text(order));
  }
  return norm;
}

/** Frequencies of latent pairs, given or read off the factors; null in the modes that rotate none. */
function checkLatent(given: unknown, mode: RopeMode, key: LrkvFactors, rope: CheckedRope): Float64Array | null {
  const rotated = mode === 'latent' || mode === 'paper';
  if (!rotated && given !== undefined)
    throw expected('ERR_ARGUMENT', 'latentFrequencies', `nothing with ropeMode '${mode}'`, given);
  if (mode === 'exact' || mode === 'none') return null;
  for (const [head, rank] of key.ranks.entries()) {
    if (rank % 2 !== 0)
      throw expected(
        'ERR_ARGUMENT',
        'keyRanks',
        `even ranks with ropeMode '${mode}'`,
        new Text(`${rank} (head ${head})`),
      );
  }
  if (!rotated) return intertwinedFrequencies(key, rope);
  return checkFrequencies('latentFrequencies', given, key.latentDim / 2);
}

function intertwinedFrequencies({ up, dim, ranks, latentDim }: LrkvFactors, rope: CheckedRope): Float64Array {
  const frequencies = new Float64Array(latentDim / 2);
  let start = 0;
  for (const [head, rank] of ranks.entries()) {
    for (let index = 0; index < rank / 2; index++) {
      const [x, y] = pairOf(rope, index, rank);
      const coupled = coupledFrequency(rowOf(up, start + x, dim), rowOf(up, start + y, dim), rope);
      if (coupled === 'mixed') {
        const what =
          "factors that intertwine (ropeMode 'intertwined'): each pair of rows one complex number a pair of one frequency";
        throw expected('ERR_ARGUMENT', 'keyUp', what, new Text(`others in head ${head} at latent pair ${index}`));
      }
      frequencies[start / 2 + index] = coupled === 'free' ? 0 : coupled;
    }
    start += rank;
  }
  return frequencies;
}

/** The operands of a model, in the order of all native calls that take one. */
export function lrkvModelOperands(model: CheckedLrkvModel): (Float32Array | Float64Array | Int32Array | null)[] {
  const { key, value, rope, latentFrequencies, norm } = model;
  return [
    ...[key.up, key.gauge, key.ranks],
    ...[value.up, value.gauge, value.ranks],
    rope?.frequencies ?? null,
    latentFrequencies,
    norm?.gain ?? null,
  ];
}

/** And its numbers. */
export function lrkvModelNumbers({ kvHeads, key, value, mode, rope, norm }: CheckedLrkvModel): number[] {
  return [
    kvHeads,
    key.dim,
    value.dim,
    key.baseDim,
    value.baseDim,
    mode,
    rope?.pairing ?? 0,
    rope?.firstPosition ?? 0,
    norm === null ? 0 : 1,
    norm?.epsilon ?? 0,
    norm?.gainOrder ?? 0,
  ];
}

/** Of each model those that it has been found to be the same as: a step of many caches asks for all of them each time. */
const twins = new WeakMap<CheckedLrkvModel, WeakSet<CheckedLrkvModel>>();

/** Whether two models give the same keys and values: one object as a rule, else compared number by number, once. */
export function sameLrkvModel(a: CheckedLrkvModel, b: CheckedLrkvModel): boolean {
  if (a === b || twins.get(a)?.has(b)) return true;
  const lists = (model: CheckedLrkvModel): (ArrayLike<number> | null)[] => [
    lrkvModelNumbers(model),
    ...lrkvModelOperands(model),
  ];
  const others = lists(b);
  const same = lists(a).every((list, index) => sameNumbers(list, others[index] as ArrayLike<number> | null));
  if (same) twins.set(a, (twins.get(a) ?? new WeakSet()).add(b));
  return same;
}

function sameNumbers(a: ArrayLike<number> | null, b: ArrayLike<number> | null): boolean {
  if (a === b) return true;
  if (a === null || b === null || a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** What of each position is stored, in elements: core/lrkv.h. */
export interface LrkvStored {
  readonly keyBaseDim: number;
  readonly valueBaseDim: number;
  /** Width of each head's keys or latents, a multiple of 8. */
  readonly keyWidths: Int32Array;
  readonly valueWidths: Int32Array;
  /** Whether each head has a float32 beside its latents: QK-norm, where keys are not stored whole. */
  readonly scaled: boolean;
}

/** Latents are stored in multiples of so many components. */
export const storedStep = 8;

/** Components that a head's latents take in a cache. */
export function paddedRank(rank: number): number {
  return storedStep * Math.ceil(rank / storedStep);
}

export function lrkvStored({ key, value, mode, norm }: CheckedLrkvModel): LrkvStored {
  const whole = mode === modeNumbers.exact;
  return {
    keyBaseDim: whole ? 0 : key.baseDim,
    valueBaseDim: value.baseDim,
    keyWidths: key.ranks.map((rank) => paddedRank(whole ? key.dim : rank)),
    valueWidths: value.ranks.map(paddedRank),
    scaled: norm !== null && !whole,
  };
}

/** Elements of all heads at one position. */
export function storedElements({ keyBaseDim, valueBaseDim, keyWidths, valueWidths }: LrkvStored): number {
  const sum = (widths: Int32Array): number => widths.reduce((total, width) => total + width, 0);
  return keyBaseDim + sum(keyWidths) + valueBaseDim + sum(valueWidths);
}

/** Bytes that a position takes, as a share of what keys and values of all heads take in the same element type. */
export function storedRatio(model: CheckedLrkvModel, type: DataType): number {
  const stored = lrkvStored(model);
  const elementBytes = type === 'float32' ? 4 : 2;
  const bytes = elementBytes * storedElements(stored) + (stored.scaled ? 4 * model.kvHeads : 0);
  return bytes / (elementBytes * model.kvHeads * (model.key.dim + model.value.dim));
}
