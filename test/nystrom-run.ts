import { nystromAttentionSync } from '../lib';
import type { DataType, Tensor } from '../lib/tensor';
import { guarded, type Inputs } from './data';
import type { Run } from './full-run';
import { type NystromMeaning, referenceNystrom } from './reference-nystrom';
import { compare, type Expected } from './tolerance';

/** What Nyström attention must give, with its error budget. */
export function expectNystrom({ q, k, v }: Inputs, options: NystromMeaning = {}): Expected {
  const [keys, headDim] = [options.layout === 'blhd' ? k.dims[1] : k.dims[2], q.dims[3]];
  return {
    ...referenceNystrom(q, k, v, options),
    naive: referenceNystrom(q, k, v, options, Math.fround).values,
    terms: headDim + keys,
  };
}

/**
 * One call into a guarded output, held against the reference.
 *
 * @returns the output, which passed
 */
export function checkNystrom(
  inputs: Inputs,
  options: NystromMeaning = {},
  run: Run & { readonly type?: DataType } = {},
  expected: Expected = expectNystrom(inputs, options),
): Tensor {
  const { q, k, v } = inputs;
  const { type = q.type, ...how } = run;
  const out = guarded(expected.dims, type);
  const output = nystromAttentionSync(q, k, v, { ...options, ...how, out: out.tensor });
  out.check();
  expect(output.data).toBe(out.tensor.data);
  const share = compare(output, expected, `output (${run.isa ?? 'auto'})`);
  if (process.env.SHARES) console.log(share, run.isa, expect.getState().currentTestName);
  return output;
}
