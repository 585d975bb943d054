/** Calls by the ten thousand and caches by the thousand: what they leave behind. Needs --expose-gc. */
import {
  attendBatch,
  attention,
  attentionSync,
  fitLrkv,
  info,
  KvCache,
  LrkvCache,
  lrkvLayer,
  matmul,
  type Tensor,
  zeros,
} from '../../lib';
import { normal } from '../data';
import { entries } from '../entries';
import { layerWeights, lrkvWeights } from '../layer-data';
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

/** The same of LRKV, with keys in two parts or whole. */
function grownLrkv(ropeMode: 'none' | 'exact'): LrkvCache {
  const up = zeros([8 * 8, 32]);
  const rope = { frequencies: new Float64Array(16).fill(0.1) };
  const cache = new LrkvCache({ heads: 8, headDim: 32, keyUp: up, valueUp: up, rope, ropeMode, keyNorm: {} });
  const [base, latent] = [zeros([1, 300, 32]), zeros([1, 300, 64])];
  const source = { keyBase: base, keyLatent: latent, valueBase: base, valueLatent: latent };
  cache.append(source);
  const fork = cache.fork();
  cache.append(source);
  fork.append(source);
  cache.truncate(100);
  cache.append(source);
  fork.dispose();
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
  'LRKV caches, disposed': { count: 1000, round: () => grownLrkv('exact').dispose() },
  'LRKV caches, disposed with a call in flight': {
    count: 1000,
    round: () => {
      using cache = grownLrkv('none');
      return cache.attend(query);
    },
  },
  'LRKV caches, dropped': { count: 1000, round: () => void grownLrkv('none') },
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

// Pages of 384 KiB a sequence of 400 positions.
const lrkv = lrkvWeights({ modelDim: 64, heads: 8, headDim: 32, keyRank: 8, valueRank: 8 });
const prompt = normal([1, 400, 64], 1);
const token = normal([1, 1, 64], 2);
const trained = layerWeights({ modelDim: 64, heads: 4, headDim: 16 });
const calibration = normal([300, 64], 3);

/** What a call that was aborted in its midst, or before, is rejected with; a machine may also have been faster. */
async function aborted(call: (signal: AbortSignal) => Promise<unknown>): Promise<void> {
  const controller = new AbortController();
  const settling = Promise.allSettled([call(controller.signal)]);
  setImmediate(() => controller.abort());
  await settling;
}

const layers: Rounds = {
  'layers whose caches are disposed': {
    count: 250,
    round: async () => {
      const layer = lrkvLayer(lrkv);
      using cache = layer.createCache();
      await layer.forward(prompt, { caches: [cache] });
      await layer.step(token, [cache]);
    },
  },
  'layers whose calls are aborted, their caches dropped': {
    count: 250,
    round: async () => {
      const layer = lrkvLayer(lrkv);
      const caches = [layer.createCache()];
      await Promise.all([
        layer.forward(prompt, { caches }),
        aborted((signal) => layer.forward(prompt, { caches, signal })),
      ]);
    },
  },
  fitLrkv: { count: 200, round: () => fitLrkv(trained, { budget: 0.75, calibration, iterations: 2 }) },
  'fitLrkv, aborted': {
    count: 200,
    round: () => aborted((signal) => fitLrkv(trained, { budget: 0.75, calibration, iterations: 2, signal })),
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
  steps: readonly ((held: Held<KvCache>) => unknown)[],
): Promise<Filled> {
  const source = zeros([1, shape.heads, 1024, shape.headDim]);
  return await givenBackBy(
    () => new KvCache(shape),
    (cache) => cache.append(source, source),
    steps,
  );
}

interface Held<Cache> {
  cache?: Cache;
  fork?: Cache;
}

/** The same of a cache of any kind and what appends to it. */
async function givenBackBy<Cache extends KvCache | LrkvCache>(
  make: () => Cache,
  append: (cache: Cache) => void,
  steps: readonly ((held: Held<Cache>) => unknown)[],
): Promise<Filled> {
  const held: Held<Cache> = { cache: make() };
  let before = (await settled(50)).rss;
  const start = before;
  // Its own scope: nothing but `held` may hold the cache.
  const byteLength = (() => {
    const { cache } = held as { cache: Cache };
    while (cache.byteLength < 2 ** 28 / share) append(cache);
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
  for (const [name, { count, round }] of Object.entries({ ...small, ...large, ...caches, ...layers })) {
    journal(name);
    growth[name] = await growthOver(Math.ceil(count / 10 / share), count / share, round);
  }
  journal('giving back');
  collect();
  const dispose = [({ cache }: { cache?: KvCache }) => cache?.dispose()];
  const [base, latent, up] = [zeros([1, 1024, 128]), zeros([1, 1024, 8 * 40]), zeros([8 * 40, 128])];
  const half = [
    ({ cache }: { cache?: KvCache }) => cache?.truncate(cache.length / 2),
    ({ cache }: { cache?: KvCache }) => cache?.dispose(),
  ];
  // All pages in one mapping.
  const all = zeros([1, 8, Math.ceil((32 * 1024) / share), 128]);
  const filled = {
    'pages of 64 KiB': await givenBack({ heads: 2, headDim: 32 }, dispose),
    'pages of 1 MiB': await givenBack({ heads: 8, headDim: 128 }, dispose),
    'pages of 1 MiB, again': await givenBack({ heads: 8, headDim: 128 }, dispose),
    'pages of 4 MiB': await givenBack({ heads: 32, headDim: 128 }, dispose),
    'pages of an odd size': await givenBack({ heads: 3, headDim: 75, type: 'float16' }, dispose),
    'pages of an odd size, truncated, then disposed': await givenBack({ heads: 3, headDim: 75, type: 'float16' }, half),
    dropped: await givenBack({ heads: 8, headDim: 128 }, [(held) => delete held.cache]),
    'shared with a fork': await givenBack({ heads: 8, headDim: 128 }, [
      (held) => {
        held.fork = held.cache?.fork();
        held.cache?.dispose();
      },
      ({ fork }) => fork?.dispose(),
    ]),
    'pages of LRKV': await givenBackBy(
      () => new LrkvCache({ heads: 8, headDim: 128, keyUp: up, valueUp: up }),
      (cache) => cache.append({ keyBase: base, keyLatent: latent, valueBase: base, valueLatent: latent }),
      [({ cache }) => cache?.dispose()],
    ),
    'truncated to a half, then disposed': await givenBack({ heads: 8, headDim: 128 }, half),
    'appended at once, truncated to a half, then disposed': await givenBackBy(
      () => new KvCache({ heads: 8, headDim: 128 }),
      (cache) => cache.append(all, all),
      half,
    ),
  };
  console.log(JSON.stringify({ growth, filled }));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
