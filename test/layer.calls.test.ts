/** Calls of a layer one after another and at once, refused, failed and aborted. */
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';

import { type AttentionLayer, attentionLayer, type KvCache, lrkvLayer, ropeFrequencies, type Tensor } from '../lib';
import { memoryOf } from '../lib/paged-cache';
import { Turn } from '../lib/turns';
import { normal, slice } from './data';
import { expectSameBits } from './full-run';
import { layerBiases, layerWeights, lrkvWeights, signalOf } from './layer-data';
import { Faults, faultOf, faultOfError, type Refusal } from './refusal';
import { primitives, thrown } from './wrong-tensors';

// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
type Loose = (...args: any[]) => unknown;

const weights = {
  ...layerWeights({ kvHeads: 2 }),
  ...layerBiases(layerWeights({ kvHeads: 2 })),
  rope: { frequencies: ropeFrequencies(8) },
  qkNorm: { query: {}, key: {} },
};
const layer = attentionLayer(weights);
const hidden = normal([1, 40, 20], 1);
const rows = (from: number, to: number): Tensor => slice(hidden, 1, from, to);

/** What consecutive parts of `hidden` give on a cache of their own. */
function inARow(...borders: readonly number[]): Tensor[] {
  using cache = layer.createCache();
  return borders.slice(1).map((to, index) => layer.forwardSync(rows(borders[index], to), { caches: [cache] }));
}

/** Projection, waiting, rotation of queries and of keys, attention, output. */
const steps = 6;

/** A call that takes seconds if it is not aborted, on a layer of its own. */
function long(): { readonly big: AttentionLayer<KvCache>; readonly prompt: Tensor } {
  return { big: attentionLayer(layerWeights({ heads: 16, kvHeads: 1 })), prompt: normal([1, 6000, 20], 2) };
}

function controllerOf(): { readonly signal: AbortSignal; readonly abort: () => void } {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort('enough') };
}

describe('calls on one cache', () => {
  test('started without awaiting give what they give in a row', async () => {
    const borders = [0, 17, 18, 30, 31, 40];
    const wanted = inARow(...borders);
    using cache = layer.createCache();
    const running = wanted.map((_, i) => layer.forward(rows(borders[i], borders[i + 1]), { caches: [cache] }));
    for (const [i, found] of (await Promise.all(running)).entries()) expectSameBits(found, wanted[i]);
    expect(cache.length).toBe(40);
  });

  test('and on several, in different company', async () => {
    const wanted = inARow(0, 10, 20, 30, 40);
    const caches = [0, 1, 2].map(() => layer.createCache());
    const part = (i: number) => rows(10 * i, 10 * i + 10);
    const both = (i: number): Tensor => {
      const { data, dims, type } = part(i);
      return {
        data: Float32Array.of(...(data as Float32Array), ...(data as Float32Array)),
        dims: [2, ...dims.slice(1)],
        type,
      };
    };
    const [a, b, c] = caches;
    const results = await Promise.all([
      layer.forward(both(0), { caches: [a, b] }),
      layer.step(part(0), [c]),
      layer.forward(both(1), { caches: [c, b] }),
      layer.forward(both(1), { caches: [a, b] }).then(
        () => undefined,
        () => undefined,
      ),
      layer.step(part(2), [c]),
    ]);
    expectSameBits(slice(results[0], 0, 0, 1), wanted[0]);
    expectSameBits(slice(results[0], 0, 1, 2), wanted[0]);
    expectSameBits(results[1], wanted[0]);
    for (const item of [0, 1]) expectSameBits(slice(results[2], 0, item, item + 1), wanted[1]);
    expectSameBits(results[4], wanted[2]);
    expect(caches.map(({ length }) => length)).toEqual([20, 30, 30]);
    for (const cache of caches) cache.dispose();
  });

  test('of two layers take turns as well', async () => {
    const other = attentionLayer(layerWeights({ kvHeads: 2 }, 5));
    using cache = layer.createCache();
    const running = [layer.forward(rows(0, 30), { caches: [cache] }), other.forward(rows(30, 40), { caches: [cache] })];
    await Promise.all(running);
    expect(cache.length).toBe(40);
  });

  test('a synchronous one is refused while another has the cache or waits for it, and not after', async () => {
    using cache = layer.createCache();
    using free = layer.createCache();
    const running = layer.forward(rows(0, 10), { caches: [cache] });
    const received = 'one that a call appends to: await it';
    const refused = { code: 'ERR_ARGUMENT', argument: 'caches[1]', received } as const;
    const two = normal([2, 1, 20], 3);
    expect(await faultOf(() => layer.stepSync(two, [free, cache]), false, refused)).toBeUndefined();
    expect(free.length).toBe(0);
    await running;
    layer.stepSync(two, [free, cache]);
    expect([free.length, cache.length]).toEqual([1, 11]);
  });
});

