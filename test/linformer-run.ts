import { linformerAttentionSync } from '../lib';
import type { DataType, Tensor } from '../lib/tensor';
import { filled, guarded, type Inputs, normal } from './data';
import type { Run } from './full-run';
import { expectLinformer, type LinformerMeaning } from './reference-linformer';
import { compare, type Expected } from './tolerance';

/** Normal projections whose products with normal rows are normal again, over the whole of maxLength. */
export function projection(dims: readonly number[], seed: number, type: DataType = 'float32'): Tensor {
  const plain = normal(dims, seed).data;
  const deviation = 1 / Math.sqrt(dims.at(-1) ?? 1);
  return filled(dims, type, (i) => deviation * plain[i]);
}

/** One call into a guarded output, held against the reference. */
export function checkLinformer(
  { q, k, v }: Inputs,
  meaning: LinformerMeaning,
  run: Run = {},
  expected: Expected = expectLinformer(q, k, v, meaning),
): Tensor {
  const out = guarded(expected.dims, q.type);
  const output = linformerAttentionSync(q, k, v, { ...meaning, ...run, out: out.tensor });
  out.check();
  expect(output.data).toBe(out.tensor.data);
  compare(output, expected, `output (${run.isa ?? 'auto'})`);
  return output;
}
