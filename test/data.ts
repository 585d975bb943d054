import type { DataType, MaskTensor, Tensor } from '../lib/tensor';
import { encodeHalf } from './half';
import type { Layout } from './problem';

/** Lengths that are no multiple of any tile or vector. */
export const oddLengths = [1, 3, 63, 113, 203, 1023] as const;

/** Head sizes: one, below and at and above a vector's multiple, and the usual ones. */
export const headSizes = [1, 60, 64, 96, 128, 256] as const;

/** [query heads, key/value heads]: MHA, GQA with an even and an odd group, MQA. */
export const headRatios = [
  [3, 3],
  [4, 2],
  [6, 2],
  [5, 1],
] as const;

export const types: readonly DataType[] = ['float32', 'float16', 'bfloat16'];

/** Uniform numbers in (0, 1] from a 32-bit seed (splitmix32), independent of the generator in lib. */
export function uniform(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let x = state ^ (state >>> 16);
    x = Math.imul(x, 0x21f0aaad);
    x ^= x >>> 15;
    x = Math.imul(x, 0x735a2d97);
    return (((x ^ (x >>> 15)) >>> 0) + 1) / 2 ** 32;
  };
}

/** Standard normal data. */
export function normal(dims: readonly number[], seed: number, type: DataType = 'float32'): Tensor {
  const next = uniform(seed);
  return filled(dims, type, () => Math.sqrt(-2 * Math.log(next())) * Math.cos(2 * Math.PI * next()));
}

/**
 * A tensor of the given values, which lies in a larger buffer that is NaN all around: a kernel that lets what it read
 * past an edge into its sums is found out. The margin also puts the data at no vector's alignment.
 */
export function filled(dims: readonly number[], type: DataType, value: (index: number) => number): Tensor {
  const { data } = within(dims, type, encode(NaN, type));
  for (let i = 0; i < data.length; i++) data[i] = type === 'float32' ? value(i) : encodeHalf(value(i), type);
  return { data, dims, type };
}

/** A tensor of these values. */
export function from(values: ArrayLike<number>, dims: readonly number[], type: DataType = 'float32'): Tensor {
  return filled(dims, type, (i) => values[i]);
}

const margin = 67;

/** Raw bits of a value. */
function encode(value: number, type: DataType): number {
  if (type !== 'float32') return encodeHalf(value, type);
  return new Uint32Array(Float32Array.of(value).buffer)[0];
}

/** A view in the middle of a buffer whose every element has the bits `fill`. */
function within(dims: readonly number[], type: DataType, fill: number) {
  const size = dims.reduce((a, b) => a * b, 1);
  const bits = type === 'float32' ? new Uint32Array(size + 2 * margin) : new Uint16Array(size + 2 * margin);
  bits.fill(fill);
  const offset = margin * bits.BYTES_PER_ELEMENT;
  const data =
    type === 'float32' ? new Float32Array(bits.buffer, offset, size) : new Uint16Array(bits.buffer, offset, size);
  return { bits, data };
}

// Quiet NaNs that no arithmetic makes by itself, so that one left over, or one carried along from reading the output
// before writing it, is told from a NaN the kernel computed.
const prefill: Readonly<Record<DataType, number>> = { float32: 0xffc5a5a5, float16: 0xfe5a, bfloat16: 0xffda };
const sentinel: Readonly<Record<DataType, number>> = { float32: 0x5ca1ab1e, float16: 0x5ca1, bfloat16: 0x5ca1 };

/** An output to write into, and the check that all of it and nothing beside it was written. */
export interface Guarded {
  readonly tensor: Tensor;
  /** @throws Error when an element beside the tensor changed or one inside was not written */
  readonly check: () => void;
}

/** A tensor full of NaN between two guards. */
export function guarded(dims: readonly number[], type: DataType = 'float32'): Guarded {
  const { bits, data } = within(dims, type, sentinel[type]);
  const inside = bits.subarray(margin, margin + data.length);
  inside.fill(prefill[type]);
  return {
    tensor: { data, dims, type },
    check: () => {
      const outside = bits.findIndex((word, i) => (i < margin || i >= margin + data.length) && word !== sentinel[type]);
      if (outside >= 0) {
        throw new Error(`element ${outside - margin} of an output of ${data.length} was written`);
      }
      const left = inside.indexOf(prefill[type]);
      if (left >= 0) throw new Error(`element ${left} of an output of ${data.length} was not written`);
    },
  };
}