describe('a call that fails leaves its caches as they were', () => {
  test.each(['synchronous', 'asynchronous'])('aborted at any of its steps, %s', async (kind) => {
    const [wanted] = inARow(0, 12);
    const two = normal([2, 5, 20], 4);
    let failed = 0;
    for (let look = 0; ; look++) {
      const caches = [layer.createCache(), layer.createCache()];
      layer.forwardSync(rows(0, 7), { caches: [caches[0]] });
      const options = { caches, signal: signalOf((looks) => looks > look) };
      const call = async () =>
        kind === 'synchronous' ? layer.forwardSync(two, options) : await layer.forward(two, options);
      const error = await call().then(
        () => undefined,
        (reason: unknown) => reason,
      );
      if (error === undefined) {
        expect(caches.map(({ length }) => length)).toEqual([12, 5]);
        break;
      }
      failed++;
      expect(error).toMatchObject({ code: 'ERR_ABORTED', cause: 'enough' });
      expect(caches.map(({ length }) => length)).toEqual([7, 0]);
      const next = layer.forwardSync(rows(7, 12), { caches: [caches[0]] });
      expectSameBits(next, slice(inARow(0, 7, 12)[1], 1, 0, 5));
      for (const cache of caches) cache.dispose();
    }
    expect(wanted.dims).toEqual([1, 12, 20]);
    expect(failed).toBe(2 * steps);
  });

  test('for want of room in one of them', async () => {
    using roomy = layer.createCache();
    using small = layer.createCache({ capacity: 9 });
    layer.forwardSync(rows(0, 5), { caches: [small] });
    const refused = { code: 'ERR_MEMORY', argument: 'caches[1]', received: 'one of capacity 9 that holds 5' } as const;
    const call = (caches: KvCache[]) => () => layer.forwardSync(normal([2, 5, 20], 4), { caches });
    expect(await faultOf(call([roomy, small]), false, refused)).toBeUndefined();
    expect(await faultOf(call([small, roomy]), false, { ...refused, argument: 'caches[0]' })).toBeUndefined();
    expect([roomy.length, small.length]).toEqual([0, 5]);
    layer.forwardSync(normal([2, 5, 20], 4), { caches: [roomy, small], keyLengths: [5, 4] });
    expect([roomy.length, small.length]).toEqual([5, 9]);
  });

  test('and the next in turn begins where it began', async () => {
    const wanted = inARow(0, 10, 40);
    using cache = layer.createCache({ capacity: 40 });
    const first = layer.forward(rows(0, 10), { caches: [cache] });
    const second = layer.forward(hidden, { caches: [cache] });
    const third = layer.forward(rows(10, 40), { caches: [cache] });
    await expect(second).rejects.toMatchObject({ code: 'ERR_MEMORY', argument: 'caches[0]' });
    expectSameBits(await first, wanted[0]);
    expectSameBits(await third, wanted[1]);
  });

  test('aborted while it waits', async () => {
    using cache = layer.createCache();
    const { signal, abort } = controllerOf();
    const before = new Turn([memoryOf('cache', cache)]);
    const aborted = layer.forward(rows(0, 10), { caches: [cache], signal });
    const behind = layer.forward(rows(0, 10), { caches: [cache] });
    // Long enough for the projections, after which nothing goes on.
    await sleep(50);
    expect(cache.length).toBe(0);
    abort();
    await expect(aborted).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'enough' });
    expect(cache.length).toBe(0);
    before.end();
    expectSameBits(await behind, inARow(0, 10)[0]);
  });

  test('aborted while it computes', async () => {
    const { big, prompt } = long();
    using cache = big.createCache();
    const { signal, abort } = controllerOf();
    const running = big.forward(prompt, { caches: [cache], signal });
    const last = big.step(slice(prompt, 1, 0, 1), [cache]);
    // Its keys are there, its output is not.
    while (cache.length === 0) await nextTurn();
    abort();
    await expect(running).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'enough' });
    const found = await last;
    expect(cache.length).toBe(1);
    using fresh = big.createCache();
    expectSameBits(found, big.stepSync(slice(prompt, 1, 0, 1), [fresh]));
  });

  test('because somebody disposed one of them meanwhile', async () => {
    const cache = layer.createCache();
    using other = layer.createCache();
    layer.forwardSync(rows(0, 10), { caches: [cache] });
    // While keys are rotated, to the position that the cache had.
    const signal = signalOf((looks) => {
      if (looks === 7) cache.dispose();
      return false;
    });
    const running = layer.step(normal([2, 1, 20], 1), [other, cache], { signal });
    await expect(running).rejects.toMatchObject({ code: 'ERR_CLOSED', argument: 'caches[1]' });
    expect([other.length, cache.length]).toEqual([0, 0]);
  });
});

