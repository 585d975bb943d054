import { types } from 'node:util';

import { expected, Text, tagOf, typedArrayKind } from './errors';
import { attempt, isArray, isDetached, isResizable, readList, unreadable, view } from './read';
import type { DataType, Tensor, TensorData, TensorOf } from './tensor';

export const dataTypes: readonly DataType[] = ['float32', 'float16', 'bfloat16'];

/** More axes than anyone has; it bounds the work of reading them. */
const mostDims = 64;

/** A list of extents: non-negative whole numbers whose product is a safe integer. Returns a copy. */
export function checkDims(name: string, dims: unknown, rank?: number): number[] {
  const what = rank === undefined ? 'dims of whole numbers >= 0' : `dims of ${rank} whole numbers >= 0`;
  const fits = (length: number): boolean => (rank === undefined ? length <= mostDims : length === rank);
  const copy = isArray(dims) ? readList(name, dims, fits, (extent) => extent) : undefined;
  if (copy === undefined) throw expected('ERR_SHAPE', name, what, dims);
  let product = 1;
  for (const extent of copy) {
    if (typeof extent !== 'number' || !Number.isSafeInteger(extent) || extent < 0 || Object.is(extent, -0)) {
      throw expected('ERR_SHAPE', name, what, copy);
    }
    product *= extent;
    if (product > Number.MAX_SAFE_INTEGER) {
      throw expected('ERR_SHAPE', name, 'dims whose product is at most 2^53 - 1', copy);
    }
  }
  return copy as number[];
}

export function checkType(name: string, type: unknown): DataType {
  if (!dataTypes.includes(type as DataType))
    throw expected('ERR_TYPE', name, "type 'float32', 'float16' or 'bfloat16'", type);
  return type as DataType;
}

/**
 * A copy of named options; a name that is none of `known` is a mistake worth telling. An undefined one is not given.
 *
 * @param refused options of other methods that this one cannot have: what it has instead, and why
 */
export function checkOptions<T extends object>(
  name: string,
  options: T | undefined,
  known: ReadonlySet<string>,
  refused: Readonly<Record<string, string>> = {},
): Partial<T> {
  if (options === undefined) return {};
  // A Map or a Promise has no options in it, which is hardly what was meant.
  const plain = typeof options === 'object' && options !== null && !isArray(options);
  if (!plain || attempt(name, () => tagOf(options)) !== 'Object')
    throw expected('ERR_ARGUMENT', name, 'an object', options);
  const copy: Record<string, unknown> = {};
  const take = (key: string, value: unknown): void => {
    if (value === undefined) return;
    if (Object.hasOwn(refused, key)) throw expected('ERR_UNSUPPORTED', key, refused[key] as string, value);
    copy[key] = value;
  };
  let reading = name;
  try {
    for (const key in options) {
      reading = key;
      const value: unknown = options[key];
      if (!known.has(key) && !Object.hasOwn(refused, key))
        throw expected('ERR_ARGUMENT', key, `no option of this name (known: ${[...known].join(', ')})`, value);
      take(key, value);
    }
    // Accessors of a class do not count in the loop above.
    const prototype = Object.getPrototypeOf(options);
    if (prototype !== null && prototype !== Object.prototype) {
      for (const key of [...known, ...Object.keys(refused)]) {
        reading = key;
        if (!Object.hasOwn(copy, key)) take(key, options[key as keyof T]);
      }
    }
  } catch (error) {
    throw unreadable(reading, error);
  }
  return copy as Partial<T>;
}

/** Memory that native code may hold on to: neither shared between threads nor able to shrink under it. */
export function checkMemory(name: string, array: ArrayBufferView): void {
  const buffer = view.buffer(array);
  if (types.isSharedArrayBuffer(buffer))
    throw expected('ERR_TYPE', name, 'memory that is not shared', new Text('a SharedArrayBuffer'));
  if (isResizable(buffer))
    throw expected('ERR_TYPE', name, 'memory of a fixed size', new Text('a resizable ArrayBuffer'));
}

/** Checks memory against dims: as many elements as they say, where native code may hold on to them. */
export function checkExtent(name: string, data: ArrayBufferView, dims: readonly number[]): void {
  checkMemory(name, data);
  let product = 1;
  for (const extent of dims) product *= extent;
  const length = view.length(data);
  if (length !== product) {
    const detached = isDetached(data) ? ' (its buffer is detached)' : '';
    throw expected(
      'ERR_SHAPE',
      name,
      `${product} elements for dims [${dims.join(', ')}]`,
      new Text(`${length}${detached}`),
    );
  }
}

/** Checks that `data` is of the kind `type` says and holds as many elements as `dims` say. */
export function checkTensorData(name: string, { data, dims, type }: Tensor): void {
  if (type === 'float32') {
    if (!types.isFloat32Array(data)) throw expected('ERR_TYPE', name, `a Float32Array for type '${type}'`, data);
  } else if (!types.isUint16Array(data) && !(type === 'float16' && isFloat16Array(data))) {
    const kinds = type === 'float16' ? 'a Uint16Array or Float16Array' : 'a Uint16Array';
    throw expected('ERR_TYPE', name, `${kinds} for type '${type}'`, data);
  }
  checkExtent(name, data as ArrayBufferView, dims);
}

