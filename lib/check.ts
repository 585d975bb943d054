import { types } from 'node:util';

import { expected, Text, typedArrayKind } from './errors';
import type { DataType, Tensor, TensorData } from './tensor';

const dataTypes: readonly DataType[] = ['float32', 'float16', 'bfloat16'];

/** A list of extents: non-negative whole numbers whose product is a safe integer. Returns it as it came. */
export function checkDims(name: string, dims: unknown, rank?: number): readonly number[] {
  const what = rank === undefined ? 'an array of whole numbers >= 0' : `an array of ${rank} whole numbers >= 0`;
  if (!Array.isArray(dims) || (rank !== undefined && dims.length !== rank))
    throw expected('ERR_SHAPE', name, what, dims);
  let product = 1;
  for (let axis = 0; axis < dims.length; axis++) {
    const extent = dims[axis];
    if (typeof extent !== 'number' || !Number.isSafeInteger(extent) || extent < 0 || Object.is(extent, -0)) {
      throw expected('ERR_SHAPE', name, what, dims);
    }
    product *= extent;
    if (product > Number.MAX_SAFE_INTEGER) {
      throw expected('ERR_SHAPE', name, `extents whose product is at most 2^53 - 1`, dims);
    }
  }
  return dims;
}

export function checkType(name: string, type: unknown): DataType {
  if (!dataTypes.includes(type as DataType))
    throw expected('ERR_TYPE', name, "'float32', 'float16' or 'bfloat16'", type);
  return type as DataType;
}

/** A plain object of named options; a name that is none of `known` is a mistake worth telling. */
export function checkOptions<T extends object>(
  name: string,
  options: T | undefined,
  known: ReadonlySet<string>,
): Partial<T> {
  if (options === undefined) return {};
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw expected('ERR_ARGUMENT', name, 'an object', options);
  }
  for (const key in options) {
    if (!known.has(key))
      throw expected('ERR_ARGUMENT', key, `no option of this name (known: ${[...known].join(', ')})`, options[key]);
  }
  return options;
}

/** Memory that native code may hold on to: neither shared between threads nor able to shrink under it. */
export function checkMemory(name: string, array: ArrayBufferView): void {
  const buffer = array.buffer as ArrayBuffer & { resizable?: boolean };
  if (types.isSharedArrayBuffer(buffer))
    throw expected('ERR_TYPE', name, 'memory that is not shared', new Text('a SharedArrayBuffer'));
  if (buffer.resizable === true)
    throw expected('ERR_TYPE', name, 'memory of a fixed size', new Text('a resizable ArrayBuffer'));
}

/** Checks that `data` is of the kind `type` says and holds as many elements as `dims` say. */
export function checkTensorData(name: string, { data, dims, type }: Tensor): void {
  if (type === 'float32') {
    if (!types.isFloat32Array(data)) throw expected('ERR_TYPE', name, `a Float32Array for type '${type}'`, data);
  } else if (!types.isUint16Array(data) && !(type === 'float16' && isFloat16Array(data))) {
    const kinds = type === 'float16' ? 'a Uint16Array or Float16Array' : 'a Uint16Array';
    throw expected('ERR_TYPE', name, `${kinds} for type '${type}'`, data);
  }
  let product = 1;
  for (const extent of dims) product *= extent;
  if (data.length !== product) {
    const detached = data.length === 0 ? ' (is its buffer detached?)' : '';
    throw expected(
      'ERR_SHAPE',
      name,
      `${product} elements for dims [${dims.join(', ')}]`,
      new Text(`${data.length}${detached}`),
    );
  }
  checkMemory(name, data as ArrayBufferView);
}

function isFloat16Array(data: unknown): boolean {
  return typedArrayKind(data) === 'Float16Array';
}

/** A tensor as native code takes it: bfloat16 and float16 as bits. */
export interface Operand {
  readonly data: Float32Array | Uint16Array;
  readonly dims: readonly number[];
  readonly type: DataType;
}

/** Checks a tensor of a given rank, or of any rank from 2 on. */
export function checkTensor(name: string, value: unknown, rank?: number): Operand {
  if (typeof value !== 'object' || value === null)
    throw expected('ERR_TYPE', name, 'a tensor { data, dims, type }', value);
  const { data, dims, type } = value as Tensor;
  const operand = { data, dims: checkDims(name, dims, rank), type: checkType(name, type) };
  if (rank === undefined && dims.length < 2) throw expected('ERR_SHAPE', name, 'at least 2 dims', dims);
  checkTensorData(name, operand);
  return { ...operand, data: asBits(data) };
}

function asBits(data: TensorData): Float32Array | Uint16Array {
  if (!isFloat16Array(data)) return data as Float32Array | Uint16Array;
  return new Uint16Array(data.buffer as ArrayBuffer, data.byteOffset, data.length);
}

/** The output of a call: the caller's `out` tensor, checked against what will be written and what will be read. */
export function checkOut(out: unknown, dims: readonly number[], inputs: readonly (ArrayBufferView | null)[]): Operand {
  const operand = checkTensor('out', out, dims.length);
  if (operand.dims.some((extent, axis) => extent !== dims[axis])) {
    throw expected('ERR_SHAPE', 'out', `dims [${dims.join(', ')}]`, operand.dims);
  }
  for (const input of inputs) {
    if (input !== null && overlap(operand.data, input)) {
      throw expected('ERR_ARGUMENT', 'out', 'memory that no input uses', new Text('a view that overlaps an input'));
    }
  }
  return operand;
}

function overlap(a: ArrayBufferView, b: ArrayBufferView): boolean {
  if (a.buffer !== b.buffer || a.byteLength === 0 || b.byteLength === 0) return false;
  return a.byteOffset < b.byteOffset + b.byteLength && b.byteOffset < a.byteOffset + a.byteLength;
}

/** A whole number in [low, high]. */
export function checkInteger(name: string, value: unknown, low: number, high = Number.MAX_SAFE_INTEGER): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < low || value > high) {
    const range =
      high === Number.MAX_SAFE_INTEGER ? `a whole number >= ${low}` : `a whole number from ${low} to ${high}`;
    throw expected('ERR_ARGUMENT', name, range, value);
  }
  return value;
}

/** A number that is finite in float32, which native code computes in, optionally at least `low`. */
export function checkFinite(name: string, value: unknown, low = -Infinity): number {
  if (typeof value !== 'number' || !Number.isFinite(Math.fround(value)) || value < low) {
    throw expected('ERR_ARGUMENT', name, `a finite float32${low === -Infinity ? '' : ` >= ${low}`}`, value);
  }
  return value;
}

export function checkBoolean(name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw expected('ERR_ARGUMENT', name, 'true or false', value);
  return value;
}

/** One of a few strings. */
export function checkChoice<T extends string>(name: string, value: unknown, choices: readonly T[]): T {
  if (!choices.includes(value as T)) {
    throw expected('ERR_ARGUMENT', name, choices.map((choice) => `'${choice}'`).join(' or '), value);
  }
  return value as T;
}

/** One length a sequence, each in [0, longest]. */
export function checkLengths(name: string, lengths: unknown, batch: number, longest: number): Int32Array {
  const list = Array.isArray(lengths) || types.isInt32Array(lengths) ? (lengths as ArrayLike<number>) : undefined;
  if (list === undefined || list.length !== batch) {
    throw expected('ERR_SHAPE', name, `${batch} lengths (one a sequence)`, lengths);
  }
  const result = new Int32Array(batch);
  for (let b = 0; b < batch; b++) result[b] = checkInteger(`${name}[${b}]`, list[b], 0, Math.min(longest, 0x7fffffff));
  return result;
}
