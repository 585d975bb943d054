/** Hidden states that `appendHidden` refuses, and calls of it one after another and at once. */
import { setTimeout as sleep } from 'node:timers/promises';

import { lrkvLayer } from '../lib';
import { memoryOf } from '../lib/paged-cache';
import { Turn } from '../lib/turns';
import { normal } from './data';
import { lrkvWeights, signalOf } from './layer-data';
import { lrkvCacheOf as cacheOf, lrkvProjections, lrkvRows, smallLrkvCache } from './lrkv-small';
import { Faults, faultOf, type Refusal } from './refusal';

// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
type Loose = (...args: any[]) => unknown;

const q = normal([1, 4, 2, 8], 1);
const argument = (name: string, received?: string): Refusal => ({
  code: 'ERR_ARGUMENT',
  argument: name,
  ...(received === undefined ? {} : { received }),
});
const shape = (name: string): Refusal => ({ code: 'ERR_SHAPE', argument: name });

const hidden = normal([1, 3, 10], 30);

test('wrong arguments', async () => {
  using cache = smallLrkvCache();
  const faults = new Faults();
  const cases: readonly [args: readonly unknown[], wanted: Refusal][] = [
    [[undefined, lrkvProjections], { code: 'ERR_TYPE', argument: 'hidden' }],
    [[normal([2, 3, 10], 1), lrkvProjections], shape('hidden')],
    [[normal([3, 10], 1), lrkvProjections], shape('hidden')],
    [[hidden, undefined], argument('projections', 'undefined')],
    [[hidden, { ...lrkvProjections, keyUp: q }], argument('keyUp')],
    ...(['keyBase', 'keyDown', 'valueBase', 'valueDown'] as const).flatMap((name): [unknown[], Refusal][] => [
      [[hidden, { ...lrkvProjections, [name]: undefined }], { code: 'ERR_TYPE', argument: name }],
      [[hidden, { ...lrkvProjections, [name]: normal([9, 4], 1) }], shape(name)],
      [[hidden, { ...lrkvProjections, [name]: normal([4], 1) }], shape(name)],
      [[hidden, { ...lrkvProjections, [`${name}Bias`]: 3 }], { code: 'ERR_TYPE', argument: `${name}Bias` }],
      [[hidden, { ...lrkvProjections, [`${name}Bias`]: normal([3], 1) }], shape(`${name}Bias`)],
      [[hidden, { ...lrkvProjections, [`${name}Bias`]: normal([1, 4], 1) }], shape(`${name}Bias`)],
    ]),
    [[hidden, lrkvProjections, { threads: 0 }], argument('threads', '0')],
    [[hidden, lrkvProjections, { out: hidden }], argument('out')],
    [[hidden, lrkvProjections, { signal: AbortSignal.abort() }], { code: 'ERR_ABORTED', argument: 'signal' }],
  ];
  for (const [index, [args, wanted]] of cases.entries()) {
    const { appendHidden, appendHiddenSync } = cache as unknown as Record<string, Loose>;
    faults.add(`${index}`, await faultOf(() => appendHidden.apply(cache, [...args]), true, wanted));
    faults.add(`${index}, sync`, await faultOf(() => appendHiddenSync.apply(cache, [...args]), false, wanted));
  }
  expect(cache.length).toBe(5);
  faults.none();
});

test('no append comes before one that is in flight', async () => {
  using cache = smallLrkvCache();
  const pending = cache.appendHidden(hidden, lrkvProjections);
  const wanted = argument('cache', 'one that a call appends to: await it');
  expect(await faultOf(() => cache.append(lrkvRows(1)), false, wanted)).toBeUndefined();
  expect(await faultOf(() => cache.truncate(0), false, wanted)).toBeUndefined();
  expect(await faultOf(() => cache.appendHiddenSync(hidden, lrkvProjections), false, wanted)).toBeUndefined();
  expect(cache.length).toBe(5);
  await pending;
  cache.append(lrkvRows(1));
  expect(cache.length).toBe(9);
});

