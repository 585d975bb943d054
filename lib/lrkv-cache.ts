import { checkInteger, checkOptions } from './check';
import { expected, guard } from './errors';
import { checkHidden, type LrkvAppendOptions, type LrkvProjections, projectHidden } from './lrkv-hidden';
import {
  type CheckedLrkvModel,
  checkLrkvModel,
  type LrkvModel,
  lrkvModelNames,
  lrkvModelNumbers,
  lrkvModelOperands,
  lrkvStored,
  mostKvHeads,
  storedRatio,
} from './lrkv-model';
import {
  type CheckedLrkvRows,
  checkLrkvColumns,
  checkLrkvRows,
  type LrkvRows,
  lrkvRowNames,
  lrkvRowOperands,
} from './lrkv-rows';
import { addon, typeNumbers } from './native';
import {
  type CacheMemory,
  type CacheShape,
  type CacheStart,
  cacheOptionNames,
  checkCacheShape,
  type KvCacheOptions,
  memoryOf,
  optionsOf,
  PagedCache,
  startOf,
} from './paged-cache';
import { mostExtent } from './qkv';
import { runStepsAsync, runStepsSync, type Steps, step } from './steps';
import type { Tensor } from './tensor';
import { checkAtRest, Turn } from './turns';

/**
 * What an {@link LrkvCache} holds, and the model it is for. `heads` are key/value heads, 1 to 65536; headDim and valueDim are
 * the columns of `keyUp` and `valueUp`.
 */
export interface LrkvCacheOptions extends KvCacheOptions, LrkvModel {
  /** Columns of the keys' base, >= 0; 0: none. Default those of `keyGauge`, or without one headDim. */
  readonly keyBaseDim?: number;
  /** Columns of the values' base, >= 0; 0: none. Default those of `valueGauge`, or without one valueDim. */
  readonly valueBaseDim?: number;
}

const optionNames: ReadonlySet<string> = new Set([
  ...cacheOptionNames,
  'keyBaseDim',
  'valueBaseDim',
  ...lrkvModelNames,
]);
const rowNames: ReadonlySet<string> = new Set(lrkvRowNames);
interface LrkvStart extends CacheStart {
  readonly model: CheckedLrkvModel;
}

function checkStart(options: LrkvCacheOptions): LrkvStart {
  if (options === undefined) throw expected('ERR_ARGUMENT', 'options', '{ heads, headDim, keyUp, … }', options);
  const given = checkOptions<LrkvCacheOptions>('options', options, optionNames);
  const shape = checkCacheShape(given);
  const { headDim, valueDim } = shape;
  const columns = (name: 'keyBaseDim' | 'valueBaseDim'): number | undefined =>
    given[name] === undefined ? undefined : checkInteger(name, given[name], 0, mostExtent);
  const model = checkLrkvModel(given, {
    kvHeads: checkInteger('heads', shape.heads, 1, mostKvHeads),
    headDim,
    valueDim,
    keyBaseDim: columns('keyBaseDim'),
    valueBaseDim: columns('valueBaseDim'),
  });
  return emptyStart(shape, model);
}

function emptyStart(shape: CacheShape, model: CheckedLrkvModel): LrkvStart {
  const { keyBaseDim, valueBaseDim, keyWidths, valueWidths, scaled } = lrkvStored(model);
  const [type, scales] = [typeNumbers[shape.type], scaled ? 1 : 0] as const;
  const native = new addon.LrkvCache(shape.heads, type, keyBaseDim, valueBaseDim, scales, keyWidths, valueWidths);
  return { shape, model, native, length: 0 };
}

/** A cache for a model that has been checked before, as a layer makes them. */
export function newLrkvCache(model: CheckedLrkvModel, wanted: Pick<KvCacheOptions, 'capacity' | 'type'>): LrkvCache {
  const shape = checkCacheShape({ ...wanted, heads: model.kvHeads, headDim: model.key.dim, valueDim: model.value.dim });
  return new LrkvCache(optionsOf(emptyStart(shape, model)));
}

/**
 * The past of one sequence in LRKV's form (O'Neill et al. 2026, arXiv 2601.11471, section 3), grown token by token: of each
 * position a base that all heads share and a latent of low rank for each head, of keys and of values. Memory comes in pages
 * of 128 positions that never move, so growing copies nothing and forks share their common prefix.
 *
 * `attend` is as in a {@link KvCache} and gives what {@link lrkvAttention} gives; queries come without rotation. With
 * `rope` in the default mode `'exact'` keys are stored whole and rotated, headDim a head, as on the CPU that is faster than to
 * rotate latents' sums at each step; only values are factored then. See `ratio`.
 *
 * Every call sees the cache as it was when the call was made: `append`, `truncate`, `fork` and `dispose` are safe while
 * `attend` calls are in flight, and any number of those may be. Float32 tensors of the model are kept, not copied: do not
 * write to them while the cache is in use. Those of 16 bits are converted when a cache is made; its forks share them, as do
 * all caches of one layer.
 */
