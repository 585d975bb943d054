import {
  attendBatch,
  attendBatchSync,
  attendBatchWithLse,
  attendBatchWithLseSync,
  attentionSync,
  KvCache,
  lrkvAttentionSync,
} from '../lib';
import type { DataType, Tensor } from '../lib/tensor';
import { filled, guarded, normal, slice, swapLayout, types } from './data';
import { expectSameBits } from './full-run';
import { emptyCache, features, filledCache, queryRows, rowsOf, settings, shape } from './lrkv-caches';
import { type LrkvFeatures, type LrkvInputs, type LrkvShape, lrkvInputs, lrkvRows, lrkvShape } from './lrkv-run';
import { expectLrkv, type LrkvRowsMeaning } from './reference-lrkv';
import { once } from './rows';
import { compare } from './tolerance';

describe.each(settings)('%s', (_name, model) => {
  const inputs = once(() => lrkvInputs(shape, 71, model));
  test('the cache answers as the stateless call does', () => {
    const { q, given, options } = inputs();
    for (const length of [1, 31, 33, 127, 128, 129, 257, 300]) {
      using cache = filledCache(inputs(), length);
      for (const count of [1, 3, 40].filter((rows) => rows <= length)) {
        const query = slice(q, 2, 0, count);
        const rows = { ...given, ...rowsOf(given, 0, length) };
        // On one kernel row: a cache stores with the first that runs here, whatever `isa` attends.
        const wanted = lrkvAttentionSync(query, rows, { ...options, causal: true });
        expectSameBits(cache.attendSync(query), wanted);
      }
    }
  });

  test('appending one at a time, or in uneven portions, gives the same bits as appending all', () => {
    using whole = filledCache(inputs(), 300);
    using single = emptyCache(inputs());
    for (let i = 0; i < 300; i++) single.append(rowsOf(inputs().given, i, i + 1));
    using uneven = emptyCache(inputs());
    for (let start = 0, portion = 1; start < 300; start += portion, portion = (portion * 3) % 100)
      uneven.append(rowsOf(inputs().given, start, Math.min(start + portion, 300)));
    for (const [first, last] of [
      [299, 300],
      [297, 300],
      [0, 300],
    ] as const) {
      const query = queryRows(inputs(), first, last);
      const wanted = whole.attendWithLseSync(query);
      for (const cache of [single, uneven]) {
        expect(cache.length).toBe(300);
        const found = cache.attendWithLseSync(query);
        expectSameBits(found.output, wanted.output);
        expectSameBits(found.lse, wanted.lse);
      }
    }
  });

  test('any number of threads, asynchronous or not, alone or in a batch: the same bits', async () => {
    const lengths = [1, 130, 300, 256, 17];
    const long = lrkvInputs({ ...shape, keys: 2500, queries: 3 }, 72, model);
    const caches = [
      ...lengths.map((length) => filledCache(inputs(), length)),
      filledCache({ ...inputs(), given: { ...long.given, ...modelOf(inputs()) } }, 2500),
    ];
    const items = caches.map((cache, i) => ({ cache, query: normal([1, 4, 1 + (i % 3), 24], 80 + i) }));
    const alone = items.map(({ cache, query }) => cache.attendSync(query, { threads: 1 }));
    const lses = items.map(({ cache, query }) => cache.attendWithLseSync(query, { threads: 1 }).lse);
    for (const threads of [1, 2, 5]) {
      const inBatch = attendBatchSync(items, { threads });
      const later = await attendBatch([...items].reverse(), { threads });
      const withLse = [attendBatchWithLseSync(items, { threads }), await attendBatchWithLse(items, { threads })];
      for (const [i, { cache, query }] of items.entries()) {
        expectSameBits(cache.attendSync(query, { threads }), alone[i]);
        expectSameBits(await cache.attend(query, { threads }), alone[i]);
        expectSameBits(inBatch[i], alone[i]);
        for (const found of withLse) {
          expectSameBits(found[i].output, alone[i]);
          expectSameBits(found[i].lse, lses[i]);
        }
        expectSameBits(later[items.length - 1 - i], alone[i]);
      }
    }
    const turned = items.map(({ cache, query }) => ({ cache, query: swapLayout(query) }));
    attendBatchSync(turned, { layout: 'blhd' }).forEach((output, i) => {
      expectSameBits(swapLayout(output), alone[i]);
    });
    for (const cache of caches) cache.dispose();
  });

  test('a fork shares pages, then diverges; truncate forgets', () => {
    using cache = filledCache(inputs(), 200);
    const query = queryRows(inputs(), 0, 2);
    const before = cache.attendSync(query);
    using fork = cache.fork();
    expect(fork.sharedByteLength).toBe(fork.byteLength);
    fork.append(rowsOf(inputs().given, 250, 251));
    expect([cache.length, fork.length]).toEqual([200, 201]);
    expect(fork.sharedByteLength).toBe(fork.byteLength / 2);
    expectSameBits(cache.attendSync(query), before);
    cache.append(rowsOf(inputs().given, 200, 300));
    cache.truncate(131);
    fork.truncate(131);
    using plain = filledCache(inputs(), 131);
    for (const each of [cache, fork]) {
      expect(each.byteLength).toBe(plain.byteLength);
      expectSameBits(each.attendSync(query), plain.attendSync(query));
    }
    cache.append(rowsOf(inputs().given, 131, 300));
    using whole = filledCache(inputs(), 300);
    expectSameBits(cache.attendSync(query), whole.attendSync(query));
  });

  test('a call in flight sees the cache as it was', async () => {
    const cache = filledCache(inputs(), 280);
    const query = queryRows(inputs(), 0, 1);
    const wanted = cache.attendSync(query);
    const first = cache.attend(query);
    cache.append(rowsOf(inputs().given, 280, 281));
    const second = cache.attend(query);
    cache.truncate(3);
    cache.append(rowsOf(inputs().given, 100, 200));
    cache.dispose();
    expectSameBits(await first, wanted);
    using longer = filledCache(inputs(), 281);
    expectSameBits(await second, longer.attendSync(query));
  });

  test('NaN that was dropped, or that a mask hides, never shows', () => {
    using cache = filledCache(inputs(), 40);
    const poison = Object.fromEntries(
      Object.entries(rowsOf(inputs().given, 0, 30)).map(([name, { dims }]) => [
        name,
        filled(dims, 'float32', () => NaN),
      ]),
    ) as unknown as LrkvRowsMeaning;
    cache.append(poison);
    cache.truncate(40);
    using plain = filledCache(inputs(), 40);
    for (const isa of lrkvRows) {
      for (const count of [1, 40]) {
        const query = queryRows(inputs(), 0, count);
        expectSameBits(cache.attendSync(query, { isa }), plain.attendSync(query, { isa }));
      }
    }
    const query = queryRows(inputs(), 0, 1);
    const { given, options } = inputs();
    const rows = { ...given, ...rowsOf(given, 0, 40) };
    const expected = expectLrkv(query, rows, { ...options, causal: true, queryOffset: 69 });
    cache.append(poison);
    const mask = { data: new Uint8Array(70).fill(1, 0, 40), dims: [1, 70], type: 'bool' } as const;
    for (const isa of lrkvRows) compare(cache.attendSync(query, { mask, isa }), expected.output, isa);
  });
});

