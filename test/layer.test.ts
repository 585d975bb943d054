/** A layer of exact attention, held against its float64 form and against itself. */
import { type AttentionWeights, attentionLayer, type KvCache, type LayerOptions, ropeFrequencies } from '../lib';
import { filled, guarded, normal, types } from './data';
import { expectSameBits } from './full-run';
import {
  checkSplits,
  itemOf,
  joined,
  type LayerShape,
  layerBiases,
  layerWeights,
  norm,
  padded,
  rowsOf,
} from './layer-data';
import { expectLayer, type LayerMeaning } from './reference-layer';
import { isaRows, testRows } from './rows';
import { compare } from './tolerance';

interface Case {
  readonly shape?: LayerShape;
  readonly more?: (weights: AttentionWeights) => Partial<AttentionWeights>;
  readonly options?: LayerOptions & Pick<LayerMeaning, 'sinks'>;
  readonly batch?: number;
  readonly n?: number;
  readonly keyLengths?: readonly number[];
}

const rope = { frequencies: ropeFrequencies(8) };
const norms = (gainOrder?: 'before-rotation' | 'after-rotation') => ({
  qkNorm: { query: norm(8, 21, gainOrder), key: norm(8, 22, gainOrder) },
});

const cases: Readonly<Record<string, Case>> = {
  'multi-head': { n: 63 },
  'one position': { n: 1 },
  'grouped queries': { shape: { heads: 6, kvHeads: 2 }, n: 113 },
  'one key/value head': { shape: { heads: 5, kvHeads: 1 } },
  'values of another size, into another width': { shape: { valueDim: 5, outDim: 13, kvHeads: 2 } },
  'odd extents': { shape: { modelDim: 7, heads: 3, headDim: 5, valueDim: 3, outDim: 1 } },
  'every bias': { shape: { kvHeads: 2 }, more: layerBiases },
  'some biases': {
    more: (weights) => {
      const { keyBias, outputBias } = layerBiases(weights);
      return { keyBias, outputBias };
    },
  },
  'a scale': { more: () => ({ scale: -0.7 }) },
  'rotation of halves': { shape: { kvHeads: 2 }, more: () => ({ rope }) },
  'rotation of neighbours': { more: () => ({ rope: { ...rope, pairing: 'interleaved' } }) },
  'rotation from a position on': { more: () => ({ rope: { ...rope, firstPosition: 1000 } }) },
  'rotation and biases': { more: (weights) => ({ rope, ...layerBiases(weights) }) },
  'norms without gain': { more: () => ({ qkNorm: { query: {}, key: {} } }) },
  'norm of keys alone': { more: () => ({ rope, qkNorm: { key: norm(8, 23) } }) },
  'norms, gain, rotation': { shape: { kvHeads: 2 }, more: () => ({ rope, ...norms('before-rotation') }) },
  'norms, rotation, gain': { more: () => ({ rope, ...norms('after-rotation') }) },
  'both directions': { options: { causal: false }, more: () => ({ rope }) },
  'a window': { options: { window: [5, 0] }, n: 40 },
  'a soft cap': { options: { softcap: 0.8 } },
  sinks: { options: { sinks: Float32Array.of(1, -Infinity, 0, 3) } },
  padding: { batch: 4, n: 17, keyLengths: [17, 3, 0, 16], more: (weights) => ({ rope, ...layerBiases(weights) }) },
  'padding in both directions': { batch: 3, keyLengths: [1, 9, 5], options: { causal: false } },
};

/** The parts of a case. */
function setUp({ shape, more, options, batch = 2, n = 9, keyLengths }: Case) {
  const plain = layerWeights(shape);
  const weights: AttentionWeights = { ...plain, ...more?.(plain) };
  const random = normal([batch, n, plain.query.dims[0]], 31);
  const hidden = keyLengths === undefined ? random : padded(random, keyLengths);
  return {
    weights,
    layer: attentionLayer(weights, options),
    hidden,
    meaning: { ...options, keyLengths } as LayerMeaning,
  };
}