test('while a call has a cache or waits for it, nobody changes it by hand', async () => {
  const wanted = inARow(0, 10, 11, 12);
  const [key, value] = [1, 2].map((seed) => normal([1, 2, 1, 8], seed));
  const refused = {
    code: 'ERR_ARGUMENT',
    argument: 'cache',
    received: 'one that a call appends to: await it',
  } as const;
  const faults = new Faults();
  for (let look = 1; look <= 2 * steps; look++) {
    using cache = layer.createCache();
    layer.forwardSync(rows(0, 10), { caches: [cache] });
    let length: number | undefined;
    const signal = signalOf((looks) => {
      if (looks === look) length = cache.length;
      if (looks !== look) return false;
      for (const [name, change] of Object.entries({
        append: () => cache.append(key, value),
        truncate: () => cache.truncate(3),
      })) {
        try {
          change();
          faults.add(`${name} at ${look}`, 'was not refused');
        } catch (error) {
          faults.add(`${name} at ${look}`, faultOfError(error, refused));
        }
      }
      return false;
    });
    const running = [layer.step(rows(10, 11), [cache], { signal }), layer.step(rows(11, 12), [cache])];
    for (const [i, found] of (await Promise.all(running)).entries()) expectSameBits(found, wanted[1 + i]);
    // Its own position stands in the cache from attention on.
    expect(length).toBe(look <= 8 ? 10 : 11);
    cache.truncate(11);
    cache.append(key, value);
    expect(cache.length).toBe(12);
  }
  faults.none();
});

test('of no rows there may be any number', async () => {
  const none = (batch: number, n: number): Tensor => ({
    data: new Float32Array(0),
    dims: [batch, n, 20],
    type: 'float32',
  });
  for (const each of [layer, lrkvLayer(lrkvWeights())]) {
    for (const [batch, n] of [
      [2 ** 40, 0],
      [0, 2 ** 40],
      [0, 0],
    ]) {
      expect(each.forwardSync(none(batch, n)).dims).toEqual([batch, n, 20]);
      expect((await each.forward(none(batch, n))).dims).toEqual([batch, n, 20]);
    }
  }
  using cache = layer.createCache();
  expect(layer.stepSync(none(1, 0), [cache]).dims).toEqual([1, 0, 20]);
  expect(layer.stepSync(none(0, 7), []).dims).toEqual([0, 7, 20]);
  expect(cache.length).toBe(0);
  const refused = { code: 'ERR_ABORTED', argument: 'signal' } as const;
  const aborted = () => layer.forwardSync(none(2, 0), { signal: AbortSignal.abort() });
  expect(await faultOf(aborted, false, refused)).toBeUndefined();
});

