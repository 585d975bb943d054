/** Many calls at once: each gives, bit for bit, what it gives alone. */
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import v8 from 'node:v8';
import vm from 'node:vm';

import {
  type AttentionError,
  attendBatch,
  attention,
  attentionSync,
  type CallOptions,
  info,
  KvCache,
  matmul,
  matmulSync,
  type Tensor,
  zeros,
} from '../lib';
import { addon } from '../lib/native';
import { normal, normalInputs, uniform } from './data';
import { expectSameBits } from './full-run';
import { filledCache, type MixedCall, mixedCalls } from './mixed-calls';
import { once } from './rows';

// A sanitizer makes everything ten times slower.
const sanitized = info().build.sanitizers !== '';
const atOnce = sanitized ? 48 : 64;
const threadCounts = [undefined, 1, 2, 3];

/** The calls with what each gives alone, on one thread. */
const known = once(() => mixedCalls().map((call) => ({ call, wanted: call.sync({ threads: 1 }) })));

/** So many calls, of all kinds in turn, each with a number of threads of its own. */
function many(count: number): { call: MixedCall; wanted: readonly Tensor[]; options: CallOptions }[] {
  const calls = known();
  return Array.from({ length: count }, (_, i) => {
    // A stride without a factor in common, so that neighbours are of different kinds.
    const each = calls[(i * 7) % calls.length];
    return { ...each, options: { threads: threadCounts[i % threadCounts.length] } };
  });
}

function expectAll(name: string, found: readonly Tensor[], wanted: readonly Tensor[]): void {
  expect([name, found.length]).toEqual([name, wanted.length]);
  try {
    for (const [i, tensor] of found.entries()) expectSameBits(tensor, wanted[i]);
  } catch (cause) {
    throw new Error(name, { cause });
  }
}

/** Takes a second and more if it is not aborted. */
const long = once(() => {
  const k = zeros([1, 1, 10_000, 64]);
  return { q: zeros([1, 8, 4000, 64]), k, v: k };
});

/** Gives every runner a long call, so that what is begun next waits. Returns what ends those calls. */
function occupy(): () => Promise<void> {
  const { q, k, v } = long();
  const controller = new AbortController();
  const options = { signal: controller.signal, threads: 1 };
  const running = Array.from({ length: info().threads }, () => attention(q, k, v, options));
  return async () => {
    controller.abort();
    for (const { reason } of (await Promise.allSettled(running)) as PromiseRejectedResult[])
      expect(reason).toMatchObject({ code: 'ERR_ABORTED' });
  };
}

beforeAll(() => {
  known();
  long();
});