describe('without caches', () => {
  testRows(isaRows('full'), cases, (given) => {
    const { weights, layer, hidden, meaning } = setUp(given);
    const expected = expectLayer(hidden, weights, meaning);
    return (isa) => {
      const out = guarded(expected.dims, 'float32');
      const found = layer.forwardSync(hidden, { isa, out: out.tensor, keyLengths: given.keyLengths });
      out.check();
      expect(found).toBe(out.tensor);
      compare(found, expected);
    };
  });

  describe.each(types)('%s hidden states', (type) => {
    test.each(types)('%s weights', (weightType) => {
      for (const withBias of [false, true]) {
        const plain = layerWeights({ kvHeads: 2 }, 3, weightType);
        const weights = { ...plain, ...(withBias ? layerBiases(plain, 4, weightType) : {}) };
        const hidden = normal([2, 11, 20], 5, type);
        const found = attentionLayer(weights).forwardSync(hidden);
        expect(found.type).toBe(type);
        compare(found, expectLayer(hidden, weights));
      }
    });
  });

  test('weights of different element types', () => {
    const weights = {
      ...layerWeights(),
      key: layerWeights({}, 1, 'bfloat16').key,
      value: layerWeights({}, 1, 'float16').value,
    };
    const hidden = normal([1, 9, 20], 5);
    compare(attentionLayer(weights).forwardSync(hidden), expectLayer(hidden, weights));
  });

  test.each(types)('an output of %s, whatever the hidden states are', (type) => {
    const weights = { ...layerWeights(), ...layerBiases(layerWeights()) };
    const hidden = normal([2, 5, 20], 6, 'float16');
    const out = guarded([2, 5, 20], type);
    attentionLayer(weights).forwardSync(hidden, { out: out.tensor });
    out.check();
    compare(out.tensor, expectLayer(hidden, weights));
  });

  test('weights of queries, keys and values may change once the layer is there', () => {
    const weights = { ...layerWeights(), ...layerBiases(layerWeights()) };
    const layer = attentionLayer(weights);
    const hidden = normal([1, 9, 20], 5);
    const wanted = layer.forwardSync(hidden);
    const { query, key, value, queryBias, keyBias, valueBias, outputBias } = weights;
    for (const { data } of [query, key, value, queryBias, keyBias, valueBias, outputBias])
      (data as Float32Array).fill(NaN);
    expectSameBits(layer.forwardSync(hidden), wanted);
  });

  test.each([
    [0, 5],
    [3, 0],
    [0, 0],
  ])('a batch of %i with %i positions', async (batch, n) => {
    const layer = attentionLayer(layerWeights());
    const hidden = normal([batch, n, 20], 1);
    for (const caches of [undefined, Array.from({ length: batch }, () => layer.createCache())]) {
      expect(layer.forwardSync(hidden, { caches }).dims).toEqual([batch, n, 20]);
      expect((await layer.forward(hidden, { caches })).dims).toEqual([batch, n, 20]);
    }
  });
});

