import { encode } from '../../lib/cli/sentence-encoder/encoder';
import type { EncoderWeights } from '../../lib/cli/sentence-encoder/weights';
import { Workspace } from '../../lib/cli/sentence-encoder/workspace';
import { batchesOf } from './batches';
import type { Peer } from './peer';
import { plural } from './print';

/** Embeddings further apart than this mean that one of the two computes something else. */
export const tolerance = 1e-5;

type Batch = readonly (readonly number[])[];

export interface Contender {
  readonly name: string;
  /** Sentences a second: the median of the rounds. */
  readonly rate: number;
}

export interface Comparison {
  readonly sentences: number;
  readonly pieces: number;
  /** Largest absolute difference of any element of any embedding, of unit length, from the peer's. */
  readonly difference: number;
  /** The peer first. */
  readonly contenders: readonly Contender[];
}

/**
 * Encodes the same batches with tfjs and with this package, on as many threads as tfjs has and on `threads`: first to
 * compare the embeddings, then, in turn, to compare the time.
 *
 * @param threads of the last contender
 */
export async function compare(
  weights: EncoderWeights,
  peer: Peer,
  sentences: readonly (readonly number[])[],
  threads: number,
  rounds = 3,
): Promise<Comparison> {
  const batches = batchesOf(sentences, 1024).map((batch) => batch.map((index) => sentences[index]));
  const workspace = new Workspace();
  let difference = 0;
  for (const batch of batches) {
    const expected = await peer.embed(batch);
    const received = await encode(weights, batch, { threads, workspace });
    difference = Math.max(difference, largestDifference(expected, received.data));
  }

  const contestants = [
    { name: peer.name, run: (batch: Batch): Promise<unknown> => peer.embed(batch) },
    ...Array.from(new Set([peer.threads, threads]), (count) => ({
      name: `lowrank-attention (${plural(count, 'thread')})`,
      run: (batch: Batch): Promise<unknown> => encode(weights, batch, { threads: count, workspace }),
    })),
  ].map((contestant) => ({ ...contestant, seconds: [] as number[] }));
  for (let round = 0; round < rounds; round++) {
    for (const { run, seconds } of contestants) {
      const start = performance.now();
      for (const batch of batches) await run(batch);
      seconds.push((performance.now() - start) / 1000);
    }
  }

  return {
    sentences: sentences.length,
    pieces: sentences.reduce((sum, ids) => sum + ids.length, 0),
    difference,
    contenders: contestants.map(({ name, seconds }) => ({ name, rate: sentences.length / median(seconds) })),
  };
}

/** NaN if any element is NaN on either side, or if the lengths differ. */
export function largestDifference(expected: Float32Array, received: Float32Array): number {
  if (expected.length !== received.length) return Number.NaN;
  return expected.reduce((largest, value, index) => Math.max(largest, Math.abs(value - received[index])), 0);
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}
