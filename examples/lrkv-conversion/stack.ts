// A decoder whose layers all become LRKV, in several ways, judged by what becomes of its logits on tokens that the conversion
// has not seen.
import {
  approximationError,
  attentionLayer,
  attentionRowKl,
  type FitOptions,
  fitLrkv,
  type KvCache,
  type LrkvCache,
  type LrkvReport,
  type LrkvWeights,
  lrkvLayer,
  randomNormal,
  type Tensor,
  tensor,
} from '../../lib';
import type { AttentionWeights } from '../../lib/weights';
import { Decoder, type DecoderRun, type DecoderWeights, structuredDecoder } from './decoder';
import { meanBased } from './mean-base';
import { headDim, heads } from './structured';
import { TokenSource } from './tokens';

/**
 * Ways to convert keys and values, all at 37.5 % of what they are: without a base; with the mean of the heads, see
 * {@link meanBased}; as `fitLrkv` does with a base of gauge 1 and with the best gauge there is, where they are better than
 * none; with residuals that rotate by themselves.
 */
export const ways = ['none', 'mean', 'identity', 'fitted', 'intertwined'] as const;
export type Way = (typeof ways)[number];

const all = (of: (head: number) => number) => Array.from({ length: heads }, (_, head) => of(head));
/** With a base of headDim for 8 heads: 37.5 %. */
const rank = headDim / 4;
/** The same memory without one is rank 12 of 32, which caches store as 8 or 16. */
const baselessRanks = all((head) => (head % 2 === 0 ? 2 * rank : rank));

export interface StackOptions {
  readonly layers: number;
  /** Sequences to calibrate on, and as many others to judge by. */
  readonly sequences: number;
  readonly length: number;
}

export interface StackError {
  /** Of the residual stream after each layer: ‖converted − original‖ / ‖original‖, Frobenius norm. */
  readonly states: readonly number[];
  /** The same of the logits. */
  readonly logits: number;
  /** Mean divergence of the next token's distribution from the original's, in nats. */
  readonly kl: number;
  /** Share of the positions whose likeliest next token is the original's. */
  readonly sameBest: number;
}

/** Converted layers, and what `fitLrkv` says of them, if it was asked for just that. */
export interface Conversion {
  readonly layers: LrkvWeights[];
  readonly report?: LrkvReport;
}

/** A decoder of known structure, to be converted and judged. */
export class Stack {
  private constructor(
    private readonly weights: DecoderWeights,
    private readonly fit: Pick<FitOptions, 'calibration'>,
    /** Its layers as LRKV of whole rank: the same but for rounding. */
    readonly whole: readonly LrkvWeights[],
    /** Sequences it is judged by, none of those it is calibrated on, and what it makes of them. */
    readonly judged: readonly (readonly number[])[],
    readonly run: DecoderRun,
  ) {}

  static async of(shared: number, { layers, sequences, length }: StackOptions): Promise<Stack> {
    const weights = structuredDecoder(shared, layers);
    const source = new TokenSource(1);
    const streams = (seed: number) => Array.from({ length: sequences }, (_, i) => source.stream(length, seed + i));
    const decoder = Decoder.of(weights);
    const { inputs: calibration } = await decoder.run(streams(1000));
    const attention = weights.blocks.map((block) => block.attention);
    const whole = await fitLrkv(attention, { rank: headDim, gauge: 'none', calibration });
    const judged = streams(2000);
    return new Stack(weights, { calibration }, whole.layers, judged, await decoder.run(judged));
  }

  private get layers(): readonly AttentionWeights[] {
    return this.weights.blocks.map(({ attention }) => attention);
  }

