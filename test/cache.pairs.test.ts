import { attendBatch, attendBatchSync, type DataType, KvCache } from '../lib';
import type { Tensor } from '../lib/tensor';
import {
  additiveMask,
  boolMask,
  filled,
  guarded,
  hurtful,
  inputDims,
  normal,
  normalInputs,
  slice,
  swapLayout,
  types,
} from './data';
import { expectAttention } from './expectation';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { pairwise } from './pairs';
import type { AttentionMeaning } from './problem';
import { isaRows, once } from './rows';
import { compare } from './tolerance';

// What a cache answers, held against the float64 reference over the rows it was given: every value of every option with
// every value of every other. The cache is filled in uneven portions, so that pages are begun, filled and crossed.

const rows = pairwise({
  // Around a page (128) and a split (1024), and few enough for one short tile.
  length: [5, 128, 131, 1025, 1300],
  queries: [1, 2, 4, 5, 90],
  sizes: [
    [24, 40],
    [64, 64],
    [17, 9],
    [1, 128],
  ] as const,
  heads: [
    [2, 2],
    [4, 2],
    [5, 1],
  ] as const,
  cacheType: types,
  appendType: types,
  queryType: types,
  outType: ['of the query', ...types] as const,
  layout: ['bhld', 'blhd'] as const,
  data: ['normal', 'one huge logit', 'falling logits'],
  causal: [undefined, true, false],
  queryOffset: ['no', 'before', 'inside'],
  window: ['no', 'left', 'right', 'both'],
  mask: ['no', 'bool over keys', 'bool over all', 'additive over rows', 'additive over all'],
  softcap: [undefined, 3],
  sinks: ['no', 'some'],
  scale: [undefined, 0.2],
  threads: [1, 2],
});

type Row = (typeof rows)[number];

/** The tensor as a cache of `type` keeps it. */
function stored(source: Tensor, type: DataType): Tensor {
  const values = toFloat64(source);
  return filled(source.dims, type, (i) => values[i]);
}

function prepare(row: Row) {
  const { length, queries, layout } = row;
  const [heads, kvHeads] = row.heads;
  const [headDim, valueDim] = row.sizes;
  const shape = { heads, kvHeads, queries, keys: length, headDim, valueDim };
  const make = row.data === 'normal' ? normalInputs : hurtful[row.data];
  const { k, v } = make(shape, 91, row.appendType);
  const q = stored(make(shape, 91).q, row.queryType);
  const [near, wide] = [2, Math.ceil(length / 2)];
  const options: AttentionMeaning & { causal?: boolean } = {
    ...(row.causal !== undefined && { causal: row.causal }),
    ...(row.queryOffset === 'before' && { queryOffset: -3 }),
    ...(row.queryOffset === 'inside' && { queryOffset: Math.floor(length / 3) }),
    ...(row.window === 'left' && { window: [near, Infinity] as const }),
    ...(row.window === 'right' && { window: [Infinity, near] as const }),
    ...(row.window === 'both' && { window: [wide, near] as const }),
    ...(row.mask === 'bool over keys' && { mask: boolMask([1, length], 92, 0.8) }),
    ...(row.mask === 'bool over all' && { mask: boolMask([1, heads, queries, length], 93) }),
    ...(row.mask === 'additive over rows' && { mask: additiveMask([queries, length], 94) }),
    ...(row.mask === 'additive over all' && { mask: additiveMask([heads, queries, length], 95) }),
    ...(row.softcap !== undefined && { softcap: row.softcap }),
    ...(row.sinks === 'some' && { sinks: Float32Array.of(2, -3, 9, 0, -Infinity).subarray(0, heads) }),
    ...(row.scale !== undefined && { scale: row.scale }),
    layout,
  };
  const turn = (tensor: Tensor) => (layout === 'bhld' ? tensor : swapLayout(tensor));
  const query = turn(q);
  const cache = new KvCache({ heads: kvHeads, headDim, valueDim, type: row.cacheType });
  for (let start = 0, portion = 1; start < length; start += portion, portion = (portion * 3) % 200) {
    const end = Math.min(start + portion, length);
    cache.append(turn(slice(k, 2, start, end)), turn(slice(v, 2, start, end)), { layout });
  }
  const kept = { k: turn(stored(k, row.cacheType)), v: turn(stored(v, row.cacheType)) };
  const expected = expectAttention(query, kept.k, kept.v, { causal: true, ...options });
  const outType = row.outType === 'of the query' ? row.queryType : row.outType;
  return { cache, query, options, expected, outType };
}

