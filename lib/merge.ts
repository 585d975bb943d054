import { type Call, type CallOptions, callOptionNames, checkLayout, nothing, runAsync, runSync } from './call';
import { checkOptions, checkOut, checkTensor, type Operand } from './check';
import { expected } from './errors';
import type { AttentionWithLse } from './full';
import type { Layout } from './full-options';
import { addon, typeNumbers } from './native';
import { attempt, isArray, readList } from './read';
import { allocate, type Tensor, type TensorOf } from './tensor';

/** Options of {@link mergeAttention}. */
export interface MergeOptions extends CallOptions {
  /** Axis order of the outputs. Default `'bhld'`. */
  readonly layout?: Layout;
}

const optionNames: ReadonlySet<string> = new Set([...callOptionNames, 'layout']);

/**
 * Exact attention over the union of disjoint key ranges, from attention over each: the outputs weighted by
 * exp(lse − lse of the union) (Ye et al. 2025, arXiv 2501.01005, section 2.2). Runs on a worker thread.
 *
 * @param parts one or more results of `attentionWithLse` on the same queries, all of one type: `output`
 *   `[batch, heads, length, dim]` in the call's layout, `lse` float32 `[batch, heads, length]`. A sink belongs to one part only.
 * @param options `out` must be of the parts' type
 * @returns the merged output, of the parts' type, and its lse
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function mergeAttention(
  parts: readonly AttentionWithLse[],
  options?: MergeOptions,
): Promise<AttentionWithLse> {
  return await runAsync(mergeAttention, () => prepare(parts, options));
}

/** {@link mergeAttention} on the calling thread. */
export function mergeAttentionSync(parts: readonly AttentionWithLse[], options?: MergeOptions): AttentionWithLse {
  return runSync(mergeAttentionSync, () => prepare(parts, options));
}

function checkPart(part: unknown, index: number): { readonly output: Operand; readonly lse: Operand } {
  const name = `parts[${index}]`;
  if (typeof part !== 'object' || part === null) throw expected('ERR_TYPE', name, '{ output, lse }', part);
  const { output, lse } = attempt(name, () => {
    const { output, lse } = part as AttentionWithLse;
    return { output, lse };
  });
  return { output: checkTensor(`${name}.output`, output, 4), lse: checkTensor(`${name}.lse`, lse, 3) };
}

function prepare(parts: readonly AttentionWithLse[], given: MergeOptions | undefined): Call<AttentionWithLse> {
  const options: MergeOptions = checkOptions('options', given, optionNames);
  const rowsBeforeHeads = checkLayout(options.layout);
  const atLeastOne = (count: number): boolean => count > 0;
  const checked = isArray(parts) ? readList('parts', parts, atLeastOne, checkPart) : undefined;
  if (checked === undefined) throw expected('ERR_ARGUMENT', 'parts', 'an array of at least one { output, lse }', parts);
  const { dims, type } = (checked[0] as { output: Operand }).output;
  const [batch, second, third, dim] = dims as [number, number, number, number];
  const [heads, length] = rowsBeforeHeads ? [third, second] : [second, third];
  const lseDims = [batch, heads, length];
  for (const [index, { output, lse }] of checked.entries()) {
    const name = `parts[${index}]`;
    if (output.dims.join() !== dims.join())
      throw expected('ERR_SHAPE', `${name}.output`, `dims [${dims.join(', ')}] as in the first part`, output.dims);
    if (output.type !== type)
      throw expected('ERR_TYPE', `${name}.output`, `type '${type}' as in the first part`, output.type);
    if (lse.dims.join() !== lseDims.join())
      throw expected('ERR_SHAPE', `${name}.lse`, `dims [${lseDims.join(', ')}]`, lse.dims);
    if (lse.type !== 'float32') throw expected('ERR_TYPE', `${name}.lse`, "type 'float32'", lse.type);
  }
  const memory = checked.flatMap(({ output, lse }) => [output.data, lse.data]);
  const output =
    options.out === undefined ? (allocate('out', dims, type) as Operand) : checkOut(options.out, dims, memory);
  if (output.type !== type) throw expected('ERR_TYPE', 'out', `type '${type}' as in the parts`, output.type);
  const lse = allocate('out', lseDims, 'float32') as TensorOf<'float32'>;
  return {
    // An output without columns still has its lse.
    op: lse.data.length === 0 ? nothing : addon.merge,
    operands: [output.data, lse.data, ...memory],
    numbers: Float64Array.of(typeNumbers[type], checked.length, batch, heads, length, dim, rowsBeforeHeads ? 1 : 0),
    options,
    result: { output: options.out ?? (output as Tensor), lse },
  };
}
