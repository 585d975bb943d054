import { setTimeout as sleep } from 'node:timers/promises';

/** Something to be timed. */
export interface Turn {
  /** One call. What it returns is awaited if it is a promise. */
  readonly call: () => unknown;
}

/** Times of one contender: milliseconds a call, one for each round. */
export interface Times {
  /** Calls in one timed turn; more than one where a single call is too short to time. */
  readonly calls: number;
  readonly ms: readonly number[];
}

export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  /** Every value, in the order of the rounds. */
  readonly all: readonly number[];
}

/**
 * A runtime's threads may go on spinning for a while after a call and would slow whatever runs next on the same cores.
 * So each turn starts with a rest, and with untimed calls until the contender's own threads are awake and have cores: a
 * system that packs sleeping threads on few cores takes tens of milliseconds to spread them.
 */
const restMs = 40;
const wakingMs = 40;

/** A timed turn lasts at least this long: single calls of microseconds would measure the clock. */
const shortestTurnMs = 4;

/** Most time that one case's rounds should take; slow cases get fewer rounds, never less than three. */
const budgetMs = 60_000;

/** Times contenders in turn, round by round, so that all meet the same moods of the machine. */
export async function interleave(
  turns: readonly Turn[],
  rounds: number,
  onRound: () => void = () => {},
): Promise<Times[]> {
  const calls: number[] = [];
  let roundMs = 0;
  for (const turn of turns) {
    await time(turn, 1);
    const ms = await time(turn, 1);
    calls.push(Math.min(5000, Math.max(1, Math.ceil(shortestTurnMs / ms))));
    roundMs += restMs + wakingMs + 2 * Math.max(ms, shortestTurnMs);
  }
  const affordable = Math.min(rounds, Math.max(3, Math.floor(budgetMs / roundMs)));
  const ms = turns.map(() => new Array<number>(affordable));
  for (let round = 0; round < affordable; round++) {
    for (let i = 0; i < turns.length; i++) {
      // Every round begins with another contender, so that none always follows the same one.
      const index = (round + i) % turns.length;
      const turn = turns[index] as Turn;
      await sleep(restMs);
      for (const start = performance.now(); performance.now() - start < wakingMs; ) await time(turn, 1);
      (ms[index] as number[])[round] = await time(turn, calls[index] as number);
    }
    onRound();
  }
  return ms.map((all, index) => ({ calls: calls[index] as number, ms: all }));
}

/** Milliseconds a call. */
async function time({ call }: Turn, calls: number): Promise<number> {
  const start = performance.now();
  for (let i = 0; i < calls; i++) {
    const result = call();
    // Awaiting what is no promise would add a trip through the event loop to a call of microseconds.
    if (result instanceof Promise) await result;
  }
  return (performance.now() - start) / calls;
}

export function summarize(all: readonly number[]): Summary {
  return { median: median(all), min: Math.min(...all), max: Math.max(...all), all };
}

/** How many times longer `other` took: the median of the rounds' own ratios, which cancels what slowed a whole round. */
export function ratio(ours: readonly number[], other: readonly number[]): Summary {
  return summarize(other.map((value, round) => value / (ours[round] as number)));
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  return ((sorted[Math.ceil(middle) - 1] as number) + (sorted[Math.floor(middle)] as number)) / 2;
}
