import { attention, matmul, tensor } from '../../lib';
import { add, addBias, addBiasRelu, layerNorm, meanOverLength, tanhNormalised } from './elementwise';
import type { EncoderWeights, Layer, Linear, Matrix } from './weights';

/** Pieces after this many are not read: the model was made so, and has no say in it. */
export const maxPieces = 128;

export interface EncodeOptions {
  /** Threads of every product and every attention. Default: the package's. */
  readonly threads?: number;
  /** Is added to: milliseconds spent waiting for each kind of native call. */
  readonly times?: Times;
}

export interface Times {
  attention: number;
  products: number;
}

/** Sequences of a batch are padded to the longest. Rows of every matrix below are [batch · length]. */
interface Batch extends EncodeOptions {
  /** Pieces of each sequence, [batch]. */
  readonly lengths: readonly number[];
  /** The longest of them, at least 1. */
  readonly length: number;
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
  const lengths = sentences.map((ids) => Math.min(ids.length, maxPieces));
  const batch: Batch = { ...options, lengths, length: Math.max(1, ...lengths) };

  let x = embed(weights, sentences, batch);
  for (const layer of weights.layers) x = await transformerLayer(layer, x, batch);

  const width = x.dims[1] ?? 0;
  const mean = tensor(meanOverLength(x.data, lengths, width), [lengths.length, width]);
  const hidden = await linear(weights.head, mean, batch);
  return tensor(tanhNormalised(hidden.data, width), hidden.dims);
}

/**
 * 2 · embedding + [sin(position · frequencies), cos(position · frequencies)], as [batch · length, 256]; padding is zero.
 *
 * The 2 is no slip: the graph adds the embeddings to a sum that has them already, and was trained that way.
 */
function embed(
  { embeddings, frequencies }: EncoderWeights,
  sentences: readonly (readonly number[])[],
  { lengths, length }: Batch,
): Matrix {
  const [pieces = 0, width = 0] = embeddings.dims;
  const half = width / 2;
  const x = new Float32Array(lengths.length * length * width);
  for (const [sequence, ids] of sentences.entries()) {
    for (const [position, id] of ids.slice(0, maxPieces).entries()) {
      if (!Number.isInteger(id) || id < 0 || id >= pieces) throw new RangeError(`expected ids of pieces below ${pieces}, received ${id}`);
      const row = (sequence * length + position) * width;
      const from = id * width;
      for (let i = 0; i < half; i++) {
        // The graph multiplies in float32; at position 127 the rounding of this product is most of what could differ.
        const angle = Math.fround(position * frequencies[i]!);
        x[row + i] = 2 * embeddings.data[from + i]! + Math.sin(angle);
        x[row + half + i] = 2 * embeddings.data[from + half + i]! + Math.cos(angle);
      }
    }
  }
  return tensor(x, [lengths.length * length, width]);
}

/**
 * y = residual(x) + SelfAttention(LayerNorm(x)), then y + FeedForward(LayerNorm(y)).
 *
 * @param x [batch · length, inner]
 * @returns [batch · length, 512]
 */
async function transformerLayer(layer: Layer, x: Matrix, batch: Batch): Promise<Matrix> {
  const residual = layer.widenResidual === undefined ? x : await linear(layer.widenResidual, x, batch);
  const mixed = await selfAttention(layer, normalised(x, layer.attentionNorm), batch);
  const y = tensor(add(mixed.data, residual.data), mixed.dims);

  const fed = await feedForward(layer, normalised(y, layer.feedForwardNorm), batch);
  return tensor(add(fed.data, y.data), fed.dims);
}

/** x [batch · length, inner] → [batch · length, 512]. Padded positions ask, but are not seen. */
async function selfAttention(layer: Layer, x: Matrix, batch: Batch): Promise<Matrix> {
  const { lengths, length, threads, times } = batch;
  const [rows = 0, inner = 0] = x.dims;
  // [batch · length, heads · headDim] is [batch, length, heads, headDim] without moving anything: hence 'blhd'.
  const byHead = (y: Matrix) => tensor(y.data, [lengths.length, length, layer.heads, inner / layer.heads]);

  const query = byHead(await linear(layer.query, x, batch));
  const key = byHead(await linear(layer.key, x, batch));
  const value = byHead(await linear(layer.value, x, batch));
  const seen = await timed(times, 'attention', () =>
    attention(query, key, value, { layout: 'blhd', keyLengths: lengths, ...threadsOf(threads) }),
  );
  return linear(layer.output, tensor(seen.data as Float32Array, [rows, inner]), batch);
}

/** max(0, x · W₁ + b₁) · W₂ + b₂, both [batch · length, 512]. */
async function feedForward(layer: Layer, x: Matrix, batch: Batch): Promise<Matrix> {
  const { kernel, bias } = layer.expand;
  const hidden = await product(x, kernel, batch);
  return linear(layer.contract, tensor(addBiasRelu(hidden.data, bias), hidden.dims), batch);
}

async function linear({ kernel, bias }: Linear, x: Matrix, options: EncodeOptions): Promise<Matrix> {
  const y = await product(x, kernel, options);
  return tensor(addBias(y.data, bias), y.dims);
}

/** x [rows, in] · kernel [in, out] → [rows, out]. */
async function product(x: Matrix, kernel: Matrix, { threads, times }: EncodeOptions): Promise<Matrix> {
  const y = await timed(times, 'products', () => matmul(x, kernel, threadsOf(threads)));
  return tensor(y.data as Float32Array, y.dims);
}

function normalised(x: Matrix, norm: Layer['attentionNorm']): Matrix {
  return tensor(layerNorm(x.data, norm), x.dims);
}

function threadsOf(threads: number | undefined): { threads?: number } {
  return threads === undefined ? {} : { threads };
}

async function timed<Result>(
  times: Times | undefined,
  kind: keyof Times,
  work: () => Promise<Result>,
): Promise<Result> {
  const start = performance.now();
  const result = await work();
  if (times !== undefined) times[kind] += performance.now() - start;
  return result;
}
