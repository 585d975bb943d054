// How far a converted encoder is from the original: in keys and values, in what attention gives, in the embeddings, and in
// what a search finds.
import { approximationError, matmul } from '../../lib';
import type { EncodeOptions } from '../../lib/cli/sentence-encoder/encoder';
import type { EncoderWeights, Linear, Matrix } from '../../lib/cli/sentence-encoder/weights';
import { encodeAll } from '../sentence-encoder/batches';
import { search } from '../sentence-encoder/search';
import { type AttentionInput, attentionInputs, attentionOutputs, validRows } from './encoder';
import { spread } from './split';

type Sentences = readonly (readonly number[])[];

/** What is asked and what is searched, as ids of pieces. */
export interface Evaluation {
  readonly passages: Sentences;
  readonly queries: Sentences;
  /** Of each query: the passage it stands in, which counts as no answer, or −1. */
  readonly own: readonly number[];
}

/** Relative errors ‖converted − original‖ / ‖original‖, Frobenius norm, of one layer that gets the original's inputs. */
export interface LayerError {
  readonly keys: number;
  readonly values: number;
  /** Of what attention adds to the residual. */
  readonly output: number;
}

export interface Quality {
  readonly layers: readonly LayerError[];
  /** Cosine of each passage's embedding to the original's. */
  readonly cosine: { readonly mean: number; readonly fifthPercentile: number; readonly least: number };
  /** Share of the queries whose best passage is the original's. */
  readonly agreementAt1: number;
  /** Share of the original's best ten passages among the best ten, mean over the queries. */
  readonly agreementAt10: number;
}

/** Pieces on which the layers are compared: more change no figure that is shown. */
const layerPieces = 8192;

interface Original {
  readonly keys: Matrix;
  readonly values: Matrix;
  readonly output: Matrix;
  readonly inputs: readonly AttentionInput[];
}

/** The original's side of every comparison, computed once. */
export class Evaluator {
  private constructor(
    private readonly evaluation: Evaluation,
    private readonly options: EncodeOptions,
    private readonly layers: readonly Original[],
    private readonly embeddings: Matrix,
    private readonly answers: readonly (readonly number[])[],
  ) {}

  static async of(weights: EncoderWeights, evaluation: Evaluation, options: EncodeOptions = {}): Promise<Evaluator> {
    const inputs = await attentionInputs(
      weights,
      spread(evaluation.passages, (ids) => ids.length, layerPieces),
      options,
    );
    const layers: Original[] = [];
    for (const [index, layer] of weights.layers.entries()) {
      const rows = validRows(inputs[index]);
      layers.push({
        keys: await project(layer.key, rows),
        values: await project(layer.value, rows),
        output: await attentionOutputs(layer, inputs[index]),
        inputs: inputs[index],
      });
    }
    const { embeddings, answers } = await ask(weights, evaluation, options);
    return new Evaluator(evaluation, options, layers, embeddings, answers);
  }

  async quality(converted: EncoderWeights): Promise<Quality> {
    const layers: LayerError[] = [];
    for (const [index, layer] of converted.layers.entries()) {
      const { keys, values, output, inputs } = this.layers[index];
      const rows = validRows(inputs);
      layers.push({
        keys: approximationError(await project(layer.key, rows), keys).relativeFrobenius,
        values: approximationError(await project(layer.value, rows), values).relativeFrobenius,
        output: approximationError(await attentionOutputs(layer, inputs), output).relativeFrobenius,
      });
    }
    const { embeddings, answers } = await ask(converted, this.evaluation, this.options);
    return { layers, cosine: cosines(this.embeddings, embeddings), ...agreement(this.answers, answers) };
  }
}

/** x · kernel + bias. */
async function project({ kernel, bias }: Linear, x: Matrix): Promise<Matrix> {
  const product = (await matmul(x, kernel)) as Matrix;
  for (let i = 0; i < product.data.length; i++) product.data[i] += bias[i % bias.length];
  return product;
}

const answersAsked = 10;

async function ask(
  weights: EncoderWeights,
  { passages, queries, own }: Evaluation,
  options: EncodeOptions,
): Promise<{ embeddings: Matrix; answers: readonly (readonly number[])[] }> {
  const embeddings = await encodeAll(weights, passages, options);
  const asked = await encodeAll(weights, queries, options);
  // One more than are compared, for the passage that the query stands in.
  const hits = await search(asked, embeddings, answersAsked + 1);
  const answers = hits.map((found, query) => found.map(({ index }) => index).filter((index) => index !== own[query]));
  return { embeddings, answers: answers.map((indices) => indices.slice(0, answersAsked)) };
}

/** Of rows of length 1. */
export function cosines(expected: Matrix, received: Matrix): Quality['cosine'] {
  const [rows, width] = expected.dims;
  const all = new Float64Array(rows);
  for (let row = 0; row < rows; row++) {
    for (let i = row * width; i < (row + 1) * width; i++) all[row] += expected.data[i] * received.data[i];
  }
  all.sort();
  const mean = all.reduce((sum, cosine) => sum + cosine, 0) / rows;
  return { mean, fifthPercentile: all[Math.floor(0.05 * rows)], least: all[0] };
}

/** Of the best passages of each query, best first. */
export function agreement(
  expected: readonly (readonly number[])[],
  received: readonly (readonly number[])[],
): Pick<Quality, 'agreementAt1' | 'agreementAt10'> {
  const mean = (share: (query: number) => number) =>
    expected.reduce((sum, _, query) => sum + share(query), 0) / expected.length;
  return {
    agreementAt1: mean((query) => Number(expected[query][0] === received[query][0])),
    agreementAt10: mean((query) => {
      const found = new Set(received[query]);
      return expected[query].filter((index) => found.has(index)).length / expected[query].length;
    }),
  };
}
