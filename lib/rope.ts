/** Rotary embedding and RMS normalisation as options: plain data, of `rotary` and of models. */
import { types } from 'node:util';

import { checkChoice, checkFinite, checkInteger, checkNumbers, checkOptions } from './check';
import { expected, guard } from './errors';

/** Which elements of a row of d are turned together: i and i + d/2 (`'half'`), or 2i and 2i + 1 (`'interleaved'`). */
export type Pairing = 'half' | 'interleaved';

/**
 * Rotary position embedding (Su et al. 2021, arXiv 2104.09864, section 3.2): at position p, pair i of a row is turned by
 * the angle p · frequencies[i].
 */
export interface Rope {
  /**
   * Radians a position, headDim / 2 finite numbers, a list or a Float32Array or Float64Array: those of
   * {@link ropeFrequencies}, with whatever scaling the model has, and 0 for pairs that are not turned (partial rotary
   * embedding; with `'half'` an element pairs up with the one half a head away, whichever pairs are turned: docs/converting.md
   * says how to reorder heads that are paired within their turned part). A factor on
   * all sines and cosines, as YaRN has one, goes squared into `scale`.
   */
  readonly frequencies: ArrayLike<number>;
  /**
   * `'half'` as in GPT-NeoX and in Llama as Hugging Face has it, `'interleaved'` as in the paper and in GPT-J.
   * Default `'half'`.
   */
  readonly pairing?: Pairing;
  /** Position of row 0, a whole number from 0 to 2^47. Default 0. */
  readonly firstPosition?: number;
}

/**
 * Normalisation of rows to a root mean square of 1, row / √(mean(row²) + epsilon) · gain (Zhang & Sennrich 2019, arXiv
 * 1910.07467); of queries and keys it is QK-norm (Henry et al. 2020, arXiv 2010.04245).
 */
export interface RmsNormOptions {
  /** ≥ 0; with 0 a row of zeros becomes NaN. Default 1e-6. */
  readonly epsilon?: number;
  /** The learned gain, headDim finite numbers, a list or a Float32Array or Float64Array. Default all 1. */
  readonly gain?: ArrayLike<number>;
  /** Whether the gain multiplies before rows are rotated or after. Default `'before-rotation'`. */
  readonly gainOrder?: 'before-rotation' | 'after-rotation';
}

/** Numbers of core/rotary.h. */
export const pairings = { half: 0, interleaved: 1 } as const;
const gainOrders = { 'before-rotation': 0, 'after-rotation': 1 } as const;

const ropeNames: ReadonlySet<string> = new Set(['frequencies', 'pairing', 'firstPosition']);
const normNames: ReadonlySet<string> = new Set(['epsilon', 'gain', 'gainOrder']);

/** A checked {@link Rope}. */
export interface CheckedRope {
  /** headDim / 2 numbers. */
  readonly frequencies: Float64Array;
  readonly pairing: number;
  readonly firstPosition: number;
}

/** Checked {@link RmsNormOptions}. */
export interface CheckedRmsNorm {
  readonly epsilon: number;
  readonly gain: Float32Array | null;
  readonly gainOrder: number;
}

/**
 * Frequencies base^(−2i / headDim) of the paper, i < headDim / 2.
 *
 * @param headDim even, 2 to 2^20
 * @param base > 0. Default 10000
 * @throws AttentionError ERR_ARGUMENT
 */
export function ropeFrequencies(headDim: number, base = 10000): Float64Array {
  return guard(ropeFrequencies, () => {
    const dim = checkInteger('headDim', headDim, 2, 2 ** 20);
    if (dim % 2 !== 0) throw expected('ERR_ARGUMENT', 'headDim', 'an even number', headDim);
    const root = checkFinite('base', base);
    if (root <= 0) throw expected('ERR_ARGUMENT', 'base', 'a number > 0', base);
    return Float64Array.from({ length: dim / 2 }, (_, i) => root ** ((-2 * i) / dim));
  });
}

/** Checks a position of a row. */
export function checkPosition(name: string, value: unknown): number {
  return checkInteger(name, value, 0, 2 ** 47);
}

/** So many finite numbers, as float64. */
export function checkFrequencies(name: string, value: unknown, count: number): Float64Array {
  return Float64Array.from(
    checkNumbers(name, value, isFloats, count, `${count} numbers (one a pair)`, (frequency, i) => {
      if (typeof frequency !== 'number' || !Number.isFinite(frequency))
        throw expected('ERR_ARGUMENT', `${name}[${i}]`, 'a finite number', frequency);
      return frequency;
    }),
  );
}

export function checkRope(name: string, value: unknown, headDim: number): CheckedRope {
  const rope = checkOptions(name, value as Rope, ropeNames);
  if (headDim % 2 !== 0) throw expected('ERR_SHAPE', name, 'an even head size, whose elements make pairs', headDim);
  const { pairing = 'half', firstPosition = 0 } = rope;
  return {
    frequencies: checkFrequencies(`${name}.frequencies`, rope.frequencies, headDim / 2),
    pairing: pairings[checkChoice(`${name}.pairing`, pairing, ['half', 'interleaved'])],
    firstPosition: checkPosition(`${name}.firstPosition`, firstPosition),
  };
}

export function checkRmsNorm(name: string, value: unknown, headDim: number): CheckedRmsNorm {
  const norm = checkOptions(name, value as RmsNormOptions, normNames);
  const { epsilon = 1e-6, gain, gainOrder = 'before-rotation' } = norm;
  const check = (factor: unknown, i: number): number => checkFinite(`${name}.gain[${i}]`, factor);
  const what = `${headDim} numbers (one an element)`;
  return {
    epsilon: checkFinite(`${name}.epsilon`, epsilon, 0),
    gain:
      gain === undefined ? null : Float32Array.from(checkNumbers(`${name}.gain`, gain, isFloats, headDim, what, check)),
    gainOrder: gainOrders[checkChoice(`${name}.gainOrder`, gainOrder, ['before-rotation', 'after-rotation'])],
  };
}

const isFloats = (value: unknown): boolean => types.isFloat32Array(value) || types.isFloat64Array(value);
