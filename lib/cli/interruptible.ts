/** Work that tidies up when the user or the system ends the process. */

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Does what can be aborted, and aborts it at the first signal to end; with that the process ends when all is tidied up.
 * A second signal ends it at once.
 */
export async function interruptible<Result>(run: (signal: AbortSignal) => Promise<Result>): Promise<Result> {
  const controller = new AbortController();
  let caught: NodeJS.Signals | undefined;
  const listener = (signal: NodeJS.Signals): void => {
    caught = signal;
    forget();
    controller.abort(new Error(signal));
  };
  const forget = (): void => {
    for (const signal of signals) process.off(signal, listener);
  };
  for (const signal of signals) process.on(signal, listener);
  try {
    return await run(controller.signal);
  } finally {
    forget();
    // As if nobody had listened: whoever started the process sees what ended it.
    if (caught !== undefined) process.kill(process.pid, caught);
  }
}