/** The extents of one attention call. */
export interface Shape {
  readonly batch?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly queries: number;
  readonly keys: number;
  readonly headDim: number;
  readonly valueDim?: number;
  readonly layout?: Layout;
}

export interface Inputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
}

/** The dims of the three inputs. */
export function inputDims(shape: Shape): { q: number[]; k: number[]; v: number[] } {
  const { batch = 1, heads = 1, kvHeads = heads, queries, keys, headDim, valueDim = headDim, layout = 'bhld' } = shape;
  const dims = (h: number, l: number, d: number) => (layout === 'bhld' ? [batch, h, l, d] : [batch, l, h, d]);
  return { q: dims(heads, queries, headDim), k: dims(kvHeads, keys, headDim), v: dims(kvHeads, keys, valueDim) };
}

/** Normal queries, keys and values. */
export function normalInputs(shape: Shape, seed: number, type: DataType = 'float32'): Inputs {
  const dims = inputDims(shape);
  return { q: normal(dims.q, seed, type), k: normal(dims.k, seed + 1, type), v: normal(dims.v, seed + 2, type) };
}

/** Makes inputs of layout 'bhld' with a flaw in mind. */
export type Hurt = (shape: Shape, seed: number, type?: DataType) => Inputs;

/** Data that breaks kernels which pass on normal data. Layout 'bhld' only. */
export const hurtful: Readonly<Record<string, Hurt>> = {
  /** One key a hundred times the others: its weight is 1 or 0, and the running maximum jumps in mid-sequence. */
  'one huge logit': (shape, seed, type = 'float32') => {
    const huge = Math.floor(shape.keys / 2);
    const { q, v } = normalInputs(shape, seed, type);
    const plain = normal(inputDims(shape).k, seed + 1);
    const k = filled(plain.dims, type, (i) =>
      Math.floor(i / shape.headDim) % shape.keys === huge ? 100 * plain.data[i] : plain.data[i],
    );
    return { q, k, v };
  },

  /** Every key the same: the output is the mean of the values. */
  'all equal': (shape, seed, type = 'float32') => {
    const dims = inputDims(shape);
    return { q: filled(dims.q, type, () => 1), k: filled(dims.k, type, () => 0.5), v: normal(dims.v, seed, type) };
  },

  /** Products that cancel: partial sums of q · k are far larger than the sum. */
  'alternating signs': (shape, seed, type = 'float32') => {
    const dims = inputDims(shape);
    const next = uniform(seed);
    return {
      q: filled(dims.q, type, () => 4 + next()),
      k: filled(dims.k, type, (i) => (i % 2 === 0 ? 1 : -1) * (4 + next())),
      v: filled(dims.v, type, (i) => (i % 2 === 0 ? 1 : -1) * next()),
    };
  },

  /** All logits near −200: without the maximum subtracted every exponential underflows. */
  'very negative logits': (shape, seed, type) => shifted(shape, seed, -200, type),

  /** All logits near 200: without the maximum subtracted every exponential overflows. */
  'very positive logits': (shape, seed, type) => shifted(shape, seed, 200, type),

  /** Logits that rise from key to key: the running maximum changes in every tile. */
  'rising logits': (shape, seed, type = 'float32') => ramp(shape, seed, (key) => (16 * key) / shape.keys, type),

  /** Logits that fall from key to key: the maximum is found first and the rest fades. */
  'falling logits': (shape, seed, type = 'float32') => ramp(shape, seed, (key) => (-16 * key) / shape.keys, type),
};

function shifted(shape: Shape, seed: number, shift: number, type: DataType = 'float32'): Inputs {
  return ramp(shape, seed, () => shift, type);
}

