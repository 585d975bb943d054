/** Small models of made-up weights, as tensors of a `.safetensors` file in either naming. */
import { cast } from '../lib';
import type { AttentionWeights } from '../lib/weights';
import { normal } from './data';
import type { Content } from './tensor-files';

export interface ModelShape {
  readonly layers: number;
  readonly modelDim: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly biases: boolean;
  readonly gains: boolean;
}

export const smallShape: ModelShape = {
  layers: 2,
  modelDim: 12,
  heads: 4,
  kvHeads: 2,
  headDim: 6,
  valueDim: 6,
  biases: false,
  gains: false,
};

type Weights = Readonly<Record<string, { readonly dims: readonly number[]; readonly data: Float32Array }>>;

/** Parts of each layer by the names of `AttentionWeights`, and the gains of QK-norm. */
export function layersOf(shape: ModelShape): Weights[] {
  const { layers, modelDim, heads, kvHeads, headDim, valueDim, biases, gains } = shape;
  let seed = 1;
  const of = (...dims: readonly number[]) => ({
    dims,
    data: cast(normal(dims, seed++), 'float32').data.map((value) => value / Math.sqrt(modelDim)),
  });
  return Array.from({ length: layers }, () => ({
    query: of(modelDim, heads * headDim),
    key: of(modelDim, kvHeads * headDim),
    value: of(modelDim, kvHeads * valueDim),
    output: of(heads * valueDim, modelDim),
    ...(biases
      ? {
          queryBias: of(heads * headDim),
          keyBias: of(kvHeads * headDim),
          valueBias: of(kvHeads * valueDim),
          outputBias: of(modelDim),
        }
      : {}),
    ...(gains ? { queryNorm: of(headDim), keyNorm: of(headDim) } : {}),
  }));
}

/** The same as tensors, without the gains. */
export function tensorsOf(layer: Weights): Pick<AttentionWeights, 'query' | 'key' | 'value' | 'output'> {
  const parts = Object.entries(layer).filter(([name]) => !name.endsWith('Norm'));
  return Object.fromEntries(
    parts.map(([name, { dims, data }]) => [name, { data, dims: [...dims], type: 'float32' }]),
  ) as never;
}

const others: Readonly<Record<string, Content>> = {
  'model.embed_tokens.weight': { dims: [7, 3], value: (i) => i / 8 },
  'model.layers.0.mlp.up_proj.weight': { dims: [3, 5], value: (i) => -i },
  'lm_head.weight': { dims: [2, 2], value: (i) => i + 0.5 },
};

/** As Hugging Face names and lays them: matrices [out, in]. */
export function huggingFace(layers: readonly Weights[], stack = 'model.'): Record<string, Content> {
  const result: Record<string, Content> = { ...others };
  for (const [index, layer] of layers.entries()) {
    for (const [part, { dims, data }] of Object.entries(layer)) {
      const prefix = `${stack}layers.${index}.self_attn.${part[0]}_`;
      if (part.endsWith('Norm')) result[`${prefix}norm.weight`] = { dims, value: (i) => data[i] };
      else if (part.endsWith('Bias')) result[`${prefix}proj.bias`] = { dims, value: (i) => data[i] };
      else {
        const [rows, columns] = dims;
        const value = (i: number) => data[(i % rows) * columns + Math.floor(i / rows)];
        result[`${prefix}proj.weight`] = { dims: [columns, rows], value };
      }
    }
  }
  return result;
}

/** As this package names and lays them. */
export function ownNames(layers: readonly Weights[], stack = ''): Record<string, Content> {
  const result: Record<string, Content> = { ...others };
  for (const [index, layer] of layers.entries()) {
    for (const [part, { dims, data }] of Object.entries(layer)) {
      result[`${stack}layers.${index}.attention.${part}`] = { dims, value: (i) => data[i] };
    }
  }
  return result;
}
