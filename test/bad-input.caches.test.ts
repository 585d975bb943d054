import {
  AttentionError,
  attendBatch,
  attendBatchSync,
  attendBatchWithLse,
  attendBatchWithLseSync,
  KvCache,
  mergeAttention,
  mergeAttentionSync,
  type Tensor,
  zeros,
} from '../lib';
import { normal } from './data';
import { smallCache } from './entries';
import { Faults, faultOf, type Refusal } from './refusal';
import { primitives, thrown } from './wrong-tensors';

// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
type Loose = (...args: any[]) => unknown;

const query = normal([1, 4, 2, 8], 1);
const [key, value] = [normal([1, 2, 3, 8], 2), normal([1, 2, 3, 6], 3)];

/** Methods and functions that need a cache, with right arguments. */
const uses: Readonly<Record<string, { readonly asynchronous: boolean; readonly call: (cache: KvCache) => unknown }>> = {
  append: { asynchronous: false, call: (cache) => cache.append(key, value) },
  attend: { asynchronous: true, call: (cache) => cache.attend(query) },
  attendSync: { asynchronous: false, call: (cache) => cache.attendSync(query) },
  attendWithLse: { asynchronous: true, call: (cache) => cache.attendWithLse(query) },
  attendWithLseSync: { asynchronous: false, call: (cache) => cache.attendWithLseSync(query) },
  truncate: { asynchronous: false, call: (cache) => cache.truncate(0) },
  fork: { asynchronous: false, call: (cache) => cache.fork() },
  attendBatch: {
    asynchronous: true,
    call: (cache) =>
      attendBatch([
        { cache: smallCache(), query },
        { cache, query },
      ]),
  },
  attendBatchSync: {
    asynchronous: false,
    call: (cache) =>
      attendBatchSync([
        { cache: smallCache(), query },
        { cache, query },
      ]),
  },
  attendBatchWithLse: {
    asynchronous: true,
    call: (cache) =>
      attendBatchWithLse([
        { cache: smallCache(), query },
        { cache, query },
      ]),
  },
  attendBatchWithLseSync: {
    asynchronous: false,
    call: (cache) =>
      attendBatchWithLseSync([
        { cache: smallCache(), query },
        { cache, query },
      ]),
  },
};
const argumentOf = (name: string) => (name.startsWith('attendBatch') ? 'items[1].cache' : 'cache');

