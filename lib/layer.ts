/** What all attention layers have in common: hidden states in, hidden states out. */
import type { KvCache } from './cache';
import { attendCall } from './cache-attend';
import { type Call, type CallOptions, callOptionNames, nothing } from './call';
import { checkLengths, checkOptions, checkOut, checkTensor, type Operand } from './check';
import { expected, guard, Text } from './errors';
import type { AttentionWithLse } from './full';
import {
  type AttentionOptions,
  checkMask,
  checkSinks,
  checkWindow,
  type ScoreOptions,
  scoreNumbers,
} from './full-options';
import type { LrkvCache } from './lrkv-cache';
import { type CacheKind, type CacheMemory, memoryOf } from './paged-cache';
import { applyInto, type OperandMap, type Projection } from './projection';
import { isArray, readList } from './read';
import { runStepsAsync, runStepsSync, type Steps, step } from './steps';
import { allocate, type DataType, type Tensor } from './tensor';
import { checkAtRest, Turn } from './turns';
import type { AttentionShape } from './weights';

/** What a layer computes beside what its weights say. */
export interface LayerOptions extends Pick<ScoreOptions, 'window' | 'softcap' | 'sinks'> {
  /** Whether a position sees none after itself. Default true. */
  readonly causal?: boolean;
}

/** Options of {@link AttentionLayer.step}. */
export interface StepOptions extends CallOptions {
  /**
   * Valid positions of each batch item, 0 to n; the rest is padding, which is neither attended to nor appended, whatever
   * it holds, and whose output rows are zero. Default all.
   */
  readonly keyLengths?: readonly number[] | Int32Array;
}

/** Options of {@link AttentionLayer.forward}. */
export interface ForwardOptions<Cache> extends StepOptions {
  /**
   * One cache a batch item, from the layer's `createCache` or as it makes them, none twice: what is new is appended to it,
   * then everything in it attended to. Default none: each item stands for itself, from position 0 on.
   */
  readonly caches?: readonly Cache[];
}

/** What {@link AttentionLayer.createCache} may be asked for. */
export interface LayerCacheOptions {
  /** Most positions the cache may hold, >= 1. Default: as memory allows. */
  readonly capacity?: number;
  /** Element type in memory. Default `'float32'`. */
  readonly type?: DataType;
}

/**
 * An attention layer of a Transformer: projections, normalisation and rotation of queries and keys, cache, attention, output
 * projection. Arithmetic is float32; a batch item's result is the same, bit for bit, whatever stands beside it and however
 * many threads run. A layer holds no native memory; its caches are disposed by their owner.
 *
 * Calls on one cache take turns in the order in which they were made, awaited or not: each begins at the length that the one
 * before it left. One that fails or is aborted leaves its caches as they were. While a call is in flight, its caches refuse to
 * be appended to or truncated by hand, and if one is disposed the call fails. What else is done with them meanwhile, as
 * attention or a fork, may find the call's positions in them. Do not write to the tensors of a call, nor transfer their
 * buffers, before its promise settles.
 */
export interface AttentionLayer<Cache> {
  /** Columns of hidden states that go in. */
  readonly modelDim: number;
  /** Columns of what comes out. */
  readonly outDim: number;

  /**
   * An empty cache of the layer's heads and head sizes, for one sequence.
   *
   * @throws AttentionError ERR_ARGUMENT, ERR_TYPE
   */
  createCache(options?: LayerCacheOptions): Cache;

  /**
   * A prompt, or the next part of it, on a worker thread. With caches, positions go on where each cache ends.
   *
   * @param hidden `[batch, n, modelDim]`, as they enter the projections
   * @returns `[batch, n, outDim]` of hidden's type
   * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED, ERR_CLOSED
   */
  forward(hidden: Tensor, options?: ForwardOptions<Cache>): Promise<Tensor>;

  /** {@link forward} on the calling thread. A cache that a call in flight has or waits for is refused. */
  forwardSync(hidden: Tensor, options?: ForwardOptions<Cache>): Tensor;

