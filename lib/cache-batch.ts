import type { KvCache } from './cache';
import { type AttendEntry, type AttendOptions, attendCall, attendOptionNames } from './cache-attend';
import { type Call, runAsync, runSync } from './call';
import { checkOptions } from './check';
import { expected } from './errors';
import type { AttentionWithLse } from './full';
import type { LrkvCache } from './lrkv-cache';
import { memoryOf } from './paged-cache';
import { attempt, isArray, readList } from './read';
import type { Tensor } from './tensor';

/** One sequence of {@link attendBatch}. */
export interface AttendItem {
  readonly cache: KvCache | LrkvCache;
  /** `[1, heads, queries, headDim]` */
  readonly query: Tensor;
}

/**
 * One decode step of many sequences of different lengths in one call, on a worker thread. Every sequence's result is
 * the same, bit for bit, as `attend` alone would give. Caches must agree in kind, heads, head sizes and type, those of
 * LRKV in their model, too: forks, and caches made with the same tensors. Query lengths may differ.
 *
 * @param items caches and their queries; a cache may appear more than once
 * @param options as for `attend`; `out` and `mask` are refused, as each sequence would need its own
 * @returns one output an item, `[1, heads, queries, valueDim]` of its query's type
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_UNSUPPORTED, ERR_DEVICE, ERR_MEMORY,
 *   ERR_ABORTED, ERR_CLOSED
 */
export async function attendBatch(items: readonly AttendItem[], options?: AttendOptions): Promise<Tensor[]> {
  return (await runAsync(attendBatch, () => prepare(items, options, false))).map(({ output }) => output);
}

/** {@link attendBatch} on the calling thread. */
export function attendBatchSync(items: readonly AttendItem[], options?: AttendOptions): Tensor[] {
  return runSync(attendBatchSync, () => prepare(items, options, false)).map(({ output }) => output);
}

/**
 * {@link attendBatch} that also returns each row's log-sum-exp, `[1, heads, queries]` an item, so that parts of a sequence
 * in caches of their own can be merged with `mergeAttention`.
 */
export async function attendBatchWithLse(
  items: readonly AttendItem[],
  options?: AttendOptions,
): Promise<AttentionWithLse[]> {
  return await runAsync(attendBatchWithLse, () => prepare(items, options, true));
}

/** {@link attendBatchWithLse} on the calling thread. */
export function attendBatchWithLseSync(items: readonly AttendItem[], options?: AttendOptions): AttentionWithLse[] {
  return runSync(attendBatchWithLseSync, () => prepare(items, options, true));
}

function prepare(
  items: readonly AttendItem[],
  given: AttendOptions | undefined,
  withLse: boolean,
): Call<AttentionWithLse[]> {
  const options: AttendOptions = checkOptions('options', given, attendOptionNames);
  for (const name of ['out', 'mask'] as const) {
    if (options[name] !== undefined)
      throw expected('ERR_UNSUPPORTED', name, 'nothing in a batch of caches', options[name]);
  }
  const atLeastOne = (count: number): boolean => count > 0;
  const entries = isArray(items) ? readList('items', items, atLeastOne, checkItem) : undefined;
  if (entries === undefined)
    throw expected('ERR_ARGUMENT', 'items', 'an array of at least one { cache, query }', items);
  return attendCall(entries, options, withLse);
}

function checkItem(item: unknown, index: number): AttendEntry {
  const name = `items[${index}]`;
  if (typeof item !== 'object' || item === null) throw expected('ERR_TYPE', name, '{ cache, query }', item);
  const { cache, query } = attempt(name, () => {
    const { cache, query } = item as AttendItem;
    return { cache, query };
  });
  const entry = { name: `${name}.query`, cacheName: `${name}.cache`, memory: memoryOf(`${name}.cache`, cache), query };
  entry.memory.use(entry.cacheName);
  return entry;
}