const modelOf = ({ given }: LrkvInputs) => {
  const { keyBase, keyLatent, valueBase, valueLatent, ...model } = given;
  return model;
};

describe.each(types)('%s cache', (type) => {
  test.each(settings)('of rows of every type, %s', (_name, model) => {
    const extents = { ...shape, keys: 150, queries: 5 };
    for (const rowsType of types) {
      const inputs = lrkvInputs(extents, 73, model, rowsType);
      const { q, given, options } = inputs;
      using cache = filledCache(inputs, 150, extents, type);
      const expected = expectLrkv(q, given, { ...options, causal: true }, type);
      for (const isa of lrkvRows) {
        const out = guarded(expected.output.dims, rowsType);
        const { lse } = cache.attendWithLseSync(q, { isa, out: out.tensor });
        out.check();
        compare(out.tensor, expected.output, 'output');
        compare(lse, expected.lse, 'lse');
      }
    }
  });
});

describe('memory', () => {
  const pageRows = 128;
  const large = { ...shape, heads: 8, kvHeads: 8, queries: 1, headDim: 64, valueDim: 64, keyRank: 13, valueRank: 16 };
  /** Bytes of a position: bases, ranks in multiples of 8, keys whole where they are stored so, and scales. */
  const bytes = (extents: LrkvShape, model: LrkvFeatures, type: DataType) => {
    const { kvHeads, headDim, keyBaseDim, valueBaseDim, keyRanks, valueRanks } = lrkvShape(extents);
    const padded = (ranks: readonly number[]) => ranks.reduce((sum, rank) => sum + 8 * Math.ceil(rank / 8), 0);
    const whole = model.mode === 'exact';
    const key = whole ? padded(new Array<number>(kvHeads).fill(headDim)) : keyBaseDim + padded(keyRanks);
    const elements = key + valueBaseDim + padded(valueRanks);
    return elements * (type === 'float32' ? 4 : 2) + (model.norm && !whole ? 4 * kvHeads : 0);
  };

  test.each(types)('%s: whole pages of what is stored, and nothing else', (type) => {
    for (const extents of [shape, large]) {
      for (const model of Object.values(features)) {
        const fitting = { ...extents, keyRank: extents === large && model.mode ? 14 : extents.keyRank };
        const inputs = lrkvInputs({ ...fitting, keys: 1, queries: 1 }, 74, model, type);
        using cache = emptyCache(inputs, fitting, type);
        expect(cache.byteLength).toBe(0);
        const page = pageRows * bytes(fitting, model, type);
        for (const length of [1, 128, 129]) {
          while (cache.length < length) cache.append(rowsOf(inputs.given, 0, 1));
          expect(cache.byteLength).toBe(page * Math.ceil(length / pageRows));
        }
        using full = new KvCache({ heads: cache.heads, headDim: cache.headDim, valueDim: cache.valueDim, type });
        full.append(normal([1, cache.heads, 1, cache.headDim], 1), normal([1, cache.heads, 1, cache.valueDim], 2));
        cache.truncate(1);
        expect(cache.ratio).toBeCloseTo(cache.byteLength / full.byteLength, 12);
        cache.truncate(0);
        expect(cache.byteLength).toBe(0);
        cache.dispose();
        expect([cache.length, cache.byteLength, cache.sharedByteLength]).toEqual([0, 0, 0]);
      }
    }
  });

  test('a long cache is at most 2 % larger than its rows', () => {
    const extents = { ...large, keys: 8192 + 1 };
    const inputs = lrkvInputs(extents, 75);
    using cache = filledCache(inputs, extents.keys, extents);
    // Bases once, and ranks of 13 and 16 in 16 places, for keys and values: 2·L·(d + Σ r).
    const rows = 2 * extents.keys * (64 + 8 * 16) * 4;
    expect(cache.byteLength).toBeGreaterThanOrEqual(rows);
    expect(cache.byteLength).toBeLessThanOrEqual(1.02 * rows);
    expect(cache.ratio).toBe((64 + 8 * 16) / (8 * 64));
  });

  test('with exact rotation keys are stored whole, and the cache says so', () => {
    const inputs = lrkvInputs({ ...large, keys: 128 }, 76, { mode: 'exact' });
    using cache = filledCache(inputs, 128, large);
    expect(cache.byteLength).toBe(128 * (8 * 64 + 64 + 8 * 16) * 4);
    expect(cache.ratio).toBe((8 * 64 + 64 + 8 * 16) / (2 * 8 * 64));
  });
});