describe('calls of all kinds at once', () => {
  test('the kinds have no factor in common with the stride, so all of them run', () => {
    expect(known().length % 7).not.toBe(0);
    expect(atOnce).toBeGreaterThanOrEqual(known().length / 2);
  });

  test('asynchronous ones give what each gives alone', async () => {
    for (let round = 0; round < 3; round++) {
      const calls = many(atOnce);
      const results = await Promise.all(calls.map(({ call, options }) => call.async(options)));
      for (const [i, { call, wanted }] of calls.entries()) expectAll(call.name, results[i], wanted);
    }
  });

  test('with synchronous ones in their midst', async () => {
    const calls = many(atOnce);
    const running = calls.map(({ call, options }) => call.async(options));
    for (const { call, wanted } of known()) {
      for (const threads of [1, undefined]) expectAll(call.name, call.sync({ threads }), wanted);
    }
    for (const [i, { call, wanted }] of calls.entries()) expectAll(call.name, await running[i], wanted);
  });

  test('synchronous ones in between, from callbacks of the others', async () => {
    const calls = many(atOnce);
    await Promise.all(
      calls.map(async ({ call, wanted, options }, i) => {
        expectAll(call.name, await call.async(options), wanted);
        const next = calls[(i + 1) % calls.length];
        expectAll(next.call.name, next.call.sync(next.options), next.wanted);
      }),
    );
  });

  test('loops of short calls beside long ones', async () => {
    const { q, k, v } = normalInputs({ heads: 4, queries: 400, keys: 700, headDim: 64 }, 3);
    const long = attentionSync(q, k, v, { causal: true });
    let open = true;
    const background = Promise.all(
      [1, undefined].map(async (threads) => {
        let count = 0;
        for (; open; count++) expectSameBits(await attention(q, k, v, { causal: true, threads }), long);
        return count;
      }),
    );
    await Promise.all(
      known().map(async ({ call, wanted }, i) => {
        for (let step = 0; step < (sanitized ? 3 : 10); step++) {
          const threads = threadCounts[(i + step) % threadCounts.length];
          expectAll(call.name, await call.async({ threads }), wanted);
        }
      }),
    );
    open = false;
    for (const count of await background) expect(count).toBeGreaterThan(0);
  });

  test('the number of threads changes nothing while others run', async () => {
    const background = many(atOnce).map(({ call, options }) => call.async(options));
    for (const { call, wanted } of known()) {
      const results = await Promise.all([1, 2, 3, 1000].map((threads) => call.async({ threads })));
      for (const found of results) expectAll(call.name, found, wanted);
    }
    await Promise.all(background);
  });

  test('a thousand in the queue', async () => {
    const small = known().filter(({ call }) => /of 7 on 5|·5 |attend of 1 /.test(call.name));
    expect(small.length).toBeGreaterThan(5);
    const calls = Array.from({ length: sanitized ? 200 : 1000 }, (_, i) => small[i % small.length]);
    const results = await Promise.all(calls.map(({ call }) => call.async()));
    for (const [i, { call, wanted }] of calls.entries()) expectAll(call.name, results[i], wanted);
  });

  test('outputs that are neighbours in memory', async () => {
    const inputs = Array.from({ length: 24 }, (_, i) =>
      normalInputs({ heads: 2, queries: 33 + i, keys: 150, headDim: 32 }, i),
    );
    const sizes = inputs.map(({ q }) => q.data.length);
    const whole = new Float32Array(sizes.reduce((a, b) => a + b));
    let end = 0;
    const outs = inputs.map(({ q }, i) => {
      end += sizes[i];
      return { data: whole.subarray(end - sizes[i], end), dims: q.dims, type: 'float32' } as const;
    });
    await Promise.all(
      inputs.map(({ q, k, v }, i) => attention(q, k, v, { out: outs[i], threads: threadCounts[i % 4] })),
    );
    for (const [i, { q, k, v }] of inputs.entries()) expectSameBits(outs[i], attentionSync(q, k, v));
  });
});

describe('calls that are aborted', () => {
  const outcomes = async (running: readonly Promise<readonly Tensor[]>[], calls: ReturnType<typeof many>) => {
    let aborted = 0;
    for (const [i, outcome] of (await Promise.allSettled(running)).entries()) {
      const { call, wanted } = calls[i];
      if (outcome.status === 'fulfilled') {
        expectAll(call.name, outcome.value, wanted);
      } else {
        expect([call.name, (outcome.reason as AttentionError).code]).toEqual([call.name, 'ERR_ABORTED']);
        expect(calls[i].options.signal).toBeDefined();
        aborted++;
      }
    }
    return aborted;
  };

  test.each(['in the queue', 'at once', 'a turn later', 'one after the other'])(
    '%s: the others are unharmed',
    async (when) => {
      const controllers = Array.from({ length: atOnce }, () => new AbortController());
      const calls = many(atOnce).map((each, i) =>
        i % 3 === 0 ? each : { ...each, options: { ...each.options, signal: controllers[i].signal } },
      );
      const release = when === 'in the queue' ? occupy() : undefined;
      const running = calls.map(({ call, options }) => call.async(options));
      if (when === 'a turn later') await nextTurn();
      for (const [i, controller] of controllers.entries()) {
        // Of three calls one has no signal, one has a signal that is left alone.
        if (i % 3 === 1) controller.abort();
        if (when === 'one after the other' && i % 8 === 1) await nextTurn();
      }
      const [aborted] = await Promise.all([outcomes(running, calls), release?.()]);
      const most = calls.filter((_, i) => i % 3 === 1).length;
      expect(aborted).toBeLessThanOrEqual(most);
      if (when === 'in the queue') expect(aborted).toBe(most);
    },
  );

  test('under one signal: all of them stop, the others do not', async () => {
    const controller = new AbortController();
    const calls = many(atOnce).map((each, i) =>
      i % 2 === 0 ? each : { ...each, options: { ...each.options, signal: controller.signal } },
    );
    const release = occupy();
    const running = calls.map(({ call, options }) => call.async(options));
    controller.abort();
    const [aborted] = await Promise.all([outcomes(running, calls), release()]);
    expect(aborted).toBe(atOnce / 2);
  });

  test('a long one that was helped by others', async () => {
    const { q, k, v } = normalInputs({ heads: 4, queries: 1000, keys: 2000, headDim: 64 }, 4);
    for (let round = 0; round < (sanitized ? 2 : 6); round++) {
      const controller = new AbortController();
      const long = attention(q, k, v, { signal: controller.signal });
      await sleep(round);
      const calls = many(12);
      const running = calls.map(({ call, options }) => call.async(options));
      controller.abort();
      await long.catch((error: AttentionError) => expect(error.code).toBe('ERR_ABORTED'));
      expect(await outcomes(running, calls)).toBe(0);
    }
  });
});

