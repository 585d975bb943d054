import { type Feeds, Onnxruntime, type OnnxTensor } from '../lib/cli/peer/onnxruntime';
import type { MaskTensor, Tensor } from '../lib/tensor';
import { expectAttention } from './expectation';
import type { AttentionMeaning } from './problem';
import { compare } from './tolerance';

export const peer = Onnxruntime.load();

/** Runs a model once, on threads that do not outlive it. */
export async function run(model: Uint8Array, feeds: Feeds): Promise<Readonly<Record<string, OnnxTensor>>> {
  const session = await peer.session(model, 2, false);
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

/** A tensor as onnxruntime takes it. */
export function feed({ data, dims, type }: Tensor | MaskTensor, as: readonly number[] = dims): OnnxTensor {
  // onnxruntime refuses views with an odd start, and our test data lies in the middle of larger buffers.
  return peer.tensor(type, (data as Float32Array).slice(), as);
}

/**
 * Holds our answer against onnxruntime's. How far the two may be apart is the error budget of float32 attention
 * (`tolerance.ts`), with onnxruntime's answer in the reference's place.
 */
export function expectSame(
  ours: Tensor,
  theirs: OnnxTensor,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  meaning: AttentionMeaning,
): void {
  const { output } = expectAttention(q, k, v, meaning);
  compare(ours, { ...output, values: Float64Array.from(theirs.data as Float32Array) });
}
