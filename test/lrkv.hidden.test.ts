/** What `appendHidden` appends: the rows that its projections make of hidden states. */
import { type LrkvProjections, type LrkvRows, matmulSync, type Tensor } from '../lib';
import { normal, slice, types } from './data';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { lrkvCacheOf, lrkvProjections } from './lrkv-small';

const biases = {
  keyBaseBias: normal([8], 61),
  keyDownBias: normal([8], 62, 'bfloat16'),
  valueBaseBias: normal([6], 63),
  valueDownBias: normal([4], 64, 'float16'),
} as const;

const projectionsOf: Readonly<Record<string, LrkvProjections>> = {
  'no biases': lrkvProjections,
  'all biases': { ...lrkvProjections, ...biases },
  'biases of the latents': {
    ...lrkvProjections,
    keyDownBias: biases.keyDownBias,
    valueDownBias: biases.valueDownBias,
  },
};

/** x·W + b in float32, the sum rounded after the product. */
function rowsOf(hidden: Tensor, projections: LrkvProjections): LrkvRows {
  const row = (name: 'keyBase' | 'keyDown' | 'valueBase' | 'valueDown'): Tensor => {
    const [, n, modelDim] = hidden.dims;
    const columns = projections[name].dims[1];
    const data = new Float32Array(n * columns);
    const out = { data, dims: [n, columns], type: 'float32' } as const;
    matmulSync({ ...hidden, dims: [n, modelDim] }, projections[name], { out });
    const bias = projections[`${name}Bias`];
    const added = bias && toFloat64(bias);
    return { ...out, data: added ? data.map((value, i) => value + added[i % columns]) : data, dims: [1, n, columns] };
  };
  return {
    ...{ keyBase: row('keyBase'), keyLatent: row('keyDown') },
    ...{ valueBase: row('valueBase'), valueLatent: row('valueDown') },
  };
}

const q = normal([1, 4, 5, 8], 65);

describe.each(Object.entries(projectionsOf))('%s', (_name, projections) => {
  test.each(types)('%s hidden states: the rows that products and sums give', async (type) => {
    for (const cacheType of types) {
      const hidden = normal([1, 203, 10], 66, type);
      using wanted = lrkvCacheOf({ type: cacheType });
      wanted.append(rowsOf(hidden, projections));
      using sync = lrkvCacheOf({ type: cacheType });
      sync.appendHiddenSync(hidden, projections);
      using later = lrkvCacheOf({ type: cacheType });
      await later.appendHidden(hidden, projections, { threads: 2 });
      for (const cache of [sync, later]) {
        expect(cache.length).toBe(203);
        expectSameBits(cache.attendSync(q), wanted.attendSync(q));
      }
    }
  });

  test('in portions, the empty one among them', async () => {
    const hidden = normal([1, 140, 10], 67);
    using wanted = lrkvCacheOf();
    using cache = lrkvCacheOf();
    for (const [from, to] of [
      [0, 1],
      [1, 1],
      [1, 130],
      [130, 140],
    ]) {
      const portion = slice(hidden, 1, from, to);
      wanted.append(rowsOf(portion, projections));
      await cache.appendHidden(portion, projections);
      expect(cache.length).toBe(to);
    }
    expectSameBits(cache.attendSync(q), wanted.attendSync(q));
  });
});

test('a cache without bases or without latents', () => {
  const none = { keyBase: normal([10, 0], 1), valueBase: normal([10, 0], 1) };
  const projections = { ...lrkvProjections, ...none, keyBaseBias: normal([0], 1) };
  const hidden = normal([1, 9, 10], 68);
  using wanted = lrkvCacheOf({ keyBaseDim: 0, valueBaseDim: 0 });
  wanted.append(rowsOf(hidden, projections));
  using cache = lrkvCacheOf({ keyBaseDim: 0, valueBaseDim: 0 });
  cache.appendHiddenSync(hidden, projections);
  expectSameBits(cache.attendSync(q), wanted.attendSync(q));
});

test('biases are copied when the call is made', async () => {
  const hidden = normal([1, 50, 10], 69);
  const keyBaseBias = normal([8], 61);
  const projections = { ...lrkvProjections, ...biases, keyBaseBias };
  using wanted = lrkvCacheOf();
  wanted.appendHiddenSync(hidden, projections);
  using cache = lrkvCacheOf();
  const pending = cache.appendHidden(hidden, projections);
  (keyBaseBias.data as Float32Array).fill(NaN);
  await pending;
  expectSameBits(cache.attendSync(q), wanted.attendSync(q));
});
