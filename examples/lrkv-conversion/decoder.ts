// A decoder of random weights, layer upon layer: RMS normalisation, attention with rotary embedding, gated MLP.
import {
  type AttentionLayer,
  attentionLayer,
  type KvCache,
  type LrkvCache,
  matmul,
  randomNormal,
  type Tensor,
  tensor,
} from '../../lib';
import type { AttentionWeights } from '../../lib/weights';
import { modelDim, structuredLayer } from './structured';
import { vocabulary } from './tokens';

const mlpDim = 512;

/** Spread of the logits: the likeliest of the 512 tokens has a third of the probability in the mean. */
const logitSpread = 3;

/** The MLP is (silu(x·gate) ⊙ (x·up))·down. */
export interface DecoderBlock {
  readonly attention: AttentionWeights;
  readonly gate: Tensor;
  readonly up: Tensor;
  readonly down: Tensor;
}

export interface DecoderWeights {
  /** `[vocabulary, modelDim]` */
  readonly embedding: Tensor<Float32Array>;
  readonly blocks: readonly DecoderBlock[];
  /** `[modelDim, vocabulary]` */
  readonly unembedding: Tensor;
}

/** What a decoder does with tokens; rows are the positions of all sequences, one sequence after another. */
export interface DecoderRun {
  /** What enters the projections of each attention layer, `[rows, modelDim]`. */
  readonly inputs: readonly Tensor[];
  /** The residual stream after each block, `[rows, modelDim]`. */
  readonly states: readonly Tensor[];
  /** `[rows, vocabulary]` */
  readonly logits: Tensor<Float32Array>;
}

/** @param shared part of the heads' weights that is common to the heads of a layer, see {@link structuredLayer} */
export function structuredDecoder(shared: number, layers: number): DecoderWeights {
  const normal = (rows: number, columns: number, scale: number, seed: number) => {
    const { data, dims } = randomNormal<'float32'>([rows, columns], { seed });
    return tensor(
      data.map((value) => scale * value),
      dims,
    );
  };
  const blocks = Array.from({ length: layers }, (_, layer) => {
    const seed = 1000 * (layer + 1);
    return {
      attention: structuredLayer({ shared, rope: true, seed }),
      gate: normal(modelDim, mlpDim, modelDim ** -0.5, seed + 900),
      up: normal(modelDim, mlpDim, modelDim ** -0.5, seed + 901),
      down: normal(mlpDim, modelDim, mlpDim ** -0.5, seed + 902),
    };
  });
  return {
    embedding: normal(vocabulary, modelDim, 1, 900),
    blocks,
    unembedding: normal(modelDim, vocabulary, logitSpread * modelDim ** -0.5, 901),
  };
}

/** A decoder with one kind of attention. */
export class Decoder<Cache extends KvCache | LrkvCache> {
  constructor(
    private readonly weights: DecoderWeights,
    private readonly attention: readonly AttentionLayer<Cache>[],
  ) {}

  static of(weights: DecoderWeights): Decoder<KvCache> {
    return new Decoder(
      weights,
      weights.blocks.map(({ attention }) => attentionLayer(attention)),
    );
  }

  /**
   * @param sequences tokens, of the same length each
   * @param caches of the one sequence that goes on where they end; without them every sequence stands for itself
   */
  async run(sequences: readonly (readonly number[])[], caches?: readonly Cache[]): Promise<DecoderRun> {
    const { embedding, blocks, unembedding } = this.weights;
    const dims = [sequences.length, sequences[0].length, modelDim];
    const rows = dims[0] * dims[1];
    const flat = (data: Float32Array) => tensor(data, [rows, modelDim]);
    const stream = new Float32Array(rows * modelDim);
    for (const [row, token] of sequences.flat().entries())
      stream.set(embedding.data.subarray(token * modelDim, (token + 1) * modelDim), row * modelDim);
    const inputs: Tensor[] = [];
    const states: Tensor[] = [];
    for (const [index, { gate, up, down }] of blocks.entries()) {
      const input = normalised(stream);
      inputs.push(flat(input));
      const own = caches && { caches: [caches[index]] };
      add(stream, await this.attention[index].forward(tensor(input, dims), own));
      const x = flat(normalised(stream));
      add(stream, await matmul(gated(await matmul(x, gate), await matmul(x, up)), down));
      states.push(flat(stream.slice()));
    }
    const logits = (await matmul(flat(normalised(stream)), unembedding)) as Tensor<Float32Array>;
    return { inputs, states, logits };
  }

  /**
   * Logits of one sequence, `[tokens, vocabulary]`, from caches of its own: the first `prompt` tokens at once, the others
   * one by one.
   */
  async decode(tokens: readonly number[], prompt: number): Promise<{ logits: Tensor; bytes: number }> {
    const caches = this.attention.map((layer) => layer.createCache());
    try {
      const parts = [await this.run([tokens.slice(0, prompt)], caches)];
      for (const token of tokens.slice(prompt)) parts.push(await this.run([[token]], caches));
      const logits = new Float32Array(tokens.length * vocabulary);
      let end = 0;
      for (const { data } of parts.map((part) => part.logits)) {
        logits.set(data, end);
        end += data.length;
      }
      const bytes = caches.reduce((sum, { byteLength }) => sum + byteLength, 0);
      return { logits: tensor(logits, [tokens.length, vocabulary]), bytes };
    } finally {
      for (const cache of caches) cache.dispose();
    }
  }
}

/** Rows of root mean square 1. */
function normalised(rows: Float32Array): Float32Array {
  const result = new Float32Array(rows.length);
  for (let start = 0; start < rows.length; start += modelDim) {
    const row = rows.subarray(start, start + modelDim);
    const meanSquare = row.reduce((sum, value) => sum + value ** 2, 0) / modelDim;
    result.set(
      row.map((value) => value / Math.sqrt(meanSquare + 1e-6)),
      start,
    );
  }
  return result;
}

function gated(gate: Tensor, up: Tensor): Tensor {
  const [gates, ups] = [gate.data as Float32Array, up.data as Float32Array];
  const silu = (value: number) => value / (1 + Math.exp(-value));
  return tensor(
    gates.map((value, i) => silu(value) * ups[i]),
    gate.dims,
  );
}

function add(stream: Float32Array, { data }: Tensor): void {
  for (let i = 0; i < stream.length; i++) stream[i] += (data as Float32Array)[i];
}
