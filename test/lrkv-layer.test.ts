/** A layer in LRKV's form, held against its float64 form and against the layer of the weights it stands for. */
import {
  type AttentionWeights,
  attentionLayer,
  type LayerOptions,
  type LrkvCache,
  type LrkvWeights,
  lrkvLayer,
  type Tensor,
} from '../lib';
import { guarded, normal, types } from './data';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import {
  checkSplits,
  itemOf,
  type LrkvLayerShape,
  layerWeights,
  lrkvBiases,
  lrkvWeights,
  norm,
  padded,
  rowsOf,
  signalOf,
} from './layer-data';
import type { LrkvFeatures } from './lrkv-run';
import { expectLayer, expectLrkvLayer, type LayerMeaning, numbers } from './reference-layer';
import { Faults, faultOf, type Refusal } from './refusal';
import { isaRows, testRows } from './rows';
import { compare } from './tolerance';
import { primitives } from './wrong-tensors';

// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
type Loose = (...args: any[]) => unknown;

interface Case {
  readonly shape?: LrkvLayerShape;
  readonly features?: LrkvFeatures;
  readonly more?: (weights: LrkvWeights) => Partial<LrkvWeights>;
  readonly options?: LayerOptions & Pick<LayerMeaning, 'sinks'>;
  readonly batch?: number;
  readonly n?: number;
  readonly keyLengths?: readonly number[];
}

const grouped = { heads: 6, kvHeads: 3, keyRank: 4, valueRank: 6 };

const cases: Readonly<Record<string, Case>> = {
  "the paper's form": { n: 63 },
  'grouped queries': { shape: grouped, n: 113 },
  'ranks of each head, some 0': { shape: { keyRank: [8, 0, 2, 5], valueRank: [0, 3, 8, 1] } },
  'no latents': { shape: { keyRank: 0, valueRank: 0 } },
  'no bases': { shape: { keyBaseDim: 0, valueBaseDim: 0 } },
  'other head sizes and gauges': { shape: { ...grouped, valueDim: 5, keyBaseDim: 12, valueBaseDim: 7, outDim: 9 } },
  'every bias': { shape: grouped, features: { keyGauge: 'free', valueGauge: 'free' }, more: lrkvBiases },
  'a scale': { more: () => ({ scale: 0.7 }) },
  'rope exact': { shape: grouped, features: { mode: 'exact', keyGauge: 'free' } },
  'rope exact, biases': { features: { mode: 'exact', pairing: 'interleaved', firstPosition: 500 }, more: lrkvBiases },
  'rope latent': { shape: grouped, features: { mode: 'latent', keyGauge: 'pairs', firstPosition: 3 } },
  'rope none': { shape: grouped, features: { mode: 'none' } },
  'rope paper': { shape: grouped, features: { mode: 'paper', pairing: 'interleaved' } },
  'rope intertwined': { shape: grouped, features: { mode: 'intertwined', keyGauge: 'pairs' } },
  'norms without rope': { features: { norm: 'after-rotation' } },
  'norms, gain, rope exact': { features: { mode: 'exact', norm: 'before-rotation' } },
  'norms, gain, rope latent': { features: { mode: 'latent', norm: 'before-rotation' } },
  'norms, rope paper': { features: { mode: 'paper', norm: 'plain' } },
  'both directions': { options: { causal: false }, features: { mode: 'exact' } },
  'window, soft cap, sinks': {
    options: { window: [5, 0], softcap: 0.8, sinks: Float32Array.of(1, -Infinity, 0, 3) },
    n: 40,
  },
  padding: { batch: 4, n: 17, keyLengths: [17, 3, 0, 16], features: { mode: 'exact' }, more: lrkvBiases },
};

/** The parts of a case. */
function setUp({ shape, features, more, options, batch = 2, n = 9, keyLengths }: Case) {
  const plain = lrkvWeights(shape, features);
  const weights: LrkvWeights = { ...plain, ...more?.(plain) };
  const random = normal([batch, n, plain.query.dims[0]], 31);
  const hidden = keyLengths === undefined ? random : padded(random, keyLengths);
  return { weights, layer: lrkvLayer(weights, options), hidden, meaning: { ...options, keyLengths } as LayerMeaning };
}

