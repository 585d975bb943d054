import type { AttentionWeights, LrkvWeights, Tensor } from '../lib';
import { toFloat64 } from './half';
import { naiveAttention, naiveMatmul } from './naive32';
import type { AttentionMeaning } from './problem';
import { attentionOver, measured } from './reference';
import { type LrkvGiven, naiveLrkv, referenceLrkv } from './reference-lrkv';
import { referenceMatmul } from './reference-matmul';
import type { Expected } from './tolerance';

/** What a layer's options mean for one call without caches. */
export type LayerMeaning = Pick<AttentionMeaning, 'causal' | 'window' | 'softcap' | 'sinks' | 'keyLengths'>;

type CommonWeights = Pick<AttentionWeights, keyof AttentionWeights & keyof LrkvWeights>;

/** Numbers, and the sums of the absolute values of the terms of each where they are known. */
interface Result {
  readonly values: ArrayLike<number>;
  readonly sizes?: ArrayLike<number>;
}

/** How numbers are computed: in float64, or with every step rounded to float32. */
interface Arithmetic {
  readonly round: (value: number) => number;
  readonly matmul: (a: Tensor, b: Tensor) => ArrayLike<number>;
  /** `sizes` are those of v. */
  readonly attention: (q: Tensor, k: Tensor, v: Tensor, sizes: Tensor, options: AttentionMeaning) => Result;
  readonly lrkv: (q: Tensor, given: LrkvGiven, options: AttentionMeaning & { readonly kvHeads: number }) => Result;
}

const float64: Arithmetic = {
  round: (value) => value,
  matmul: (a, b) => referenceMatmul(a, b).values,
  attention: (q, k, v, sizes, options) => {
    const values = { ...measured(v), sizes: toFloat64(sizes) };
    const { output, outputScale } = attentionOver(measured(q), measured(k), values, options);
    return { values: output, sizes: outputScale };
  },
  lrkv: (q, given, options) => {
    const { output, outputScale } = referenceLrkv(q, given, options);
    return { values: output, sizes: outputScale };
  },
};

const float32: Arithmetic = {
  round: Math.fround,
  matmul: naiveMatmul,
  attention: (q, k, v, _sizes, options) => ({ values: naiveAttention(q, k, v, options).output }),
  lrkv: (q, given, options) => ({ values: naiveLrkv(q, given, options).output }),
};

/** Numbers of any precision as the references read them: they take what is called float32 as it is. */
export function numbers(values: ArrayLike<number>, dims: readonly number[]): Tensor {
  return { data: Float64Array.from(values) as unknown as Float32Array, dims, type: 'float32' };
}

/** x·W + b, with the dims of x but for the last. */
function affine({ round, matmul }: Arithmetic, x: Tensor, weight: Tensor, bias: Tensor | undefined): Tensor {
  const product = matmul(x, weight);
  const added = bias && toFloat64(bias);
  const values = added ? Array.from(product, (value, i) => round(value + added[i % added.length])) : product;
  return numbers(values, [...x.dims.slice(0, -1), weight.dims[1]]);
}

/** The sums of the absolute values of x·W + b. */
function affineSizes(x: Tensor, weight: Tensor, bias: Tensor | undefined): Tensor {
  const absolute = (tensor: Tensor): Tensor => numbers(toFloat64(tensor).map(Math.abs), tensor.dims);
  return affine(float64, absolute(x), absolute(weight), bias && absolute(bias));
}

/** [batch, n, heads·dim] as [batch, n, heads, dim]. */
const split = (x: Tensor, heads: number): Tensor => ({
  ...x,
  dims: [x.dims[0], x.dims[1], heads, x.dims[2] / heads],
});