describe.each(rows.map((row) => [JSON.stringify(row), row] as const))('%s', (_name, row) => {
  const prepared = once(() => prepare(row));
  afterAll(() => prepared().cache.dispose());

  test.each(isaRows('full'))('%s', async (isa) => {
    const { cache, query, options, expected, outType } = prepared();
    const how = { ...options, isa, threads: row.threads };
    const out = guarded(expected.output.dims, outType);
    const { output, lse } = cache.attendWithLseSync(query, { ...how, out: out.tensor });
    out.check();
    expect(output.data).toBe(out.tensor.data);
    compare(output, expected.output, 'output');
    compare(lse, expected.lse, 'lse');

    const later = guarded(expected.output.dims, outType);
    const asynchronous = await cache.attendWithLse(query, { ...how, out: later.tensor });
    later.check();
    expectSameBits(asynchronous.output, output);
    expectSameBits(asynchronous.lse, lse);
  });
});

describe('attendBatch', () => {
  const lengths = [1, 128, 1030, 400, 2100];
  const shape = { heads: 6, kvHeads: 2, headDim: 32, valueDim: 24 };

  test.each([...types])('%s caches: each sequence as the reference has it, with every option', async (type) => {
    const options = { causal: true, window: [700, 0] as const, softcap: 4, scale: 0.3 };
    const sinks = Float32Array.of(1, -1, 0, 3, -Infinity, 2);
    const items = lengths.map((keys, index) => {
      const { q, k, v } = normalInputs({ ...shape, queries: 1 + (index % 3), keys }, 30 + index, type);
      const cache = new KvCache({ heads: 2, headDim: 32, valueDim: 24, type });
      cache.append(k, v);
      return { cache, query: q, expected: expectAttention(q, k, v, { ...options, sinks }) };
    });
    for (const isa of isaRows('full')) {
      const wanted = attendBatchSync(items, { ...options, sinks, isa, threads: 1 });
      wanted.forEach((output, index) => {
        compare(output, items[index].expected.output, `sequence ${index}, ${isa}`);
      });
      const found = await attendBatch(items, { ...options, sinks, isa, threads: 2 });
      found.forEach((output, index) => {
        expectSameBits(output, wanted[index]);
      });
    }
    for (const { cache } of items) cache.dispose();
  });

  test('layout blhd gives the same bits', () => {
    const items = lengths.map((keys, index) => {
      const { q, k, v } = normalInputs({ ...shape, queries: 2, keys }, 50 + index);
      const cache = new KvCache({ heads: 2, headDim: 32, valueDim: 24 });
      cache.append(k, v);
      return { cache, query: q };
    });
    const turned = items.map(({ cache, query }) => ({ cache, query: swapLayout(query) }));
    const wanted = attendBatchSync(items);
    attendBatchSync(turned, { layout: 'blhd' }).forEach((output, index) => {
      expectSameBits(swapLayout(output), wanted[index]);
    });
    for (const { cache } of items) cache.dispose();
  });
});

test('an empty cache gives zeros, and lse −∞ or that of the sinks', () => {
  using cache = new KvCache({ heads: 1, headDim: 4 });
  const [q, k, v] = Object.values(inputDims({ heads: 2, kvHeads: 1, queries: 3, keys: 0, headDim: 4 })).map((dims) =>
    normal(dims, 7),
  );
  for (const options of [{}, { sinks: Float32Array.of(1, -2) }]) {
    const expected = expectAttention(q, k, v, { causal: true, ...options });
    const { output, lse } = cache.attendWithLseSync(q, options);
    compare(output, expected.output, 'output');
    compare(lse, expected.lse, 'lse');
  }
});