describe('new KvCache', () => {
  const refused = (options: unknown, wanted: Refusal) =>
    faultOf(() => new (KvCache as unknown as new (o: unknown) => KvCache)(options), false, wanted);
  const right = { heads: 2, headDim: 8, valueDim: 6, capacity: 5, type: 'float16', device: 'cpu' };

  test.each(['heads', 'headDim', 'valueDim', 'capacity'])('%s', async (name) => {
    const faults = new Faults();
    const code = 'ERR_ARGUMENT';
    for (const [wrong, received] of primitives) {
      if (wrong === 5 || (wrong === undefined && /valueDim|capacity/.test(name))) continue;
      faults.add(received, await refused({ ...right, [name]: wrong }, { code, argument: name, received }));
    }
    const most = name === 'capacity' ? 2 ** 53 : 2 ** 31;
    for (const wrong of [0, -1, 1.5, Infinity, -Infinity, most, 1e300]) {
      faults.add(
        `${wrong}`,
        await refused({ ...right, [name]: wrong }, { code, argument: name, received: String(wrong) }),
      );
    }
    faults.add('a list', await refused({ ...right, [name]: [2] }, { code, argument: name, received: '[2]' }));
    faults.none();
  });

  test('type and device', async () => {
    const faults = new Faults();
    for (const [wrong, received] of primitives) {
      if (wrong === undefined) continue;
      faults.add(received, await refused({ ...right, type: wrong }, { code: 'ERR_TYPE', argument: 'type', received }));
      const device = { code: 'ERR_ARGUMENT', argument: 'device', received } as const;
      faults.add(received, await refused({ ...right, device: wrong }, device));
    }
    faults.add('float64', await refused({ ...right, type: 'float64' }, { code: 'ERR_TYPE', argument: 'type' }));
    faults.add('cuda', await refused({ ...right, device: 'cuda' }, { code: 'ERR_DEVICE', argument: 'device' }));
    faults.none();
  });

  test('options as a whole', async () => {
    const faults = new Faults();
    const wanted = { code: 'ERR_ARGUMENT', argument: 'options' } as const;
    for (const [wrong, received] of primitives) faults.add(received, await refused(wrong, { ...wanted, received }));
    faults.add('a list', await refused([2, 8], { ...wanted, received: '[2, 8]' }));
    faults.add('nothing in it', await refused({}, { code: 'ERR_ARGUMENT', argument: 'heads', received: 'undefined' }));
    faults.add('a name', await refused({ ...right, dim: 3 }, { code: 'ERR_ARGUMENT', argument: 'dim', received: '3' }));
    const many = { heads: 2 ** 16, headDim: 2 ** 15, valueDim: 2 ** 15 };
    faults.add('too large', await refused(many, { code: 'ERR_SHAPE', argument: 'options', received: `${2 ** 32}` }));
    const trap = Object.defineProperty({}, 'heads', {
      enumerable: true,
      get() {
        throw thrown;
      },
    });
    faults.add('a getter', await refused(trap, { code: 'ERR_ARGUMENT', argument: 'heads', cause: thrown }));
    faults.none();
  });

  test('undefined is not given', () => {
    using cache = new KvCache({
      heads: 1,
      headDim: 4,
      valueDim: undefined,
      capacity: undefined,
      type: undefined,
    } as never);
    expect([cache.valueDim, cache.capacity, cache.type]).toEqual([4, Infinity, 'float32']);
  });

  test('a large head is made, and refused memory only when it is needed', () => {
    using cache = new KvCache({ heads: 1, headDim: 2 ** 30, valueDim: 2 ** 30 - 1 });
    expect(cache.byteLength).toBe(0);
  });
});

describe('a disposed cache', () => {
  const disposed = () => {
    const cache = smallCache();
    cache.dispose();
    return cache;
  };

  test.each(Object.entries(uses))('%s is refused', async (name, { asynchronous, call }) => {
    const wanted = { code: 'ERR_CLOSED', argument: argumentOf(name), received: 'a disposed one' } as const;
    const cache = disposed();
    expect(await faultOf(() => call(cache), asynchronous, wanted)).toBeUndefined();
  });

  test('may be disposed again, and asked for its shape', () => {
    const cache = disposed();
    cache.dispose();
    cache[Symbol.dispose]();
    expect(cache).toMatchObject({ length: 0, byteLength: 0, sharedByteLength: 0, heads: 2, headDim: 8, valueDim: 6 });
  });

  test('using disposes', () => {
    let escaped: KvCache;
    {
      using cache = smallCache();
      escaped = cache;
      expect(cache.byteLength).toBeGreaterThan(0);
    }
    expect(() => escaped.fork()).toThrow(AttentionError);
  });

  test('leaves its forks alone', () => {
    const cache = smallCache();
    const wanted = cache.attendSync(query);
    using fork = cache.fork();
    cache.dispose();
    expect(fork.sharedByteLength).toBe(0);
    expect(fork.attendSync(query)).toEqual(wanted);
  });

  test.each(['attend', 'attendWithLse'] as const)('during %s: the call sees the cache as it was', async (method) => {
    const cache = smallCache();
    const wanted = cache[`${method}Sync`](query);
    const call = cache[method](query);
    cache.dispose();
    expect(await call).toEqual(wanted);
  });

  test('during attendBatch: the call sees the caches as they were', async () => {
    const caches = [smallCache(), smallCache()];
    const items = caches.map((cache) => ({ cache, query }));
    const wanted = attendBatchSync(items);
    const call = attendBatch(items);
    for (const cache of caches) cache.dispose();
    expect(await call).toEqual(wanted);
  });

  // What a getter of the caller's does happens before the call begins.
  const trap = (cache: KvCache, tensor: Tensor) => ({
    ...tensor,
    get data() {
      cache.dispose();
      return tensor.data;
    },
  });
  const traps: typeof uses = {
    append: { asynchronous: false, call: (cache) => cache.append(key, trap(cache, value)) },
    attend: { asynchronous: true, call: (cache) => cache.attend(trap(cache, query)) },
    attendSync: { asynchronous: false, call: (cache) => cache.attendSync(trap(cache, query)) },
    'attendSync into out': {
      asynchronous: false,
      call: (cache) => cache.attendSync(query, { out: trap(cache, zeros([1, 4, 2, 6])) }),
    },
    attendBatch: {
      asynchronous: true,
      call: (cache) =>
        attendBatch([
          { cache: smallCache(), query },
          { cache, query: trap(cache, query) },
        ]),
    },
  };
  test.each(Object.entries(traps))('while arguments are read: %s', async (name, { asynchronous, call }) => {
    const cache = smallCache();
    const wanted = { code: 'ERR_CLOSED', argument: argumentOf(name) } as const;
    expect(await faultOf(() => call(cache), asynchronous, wanted)).toBeUndefined();
  });
});

