import { type Call, type CallOptions, callOptionNames, checkLayout, nothing } from './call';
import { checkOut, type Operand } from './check';
import { expected, Text } from './errors';
import type { AttentionWithLse } from './full';
import { checkMask, checkSinks, type ScoreOptions, scoreNumbers, scoreOptionNames } from './full-options';
import { lrkvModelNumbers, lrkvModelOperands, sameLrkvModel } from './lrkv-model';
import { addon, typeNumbers } from './native';
import type { CacheMemory } from './paged-cache';
import { checkQueryRows, outputDims } from './qkv';
import { view } from './read';
import { allocate, type Tensor, type TensorOf } from './tensor';

/** Options of attention over caches: causal unless said otherwise. */
export interface AttendOptions extends CallOptions, ScoreOptions {}

export const attendOptionNames: ReadonlySet<string> = new Set([...callOptionNames, ...scoreOptionNames]);

/** One sequence of a call. */
export interface AttendEntry {
  /** Of the query, in messages. */
  readonly name: string;
  readonly cacheName: string;
  readonly memory: CacheMemory;
  readonly query: Tensor;
}

/** Attention of each entry's query over its cache, in one native call. */
export function attendCall(
  entries: readonly AttendEntry[],
  options: AttendOptions,
  withLse: boolean,
): Call<AttentionWithLse[]> {
  const rowsBeforeHeads = checkLayout(options.layout);
  const [{ memory: first }] = entries as [AttendEntry];
  const { headDim, valueDim, model } = first;
  const queries = entries.map(({ name, cacheName, memory, query }) => {
    checkAlike(cacheName, memory, first);
    return checkQueryRows(name, query, memory, 1, rowsBeforeHeads, 'cache');
  });
  const [
    {
      heads,
      query: { type },
    },
  ] = queries as [(typeof queries)[0]];
  for (const [index, { query, heads: own }] of queries.entries()) {
    const { name } = entries[index] as AttendEntry;
    if (own !== heads) throw expected('ERR_SHAPE', name, `${heads} heads as in the first query`, query.dims);
    if (query.type !== type) throw expected('ERR_TYPE', name, `type '${type}' as in the first query`, query.type);
  }
  const rows = queries.map((each) => each.queries);
  const mask = checkMask(options.mask, [1, heads, rows[0] as number, first.length]);
  const scores = scoreNumbers(options, true, headDim, mask);
  const modelOperands = model === null ? [] : lrkvModelOperands(model);
  const inputs = [...queries.map(({ query }) => query.data), mask.data, ...modelOperands];
  const outputs = rows.map((count) => {
    const dims = outputDims({ batch: 1, heads, queries: count, valueDim, rowsBeforeHeads });
    return options.out === undefined ? (allocate('out', dims, type) as Operand) : checkOut(options.out, dims, inputs);
  });
  const lses = withLse ? rows.map((count) => allocate('out', [1, heads, count], 'float32')) : null;
  const sinks = checkSinks(options.sinks, heads);
  const op = model === null ? addon.cached : addon.lrkvCached;
  return {
    op: outputs.every(({ data }) => view.length(data) === 0) ? nothing : op,
    operands: [
      // Only now: the caller's getters have run, and may have disposed a cache.
      entries.map(({ cacheName, memory }) => memory.use(cacheName)),
      queries.map(({ query }) => query.data),
      outputs.map(({ data }) => data),
      lses?.map(({ data }) => data) ?? null,
      mask.data === null ? null : [mask.data],
      sinks,
      ...modelOperands,
    ],
    // Not Float64Array.of: a call takes only so many arguments, a batch may be longer.
    numbers: Float64Array.from([
      typeNumbers[type],
      typeNumbers[(outputs[0] as Operand).type],
      heads,
      rowsBeforeHeads ? 1 : 0,
      ...scores,
      ...(model === null ? [] : lrkvModelNumbers(model)),
      ...rows,
    ]),
    options,
    result: outputs.map((output, index) => ({
      output: options.out ?? (output as Tensor),
      lse: lses?.[index] as TensorOf<'float32'>,
    })),
  };
}

/** One kernel call reads all caches, so they must be of one kind and shape and, for LRKV, of one model. */
function checkAlike(name: string, cache: CacheMemory, first: CacheMemory): void {
  if (cache === first) return;
  if ((cache.model === null) !== (first.model === null))
    throw expected('ERR_ARGUMENT', name, `${first.kind} as the first cache`, new Text(cache.kind));
  const { heads, headDim, valueDim, type } = cache;
  if (heads !== first.heads || headDim !== first.headDim || valueDim !== first.valueDim || type !== first.type) {
    const received = new Text(`${heads} heads of ${headDim} and ${valueDim}, '${type}'`);
    throw expected('ERR_SHAPE', name, 'heads, head sizes and type as in the first cache', received);
  }
  if (cache.model !== null && first.model !== null && !sameLrkvModel(cache.model, first.model))
    throw expected('ERR_ARGUMENT', name, 'the model of the first cache', new Text('one of another model'));
}
