import { attention } from '../../full';
import type { AttentionOptions } from '../../full-options';
import { lrkvAttention } from '../../lrkv';
import type { LrkvRows } from '../../lrkv-rows';
import { matmul } from '../../matmul';
import { type TensorOf, tensor } from '../../tensor';
import { headsFirst, type Inputs } from '../inputs';
import { add, addBias, addBiasRelu, layerNorm, meanOverLength, tanhNormalised } from './elementwise';
import {
  type EncoderWeights,
  type Layer,
  type LayerNorm,
  type Linear,
  type LrkvProjections,
  type Matrix,
  matrix,
} from './weights';
import { Workspace } from './workspace';

/** Pieces after this many are not read: so says the model's graph. */
export const maxPieces = 128;

export interface EncodeOptions {
  /** Most threads of every product and every attention. Default: all cores. */
  readonly threads?: number;
  /** Is added to: milliseconds spent waiting for each kind of native call. */
  readonly times?: Times;
  /** Memory to work in, worth keeping from call to call; calls at the same time need their own. Default: new. */
  readonly workspace?: Workspace;
  /** Is shown what enters the attention of each layer, and waited for. The matrix is overwritten afterwards. */
  readonly onAttention?: (layer: number, x: Matrix, batch: Batch) => void | Promise<void>;
}

export interface Times {
  attention: number;
  products: number;
}

/** What all steps of one call share. Sequences are padded to the longest: matrices have batch · length rows. */
export interface Batch {
  /** Pieces of each sequence, [batch]. */
  readonly lengths: readonly number[];
  /** The longest of them, at least 1. */
  readonly length: number;
  readonly workspace: Workspace;
  readonly options: EncodeOptions;
}

/**
 * The encoder of the Universal Sentence Encoder lite: two Transformer layers over pieces of text, their mean, and one
 * dense layer.
 *
 * @param sentences ids of pieces, from the tokenizer; an empty sentence is allowed
 * @returns [batch, 512], rows of length 1: the dot product of two of them is their cosine similarity
 */
export async function encode(
  weights: EncoderWeights,
  sentences: readonly (readonly number[])[],
  options: EncodeOptions = {},
): Promise<Matrix> {
  const read = sentences.map((ids) => ids.slice(0, maxPieces));
  const lengths = read.map((ids) => ids.length);
  const workspace = options.workspace ?? new Workspace();
  const batch: Batch = { lengths, length: Math.max(1, ...lengths), workspace, options };

  let x = embed(weights, read, batch);
  for (const [index, layer] of weights.layers.entries()) x = await transformerLayer(layer, index, x, batch);

  const mean = meanOverLength(x, lengths, workspace.matrix('mean', lengths.length, x.dims[1]));
  const hidden = await linear(weights.head, mean, 'hidden', batch);
  return matrix(tanhNormalised(hidden).data.slice(), ...hidden.dims);
}

/**
 * Queries, keys and values of one layer over a text of any length. The sinusoidal signal of position goes on beyond the
 * {@link maxPieces} that the model was trained on, and so do these.
 *
 * @param ids of the text's pieces, at least one
 * @returns `[1, 4, pieces, 64]` each in layer 0, `[1, 4, pieces, 128]` in layer 1
 */
export async function layerInputs(
  weights: EncoderWeights,
  ids: readonly number[],
  index: number,
  options: EncodeOptions = {},
): Promise<Inputs> {
  const workspace = options.workspace ?? new Workspace();
  const batch: Batch = { lengths: [ids.length], length: ids.length, workspace, options };
  let x = embed(weights, [ids], batch);
  for (const [before, layer] of weights.layers.slice(0, index).entries()) {
    x = await transformerLayer(layer, before, x, batch);
  }
  const layer = weights.layers[index];
  if (layer === undefined)
    throw new RangeError(`Expected a layer from 0 to ${weights.layers.length - 1}, received ${index}.`);
  const { query, key, value } = await project(layer, normalised(x, layer.attentionNorm, batch), batch);
  return { q: headsFirst(query), k: headsFirst(key), v: headsFirst(value) };
}

/**
 * 2 · embedding + [sin(position · frequencies), cos(position · frequencies)], as [batch · length, 256]; padding is zero.
 *
 * The 2 is no slip: the graph adds the embeddings to a sum that has them already, and was trained that way.
 */
function embed(
  { embeddings, frequencies }: EncoderWeights,
  sentences: readonly (readonly number[])[],
  { lengths, length, workspace }: Batch,
): Matrix {
  const [pieces, width] = embeddings.dims;
  const half = width / 2;
  const x = workspace.matrix('embedded', lengths.length * length, width);
  x.data.fill(0);
  for (const [sequence, ids] of sentences.entries()) {
    for (const [position, id] of ids.entries()) {
      if (!Number.isInteger(id) || id < 0 || id >= pieces) {
        throw new RangeError(`Expected ids of pieces, from 0 to ${pieces - 1}, received ${id}.`);
      }
      const row = (sequence * length + position) * width;
      const from = id * width;
      for (let i = 0; i < half; i++) {
        const angle = position * (frequencies[i] as number);
        x.data[row + i] = 2 * (embeddings.data[from + i] as number) + Math.sin(angle);
        x.data[row + half + i] = 2 * (embeddings.data[from + half + i] as number) + Math.cos(angle);
      }
    }
  }
  return x;
}

