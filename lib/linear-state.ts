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
import { type FeatureMap, type FeaturePlan, planFeatures } from './features';
import type { Layout } from './full-options';
import {
  type CheckedMethod,
  checkBeta,
  checkDecay,
  checkMethod,
  checkPositions,
  type LinearCall,
  type LinearMethod,
  type LinearStates,
  linearNumbers,
  linearOperands,
  methodNames,
  type UpdateRule,
} from './linear-call';
import { addon, type NativeOp, type Outcome } from './native';
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

/** What a {@link LinearState} holds, and the method it is for. */
export interface LinearStateOptions extends StateOptions, LinearMethod {}

/** What goes into a state beside keys and values. */
export interface UpdateInputs {
  /**
   * g, the logarithm of the factor that the state is multiplied by before a position enters it: float32, finite, ≤ 0 (not
   * checked: with larger ones the state grows and may overflow). `[batch, kvHeads, length]` for all features of a head, or
   * `[batch, kvHeads, length, F]` for each; `[batch, length, kvHeads(, F)]` in layout `'blhd'`. Required by
   * the gated rules, refused for the others.
   */
  readonly decay?: Tensor;
  /**
   * β, the step size: float32 `[batch, kvHeads, length]`, `[batch, length, kvHeads]` in layout `'blhd'`; between 0 and 1
   * as a rule. Required by the delta rules, refused for the others.
   */
  readonly beta?: Tensor;
  /**
   * `'bool'` `[batch, keys]`: 0 hides a key, as if it were not there, whatever it and its value hold; the state then stays
   * as it is, without decay. Default all visible.
   */
  readonly keyMask?: BoolTensor;
}

/** Options of {@link LinearState.append}. */
export interface LinearAppendOptions extends UpdateInputs, Omit<CallOptions, 'out'> {
  /** Axis order of the tensors. Default `'bhld'`. */
  readonly layout?: Layout;
}

/** Options of {@link LinearState.attend}. */
export interface LinearAttendOptions extends CallOptions {
  /** Axis order of query and output. Default `'bhld'`. */
  readonly layout?: Layout;
}

export const updateNames = ['decay', 'beta', 'keyMask'] as const;
const stateNames: ReadonlySet<string> = new Set([...stateOptionNames, ...methodNames]);
const appendNames: ReadonlySet<string> = new Set([...outlessOptionNames, ...updateNames, 'layout']);
const attendNames: ReadonlySet<string> = new Set([...callOptionNames, 'layout']);

interface CheckedShape extends StateShape {
  readonly method: CheckedMethod;
  readonly plan: FeaturePlan;
}

function checkShape(options: LinearStateOptions): CheckedShape {
  if (options === undefined) throw expected('ERR_ARGUMENT', 'options', '{ heads, headDim, featureMap, … }', options);
  const given = checkOptions<LinearStateOptions>('options', options, stateNames);
  const shape = checkStateShape(given);
  const method = checkMethod(given);
  const { heads: kvHeads, headDim, valueDim } = shape;
  return { ...shape, method, plan: planFeatures(method.featureMap, { headDim, valueDim, kvHeads }) };
}

/** S and z of every head of every sequence, and how many calls on other threads read them. */
class StateMemory {
  readers = 0;
  readonly data: Float64Array;

  constructor(doubles: number) {
    try {
      this.data = new Float64Array(doubles);
    } catch (cause) {
      throw expected('ERR_MEMORY', 'state', 'a state that can be allocated', doubles, { cause });
    }
  }
}

/** How a call uses a state. */
interface StateUse {
  readonly state: LinearState;
  /** Positions that the call adds; undefined for one that only reads. */
  readonly adds?: number;
}

/** The op of a call on a state: what stands in the way is refused, and on success the state changes. */
let opOn: (use: StateUse, call: LinearCall) => NativeOp;

