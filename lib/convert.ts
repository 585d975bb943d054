import { type Call, type CallOptions, nothing, runSync } from './call';
import { asBits, checkAnyTensor, checkDims, checkOptions, checkType, type Operand } from './check';
import { expected, guard } from './errors';
import { addon, typeNumbers } from './native';
import { checkSeed, normals } from './random';
import { view } from './read';
import { allocate, type DataType, type RandomNormalOptions, type Tensor, type TensorOf } from './tensor';

/**
 * A copy of a tensor in another element type, rounded to nearest with ties to even.
 *
 * @param source a tensor of any dims
 * @param type element type of the copy; beyond the largest number of float16 lies infinity
 * @returns a tensor of the same dims; 16-bit types are held in a `Uint16Array`
 * @throws AttentionError ERR_TYPE, ERR_SHAPE, ERR_MEMORY
 */
export function cast<Type extends DataType>(source: Tensor, type: Type): TensorOf<Type>;
export function cast(source: Tensor, type: DataType): Tensor {
  return runSync(cast, () => {
    const tensor = checkAnyTensor('source', source);
    const target = allocate('source', tensor.dims, checkType('type', type));
    return convertCall({ ...tensor, data: asBits(tensor.data) }, target as Operand, {});
  }) as Tensor;
}

/** The native call that writes a tensor into another of as many elements, in its element type. */
export function convertCall(source: Operand, target: Operand, options: CallOptions): Call<Operand> {
  const count = view.length(source.data);
  return {
    op: count === 0 ? nothing : addon.convert,
    operands: [source.data, target.data],
    numbers: Float64Array.of(typeNumbers[source.type], typeNumbers[target.type], count),
    options,
    result: target,
  };
}

/** A tensor's numbers in float32: its own memory if that is its type. */
export function float32Of(source: Tensor): Float32Array {
  return (source.type === 'float32' ? source : cast(source, 'float32')).data as Float32Array;
}

/**
 * {@link cast} of numbers that must stay finite.
 *
 * @throws AttentionError ERR_ARGUMENT about `name`, what chose the type
 */
export function castFinite(name: string, source: Tensor, type: DataType): Tensor {
  const result = source.type === type ? source : cast(source, type);
  const values = float32Of(result);
  // A loop of its own: a function called for each of millions takes seconds.
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i])) continue;
    throw expected('ERR_ARGUMENT', name, 'an element type that the weights are not too large for', type);
  }
  return result;
}

const randomNormalOptions: ReadonlySet<string> = new Set(['seed', 'type']);

/**
 * A tensor of independent standard normal numbers: xoshiro128** (Blackman & Vigna 2018, arXiv 1805.01407) seeded by
 * splitmix32, turned normal by the Box-Muller transform.
 *
 * @param dims extents, outermost first
 * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_MEMORY
 */
export function randomNormal(dims: readonly number[], options?: RandomNormalOptions): Tensor;
export function randomNormal<Type extends DataType = 'float32'>(
  dims: readonly number[],
  options?: RandomNormalOptions & { readonly type?: Type },
): TensorOf<Type>;
export function randomNormal(dims: readonly number[], options?: RandomNormalOptions): Tensor {
  return guard(randomNormal, () => {
    const { seed = 0, type = 'float32' } = checkOptions('options', options, randomNormalOptions);
    const next = normals(checkSeed(seed));
    const wanted = checkType('type', type);
    const result = allocate('dims', checkDims('dims', dims), 'float32') as TensorOf<'float32'>;
    const { data } = result;
    for (let i = 0; i < data.length; i++) data[i] = next();
    return wanted === 'float32' ? result : cast(result, wanted);
  });
}
