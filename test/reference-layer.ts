import type { AttentionWeights, Tensor } from '../lib';
import { toFloat64 } from './half';
import { naiveAttention, naiveMatmul } from './naive32';
import type { AttentionMeaning } from './problem';
import { referenceAttention } from './reference';
import { referenceMatmul } from './reference-matmul';
import type { Expected } from './tolerance';

/** How numbers are computed: in float64, or with every step rounded to float32. */
interface Arithmetic {
  readonly round: (value: number) => number;
  readonly matmul: (a: Tensor, b: Tensor) => ArrayLike<number>;
  readonly attention: (q: Tensor, k: Tensor, v: Tensor, options: AttentionMeaning) => ArrayLike<number>;
}

const float64: Arithmetic = {
  round: (value) => value,
  matmul: (a, b) => referenceMatmul(a, b).values,
  attention: (q, k, v, options) => referenceAttention(q, k, v, options).output,
};

const float32: Arithmetic = {
  round: Math.fround,
  matmul: naiveMatmul,
  attention: (q, k, v, options) => naiveAttention(q, k, v, options).output,
};

/** Numbers of any precision as the references read them: they take what is called float32 as it is. */
function numbers(values: ArrayLike<number>, dims: readonly number[]): Tensor {
  return { data: Float64Array.from(values) as unknown as Float32Array, dims, type: 'float32' };
}

const absolute = (tensor: Tensor): Tensor => numbers(toFloat64(tensor).map(Math.abs), tensor.dims);

/** x·W + b. */
function affine({ round, matmul }: Arithmetic, x: Tensor, weight: Tensor, bias: Tensor | undefined): ArrayLike<number> {
  const product = matmul(x, weight);
  if (bias === undefined) return product;
  const added = toFloat64(bias);
  return Array.from(product, (value, i) => round(value + added[i % added.length]));
}

/** Each row [dim] of [batch, n, heads, dim] normalised and rotated as its position says. */
function placed({ round }: Arithmetic, x: Tensor, weights: AttentionWeights, side: 'query' | 'key'): Tensor {
  const [, n, heads, dim] = x.dims;
  const { rope } = weights;
  const norm = weights.qkNorm?.[side];
  const values = toFloat64(x);
  for (let start = 0; start < values.length; start += dim) {
    const row = values.subarray(start, start + dim);
    const position = (rope?.firstPosition ?? 0) + (Math.floor(start / dim / heads) % n);
    const multiply = (gain: ArrayLike<number> | undefined) => {
      if (gain !== undefined) for (let i = 0; i < dim; i++) row[i] = round(row[i] * gain[i]);
    };
    if (norm !== undefined) {
      const mean = round(row.reduce((sum, value) => round(sum + round(value * value)), 0) / dim);
      const size = round(Math.sqrt(round(mean + (norm.epsilon ?? 1e-6))));
      for (let i = 0; i < dim; i++) row[i] = round(row[i] / size);
      if (norm.gainOrder !== 'after-rotation') multiply(norm.gain);
    }
    for (let i = 0; rope !== undefined && i < dim / 2; i++) {
      const [a, b] = rope.pairing === 'interleaved' ? [2 * i, 2 * i + 1] : [i, i + dim / 2];
      const angle = position * rope.frequencies[i];
      const [cos, sin] = [round(Math.cos(angle)), round(Math.sin(angle))];
      const [u, v] = [row[a], row[b]];
      row[a] = round(round(u * cos) - round(v * sin));
      row[b] = round(round(v * cos) + round(u * sin));
    }
    if (norm?.gainOrder === 'after-rotation') multiply(norm.gain);
  }
  return numbers(values, x.dims);
}

/** What a layer's options mean for one call without caches. */
export type LayerMeaning = Pick<AttentionMeaning, 'causal' | 'window' | 'softcap' | 'sinks' | 'keyLengths'>;

function layerIn(arithmetic: Arithmetic, hidden: Tensor, weights: AttentionWeights, meaning: LayerMeaning) {
  const [batch, n] = hidden.dims;
  const { heads, kvHeads = heads } = weights;
  const split = (values: ArrayLike<number>, count: number) =>
    numbers(values, [batch, n, count, values.length / (batch * n * count)]);
  const project = (weight: Tensor, bias: Tensor | undefined, count: number) =>
    split(affine(arithmetic, hidden, weight, bias), count);
  const q = placed(arithmetic, project(weights.query, weights.queryBias, heads), weights, 'query');
  const k = placed(arithmetic, project(weights.key, weights.keyBias, kvHeads), weights, 'key');
  const v = project(weights.value, weights.valueBias, kvHeads);
  const { scale } = weights;
  const { keyLengths } = meaning;
  const options: AttentionMeaning = { causal: true, scale, ...meaning, queryLengths: keyLengths, layout: 'blhd' };
  const attended = (values: Tensor) =>
    numbers(arithmetic.attention(q, k, values, options), [batch, n, heads * v.dims[3]]);
  const output = Float64Array.from(affine(arithmetic, attended(v), weights.output, weights.outputBias));
  const outDim = output.length / (batch * n);
  const isPadding = (row: number) => keyLengths !== undefined && row % n >= keyLengths[Math.floor(row / n)];
  return { output: output.map((value, i) => (isPadding(Math.floor(i / outDim)) ? 0 : value)), attended, split, outDim };
}

/**
 * What a layer gives for hidden states [batch, n, modelDim], with its error budget: projections, normalisation, rotation,
 * attention and output projection one after another, in float64.
 */
export function expectLayer(hidden: Tensor, weights: AttentionWeights, meaning: LayerMeaning = {}): Expected {
  const [batch, n, modelDim] = hidden.dims;
  const { output, attended, split, outDim } = layerIn(float64, hidden, weights, meaning);
  // Values are as far off as their terms are large, and so is what attention makes of them.
  const sizes = (x: Tensor, weight: Tensor, bias: Tensor | undefined) =>
    affine(float64, absolute(x), absolute(weight), bias && absolute(bias));
  const valueSizes = split(sizes(hidden, weights.value, weights.valueBias), weights.kvHeads ?? weights.heads);
  const scale = Float64Array.from(sizes(attended(valueSizes), weights.output, weights.outputBias));
  return {
    values: output,
    dims: [batch, n, outDim],
    scale: scale.map((size, i) => (output[i] === 0 ? 0 : size)),
    naive: layerIn(float32, hidden, weights, meaning).output,
    terms: modelDim + n + weights.output.dims[0],
  };
}
