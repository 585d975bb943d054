import { checkDims, checkTensorData, checkType } from './check';
import { expected, guard, typedArrayKind } from './errors';

/** Element types of tensors. bfloat16 is held in a `Uint16Array`, float16 in a `Uint16Array` or a `Float16Array`. */
export type DataType = 'float32' | 'float16' | 'bfloat16';

/** The built-in `Float16Array` of newer engines, described here so that older type libraries can read this file. */
export interface Float16ArrayLike {
  readonly [Symbol.toStringTag]: 'Float16Array';
  readonly BYTES_PER_ELEMENT: number;
  readonly buffer: ArrayBufferLike;
  readonly byteLength: number;
  readonly byteOffset: number;
  readonly length: number;
  [index: number]: number;
}

/** Memory of a tensor. */
export type TensorData = Float32Array | Uint16Array | Float16ArrayLike;

/**
 * A dense row-major tensor: the last axis is contiguous. The shape is that of `onnxruntime-common`'s Tensor, so its
 * CPU tensors can be passed as they are.
 */
export interface Tensor<Data extends TensorData = TensorData> {
  /** Exactly as many elements as the product of `dims`. */
  readonly data: Data;
  /** Extents, outermost first; every one a non-negative integer. */
  readonly dims: readonly number[];
  /** How `data` is to be read. */
  readonly type: DataType;
}

/** A tensor of a known element type. */
export type TensorOf<Type extends DataType> = Type extends 'float32'
  ? Tensor<Float32Array> & { readonly type: Type }
  : Tensor<Uint16Array> & { readonly type: Type };

/** An attention mask: `'bool'` in a `Uint8Array` (1 = may see, 0 = may not) or additive `'float32'`. */
export type MaskTensor =
  | { readonly data: Uint8Array; readonly dims: readonly number[]; readonly type: 'bool' }
  | { readonly data: Float32Array; readonly dims: readonly number[]; readonly type: 'float32' };

/** A mask of `'bool'` in a `Uint8Array`: 1 = valid, 0 = hidden. */
export type BoolTensor = Extract<MaskTensor, { readonly type: 'bool' }>;

/** Kinds of arrays a tensor may lie in, and the element types they stand for. */
const inferredTypes: ReadonlyMap<string | undefined, DataType | 'uint16'> = new Map([
  ['Float32Array', 'float32'],
  ['Float16Array', 'float16'],
  ['Uint16Array', 'uint16'],
]);

/**
 * Wraps an array as a tensor, without copying.
 *
 * @param data `Float32Array`, `Float16Array`, or `Uint16Array` (which must say its `type`)
 * @param dims extents, outermost first; their product must be `data.length`
 * @param type defaults from the array's kind
 * @throws AttentionError ERR_TYPE, ERR_SHAPE
 */
export function tensor(data: Float32Array, dims: readonly number[], type?: 'float32'): TensorOf<'float32'>;
export function tensor(data: Float16ArrayLike, dims: readonly number[], type?: 'float16'): Tensor;
export function tensor<Type extends 'float16' | 'bfloat16'>(
  data: Uint16Array,
  dims: readonly number[],
  type: Type,
): TensorOf<Type>;
export function tensor(data: TensorData, dims: readonly number[], type?: DataType): Tensor;
export function tensor(data: TensorData, dims: readonly number[], type?: DataType): Tensor {
  return guard(tensor, () => {
    const inferred = inferredTypes.get(typedArrayKind(data));
    if (inferred === undefined) throw expected('ERR_TYPE', 'data', 'a Float32Array, Float16Array or Uint16Array', data);
    if (type === undefined && inferred === 'uint16')
      throw expected('ERR_TYPE', 'type', "'float16' or 'bfloat16' beside a Uint16Array", type);
    const result = {
      data,
      dims: Object.freeze(checkDims('dims', dims)),
      type: checkType('type', type === undefined ? inferred : type),
    };
    checkTensorData('data', result);
    return result;
  });
}

/**
 * A new tensor filled with zeros.
 *
 * @param dims extents, outermost first
 * @param type default `'float32'`; the 16-bit types are held in a `Uint16Array`
 * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_MEMORY
 */
export function zeros<Type extends DataType = 'float32'>(dims: readonly number[], type?: Type): TensorOf<Type>;
export function zeros(dims: readonly number[], type: DataType = 'float32'): Tensor {
  return guard(zeros, () => allocate('dims', checkDims('dims', dims), checkType('type', type)));
}

/** Allocates without checking: dims are known to be whole numbers >= 0. `name` is what the error is about. */
export function allocate(name: string, dims: readonly number[], type: DataType): Tensor {
  let length = 1;
  for (const extent of dims) length *= extent;
  try {
    return { data: type === 'float32' ? new Float32Array(length) : new Uint16Array(length), dims, type };
  } catch (cause) {
    throw expected('ERR_MEMORY', name, 'dims that can be allocated', dims, { cause });
  }
}

/** Options of {@link randomNormal}. */
export interface RandomNormalOptions {
  /** Any integer from 0 to 2³² − 1; the same seed gives the same tensor on every machine. Default 0. */
  readonly seed?: number;
  /** Element type. Default `'float32'`. */
  readonly type?: DataType;
}