  /**
   * One step of many sequences of different lengths: {@link forward} with caches.
   *
   * @param hidden `[sequences, 1, modelDim]`, or of n tokens a sequence
   * @param caches one a sequence
   * @returns `[sequences, 1, outDim]` of hidden's type
   * @throws AttentionError (as a rejection), as `forward`
   */
  step(hidden: Tensor, caches: readonly Cache[], options?: StepOptions): Promise<Tensor>;

  /** {@link step} on the calling thread, with what {@link forwardSync} refuses. */
  stepSync(hidden: Tensor, caches: readonly Cache[], options?: StepOptions): Tensor;
}

/** Caches a layer may have. */
export type LayerCache = KvCache | LrkvCache;

/** What the projections of hidden states have become, each `[batch, n, …]`. */
export interface PreparedRows {
  /** `[batch, n, heads, headDim]` */
  readonly query: Tensor;
  /** All that is to be known of keys and values. */
  readonly rows: readonly Tensor[];
}

/** The kind of attention that stands between the projections of a layer. */
export interface Mechanism<Cache extends LayerCache> {
  readonly shape: AttentionShape;
  readonly scores: ScoreOptions;
  /** Of everything that reads hidden states. */
  readonly projection: Projection;
  readonly output: OperandMap;
  /** Memory of other weights that stay where they are. */
  readonly inPlace: readonly (ArrayBufferView | null)[];
  createCache(options: LayerCacheOptions): Cache;
  /** Of the layer's caches. */
  readonly kind: CacheKind;
  /** Refuses a cache of this kind that is not as the layer makes them. */
  checkShape(name: string, memory: CacheMemory): void;
  /**
   * @param columns what the projection gives
   * @param starts number of positions before each batch item's first
   */
  prepare(
    columns: readonly Float32Array[],
    n: number,
    starts: readonly number[],
    how: CallOptions,
  ): Steps<PreparedRows>;
  attend(prepared: PreparedRows, options: AttentionOptions): Call<AttentionWithLse>;
  /** Appends `[1, count, …]` of each of the rows. */
  append(memory: CacheMemory, rows: readonly Tensor[]): void;
}

const layerOptionNames: ReadonlySet<string> = new Set(['causal', 'window', 'softcap', 'sinks']);
const cacheOptionNames: ReadonlySet<string> = new Set(['capacity', 'type']);
const stepOptionNames: ReadonlySet<string> = new Set([...callOptionNames, 'keyLengths']);
const forwardOptionNames: ReadonlySet<string> = new Set([...stepOptionNames, 'caches']);

/** The options of scores in all calls of a layer, checked once. */
export function checkLayerOptions(
  given: LayerOptions | undefined,
  scale: number | undefined,
  { heads, headDim }: AttentionShape,
): ScoreOptions {
  const { causal = true, window, softcap, sinks } = checkOptions('options', given, layerOptionNames);
  const scores: ScoreOptions = {
    layout: 'blhd',
    causal,
    ...(scale === undefined ? {} : { scale }),
    ...(window === undefined ? {} : { window: checkWindow(window) }),
    ...(softcap === undefined ? {} : { softcap }),
    ...(sinks === undefined ? {} : { sinks: checkSinks(sinks, heads) as Float32Array }),
  };
  scoreNumbers(scores, true, headDim, checkMask(undefined, [0, 0, 0, 0]));
  return scores;
}

/** A checked call of a layer. */
interface Plan {
  readonly input: Operand;
  readonly batch: number;
  readonly n: number;
  readonly output: Operand;
  readonly result: Tensor;
  /** Valid positions of each batch item. */
  readonly lengths: Int32Array | undefined;
  readonly caches: readonly CacheMemory[] | undefined;
  readonly how: CallOptions;
}

export class Layer<Cache extends LayerCache> implements AttentionLayer<Cache> {
  readonly modelDim: number;
  readonly outDim: number;
  readonly #mechanism: Mechanism<Cache>;

  constructor(mechanism: Mechanism<Cache>) {
    this.modelDim = mechanism.shape.modelDim;
    this.outDim = mechanism.shape.outDim;
    this.#mechanism = mechanism;
  }

