/** Calls of layers on a few caches, begun in any order and aborted at any time: what succeeds is as if nothing else had been. */
import { setImmediate as nextTurn } from 'node:timers/promises';

import { AttentionError, type LrkvCache, lrkvLayer, type Tensor } from '../lib';
import { normal, slice, uniform } from './data';
import { expectSameBits } from './full-run';
import { lrkvBiases, lrkvWeights } from './layer-data';

const shape = { kvHeads: 2, keyRank: 4, valueRank: 6 };
const weights = lrkvWeights(shape, { mode: 'latent', norm: 'plain' });
const { keyBase, keyDown, valueBase, valueDown, ...biases } = { ...weights, ...lrkvBiases(weights) };
const { keyBaseBias, keyDownBias, valueBaseBias, valueDownBias } = biases;
const projections = {
  ...{ keyBase, keyDown, valueBase, valueDown },
  ...{ keyBaseBias, keyDownBias, valueBaseBias, valueDownBias },
};
const layer = lrkvLayer({ ...weights, ...lrkvBiases(weights) });
/** Another one of the same model. */
const other = lrkvLayer({ ...weights, ...lrkvBiases(weights), output: normal([32, 20], 90) });

/** What is done to a list of caches. */
interface Step {
  /** Of the caches, as many as batch items. */
  readonly on: readonly number[];
  readonly begin: (caches: readonly LrkvCache[], signal?: AbortSignal) => Promise<Tensor | undefined>;
  /** The same at once. */
  readonly replay: (caches: readonly LrkvCache[]) => Tensor | undefined;
}

class Walk {
  readonly #next: () => number;
  readonly #caches = [0, 1, 2].map(() => layer.createCache({ capacity: 400 }));
  readonly #begun: { readonly step: Step; readonly outcome: Promise<unknown> }[] = [];
  readonly #controllers: AbortController[] = [];
  #aborted = 0;
  #seed = 0;

  constructor(seed: number) {
    this.#next = uniform(seed);
  }

  below(end: number): number {
    return Math.min(end - 1, Math.floor(this.#next() * end));
  }

  async take(): Promise<void> {
    const step = this.below(3) === 0 ? this.#appendHidden() : this.#forward();
    const controller = this.below(3) === 0 ? new AbortController() : undefined;
    const outcome = step.begin(this.#of(step, this.#caches), controller?.signal).catch((error: unknown) => error);
    this.#begun.push({ step, outcome });
    if (controller && this.below(3) === 0) {
      // Before its second step, so that it fails for certain.
      controller.abort();
      this.#aborted++;
    } else if (controller) {
      this.#controllers.push(controller);
    }
    if (this.below(3) === 0) await nextTurn();
    if (this.below(4) === 0) this.#controllers.pop()?.abort();
    if (this.below(6) === 0) this.#changeByHand();
    if (this.below(12) === 0) await Promise.all(this.#begun.map((each) => each.outcome));
  }

  /** What has succeeded, one after the other on caches of their own, gives the same. Returns how much has. */
  async check(): Promise<number> {
    const fresh = this.#caches.map(() => layer.createCache());
    let succeeded = 0;
    for (const { step, outcome } of this.#begun) {
      const found = await outcome;
      if (found instanceof AttentionError) {
        expect(['ERR_ABORTED', 'ERR_MEMORY']).toContain(found.code);
        continue;
      }
      if (found instanceof Error) throw found;
      succeeded++;
      const wanted = step.replay(this.#of(step, fresh));
      if (wanted !== undefined) expectSameBits(found as Tensor, wanted);
    }
    const query = normal([1, 4, 2, 8], 91);
    for (const [i, cache] of this.#caches.entries()) {
      expect(cache.length).toBe(fresh[i].length);
      expectSameBits(cache.attendSync(query), fresh[i].attendSync(query));
      // Nobody has a turn any more.
      cache.truncate(0);
    }
    for (const cache of [...fresh, ...this.#caches]) cache.dispose();
    expect(this.#aborted).toBeGreaterThan(0);
    expect(this.#begun.length - succeeded).toBeGreaterThanOrEqual(this.#aborted);
    return succeeded;
  }

  #of<Item>({ on }: Step, caches: readonly Item[]): Item[] {
    return on.map((index) => caches[index]);
  }

  #hidden(batch: number, n: number): Tensor {
    return normal([batch, n, 20], 100 + this.#seed++);
  }

  #forward(): Step {
    const on = [0, 1, 2].slice(this.below(3)).sort(() => this.#next() - 0.5);
    const hidden = this.#hidden(on.length, 1 + this.below(this.below(2) === 0 ? 2 : 30));
    const caller = this.below(2) === 0 ? layer : other;
    const keyLengths = on.map(() => this.below(hidden.dims[1] + 1));
    return {
      on,
      begin: (caches, signal) => caller.forward(hidden, { caches, keyLengths, ...(signal && { signal }) }),
      replay: (caches) => caller.forwardSync(hidden, { caches, keyLengths }),
    };
  }

  #appendHidden(): Step {
    const hidden = this.#hidden(1, 1 + this.below(40));
    return {
      on: [this.below(3)],
      begin: async ([cache], signal) => {
        await cache.appendHidden(hidden, projections, { ...(signal && { signal }) });
        return undefined;
      },
      replay: ([cache]) => void cache.appendHiddenSync(hidden, projections),
    };
  }

  /** Refused while a call has the cache, and otherwise one more step. */
  #changeByHand(): void {
    const index = this.below(3);
    const count = 1 + this.below(3);
    const change = (cache: LrkvCache) => {
      if (count === 1) cache.truncate(Math.floor(cache.length / 2));
      else cache.appendHiddenSync(slice(normal([1, 4, 20], 92), 1, 0, count), projections);
    };
    try {
      change(this.#caches[index]);
    } catch (error) {
      expect(error).toBeInstanceOf(AttentionError);
      expect(['ERR_ARGUMENT', 'ERR_MEMORY']).toContain((error as AttentionError).code);
      return;
    }
    const nothing = async () => undefined;
    this.#begun.push({
      step: { on: [index], begin: nothing, replay: ([cache]) => void change(cache) },
      outcome: Promise.resolve(),
    });
  }
}

test.each([1, 2, 3, 4, 5, 6, 7, 8])('a random walk (seed %i)', async (seed) => {
  const walk = new Walk(seed);
  for (let i = 0; i < 60; i++) await walk.take();
  expect(await walk.check()).toBeGreaterThan(10);
});
