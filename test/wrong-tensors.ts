/** Tensors wrong in every way, made out of a right one. */
import type { DataType, Tensor } from '../lib/tensor';
import type { Refusal } from './refusal';

/** One way to be wrong. */
export interface Wrong extends Omit<Refusal, 'argument'> {
  readonly way: string;
  readonly value: unknown;
}

/** What is thrown by getters below. */
export const thrown = new Error('thrown by a getter');

const raise = () => {
  throw thrown;
};

const revoked = <T extends object>(target: T): T => {
  const { proxy, revoke } = Proxy.revocable(target, {});
  revoke();
  return proxy;
};

/** Values that are no object, with how messages show them. */
export const primitives: readonly (readonly [unknown, string])[] = [
  [undefined, 'undefined'],
  [null, 'null'],
  [5, '5'],
  [NaN, 'NaN'],
  [-0, '-0'],
  ['q', '"q"'],
  ['x'.repeat(1e6), `"${'x'.repeat(78)}…`],
  [true, 'true'],
  [10n, '10n'],
  [1n << 100_000n, 'a large BigInt'],
  [Symbol('q'), 'a symbol'],
  [() => 0, 'a function'],
];

/** Numbers no extent may be, with how messages show them. */
const wrongExtents: readonly (readonly [unknown, string])[] = [
  ['2', '"2"'],
  [null, 'null'],
  [undefined, 'undefined'],
  [NaN, 'NaN'],
  [Infinity, 'Infinity'],
  [-1, '-1'],
  [-0, '-0'],
  [1.5, '1.5'],
  [1e300, '1e+300'],
  [2 ** 53, '9007199254740992'],
  [2n, '2n'],
  [true, 'true'],
  [[2], 'Array'],
  [{ valueOf: () => 2 }, 'Object'],
  [Symbol('2'), 'a symbol'],
];

function noTensors(right: Tensor): Wrong[] {
  const type = (way: string, value: unknown, received?: string | RegExp): Wrong => ({
    way,
    value,
    code: 'ERR_TYPE',
    received,
  });
  return [
    ...primitives.map(([value, received]) => type(received, value, received)),
    type('an empty object', {}, 'an object'),
    type('an array', [[1, 2]], '[Array]'),
    type('its data alone', right.data, `Float32Array(${right.data.length})`),
    type('a promise of it', Promise.resolve(right), 'Promise'),
    type(
      'a revoked proxy of a function',
      revoked(() => 0),
      'a function',
    ),
  ];
}

