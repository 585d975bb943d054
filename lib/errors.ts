/**
 * What went wrong, for programs.
 *
 * - `ERR_ARGUMENT`: an option has a value it may not have, or no such option exists; an argument that cannot be read
 *   (`cause` is what its getter threw), or whose memory went elsewhere meanwhile
 * - `ERR_SHAPE`: dims that are none, do not fit the data or each other; a list of the wrong length
 * - `ERR_TYPE`: something that is no tensor, mask or cache; the wrong kind of array or element type; shared or
 *   resizable memory
 * - `ERR_UNSUPPORTED`: a combination that is not implemented
 * - `ERR_DEVICE`: a device or instruction set that this machine or build has not
 * - `ERR_MEMORY`: not enough of it, or more than a cache's capacity
 * - `ERR_ABORTED`: the signal was aborted; `cause` is its reason
 * - `ERR_CUDA`: a failure of the CUDA driver
 * - `ERR_CLOSED`: a cache that was disposed
 */
export type AttentionErrorCode =
  | 'ERR_ARGUMENT'
  | 'ERR_SHAPE'
  | 'ERR_TYPE'
  | 'ERR_UNSUPPORTED'
  | 'ERR_DEVICE'
  | 'ERR_MEMORY'
  | 'ERR_ABORTED'
  | 'ERR_CUDA'
  | 'ERR_CLOSED';

/**
 * The one error class of this package.
 *
 * `code` says what went wrong, `argument` which argument it is about (`''` when it is about none). The message
 * reads: expected X for `argument`, received Y. For `ERR_ABORTED`, `cause` is the signal's reason.
 */
export class AttentionError extends Error {
  override readonly name = 'AttentionError';

  constructor(
    readonly code: AttentionErrorCode,
    readonly argument: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** Text to stand in a message as it is, where {@link expected} would describe a value. */
export class Text {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  /** The text, if that is what it is. Unlike `instanceof` it never runs a caller's proxy. */
  static of(value: unknown): string | undefined {
    return typeof value === 'object' && value !== null && #text in value ? value.#text : undefined;
  }
}

/** Builds the error of the common grammar: expected X for `name`, received Y. */
export function expected(
  code: AttentionErrorCode,
  name: string,
  what: string,
  received: unknown,
  options?: ErrorOptions,
): AttentionError {
  const shown = Text.of(received) ?? describe(received);
  return new AttentionError(code, name, `expected ${what} for \`${name}\`, received ${shown}`, options);
}

/** Runs a check that calls things by names of its own; `nameOf` gives those that the caller knows. */
export function renaming<Result>(nameOf: (argument: string) => string, check: () => Result): Result {
  try {
    return check();
  } catch (error) {
    if (!isOurs(error)) throw error;
    const { code, argument, message, cause } = error;
    const renamed = message.replace(`for \`${argument}\`, received`, () => `for \`${nameOf(argument)}\`, received`);
    throw new AttentionError(code, nameOf(argument), renamed, cause === undefined ? {} : { cause });
  }
}

/** A public function or class, at whose caller stacks begin. */
export type PublicEntry = ((...args: never[]) => unknown) | (new (...args: never[]) => unknown);

/** Runs a public function's body so that its errors' stacks begin at that function's caller. */
export function guard<Result>(entry: PublicEntry, body: () => Result): Result {
  try {
    return body();
  } catch (error) {
    throw atCallOf(entry, error);
  }
}

/** The error, with a stack that begins at the caller of `entry` if it is one of ours. */
export function atCallOf(entry: PublicEntry, error: unknown): unknown {
  if (isOurs(error)) Error.captureStackTrace(error, entry);
  return error;
}

/** Whether something thrown is an error of ours; a caller's code may throw anything, a revoked proxy included. */
export function isOurs(error: unknown): error is AttentionError {
  try {
    return error instanceof AttentionError;
  } catch {
    return false;
  }
}

const maxShown = 80;

/** A short, safe description of any value a caller may have passed. */
export function describe(value: unknown): string {
  try {
    return describeUnsafely(value);
  } catch {
    return 'an object that cannot be read';
  }
}

function describeUnsafely(value: unknown): string {
  if (typeof value === 'string') return shorten(JSON.stringify(value.slice(0, maxShown)));
  // Writing out the digits of a large one takes long.
  if (typeof value === 'bigint') return BigInt.asIntN(128, value) === value ? `${value}n` : 'a large BigInt';
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'symbol') return 'a symbol';
  if (typeof value !== 'object' || value === null) return Object.is(value, -0) ? '-0' : String(value);
  if (ArrayBuffer.isView(value)) return `${tagOf(value)}(${'length' in value ? value.length : value.byteLength})`;
  if (Array.isArray(value)) {
    const { length } = value;
    const items = Array.from({ length: Math.min(length, 8) }, (_, i) => {
      const item: unknown = value[i];
      return typeof item === 'object' && item !== null ? tagOf(item) : describeUnsafely(item);
    });
    return shorten(`[${items.join(', ')}${length > 8 ? ', …' : ''}]`);
  }
  return tagOf(value) === 'Object' ? 'an object' : tagOf(value);
}

const typedArrayTag = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), Symbol.toStringTag)
  ?.get as () => string | undefined;

/** Kind of a typed array ('Float16Array', …), which unlike `instanceof` does not depend on the realm and cannot be forged. */
export function typedArrayKind(value: unknown): string | undefined {
  return typedArrayTag.call(value);
}

/** The `Symbol.toStringTag` name, for messages. */
export function tagOf(value: unknown): string {
  return shorten(Object.prototype.toString.call(value).slice(8, -1));
}

function shorten(text: string): string {
  return text.length > maxShown ? `${text.slice(0, maxShown - 1)}…` : text;
}