test('the room is who comes first’s, and of one that fails nobody’s', async () => {
  using cache = cacheOf({ capacity: 5 });
  const pending = cache.appendHidden(hidden, lrkvProjections);
  const wanted = { code: 'ERR_MEMORY', argument: 'hidden', received: '3' } as const;
  expect(await faultOf(() => cache.appendHidden(hidden, lrkvProjections), true, wanted)).toBeUndefined();
  await pending;
  const controller = new AbortController();
  const failing = cache.appendHidden(normal([1, 2, 10], 31), lrkvProjections, { signal: controller.signal });
  const next = cache.appendHidden(normal([1, 2, 10], 31), lrkvProjections);
  controller.abort();
  await expect(failing).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  await next;
  expect(cache.length).toBe(5);
});

test('a cache that somebody fills while the call begins', async () => {
  for (const name of ['appendHidden', 'appendHiddenSync'] as const) {
    using cache = cacheOf({ capacity: 5 });
    let refused: unknown;
    const options = {
      signal: signalOf(() => {
        try {
          cache.append(lrkvRows(5));
        } catch (error) {
          refused ??= error;
        }
        return false;
      }),
    };
    await cache[name](hidden, lrkvProjections, options);
    expect(refused).toMatchObject({ code: 'ERR_ARGUMENT', argument: 'cache' });
    expect(cache.length).toBe(3);
  }
});

test('calls of a layer on the same cache take turns with it', async () => {
  const weights = lrkvWeights({ kvHeads: 2 });
  const layer = lrkvLayer(weights);
  const projections = {
    ...{ keyBase: weights.keyBase, keyDown: weights.keyDown },
    ...{ valueBase: weights.valueBase, valueDown: weights.valueDown },
  };
  const prompt = normal([1, 900, 20], 34);
  const token = normal([1, 1, 20], 35);
  using wanted = layer.createCache();
  wanted.appendHiddenSync(prompt, projections);
  const outputs = [layer.stepSync(token, [wanted])];
  wanted.appendHiddenSync(prompt, projections);
  outputs.push(layer.stepSync(token, [wanted]));
  using cache = layer.createCache();
  const [, first, , second] = await Promise.all([
    cache.appendHidden(prompt, projections),
    layer.step(token, [cache]),
    cache.appendHidden(prompt, projections),
    layer.step(token, [cache]),
  ]);
  expect(cache.length).toBe(1802);
  expect([first, second]).toEqual(outputs);
});

test('aborted while it waits for its turn', async () => {
  using cache = smallLrkvCache();
  const before = new Turn([memoryOf('cache', cache)]);
  const controller = new AbortController();
  const waiting = cache.appendHidden(hidden, lrkvProjections, { signal: controller.signal });
  // Long enough for the products, after which nothing goes on.
  await sleep(50);
  controller.abort();
  await expect(waiting).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  before.end();
  expect(cache.length).toBe(5);
  cache.append(lrkvRows(1));
});

test('a cache that is disposed meanwhile', async () => {
  const cache = smallLrkvCache();
  const call = () => {
    const pending = cache.appendHidden(hidden, lrkvProjections);
    cache.dispose();
    return pending;
  };
  expect(await faultOf(call, true, { code: 'ERR_CLOSED', argument: 'cache' })).toBeUndefined();
  expect(cache.length).toBe(0);
});

test('calls land in their order, whichever is ready first, and one that fails takes no place', async () => {
  using cache = cacheOf({});
  using wanted = cacheOf({});
  const long = normal([1, 200_000, 10], 32);
  const controller = new AbortController();
  const calls = [
    cache.appendHidden(long, lrkvProjections),
    cache.appendHidden(normal([1, 700, 10], 33), lrkvProjections, { signal: controller.signal }),
    cache.appendHidden(hidden, lrkvProjections, { threads: 1 }),
  ];
  controller.abort();
  const settled = await Promise.allSettled(calls);
  expect(settled.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  for (const each of [long, hidden]) wanted.appendHiddenSync(each, lrkvProjections);
  expect(cache.length).toBe(200_003);
  expect(cache.attendSync(q)).toEqual(wanted.attendSync(q));
});
