import { AttentionError, type AttentionErrorCode } from '../lib';

/** What a refused call must say. */
export interface Refusal {
  readonly code: AttentionErrorCode;
  readonly argument: string;
  /** What the message says it got, after "received". */
  readonly received?: string | RegExp;
  /** What the error was caused by. */
  readonly cause?: unknown;
}

/**
 * What is wrong with how a call was refused, or undefined. The call must fail with an AttentionError of the common
 * grammar whose stack begins at the call; a synchronous one by throwing, an asynchronous one by a rejection alone.
 */
export async function faultOf(
  call: () => unknown,
  asynchronous: boolean,
  wanted: Refusal,
): Promise<string | undefined> {
  let result: unknown;
  try {
    result = call();
  } catch (error) {
    return asynchronous ? `threw instead of rejecting: ${error}` : faultOfError(error, wanted);
  }
  if (!(result instanceof Promise)) return 'was not refused';
  if (!asynchronous) return 'gave a promise';
  try {
    await result;
  } catch (error) {
    return faultOfError(error, wanted);
  }
  return 'was not refused';
}

/** What is wrong with an error, or undefined. */
export function faultOfError(error: unknown, { code, argument, received, cause }: Refusal): string | undefined {
  if (!(error instanceof AttentionError)) return `is no AttentionError: ${String(error)}`;
  const { message, stack = '' } = error;
  if (error.code !== code || error.argument !== argument)
    return `${error.code} for '${error.argument}', expected ${code} for '${argument}' (${message})`;
  const grammar = /^expected (\S.*) for `([^`]+)`, received (\S.*)$/.exec(message);
  if (grammar === null || grammar[2] !== argument) return `does not follow the grammar: ${message}`;
  const got = grammar[3];
  if (received !== undefined && !(typeof received === 'string' ? got === received : received.test(got)))
    return `received ${got}, expected ${received}`;
  if (cause !== undefined && error.cause !== cause) return `cause ${error.cause}`;
  // Nothing of lib may stand above the caller.
  const first = stack.slice(stack.indexOf('\n    at ')).split('\n')[1] ?? '';
  if (!first.includes(__dirname)) return `its stack does not begin at the call: ${stack}`;
  return undefined;
}

/** Fails with all faults of a table, not only the first. */
export class Faults {
  readonly #found: string[] = [];
  #checked = 0;

  add(what: string, fault: string | undefined): void {
    this.#checked++;
    if (fault !== undefined) this.#found.push(`${what}: ${fault}`);
  }

  /** @throws Error if there are faults, or if nothing was checked */
  none(): void {
    expect(this.#found).toEqual([]);
    expect(this.#checked).toBeGreaterThan(0);
  }
}

/** How a call failed, as one text: code, argument (of a path its last part) and message, which follows the common grammar. */
export async function refusalOf(run: Promise<unknown>): Promise<string> {
  const error = await run.then(
    () => 'was done',
    (reason) => reason,
  );
  if (!(error instanceof AttentionError)) throw new Error(`no AttentionError: ${error}`);
  expect(error.message).toMatch(/^expected .* for `.*`, received /);
  return `${error.code} ${error.argument.replace(/.*\/(?=[^/]*$)/, '')}: ${error.message}`;
}
