import { cast, float32Of } from '../../convert';
import { type DataType, type Tensor, tensor } from '../../tensor';
import { Reference } from '../check';
import { headsOf } from '../inputs';
import type { LrkvInputs } from '../lrkv-inputs';
import { type Numbers, product, rowOf, softmaxWeights, transposed, weightedSum } from './matrix';

/** Keys and values of one key/value head, as an ordinary attention of perhaps longer rows would have them. */
interface Whole {
  readonly kvHead: number;
  readonly keys: Float64Array;
  readonly values: Float64Array;
  /** Of each value the sum of the sizes of its terms, which may cancel: what its rounding is relative to. */
  readonly sizes: Float64Array;
}

/**
 * LRKV in float64 from whole keys and values: base + latent·Bᵀ, of values base·A + latent·Bᵀ (O'Neill et al. 2026, arXiv
 * 2601.11471, section 3). Causal: the last query stands at the last key. Logits, with R the rotation of heads at a
 * position and R′ that of latents:
 *
 *     'exact'   R q · R (base + latent·Bᵀ)
 *     'latent'  R q · R base + R′ Bᵀq · R′ latent
 *     'none'    R q · R base + q · (latent·Bᵀ)
 *
 * Two products are one of longer rows.
 *
 * @param q `[1, heads, queries, headDim]`, without rotation
 * @param stored element type in which a cache keeps what it was given, once rotated
 */
export function lrkvReference(
  q: Tensor,
  { rows, model, kvHeads }: LrkvInputs,
  stored: DataType = 'float32',
): Reference {
  const [, heads, queries, dim] = q.dims as [number, number, number, number];
  const keys = rows.keyBase.dims[1] as number;
  const { rope, ropeMode, keyUp, valueUp, valueGauge } = model;
  const frequencies = rope?.frequencies as ArrayLike<number>;
  const rank = (keyUp.dims[0] as number) / kvHeads;
  const upOf = (up: Tensor, kvHead: number) => rowOf(float32Of(up), kvHead, rank * dim);
  const latentsOf = (latents: Tensor, kvHead: number) => columnsOf(float32Of(latents), keys, kvHead * rank, rank);
  const frequenciesOf = (kvHead: number) =>
    (model.latentFrequencies as Float64Array).subarray((kvHead * rank) / 2, ((kvHead + 1) * rank) / 2);

  const keysOf = (kvHead: number): Float64Array => {
    const [base, latent] = [Float64Array.from(rows.keyBase.data), latentsOf(rows.keyLatent, kvHead)];
    if (ropeMode === 'exact') {
      const whole = sum(base, product(latent, upOf(keyUp, kvHead), rank));
      return rounded(rotated(whole, frequencies), stored);
    }
    const first = rounded(rotated(base, frequencies), stored);
    return ropeMode === 'latent'
      ? joined(first, rounded(rotated(latent, frequenciesOf(kvHead)), stored), keys)
      : joined(first, product(rounded(latent, stored), upOf(keyUp, kvHead), rank), keys);
  };
  const valuesOf = (kvHead: number, of: (numbers: Numbers) => Float64Array): Float64Array => {
    const base = of(rounded(Float64Array.from(rows.valueBase.data), stored));
    const shared = valueGauge === undefined ? base : product(base, of(rowOf(valueGauge.data, kvHead, dim * dim)), dim);
    const latent = of(rounded(latentsOf(rows.valueLatent, kvHead), stored));
    return sum(shared, product(latent, of(upOf(valueUp, kvHead)), rank));
  };
  const plain = (numbers: Numbers): Float64Array => Float64Array.from(numbers);
  const sizes = (numbers: Numbers): Float64Array => plain(numbers).map(Math.abs);

  const query = headsOf(q);
  let whole: Whole | undefined;
  return new Reference(heads, queries, (head, row) => {
    const kvHead = Math.floor((head * kvHeads) / heads);
    if (whole?.kvHead !== kvHead) {
      whole = { kvHead, keys: keysOf(kvHead), values: valuesOf(kvHead, plain), sizes: valuesOf(kvHead, sizes) };
    }
    const position = row + keys - queries;
    const own = Float64Array.from(rowOf(query(head), row, dim));
    const turned = rotated(own, frequencies, position);
    const absorbed = () => product(own, transposed(upOf(keyUp, kvHead), dim), dim);
    const full =
      ropeMode === 'exact'
        ? turned
        : ropeMode === 'latent'
          ? joined(turned, rotated(absorbed(), frequenciesOf(kvHead), position), 1)
          : joined(turned, own, 1);
    const seen = position + 1;
    const weights = softmaxWeights(full, whole.keys.subarray(0, seen * full.length), 1 / Math.sqrt(dim));
    const { values } = weightedSum(weights, whole.values.subarray(0, seen * dim));
    return { values, scale: weightedSum(weights, whole.sizes.subarray(0, seen * dim)).values };
  });
}

/** Pairs (i, i + half) of each row turned by the angle position · frequencies[i], positions counted from the first row's. */
function rotated(matrix: Float64Array, frequencies: ArrayLike<number>, first = 0): Float64Array {
  const half = frequencies.length;
  const result = new Float64Array(matrix.length);
  for (let start = 0; start < matrix.length; start += 2 * half) {
    const position = first + start / (2 * half);
    for (let i = 0; i < half; i++) {
      const angle = position * (frequencies[i] as number);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      const [x, y] = [matrix[start + i] as number, matrix[start + half + i] as number];
      result[start + i] = x * cos - y * sin;
      result[start + half + i] = x * sin + y * cos;
    }
  }
  return result;
}

/** What a cache of this type keeps of numbers. */
function rounded(matrix: Float64Array, type: DataType): Float64Array {
  if (type === 'float32') return matrix;
  return Float64Array.from(float32Of(cast(tensor(Float32Array.from(matrix), [matrix.length]), type)));
}

/** Some columns of a matrix. */
function columnsOf(matrix: Numbers, rows: number, from: number, count: number): Float64Array {
  const all = matrix.length / rows;
  const result = new Float64Array(rows * count);
  for (let row = 0; row < rows; row++)
    result.set(matrix.subarray(row * all + from, row * all + from + count), row * count);
  return result;
}

/** Two matrices of so many rows side by side. */
function joined(a: Float64Array, b: Float64Array, rows: number): Float64Array {
  const [left, right] = [a.length / rows, b.length / rows];
  const result = new Float64Array(a.length + b.length);
  for (let row = 0; row < rows; row++) {
    result.set(rowOf(a, row, left), row * (left + right));
    result.set(rowOf(b, row, right), row * (left + right) + left);
  }
  return result;
}

function sum(a: Float64Array, b: Float64Array): Float64Array {
  return a.map((value, i) => value + (b[i] as number));
}