/** Each row [dim] of [batch, n, heads, dim] normalised and rotated as its position says. */
function placed(
  { round }: Arithmetic,
  x: Tensor,
  { rope, qkNorm }: Pick<CommonWeights, 'rope' | 'qkNorm'>,
  side: 'query' | 'key',
): Tensor {
  const [, n, heads, dim] = x.dims;
  const norm = qkNorm?.[side];
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

/** The options of attention over what a layer has made of its hidden states. */
function attentionOptions({ scale }: CommonWeights, meaning: LayerMeaning) {
  return { causal: true, scale, ...meaning, queryLengths: meaning.keyLengths, layout: 'blhd' } as const;
}

function attend(math: Arithmetic, hidden: Tensor, weights: AttentionWeights, meaning: LayerMeaning): Result {
  const { heads, kvHeads = heads } = weights;
  const project = (weight: Tensor, bias: Tensor | undefined, count: number) =>
    split(affine(math, hidden, weight, bias), count);
  return math.attention(
    placed(math, project(weights.query, weights.queryBias, heads), weights, 'query'),
    placed(math, project(weights.key, weights.keyBias, kvHeads), weights, 'key'),
    project(weights.value, weights.valueBias, kvHeads),
    split(affineSizes(hidden, weights.value, weights.valueBias), kvHeads),
    attentionOptions(weights, meaning),
  );
}

function attendLrkv(math: Arithmetic, hidden: Tensor, weights: LrkvWeights, meaning: LayerMeaning): Result {
  const { heads, kvHeads = heads, qkNorm } = weights;
  const project = (weight: Tensor, bias: Tensor | undefined) => affine(math, hidden, weight, bias);
  // LRKV rotates queries itself.
  const query = placed(math, split(project(weights.query, weights.queryBias), heads), { qkNorm }, 'query');
  const given: LrkvGiven = {
    ...weights,
    ...(qkNorm?.key && { keyNorm: qkNorm.key }),
    keyBase: project(weights.keyBase, weights.keyBaseBias),
    keyLatent: project(weights.keyDown, weights.keyDownBias),
    valueBase: project(weights.valueBase, weights.valueBaseBias),
    valueLatent: project(weights.valueDown, weights.valueDownBias),
  };
  return math.lrkv(query, given, { ...attentionOptions(weights, meaning), kvHeads });
}

/** The output projection of what attention gives; rows of padding are zero. */
function finished(
  math: Arithmetic,
  { values }: Result,
  { dims: [batch, n] }: Tensor,
  { output, outputBias }: CommonWeights,
  { keyLengths }: LayerMeaning,
): Float64Array {
  const result = toFloat64(affine(math, numbers(values, [batch, n, output.dims[0]]), output, outputBias));
  const isPadding = (row: number) => keyLengths !== undefined && row % n >= keyLengths[Math.floor(row / n)];
  return result.map((value, i) => (isPadding(Math.floor(i / output.dims[1])) ? 0 : value));
}

function expectAny<Weights extends CommonWeights>(
  attended: (math: Arithmetic, hidden: Tensor, weights: Weights, meaning: LayerMeaning) => Result,
  hidden: Tensor,
  weights: Weights,
  meaning: LayerMeaning,
): Expected {
  const [batch, n, modelDim] = hidden.dims;
  const { output, outputBias } = weights;
  const exact = attended(float64, hidden, weights, meaning);
  const values = finished(float64, exact, hidden, weights, meaning);
  const sizes = numbers(exact.sizes as ArrayLike<number>, [batch, n, output.dims[0]]);
  const naive = attended(float32, hidden, weights, meaning);
  return {
    values,
    dims: [batch, n, output.dims[1]],
    scale: toFloat64(affineSizes(sizes, output, outputBias)).map((size, i) => (values[i] === 0 ? 0 : size)),
    naive: finished(float32, naive, hidden, weights, meaning),
    terms: modelDim + n + output.dims[0],
  };
}

/**
 * What a layer gives for hidden states [batch, n, modelDim], with its error budget: projections, normalisation, rotation,
 * attention and output projection one after another, in float64.
 */
export function expectLayer(hidden: Tensor, weights: AttentionWeights, meaning: LayerMeaning = {}): Expected {
  return expectAny(attend, hidden, weights, meaning);
}

/** The same of a layer of LRKV. */
export function expectLrkvLayer(hidden: Tensor, weights: LrkvWeights, meaning: LayerMeaning = {}): Expected {
  return expectAny(attendLrkv, hidden, weights, meaning);
}
