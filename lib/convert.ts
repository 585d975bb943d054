import { nothing, runSync } from './call';
import { asBits, checkAnyTensor, checkDims, checkInteger, checkOptions, checkType } from './check';
import { guard } from './errors';
import { addon, typeNumbers } from './native';
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
    const { data, dims, type: from } = checkAnyTensor('source', source);
    const target = allocate('source', dims, checkType('type', type));
    const bits = asBits(data);
    const count = view.length(bits);
    return {
      op: count === 0 ? nothing : addon.convert,
      operands: [bits, target.data],
      numbers: Float64Array.of(typeNumbers[from], typeNumbers[type], count),
      options: {},
      result: target,
    };
  });
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
    const uniform = xoshiro128(checkInteger('seed', seed, 0, 2 ** 32 - 1));
    const wanted = checkType('type', type);
    const result = allocate('dims', checkDims('dims', dims), 'float32') as TensorOf<'float32'>;
    const { data } = result;
    for (let i = 0; i < data.length; i += 2) {
      // 1 − u lies in (0, 1], where the logarithm is finite.
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      const angle = 2 * Math.PI * uniform();
      data[i] = radius * Math.cos(angle);
      if (i + 1 < data.length) data[i + 1] = radius * Math.sin(angle);
    }
    return wanted === 'float32' ? result : cast(result, wanted);
  });
}

/** Uniform numbers in [0, 1) with 32 bits. */
function xoshiro128(seed: number): () => number {
  let mixed = seed;
  const splitmix = (): number => {
    mixed = (mixed + 0x9e3779b9) | 0;
    let z = mixed;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return z ^ (z >>> 15);
  };
  let [a, b, c, d] = [splitmix(), splitmix(), splitmix(), splitmix()];
  return () => {
    const product = Math.imul(b, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const shifted = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= shifted;
    d = (d << 11) | (d >>> 21);
    return result / 4294967296;
  };
}