/** Normal data plus, through the first coordinate, a logit of the key's position. */
function ramp(shape: Shape, seed: number, logit: (key: number) => number, type: DataType): Inputs {
  const dims = inputDims(shape);
  const { headDim, keys } = shape;
  const [q, k] = [normal(dims.q, seed), normal(dims.k, seed + 1)];
  return {
    q: filled(dims.q, type, (i) => (i % headDim === 0 ? 4 : q.data[i])),
    k: filled(dims.k, type, (i) =>
      i % headDim === 0 ? (logit(Math.floor(i / headDim) % keys) * Math.sqrt(headDim)) / 4 : k.data[i],
    ),
    v: normal(dims.v, seed + 2, type),
  };
}

/** A bool mask with about `density` of the keys visible; of every seventh row none, the last row among them. */
export function boolMask(dims: readonly number[], seed: number, density = 0.6): MaskTensor {
  const next = uniform(seed);
  const keys = dims.at(-1) as number;
  const rows = dims.slice(0, -1).reduce((a, b) => a * b, 1);
  const emptyRow = (row: number) => rows > 1 && row % 7 === (rows - 1) % 7;
  const data = Uint8Array.from({ length: rows * keys }, (_, i) =>
    Number(next() < density && !emptyRow(Math.floor(i / keys))),
  );
  return { data, dims, type: 'bool' };
}

/** An additive mask of normal numbers with −Infinity where {@link boolMask} hides. */
export function additiveMask(dims: readonly number[], seed: number, density = 0.6): MaskTensor {
  const visible = boolMask(dims, seed, density).data;
  const numbers = normal(dims, seed + 1).data as Float32Array;
  return { data: numbers.map((value, i) => (visible[i] ? value : -Infinity)), dims, type: 'float32' };
}

/** The tensor with NaN at every position from its sequence's length on. */
export function poisonPast(tensor: Tensor, lengths: ArrayLike<number>, layout: Layout = 'bhld'): Tensor {
  const { dims, type } = tensor;
  const [, outer, inner, dim] = dims;
  const nan = type === 'float32' ? NaN : encodeHalf(NaN, type);
  const copy = guardlessCopy(tensor);
  for (let i = 0; i < copy.data.length; i++) {
    const row = Math.floor(i / dim);
    const position = layout === 'bhld' ? row % inner : Math.floor(row / inner) % outer;
    const sequence = Math.floor(row / (outer * inner));
    if (position >= lengths[sequence]) copy.data[i] = nan;
  }
  return copy;
}

/** An independent copy with the same bits. */
function guardlessCopy({ data, dims, type }: Tensor): Tensor & { data: Float32Array | Uint16Array } {
  return { data: type === 'float32' ? Float32Array.from(data) : Uint16Array.from(data), dims, type };
}

/** The same tensor with its head and length axes exchanged: 'bhld' to 'blhd' and back. */
export function swapLayout({ data, dims, type }: Tensor): Tensor {
  const [batch, outer, inner, dim] = dims;
  const result = guardlessCopy({ data, dims: [batch, inner, outer, dim], type });
  for (let b = 0; b < batch; b++) {
    for (let x = 0; x < outer; x++) {
      for (let y = 0; y < inner; y++) {
        const [to, source] = [((b * inner + y) * outer + x) * dim, ((b * outer + x) * inner + y) * dim];
        for (let d = 0; d < dim; d++) result.data[to + d] = data[source + d];
      }
    }
  }
  return result;
}

/** The elements [start, end) of one axis. */
export function slice({ data, dims, type }: Tensor, axis: number, start: number, end: number): Tensor {
  const inner = dims.slice(axis + 1).reduce((a, b) => a * b, 1);
  const sliced = dims.map((extent, i) => (i === axis ? end - start : extent));
  const length = sliced.reduce((a, b) => a * b, 1);
  const result = type === 'float32' ? new Float32Array(length) : new Uint16Array(length);
  const chunk = (end - start) * inner;
  for (let to = 0; to < length; to++) {
    result[to] = data[Math.floor(to / chunk) * dims[axis] * inner + start * inner + (to % chunk)];
  }
  return { data: result, dims: sliced, type };
}