  createCache(options?: LayerCacheOptions): Cache {
    return guard(Layer.prototype.createCache, () =>
      this.#mechanism.createCache(checkOptions('options', options, cacheOptionNames)),
    );
  }

  async forward(hidden: Tensor, options?: ForwardOptions<Cache>): Promise<Tensor> {
    return await runStepsAsync(Layer.prototype.forward, this.#forward(hidden, options, false));
  }

  forwardSync(hidden: Tensor, options?: ForwardOptions<Cache>): Tensor {
    return runStepsSync(Layer.prototype.forwardSync, this.#forward(hidden, options, true));
  }

  async step(hidden: Tensor, caches: readonly Cache[], options?: StepOptions): Promise<Tensor> {
    return await runStepsAsync(Layer.prototype.step, this.#step(hidden, caches, options, false));
  }

  stepSync(hidden: Tensor, caches: readonly Cache[], options?: StepOptions): Tensor {
    return runStepsSync(Layer.prototype.stepSync, this.#step(hidden, caches, options, true));
  }

  *#forward(hidden: Tensor, given: ForwardOptions<Cache> | undefined, atOnce: boolean): Steps<Tensor> {
    const options: ForwardOptions<Cache> = checkOptions('options', given, forwardOptionNames);
    return yield* this.#run(this.#plan(hidden, options), atOnce);
  }

  *#step(hidden: Tensor, caches: readonly Cache[], given: StepOptions | undefined, atOnce: boolean): Steps<Tensor> {
    const options: StepOptions = checkOptions('options', given, stepOptionNames);
    // Null is refused, where undefined would be a call without caches.
    return yield* this.#run(this.#plan(hidden, { ...options, caches: caches ?? null }), atOnce);
  }

  #plan(hidden: Tensor, options: StepOptions & { readonly caches?: unknown }): Plan {
    const { modelDim, outDim } = this;
    const input = checkTensor('hidden', hidden, 3);
    const [batch, n, columns] = input.dims as [number, number, number];
    if (columns !== modelDim) throw expected('ERR_SHAPE', 'hidden', `dims [batch, n, ${modelDim}]`, input.dims);
    const { keyLengths, out, caches: givenCaches, ...how } = options;
    const lengths = keyLengths === undefined ? undefined : checkLengths('keyLengths', keyLengths, batch, n);
    const caches = givenCaches === undefined ? undefined : this.#checkCaches(givenCaches, batch);
    const dims = [batch, n, outDim];
    const inputs = [input.data, this.#mechanism.output.weight.data, ...this.#mechanism.inPlace];
    const output = out === undefined ? (allocate('out', dims, input.type) as Operand) : checkOut(out, dims, inputs);
    return { input, batch, n, output, result: out ?? (output as Tensor), lengths, caches, how };
  }

  #checkCaches(caches: unknown, batch: number): CacheMemory[] {
    const seen = new Set<CacheMemory>();
    const check = (item: unknown, index: number): CacheMemory => {
      const name = `caches[${index}]`;
      const memory = memoryOf(name, item, this.#mechanism.kind);
      memory.use(name);
      this.#mechanism.checkShape(name, memory);
      if (seen.has(memory)) throw expected('ERR_ARGUMENT', name, 'a cache not listed before', item);
      seen.add(memory);
      return memory;
    };
    const checked = isArray(caches) ? readList('caches', caches, (count) => count === batch, check) : undefined;
    if (checked === undefined)
      throw expected('ERR_ARGUMENT', 'caches', `an array of ${batch} caches (one a batch item)`, caches);
    for (const [index, { type }] of checked.entries()) {
      const wanted = (checked[0] as CacheMemory).type;
      if (type !== wanted) throw expected('ERR_TYPE', `caches[${index}]`, `type '${wanted}' as in the first`, type);
    }
    return checked;
  }

  #run(plan: Plan, atOnce: boolean): Steps<Tensor> {
    const { batch, n, caches, how, result } = plan;
    // Without rows nothing bounds the batch.
    if (batch * n === 0) return step({ op: nothing, operands: [], numbers: new Float64Array(), options: how, result });
    return caches === undefined ? this.#alone(plan) : this.#inTurn(plan, caches, atOnce);
  }

  *#alone(plan: Plan): Steps<Tensor> {
    const { n, batch, lengths, how } = plan;
    const columns = yield* this.#mechanism.projection.apply(plan.input, how);
    const prepared = yield* this.#mechanism.prepare(columns, n, new Array<number>(batch).fill(0), how);
    const options = { ...this.#mechanism.scores, ...how };
    // Queries and keys are the same positions, so that both end where a sequence ends.
    const limits = lengths === undefined ? {} : { keyLengths: lengths, queryLengths: lengths };
    const { output } = yield* step(this.#mechanism.attend(prepared, { ...options, ...limits }));
    return yield* this.#finish(plan, output);
  }

  *#inTurn(plan: Plan, caches: readonly CacheMemory[], atOnce: boolean): Steps<Tensor> {
    if (atOnce) for (const [index, memory] of caches.entries()) checkAtRest(`caches[${index}]`, memory);
    const turn = new Turn(caches);
    try {
      const columns = yield* this.#mechanism.projection.apply(plan.input, plan.how);
      yield* step(turn.wait(plan.how));
      const lengths = caches.map(({ length }) => length);
      try {
        return yield* this.#finish(plan, yield* this.#attendCaches(plan, columns, caches, lengths));
      } catch (error) {
        for (const [index, memory] of caches.entries()) {
          // A disposed one is empty.
          if (memory.length > (lengths[index] as number)) memory.truncate(lengths[index] as number);
        }
        throw error;
      }
    } finally {
      turn.end();
    }
  }

  *#attendCaches(
    plan: Plan,
    columns: readonly Float32Array[],
    caches: readonly CacheMemory[],
    lengths: readonly number[],
  ): Steps<Tensor> {
    const { n, how } = plan;
    const { scores } = this.#mechanism;
    const { query, rows } = yield* this.#mechanism.prepare(columns, n, lengths, how);
    const items = caches.map((memory, index) => {
      const cacheName = `caches[${index}]`;
      memory.use(cacheName);
      const count = plan.lengths?.[index] ?? n;
      if (memory.length + count > memory.capacity) {
        const received = new Text(`one of capacity ${memory.capacity} that holds ${memory.length}`);
        throw expected('ERR_MEMORY', cacheName, `a cache with room for ${count} more positions`, received);
      }
      const own = rows.map((each) => firstRows(each, index, count));
      return { name: 'hidden', cacheName, memory, query: firstRows(query, index, count), rows: own };
    });
    for (const item of items) this.#mechanism.append(item.memory, item.rows);
    const outputs = yield* step(attendCall(items, { ...scores, ...how }, false));
    return gathered(
      outputs.map(({ output }) => output),
      n,
    );
  }