describe('with caches', () => {
  const causal = Object.entries(cases).filter(([, { options }]) => options?.causal !== false);

  test.each(causal)('%s: a prompt and then steps, at every split', (_name, given) => {
    const { weights, layer, hidden, meaning } = setUp({ ...given, batch: 1, n: 9, keyLengths: undefined });
    checkSplits(layer, hidden, expectLayer(hidden, weights, { ...meaning, keyLengths: undefined }));
  });

  test.each(isaRows('full'))('a long prompt in parts, on %s', (isa) => {
    const { weights, layer, hidden } = setUp({ ...cases['norms, gain, rotation'], batch: 1, n: 203 });
    using cache = layer.createCache();
    const parts = [
      [0, 63],
      [63, 64],
      [64, 131],
      [131, 203],
    ].map(([from, to]) => layer.forwardSync(rowsOf(hidden, from, to), { caches: [cache], isa }));
    compare(joined(parts), expectLayer(hidden, weights));
  });

  test.each(types)('a cache of %s, as the cache by itself gives it', (type) => {
    const weights = layerWeights({ kvHeads: 2 });
    const hidden = normal([1, 30, 20], 7);
    using cache = attentionLayer(weights).createCache({ type, capacity: 30 });
    expect([cache.type, cache.capacity, cache.heads, cache.headDim, cache.valueDim]).toEqual([type, 30, 2, 8, 8]);
    const found = attentionLayer(weights).forwardSync(hidden, { caches: [cache] });
    const exact = attentionLayer(weights).forwardSync(hidden);
    const [eps, wanted] = [{ float32: 1e-6, float16: 4e-3, bfloat16: 3e-2 }[type], exact.data as Float32Array];
    const worst = (found.data as Float32Array).reduce(
      (most, value, i) => Math.max(most, Math.abs(value - wanted[i])),
      0,
    );
    expect(worst).toBeLessThan(eps);
    // What is rounded to fewer digits must show.
    if (type !== 'float32') expect(worst).toBeGreaterThan(eps / 1000);
  });

  test('prompts of different lengths in one padded batch, then steps of all', () => {
    const { layer, hidden } = setUp({ ...cases.padding, batch: 3, n: 17, keyLengths: undefined });
    const lengths = [17, 4, 0];
    const caches = lengths.map(() => layer.createCache());
    const prompt = layer.forwardSync(padded(hidden, lengths), { caches, keyLengths: lengths });
    expect(caches.map(({ length }) => length)).toEqual(lengths);
    const next = normal([3, 1, 20], 8);
    const stepped = layer.stepSync(next, caches);
    for (const [item, length] of lengths.entries()) {
      using alone = layer.createCache();
      const own = rowsOf(itemOf(hidden, item), 0, length);
      expectSameBits(rowsOf(itemOf(prompt, item), 0, length), layer.forwardSync(own, { caches: [alone] }));
      expect(Array.from(rowsOf(itemOf(prompt, item), length, 17).data).every((value) => value === 0)).toBe(true);
      expectSameBits(itemOf(stepped, item), layer.stepSync(itemOf(next, item), [alone]));
    }
    for (const cache of caches) cache.dispose();
  });
});

describe('the same bits', () => {
  const { layer, hidden } = setUp({ ...cases['rotation and biases'], batch: 5, n: 150 });
  const lengths = [150, 1, 128, 0, 77];

  test('of a batch and of each item alone, on any number of threads', async () => {
    const all = layer.forwardSync(hidden, { threads: 1 });
    for (let item = 0; item < 5; item++) expectSameBits(itemOf(all, item), layer.forwardSync(itemOf(hidden, item)));
    for (const threads of [1, 2, 3]) {
      expectSameBits(layer.forwardSync(hidden, { threads }), all);
      expectSameBits(await layer.forward(hidden, { threads }), all);
    }
    const some = await layer.forward(padded(hidden, lengths), { keyLengths: lengths });
    for (const [item, length] of lengths.entries()) {
      const own = rowsOf(itemOf(hidden, item), 0, length);
      expectSameBits(rowsOf(itemOf(some, item), 0, length), layer.forwardSync(own));
    }
  });

  test('of steps in a batch and alone, synchronous and not', async () => {
    const prompt = (item: number): KvCache => {
      const cache = layer.createCache({ type: 'bfloat16' });
      layer.forwardSync(rowsOf(itemOf(hidden, item), 0, lengths[item]), { caches: [cache] });
      return cache;
    };
    const [together, alone] = [0, 1].map(() => lengths.map((_, item) => prompt(item)));
    for (let i = 0; i < 3; i++) {
      const next = normal([5, 1, 20], 40 + i);
      const wanted = alone.map((cache, item) => layer.stepSync(itemOf(next, item), [cache], { threads: 1 }));
      const found = await layer.step(next, together, { threads: 1 + i });
      for (const [item, each] of wanted.entries()) expectSameBits(itemOf(found, item), each);
    }
    for (const cache of [...together, ...alone]) cache.dispose();
  });

  test('of hidden states at any place in memory', () => {
    const { data } = hidden;
    const moved = filled(hidden.dims, 'float32', (i) => data[i]);
    expectSameBits(layer.forwardSync(moved), layer.forwardSync(hidden));
  });
});
