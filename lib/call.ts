import { checkBoolean, checkChoice, checkInteger } from './check';
import {
  type AttentionError,
  type AttentionErrorCode,
  atCallOf,
  describe,
  expected,
  guard,
  type PublicEntry,
  Text,
} from './errors';
import { type NativeOp, nativeInfo, type Outcome } from './native';
import { attempt } from './read';
import type { Tensor } from './tensor';

/** Where a call runs. `'auto'` takes a GPU if there is a usable one, else the CPU. */
export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/** Options of every op: how to run, not what to compute. */
export interface CallOptions {
  /**
   * Write the result here instead of into a new tensor. Must have the result's dims and overlap no input. Its type may
   * differ from the inputs'; it is rounded to once, from float32. Default a new tensor.
   */
  readonly out?: Tensor;
  /** Where to run; `'cuda'` is refused while there are no CUDA kernels. Default `'auto'`. */
  readonly device?: Device;
  /**
   * Forces one row of the kernel table (see `info().kernels`); for tests and measurements.
   * Default `'auto'`, the fastest that this processor runs.
   */
  readonly isa?: string;
  /** Most threads this call may use, the calling one included. At least 1; more than there are cores is as many. Default: all cores. */
  readonly threads?: number;
  /**
   * Stops the call within milliseconds; the promise is then rejected with `ERR_ABORTED`. Synchronous calls look at it
   * before they begin only. Default none.
   */
  readonly signal?: AbortSignal;
}

export const callOptionNames = ['out', 'device', 'isa', 'threads', 'signal'] as const;

/** Those of calls whose results are no single tensor. */
export const outlessOptionNames = callOptionNames.filter((name) => name !== 'out');

/** A checked call that has not run yet. */
export interface Call<Result> {
  readonly op: NativeOp;
  readonly operands: readonly unknown[];
  readonly numbers: Float64Array;
  readonly options: CallOptions;
  readonly result: Result;
}

/** Stands in for the native op of a call that has nothing to compute. */
export const nothing: NativeOp = () => undefined;

/** An op whose failures name arguments as the caller knows them: `names` has those by what native code calls them. */
export function naming(op: NativeOp, names: Readonly<Record<string, string>>): NativeOp {
  const named = (outcome: Outcome): Outcome =>
    outcome?.replace(/(?<=^\w+:)\w+(?=:)/, (name) => (Object.hasOwn(names, name) ? (names[name] as string) : name));
  return (...call) => {
    const outcome = op(...call);
    return typeof outcome === 'object' ? outcome.then(named) : named(outcome);
  };
}

/** Runs a call on this thread. Errors' stacks begin at the caller of `entry`, the public function. */
export function runSync<Result>(entry: PublicEntry, prepare: () => Call<Result>): Result {
  return guard(entry, () => {
    const call = prepare();
    const { threads, isa, signal } = checkHow(call.options);
    throwIfAborted(signal);
    const outcome = call.op(call.operands, call.numbers, threads, isa, false, null) as Outcome;
    if (outcome !== undefined) throw failure(outcome, signal);
    return call.result;
  });
}

/** Runs a call on a worker thread. Never throws: every failure is a rejection. */
export async function runAsync<Result>(entry: PublicEntry, prepare: () => Call<Result>): Promise<Result> {
  try {
    const call = prepare();
    const { threads, isa, signal } = checkHow(call.options);
    throwIfAborted(signal);
    const flag = signal === undefined ? null : new Int32Array(1);
    const raise = (): void => {
      if (flag !== null) flag[0] = 1;
    };
    if (signal !== undefined) watch(signal, raise);
    try {
      const outcome = await call.op(call.operands, call.numbers, threads, isa, true, flag);
      if (outcome !== undefined) throw failure(outcome, signal);
      return call.result;
    } finally {
      if (signal !== undefined) unwatch(signal, raise);
    }
  } catch (error) {
    throw atCallOf(entry, error);
  }
}

/** What is to be done when each signal aborts: one listener a signal, however many calls share it. */
const watched = new WeakMap<AbortSignal, { readonly alarms: Set<() => void>; readonly listener: () => void }>();

