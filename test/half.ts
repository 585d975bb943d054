import type { DataType, Tensor } from '../lib/tensor';

/** A binary floating-point format: `fraction` explicit bits of significand, exponents biased by `bias`. */
interface Format {
  readonly fraction: number;
  readonly bias: number;
}

/** The formats of the element types. */
const formats: Readonly<Record<DataType, Format>> = {
  float32: { fraction: 23, bias: 127 },
  float16: { fraction: 10, bias: 15 },
  bfloat16: { fraction: 7, bias: 127 },
};

/** The value of a 16-bit pattern, exactly. */
export function decodeHalf(bits: number, type: 'float16' | 'bfloat16'): number {
  const { fraction, bias } = formats[type];
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits & 0x7fff) >> fraction;
  const significand = bits & ((1 << fraction) - 1);
  if (exponent === 2 * bias + 1) return significand === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * significand * 2 ** (1 - bias - fraction);
  return sign * (significand + (1 << fraction)) * 2 ** (exponent - bias - fraction);
}

/** The 16-bit pattern nearest to a value, ties to even; beyond the largest finite number, infinity. */
export function encodeHalf(value: number, type: 'float16' | 'bfloat16'): number {
  const { fraction, bias } = formats[type];
  const infinity = (2 * bias + 1) << fraction;
  if (Number.isNaN(value)) return infinity | (1 << (fraction - 1));
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  if (!Number.isFinite(value)) return sign | infinity;
  const magnitude = Math.abs(value);
  const exponent = Math.max(exponentOf(magnitude), 1 - bias);
  // In units of the last place a normal significand carries its leading one, which adds 1 to the exponent field:
  // so subnormals, normals and a carry into the next binade are one formula.
  const units = roundToEven(magnitude / 2 ** (exponent - fraction));
  return sign | Math.min((exponent + bias - 1) * 2 ** fraction + units, infinity);
}

/** The number of `type` nearest to `value`. */
export function round(value: number, type: DataType): number {
  return type === 'float32' ? Math.fround(value) : decodeHalf(encodeHalf(value, type), type);
}

/** Distance between neighbouring numbers of `type` at a finite `value`. */
export function ulp(value: number, type: DataType): number {
  const { fraction, bias } = formats[type];
  return 2 ** (Math.max(exponentOf(Math.abs(value)), 1 - bias) - fraction);
}

/** A tensor's values, exactly. */
export function toFloat64(tensor: Tensor): Float64Array {
  const { data, type } = tensor;
  // A Float16Array already reads as numbers; only raw bits need decoding.
  if (type === 'float32' || data[Symbol.toStringTag] === 'Float16Array') return Float64Array.from(data);
  const result = new Float64Array(data.length);
  for (let i = 0; i < result.length; i++) result[i] = decodeHalf(data[i], type);
  return result;
}

/** A tensor's values in float32, which holds every 16-bit number exactly. */
export function toFloat32(tensor: Tensor): Float32Array {
  return Float32Array.from(toFloat64(tensor));
}

const word = new DataView(new ArrayBuffer(8));

/** ⌊log₂ x⌋ of a finite x ≥ 0; numbers below float64's normal range count as −1023, far below every format here. */
function exponentOf(value: number): number {
  word.setFloat64(0, value);
  return ((word.getUint16(0) >> 4) & 0x7ff) - 1023;
}

function roundToEven(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}
