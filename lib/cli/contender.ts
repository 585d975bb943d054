import type { Shape } from './suite';

/** One side of a comparison: something that is called, checked, and timed. */
export interface Contender {
  readonly name: string;
  /** `machine` probes what the hardware gives at that moment: they have no answer to check. */
  readonly side: 'ours' | 'peer' | 'machine';
  /** Useful arithmetic of a call: what causality or a window hides does not count, whoever computes it. */
  readonly flops: number;
  /** Bytes that a call cannot avoid reading from memory or writing to it, where that is what takes the time; else 0. */
  readonly bytes: number;
  /** What the caches of a decode step take, pages that are not full included. */
  readonly cacheBytes?: number;
  /** Times of the other rows are set against this one's, byte for byte. */
  readonly yardstick?: boolean;
  readonly call: () => unknown;
  /**
   * Makes one call and checks its answer.
   *
   * @returns the largest relative error
   * @throws WrongAnswer
   */
  readonly check?: () => Promise<number>;
  readonly dispose?: () => Promise<void> | void;
}

/** Multiplications and additions of softmax(q kᵀ) v over the keys that are seen. */
export function attentionFlops({ n, heads, dim }: Shape, causal: boolean, window = n): number {
  const seen = causal ? window * n - (window * (window - 1)) / 2 : n * n;
  return 4 * heads * dim * seen;
}

/** The same for one query over n keys. */
export function decodeFlops({ n, heads, dim }: Shape): number {
  return 4 * heads * dim * n;
}

/** Keys and values of n positions. */
export function kvBytes({ n, kvHeads, dim }: Shape, elementBytes: number): number {
  return 2 * n * kvHeads * dim * elementBytes;
}