/** x · W_s A_h + x · U_h B_hᵀ of all heads as one matrix, and such a bias, in float64. */
function materialized(weights: LrkvWeights, side: 'key' | 'value') {
  const { kvHeads = weights.heads } = weights;
  const [base, down, up, gauge] = [
    weights[`${side}Base`],
    weights[`${side}Down`],
    weights[`${side}Up`],
    weights[`${side}Gauge`],
  ];
  const [upValues, gaugeValues] = [toFloat64(up), gauge && toFloat64(gauge)];
  const [baseDim, latentDim, dim] = [base.dims[1], down.dims[1], up.dims[1]];
  const times = (bases: Float64Array, latents: Float64Array, rows: number): Float64Array => {
    const result = new Float64Array(rows * kvHeads * dim);
    for (let r = 0; r < rows; r++) {
      let start = 0;
      for (let h = 0; h < kvHeads; h++) {
        const rank = weights[`${side}Ranks`][h];
        for (let c = 0; c < dim; c++) {
          let sum = 0;
          for (let i = 0; i < baseDim; i++) {
            const element = gaugeValues ? gaugeValues[(h * baseDim + i) * dim + c] : Number(i === c);
            sum += bases[r * baseDim + i] * element;
          }
          for (let i = start; i < start + rank; i++) sum += latents[r * latentDim + i] * upValues[i * dim + c];
          result[(r * kvHeads + h) * dim + c] = sum;
        }
        start += rank;
      }
    }
    return result;
  };
  const zeros = (count: number) => numbers(new Float64Array(count), [count]);
  const biases = [weights[`${side}BaseBias`] ?? zeros(baseDim), weights[`${side}DownBias`] ?? zeros(latentDim)];
  const rows = base.dims[0];
  return {
    weight: numbers(times(toFloat64(base), toFloat64(down), rows), [rows, kvHeads * dim]),
    bias: numbers(times(toFloat64(biases[0]), toFloat64(biases[1]), 1), [kvHeads * dim]),
  };
}

/** The weights of exact attention that LRKV's stand for. */
function ordinary(weights: LrkvWeights): AttentionWeights {
  const { query, output, queryBias, outputBias, heads, kvHeads, rope, qkNorm, scale } = weights;
  const [key, value] = [materialized(weights, 'key'), materialized(weights, 'value')];
  return {
    ...{ query, output, queryBias, outputBias, heads, kvHeads, rope, qkNorm, scale },
    ...{ key: key.weight, keyBias: key.bias, value: value.weight, valueBias: value.bias },
  };
}

/** The same in float32, as a layer takes them. */
function ordinary32(weights: LrkvWeights): AttentionWeights {
  const given = ordinary(weights);
  const rounded = ({ data, dims }: Tensor): Tensor => ({ data: Float32Array.from(data), dims, type: 'float32' });
  const { keyBias, valueBias, ...rest } = given;
  return {
    ...Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined)),
    ...{ key: rounded(given.key), value: rounded(given.value) },
    ...{ keyBias: keyBias && rounded(keyBias), valueBias: valueBias && rounded(valueBias) },
  } as AttentionWeights;
}

const largest = (a: Tensor, b: Tensor): number => {
  const [x, y] = [toFloat64(a), toFloat64(b)];
  return x.reduce((most, value, i) => Math.max(most, Math.abs(value - y[i])), 0);
};

