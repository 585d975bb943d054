import { attentionWithLseSync } from '../lib';
import type { Tensor } from '../lib/tensor';
import { guarded, type Inputs } from './data';
import { expectAttention } from './expectation';
import type { AttentionMeaning } from './problem';
import { compare } from './tolerance';

/** How a kernel is run, which must not change what it gives beyond rounding. */
export interface Run {
  readonly isa?: string;
  readonly threads?: number;
}

export type AttentionExpectation = ReturnType<typeof expectAttention>;

/**
 * One call into a guarded output, held against the reference.
 *
 * @returns the output and lse, which passed
 */
export function checkAttention(
  { q, k, v }: Inputs,
  options: AttentionMeaning = {},
  run: Run = {},
  expected: AttentionExpectation = expectAttention(q, k, v, options),
): { readonly output: Tensor; readonly lse: Tensor } {
  const out = guarded(expected.output.dims, q.type);
  const { output, lse } = attentionWithLseSync(q, k, v, { ...options, ...run, out: out.tensor });
  out.check();
  expect(output.data).toBe(out.tensor.data);
  compare(output, expected.output, `output (${run.isa ?? 'auto'})`);
  compare(lse, expected.lse, `lse (${run.isa ?? 'auto'})`);
  return { output, lse };
}

/** The raw bits of a tensor, for comparisons in which −0 and every NaN count as they are. */
export function bitsOf({ data }: Tensor): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** Throws unless two tensors have the same dims, type and bits. */
export function expectSameBits(found: Tensor, wanted: Tensor): void {
  expect(found.dims).toEqual(wanted.dims);
  expect(found.type).toBe(wanted.type);
  const [a, b] = [bitsOf(found), bitsOf(wanted)];
  const at = Buffer.compare(a, b) === 0 ? -1 : a.findIndex((byte, i) => byte !== b[i]);
  if (at >= 0) {
    const element = Math.floor(at / found.data.BYTES_PER_ELEMENT);
    throw new Error(`element ${element} of ${found.data.length}: ${found.data[element]} and ${wanted.data[element]}`);
  }
}
