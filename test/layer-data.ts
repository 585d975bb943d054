import type {
  AttentionLayer,
  AttentionWeights,
  DataType,
  KvCache,
  LrkvCache,
  LrkvWeights,
  RmsNormOptions,
  Tensor,
} from '../lib';
import { filled, normal, poisonPast, slice } from './data';
import { type LrkvFeatures, type LrkvShape, lrkvModel } from './lrkv-run';
import { compare, type Expected } from './tolerance';

/** Extents of a layer's weights. */
export interface LayerShape {
  readonly modelDim?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly valueDim?: number;
  readonly outDim?: number;
}

/** Weights whose products have about the size of what goes in. */
export function layerWeights(shape: LayerShape = {}, seed = 1, type: DataType = 'float32') {
  const { modelDim = 20, heads = 4, kvHeads = heads, headDim = 8, valueDim = headDim, outDim = modelDim } = shape;
  const matrix = (rows: number, columns: number, own: number): Tensor => scaled([rows, columns], seed + own, type);
  return {
    query: matrix(modelDim, heads * headDim, 1),
    key: matrix(modelDim, kvHeads * headDim, 2),
    value: matrix(modelDim, kvHeads * valueDim, 3),
    output: matrix(heads * valueDim, outDim, 4),
    heads,
    kvHeads,
  } satisfies AttentionWeights;
}

/** Biases of about the size of what they are added to. */
export function layerBiases({ query, key, value, output }: AttentionWeights, seed = 11, type: DataType = 'float32') {
  const bias = (matrix: Tensor, own: number): Tensor => normal([matrix.dims[1]], seed + own, type);
  return {
    queryBias: bias(query, 1),
    keyBias: bias(key, 2),
    valueBias: bias(value, 3),
    outputBias: bias(output, 4),
  };
}

/** Normal numbers over the root of the number of rows. */
export function scaled(dims: readonly [number, number], seed: number, type: DataType = 'float32'): Tensor {
  const { data } = normal(dims, seed);
  return filled(dims, type, (i) => data[i] / Math.sqrt(dims[0]));
}

/** A gain around 1 for heads of so many elements. */
export function norm(dim: number, seed: number, gainOrder?: RmsNormOptions['gainOrder']): RmsNormOptions {
  const gain = Array.from(normal([dim], seed).data, (value) => Math.fround(1 + value / 4));
  return { gain, epsilon: 1e-3, ...(gainOrder === undefined ? {} : { gainOrder }) };
}

/** Extents of a layer's weights in LRKV's form. */
export type LrkvLayerShape = LayerShape & Pick<LrkvShape, 'keyBaseDim' | 'valueBaseDim' | 'keyRank' | 'valueRank'>;

/** Weights in LRKV's form, of a random model. With a norm, queries have the same as keys. */
export function lrkvWeights(shape: LrkvLayerShape = {}, features: LrkvFeatures = {}, seed = 1): LrkvWeights {
  const { modelDim = 20, heads = 4, kvHeads = heads, headDim = 8, outDim = modelDim } = shape;
  const { keyNorm, ...model } = lrkvModel({ ...shape, heads, kvHeads, headDim, queries: 0, keys: 0 }, seed, features);
  const { keyUp, valueUp, keyGauge, valueGauge, keyRanks = [], valueRanks = [] } = model;
  const baseDim = (given: number | undefined, gauge: Tensor | undefined, up: Tensor) =>
    given ?? gauge?.dims[1] ?? up.dims[1];
  const matrix = (columns: number, own: number): Tensor => scaled([modelDim, columns], seed + own);
  return {
    ...model,
    ...{ heads, kvHeads, keyRanks, valueRanks },
    query: matrix(heads * headDim, 31),
    keyBase: matrix(baseDim(shape.keyBaseDim, keyGauge, keyUp), 32),
    keyDown: matrix(keyUp.dims[0], 33),
    valueBase: matrix(baseDim(shape.valueBaseDim, valueGauge, valueUp), 34),
    valueDown: matrix(valueUp.dims[0], 35),
    output: scaled([heads * valueUp.dims[1], outDim], seed + 36),
    ...(keyNorm && { qkNorm: { query: keyNorm, key: keyNorm } }),
  };
}

export function lrkvBiases(weights: LrkvWeights, seed = 51) {
  const bias = (matrix: Tensor, own: number): Tensor => normal([matrix.dims[1]], seed + own);
  return {
    queryBias: bias(weights.query, 1),
    keyBaseBias: bias(weights.keyBase, 2),
    keyDownBias: bias(weights.keyDown, 3),
    valueBaseBias: bias(weights.valueBase, 4),
    valueDownBias: bias(weights.valueDown, 5),
    outputBias: bias(weights.output, 6),
  };
}

/** Hidden states [batch, n, width] with NaN past each length. */
export function padded({ data, dims, type }: Tensor, lengths: readonly number[]): Tensor {
  const [batch, n, width] = dims;
  return { ...poisonPast({ data, dims: [batch, n, 1, width], type }, lengths, 'blhd'), dims };
}

export const rowsOf = (tensor: Tensor, from: number, to: number): Tensor => slice(tensor, 1, from, to);
export const itemOf = (tensor: Tensor, item: number): Tensor => slice(tensor, 0, item, item + 1);

/** Outputs of consecutive positions of one sequence as one. */
export function joined(parts: readonly Tensor[]): Tensor {
  const data = Float32Array.from(parts.flatMap((part) => Array.from(part.data as Float32Array)));
  const n = parts.reduce((sum, { dims }) => sum + dims[1], 0);
  return { data, dims: [1, n, parts[0].dims[2]], type: 'float32' };
}

/** A prompt and then steps, split anywhere, give what one call gives. `hidden` is one short sequence. */
export function checkSplits(layer: AttentionLayer<KvCache | LrkvCache>, hidden: Tensor, expected: Expected): void {
  const [, n] = hidden.dims;
  for (let split = 0; split <= n; split++) {
    using cache = layer.createCache();
    const parts = [layer.forwardSync(rowsOf(hidden, 0, split), { caches: [cache] })];
    for (let i = split; i < n; i++) parts.push(layer.stepSync(rowsOf(hidden, i, i + 1), [cache]));
    expect(cache.length).toBe(n);
    compare(joined(parts), expected, `split at ${split}`);
  }
}

/** A signal that asks whether it is aborted, with the number of times it has been looked at: twice a step of a call. */
export function signalOf(isAborted: (looks: number) => boolean): AbortSignal {
  let looks = 0;
  return {
    get aborted() {
      return isAborted(++looks);
    },
    reason: 'enough',
    addEventListener: () => undefined,
    removeEventListener: () => undefined,
  } as unknown as AbortSignal;
}