describe('without caches', () => {
  testRows(isaRows('lrkv'), cases, (given) => {
    const { weights, layer, hidden, meaning } = setUp(given);
    const expected = expectLrkvLayer(hidden, weights, meaning);
    return (isa) => {
      const out = guarded(expected.dims, 'float32');
      const found = layer.forwardSync(hidden, { isa, out: out.tensor, keyLengths: given.keyLengths });
      out.check();
      expect(found).toBe(out.tensor);
      compare(found, expected);
    };
  });

  const whole = Object.entries(cases).filter(([, { features }]) => {
    const mode = features?.mode ?? 'exact';
    return mode === 'exact' || mode === 'intertwined';
  });

  test.each(whole)('%s: as the layer of the weights it stands for', (_name, given) => {
    const { weights, layer, hidden, meaning } = setUp(given);
    const found = layer.forwardSync(hidden, { keyLengths: given.keyLengths });
    const expected = expectLayer(hidden, ordinary(weights), meaning);
    compare(found, { ...expectLrkvLayer(hidden, weights, meaning), values: expected.values });
    const other = attentionLayer(ordinary32(weights), given.options).forwardSync(hidden, {
      keyLengths: given.keyLengths,
    });
    expect(largest(found, other)).toBeLessThan(2e-5);
  });

  test.each(types)('%s hidden states', (type) => {
    const { weights, layer } = setUp(cases['every bias']);
    const hidden = normal([2, 11, 20], 5, type);
    const found = layer.forwardSync(hidden);
    expect(found.type).toBe(type);
    compare(found, expectLrkvLayer(hidden, weights));
  });

  test('a gain of queries after the rotation goes over to the keys', () => {
    const plain = lrkvWeights({}, { mode: 'exact' });
    const hidden = normal([2, 30, 20], 5);
    for (const key of [norm(8, 2, 'after-rotation'), { epsilon: 1e-3 }]) {
      const weights = { ...plain, qkNorm: { query: norm(8, 1, 'after-rotation'), key } };
      const expected = expectLayer(hidden, ordinary(weights));
      compare(lrkvLayer(weights).forwardSync(hidden), expected);
    }
  });
});

describe('with caches', () => {
  const causal = Object.entries(cases).filter(([, { options }]) => options?.causal !== false);

  test.each(causal)('%s: a prompt and then steps, at every split', (_name, given) => {
    const { weights, layer, hidden, meaning } = setUp({ ...given, batch: 1, n: 9, keyLengths: undefined });
    checkSplits(layer, hidden, expectLrkvLayer(hidden, weights, { ...meaning, keyLengths: undefined }));
  });

  test('a cache as it is asked for', () => {
    const { layer } = setUp({ shape: grouped });
    using cache = layer.createCache({ type: 'bfloat16', capacity: 12 });
    expect([cache.type, cache.capacity, cache.heads, cache.headDim, cache.valueDim]).toEqual(['bfloat16', 12, 3, 8, 8]);
    expect(() => layer.forwardSync(normal([1, 13, 20], 1), { caches: [cache] })).toThrow(
      expect.objectContaining({ code: 'ERR_MEMORY', argument: 'caches[0]' }),
    );
    layer.forwardSync(normal([1, 12, 20], 1), { caches: [cache] });
    expect(cache.length).toBe(12);
  });

  test('the same bits of a batch and of each sequence alone', async () => {
    const { layer, hidden } = setUp({ ...cases['rope exact, biases'], batch: 4, n: 140 });
    const lengths = [140, 0, 128, 5];
    const [together, alone] = [0, 1].map(() => lengths.map(() => layer.createCache({ type: 'float16' })));
    const prompts = await layer.forward(padded(hidden, lengths), { caches: together, keyLengths: lengths });
    const next = normal([4, 1, 20], 7);
    const stepped = await layer.step(next, together, { threads: 2 });
    for (const [item, length] of lengths.entries()) {
      const own = layer.forwardSync(rowsOf(itemOf(hidden, item), 0, length), { caches: [alone[item]], threads: 1 });
      expectSameBits(rowsOf(itemOf(prompts, item), 0, length), own);
      expectSameBits(itemOf(stepped, item), layer.stepSync(itemOf(next, item), [alone[item]], { threads: 1 }));
    }
    for (const cache of [...together, ...alone]) cache.dispose();
  });

  test('calls on one cache without awaiting give what they give in a row', async () => {
    const { layer, hidden } = setUp({ ...cases['rope latent'], batch: 1, n: 40 });
    const borders = [0, 17, 18, 30, 40];
    const inARow = async (awaited: boolean) => {
      using cache = layer.createCache();
      const running: Promise<Tensor>[] = [];
      for (let i = 0; i < 4; i++) {
        running.push(layer.forward(rowsOf(hidden, borders[i], borders[i + 1]), { caches: [cache] }));
        if (awaited) await running[i];
      }
      return await Promise.all(running);
    };
    const wanted = await inARow(true);
    for (const [i, found] of (await inARow(false)).entries()) expectSameBits(found, wanted[i]);
  });

  test('aborted at any of its steps, a call leaves its caches as they were', async () => {
    const { layer, hidden } = setUp({ ...cases['norms, gain, rope exact'], batch: 1, n: 12 });
    let failed = 0;
    for (let look = 0; ; look++) {
      using cache = layer.createCache();
      layer.forwardSync(rowsOf(hidden, 0, 7), { caches: [cache] });
      const running = layer.forward(rowsOf(hidden, 7, 12), {
        caches: [cache],
        signal: signalOf((looks) => looks > look),
      });
      const error = await running.then(
        () => undefined,
        (reason: unknown) => reason,
      );
      if (error === undefined) break;
      failed++;
      expect(error).toMatchObject({ code: 'ERR_ABORTED' });
      expect(cache.length).toBe(7);
    }
    // Projection, waiting, norm of queries, attention, output: each looks twice.
    expect(failed).toBe(10);
  });
});

