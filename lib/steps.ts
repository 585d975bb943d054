/** Functions of several native calls in a row, written once and run either way. */
import { type Call, runAsync, runSync } from './call';
import { guard, type PublicEntry } from './errors';

/** The body of such a function: `yield* step(call)` runs a call and gives its result, or throws what it failed with. */
export type Steps<Result> = Generator<Call<unknown>, Result, unknown>;

export function* step<Result>(call: Call<Result>): Steps<Result> {
  return (yield call) as Result;
}

/** Waits for what no native code does, such as reading a file; only in steps that do not run on the calling thread. */
export function* wait<Result>(start: () => Promise<Result>): Steps<Result> {
  const found: { result?: Result } = {};
  const op = async (): Promise<undefined> => {
    found.result = await start();
  };
  yield* step({ op, operands: [], numbers: new Float64Array(), options: {}, result: undefined });
  return found.result as Result;
}

/** Runs the steps on this thread. Errors' stacks begin at the caller of `entry`, the public function. */
export function runStepsSync<Result>(entry: PublicEntry, steps: Steps<Result>): Result {
  return guard(entry, () => {
    for (let turn = steps.next(); ; ) {
      if (turn.done) return turn.value;
      const call = turn.value;
      let result: unknown;
      try {
        result = runSync(entry, () => call);
      } catch (error) {
        turn = steps.throw(error);
        continue;
      }
      turn = steps.next(result);
    }
  });
}

/** Runs the native calls on a worker thread, and what lies between them on this one. Every failure is a rejection. */
export async function runStepsAsync<Result>(entry: PublicEntry, steps: Steps<Result>): Promise<Result> {
  // The first step has checked the arguments; its errors know their caller while it is on the stack.
  for (let turn = guard(entry, () => steps.next()); ; ) {
    if (turn.done) return turn.value;
    const call = turn.value;
    let result: unknown;
    try {
      result = await runAsync(entry, () => call);
    } catch (error) {
      // Not guarded: its stack is right already, and nobody stands on this one any more.
      turn = steps.throw(error);
      continue;
    }
    turn = guard(entry, () => steps.next(result));
  }
}