describe('what is no cache', () => {
  const pretenders = {
    ...Object.fromEntries(primitives.map(([each, name]) => [name, each])),
    object: {},
    like: Object.create(KvCache.prototype),
  };

  test.each(Object.entries(pretenders))('%s', async (_name, pretender) => {
    const faults = new Faults();
    const item = { cache: pretender, query };
    const wanted = { code: 'ERR_TYPE', argument: 'items[0].cache' } as const;
    faults.add('attendBatch', await faultOf(() => (attendBatch as Loose)([item]), true, wanted));
    faults.add('attendBatchSync', await faultOf(() => (attendBatchSync as Loose)([item]), false, wanted));
    for (const [name, { asynchronous, call }] of Object.entries(uses)) {
      if (name.startsWith('attendBatch')) continue;
      // Methods called on something else.
      const borrowed = new Proxy({} as KvCache, {
        get:
          (_, method) =>
          (...args: unknown[]) =>
            (KvCache.prototype[method as 'attend'] as Loose).apply(pretender, args),
      });
      faults.add(name, await faultOf(() => call(borrowed), asynchronous, { code: 'ERR_TYPE', argument: 'cache' }));
    }
    const dispose = () => KvCache.prototype.dispose.call(pretender as KvCache);
    faults.add('dispose', await faultOf(dispose, false, { code: 'ERR_TYPE', argument: 'cache' }));
    faults.none();
  });
});

describe('truncate', () => {
  test('to no length', async () => {
    using cache = smallCache();
    const faults = new Faults();
    const wanted = { code: 'ERR_ARGUMENT', argument: 'length' } as const;
    for (const [wrong, received] of primitives) {
      if (wrong === 5 || Object.is(wrong, -0)) continue;
      faults.add(
        received,
        await faultOf(() => (cache.truncate as Loose).call(cache, wrong), false, { ...wanted, received }),
      );
    }
    for (const wrong of [6, -1, 1.5, Infinity, 2 ** 53]) {
      faults.add(`${wrong}`, await faultOf(() => cache.truncate(wrong), false, { ...wanted, received: `${wrong}` }));
    }
    expect(cache.length).toBe(5);
    faults.none();
  });
});

describe('capacity', () => {
  test('is kept to, and what did not fit changes nothing', async () => {
    using cache = new KvCache({ heads: 2, headDim: 8, valueDim: 6, capacity: 7 });
    cache.append(key, value);
    cache.append(key, value);
    const before = cache.attendSync(query);
    const wanted = { code: 'ERR_MEMORY', argument: 'key', received: '3' } as const;
    expect(await faultOf(() => cache.append(key, value), false, wanted)).toBeUndefined();
    using fork = cache.fork();
    expect(await faultOf(() => fork.append(key, value), false, wanted)).toBeUndefined();
    expect(cache.length).toBe(6);
    expect(cache.attendSync(query)).toEqual(before);
    cache.truncate(4);
    cache.append(key, value);
    expect(cache.length).toBe(7);
  });
});