describe('what is refused', () => {
  const weights = { ...lrkvWeights(grouped, { keyGauge: 'free', valueGauge: 'free' }) };
  const all: LrkvWeights = { ...weights, ...lrkvBiases(weights) };

  test('weights', async () => {
    const faults = new Faults();
    const refused = async (more: object, wanted: Refusal) =>
      faults.add(
        Object.keys(more).join(),
        await faultOf(() => (lrkvLayer as Loose)({ ...all, ...more }), false, wanted),
      );
    for (const [name, matrix] of Object.entries(all)) {
      if (typeof matrix !== 'object' || !('dims' in matrix)) continue;
      const { dims } = matrix as Tensor;
      for (const wrong of [null, 5, {}, [1]])
        await refused({ [name]: wrong }, { code: 'ERR_TYPE', argument: `weights.${name}` });
      // One more row, which none of the others agrees with.
      if (name !== 'query' && name !== 'keyUp' && name !== 'valueUp')
        await refused(
          { [name]: normal([dims[0] + 1, ...dims.slice(1)], 1) },
          { code: 'ERR_SHAPE', argument: `weights.${name}` },
        );
      await refused({ [name]: normal([1, ...dims], 1) }, { code: 'ERR_SHAPE', argument: `weights.${name}` });
    }
    await refused({ query: normal([21, 48], 1) }, { code: 'ERR_SHAPE', argument: 'weights.keyBase' });
    for (const name of ['keyUp', 'valueUp'])
      await refused({ [name]: normal([18, 0], 1) }, { code: 'ERR_SHAPE', argument: `weights.${name}` });
    await refused({ keyUp: normal([13, 8], 1) }, { code: 'ERR_SHAPE', argument: 'weights.keyDown' });
    await refused({ valueUp: normal([18, 7], 1) }, { code: 'ERR_SHAPE', argument: 'weights.output' });
    await refused({ keyRanks: [4, 4, 5] }, { code: 'ERR_SHAPE', argument: 'weights.keyRanks' });
    await refused({ valueRanks: [6, 12] }, { code: 'ERR_SHAPE', argument: 'weights.valueRanks' });
    await refused({ ropeMode: 'exact' }, { code: 'ERR_ARGUMENT', argument: 'weights.ropeMode' });
    await refused({ latentFrequencies: [1] }, { code: 'ERR_ARGUMENT', argument: 'weights.latentFrequencies' });
    await refused({ kvHeads: 4 }, { code: 'ERR_ARGUMENT', argument: 'weights.kvHeads', received: '4' });
    await refused({ key: weights.query }, { code: 'ERR_ARGUMENT', argument: 'key' });
    for (const [wrong, received] of primitives)
      if (wrong !== 5) await refused({ heads: wrong }, { code: 'ERR_ARGUMENT', argument: 'weights.heads', received });
    for (const none of [undefined, null, 5])
      faults.add(
        String(none),
        await faultOf(() => (lrkvLayer as Loose)(none), false, {
          code: 'ERR_ARGUMENT',
          argument: 'weights',
          received: String(none),
        }),
      );
    faults.none();
  });

  test('a gain of queries after the rotation that the keys cannot take over', async () => {
    const faults = new Faults();
    const plain = lrkvWeights({}, { mode: 'exact' });
    const query = norm(8, 1, 'after-rotation');
    for (const key of [undefined, norm(8, 2, 'before-rotation')]) {
      const call = () => lrkvLayer({ ...plain, qkNorm: { query, ...(key && { key }) } });
      faults.add(
        String(key),
        await faultOf(call, false, { code: 'ERR_UNSUPPORTED', argument: 'weights.qkNorm.query' }),
      );
    }
    // It is the queries' gain that does not go with the mode, and that is too large, whosever norm takes it over.
    const none = lrkvWeights({}, { mode: 'none' });
    const moved = () => lrkvLayer({ ...none, qkNorm: { query, key: {} } });
    const received = "a gain 'after-rotation'";
    const wanted = { code: 'ERR_UNSUPPORTED', argument: 'weights.qkNorm.query', received } as const;
    faults.add('none', await faultOf(moved, false, wanted));
    const given = () => lrkvLayer({ ...none, qkNorm: { key: query } });
    faults.add('of keys', await faultOf(given, false, { ...wanted, argument: 'weights.qkNorm.key' }));
    const huge = { gain: new Array<number>(8).fill(1e30), gainOrder: 'after-rotation' } as const;
    const product = () => lrkvLayer({ ...plain, qkNorm: { query: huge, key: huge } });
    const overflow = { code: 'ERR_ARGUMENT', argument: 'weights.qkNorm.query.gain[0]', received: 'Infinity' } as const;
    faults.add('overflow', await faultOf(product, false, overflow));
    faults.none();
  });

  test('more key/value heads than there are', async () => {
    const heads = 2 ** 16 + 1;
    const ranks = new Array<number>(heads).fill(0);
    const one = normal([1, 1], 1);
    const none = (rows: number, columns: number) => normal([rows, columns], 1);
    const side = { keyBase: one, keyDown: none(1, 0), keyUp: none(0, 1), keyRanks: ranks };
    const other = { valueBase: one, valueDown: none(1, 0), valueUp: none(0, 1), valueRanks: ranks };
    const weights = { query: normal([1, heads], 1), output: normal([heads, 1], 2), heads, ...side, ...other };
    const wanted = { code: 'ERR_ARGUMENT', argument: 'weights.kvHeads', received: String(heads) } as const;
    expect(await faultOf(() => lrkvLayer(weights), false, wanted)).toBeUndefined();
  });

  test('options of a layer', async () => {
    const faults = new Faults();
    for (const [options, argument] of [
      [{ mask: 1 }, 'mask'],
      [{ causal: 1 }, 'causal'],
      [{ window: 5 }, 'window'],
      [{ softcap: -1 }, 'softcap'],
      [{ sinks: [NaN, 0, 0, 0, 0, 0] }, 'sinks[0]'],
    ] as const)
      faults.add(
        argument,
        await faultOf(() => (lrkvLayer as Loose)(all, options), false, { code: 'ERR_ARGUMENT', argument }),
      );
    faults.none();
  });

  test('caches of another kind, shape or model', async () => {
    const faults = new Faults();
    const layer = lrkvLayer(all);
    const hidden = normal([1, 2, 20], 1);
    const same = lrkvLayer({ ...all, query: normal([20, 48], 3) });
    const disposed = layer.createCache();
    disposed.dispose();
    const wrong: readonly [unknown, Refusal['code']][] = [
      [attentionLayer(layerWeights({ heads: 6, kvHeads: 3 })).createCache(), 'ERR_TYPE'],
      [lrkvLayer(lrkvWeights(grouped)).createCache(), 'ERR_ARGUMENT'],
      [lrkvLayer(lrkvWeights()).createCache(), 'ERR_ARGUMENT'],
      [disposed, 'ERR_CLOSED'],
      [{}, 'ERR_TYPE'],
    ];
    for (const [cache, code] of wrong) {
      const call = () => layer.stepSync(hidden, [cache as LrkvCache]);
      faults.add(code, await faultOf(call, false, { code, argument: 'caches[0]' }));
    }
    faults.none();
    // The model alone counts, not whose it is.
    using cache = same.createCache();
    expect(layer.stepSync(hidden, [cache]).dims).toEqual([1, 2, 20]);
  });
});