  *#finish({ n, output, lengths, result, how }: Plan, attended: Tensor): Steps<Tensor> {
    const isValid = (row: number): boolean =>
      lengths === undefined || row % n < (lengths[Math.floor(row / n)] as number);
    yield* applyInto(attended, this.#mechanism.output, output, isValid, how);
    return result;
  }
}

/** The first `count` rows of one batch item, in the same memory. */
function firstRows({ data, dims, type }: Tensor, item: number, count: number): Tensor {
  const [, n, ...rest] = dims as [number, number, ...number[]];
  const width = rest.reduce((product, extent) => product * extent, 1);
  const first = item * n * width;
  return { data: (data as Float32Array).subarray(first, first + count * width), dims: [1, count, ...rest], type };
}

/** Outputs `[1, count, heads, valueDim]` as batch items of `n` rows each, zero after its own. */
function gathered(outputs: readonly Tensor[], n: number): Tensor {
  const [first] = outputs as [Tensor];
  const [, count, heads, valueDim] = first.dims as [number, number, number, number];
  if (outputs.length === 1 && count === n) return first;
  const all = allocate('out', [outputs.length, n, heads, valueDim], 'float32') as Tensor<Float32Array>;
  for (const [item, { data }] of outputs.entries()) {
    all.data.set(data as Float32Array, item * n * heads * valueDim);
  }
  return all;
}