describe('what a call works on', () => {
  const collect = once(() => {
    v8.setFlagsFromString('--expose-gc');
    return vm.runInNewContext('gc') as () => void;
  });
  /** Overwrites what has been given back to the allocators. */
  const churn = () => Array.from({ length: 30 }, (_, i) => new Float32Array(2000 + 3000 * i).fill(NaN)).length;

  test('inputs and caches that nobody holds any more stay until the call is done', async () => {
    for (let round = 0; round < 3; round++) {
      const shape = { heads: 4, queries: 150, keys: 500, headDim: 32 };
      const wanted: Tensor[] = [];
      // In a function of its own, so that no register or stack slot keeps anything.
      const begin = (): Promise<Tensor[]> => {
        const { q, k, v } = normalInputs(shape, round);
        const [a, b] = [normal([200, 150], round), normal([150, 170], round + 1)];
        const cache = filledCache(900 + round);
        const query = normal([1, 2, 30, 32], round);
        wanted.push(attentionSync(q, k, v), cache.attendSync(query));
        return Promise.all([
          attention(q, k, v),
          attention(q, k, v, { threads: 1 }),
          cache.attend(query),
          matmul(a, b).then(() => cache.attend(query)),
        ]);
      };
      const release = occupy();
      const running = begin();
      collect()();
      churn();
      await nextTurn();
      collect()();
      churn();
      await release();
      const found = await running;
      for (const [i, which] of [0, 0, 1, 1].entries()) expectSameBits(found[i], wanted[which]);
    }
  });

  test('the binding itself holds them', async () => {
    // The library holds the operands of a call as well, so this goes past it.
    const [m, k, n] = [300, 200, 100];
    const numbers = Float64Array.of(0, 0, 0, 1, m, n, k, 0, 0);
    const begin = (seed: number, out: Float32Array): ReturnType<typeof addon.matmul> => {
      const [a, b] = [normal([m, k], seed), normal([k, n], seed + 1)].map(({ data }) => Float32Array.from(data));
      return addon.matmul([a, b, out, Float64Array.of(0, 0)], numbers, 1, '', true, null);
    };
    const release = occupy();
    const outs = [1, 2, 3].map(() => new Float32Array(m * n));
    const running = outs.map((out, seed) => begin(seed, out));
    for (let i = 0; i < 3; i++) {
      collect()();
      churn();
      await nextTurn();
    }
    await release();
    expect(await Promise.all(running)).toEqual([undefined, undefined, undefined]);
    for (const [seed, data] of outs.entries()) {
      const wanted = matmulSync(normal([m, k], seed), normal([k, n], seed + 1));
      expectSameBits({ data, dims: [m, n], type: 'float32' }, wanted);
    }
  });
});