  async convert(way: Way): Promise<Conversion> {
    const { layers, fit } = this;
    switch (way) {
      case 'none':
        return await fitLrkv(layers, {
          ...fit,
          ranks: layers.map(() => ({ key: baselessRanks, value: baselessRanks })),
          gauge: 'none',
        });
      case 'mean':
        return { layers: await meanBased(layers, { ...fit, rank }) };
      case 'identity':
        return await fitLrkv(layers, { ...fit, rank, gauge: 'identity' });
      case 'fitted':
        return await fitLrkv(layers, { ...fit, rank });
      case 'intertwined':
        return await fitLrkv(layers, { ...fit, rank, ropeMode: 'intertwined' });
    }
  }

  /** Both sides in so much of the cache that is allocated. */
  async within(budget: number, ropeMode: 'exact' | 'intertwined'): Promise<LrkvWeights[]> {
    return (await fitLrkv(this.layers, { ...this.fit, budget, ropeMode })).layers;
  }

  /** Keys or values of a conversion, the other side whole. */
  only(side: 'key' | 'value', converted: readonly LrkvWeights[]): LrkvWeights[] {
    const ofSide = (name: string) => name.startsWith(side) || (name === 'ropeMode' && side === 'key');
    return this.whole.map((layer, i) => {
      const parts = Object.entries(converted[i]).filter(([name]) => ofSide(name));
      return { ...layer, ...Object.fromEntries(parts) };
    });
  }

  /** The decoder with converted layers; those that are undefined stay as they were. */
  with(converted: readonly (LrkvWeights | undefined)[]): Decoder<LrkvCache | KvCache> {
    const layers = converted.map((layer, i) =>
      layer === undefined ? attentionLayer(this.layers[i]) : lrkvLayer(layer),
    );
    return new Decoder<LrkvCache | KvCache>(this.weights, layers);
  }

  async errorOf(converted: readonly (LrkvWeights | undefined)[]): Promise<StackError> {
    return await this.errorWith(this.with(converted));
  }

  /** Of the decoder itself, with random numbers added to the output projection of its first layer, a tenth of its own. */
  async errorOfNoise(): Promise<StackError> {
    const { data, dims } = randomNormal<'float32'>(this.layers[0].output.dims, { seed: 7 });
    const own = this.layers[0].output.data as Float32Array;
    const output = tensor(
      data.map((value, i) => own[i] + value / 10),
      dims,
    );
    const layers = this.layers.map((layer, i) => attentionLayer(i === 0 ? { ...layer, output } : layer));
    return await this.errorWith(new Decoder(this.weights, layers));
  }

  private async errorWith<Cache extends LrkvCache | KvCache>(decoder: Decoder<Cache>): Promise<StackError> {
    const { states, logits } = await decoder.run(this.judged);
    const { run: original } = this;
    const error = (received: Tensor, expected: Tensor) => approximationError(received, expected).relativeFrobenius;
    return {
      states: states.map((state, layer) => error(state, original.states[layer])),
      logits: error(logits, original.logits),
      kl: attentionRowKl(softmax(original.logits), softmax(logits)).mean,
      sameBest: agreement(best(original.logits), best(logits)),
    };
  }
}

/** Of the rows. */
export function softmax({ data, dims }: Tensor<Float32Array>): Tensor<Float32Array> {
  const result = new Float32Array(data.length);
  const [, columns] = dims;
  for (let start = 0; start < data.length; start += columns) {
    const row = data.subarray(start, start + columns);
    const most = Math.max(...row);
    const weights = row.map((logit) => Math.exp(logit - most));
    const sum = weights.reduce((a, b) => a + b);
    result.set(
      weights.map((weight) => weight / sum),
      start,
    );
  }
  return tensor(result, dims);
}

/** The column of the largest number of each row. */
export function best({ data, dims: [rows, columns] }: Tensor<Float32Array>): number[] {
  return Array.from({ length: rows }, (_, row) => {
    const logits = data.subarray(row * columns, (row + 1) * columns);
    return logits.indexOf(Math.max(...logits));
  });
}

function agreement(expected: readonly number[], received: readonly number[]): number {
  return expected.filter((one, i) => one === received[i]).length / expected.length;
}
