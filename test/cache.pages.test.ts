// Pages of caches whose size is no multiple of the system's: what they take, and that sharing a mapping is not sharing rows.
import { KvCache, LrkvCache, type Tensor } from '../lib';
import { normal, slice, types } from './data';
import { expectSameBits } from './full-run';

const pageRows = 128;
const elementBytes = (type: (typeof types)[number]): number => (type === 'float32' ? 4 : 2);
const padded = (rank: number): number => 8 * Math.ceil(rank / 8);

describe('whole pages are at most 2 % larger than their rows', () => {
  test.each(types)('LRKV with QK-norm, %s', (type) => {
    let filledUp = 0;
    for (const heads of [1, 2, 4, 8, 32]) {
      for (const dim of [32, 64, 128]) {
        for (const rank of [5, 16, 32, dim]) {
          const up = normal([heads * rank, dim], 1, type);
          using cache = new LrkvCache({ heads, headDim: dim, keyUp: up, valueUp: up, keyNorm: {}, type });
          const [base, latent] = [normal([1, pageRows, dim], 2), normal([1, pageRows, heads * rank], 3)];
          // 2·L·(d + Σ r) elements, and a float32 a head and position.
          const page = pageRows * (2 * (dim + heads * padded(rank)) * elementBytes(type) + 4 * heads);
          for (let pages = 1; pages <= 4; pages++) {
            cache.append({ keyBase: base, keyLatent: latent, valueBase: base, valueLatent: latent });
            expect(cache.byteLength).toBeGreaterThanOrEqual(pages * page);
            expect(cache.byteLength).toBeLessThanOrEqual(1.02 * pages * page);
          }
          if (cache.byteLength > 4 * page) filledUp++;
          expect(cache.ratio).toBeCloseTo(page / (pageRows * 2 * heads * dim * elementBytes(type)), 12);
        }
      }
    }
    // Else nothing here were rounded up.
    expect(filledUp).toBeGreaterThan(3);
  });

  test.each(types)('keys and values as they are, %s', (type) => {
    for (const [heads, headDim, valueDim] of [
      [1, 128, 129],
      [3, 75, 75],
      [1, 131, 200],
      [2, 65, 70],
      [5, 27, 40],
    ] as const) {
      using cache = new KvCache({ heads, headDim, valueDim, type });
      const page = pageRows * heads * (headDim + valueDim) * elementBytes(type);
      for (let pages = 1; pages <= 4; pages++) {
        cache.append(normal([1, heads, pageRows, headDim], 1), normal([1, heads, pageRows, valueDim], 2));
        expect(cache.byteLength).toBeGreaterThanOrEqual(pages * page);
        expect(cache.byteLength).toBeLessThanOrEqual(1.02 * pages * page);
      }
    }
  });
});

// 66,048, 115,200 and 131,584 bytes: three, two and two pages a group, the groups of one append in one mapping.
describe.each([
  { heads: 1, headDim: 129, valueDim: 129 },
  { heads: 3, headDim: 75, valueDim: 75 },
  { heads: 2, headDim: 130, valueDim: 127 },
])('$heads heads of $headDim and $valueDim in float16', ({ heads, headDim, valueDim }) => {
  const rows = 1100;
  const [key, value] = [normal([1, heads, rows, headDim], 5), normal([1, heads, rows, valueDim], 6)];
  const query = normal([1, heads, 2, headDim], 7);
  const part = (of: Tensor, [start, end]: readonly [number, number]) => slice(of, 2, start, end);
  type Range = readonly [start: number, end: number];
  const append = (cache: KvCache, ranges: readonly Range[]): KvCache => {
    for (const range of ranges) cache.append(part(key, range), part(value, range));
    return cache;
  };
  const made = (...ranges: readonly Range[]) =>
    append(new KvCache({ heads, headDim, valueDim, type: 'float16' }), ranges);

  /** Each cache is as one that was filled with the same rows at once. */
  const check = (...caches: readonly (readonly [KvCache, readonly Range[]])[]): void => {
    for (const [cache, ranges] of caches) {
      using plain = made(...ranges);
      expect([cache.length, cache.byteLength]).toEqual([plain.length, plain.byteLength]);
      expectSameBits(cache.attendSync(query), plain.attendSync(query));
    }
  };

  test('a page that is let go leaves the one behind it', () => {
    const cache = made([0, 100]);
    const fork = cache.fork();
    // The first page is copied; the second lies behind the one that the fork keeps.
    append(cache, [[100, 256]]);
    fork.dispose();
    check([cache, [[0, 256]]]);
    cache.dispose();
  });

  test('forks, truncations and new rows', async () => {
    const cache = made([0, 130]);
    const fork = cache.fork();
    // Both take new pages, and the first of them a copy.
    append(cache, [[130, 700]]);
    append(fork, [[400, 1000]]);
    check(
      [cache, [[0, 700]]],
      [
        fork,
        [
          [0, 130],
          [400, 1000],
        ],
      ],
    );
    // Pages whose neighbours are gone.
    cache.truncate(300);
    const grandchild = fork.fork();
    fork.truncate(129);
    check(
      [cache, [[0, 300]]],
      [fork, [[0, 129]]],
      [
        grandchild,
        [
          [0, 130],
          [400, 1000],
        ],
      ],
    );
    append(cache, [[700, 1100]]);
    append(fork, [[0, 500]]);
    check(
      [
        cache,
        [
          [0, 300],
          [700, 1100],
        ],
      ],
      [
        fork,
        [
          [0, 129],
          [0, 500],
        ],
      ],
      [
        grandchild,
        [
          [0, 130],
          [400, 1000],
        ],
      ],
    );
    // A call holds pages that their cache has let go.
    const wanted = grandchild.attendSync(query);
    const call = grandchild.attend(query);
    grandchild.dispose();
    cache.truncate(0);
    append(cache, [[0, 1100]]);
    expectSameBits(await call, wanted);
    fork.dispose();
    check([cache, [[0, 1100]]]);
    cache.dispose();
  });
});
