/**
 * Reading what a caller passed: once, and safely. Getters and proxies may throw, answer differently each time, or run
 * code that changes other arguments; so every property is read into a copy, and only the copy is checked and used.
 */
import { type AttentionError, expected, isOurs, Text } from './errors';

/** Runs a piece of code that may run the caller's code. */
export function attempt<Result>(name: string, read: () => Result): Result {
  try {
    return read();
  } catch (error) {
    throw unreadable(name, error);
  }
}

/** The error for an argument whose own code threw; errors of ours stay as they are. */
export function unreadable(name: string, cause: unknown): AttentionError {
  if (isOurs(cause)) return cause;
  return expected('ERR_ARGUMENT', name, 'a value that can be read', new Text('an exception'), { cause });
}

/** `Array.isArray`, which throws for a revoked proxy. */
export function isArray(value: unknown): value is readonly unknown[] {
  try {
    return Array.isArray(value);
  } catch {
    return false;
  }
}

/**
 * Reads a list, each element once (a hole is undefined), and makes something of each at once: a list of a billion holes
 * must fail at its first.
 *
 * @returns undefined for what is no list, or one of a length that does not fit
 */
export function readList<Item>(
  name: string,
  list: unknown,
  fits: (length: number) => boolean,
  make: (item: unknown, index: number) => Item,
): Item[] | undefined {
  if (!isArray(list) && !ArrayBuffer.isView(list)) return undefined;
  const items = list as ArrayLike<unknown>;
  try {
    const length = isArray(list) ? list.length : view.length(list);
    if (!Number.isSafeInteger(length) || !fits(length)) return undefined;
    const result: Item[] = [];
    for (let i = 0; i < length; i++) result.push(make(items[i], i));
    return result;
  } catch (error) {
    throw unreadable(name, error);
  }
}

type Getter<Value> = (this: unknown) => Value;

function getterOf<Value>(prototype: object, name: PropertyKey): Getter<Value> {
  return Object.getOwnPropertyDescriptor(prototype, name)?.get as Getter<Value>;
}

// The built-in getters: a property of the same name put over them would answer for the memory without being it.
const typedArray = Object.getPrototypeOf(Uint8Array.prototype) as object;
const bufferGetter = getterOf<ArrayBufferLike>(typedArray, 'buffer');
const lengthGetter = getterOf<number>(typedArray, 'length');
const byteLengthGetter = getterOf<number>(typedArray, 'byteLength');
const byteOffsetGetter = getterOf<number>(typedArray, 'byteOffset');
/** Missing where the engine has no resizable buffers. */
const resizableGetter = getterOf<boolean>(ArrayBuffer.prototype, 'resizable') as Getter<boolean> | undefined;

/** What a typed array really is, whatever properties it has been given. */
export const view = {
  buffer: (array: ArrayBufferView): ArrayBufferLike => bufferGetter.call(array),
  length: (array: ArrayBufferView): number => lengthGetter.call(array),
  byteLength: (array: ArrayBufferView): number => byteLengthGetter.call(array),
  byteOffset: (array: ArrayBufferView): number => byteOffsetGetter.call(array),
};

/** Whether a buffer that is not shared may change its size. */
export function isResizable(buffer: ArrayBufferLike): boolean {
  return resizableGetter?.call(buffer) === true;
}

/** Whether the memory of a typed array has gone elsewhere. */
export function isDetached(array: ArrayBufferView): boolean {
  try {
    // No array can be made on a detached buffer.
    new Uint8Array(view.buffer(array));
    return false;
  } catch {
    return true;
  }
}
