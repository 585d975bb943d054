import {
  type Call,
  type CallOptions,
  callOptionNames,
  checkLayout,
  naming,
  nothing,
  outlessOptionNames,
  runAsync,
  runSync,
} from './call';
import { checkBoolTensor, checkOptions, type Operand } from './check';
import { expected, guard, Text } from './errors';
import { checkScale, type Layout } from './full-options';
import {
  type CheckedProjections,
  checkProjections,
  type LinformerProjections,
  linformerArguments,
  linformerRefused,
} from './linformer';
import { addon, type NativeOp } from './native';
import {
  checkKeyValueRows,
  checkQueryRows,
  checkStateShape,
  outputOf,
  type Qkv,
  type StateOptions,
  type StateShape,
  stateOptionNames,
  stateTensorNames,
} from './qkv';
import { view } from './read';
import type { BoolTensor, Tensor } from './tensor';

/** What a {@link LinformerState} sums. */
export interface LinformerStateOptions extends StateOptions, LinformerProjections {}

/** Options of {@link LinformerState.append}. */
export interface LinformerAppendOptions extends Omit<CallOptions, 'out'> {
  /**
   * `'bool'` `[batch, n]`: a masked key and its value count as zeros, whatever they hold; their position passes. Default
   * all are there.
   */
  readonly keyMask?: BoolTensor;
  /** Axis order of the tensors of this call. Default `'bhld'`. */
  readonly layout?: Layout;
}

/** Options of {@link LinformerState.attend}. */
export interface LinformerAttendOptions extends CallOptions {
  /** Multiplies q·k′ before the softmax. Any finite number. Default 1/√headDim. */
  readonly scale?: number;
  /** Axis order of the tensors of this call. Default `'bhld'`. */
  readonly layout?: Layout;
}

const optionNames: ReadonlySet<string> = new Set(['keyProjection', 'valueProjection', ...stateOptionNames]);
const appendOptionNames: ReadonlySet<string> = new Set([...outlessOptionNames, 'keyMask', 'layout']);
const attendOptionNames: ReadonlySet<string> = new Set([...callOptionNames, 'scale', 'layout']);

interface CheckedState extends StateShape {
  readonly projections: CheckedProjections;
  readonly memory: Memory;
}

function checkState(options: LinformerStateOptions): CheckedState {
  if (options === undefined) throw expected('ERR_ARGUMENT', 'options', '{ keyProjection, heads, headDim, … }', options);
  const given = checkOptions<LinformerStateOptions>('options', options, optionNames);
  const shape = checkStateShape(given);
  const projections = checkProjections(given, shape.heads);
  const rows = shape.batch * shape.heads * projections.projected;
  return { ...shape, projections, memory: newMemory(rows * (shape.headDim + shape.valueDim)) };
}

/**
 * K′ `[batch, heads, projected, headDim]`, then V′ `[batch, heads, projected, valueDim]`. In float64: token by token a
 * sum is one chain of up to maxLength additions, in which float32 drifts where terms have one sign, as under a pooling
 * projection. It is rounded to float32 when attended to.
 */
interface Memory {
  readonly sums: Float64Array;
  /** Calls in flight, whose memory must stay as it is. */
  readers: number;
}

function newMemory(length: number): Memory {
  try {
    return { sums: new Float64Array(length), readers: 0 };
  } catch (cause) {
    throw expected('ERR_MEMORY', 'state', 'a state that can be allocated', new Text(`${length} sums`), { cause });
  }
}

const linformerOp = naming(addon.linformer, stateTensorNames);

const nothingThere: Operand = { data: new Float32Array(0), dims: [], type: 'float32' };

/** The memory of a state in use. Set by the class, so that nobody outside of this file gets at it. */
let memoryOf: (state: unknown) => Memory;