describe('lists of a batch', () => {
  const functions = {
    attendBatch: [attendBatch, true],
    attendBatchSync: [attendBatchSync, false],
    attendBatchWithLse: [attendBatchWithLse, true],
    attendBatchWithLseSync: [attendBatchWithLseSync, false],
  } as const;

  test.each(Object.entries(functions))('%s', async (_name, [of, asynchronous]) => {
    const faults = new Faults();
    const refused = (items: unknown, wanted: Refusal) => faultOf(() => (of as Loose)(items), asynchronous, wanted);
    using cache = smallCache();
    const item = { cache, query };
    for (const [wrong, received] of primitives) {
      faults.add(received, await refused(wrong, { code: 'ERR_ARGUMENT', argument: 'items', received }));
      const second = { code: 'ERR_TYPE', argument: 'items[1]', received } as const;
      faults.add(`item ${received}`, await refused([item, wrong], second));
    }
    faults.add('none', await refused([], { code: 'ERR_ARGUMENT', argument: 'items', received: '[]' }));
    faults.add('one alone', await refused(item, { code: 'ERR_ARGUMENT', argument: 'items', received: 'an object' }));
    faults.add('a set', await refused(new Set([item]), { code: 'ERR_ARGUMENT', argument: 'items', received: 'Set' }));
    faults.add('holes', await refused(new Array(2 ** 32 - 1), { code: 'ERR_TYPE', argument: 'items[0]' }));
    faults.add(
      'empty item',
      await refused([{}], { code: 'ERR_TYPE', argument: 'items[0].cache', received: 'undefined' }),
    );
    const trap = {
      get cache() {
        throw thrown;
      },
    };
    faults.add('a getter', await refused([trap], { code: 'ERR_ARGUMENT', argument: 'items[0]', cause: thrown }));
    for (const shape of [
      { heads: 4, headDim: 8, valueDim: 6 },
      { heads: 2, headDim: 4, valueDim: 6 },
      { heads: 2, headDim: 8, valueDim: 8 },
      { heads: 2, headDim: 8, valueDim: 6, type: 'float16' as const },
    ]) {
      using other = new KvCache(shape);
      const second = { cache: other, query: normal([1, 4, 2, shape.headDim], 4) };
      const wanted = { code: 'ERR_SHAPE', argument: 'items[1].cache' } as const;
      faults.add(JSON.stringify(shape), await refused([item, second], wanted));
    }
    faults.none();
  });
});

describe('lists of parts', () => {
  test.each([
    ['mergeAttention', mergeAttention, true],
    ['mergeAttentionSync', mergeAttentionSync, false],
  ] as const)('%s', async (_name, of, asynchronous) => {
    const faults = new Faults();
    const refused = (parts: unknown, wanted: Refusal) => faultOf(() => (of as Loose)(parts), asynchronous, wanted);
    const part = { output: zeros([1, 2, 3, 4]), lse: zeros([1, 2, 3]) };
    for (const [wrong, received] of primitives) {
      faults.add(received, await refused(wrong, { code: 'ERR_ARGUMENT', argument: 'parts', received }));
      faults.add(received, await refused([part, wrong], { code: 'ERR_TYPE', argument: 'parts[1]', received }));
    }
    faults.add('none', await refused([], { code: 'ERR_ARGUMENT', argument: 'parts', received: '[]' }));
    faults.add('one alone', await refused(part, { code: 'ERR_ARGUMENT', argument: 'parts', received: 'an object' }));
    faults.add('holes', await refused(new Array(2 ** 32 - 1), { code: 'ERR_TYPE', argument: 'parts[0]' }));
    faults.add('empty', await refused([{}], { code: 'ERR_TYPE', argument: 'parts[0].output', received: 'undefined' }));
    faults.none();
  });

  test('an output without columns still has its lse', () => {
    const part = { output: zeros([1, 1, 1, 0]), lse: normal([1, 1, 1], 5) };
    const { output, lse } = mergeAttentionSync([part as never]);
    expect(output.dims).toEqual([1, 1, 1, 0]);
    expect(lse.data).toEqual(part.lse.data);
  });
});