/** Calls `alarm` when the signal aborts, until {@link unwatch}. */
export function watch(signal: AbortSignal, alarm: () => void): void {
  let entry = watched.get(signal);
  if (entry === undefined) {
    const alarms = new Set<() => void>();
    const listener = (): void => {
      for (const each of alarms) each();
    };
    attempt('signal', () => signal.addEventListener('abort', listener, { once: true }));
    entry = { alarms, listener };
    watched.set(signal, entry);
  }
  entry.alarms.add(alarm);
}

export function unwatch(signal: AbortSignal, alarm: () => void): void {
  const entry = watched.get(signal);
  if (entry === undefined) return;
  entry.alarms.delete(alarm);
  if (entry.alarms.size > 0) return;
  watched.delete(signal);
  attempt('signal', () => signal.removeEventListener('abort', entry.listener));
}

interface How {
  readonly threads: number;
  readonly isa: string;
  readonly signal: AbortSignal | undefined;
}

function checkHow({ device, isa, threads, signal }: CallOptions): How {
  checkDevice(device);
  if (signal !== undefined && !attempt('signal', () => isSignal(signal)))
    throw expected('ERR_ARGUMENT', 'signal', 'an AbortSignal', signal);
  return {
    threads: threads === undefined ? nativeInfo.threads : checkInteger('threads', threads, 1),
    isa: isa === undefined || isa === 'auto' ? '' : checkIsa(isa),
    signal,
  };
}

/** Refuses a device that there is not. */
export function checkDevice(device: unknown): void {
  if (device === undefined || device === 'auto' || device === 'cpu') return;
  if (typeof device !== 'string' || !/^cuda(:\d+)?$/.test(device))
    throw expected('ERR_ARGUMENT', 'device', "'auto', 'cpu', 'cuda' or 'cuda:N'", device);
  throw expected('ERR_DEVICE', 'device', 'a usable device', new Text(`${describe(device)}: ${noCuda}`));
}

/** By what it can do: polyfills and other realms have AbortSignals of their own. */
function isSignal(signal: unknown): boolean {
  if (typeof signal !== 'object' || signal === null) return false;
  const { aborted, addEventListener, removeEventListener } = signal as Partial<AbortSignal>;
  return (
    typeof aborted === 'boolean' && typeof addEventListener === 'function' && typeof removeEventListener === 'function'
  );
}

/** Why no GPU can be asked for. */
export const noCuda = 'this build has no CUDA kernels';

function checkIsa(isa: string): string {
  const rows = nativeInfo.kernels.filter((row) => row.device === 'cpu');
  checkChoice('isa', isa, ['auto', ...new Set(rows.map((row) => row.isa))]);
  if (!rows.some((row) => row.isa === isa && row.supported)) {
    throw expected('ERR_DEVICE', 'isa', 'an instruction set of this processor', isa);
  }
  return isa;
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal !== undefined && attempt('signal', () => signal.aborted)) throw aborted(signal);
}

function aborted(signal: AbortSignal | undefined): AttentionError {
  return expected('ERR_ABORTED', 'signal', 'a signal that is not aborted', new Text('an aborted one'), {
    cause: attempt('signal', () => signal?.reason),
  });
}

/** What was expected where native code reports a code. Its detail says what it met instead. */
const expectations: Partial<Record<AttentionErrorCode, string>> = {
  ERR_ARGUMENT: 'memory that stays as it was when the call began',
  ERR_MEMORY: 'enough memory',
  ERR_DEVICE: 'a usable device',
};

/** The error of a native outcome, `code:argument:detail`. */
export function failure(outcome: string, signal?: AbortSignal): AttentionError {
  const [code = '', argument = '', ...detail] = outcome.split(':');
  if (code === 'ERR_ABORTED') return aborted(signal);
  const what = expectations[code as AttentionErrorCode] ?? 'a supported call';
  return expected(code as AttentionErrorCode, argument, what, new Text(detail.join(':')));
}

/** Reads the option `layout`: whether rows stand before heads. */
export function checkLayout(layout: unknown): boolean {
  return layout !== undefined && checkChoice('layout', layout, ['bhld', 'blhd']) === 'blhd';
}

/** Reads an optional boolean option. */
export function checkFlag(name: string, value: unknown): boolean {
  return value !== undefined && checkBoolean(name, value);
}
