import {
  attendBatch,
  attendBatchSync,
  attendBatchWithLse,
  attendBatchWithLseSync,
  attentionSync,
  cast,
  type DataType,
  info,
  KvCache,
  mergeAttentionSync,
  randomNormal,
  type Tensor,
} from '../lib';
import { expectSameBits } from './full-run';

const [heads, headDim, valueDim] = [2, 24, 16];

/** Rows [from, to) of a [1, heads, n, dim] tensor. */
function rows(source: Tensor, from: number, to: number): Tensor {
  const [, h, n, dim] = source.dims as [number, number, number, number];
  const data = new Float32Array(h * (to - from) * dim);
  for (let head = 0; head < h; head++) {
    const part = (source.data as Float32Array).subarray((head * n + from) * dim, (head * n + to) * dim);
    data.set(part, head * (to - from) * dim);
  }
  return { data, dims: [1, h, to - from, dim], type: 'float32' };
}

const longest = 2100;
const key = randomNormal([1, heads, longest, headDim], { seed: 1 });
const value = randomNormal([1, heads, longest, valueDim], { seed: 2 });
const query = (count: number, queryHeads = 4) => randomNormal([1, queryHeads, count, headDim], { seed: 3 });

function filled(length: number, type: DataType = 'float32'): KvCache {
  const cache = new KvCache({ heads, headDim, valueDim, type });
  cache.append(rows(key, 0, length), rows(value, 0, length));
  return cache;
}

function largestDifference(a: Tensor, b: Tensor): number {
  let worst = 0;
  for (let i = 0; i < a.data.length; i++) {
    const difference = Math.abs((a.data[i] as number) - (b.data[i] as number));
    if (!(difference <= worst)) worst = difference;
  }
  return worst;
}

const isas = info()
  .kernels.filter((row) => row.op === 'full' && row.supported)
  .map((row) => row.isa);

