import { checkLayout } from './call';
import { checkOptions } from './check';
import { expected, guard } from './errors';
import type { Layout } from './full-options';
import { addon, typeNumbers } from './native';
import {
  type CacheMemory,
  type CacheStart,
  cacheOptionNames,
  checkCacheShape,
  type KvCacheOptions,
  memoryOf,
  optionsOf,
  PagedCache,
  startOf,
} from './paged-cache';
import { checkKeyValueRows, type KeyValueRows, mostExtent } from './qkv';
import type { Tensor } from './tensor';
import { checkAtRest } from './turns';

const optionNames: ReadonlySet<string> = new Set(cacheOptionNames);
const appendOptionNames: ReadonlySet<string> = new Set(['layout']);

function checkStart(options: KvCacheOptions): CacheStart {
  if (options === undefined) throw expected('ERR_ARGUMENT', 'options', '{ heads, headDim, … }', options);
  const shape = checkCacheShape(checkOptions<KvCacheOptions>('options', options, optionNames));
  const { heads, headDim, valueDim, type } = shape;
  const row = heads * (headDim + valueDim);
  if (row > mostExtent)
    throw expected('ERR_SHAPE', 'options', `heads·(headDim + valueDim) of at most ${mostExtent}`, row);
  return { shape, model: null, native: new addon.KvCache(heads, headDim, valueDim, typeNumbers[type]), length: 0 };
}

/**
 * Keys and values of one sequence, kept between calls and grown token by token. Memory comes in pages of 128
 * positions that never move, so growing copies nothing and forks share their common prefix.
 *
 * Every call sees the cache as it was when the call was made: `append`, `truncate`, `fork` and `dispose` are safe while
 * `attend` calls are in flight, and any number of those may be.
 */
export class KvCache extends PagedCache {
  /** @throws AttentionError ERR_ARGUMENT, ERR_TYPE, ERR_SHAPE */
  constructor(options: KvCacheOptions) {
    super(guard(KvCache, () => startOf(options, () => checkStart(options))));
  }

  /**
   * Appends the keys and values of one or many positions, on the calling thread: the cost is one copy.
   *
   * @param key `[1, heads, n, headDim]`
   * @param value `[1, heads, n, valueDim]`, of key's type
   * @param options `layout`: axis order, `'blhd'` for `[1, n, heads, dim]`
   * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_MEMORY, ERR_CLOSED; ERR_ARGUMENT for a layout that is none, and while a
   *   call of a layer on this cache is in flight, behind which the positions would have to come. The cache is then as it was
   */
  append(key: Tensor, value: Tensor, options?: { readonly layout?: Layout }): void {
    guard(KvCache.prototype.append, () => {
      const memory = memoryOf('cache', this, 'a KvCache');
      memory.use('cache');
      const { layout } = checkOptions<{ layout?: Layout }>('options', options, appendOptionNames);
      const rows = checkKeyValueRows(key, value, memory, 1, checkLayout(layout));
      // Only now: the caller's getters have run.
      checkAtRest('cache', memory);
      appendKeyValues(memory, rows, 'key');
    });
  }

  /**
   * A second cache with the same contents. Its pages are shared until one side appends into a page that is half full,
   * which then copies that one page.
   *
   * @throws AttentionError ERR_CLOSED
   */
  fork(): KvCache {
    return guard(KvCache.prototype.fork, () => new KvCache(optionsOf(memoryOf('cache', this, 'a KvCache').fork())));
  }
}

/** Appends rows that fit the cache, whoever's turn it is; `name` is what brings them. */
export function appendKeyValues(memory: CacheMemory, rows: KeyValueRows, name: string): void {
  const { key, value, count, rowsBeforeHeads } = rows;
  const numbers = Float64Array.of(typeNumbers[key.type], count, rowsBeforeHeads ? 1 : 0);
  memory.append(name, count, (native) => native.append([key.data, value.data], numbers));
}
