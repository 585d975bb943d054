import { matmul } from '../../lib';
import type { Matrix } from '../../lib/cli/sentence-encoder/weights';

export interface Hit {
  /** Row of the passage. */
  readonly index: number;
  /** Cosine similarity, at most 1. */
  readonly score: number;
}

/**
 * The passages most similar to each query, best first.
 *
 * @param queries [queries, 512], rows of length 1
 * @param passages [passages, 512], rows of length 1
 */
export async function search(queries: Matrix, passages: Matrix, top: number): Promise<Hit[][]> {
  const scores = await matmul(queries, passages, { transposeB: true }); // [queries, passages]
  const [rows, columns] = scores.dims;
  return Array.from({ length: rows }, (_, query) =>
    Array.from({ length: columns }, (_, index) => ({ index, score: Number(scores.data[query * columns + index]) }))
      .sort((a, b) => b.score - a.score)
      .slice(0, top),
  );
}