export class LrkvCache extends PagedCache {
  /** As given to the constructor, or by default. */
  readonly keyBaseDim: number;
  readonly valueBaseDim: number;
  /**
   * Bytes that a position takes here, as a share of those that a {@link KvCache} of the same heads, head sizes and type
   * takes: ranks are stored in multiples of 8, and with `keyNorm` each head has a float32 beside its latents. With `rope` in
   * the mode `'exact'`, where keys are stored whole, it is above headDim / (headDim + valueDim).
   */
  readonly ratio: number;

  /** @throws AttentionError ERR_ARGUMENT, ERR_TYPE, ERR_SHAPE, ERR_UNSUPPORTED, ERR_MEMORY */
  constructor(options: LrkvCacheOptions) {
    const start = guard(LrkvCache, () => startOf(options, () => checkStart(options)));
    super(start);
    const model = start.model as CheckedLrkvModel;
    this.keyBaseDim = model.key.baseDim;
    this.valueBaseDim = model.value.baseDim;
    this.ratio = storedRatio(model, this.type);
  }

  /**
   * Appends one or many positions, on the calling thread.
   *
   * @param rows each `[1, n, columns]`, as the projections give them: keys without rotation and normalisation
   * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_MEMORY, ERR_CLOSED; ERR_ARGUMENT for a part that does not exist, and while
   *   an `appendHidden` or a layer's call on this cache is in flight, behind which the positions would have to come. The
   *   cache is then as it was
   */
  append(rows: LrkvRows): void {
    guard(LrkvCache.prototype.append, () => {
      const memory = memoryOf('cache', this, 'an LrkvCache');
      memory.use('cache');
      if (rows === undefined) throw expected('ERR_ARGUMENT', 'rows', '{ keyBase, keyLatent, … }', rows);
      const checked = checkLrkvRows(checkOptions<LrkvRows>('rows', rows, rowNames), 1);
      checkLrkvColumns(checked, modelOf(memory));
      // Only now: the caller's getters have run.
      checkAtRest('cache', memory);
      appendLrkvRows(memory, checked, 'keyBase');
    });
  }

  /**
   * Projects hidden states and appends what comes out: matrix products on a worker thread, in float32, then an append.
   * Calls on one cache may be in flight together, those of a layer among them: their positions are appended in the order
   * of the calls, whichever is ready first. One that fails or is aborted appends nothing, and does not stop those behind
   * it. Other calls see the positions when the promise is fulfilled. Do not write to the tensors of a call, nor transfer
   * their buffers, before that.
   *
   * @param hidden `[1, n, modelDim]`: what enters the layer's projections
   * @param projections each `[modelDim, columns]`
   * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED,
   *   ERR_CLOSED
   */
  async appendHidden(hidden: Tensor, projections: LrkvProjections, options?: LrkvAppendOptions): Promise<void> {
    await runStepsAsync(LrkvCache.prototype.appendHidden, projected(this, hidden, projections, options, false));
  }

  /**
   * {@link appendHidden} on the calling thread; refused with `ERR_ARGUMENT` while a call is in flight that appends to this
   * cache.
   */
  appendHiddenSync(hidden: Tensor, projections: LrkvProjections, options?: LrkvAppendOptions): void {
    runStepsSync(LrkvCache.prototype.appendHiddenSync, projected(this, hidden, projections, options, true));
  }

  /**
   * A second cache with the same contents and model. Its pages are shared until one side appends into a page that is half
   * full, which then copies that one page.
   *
   * @throws AttentionError ERR_CLOSED
   */
  fork(): LrkvCache {
    return guard(
      LrkvCache.prototype.fork,
      () => new LrkvCache(optionsOf(memoryOf('cache', this, 'an LrkvCache').fork())),
    );
  }
}

/** What `appendHidden` does. */
function* projected(
  cache: LrkvCache,
  hidden: Tensor,
  projections: LrkvProjections,
  options: LrkvAppendOptions | undefined,
  atOnce: boolean,
): Steps<void> {
  const memory = memoryOf('cache', cache, 'an LrkvCache');
  memory.use('cache');
  const checked = checkHidden(hidden, projections, options, modelOf(memory));
  memory.use('cache');
  memory.checkRoom('hidden', checked.count);
  if (atOnce) checkAtRest('cache', memory);
  const turn = new Turn([memory]);
  try {
    const rows = yield* projectHidden(checked);
    yield* step(turn.wait(checked.options));
    appendLrkvRows(memory, rows, 'hidden');
  } finally {
    turn.end();
  }
}

function modelOf(memory: CacheMemory): CheckedLrkvModel {
  return memory.model as CheckedLrkvModel;
}

/** Appends rows that fit the cache, whoever's turn it is; `name` is what brings them. */
export function appendLrkvRows(memory: CacheMemory, rows: CheckedLrkvRows, name: string): void {
  const model = modelOf(memory);
  const numbers = Float64Array.of(typeNumbers[rows.type], rows.count, ...lrkvModelNumbers(model));
  const operands = [...lrkvRowOperands(rows), ...lrkvModelOperands(model)];
  memory.append(name, rows.count, (native) => native.append(operands, numbers));
}
