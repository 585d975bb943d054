import type { DataType, Tensor } from '../lib/tensor';
import { round, toFloat64, ulp } from './half';

/** What a kernel's result is held against. */
export interface Expected {
  /** The float64 answer. */
  readonly values: Float64Array;
  readonly dims: readonly number[];
  /** The same by the naive form in the kernel's own precision. Left out, only the floor remains. */
  readonly naive?: ArrayLike<number>;
  /**
   * What rounding errors of each value are relative to: the sum of the absolute values of its terms. A value without
   * terms (0) must be met exactly. Default: the largest value of the row.
   */
  readonly scale?: ArrayLike<number>;
  /** Length of the sums behind one value. */
  readonly terms: number;
  /** Precision of the arithmetic. Default `'float32'`. */
  readonly precision?: DataType;
}

/**
 * The floor in units of eps · √terms · scale: a few correctly rounded operations, and an exponential within two units
 * in the last place. eps is float32's spacing at 1.
 */
const floorUnits = 1;

/** Data on which the naive form loses more than this would excuse anything. */
const worstNaive = 0.01;

/**
 * Holds every element of `actual` against the reference. The tolerance of an element is
 * 2 × (largest relative error of the naive form) × scale + floor · eps · √terms · scale, and half a unit in the last
 * place of a 16-bit output. NaN and infinity pass only where the reference has the same.
 *
 * @returns the largest share of its tolerance that any element used, 0 to 1
 * @throws Error naming the worst element
 */
export function compare(actual: Tensor, expected: Expected, label = 'result'): number {
  const { values, dims, terms } = expected;
  if (actual.dims.length !== dims.length || dims.some((extent, axis) => extent !== actual.dims[axis])) {
    throw new Error(`${label}: dims [${actual.dims.join(', ')}], expected [${dims.join(', ')}]`);
  }
  const size = dims.reduce((a, b) => a * b, 1);
  if (actual.data.length !== size || values.length !== size) {
    throw new Error(`${label}: ${actual.data.length} elements and ${values.length} in the reference, expected ${size}`);
  }

  const found = toFloat64(actual);
  const scale = expected.scale ?? rowScale(values, dims.at(-1) ?? 1);
  const precision = expected.precision ?? 'float32';
  const relative = 2 * naiveError(expected, scale, label) + floorUnits * ulp(1, precision) * Math.sqrt(terms);
  const tolerance = (i: number) => {
    const budget = scale[i] === 0 ? 0 : relative * scale[i];
    return actual.type === 'float32' ? budget : budget + ulp(Math.abs(values[i]) + budget, actual.type) / 2;
  };

  let worst = -1;
  let worstShare = 0;
  let failures = 0;
  for (let i = 0; i < size; i++) {
    const share = shareUsed(found[i], values[i], tolerance(i), actual.type);
    if (share > 1) failures++;
    if (share > worstShare) [worst, worstShare] = [i, share];
  }
  if (failures > 0) {
    throw new Error(
      `${label}: ${failures} of ${size} elements are out of tolerance; worst at ${place(worst, dims)}: ` +
        `found ${found[worst]}, expected ${values[worst]}, tolerance ${tolerance(worst).toExponential(3)}, ` +
        `${(100 * worstShare).toFixed(0)} % of it used`,
    );
  }
  return worstShare;
}

/** How much of its tolerance one element uses; infinite for a number that no tolerance excuses. */
function shareUsed(found: number, value: number, tolerance: number, type: DataType): number {
  if (Object.is(found, value)) return 0;
  // A finite answer too large for the output's type must come out as the infinity it rounds to.
  const rounded = round(value, type);
  if (!Number.isFinite(rounded)) return Object.is(found, rounded) ? 0 : Infinity;
  // Written so that NaN fails: it compares false with everything. A tolerance that is no number excuses nothing.
  const error = Math.abs(found - value);
  if (!(error < Infinity)) return Infinity;
  if (error === 0) return 0;
  if (!(tolerance < Infinity)) return Infinity;
  return error / tolerance;
}

/** The largest error of the naive form, relative to scale. */
function naiveError({ naive, values }: Expected, scale: ArrayLike<number>, label: string): number {
  if (naive === undefined) return 0;
  if (naive.length !== values.length) throw new Error(`${label}: the naive form has ${naive.length} elements`);
  let largest = 0;
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i]) || values[i] === naive[i]) continue;
    const error = Math.abs(naive[i] - values[i]) / scale[i];
    if (!(error <= worstNaive)) {
      throw new Error(`${label}: unfit data: the naive form gives ${naive[i]} for ${values[i]} at element ${i}`);
    }
    largest = Math.max(largest, error);
  }
  return largest;
}

function rowScale(values: Float64Array, width: number): Float64Array {
  const scale = new Float64Array(values.length);
  for (let start = 0; start < values.length; start += width) {
    const row = values.subarray(start, start + width);
    scale.fill(
      row.reduce((most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most), 0),
      start,
      start + width,
    );
  }
  return scale;
}

function place(index: number, dims: readonly number[]): string {
  const at: number[] = [];
  let rest = index;
  for (const extent of dims.toReversed()) {
    at.unshift(rest % extent);
    rest = Math.floor(rest / extent);
  }
  return `[${at.join(', ')}]`;
}
