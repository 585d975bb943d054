import { type AttendOptions, attendCall, attendOptionNames } from './cache-attend';
import { type Call, checkDevice, failure, runAsync, runSync } from './call';
import { checkInteger, checkOptions, checkType } from './check';
import { expected, guard, Text } from './errors';
import type { AttentionWithLse } from './full';
import type { CheckedLrkvModel } from './lrkv-model';
import type { NativeCache, Outcome } from './native';
import { checkHeadShape, type HeadOptions, type HeadShape, headOptionNames } from './qkv';
import type { DataType, Tensor } from './tensor';
import { checkAtRest } from './turns';

/** What a cache holds. */
export interface KvCacheOptions extends HeadOptions {
  /** Most positions the cache may hold, >= 1; appending more is refused. Default: as memory allows. */
  readonly capacity?: number;
  /** Element type in memory; what is appended is converted to it. Default `'float32'`. */
  readonly type?: DataType;
  /** Where the cache lives. Default `'auto'`. */
  readonly device?: 'auto' | 'cpu';
}

export const cacheOptionNames = [...headOptionNames, 'capacity', 'type', 'device'] as const;

/** Options that every cache has, checked. */
export interface CacheShape extends HeadShape {
  readonly capacity: number;
  readonly type: DataType;
}

export function checkCacheShape(given: Partial<KvCacheOptions>): CacheShape {
  const { capacity, type, device } = given;
  checkDevice(device);
  return {
    ...checkHeadShape(given),
    capacity: capacity === undefined ? Infinity : checkInteger('capacity', capacity, 1),
    type: checkType('type', type === undefined ? 'float32' : type),
  };
}

/** What a cache begins as: empty, or a fork of another. */
export interface CacheStart {
  readonly shape: CacheShape;
  /** Of an LRKV cache; null where keys and values are held as they are. */
  readonly model: CheckedLrkvModel | null;
  readonly native: NativeCache;
  readonly length: number;
}

/** The state of a cache, which nobody outside of this package gets at. */
export class CacheMemory implements CacheShape {
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly capacity: number;
  readonly type: DataType;
  readonly model: CheckedLrkvModel | null;
  length: number;
  #native: NativeCache | undefined;

  constructor({ shape, model, native, length }: CacheStart) {
    this.heads = shape.heads;
    this.headDim = shape.headDim;
    this.valueDim = shape.valueDim;
    this.capacity = shape.capacity;
    this.type = shape.type;
    this.model = model;
    this.length = length;
    this.#native = native;
  }

  get kind(): CacheKind {
    return this.model === null ? 'a KvCache' : 'an LrkvCache';
  }

  /** Undefined once disposed. */
  get native(): NativeCache | undefined {
    return this.#native;
  }