/**
 * The prefix state of Linformer: E K and F V of the keys and values so far, which grow by E[:, t]·kₜ and F[:, t]·vₜ, so
 * that a decode step needs memory and work for `projected` rows, however long the sequence is.
 *
 * Causal by construction: a query attends to what was appended before it and nothing else. That is
 * `linformerAttention` over the keys so far, but not what training with the parallel form computes, where every
 * query saw the keys after it as well: a model serves with it only as well as it was trained for it.
 *
 * The tensors of the projections are kept, not copied: do not write to them while the state is in use. Every call sees
 * the state as it was when the call was made: `append`, `fork` and `dispose` are safe while `attend` calls are in
 * flight, and any number of those may be.
 */
export class LinformerState {
  static {
    memoryOf = (state) => {
      if (typeof state !== 'object' || state === null || !(#memory in state))
        throw expected('ERR_TYPE', 'state', 'a LinformerState', state);
      if (state.#memory === undefined)
        throw expected('ERR_CLOSED', 'state', 'a state in use', new Text('a disposed one'));
      return state.#memory;
    };
  }

  /** As given to the constructor, like the three below. */
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly batch: number;
  /** Rows of the projections. */
  readonly projected: number;
  /** Columns of the projections: most positions the state may sum. */
  readonly maxLength: number;
  readonly #projections: CheckedProjections;
  #length = 0;
  #memory: Memory | undefined;

  /** @throws AttentionError ERR_ARGUMENT, ERR_SHAPE, ERR_TYPE, ERR_MEMORY */
  constructor(options: LinformerStateOptions) {
    const checked = guard(LinformerState, () => checkState(options));
    this.heads = checked.heads;
    this.headDim = checked.headDim;
    this.valueDim = checked.valueDim;
    this.batch = checked.batch;
    this.projected = checked.projections.projected;
    this.maxLength = checked.projections.maxLength;
    this.#projections = checked.projections;
    this.#memory = checked.memory;
  }

  /** Positions summed. */
  get length(): number {
    return this.#length;
  }

  /** Bytes of the sums, which do not depend on the length; 0 once disposed. The projections are not counted. */
  get byteLength(): number {
    return this.#memory === undefined ? 0 : this.#memory.sums.byteLength;
  }

  /**
   * Adds the keys and values of one or many positions, on the calling thread and `threads` − 1 more.
   *
   * @param key `[batch, heads, n, headDim]`
   * @param value `[batch, heads, n, valueDim]`, of key's type
   * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_UNSUPPORTED, ERR_DEVICE, ERR_MEMORY (past maxLength, too),
   *   ERR_ABORTED, ERR_CLOSED; the state is then as it was
   */
  append(key: Tensor, value: Tensor, options?: LinformerAppendOptions): void {
    const { count, memory } = runSync(LinformerState.prototype.append, () => {
      memoryOf(this);
      return this.#prepareAppend(key, value, options);
    });
    this.#memory = memory;
    this.#length += count;
  }

  /**
   * Attention of queries over everything summed, on a worker thread: softmax(scale·Q K′ᵀ)·V′ over all `projected` rows.
   * With nothing appended the output is zero.
   *
   * @param query `[batch, heads, queries, headDim]`, heads a multiple of the state's
   * @returns `[batch, heads, queries, valueDim]` of query's type
   * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_UNSUPPORTED, ERR_DEVICE, ERR_MEMORY,
   *   ERR_ABORTED, ERR_CLOSED
   */
  async attend(query: Tensor, options?: LinformerAttendOptions): Promise<Tensor> {
    return await runAsync(LinformerState.prototype.attend, () => {
      memoryOf(this);
      return this.#prepareAttend(query, options);
    });
  }

  /** {@link attend} on the calling thread. */
  attendSync(query: Tensor, options?: LinformerAttendOptions): Tensor {
    return runSync(LinformerState.prototype.attendSync, () => {
      memoryOf(this);
      return this.#prepareAttend(query, options);
    });
  }

  /**
   * A second state with a copy of the sums; the projections are shared.
   *
   * @throws AttentionError ERR_MEMORY, ERR_CLOSED
   */
  fork(): LinformerState {
    return guard(LinformerState.prototype.fork, () => {
      const { sums } = memoryOf(this);
      const { heads, headDim, valueDim, batch } = this;
      const { key, value } = this.#projections;
      const shared = value === null ? {} : { valueProjection: value };
      const copy = new LinformerState({ keyProjection: key, ...shared, heads, headDim, valueDim, batch });
      memoryOf(copy).sums.set(sums);
      copy.#length = this.#length;
      return copy;
    });
  }

  /** Lets go of the memory; calls in flight keep what they need. Every later use but this one is refused with `ERR_CLOSED`. */
  dispose(): void {
    guard(LinformerState.prototype.dispose, () => {
      if (typeof this !== 'object' || this === null || !(#memory in this))
        throw expected('ERR_TYPE', 'state', 'a LinformerState', this);
    });
    this.#memory = undefined;
    this.#length = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #prepareAppend(
    givenKey: Tensor,
    givenValue: Tensor,
    given: LinformerAppendOptions | undefined,
  ): Call<{ readonly count: number; readonly memory: Memory }> {
    const options = checkOptions<LinformerAppendOptions>('options', given, appendOptionNames, linformerRefused);
    const rowsBeforeHeads = checkLayout(options.layout);
    const { key, value, count: keys } = checkKeyValueRows(givenKey, givenValue, this, this.batch, rowsBeforeHeads);
    const qkv = this.#qkv({ key, value, keys, rowsBeforeHeads });
    const keyMask = checkBoolTensor('keyMask', options.keyMask, [this.batch, keys]);

    // Looked at only now: the caller's getters have run since, and may have changed the state.
    const memory = memoryOf(this);
    if (this.#length + keys > this.maxLength) {
      const room = `at most ${this.maxLength - this.#length} more positions (maxLength ${this.maxLength})`;
      throw expected('ERR_MEMORY', 'key', room, keys);
    }
    const target = memory.readers === 0 || keys === 0 ? memory : newMemory(memory.sums.length);
    const state = { stateIn: memory.sums, stateOut: target.sums };
    return {
      op: keys === 0 ? nothing : linformerOp,
      ...linformerArguments(qkv, nothingThere, this.#projections, { keyMask, firstColumn: this.#length, ...state }),
      options,
      result: { count: keys, memory: target },
    };
  }

  #prepareAttend(givenQuery: Tensor, given: LinformerAttendOptions | undefined): Call<Tensor> {
    const options = checkOptions<LinformerAttendOptions>('options', given, attendOptionNames, linformerRefused);
    const rowsBeforeHeads = checkLayout(options.layout);
    const rows = checkQueryRows('query', givenQuery, this, this.batch, rowsBeforeHeads, 'state');
    const scale = checkScale(options.scale, this.headDim);
    const qkv = this.#qkv({ ...rows, rowsBeforeHeads });
    const output = outputOf(qkv, options.out);
    const memory = memoryOf(this);
    const reading: NativeOp = (...args) => {
      const outcome = linformerOp(...args);
      if (typeof outcome !== 'object') return outcome;
      memory.readers++;
      return outcome.finally(() => {
        memory.readers--;
      });
    };
    return {
      op: view.length(output.data) === 0 ? nothing : reading,
      ...linformerArguments(qkv, output, this.#projections, { scale, stateIn: memory.sums }),
      options,
      result: options.out ?? (output as Tensor),
    };
  }

  /** The call's tensors: queries or keys and values, never both. */
  #qkv(given: Partial<Qkv> & Pick<Qkv, 'rowsBeforeHeads'>): Qkv {
    const { batch, heads, headDim, valueDim } = this;
    const none = { query: nothingThere, key: nothingThere, value: nothingThere, queries: 0, keys: 0 };
    return { ...none, batch, heads, kvHeads: heads, headDim, valueDim, ...given };
  }
}