function wrongDims(right: Tensor, rank: number | undefined): Wrong[] {
  const { dims } = right;
  const shape = (way: string, value: unknown, received?: string | RegExp): Wrong => ({
    way: `dims ${way}`,
    value: { ...right, dims: value },
    code: 'ERR_SHAPE',
    received,
  });
  const with_ = (axis: number, extent: unknown) => dims.map((own, i) => (i === axis ? extent : own));
  const result = [
    shape('missing', undefined, 'undefined'),
    shape('null', null, 'null'),
    shape('a number', 4, '4'),
    shape('a string', dims.join(), `"${dims.join()}"`),
    shape('like an array', Object.assign({ length: dims.length }, dims), 'an object'),
    shape('a typed array', Int32Array.from(dims), `Int32Array(${dims.length})`),
    shape('a revoked proxy', revoked([...dims]), 'an object that cannot be read'),
    // biome-ignore lint/suspicious/noSparseArray: the hole is meant
    shape('with a hole', [...dims.slice(0, -2), , dims.at(-1)], /^\[.*undefined.*\]$/),
    shape('all holes', new Array(dims.length), /^\[undefined.*\]$/),
    shape('of a billion holes', new Array(2 ** 32 - 1), /^\[undefined/),
    shape(
      'of too large a product',
      with_(0, 2 ** 53 - 1).map((extent, i) => (i === 0 ? extent : Number(extent) + 1)),
    ),
    shape(
      'of 2^32 each',
      dims.map(() => 2 ** 32),
    ),
    shape('larger than any memory', with_(0, 2 ** 40), String(right.data.length)),
    shape('none of what the data is', with_(0, dims[0] + 1), String(right.data.length)),
    shape('zero beside data', with_(0, 0), String(right.data.length)),
    shape(
      '65 of 1',
      Array.from({ length: 65 }, () => 1),
    ),
    ...dims.flatMap((_, axis) =>
      wrongExtents.map(([extent, shown]) =>
        shape(`with ${shown} at ${axis}`, with_(axis, extent), new RegExp(`^\\[.*${shown.replace('+', '\\+')}.*\\]$`)),
      ),
    ),
  ];
  if (rank !== undefined) {
    result.push(
      shape('empty', [], '[]'),
      shape('one too few', [dims[0] * dims[1], ...dims.slice(2)]),
      shape('one too many', [1, ...dims]),
    );
  }
  return result;
}

function wrongTypes(right: Tensor): Wrong[] {
  const wrong = (value: unknown, received: string | RegExp): Wrong => ({
    way: `type ${String(received)}`,
    value: { ...right, type: value },
    code: 'ERR_TYPE',
    received,
  });
  return [
    ...primitives.map(([value, received]) => wrong(value, received)),
    ...['float64', 'FLOAT32', ' float32', '', 'bool', 'int8'].map((type) => wrong(type, `"${type}"`)),
    wrong(['float32'], '["float32"]'),
    wrong(Object('float32'), 'String'),
    wrong('float16', `Float32Array(${right.data.length})`),
    wrong('bfloat16', `Float32Array(${right.data.length})`),
  ];
}

function wrongData(right: Tensor): Wrong[] {
  const { length } = right.data;
  const bytes = 4 * length;
  const wrong = (code: 'ERR_TYPE' | 'ERR_SHAPE', way: string, data: unknown, received: string | RegExp): Wrong => ({
    way: `data ${way}`,
    value: { ...right, data },
    code,
    received,
  });
  const resizable = (byteLength: number, maxByteLength: number): ArrayBuffer =>
    new (ArrayBuffer as unknown as new (length: number, options: object) => ArrayBuffer)(byteLength, { maxByteLength });
  const shrunk = resizable(bytes, bytes);
  const shrunkData = new Float32Array(shrunk, 0, length);
  (shrunk as unknown as { resize(to: number): void }).resize(4);
  const growable = new (SharedArrayBuffer as unknown as new (length: number, options: object) => SharedArrayBuffer)(
    bytes,
    {
      maxByteLength: 2 * bytes,
    },
  );
  return [
    ...primitives.map(([value, received]) => wrong('ERR_TYPE', received, value, received)),
    wrong('ERR_TYPE', 'a plain array', Array.from(right.data), /^\[/),
    wrong('ERR_TYPE', 'a DataView', new DataView(new ArrayBuffer(bytes)), `DataView(${bytes})`),
    wrong('ERR_TYPE', 'an ArrayBuffer', new ArrayBuffer(bytes), 'ArrayBuffer'),
    wrong('ERR_TYPE', 'a proxy of it', new Proxy(right.data, {}), /./),
    wrong('ERR_TYPE', 'like it', Object.create(Float32Array.prototype), /./),
    ...[
      Float64Array,
      Int8Array,
      Uint8Array,
      Uint8ClampedArray,
      Int16Array,
      Uint16Array,
      Int32Array,
      Uint32Array,
      BigInt64Array,
    ].map((Kind) => wrong('ERR_TYPE', Kind.name, new Kind(length), `${Kind.name}(${length})`)),
    wrong('ERR_SHAPE', 'one too short', new Float32Array(length - 1), `${length - 1}`),
    wrong('ERR_SHAPE', 'one too long', new Float32Array(length + 1), `${length + 1}`),
    wrong('ERR_SHAPE', 'empty', new Float32Array(0), '0'),
    wrong('ERR_SHAPE', 'detached', detached(Float32Array.from(right.data)), '0 (its buffer is detached)'),
    wrong('ERR_TYPE', 'shared', new Float32Array(new SharedArrayBuffer(bytes)), 'a SharedArrayBuffer'),
    wrong('ERR_TYPE', 'shared and growable', new Float32Array(growable), 'a SharedArrayBuffer'),
    wrong('ERR_TYPE', 'resizable', new Float32Array(resizable(bytes, bytes)), 'a resizable ArrayBuffer'),
    wrong(
      'ERR_TYPE',
      'part of a resizable',
      new Float32Array(resizable(2 * bytes, 4 * bytes), 4, length),
      'a resizable ArrayBuffer',
    ),
    wrong('ERR_TYPE', 'shrunk', shrunkData, 'a resizable ArrayBuffer'),
    // What lies over the built-in properties does not hide what is below.
    wrong(
      'ERR_TYPE',
      'shared, and lying',
      lying(new Float32Array(new SharedArrayBuffer(bytes))),
      'a SharedArrayBuffer',
    ),
    wrong(
      'ERR_TYPE',
      'resizable, and lying',
      lying(new Float32Array(resizable(bytes, bytes))),
      'a resizable ArrayBuffer',
    ),
    wrong('ERR_SHAPE', 'short, and lying', lying(new Float32Array(1), length), '1'),
  ];
}

/** Its memory is elsewhere from now on. */
export function detached(array: Float32Array): Float32Array {
  structuredClone(array.buffer, { transfer: [array.buffer as ArrayBuffer] });
  return array;
}

/** A typed array with properties put over the built-in ones. */
function lying(array: Float32Array, length = array.length): Float32Array {
  const buffer = new ArrayBuffer(4 * length);
  return Object.defineProperties(array, {
    length: { value: length },
    byteLength: { value: 4 * length },
    byteOffset: { value: 0 },
    buffer: { value: buffer },
  });
}

function unreadable(right: Tensor): Wrong[] {
  const wrong = (way: string, value: unknown, cause?: unknown): Wrong => ({
    way,
    value,
    code: 'ERR_ARGUMENT',
    received: 'an exception',
    cause,
  });
  return [
    ...(['data', 'dims', 'type'] as const).map((name) =>
      wrong(`a getter of ${name} that throws`, Object.defineProperty({ ...right }, name, { get: raise }), thrown),
    ),
    wrong('a proxy that throws', new Proxy(right, { get: raise }), thrown),
    wrong('a revoked proxy', revoked({ ...right })),
    wrong('dims that throw', { ...right, dims: new Proxy([...right.dims], { get: raise }) }, thrown),
    wrong(
      'an extent that throws',
      { ...right, dims: Object.defineProperty([...right.dims], right.dims.length - 1, { get: raise }) },
      thrown,
    ),
    {
      way: 'dims without an end',
      value: { ...right, dims: new Proxy([1], { get: (_, key) => (key === 'length' ? Infinity : 1) }) },
      code: 'ERR_SHAPE',
    },
  ];
}

/** Everything that can be wrong with a float32 tensor by itself. */
export function wrongTensors(right: Tensor, rank: number | undefined): Wrong[] {
  return [
    ...noTensors(right),
    ...wrongDims(right, rank),
    ...wrongTypes(right),
    ...wrongData(right),
    ...unreadable(right),
  ];
}

/** The same tensor in forms that must serve as well as a plain one. */
export function rightTensors(right: Tensor): { readonly way: string; readonly value: unknown }[] {
  const { data, dims, type } = right as Tensor<Float32Array>;
  class Accessors {
    get data(): Float32Array {
      return data;
    }
    get dims(): readonly number[] {
      return dims;
    }
    get type(): DataType {
      return type;
    }
  }
  const shifted = new Float32Array(data.length + 3).subarray(1, data.length + 1);
  shifted.set(data);
  let reads = 0;
  const inherited = class extends Float32Array {}.from(data);
  return [
    { way: 'a copy', value: { data: data.slice(), dims: [...dims], type } },
    { way: 'a view at an offset', value: { ...right, data: shifted } },
    { way: 'accessors of a class', value: new Accessors() },
    { way: 'frozen', value: Object.freeze({ ...right, dims: Object.freeze([...dims]) }) },
    { way: 'without a prototype', value: Object.assign(Object.create(null), right) },
    { way: 'with more beside', value: { ...right, location: 'cpu', size: data.length } },
    { way: 'a proxy', value: new Proxy(right, {}) },
    { way: 'dims in a proxy', value: { ...right, dims: new Proxy(dims, {}) } },
    { way: 'of a derived class', value: { ...right, data: inherited } },
    { way: 'lying data', value: { ...right, data: lying(Float32Array.from(data), 1) } },
    {
      way: 'different at every reading',
      value: Object.defineProperty({ ...right }, 'dims', { get: () => (reads++ % 100 === 0 ? [...dims] : [7]) }),
    },
  ];
}