  /** The native cache of one in use. */
  use(name: string): NativeCache {
    if (this.#native === undefined) throw expected('ERR_CLOSED', name, 'a cache in use', new Text('a disposed one'));
    return this.#native;
  }

  /** Refuses more positions than there is room for; `name` is what brings them. */
  checkRoom(name: string, count: number): void {
    const room = this.capacity - this.length;
    if (count > room) {
      const what = `at most ${room} more positions (capacity ${this.capacity})`;
      throw expected('ERR_MEMORY', name, what, count);
    }
  }

  /** Appends all positions or, where it fails, none; `name` is what brings them. */
  append(name: string, count: number, run: (native: NativeCache) => Outcome): void {
    // Asked for only now: the caller's getters have run since the arguments were read, and may have changed the cache.
    const native = this.use('cache');
    this.checkRoom(name, count);
    const outcome = run(native);
    if (outcome !== undefined) throw failure(outcome);
    this.length += count;
  }

  truncate(length: number): void {
    const native = this.use('cache');
    native.truncate(checkInteger('length', length, 0, this.length));
    this.length = length;
  }

  /** What a cache of the same contents begins as. */
  fork(): CacheStart {
    return { shape: this, model: this.model, native: this.use('cache').fork(), length: this.length };
  }

  dispose(): void {
    this.#native?.dispose();
    this.#native = undefined;
    this.length = 0;
  }
}

/** Classes of caches, in messages. */
export type CacheKind = 'a KvCache' | 'an LrkvCache';

/** The memory of a cache, whatever a value's prototype says. Set by the class. */
let memoryIn: (value: unknown) => CacheMemory | undefined;

/** The memory of a cache, in use or not. */
export function memoryOf(name: string, value: unknown, kind?: CacheKind): CacheMemory {
  const memory = memoryIn(value);
  if (memory === undefined || (kind !== undefined && kind !== memory.kind))
    throw expected('ERR_TYPE', name, kind ?? 'a KvCache or an LrkvCache', value);
  return memory;
}

const starts = new WeakMap<object, CacheStart>();

/** Options with which a cache's constructor begins as something that is there already, and checks nothing. */
export function optionsOf<Options extends object>(start: CacheStart): Options {
  const options = {} as Options;
  starts.set(options, start);
  return options;
}

/** What a constructor's options say: such options, or a user's, which `check` reads. */
export function startOf(options: object, check: () => CacheStart): CacheStart {
  return starts.get(options) ?? check();
}

/** What all caches of one sequence share: memory in pages of 128 positions that never move, and attention over them. */
export abstract class PagedCache {
  static {
    memoryIn = (value) => (typeof value === 'object' && value !== null && #memory in value ? value.#memory : undefined);
  }

  /** As given to the constructor, like the four below. */
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** `Infinity` when not given. */
  readonly capacity: number;
  readonly type: DataType;
  readonly #memory: CacheMemory;

  protected constructor(start: CacheStart) {
    const { heads, headDim, valueDim, capacity, type } = start.shape;
    this.heads = heads;
    this.headDim = headDim;
    this.valueDim = valueDim;
    this.capacity = capacity;
    this.type = type;
    this.#memory = new CacheMemory(start);
  }

  /** Positions held. */
  get length(): number {
    return this.#memory.length;
  }

  /** Bytes of all pages this cache holds, shared ones included; 0 once disposed. */
  get byteLength(): number {
    return this.#memory.native?.bytes() ?? 0;
  }

  /** The part of `byteLength` that forks or calls in flight hold as well. */
  get sharedByteLength(): number {
    return this.#memory.native?.sharedBytes() ?? 0;
  }

  /**
   * Attention of queries over everything held, on a worker thread. By default causal, the last query standing at the
   * last position. Do not write to the tensors of a call, nor transfer their buffers, before its promise settles.
   *
   * @param query `[1, heads, queries, headDim]`, heads a multiple of the cache's
   * @returns `[1, heads, queries, valueDim]` of query's type
   * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED, ERR_CLOSED
   */
  async attend(query: Tensor, options?: AttendOptions): Promise<Tensor> {
    return (await runAsync(PagedCache.prototype.attend, () => prepare(this, query, options, false))).output;
  }

  /** {@link attend} on the calling thread. */
  attendSync(query: Tensor, options?: AttendOptions): Tensor {
    return runSync(PagedCache.prototype.attendSync, () => prepare(this, query, options, false)).output;
  }

  /** {@link attend} that also returns each row's log-sum-exp, `[1, heads, queries]`. */
  async attendWithLse(query: Tensor, options?: AttendOptions): Promise<AttentionWithLse> {
    return await runAsync(PagedCache.prototype.attendWithLse, () => prepare(this, query, options, true));
  }

  /** {@link attendWithLse} on the calling thread. */
  attendWithLseSync(query: Tensor, options?: AttendOptions): AttentionWithLse {
    return runSync(PagedCache.prototype.attendWithLseSync, () => prepare(this, query, options, true));
  }

  /**
   * Forgets all positions from `length` on and gives their pages back.
   *
   * @param length 0 to the current length
   * @throws AttentionError ERR_CLOSED; ERR_ARGUMENT for another length, and while a call is in flight that appends to this
   *   cache
   */
  truncate(length: number): void {
    guard(PagedCache.prototype.truncate, () => {
      const memory = memoryOf('cache', this);
      memory.use('cache');
      checkAtRest('cache', memory);
      memory.truncate(length);
    });
  }

  /** Gives the memory back now; calls in flight keep what they need. Every later use but this one is refused with `ERR_CLOSED`. */
  dispose(): void {
    guard(PagedCache.prototype.dispose, () => memoryOf('cache', this)).dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function prepare(
  cache: PagedCache,
  query: Tensor,
  given: AttendOptions | undefined,
  withLse: boolean,
): Call<AttentionWithLse> {
  const options: AttendOptions = checkOptions('options', given, attendOptionNames);
  const memory = memoryOf('cache', cache);
  memory.use('cache');
  const call = attendCall([{ name: 'query', cacheName: 'cache', memory, query }], options, withLse);
  return { ...call, result: call.result[0] as AttentionWithLse };
}
