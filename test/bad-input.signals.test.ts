import { getEventListeners } from 'node:events';

import {
  type AttentionError,
  attendBatch,
  attention,
  attentionSync,
  attentionWithLse,
  type CallOptions,
  KvCache,
  LrkvCache,
  lrkvAttention,
  matmul,
  nystromAttention,
  randomNormal,
  type Tensor,
  zeros,
} from '../lib';
import { guarded, normalInputs } from './data';
import { entries } from './entries';
import { expectSameBits } from './full-run';
import { Faults, faultOf, faultOfError } from './refusal';
import { once } from './rows';
import { thrown } from './wrong-tensors';

const takesSignal = entries.filter(({ name, optionless }) => optionless !== true && !name.endsWith('.append'));
const listeners = (signal: AbortSignal) => getEventListeners(signal, 'abort').length;
const aborted = { code: 'ERR_ABORTED', argument: 'signal', received: 'an aborted one' } as const;

describe.each(takesSignal.map((entry) => ({ entry, place: Object.keys(entry.tensors)[0] })))(
  '$entry.name ($place)',
  ({ entry: { call, tensors, asynchronous, outDims } }) => {
    const refused = (signal: unknown, wanted: Parameters<typeof faultOf>[2]) =>
      faultOf(() => call(tensors, { signal }), asynchronous, wanted);

    test('aborted before: refused, with the reason as cause', async () => {
      const faults = new Faults();
      for (const reason of [new Error('changed my mind'), 'text', 0, null, { any: 'thing' }]) {
        const signal = AbortSignal.abort(reason);
        faults.add(String(reason), await refused(signal, aborted));
        const error = await Promise.resolve()
          .then(() => call(tensors, { signal }))
          .catch((caught: AttentionError) => caught);
        expect((error as AttentionError).cause).toBe(reason);
        expect(listeners(signal)).toBe(0);
      }
      const plain = AbortSignal.abort();
      faults.add('no reason', await refused(plain, { ...aborted, cause: plain.reason }));
      expect(plain.reason).toMatchObject({ name: 'AbortError' });
      faults.none();
    });

    test('aborted before: nothing is computed', async () => {
      if (outDims === undefined) return;
      const data = new Float32Array(outDims.reduce((a, b) => a * b, 1)).fill(7);
      const options = { signal: AbortSignal.abort(), out: { data, dims: outDims, type: 'float32' } };
      expect(await faultOf(() => call(tensors, options), asynchronous, aborted)).toBeUndefined();
      expect(data.every((each) => each === 7)).toBe(true);
    });

    test('aborted while arguments are read: refused', async () => {
      const controller = new AbortController();
      const options = {
        signal: controller.signal,
        get threads() {
          controller.abort();
          return 1;
        },
      };
      expect(await faultOf(() => call(tensors, options), asynchronous, aborted)).toBeUndefined();
      expect(listeners(controller.signal)).toBe(0);
    });

    test('never aborted: nothing is left on the signal, whether the call is done or refused', async () => {
      const { signal } = new AbortController();
      await call(tensors, { signal });
      expect(listeners(signal)).toBe(0);
      const wrong = () => call(tensors, { signal, isa: 'abacus' });
      expect(await faultOf(wrong, asynchronous, { code: 'ERR_ARGUMENT', argument: 'isa' })).toBeUndefined();
      expect(listeners(signal)).toBe(0);
    });

    test('a signal that throws is refused', async () => {
      const signal = { aborted: false, reason: undefined, addEventListener() {}, removeEventListener() {} };
      const raise = () => {
        throw thrown;
      };
      const wanted = { code: 'ERR_ARGUMENT', argument: 'signal', received: 'an exception', cause: thrown } as const;
      const faults = new Faults();
      const names = asynchronous
        ? (['addEventListener', 'removeEventListener', 'aborted'] as const)
        : (['aborted'] as const);
      for (const name of names) {
        const throwing = Object.defineProperty(
          { ...signal },
          name,
          name === 'aborted' ? { get: raise } : { value: raise },
        );
        // Twice: the first must leave nothing behind that spares the second.
        for (let i = 0; i < 2; i++) faults.add(name, await refused(throwing, wanted));
      }
      const reason = Object.defineProperty({ ...signal, aborted: true }, 'reason', { get: raise });
      faults.add('reason', await refused(reason, wanted));
      faults.none();
      await call(tensors, { signal });
    });
  },
);

