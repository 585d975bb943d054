import {
  type Call,
  type CallOptions,
  callOptionNames,
  checkDevice,
  checkLayout,
  failure,
  nothing,
  runAsync,
  runSync,
} from './call';
import { checkInteger, checkOptions, checkOut, checkTensor, checkType, type Operand } from './check';
import { expected, guard, Text } from './errors';
import type { AttentionWithLse } from './full';
import { checkMask, checkSinks, type Layout, type ScoreOptions, scoreNumbers, scoreOptionNames } from './full-options';
import { addon, type NativeKvCache, typeNumbers } from './native';
import { attempt, isArray, readList, view } from './read';
import { allocate, type DataType, type Tensor, type TensorOf } from './tensor';

/** What a {@link KvCache} holds. */
export interface KvCacheOptions {
  /** Key/value heads, >= 1. */
  readonly heads: number;
  /** Head size of the keys, >= 1. */
  readonly headDim: number;
  /** Head size of the values, >= 1. Default headDim. */
  readonly valueDim?: number;
  /** Most positions the cache may hold, >= 1; appending more is refused. Default: as memory allows. */
  readonly capacity?: number;
  /** Element type in memory; what is appended is converted to it. Default `'float32'`. */
  readonly type?: DataType;
  /** Where the cache lives. Default `'auto'`. */
  readonly device?: 'auto' | 'cpu';
}

/** Options of {@link KvCache.attend}: causal unless said otherwise. */
export interface AttendOptions extends CallOptions, ScoreOptions {}

/** One sequence of {@link attendBatch}. */
export interface AttendItem {
  readonly cache: KvCache;
  /** `[1, heads, queries, headDim]` */
  readonly query: Tensor;
}

const cacheOptionNames: ReadonlySet<string> = new Set(['heads', 'headDim', 'valueDim', 'capacity', 'type', 'device']);
const attendOptionNames: ReadonlySet<string> = new Set([...callOptionNames, ...scoreOptionNames]);
const appendOptionNames: ReadonlySet<string> = new Set(['layout']);

interface CheckedShape {
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly capacity: number;
  readonly type: DataType;
}

function checkShape(options: KvCacheOptions): CheckedShape {
  const most = 2 ** 31 - 1;
  if (options === undefined) throw expected('ERR_ARGUMENT', 'options', '{ heads, headDim, … }', options);
  const given = checkOptions<KvCacheOptions>('options', options, cacheOptionNames);
  const { heads, headDim, valueDim, capacity, type, device } = given;
  checkDevice(device);
  const shape = {
    heads: checkInteger('heads', heads, 1, most),
    headDim: checkInteger('headDim', headDim, 1, most),
    valueDim: checkInteger('valueDim', valueDim === undefined ? headDim : valueDim, 1, most),
    capacity: capacity === undefined ? Infinity : checkInteger('capacity', capacity, 1),
    type: checkType('type', type === undefined ? 'float32' : type),
  };
  const row = shape.heads * (shape.headDim + shape.valueDim);
  if (row > most) throw expected('ERR_SHAPE', 'options', `heads·(headDim + valueDim) of at most ${most}`, row);
  return shape;
}

/** A cache in use, whatever its prototype says. */
export function checkKvCache(name: string, cache: unknown): KvCache {
  nativeOf(name, cache);
  return cache as KvCache;
}

/** Whether a value is a cache, whatever its prototype says. */
let isCache: (value: unknown) => value is KvCache;

/** The native handle of a cache in use. Set by the class, so that nobody outside of this file gets at it. */
let nativeOf: (name: string, cache: unknown) => NativeKvCache;

/**
 * Keys and values of one sequence, kept between calls and grown token by token. Memory comes in pages of 128
 * positions that never move, so growing copies nothing and forks share their common prefix.
 *
 * Every call sees the cache as it was when the call was made: `append`, `truncate`, `fork` and `dispose` are safe while
 * `attend` calls are in flight, and any number of those may be.
 */