/**
 * y = residual(x) + SelfAttention(LayerNorm(x)), then y + FeedForward(LayerNorm(y)).
 *
 * @param x [batch · length, inner]
 * @returns [batch · length, 512]
 */
async function transformerLayer(layer: Layer, index: number, x: Matrix, batch: Batch): Promise<Matrix> {
  const residual = layer.widenResidual ? await linear(layer.widenResidual, x, 'residual', batch) : x;
  const attended = normalised(x, layer.attentionNorm, batch);
  await batch.options.onAttention?.(index, attended, batch);
  const y = add(await selfAttention(layer, attended, batch), residual);
  return add(await feedForward(layer, normalised(y, layer.feedForwardNorm, batch), `layer ${index}`, batch), y);
}

interface HeadRows extends TensorOf<'float32'> {
  readonly dims: readonly [batch: number, length: number, heads: number, headDim: number];
}

/** x [batch · length, inner] → [batch · length, 512]. Padded positions are not seen; what they see is undefined. */
export async function selfAttention(layer: Layer, x: Matrix, batch: Batch): Promise<Matrix> {
  const { lengths, workspace, options } = batch;
  const seen = workspace.matrix('seen', ...x.dims);
  const how: AttentionOptions = {
    layout: 'blhd',
    keyLengths: lengths,
    out: byHead(layer, seen, batch),
    ...(options.threads === undefined ? {} : { threads: options.threads }),
  };
  if (layer.lrkv === undefined) {
    const { query, key, value } = await project(layer, x, batch);
    await timed(options, 'attention', () => attention(query, key, value, how));
  } else {
    const { model, ...projections } = layer.lrkv;
    const query = byHead(layer, await linear(layer.query, x, 'query', batch), batch);
    const rows = await lrkvRows(projections, x, batch);
    await timed(options, 'attention', () => lrkvAttention(query, { ...rows, ...model }, how));
  }
  return linear(layer.output, seen, 'mixed', batch);
}

/** x [batch · length, inner] → [batch, length, heads, headDim] each. */
async function project(layer: Layer, x: Matrix, batch: Batch): Promise<Record<'query' | 'key' | 'value', HeadRows>> {
  const projected = async (name: 'query' | 'key' | 'value') =>
    byHead(layer, await linear(layer[name], x, name, batch), batch);
  return { query: await projected('query'), key: await projected('key'), value: await projected('value') };
}

/** x [batch · length, inner] → [batch, length, columns] each. */
async function lrkvRows(of: Omit<LrkvProjections, 'model'>, x: Matrix, batch: Batch): Promise<LrkvRows> {
  const rows = async (name: keyof LrkvRows) => {
    const { data, dims } = await linear(of[name], x, name, batch);
    return tensor(data, [batch.lengths.length, batch.length, dims[1]]);
  };
  return {
    keyBase: await rows('keyBase'),
    keyLatent: await rows('keyLatent'),
    valueBase: await rows('valueBase'),
    valueLatent: await rows('valueLatent'),
  };
}

/** [batch · length, heads · headDim] is [batch, length, heads, headDim] without moving anything: hence 'blhd'. */
function byHead({ heads }: Layer, { data, dims }: Matrix, { lengths, length }: Batch): HeadRows {
  return tensor(data, [lengths.length, length, heads, dims[1] / heads]) as HeadRows;
}

/** max(0, x · W₁ + b₁) · W₂ + b₂, of [batch · length, 512]. */
async function feedForward(layer: Layer, x: Matrix, name: string, batch: Batch): Promise<Matrix> {
  const expanded = await product(x, layer.expand.kernel, 'expanded', batch);
  return linear(layer.contract, addBiasRelu(expanded, layer.expand.bias), name, batch);
}

/** x · kernel + bias. */
async function linear({ kernel, bias }: Linear, x: Matrix, name: string, batch: Batch): Promise<Matrix> {
  return addBias(await product(x, kernel, name, batch), bias);
}

/** x [rows, in] · kernel [in, out] → [rows, out]. */
async function product(x: Matrix, kernel: Matrix, name: string, { workspace, options }: Batch): Promise<Matrix> {
  const out = workspace.matrix(name, x.dims[0], kernel.dims[1]);
  await timed(options, 'products', () => matmul(x, kernel, { out, threads: options.threads }));
  return out;
}

function normalised(x: Matrix, norm: LayerNorm, { workspace }: Batch): Matrix {
  return layerNorm(x, norm, workspace.matrix('normalised', x.dims[0], x.dims[1]));
}

async function timed(options: EncodeOptions, kind: keyof Times, work: () => Promise<unknown>): Promise<void> {
  const start = performance.now();
  await work();
  if (options.times !== undefined) options.times[kind] += performance.now() - start;
}
