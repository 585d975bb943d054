import { type EncodeOptions, encode, maxPieces } from '../../lib/cli/sentence-encoder/encoder';
import { type EncoderWeights, type Matrix, matrix } from '../../lib/cli/sentence-encoder/weights';
import { Workspace } from '../../lib/cli/sentence-encoder/workspace';

/** Pieces of a batch, padding included: enough rows to keep every thread busy, few enough for the larger caches. */
const batchPieces = 2048;

/**
 * Puts sentences of similar length together, so that little of a batch is padding.
 *
 * @returns indices into `sentences`, every one once; the longest sentences come first, so that the time left is never guessed too low
 */
export function batchesOf(sentences: readonly (readonly number[])[], pieces = batchPieces): number[][] {
  const lengthOf = (index: number) => Math.min(sentences[index].length, maxPieces);
  const order = Array.from(sentences.keys()).sort((a, b) => lengthOf(b) - lengthOf(a));
  const batches: number[][] = [];
  for (let start = 0; start < order.length; ) {
    const longest = Math.max(1, lengthOf(order[start]));
    const end = start + Math.max(1, Math.floor(pieces / longest));
    batches.push(order.slice(start, end));
    start = end;
  }
  return batches;
}

/**
 * Encodes any number of sentences, batch by batch.
 *
 * @param onBatch told the indices of the sentences just encoded
 * @returns [sentences, 512], in the order of `sentences`
 */
export async function encodeAll(
  weights: EncoderWeights,
  sentences: readonly (readonly number[])[],
  options: EncodeOptions = {},
  onBatch: (indices: readonly number[]) => void = () => {},
): Promise<Matrix> {
  const width = weights.head.bias.length;
  const workspace = options.workspace ?? new Workspace();
  const all = new Float32Array(sentences.length * width);
  for (const batch of batchesOf(sentences)) {
    const embeddings = await encode(
      weights,
      batch.map((index) => sentences[index]),
      { ...options, workspace },
    );
    for (const [row, index] of batch.entries()) {
      all.set(embeddings.data.subarray(row * width, (row + 1) * width), index * width);
    }
    onBatch(batch);
  }
  return matrix(all, sentences.length, width);
}