/** A state that no call is updating, whatever a value's prototype says. */
let idle: (name: string, value: unknown) => LinearState;
let methodOf: (state: LinearState) => CheckedMethod;

/**
 * The past of sequences as linear attention keeps it, of a size that does not depend on their length: for each key/value
 * head a matrix S (F × valueDim) and, to normalise, a vector z (F), in float64, as they are summed without end.
 *
 * A prompt is read with `linearAttention(q, k, v, { state })`, and so is each further token, or with `append` and
 * `attend`. A call that fails or is aborted leaves the state as it was. While an asynchronous call is updating a state,
 * every other call on it is refused with `ERR_ARGUMENT`: await it first.
 *
 * An update is made in place, which spares memory and its bandwidth, unless the old state may still be needed: by an
 * asynchronous call with a `signal`, which may be aborted half-way, or while asynchronous calls that only read are
 * going on. Then it is written to new memory, and the old is given back.
 */
export class LinearState {
  static {
    idle = (name, value) => {
      if (typeof value !== 'object' || value === null || !(#current in value))
        throw expected('ERR_TYPE', name, 'a LinearState', value);
      const state = value as LinearState;
      if (state.#current === undefined)
        throw expected('ERR_CLOSED', name, 'a state in use', new Text('a disposed one'));
      if (state.#updating)
        throw expected('ERR_ARGUMENT', name, 'a state at rest', new Text('one that a call is updating: await it'));
      return state;
    };
    methodOf = (state) => state.#method;
    opOn = (use, call) => (_operands, numbers, threads, isa, async, abort) =>
      use.state.#run(use, call, abort !== null, (states) =>
        addon.linear(linearOperands(call, states), numbers, threads, isa, async, abort),
      );
  }

  /** As given to the constructor, or by default, like those below. */
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly batch: number;
  readonly featureMap: FeatureMap;
  readonly updateRule: UpdateRule;
  readonly normalize: boolean;
  readonly epsilon: number;
  /** Undefined where it was not given. */
  readonly scale: number | undefined;
  /** F, the features of a key. */
  readonly features: number;
  readonly #method: CheckedMethod;
  #length = 0;
  #updating = false;
  /** Undefined once disposed. */
  #current: StateMemory | undefined;
  /** What calls in flight hold beside it: the state that one is writing, and older ones that others read. */
  readonly #others = new Set<StateMemory>();

  /** @throws AttentionError ERR_ARGUMENT, ERR_TYPE, ERR_SHAPE, ERR_UNSUPPORTED, ERR_MEMORY */
  constructor(options: LinearStateOptions) {
    const { heads, headDim, valueDim, batch, method, plan } = guard(LinearState, () => checkShape(options));
    this.heads = heads;
    this.headDim = headDim;
    this.valueDim = valueDim;
    this.batch = batch;
    this.featureMap = method.featureMap;
    this.updateRule = method.updateRule;
    this.normalize = method.normalize;
    this.epsilon = method.epsilon;
    this.scale = method.scale;
    this.features = plan.features;
    this.#method = method;
    this.#current = guard(LinearState, () => this.#allocate());
  }

  /** Positions held, hidden ones included. */
  get length(): number {
    return this.#length;
  }

  /**
   * Bytes allocated: once the state; twice while an update is written beside it, and once more for each older state that
   * calls in flight read; 0 once disposed.
   */
  get byteLength(): number {
    const each = this.#current?.data.byteLength ?? 0;
    return each * (1 + this.#others.size);
  }

  /**
   * Adds the keys and values of one or many positions, on the calling thread and `threads` − 1 more.
   *
   * @param key `[batch, heads, n, headDim]`
   * @param value `[batch, heads, n, valueDim]`, of key's type
   * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_UNSUPPORTED, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED,
   *   ERR_CLOSED; the state is then as it was
   */
  append(key: Tensor, value: Tensor, options?: LinearAppendOptions): void {
    runSync(LinearState.prototype.append, () => prepareAppend(this, key, value, options));
  }

  /**
   * What queries read from the state, on a worker thread: φ(q)S/(φ(q)·z + epsilon) or scale·φ(q)S. Every query reads all
   * that is held; for `cosformer()` the last one stands at the last position. The state stays as it is.
   *
   * @param query `[batch, heads, queries, headDim]`, heads a multiple of the state's
   * @returns `[batch, heads, queries, valueDim]` of query's type; zeros while nothing is held
   * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED, ERR_CLOSED
   */
  async attend(query: Tensor, options?: LinearAttendOptions): Promise<Tensor> {
    return await runAsync(LinearState.prototype.attend, () => prepareAttend(this, query, options));
  }

  /** {@link attend} on the calling thread. */
  attendSync(query: Tensor, options?: LinearAttendOptions): Tensor {
    return runSync(LinearState.prototype.attendSync, () => prepareAttend(this, query, options));
  }

  /**
   * A second state with the same contents, copied.
   *
   * @throws AttentionError ERR_CLOSED, ERR_ARGUMENT, ERR_MEMORY
   */
  fork(): LinearState {
    return guard(LinearState.prototype.fork, () => {
      const { heads, headDim, valueDim, batch } = idle('state', this);
      const { featureMap, updateRule, normalize, epsilon, scale } = this.#method;
      const copy = new LinearState({
        ...{ heads, headDim, valueDim, batch, featureMap, updateRule, normalize },
        ...(normalize ? { epsilon } : {}),
        ...(scale === undefined ? {} : { scale }),
      });
      (copy.#current as StateMemory).data.set((this.#current as StateMemory).data);
      copy.#length = this.#length;
      return copy;
    });
  }

  /**
   * Gives the memory back as soon as calls in flight have ended; what they compute is still returned. Every later use but
   * this one is refused with `ERR_CLOSED`.
   */
  dispose(): void {
    guard(LinearState.prototype.dispose, () => {
      if (!(#current in this)) throw expected('ERR_TYPE', 'state', 'a LinearState', this);
    });
    this.#current = undefined;
    this.#others.clear();
    this.#length = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #allocate(): StateMemory {
    return new StateMemory(this.batch * this.heads * (this.features * (this.valueDim + 1) + 1));
  }

  #run(
    { adds }: StateUse,
    { firstKey }: LinearCall,
    mayStop: boolean,
    native: (states: LinearStates) => Outcome | Promise<Outcome>,
  ): Outcome | Promise<Outcome> {
    // The caller's getters have run since the call was prepared, and may have used the state.
    idle('state', this);
    if (firstKey !== this.#length)
      throw expected('ERR_ARGUMENT', 'state', 'a state that stays as it was when the call began', this);
    const current = this.#current as StateMemory;
    const before = this.#length === 0 ? null : current.data;
    if (adds === undefined) {
      const outcome = native({ before, after: null });
      return before === null ? outcome : this.#reading(current, outcome);
    }
    // Other failures than an abort come before anything is written.
    const inPlace = current.readers === 0 && (before === null || !mayStop);
    const next = inPlace ? current : this.#allocate();
    const settle = (outcome: Outcome): Outcome => {
      this.#updating = false;
      this.#others.delete(next);
      if (outcome === undefined && this.#current === current) {
        this.#current = next;
        this.#length += adds;
        if (current.readers > 0) this.#others.add(current);
      }
      return outcome;
    };
    const outcome = native({ before, after: next.data });
    if (!isPromise(outcome)) return settle(outcome);
    this.#updating = true;
    if (!inPlace) this.#others.add(next);
    return outcome.then(settle);
  }

  #reading(memory: StateMemory, outcome: Outcome | Promise<Outcome>): Outcome | Promise<Outcome> {
    if (!isPromise(outcome)) return outcome;
    memory.readers++;
    return outcome.finally(() => {
      memory.readers--;
      if (memory.readers === 0) this.#others.delete(memory);
    });
  }
}

/** Whether a call goes on elsewhere. Not `instanceof`: the addon's promises may be of another realm. */
function isPromise(outcome: Outcome | Promise<Outcome>): outcome is Promise<Outcome> {
  return typeof outcome === 'object';
}

/** The state that a call is to go on from, at rest, and its method. */
export function checkState(state: unknown): { readonly state: LinearState; readonly method: CheckedMethod } {
  const checked = idle('state', state);
  return { state: checked, method: methodOf(checked) };
}

/** The op of a call that continues a state and adds positions to it. */
export function updating(state: LinearState, adds: number, call: LinearCall): NativeOp {
  return opOn({ state, adds }, call);
}

/** Nobody's memory: keys and values of a call that has none, queries and output of one that has none. */
function none(dim: number): Operand {
  return { data: new Float32Array(0), dims: [0, 0, 0, dim], type: 'float32' };
}

function prepareAppend(
  value: LinearState,
  k: Tensor,
  v: Tensor,
  given: LinearAppendOptions | undefined,
): Call<undefined> {
  const { state, method } = checkState(value);
  const options = checkOptions<LinearAppendOptions>('options', given, appendNames);
  const { batch, heads, headDim, valueDim } = state;
  const rowsBeforeHeads = checkLayout(options.layout);
  const { key, value: values, count: keys } = checkKeyValueRows(k, v, state, batch, rowsBeforeHeads);
  const firstKey = state.length;
  checkPositions('key', method.featureMap, firstKey + keys);
  const qkv: Qkv = {
    ...{ query: none(headDim), key, value: values },
    ...{ batch, heads, kvHeads: heads, queries: 0, keys, headDim, valueDim, rowsBeforeHeads },
  };
  const plan = planFeatures(method.featureMap, { headDim, valueDim, kvHeads: heads });
  const call: LinearCall = {
    ...{ qkv, output: none(valueDim), method, plan, causal: true, firstQuery: 0, firstKey },
    decay: checkDecay(options.decay, method.updateRule, qkv, plan.features),
    beta: checkBeta(options.beta, method.updateRule, qkv),
    keyMask: checkBoolTensor('keyMask', options.keyMask, [batch, keys]),
  };
  return {
    op: keys === 0 ? nothing : naming(updating(state, keys, call), stateTensorNames),
    operands: [],
    numbers: linearNumbers(call),
    options,
    result: undefined,
  };
}

function prepareAttend(value: LinearState, q: Tensor, given: LinearAttendOptions | undefined): Call<Tensor> {
  const { state, method } = checkState(value);
  const options = checkOptions<LinearAttendOptions>('options', given, attendNames);
  const { batch, heads: kvHeads, headDim, valueDim } = state;
  const rowsBeforeHeads = checkLayout(options.layout);
  const { query, heads, queries } = checkQueryRows('query', q, state, batch, rowsBeforeHeads, 'state');
  const qkv: Qkv = {
    ...{ query, key: none(headDim), value: none(valueDim) },
    ...{ batch, heads, kvHeads, queries, keys: 0, headDim, valueDim, rowsBeforeHeads },
  };
  const plan = planFeatures(method.featureMap, { headDim, valueDim, kvHeads, heads });
  const output = outputOf(qkv, options.out, [plan.queryWeights?.data ?? null]);
  const firstKey = state.length;
  const call: LinearCall = {
    // What a state is made by does not matter to who reads it.
    ...{ qkv, output, method: { ...method, updateRule: 'linear' }, plan, causal: false },
    ...{ firstQuery: firstKey - queries, firstKey },
    ...{ decay: { data: null, perFeature: false }, beta: null, keyMask: null },
  };
  return {
    op: view.length(output.data) === 0 ? nothing : naming(opOn({ state }, call), stateTensorNames),
    operands: [],
    numbers: linearNumbers(call),
    options,
    result: options.out ?? (output as Tensor),
  };
}