export class KvCache {
  static {
    isCache = (value): value is KvCache => typeof value === 'object' && value !== null && #native in value;
    nativeOf = (name, cache) => {
      if (!isCache(cache)) throw expected('ERR_TYPE', name, 'a KvCache', cache);
      if (cache.#native === undefined) throw expected('ERR_CLOSED', name, 'a cache in use', new Text('a disposed one'));
      return cache.#native;
    };
  }

  /** As given to the constructor, like the four below. */
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** `Infinity` when not given. */
  readonly capacity: number;
  readonly type: DataType;
  #length = 0;
  #native: NativeKvCache | undefined;

  /** @throws AttentionError ERR_ARGUMENT, ERR_TYPE */
  constructor(options: KvCacheOptions) {
    const shape = guard(KvCache, () => checkShape(options));
    this.heads = shape.heads;
    this.headDim = shape.headDim;
    this.valueDim = shape.valueDim;
    this.capacity = shape.capacity;
    this.type = shape.type;
    this.#native = new addon.KvCache(this.heads, this.headDim, this.valueDim, typeNumbers[this.type]);
  }

  /** Positions held. */
  get length(): number {
    return this.#length;
  }

  /** Bytes of all pages this cache holds, shared ones included; 0 once disposed. */
  get byteLength(): number {
    return this.#native?.bytes() ?? 0;
  }

  /** The part of `byteLength` that forks or calls in flight hold as well. */
  get sharedByteLength(): number {
    return this.#native?.sharedBytes() ?? 0;
  }

  /**
   * Appends the keys and values of one or many positions, on the calling thread: the cost is one copy.
   *
   * @param key `[1, heads, n, headDim]`
   * @param value `[1, heads, n, valueDim]`, of key's type
   * @param options `layout`: axis order, `'blhd'` for `[1, n, heads, dim]`
   * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_MEMORY, ERR_CLOSED; the cache is then as it was
   */
  append(key: Tensor, value: Tensor, options?: { readonly layout?: Layout }): void {
    guard(KvCache.prototype.append, () => {
      nativeOf('cache', this);
      const { layout } = checkOptions<{ layout?: Layout }>('options', options, appendOptionNames);
      const rowsBeforeHeads = checkLayout(layout);
      const keys = checkTensor('key', key, 4);
      const count = keys.dims[rowsBeforeHeads ? 1 : 2] as number;
      this.#checkRows('key', keys, count, this.headDim, rowsBeforeHeads);
      const values = checkTensor('value', value, 4);
      this.#checkRows('value', values, count, this.valueDim, rowsBeforeHeads);
      if (values.type !== keys.type)
        throw expected('ERR_TYPE', 'value', `type '${keys.type}' as in \`key\``, values.type);
      if (this.#length + count > this.capacity) {
        const room = `at most ${this.capacity - this.#length} more positions (capacity ${this.capacity})`;
        throw expected('ERR_MEMORY', 'key', room, count);
      }
      const numbers = Float64Array.of(typeNumbers[keys.type], count, rowsBeforeHeads ? 1 : 0);
      // Asked for again: the caller's getters have run since, and may have disposed the cache.
      const outcome = nativeOf('cache', this).append([keys.data, values.data], numbers);
      if (outcome !== undefined) throw failure(outcome);
      this.#length += count;
    });
  }

  /**
   * Attention of queries over everything held, on a worker thread. By default causal, the last query standing at the
   * last position.
   *
   * @param query `[1, heads, queries, headDim]`, heads a multiple of the cache's
   * @returns `[1, heads, queries, valueDim]` of query's type
   * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED, ERR_CLOSED
   */
  async attend(query: Tensor, options?: AttendOptions): Promise<Tensor> {
    return (await runAsync(KvCache.prototype.attend, () => prepareOne(this, query, options, false))).output;
  }

  /** {@link attend} on the calling thread. */
  attendSync(query: Tensor, options?: AttendOptions): Tensor {
    return runSync(KvCache.prototype.attendSync, () => prepareOne(this, query, options, false)).output;
  }

  /** {@link attend} that also returns each row's log-sum-exp, `[1, heads, queries]`. */
  async attendWithLse(query: Tensor, options?: AttendOptions): Promise<AttentionWithLse> {
    return await runAsync(KvCache.prototype.attendWithLse, () => prepareOne(this, query, options, true));
  }

  /** {@link attendWithLse} on the calling thread. */
  attendWithLseSync(query: Tensor, options?: AttendOptions): AttentionWithLse {
    return runSync(KvCache.prototype.attendWithLseSync, () => prepareOne(this, query, options, true));
  }

  /**
   * Forgets all positions from `length` on and gives their pages back.
   *
   * @param length 0 to the current length
   * @throws AttentionError ERR_ARGUMENT, ERR_CLOSED
   */
  truncate(length: number): void {
    guard(KvCache.prototype.truncate, () => {
      const native = nativeOf('cache', this);
      native.truncate(checkInteger('length', length, 0, this.#length));
      this.#length = length;
    });
  }

  /**
   * A second cache with the same contents. Its pages are shared until one side appends into a page that is half full,
   * which then copies that one page.
   *
   * @throws AttentionError ERR_CLOSED
   */
  fork(): KvCache {
    return guard(KvCache.prototype.fork, () => {
      const native = nativeOf('cache', this).fork();
      const { heads, headDim, valueDim, capacity, type } = this;
      const copy = new KvCache({ heads, headDim, valueDim, type, ...(capacity === Infinity ? {} : { capacity }) });
      copy.#native = native;
      copy.#length = this.#length;
      return copy;
    });
  }

  /** Gives the memory back now; calls in flight keep what they need. Every later use but this one is refused with `ERR_CLOSED`. */
  dispose(): void {
    guard(KvCache.prototype.dispose, () => {
      if (!isCache(this)) throw expected('ERR_TYPE', 'cache', 'a KvCache', this);
    });
    this.#native?.dispose();
    this.#native = undefined;
    this.#length = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #checkRows(name: string, rows: Operand, count: number, dim: number, rowsBeforeHeads: boolean): void {
    const dims = rowsBeforeHeads ? [1, count, this.heads, dim] : [1, this.heads, count, dim];
    if (rows.dims.some((extent, axis) => extent !== dims[axis]))
      throw expected('ERR_SHAPE', name, `dims [${dims.join(', ')}]`, rows.dims);
  }
}

/**
 * One decode step of many sequences of different lengths in one call, on a worker thread. Every sequence's result is
 * the same, bit for bit, as `attend` alone would give. Caches must agree in heads, head sizes and type; query lengths may differ.
 *
 * @param items caches and their queries; a cache may appear more than once
 * @param options as for `attend`; `out` and `mask` are refused, as each sequence would need its own
 * @returns one output an item, `[1, heads, queries, valueDim]` of its query's type
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED, ERR_CLOSED
 */
export async function attendBatch(items: readonly AttendItem[], options?: AttendOptions): Promise<Tensor[]> {
  return (await runAsync(attendBatch, () => attendBatchCall(items, options))).map(({ output }) => output);
}

/** {@link attendBatch} on the calling thread. */
export function attendBatchSync(items: readonly AttendItem[], options?: AttendOptions): Tensor[] {
  return runSync(attendBatchSync, () => attendBatchCall(items, options)).map(({ output }) => output);
}

function prepareOne(
  cache: KvCache,
  query: Tensor,
  given: AttendOptions | undefined,
  withLse: boolean,
): Call<AttentionWithLse> {
  const options: AttendOptions = checkOptions('options', given, attendOptionNames);
  nativeOf('cache', cache);
  const call = prepare([{ name: 'query', cacheName: 'cache', cache, query }], options, withLse);
  return { ...call, result: call.result[0] as AttentionWithLse };
}

/** The call of {@link attendBatch}. */
export function attendBatchCall(
  items: readonly AttendItem[],
  given: AttendOptions | undefined,
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
  return prepare(entries, options, false);
}

function checkItem(item: unknown, index: number): Entry {
  const name = `items[${index}]`;
  if (typeof item !== 'object' || item === null) throw expected('ERR_TYPE', name, '{ cache, query }', item);
  const entry = attempt(name, () => {
    const { cache, query } = item as AttendItem;
    return { name: `${name}.query`, cacheName: `${name}.cache`, cache, query };
  });
  nativeOf(entry.cacheName, entry.cache);
  return entry;
}

interface Entry {
  /** Of the query, in messages. */
  readonly name: string;
  readonly cacheName: string;
  readonly cache: KvCache;
  readonly query: Tensor;
}

function prepare(entries: readonly Entry[], options: AttendOptions, withLse: boolean): Call<AttentionWithLse[]> {
  const rowsBeforeHeads = checkLayout(options.layout);
  const queries = entries.map(({ name, query }) => checkTensor(name, query, 4));
  const [first] = entries as [Entry];
  const { headDim, valueDim } = first.cache;
  const headAxis = rowsBeforeHeads ? 2 : 1;
  const heads = (queries[0] as Operand).dims[headAxis] as number;
  const type = (queries[0] as Operand).type;
  const rows: number[] = [];
  for (const [index, { name, cacheName, cache }] of entries.entries()) {
    const { dims, type: own } = queries[index] as Operand;
    if (
      cache.heads !== first.cache.heads ||
      cache.headDim !== headDim ||
      cache.valueDim !== valueDim ||
      cache.type !== first.cache.type
    ) {
      throw expected('ERR_SHAPE', cacheName, 'heads, head sizes and type as in the first cache', cache);
    }
    if (heads === 0 || heads % cache.heads !== 0 || dims[headAxis] !== heads || dims[0] !== 1 || dims[3] !== headDim) {
      const shape = rowsBeforeHeads ? `[1, queries, heads, ${headDim}]` : `[1, heads, queries, ${headDim}]`;
      const multiple =
        index === 0 ? `heads a multiple of the cache's ${cache.heads}` : `${heads} heads as in the first query`;
      throw expected('ERR_SHAPE', name, `dims ${shape} with ${multiple}`, dims);
    }
    if (own !== type) throw expected('ERR_TYPE', name, `type '${type}' as in the first query`, own);
    rows.push(dims[rowsBeforeHeads ? 1 : 2] as number);
  }
  const mask = checkMask(options.mask, [1, heads, rows[0] as number, first.cache.length]);
  const scores = scoreNumbers(options, true, headDim, mask);
  const inputs = [...queries.map(({ data }) => data), mask.data];
  const outputs = rows.map((count) => {
    const dims = rowsBeforeHeads ? [1, count, heads, valueDim] : [1, heads, count, valueDim];
    return options.out === undefined ? (allocate('out', dims, type) as Operand) : checkOut(options.out, dims, inputs);
  });
  const lses = withLse ? rows.map((count) => allocate('out', [1, heads, count], 'float32')) : null;
  const sinks = checkSinks(options.sinks, heads);
  return {
    op: outputs.every(({ data }) => view.length(data) === 0) ? nothing : addon.cached,
    operands: [
      // Only now: the caller's getters have run, and may have disposed a cache.
      entries.map(({ cacheName, cache }) => nativeOf(cacheName, cache)),
      queries.map(({ data }) => data),
      outputs.map(({ data }) => data),
      lses?.map(({ data }) => data) ?? null,
      mask.data === null ? null : [mask.data],
      sinks,
    ],
    // Not Float64Array.of: a call takes only so many arguments, a batch may be longer.
    numbers: Float64Array.from([
      typeNumbers[type],
      typeNumbers[(outputs[0] as Operand).type],
      heads,
      rowsBeforeHeads ? 1 : 0,
      ...scores,
      ...rows,
    ]),
    options,
    result: outputs.map((output, index) => ({
      output: options.out ?? (output as Tensor),
      lse: lses?.[index] as TensorOf<'float32'>,
    })),
  };
}