test('without rope a decode step equals attention over written-out keys and values', () => {
  const { kvHeads, headDim, valueDim } = lrkvShape(shape);
  const inputs = lrkvInputs({ ...shape, queries: 1 }, 77);
  using cache = filledCache(inputs, 300);
  using full = new KvCache({ heads: kvHeads, headDim, valueDim });
  const written = (base: Tensor, latent: Tensor, up: Tensor, ranks: readonly number[], dim: number) =>
    filled([1, kvHeads, 300, dim], 'float32', (i) => {
      const [head, j, c] = [Math.floor(i / (300 * dim)), Math.floor(i / dim) % 300, i % dim];
      const start = head === 0 ? 0 : ranks[0];
      let sum = base.data[j * dim + c];
      for (let r = start; r < start + ranks[head]; r++)
        sum += latent.data[j * latent.dims[2] + r] * up.data[r * dim + c];
      return sum;
    });
  const { given } = inputs;
  const k = written(given.keyBase, given.keyLatent, given.keyUp, shape.keyRank, headDim);
  const v = written(given.valueBase, given.valueLatent, given.valueUp, shape.valueRank, valueDim);
  full.append(k, v);
  const expected = expectLrkv(inputs.q, given, { ...inputs.options, causal: true });
  for (const isa of lrkvRows) {
    compare(cache.attendSync(inputs.q, { isa }), expected.output, 'LRKV');
    compare(full.attendSync(inputs.q, { isa }), expected.output, 'written out, from a cache');
    compare(attentionSync(inputs.q, k, v, { isa, causal: true }), expected.output, 'written out');
  }
});