/** Calls of half a second and more on a fast machine, attention of ten: none is over before its signal aborts. */
describe('aborted during the call', () => {
  const inputs = once(() => {
    const [k, v] = [1, 2].map((seed) => randomNormal([1, 1, 100_000, 8], { seed }));
    return { q: randomNormal([1, 4, 100_000, 8]), k, v };
  });
  const matrices = once(() => ({ a: zeros([6000, 6000]), b: zeros([6000, 6000]) }));
  const landmarked = once(() => [1, 2, 3].map((seed) => randomNormal([1, 4, 2500, 64], { seed })));
  const cache = once(() => {
    const { k, v } = inputs();
    const made = new KvCache({ heads: 1, headDim: 8 });
    made.append(k, v);
    return made;
  });
  const lrkv = once(() => {
    const [base, up] = [randomNormal([1, 30_000, 64], { seed: 4 }), randomNormal([64, 64], { seed: 5 })];
    const rows = { keyBase: base, keyLatent: base, valueBase: base, valueLatent: base };
    const made = new LrkvCache({ heads: 1, headDim: 64, keyUp: up, valueUp: up });
    made.append(rows);
    // One query of many heads a cache, a thousand times, for the form in two parts.
    const item = { cache: made, query: randomNormal([1, 64, 1, 64], { seed: 6 }) };
    const q = randomNormal([1, 8, 30_000, 64], { seed: 7 });
    return { q, lrkv: { ...rows, keyUp: up, valueUp: up }, steps: new Array<typeof item>(1000).fill(item) };
  });
  const small = normalInputs({ heads: 2, queries: 20, keys: 30, headDim: 16 }, 7);
  const wanted = attentionSync(small.q, small.k, small.v);

  const long: Readonly<Record<string, (options: CallOptions) => Promise<unknown>>> = {
    attention: (options) => attention(inputs().q, inputs().k, inputs().v, options),
    attentionWithLse: (options) => attentionWithLse(inputs().q, inputs().k, inputs().v, options),
    // Most of it the inverse of a large matrix, in which one thread is at work a head.
    nystromAttention: (options) => {
      const [q, k, v] = landmarked();
      return nystromAttention(q, k, v, { ...options, landmarks: 2000 });
    },
    matmul: (options) => matmul(matrices().a, matrices().b, options),
    'KvCache.attend': (options) => cache().attend(inputs().q, options),
    'KvCache.attendWithLse': (options) => cache().attendWithLse(inputs().q, options),
    attendBatch: (options) => attendBatch([{ cache: cache(), query: inputs().q }], options),
    'lrkvAttention, materialised': (options) => lrkvAttention(lrkv().q, lrkv().lrkv, { kvHeads: 1, ...options }),
    'attendBatch of LrkvCache': (options) => attendBatch(lrkv().steps, options),
  };
  beforeAll(() => [inputs(), matrices(), landmarked(), cache(), lrkv()]);

  test.each(Object.entries(long).flatMap(([name, call]) => [1, 2].map((threads) => ({ name, call, threads }))))(
    '$name on $threads threads stops, and the next call is right',
    async ({ call, threads }) => {
      const controller = new AbortController();
      const reason = new Error('changed my mind');
      const running = call({ signal: controller.signal, threads });
      setTimeout(() => controller.abort(reason), 3);
      const error = await running.then(
        () => undefined,
        (caught: unknown) => caught,
      );
      expect((error as AttentionError).cause).toBe(reason);
      expect(faultOfError(error, aborted)).toBeUndefined();
      expect(listeners(controller.signal)).toBe(0);
      expectSameBits(await attention(small.q, small.k, small.v), wanted);
      expectSameBits(attentionSync(small.q, small.k, small.v), wanted);
    },
  );

  test('out holds anything then, and nothing beside it is touched', async () => {
    const { q, k, v } = inputs();
    const { tensor, check } = guarded(q.dims);
    const controller = new AbortController();
    const running = attention(q, k, v, { signal: controller.signal, out: tensor });
    setTimeout(() => controller.abort(), 3);
    await expect(running).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    // What was not written inside is no fault here.
    (tensor.data as Float32Array).fill(0);
    check();
  });

  test('one listener serves all calls under one signal, and goes with the last', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const running = Array.from({ length: 20 }, () => long.attention({ signal, threads: 1 }));
    expect(listeners(signal)).toBe(1);
    setTimeout(() => controller.abort(), 3);
    const outcomes = await Promise.allSettled(running);
    for (const outcome of outcomes)
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'ERR_ABORTED' } });
    expect(listeners(signal)).toBe(0);
  });

  test('others go on', async () => {
    const controller = new AbortController();
    const stopped = long.attention({ signal: controller.signal, threads: 1 });
    const other = attention(small.q, small.k, small.v, { signal: new AbortController().signal });
    setTimeout(() => controller.abort(), 3);
    await expect(stopped).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expectSameBits(await other, wanted);
  });

  test('by a timeout', async () => {
    const signal = AbortSignal.timeout(3);
    await expect(long.attention({ signal, threads: 1 })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
      cause: { name: 'TimeoutError' },
    });
  });
});

test('aborted after the call: nothing happens', async () => {
  const { q, k, v } = normalInputs({ heads: 2, queries: 20, keys: 30, headDim: 16 }, 8);
  const controller = new AbortController();
  const result: Tensor = await attention(q, k, v, { signal: controller.signal });
  controller.abort();
  expectSameBits(result, attentionSync(q, k, v));
});
