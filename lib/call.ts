import { checkBoolean, checkChoice, checkInteger } from './check';
import { AttentionError, type AttentionErrorCode, describe, expected } from './errors';
import { type NativeOp, nativeInfo, type Outcome } from './native';
import type { Tensor } from './tensor';

/** Where a call runs. `'auto'` takes a GPU if there is a usable one, else the CPU. */
export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/** Options of every op: how to run, not what to compute. */
export interface CallOptions {
  /** Write the result here instead of into a new tensor. Must have the result's dims and overlap no input. */
  readonly out?: Tensor;
  /** Default `'auto'`. */
  readonly device?: Device;
  /**
   * Forces one row of the kernel table (see `info().kernels`); for tests and measurements.
   * Default `'auto'`, the fastest that this processor runs.
   */
  readonly isa?: string;
  /** Most threads this call may use, the calling one included. At least 1; more than there are cores is as many. Default: all cores. */
  readonly threads?: number;
  /** Stops the call within milliseconds; the promise is then rejected with `ERR_ABORTED`. */
  readonly signal?: AbortSignal;
}

export const callOptionNames = ['out', 'device', 'isa', 'threads', 'signal'] as const;

/** A checked call that has not run yet. */
export interface Call<Result> {
  readonly op: NativeOp;
  readonly operands: readonly unknown[];
  readonly numbers: Float64Array;
  readonly options: CallOptions;
  readonly result: Result;
}

/** Runs a call on this thread. Errors' stacks begin at the caller of `entry`, the public function. */
export function runSync<Result>(entry: (...args: never[]) => unknown, prepare: () => Call<Result>): Result {
  try {
    const call = prepare();
    const { threads, isa, signal } = checkHow(call.options);
    throwIfAborted(signal);
    const outcome = call.op(call.operands, call.numbers, threads, isa, false, null) as Outcome;
    if (outcome !== undefined) throw failure(outcome, signal);
    return call.result;
  } catch (error) {
    if (error instanceof AttentionError) Error.captureStackTrace(error, entry);
    throw error;
  }
}

/** Runs a call on a worker thread. Never throws: every failure is a rejection. */
export async function runAsync<Result>(
  entry: (...args: never[]) => unknown,
  prepare: () => Call<Result>,
): Promise<Result> {
  let call: Call<Result>;
  let how: How;
  try {
    call = prepare();
    how = checkHow(call.options);
    throwIfAborted(how.signal);
  } catch (error) {
    if (error instanceof AttentionError) Error.captureStackTrace(error, entry);
    throw error;
  }
  const { threads, isa, signal } = how;
  if (signal === undefined) {
    const outcome = await call.op(call.operands, call.numbers, threads, isa, true, null);
    if (outcome !== undefined) throw failure(outcome, signal);
    return call.result;
  }
  const flag = new Int32Array(1);
  const abort = (): void => {
    flag[0] = 1;
  };
  signal.addEventListener('abort', abort, { once: true });
  try {
    const outcome = await call.op(call.operands, call.numbers, threads, isa, true, flag);
    if (outcome !== undefined) throw failure(outcome, signal);
    return call.result;
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

interface How {
  readonly threads: number;
  readonly isa: string;
  readonly signal: AbortSignal | undefined;
}

function checkHow({ device, isa, threads, signal }: CallOptions): How {
  if (device !== undefined && device !== 'auto' && device !== 'cpu') {
    if (typeof device !== 'string' || !/^cuda(:\d+)?$/.test(device)) {
      throw expected('ERR_ARGUMENT', 'device', "'auto', 'cpu', 'cuda' or 'cuda:N'", device);
    }
    throw expected('ERR_DEVICE', 'device', 'a usable device', `${describe(device)}: ${noCuda}`);
  }
  if (signal !== undefined && (typeof signal !== 'object' || signal === null || typeof signal.aborted !== 'boolean')) {
    throw expected('ERR_ARGUMENT', 'signal', 'an AbortSignal', signal);
  }
  return {
    threads: threads === undefined ? nativeInfo.threads : checkInteger('threads', threads, 1),
    isa: isa === undefined || isa === 'auto' ? '' : checkIsa(isa),
    signal,
  };
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
  if (signal?.aborted === true) throw aborted(signal);
}

function aborted(signal: AbortSignal | undefined): AttentionError {
  return new AttentionError('ERR_ABORTED', 'signal', 'the call was aborted', { cause: signal?.reason });
}

/** The error of a native outcome, `code:argument:detail`. */
export function failure(outcome: string, signal?: AbortSignal): AttentionError {
  const [code = 'ERR_ARGUMENT', argument = '', ...detail] = outcome.split(':');
  if (code === 'ERR_ABORTED') return aborted(signal);
  const subject = argument === '' ? '' : `\`${argument}\`: `;
  return new AttentionError(code as AttentionErrorCode, argument, `${subject}${detail.join(':')}`);
}

/** Reads the option `layout`: whether rows stand before heads. */
export function checkLayout(layout: unknown): boolean {
  return layout !== undefined && checkChoice('layout', layout, ['bhld', 'blhd']) === 'blhd';
}

/** Reads an optional boolean option. */
export function checkFlag(name: string, value: unknown): boolean {
  return value !== undefined && checkBoolean(name, value);
}
