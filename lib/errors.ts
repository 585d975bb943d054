/** What went wrong, for programs. */
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

/** Builds the error of the common grammar: expected X for `name`, received Y. */
export function expected(code: AttentionErrorCode, name: string, what: string, received: unknown): AttentionError {
  return new AttentionError(code, name, `expected ${what} for \`${name}\`, received ${describe(received)}`);
}

const maxShown = 80;

/** A short, safe description of any value a caller may have passed. */
export function describe(value: unknown): string {
  if (typeof value === 'string') return shorten(JSON.stringify(value));
  if (typeof value === 'bigint') return shorten(`${value}n`);
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'symbol') return 'a symbol';
  if (typeof value !== 'object' || value === null) return Object.is(value, -0) ? '-0' : String(value);
  if (ArrayBuffer.isView(value)) return `${tagOf(value)}(${'length' in value ? value.length : value.byteLength})`;
  if (Array.isArray(value)) {
    const items = value.slice(0, 8).map((item) => (typeof item === 'object' ? tagOf(item) : describe(item)));
    return shorten(`[${items.join(', ')}${value.length > 8 ? ', …' : ''}]`);
  }
  return tagOf(value) === 'Object' ? 'an object' : tagOf(value);
}

/** The `Symbol.toStringTag` name, which unlike `instanceof` does not depend on the realm. */
export function tagOf(value: unknown): string {
  return Object.prototype.toString.call(value).slice(8, -1);
}

function shorten(text: string): string {
  return text.length > maxShown ? `${text.slice(0, maxShown - 1)}…` : text;
}
