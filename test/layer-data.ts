import type { AttentionWeights, DataType, RmsNormOptions, Tensor } from '../lib';
import { filled, normal } from './data';

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
  const gain = Array.from(normal([dim], seed).data, (value) => 1 + value / 4);
  return { gain, epsilon: 1e-3, ...(gainOrder === undefined ? {} : { gainOrder }) };
}