describe('what is refused', () => {
  const cache = layer.createCache();
  afterAll(() => cache.dispose());
  const one = normal([1, 2, 20], 9);
  /** Every way to call a layer, with options or in place of the caches. */
  const all = async (faults: Faults, what: string, args: (kind: 'forward' | 'step') => unknown[], wanted: Refusal) => {
    for (const [name, kind, asynchronous] of [
      ['forward', 'forward', true],
      ['forwardSync', 'forward', false],
      ['step', 'step', true],
      ['stepSync', 'step', false],
    ] as const) {
      const call = () => (layer[name] as Loose)(...args(kind));
      faults.add(`${name} ${what}`, await faultOf(call, asynchronous, wanted));
    }
  };

  test('hidden states of other dims', async () => {
    const faults = new Faults();
    for (const dims of [
      [1, 2, 19],
      [1, 2, 40],
      [1, 2, 0],
      [2, 20],
      [1, 1, 2, 20],
    ]) {
      const wanted = { code: 'ERR_SHAPE', argument: 'hidden', received: `[${dims.join(', ')}]` } as const;
      await all(
        faults,
        dims.join(),
        (kind) => [normal(dims, 1), kind === 'step' ? [cache] : { caches: [cache] }],
        wanted,
      );
    }
    faults.none();
  });

  test('caches that are none, of another shape, disposed, twice or too few', async () => {
    const other = attentionLayer(layerWeights({ kvHeads: 4 })).createCache();
    const half = layer.createCache({ type: 'float16' });
    const disposed = layer.createCache();
    disposed.dispose();
    const faults = new Faults();
    const two = normal([2, 2, 20], 9);
    const lists: readonly [string, unknown, Refusal][] = [
      ['an object', {}, { code: 'ERR_ARGUMENT', argument: 'caches', received: 'an object' }],
      ['null', null, { code: 'ERR_ARGUMENT', argument: 'caches', received: /null|undefined/ }],
      ['one', [cache], { code: 'ERR_ARGUMENT', argument: 'caches', received: '[Object]' }],
      ['twice', [cache, cache], { code: 'ERR_ARGUMENT', argument: 'caches[1]' }],
      ['no cache', [cache, {}], { code: 'ERR_TYPE', argument: 'caches[1]', received: 'an object' }],
      ['a hole', [cache, undefined], { code: 'ERR_TYPE', argument: 'caches[1]', received: 'undefined' }],
      ['of its prototype', [cache, Object.create(cache)], { code: 'ERR_TYPE', argument: 'caches[1]' }],
      ['of other heads', [cache, other], { code: 'ERR_SHAPE', argument: 'caches[1]' }],
      ['of another type', [cache, half], { code: 'ERR_TYPE', argument: 'caches[1]', received: '"float16"' }],
      ['disposed', [cache, disposed], { code: 'ERR_CLOSED', argument: 'caches[1]', received: 'a disposed one' }],
    ];
    for (const [what, caches, wanted] of lists)
      await all(faults, what, (kind) => [two, kind === 'step' ? caches : { caches }], wanted);
    faults.none();
    expect(cache.length).toBe(0);
    other.dispose();
    half.dispose();
  });

  test('options of a call', async () => {
    const faults = new Faults();
    const wrong: readonly [object, Refusal][] = [
      [{ cache }, { code: 'ERR_ARGUMENT', argument: 'cache' }],
      [{ causal: false }, { code: 'ERR_ARGUMENT', argument: 'causal' }],
      [{ keyLengths: [3] }, { code: 'ERR_ARGUMENT', argument: 'keyLengths[0]', received: '3' }],
      [{ keyLengths: [1, 1] }, { code: 'ERR_SHAPE', argument: 'keyLengths' }],
      [{ keyLengths: 2 }, { code: 'ERR_SHAPE', argument: 'keyLengths', received: '2' }],
      [{ threads: 0 }, { code: 'ERR_ARGUMENT', argument: 'threads', received: '0' }],
      [{ isa: 'mmx' }, { code: 'ERR_ARGUMENT', argument: 'isa', received: '"mmx"' }],
      [{ device: 'cuda' }, { code: 'ERR_DEVICE', argument: 'device' }],
      [{ signal: AbortSignal.abort() }, { code: 'ERR_ABORTED', argument: 'signal' }],
      [{ out: normal([1, 2, 19], 1) }, { code: 'ERR_SHAPE', argument: 'out' }],
      [{ out: one }, { code: 'ERR_ARGUMENT', argument: 'out' }],
      [
        { out: { ...weights.output, data: (weights.output.data as Float32Array).subarray(0, 40), dims: [1, 2, 20] } },
        { code: 'ERR_ARGUMENT', argument: 'out' },
      ],
    ];
    for (const [options, wanted] of wrong) {
      const args = (kind: string) =>
        kind === 'step' ? [one, [cache], options] : [one, { caches: [cache], ...options }];
      await all(faults, Object.keys(options).join(), args, wanted);
      const alone = () => layer.forwardSync(one, options);
      faults.add(`${Object.keys(options)} alone`, await faultOf(alone, false, wanted));
    }
    faults.none();
    expect(cache.length).toBe(0);
    // Nor does anything stand in the way of the next.
    expect(layer.stepSync(one, [cache]).dims).toEqual([1, 2, 20]);
    cache.truncate(0);
  });

  test('options of a layer', async () => {
    const faults = new Faults();
    const wrong: readonly [unknown, Refusal][] = [
      [5, { code: 'ERR_ARGUMENT', argument: 'options', received: '5' }],
      [{ mask: 1 }, { code: 'ERR_ARGUMENT', argument: 'mask' }],
      [{ scale: 1 }, { code: 'ERR_ARGUMENT', argument: 'scale' }],
      [{ causal: 1 }, { code: 'ERR_ARGUMENT', argument: 'causal', received: '1' }],
      [{ window: 5 }, { code: 'ERR_ARGUMENT', argument: 'window', received: '5' }],
      [{ window: [1, -1] }, { code: 'ERR_ARGUMENT', argument: 'window[1]', received: '-1' }],
      [{ softcap: -1 }, { code: 'ERR_ARGUMENT', argument: 'softcap', received: '-1' }],
      [{ sinks: [1, 2] }, { code: 'ERR_SHAPE', argument: 'sinks' }],
      [{ sinks: [1, 2, Infinity, 3] }, { code: 'ERR_ARGUMENT', argument: 'sinks[2]', received: 'Infinity' }],
      [
        Object.defineProperty({}, 'window', {
          enumerable: true,
          get: () => {
            throw thrown;
          },
        }),
        { code: 'ERR_ARGUMENT', argument: 'window', cause: thrown },
      ],
    ];
    for (const [options, wanted] of wrong)
      faults.add(
        String(options && Object.keys(options as object)),
        await faultOf(() => (attentionLayer as Loose)(weights, options), false, wanted),
      );
    faults.none();
  });

  test('options of a cache', async () => {
    const faults = new Faults();
    for (const [options, wanted] of [
      [{ capacity: 0 }, { code: 'ERR_ARGUMENT', argument: 'capacity', received: '0' }],
      [{ type: 'int8' }, { code: 'ERR_TYPE', argument: 'type', received: '"int8"' }],
      [{ heads: 2 }, { code: 'ERR_ARGUMENT', argument: 'heads' }],
      [7, { code: 'ERR_ARGUMENT', argument: 'options', received: '7' }],
    ] as const)
      faults.add(
        JSON.stringify(options),
        await faultOf(() => (layer.createCache as Loose).call(layer, options), false, wanted),
      );
    faults.none();
  });

  test('weights', async () => {
    const faults = new Faults();
    const refused = async (more: object, wanted: Refusal) =>
      faults.add(
        JSON.stringify(Object.keys(more)),
        await faultOf(() => (attentionLayer as Loose)({ ...weights, ...more }), false, wanted),
      );
    for (const name of ['query', 'key', 'value', 'output'] as const) {
      const [r, c] = weights[name].dims;
      const argument = `weights.${name}`;
      // One row and column more, which no other matrix agrees with.
      await refused(
        { [name]: normal([r, c + 1], 1) },
        { code: 'ERR_SHAPE', argument: name === 'output' ? 'weights.outputBias' : argument },
      );
      if (name !== 'query') await refused({ [name]: normal([r + 1, c], 1) }, { code: 'ERR_SHAPE', argument });
      await refused({ [name]: normal([0, c], 1) }, { code: 'ERR_SHAPE', argument });
      await refused({ [`${name}Bias`]: normal([c + 1], 1) }, { code: 'ERR_SHAPE', argument: `weights.${name}Bias` });
      await refused({ [`${name}Bias`]: normal([1, c], 1) }, { code: 'ERR_SHAPE', argument: `weights.${name}Bias` });
    }
    await refused({ query: normal([21, 32], 1) }, { code: 'ERR_SHAPE', argument: 'weights.key' });
    for (const [wrong, received] of primitives) {
      if (wrong !== 5) await refused({ heads: wrong }, { code: 'ERR_ARGUMENT', argument: 'weights.heads', received });
      if (wrong !== undefined && wrong !== 0)
        await refused({ scale: wrong === 5 ? '5' : wrong }, { code: 'ERR_ARGUMENT', argument: 'weights.scale' });
    }
    await refused({ kvHeads: 3 }, { code: 'ERR_ARGUMENT', argument: 'weights.kvHeads', received: '3' });
    await refused({ bias: weights.queryBias }, { code: 'ERR_ARGUMENT', argument: 'bias' });
    await refused({ rope: { frequencies: [1] } }, { code: 'ERR_SHAPE', argument: 'weights.rope.frequencies' });
    await refused({ qkNorm: { value: {} } }, { code: 'ERR_ARGUMENT', argument: 'value' });
    await refused({ qkNorm: { key: { gain: [1] } } }, { code: 'ERR_SHAPE', argument: 'weights.qkNorm.key.gain' });
    for (const none of [undefined, null, 5])
      faults.add(
        String(none),
        await faultOf(() => (attentionLayer as Loose)(none), false, {
          code: 'ERR_ARGUMENT',
          argument: 'weights',
          received: String(none),
        }),
      );
    faults.none();
  });
});