describe('a cache that changes while calls run on it', () => {
  const [heads, dim, longest] = [2, 32, 4000];
  const [keys, values] = [1, 2].map((seed) => once(() => normal([1, heads, longest, dim], seed)));

  /** The rows of these numbers, in this order. */
  function pick(source: Tensor, rows: readonly number[]): Tensor {
    const data = new Float32Array(heads * rows.length * dim);
    for (let head = 0; head < heads; head++) {
      for (const [i, row] of rows.entries()) {
        const from = (head * longest + row) * dim;
        data.set((source.data as Float32Array).subarray(from, from + dim), (head * rows.length + i) * dim);
      }
    }
    return { data, dims: [1, heads, rows.length, dim], type: 'float32' };
  }

  /** A cache that remembers which rows it ought to hold. */
  class Remembered {
    constructor(
      readonly cache: KvCache,
      readonly rows: number[] = [],
    ) {}

    append(rows: readonly number[]): void {
      this.cache.append(pick(keys(), rows), pick(values(), rows));
      this.rows.push(...rows);
    }
    truncate(length: number): void {
      this.cache.truncate(length);
      this.rows.length = length;
    }
    fork(): Remembered {
      return new Remembered(this.cache.fork(), [...this.rows]);
    }
  }

  const fresh = () => new Remembered(new KvCache({ heads, headDim: dim }));
  const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);
  const query = (count: number) => normal([1, 4, count, dim], count);

  /** What a cache gives that holds these rows and has never held others. */
  function expected(rows: readonly number[], q: Tensor): Tensor {
    const made = fresh();
    made.append(rows);
    using cache = made.cache;
    return cache.attendSync(q, { threads: 1 });
  }

  /** Calls begun, each with the rows its cache held at the time. */
  class Begun {
    readonly #calls: { rows: readonly number[]; q: Tensor; result: Promise<Tensor> }[] = [];

    attend({ cache, rows }: Remembered, q: Tensor, options?: CallOptions): void {
      this.#calls.push({ rows: [...rows], q, result: cache.attend(q, options) });
    }
    batch(caches: readonly Remembered[], q: Tensor): void {
      const results = attendBatch(caches.map(({ cache }) => ({ cache, query: q })));
      for (const [i, { rows }] of caches.entries()) {
        this.#calls.push({ rows: [...rows], q, result: results.then((list) => list[i]) });
      }
    }
    async check(): Promise<number> {
      const results = await Promise.all(this.#calls.map(({ result }) => result));
      for (const [i, { rows, q }] of this.#calls.entries()) expectSameBits(results[i], expected(rows, q));
      return results.length;
    }
  }

  test.each(['running', 'waiting'])('%s calls keep the rows they were begun on', async (state) => {
    for (let round = 0; round < (sanitized ? 1 : 3); round++) {
      const begun = new Begun();
      const first = fresh();
      first.append(range(0, 3000 + round));
      const release = state === 'waiting' ? occupy() : undefined;
      // So many queries that the call runs for milliseconds.
      const many = query(300);
      begun.attend(first, many);
      if (state === 'running') await sleep(1);
      first.append([3990]);
      begun.attend(first, many);
      const second = first.fork();
      first.truncate(2950);
      begun.attend(second, many);
      first.append(range(100, 300));
      begun.attend(first, many, { threads: 1 });
      second.append(range(700, 703));
      begun.batch([first, second, first], query(2));
      if (state === 'running') await sleep(1);
      first.truncate(0);
      first.append(range(3000, 3200));
      begun.attend(first, query(1));
      first.cache.dispose();
      begun.attend(second, many);
      second.truncate(130);
      second.append([5, 4, 3]);
      begun.attend(second, query(3));
      second.cache.dispose();
      // New pages, where those of the disposed caches have been.
      const third = fresh();
      third.append(range(500, 3900));
      begun.attend(third, query(1));
      third.cache.dispose();
      await release?.();
      expect(await begun.check()).toBe(11);
    }
  });

  test.each(sanitized ? [1] : [1, 2, 3, 4])('a random walk (seed %i)', async (seed) => {
    const next = uniform(seed);
    const below = (end: number) => Math.min(end - 1, Math.floor(next() * end));
    const begun = new Begun();
    const caches = [fresh()];
    caches[0].append(range(0, 200));
    for (let step = 0; step < 100; step++) {
      const at = below(caches.length);
      const one = caches[at];
      const calls: readonly (() => void)[] = [
        () => begun.attend(one, query(1 + below(40)), { threads: 1 + below(3) }),
        () => begun.batch([one, caches[below(caches.length)], one], query(1 + below(3))),
      ];
      const changes: readonly (() => void)[] = [
        () => one.append([below(longest)]),
        () => one.append(Array.from({ length: 1 + below(200) }, () => below(longest))),
        () => one.truncate(1 + below(one.rows.length)),
        () => caches.push(one.fork()),
        () => {
          if (caches.length > 1) caches.splice(at, 1)[0].cache.dispose();
        },
      ];
      calls[below(calls.length)]();
      changes[below(changes.length)]();
      if (below(10) === 0) await nextTurn();
    }
    expect(await begun.check()).toBeGreaterThan(100);
    for (const { cache } of caches) cache.dispose();
  });

  test('pages that only a running call holds count as shared until it is done', async () => {
    const one = fresh();
    one.append(range(0, 200));
    expect(one.cache.sharedByteLength).toBe(0);
    const release = occupy();
    const result = one.cache.attend(query(1));
    expect(one.cache.sharedByteLength).toBe(one.cache.byteLength);
    one.append([7]);
    expect(one.cache.sharedByteLength).toBe(one.cache.byteLength / 2);
    await release();
    await result;
    expect(one.cache.sharedByteLength).toBe(0);
    expectSameBits(await result, expected(range(0, 200), query(1)));
    one.cache.dispose();
  });
});