describe('KvCache', () => {
  // Around the borders of tiles (16), pages (128) and splits (1024).
  test.each([1, 15, 17, 127, 128, 129, 1023, 1024, 1025, 2100])(
    '%i positions: as attention over the same rows',
    (n) => {
      using cache = filled(n);
      for (const isa of isas) {
        for (const count of [1, 2, 3].filter((rowCount) => rowCount <= n)) {
          for (const queryHeads of [2, 4, 8]) {
            const q = query(count, queryHeads);
            const wanted = attentionSync(q, rows(key, 0, n), rows(value, 0, n), { causal: true, isa });
            expect(largestDifference(cache.attendSync(q, { isa }), wanted)).toBeLessThan(2e-6);
          }
        }
      }
    },
  );

  test('appending one at a time gives the same bits as appending all', () => {
    using whole = filled(300);
    using grown = new KvCache({ heads, headDim, valueDim });
    for (let i = 0; i < 300; i++) grown.append(rows(key, i, i + 1), rows(value, i, i + 1));
    expect(grown.length).toBe(300);
    expect(grown.attendSync(query(2)).data).toEqual(whole.attendSync(query(2)).data);
  });

  test('layout blhd gives the same bits', () => {
    using whole = filled(5);
    using other = new KvCache({ heads, headDim, valueDim });
    const turned = (source: Tensor): Tensor => {
      const [, h, n, dim] = source.dims as [number, number, number, number];
      const data = new Float32Array(source.data.length);
      for (let i = 0; i < data.length; i++) {
        const [head, row, c] = [Math.floor(i / (n * dim)), Math.floor(i / dim) % n, i % dim];
        data[(row * h + head) * dim + c] = source.data[i] as number;
      }
      return { data, dims: [1, n, h, dim], type: 'float32' };
    };
    other.append(turned(rows(key, 0, 5)), turned(rows(value, 0, 5)), { layout: 'blhd' });
    expect(other.attendSync(query(1)).data).toEqual(whole.attendSync(query(1)).data);
  });

  test.each(['float16', 'bfloat16'] as const)('%s storage: as attention over rounded rows', (type) => {
    for (const n of [17, 129, 1100]) {
      using cache = filled(n, type);
      const rounded = (source: Tensor) => cast(cast(rows(source, 0, n), type), 'float32');
      for (const queryHeads of [2, 8, 16]) {
        const wanted = attentionSync(query(1, queryHeads), rounded(key), rounded(value));
        expect(largestDifference(cache.attendSync(query(1, queryHeads)), wanted)).toBeLessThan(2e-6);
      }
    }
  });

  test('a fork shares pages, then diverges', () => {
    using cache = filled(200);
    const before = cache.attendSync(query(1)).data;
    using fork = cache.fork();
    expect(fork.sharedByteLength).toBe(fork.byteLength);
    fork.append(rows(key, 500, 501), rows(value, 500, 501));
    expect([cache.length, fork.length]).toEqual([200, 201]);
    // Only the half-full second page was copied.
    expect(fork.sharedByteLength).toBe(fork.byteLength / 2);
    expect(cache.attendSync(query(1)).data).toEqual(before);
    cache.append(rows(key, 200, 201), rows(value, 200, 201));
    using plain = filled(201);
    expect(cache.attendSync(query(1)).data).toEqual(plain.attendSync(query(1)).data);
  });

  test('truncate, then append', () => {
    using cache = filled(700);
    cache.truncate(130);
    expect(cache.byteLength).toBe(2 * 128 * heads * (headDim + valueDim) * 4);
    cache.append(rows(key, 130, 400), rows(value, 130, 400));
    using plain = filled(400);
    expect(cache.attendSync(query(3)).data).toEqual(plain.attendSync(query(3)).data);
  });

  test('a call in flight sees the cache as it was', async () => {
    const cache = filled(1500);
    const wanted = cache.attendSync(query(1)).data;
    const first = cache.attend(query(1));
    cache.append(rows(key, 1500, 1501), rows(value, 1500, 1501));
    const second = cache.attend(query(1));
    cache.truncate(3);
    cache.append(rows(key, 900, 1000), rows(value, 900, 1000));
    cache.dispose();
    expect((await first).data).toEqual(wanted);
    using longer = filled(1501);
    expect((await second).data).toEqual(longer.attendSync(query(1)).data);
  });

  test('a batch gives the bits of each sequence alone, on any number of threads', async () => {
    const lengths = [1, 130, 2100, 1025, 16];
    const items = lengths.map((n, index) => ({ cache: filled(n), query: query(1 + (index % 2)) }));
    const alone = items.map(({ cache, query: q }) => cache.attendSync(q, { threads: 1 }).data);
    for (const threads of [1, 2]) {
      expect((await attendBatch(items, { threads })).map(({ data }) => data)).toEqual(alone);
      expect(attendBatchSync(items, { threads }).map(({ data }) => data)).toEqual(alone);
    }
    for (const { cache } of items) cache.dispose();
  });

  test('a batch with log-sum-exp gives the bits of each sequence alone, and merges to the whole', async () => {
    const lengths = [0, 1, 130, 2100, 1025];
    const items = lengths.map((n, index) => ({ cache: filled(n), query: query(1 + (index % 2)) }));
    for (const options of [{}, { causal: false, window: [100, 3] as const, softcap: 5, scale: 0.3 }]) {
      const alone = items.map(({ cache, query: q }) => cache.attendWithLseSync(q, { ...options, threads: 1 }));
      for (const threads of [1, 2, 3]) {
        const inBatch = attendBatchWithLseSync(items, { ...options, threads });
        const later = await attendBatchWithLse(items.toReversed(), { ...options, threads });
        const plain = attendBatchSync(items, { ...options, threads });
        expect([inBatch.length, later.length]).toEqual([items.length, items.length]);
        for (const [i, { output, lse }] of alone.entries()) {
          expect(lse.dims).toEqual([1, 4, 1 + (i % 2)]);
          for (const found of [inBatch[i], later.toReversed()[i]]) {
            expectSameBits(found.output, output);
            expectSameBits(found.lse, lse);
          }
          expectSameBits(plain[i], output);
        }
      }
    }
    expect([...attendBatchWithLseSync(items)[0].lse.data]).toEqual([-Infinity, -Infinity, -Infinity, -Infinity]);

    // One sequence in two caches.
    using front = filled(700);
    using back = new KvCache({ heads, headDim, valueDim });
    back.append(rows(key, 700, 1500), rows(value, 700, 1500));
    using whole = filled(1500);
    const q = query(2);
    const parts = attendBatchWithLseSync(
      [front, back].map((cache) => ({ cache, query: q })),
      { causal: false },
    );
    const wanted = whole.attendWithLseSync(q, { causal: false });
    const merged = mergeAttentionSync(parts);
    expect(largestDifference(merged.output, wanted.output)).toBeLessThan(1e-6);
    expect(largestDifference(merged.lse, wanted.lse)).toBeLessThan(1e-5);
    for (const { cache } of items) cache.dispose();
  });

  test('NaN in rows that a mask hides stays hidden', () => {
    using cache = filled(40);
    const poisoned = {
      data: new Float32Array(heads * headDim).fill(NaN),
      dims: [1, heads, 1, headDim],
      type: 'float32',
    } as const;
    const values = {
      data: new Float32Array(heads * valueDim).fill(NaN),
      dims: [1, heads, 1, valueDim],
      type: 'float32',
    } as const;
    const wanted = cache.attendSync(query(1)).data;
    cache.append(poisoned, values);
    const mask = { data: new Uint8Array(41).fill(1, 0, 40), dims: [1, 41], type: 'bool' } as const;
    for (const isa of isas) {
      const got = cache.attendSync(query(1), { mask, isa });
      expect(largestDifference(got, { ...got, data: wanted })).toBeLessThan(1e-6);
    }
  });
});
