/** Turns at caches, which only one call at a time may change: taken in the order in which the calls were made. */
import { type Call, type CallOptions, unwatch, watch } from './call';
import { expected, Text } from './errors';
import type { Outcome } from './native';
import type { CacheMemory } from './paged-cache';

/** Who stands in line at each cache. A line that nobody stands in is not there. */
const lines = new WeakMap<CacheMemory, Turn[]>();

/** Refuses a cache that a call has its turn at, or waits for: what is done at once would come before it. */
export function checkAtRest(name: string, cache: CacheMemory): void {
  if (lines.has(cache))
    throw expected('ERR_ARGUMENT', name, 'a cache at rest', new Text('one that a call appends to: await it'));
}

export class Turn {
  readonly #caches: readonly CacheMemory[];
  #begin: (() => void) | undefined;

  /** Gets in line at all caches, each listed once, in the same moment: no two turns wait for each other. */
  constructor(caches: readonly CacheMemory[]) {
    this.#caches = caches;
    for (const cache of caches) {
      const line = lines.get(cache);
      if (line === undefined) lines.set(cache, [this]);
      else line.push(this);
    }
  }

  /** A call that ends when the turn of all caches is this one. Only an asynchronous call can wait. */
  wait(options: CallOptions): Call<undefined> {
    const op = (): Outcome | Promise<Outcome> => (this.#isFirst() ? undefined : this.#coming(options.signal));
    return { op, operands: [], numbers: new Float64Array(), options, result: undefined };
  }

  /** Leaves all lines, also before the turn has come. */
  end(): void {
    for (const cache of this.#caches) {
      const rest = lines.get(cache)?.filter((turn) => turn !== this) ?? [];
      if (rest.length === 0) lines.delete(cache);
      else lines.set(cache, rest);
    }
    for (const cache of this.#caches) lines.get(cache)?.[0]?.come();
  }

  /** Ends the waiting, if there is nobody before this one any more. */
  come(): void {
    if (this.#isFirst()) this.#begin?.();
  }

  #isFirst(): boolean {
    return this.#caches.every((cache) => lines.get(cache)?.[0] === this);
  }

  #coming(signal: AbortSignal | undefined): Promise<Outcome> {
    return new Promise((resolve) => {
      const settle = (outcome: Outcome): void => {
        if (signal !== undefined) unwatch(signal, abort);
        resolve(outcome);
      };
      const abort = (): void => settle('ERR_ABORTED:signal:');
      this.#begin = () => settle(undefined);
      if (signal !== undefined) watch(signal, abort);
    });
  }
}