function isFloat16Array(data: unknown): boolean {
  return typedArrayKind(data) === 'Float16Array';
}

/** Reads an object's `data`, `dims` and `type`, each once. */
export function readTensor(name: string, value: unknown): { data: unknown; dims: unknown; type: unknown } {
  if (typeof value !== 'object' || value === null)
    throw expected('ERR_TYPE', name, 'a tensor { data, dims, type }', value);
  const tensor = attempt(name, () => {
    const { data, dims, type } = value as Tensor;
    return { data, dims, type };
  });
  // An array by itself, say; better told than that its dims are missing.
  if (tensor.dims === undefined && tensor.type === undefined)
    throw expected('ERR_TYPE', name, 'a tensor { data, dims, type }', value);
  return tensor;
}

/** A tensor as native code takes it: bfloat16 and float16 as bits. */
export interface Operand {
  readonly data: Float32Array | Uint16Array;
  readonly dims: readonly number[];
  readonly type: DataType;
}

/** Checks a tensor of any rank. */
export function checkAnyTensor(name: string, value: unknown, rank?: number): Tensor {
  const given = readTensor(name, value);
  const tensor = {
    data: given.data as TensorData,
    dims: checkDims(name, given.dims, rank),
    type: checkType(name, given.type),
  };
  checkTensorData(name, tensor);
  return tensor;
}

/** Checks a tensor of a given rank, or of any rank from 2 on. */
export function checkTensor(name: string, value: unknown, rank?: number): Operand {
  const tensor = checkAnyTensor(name, value, rank);
  if (tensor.dims.length < 2) throw expected('ERR_SHAPE', name, 'at least 2 dims', tensor.dims);
  return { data: asBits(tensor.data), dims: tensor.dims, type: tensor.type };
}

/** Checks a tensor of type `'float32'`, the only one that numbers beside queries, keys and values may have. */
export function checkFloat32(name: string, value: unknown, rank?: number): TensorOf<'float32'> {
  const tensor = checkAnyTensor(name, value, rank);
  if (tensor.type !== 'float32') throw expected('ERR_TYPE', name, "type 'float32'", tensor.type);
  return tensor as TensorOf<'float32'>;
}

/** The same memory as native code takes it. */
export function asBits(data: TensorData): Float32Array | Uint16Array {
  if (!isFloat16Array(data)) return data as Float32Array | Uint16Array;
  const array = data as unknown as ArrayBufferView;
  return new Uint16Array(view.buffer(array), view.byteOffset(array), view.length(array));
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
  if (view.buffer(a) !== view.buffer(b) || view.byteLength(a) === 0 || view.byteLength(b) === 0) return false;
  const [startA, startB] = [view.byteOffset(a), view.byteOffset(b)];
  return startA < startB + view.byteLength(b) && startB < startA + view.byteLength(a);
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

/** A list of so many numbers, plain or in a typed array of one kind; makes a number of each. */
export function checkNumbers(
  name: string,
  list: unknown,
  isTyped: (value: unknown) => boolean,
  count: number,
  what: string,
  make: (item: unknown, index: number) => number,
): number[] {
  const fits = (length: number): boolean => length === count;
  const numbers = isArray(list) || isTyped(list) ? readList(name, list, fits, make) : undefined;
  if (numbers === undefined) throw expected('ERR_SHAPE', name, what, list);
  return numbers;
}

/** An optional mask of exactly these dims; null if it is not given. */
export function checkBoolTensor(name: string, value: unknown, dims: readonly number[]): Uint8Array | null {
  if (value === undefined) return null;
  const given = readTensor(name, value);
  if (given.type !== 'bool') throw expected('ERR_TYPE', name, "type 'bool'", given.type);
  if (!types.isUint8Array(given.data)) throw expected('ERR_TYPE', name, "a Uint8Array for type 'bool'", given.data);
  const found = checkDims(name, given.dims);
  if (found.length !== dims.length || found.some((extent, axis) => extent !== dims[axis]))
    throw expected('ERR_SHAPE', name, `dims [${dims.join(', ')}]`, found);
  checkExtent(name, given.data, dims);
  return given.data;
}

/** One length a sequence, each in [0, longest]. */
export function checkLengths(name: string, lengths: unknown, batch: number, longest: number): Int32Array {
  const most = Math.min(longest, 0x7fffffff);
  const check = (length: unknown, b: number): number => checkInteger(`${name}[${b}]`, length, 0, most);
  return Int32Array.from(
    checkNumbers(name, lengths, types.isInt32Array, batch, `${batch} lengths (one a sequence)`, check),
  );
}
