/** Calls by the ten thousand and caches by the thousand: what they leave behind. Needs --expose-gc. */
import { attendBatch, attention, attentionSync, info, KvCache, matmul, type Tensor, zeros } from '../../lib';
import { entries } from '../entries';
import { collect, type Growth, growthOver, settled } from './growth';
import { journal } from './journal';

// A sanitizer makes everything ten times slower.
const share = info().build.sanitizers === '' ? 1 : 10;

/** What grows by more than it should shows after so many rounds. */
type Rounds = Readonly<Record<string, { readonly count: number; readonly round: () => unknown }>>;

const small: Rounds = Object.fromEntries(
  entries.map(({ name, tensors, call }) => [
    `${name} (${Object.keys(tensors)[0]})`,
    { count: 10_000, round: () => call(tensors) },
  ]),
);

// 256 KiB each.
const rows = zeros([1, 1, 1024, 64]);
const kept = new KvCache({ heads: 1, headDim: 64 });
kept.append(rows, rows);
const large: Rounds = Object.fromEntries(
  Object.entries({
    'attention, large': () => attention(rows, rows, rows),
    'attentionSync, large': () => attentionSync(rows, rows, rows),
    'matmul, large': () => matmul(rows, rows, { transposeB: true }),
    'attend, large': () => kept.attend(rows),
    'attendBatch, large': () => attendBatch([1, 2].map(() => ({ cache: kept, query: rows }))),
    'many at once, large': () => Promise.all([1, 2, 3, 4].map((threads) => kept.attend(rows, { threads }))),
  }).map(([name, round]) => [name, { count: 500, round }]),
);

/** A cache that has had 2 MiB of pages, half of that in 16 bits, and all that can happen to one. */
function grown(type: 'float32' | 'bfloat16'): KvCache {
  const cache = new KvCache({ heads: 8, headDim: 32, type });
  const source = zeros([1, 8, 300, 32]);
  cache.append(source, source);
  const fork = cache.fork();
  cache.append(source, source);
  fork.append(source, source);
  cache.truncate(100);
  cache.append(source, source);
  fork.dispose();
  return cache;
}
/** A cache whose pages are too small to be mapped. */
function tiny(): KvCache {
  const cache = new KvCache({ heads: 1, headDim: 16 });
  const source = zeros([1, 1, 1000, 16]);
  cache.append(source, source);
  return cache;
}

const query = zeros([1, 8, 1, 32]);
const one = zeros([1, 1, 1, 64]);

const caches: Rounds = {
  'caches, disposed': { count: 1000, round: () => grown('float32').dispose() },
  'caches of small pages, disposed': { count: 2000, round: () => tiny().dispose() },
  'caches, disposed with a call in flight': {
    count: 1000,
    round: () => {
      using cache = grown('bfloat16');
      return cache.attend(query);
    },
  },
  'caches, dropped': { count: 1000, round: () => void grown('bfloat16') },
  'forks, dropped': { count: 5000, round: () => void kept.fork() },
  'forks that wrote, dropped': {
    count: 2000,
    round: () => {
      const fork = kept.fork();
      fork.truncate(1000);
      fork.append(one, one);
    },
  },
};
/** What became of a cache of 256 MiB, in bytes. */
export interface Filled {
  readonly byteLength: number;
  /** By how much the process grew when the cache was filled. */
  readonly grew: number;
  /** By how much it shrank in each step after that. */
  readonly shrank: readonly number[];
}

/** Fills a cache of about 256 MiB, then takes the steps that ought to give its memory back. */
async function givenBack(
  shape: { heads: number; headDim: number; type?: Tensor['type'] },
  steps: readonly ((held: { cache?: KvCache; fork?: KvCache }) => unknown)[],
): Promise<Filled> {
  const held: { cache?: KvCache; fork?: KvCache } = { cache: new KvCache(shape) };
  const source = zeros([1, shape.heads, 1024, shape.headDim]);
  let before = (await settled(50)).rss;
  const start = before;
  // Its own scope: nothing but `held` may hold the cache.
  const byteLength = (() => {
    const { cache } = held as { cache: KvCache };
    while (cache.byteLength < 2 ** 28 / share) cache.append(source, source);
    return cache.byteLength;
  })();
  before = (await settled(50)).rss;
  const grew = before - start;
  const shrank: number[] = [];
  for (const step of steps) {
    step(held);
    const after = (await settled(50)).rss;
    shrank.push(before - after);
    before = after;
  }
  return { byteLength, grew, shrank };
}

async function main(): Promise<void> {
  const growth: Record<string, Growth> = {};
  for (const [name, { count, round }] of Object.entries({ ...small, ...large, ...caches })) {
    journal(name);
    growth[name] = await growthOver(Math.ceil(count / 10 / share), count / share, round);
  }
  journal('giving back');
  collect();
  const dispose = [({ cache }: { cache?: KvCache }) => cache?.dispose()];
  const filled = {
    'pages of 64 KiB': await givenBack({ heads: 2, headDim: 32 }, dispose),
    'pages of 1 MiB': await givenBack({ heads: 8, headDim: 128 }, dispose),
    'pages of 1 MiB, again': await givenBack({ heads: 8, headDim: 128 }, dispose),
    'pages of 4 MiB': await givenBack({ heads: 32, headDim: 128 }, dispose),
    'pages of an odd size': await givenBack({ heads: 3, headDim: 75, type: 'float16' }, dispose),
    dropped: await givenBack({ heads: 8, headDim: 128 }, [(held) => delete held.cache]),
    'shared with a fork': await givenBack({ heads: 8, headDim: 128 }, [
      (held) => {
        held.fork = held.cache?.fork();
        held.cache?.dispose();
      },
      ({ fork }) => fork?.dispose(),
    ]),
    'truncated to a half, then disposed': await givenBack({ heads: 8, headDim: 128 }, [
      ({ cache }) => cache?.truncate(cache.length / 2),
      ({ cache }) => cache?.dispose(),
    ]),
  };
  console.log(JSON.stringify({ growth, filled }));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
