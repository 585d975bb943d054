import { additiveMask, boolMask, filled, from, hurtful, poisonPast, types } from './data';
import { toFloat64 } from './half';
import { type LrkvCase, type LrkvFeatures, lrkvCase, lrkvInputs, lrkvTable, ropeModes } from './lrkv-run';
import type { LrkvGiven, LrkvMeaning } from './reference-lrkv';

// Scores of every kind, every element type, and data that hurts.

describe('each option alone', () => {
  const shape = { batch: 2, heads: 4, kvHeads: 2, keys: 141, headDim: 24, valueDim: 40, keyRank: 6, valueRank: 9 };
  const cases: Record<string, LrkvCase> = {};
  for (const queries of [3, 75]) {
    const options: Record<string, LrkvMeaning> = {
      scale: { scale: 0.3 },
      'negative scale': { scale: -0.2 },
      'scale 0': { scale: 0 },
      causal: { causal: true },
      'causal, offset 0': { causal: true, queryOffset: 0 },
      'causal, offset before the first key': { causal: true, queryOffset: -2 },
      'causal, offset past the last key': { causal: true, queryOffset: 500 },
      'an offset alone': { queryOffset: 20 },
      'window, open to the right': { window: [10, Infinity] },
      'window, both sides': { window: [130, 3] },
      'window of the own key': { window: [0, 0] },
      'window, all keys past it': { window: [2, 2], queryOffset: 1000 },
      'bool mask, rank 2': { mask: boolMask([queries, 141], 1) },
      'bool mask, rank 4': { mask: boolMask([2, 4, queries, 141], 4) },
      'bool mask, broadcast heads': { mask: boolMask([2, 1, queries, 141], 5) },
      'bool mask, broadcast batch and queries': { mask: boolMask([1, 4, 1, 141], 6) },
      'bool mask, nothing visible': { mask: boolMask([queries, 141], 8, 0) },
      'additive mask, rank 3': { mask: additiveMask([1, queries, 141], 2) },
      'additive mask, rank 4': { mask: additiveMask([2, 4, queries, 141], 3) },
      softcap: { softcap: 0.8 },
      'softcap far above every score': { softcap: 1000 },
      sinks: { sinks: Float32Array.of(1.5, -2, 0, 3) },
      'sinks, one dominant, one off': { sinks: Float32Array.of(30, -Infinity, 1, 2) },
      keyLengths: { keyLengths: [141, 62] },
      'keyLengths, an empty sequence': { keyLengths: [0, 128] },
      queryLengths: { queryLengths: [queries, 1] },
      'queryLengths, an empty sequence': { queryLengths: [0, 2] },
      'all lengths': { keyLengths: [129, 1], queryLengths: [1, queries - 1], causal: true },
      'nearly all at once': {
        ...{ keyLengths: [129, 80], queryLengths: [queries, queries - 1], causal: true, window: [60, 0], softcap: 3 },
        ...{ mask: additiveMask([2, 1, queries, 141], 9), sinks: Float32Array.of(1, 0, -1, 2), scale: 0.3 },
      },
    };
    for (const [name, value] of Object.entries(options)) {
      for (const mode of [undefined, 'exact', 'latent'] as const) {
        const features: LrkvFeatures = mode ? { mode, norm: 'plain' } : { valueGauge: 'free' };
        cases[`${name}, ${queries} queries, ${mode ?? 'no rope'}`] = lrkvCase({ ...shape, queries }, features, value);
      }
    }
  }
  lrkvTable(cases);
});

describe.each(types)('%s', (type) => {
  const shape = { batch: 2, heads: 4, kvHeads: 2, keys: 140, headDim: 32, valueDim: 24, keyRank: 8, valueRank: 5 };
  const cases: Record<string, LrkvCase> = {};
  for (const queries of [2, 50]) {
    for (const mode of [undefined, ...ropeModes]) {
      const features = mode ? { mode } : {};
      cases[`${mode ?? 'no rope'}, ${queries} queries`] = lrkvCase({ ...shape, queries }, features, {}, type);
      if (mode === undefined || mode === 'exact') {
        cases[`${mode ?? 'no rope'}, ${queries} queries, gauges and QK-norm`] = lrkvCase(
          { ...shape, queries, keyBaseDim: 20 },
          { ...features, valueGauge: 'free', norm: 'after-rotation' },
          {},
          type,
        );
      }
      for (const other of types.filter((each) => each !== type)) {
        const { inputs } = lrkvCase({ ...shape, queries }, features, {}, type);
        cases[`${mode ?? 'no rope'}, ${queries} queries of ${other}`] = {
          inputs: () => {
            const given = inputs();
            const values = toFloat64(given.q);
            return { ...given, q: filled(given.q.dims, other, (i) => values[i]) };
          },
        };
      }
    }
    cases[`a model of its own, ${queries} queries`] = lrkvCase(
      { ...shape, queries, valueBaseDim: 10 },
      { modelType: type, keyGauge: 'free' },
    );
    // The bases are shared, so the keys of all heads have the flaw; latents are small beside it.
    for (const [name, make] of Object.entries(hurtful)) {
      for (const mode of [undefined, 'exact'] as const) {
        cases[`${name}, ${queries} queries, ${mode ?? 'no rope'}`] = {
          inputs: () => {
            const few = { heads: 2, kvHeads: 2, queries, keys: 300, headDim: 32, keyRank: 6, valueRank: 6 };
            const { given, options } = lrkvInputs(few, 61, mode ? { mode } : {}, type);
            const { q, k, v } = make({ ...few, kvHeads: 1 }, 62, type);
            const quiet = toFloat64(given.keyLatent);
            const bases = { keyBase: { ...k, dims: [1, 300, 32] }, valueBase: { ...v, dims: [1, 300, 32] } };
            const keyLatent = filled(given.keyLatent.dims, type, (i) => quiet[i] / 8);
            return { q, given: { ...given, ...bases, keyLatent }, options };
          },
        };
      }
    }
  }
  lrkvTable(cases);
});

describe('what is hidden never shows, whatever it holds', () => {
  const shape = { batch: 2, heads: 4, kvHeads: 2, keys: 300, headDim: 16, valueDim: 21, keyRank: 6, valueRank: 9 };
  const lengths = [170, 3];
  const parts = ['keyBase', 'keyLatent', 'valueBase', 'valueLatent'] as const;
  const poisoned = (given: LrkvGiven) =>
    Object.fromEntries(
      parts.map((name) => {
        const { dims, ...part } = given[name];
        const [batch, keys, columns] = dims;
        return [name, { ...poisonPast({ ...part, dims: [batch, 1, keys, columns] }, lengths), dims }];
      }),
    );
  const cases: Record<string, LrkvCase> = {};
  for (const queries of [1, 7, 80]) {
    for (const mode of [undefined, ...ropeModes]) {
      for (const how of ['lengths', 'a bool mask', 'an additive mask', 'causality'] as const) {
        const there = Array.from({ length: 600 }, (_, i) => i % 300 < lengths[Math.floor(i / 300)]);
        const options: LrkvMeaning = {
          lengths: { keyLengths: lengths },
          'a bool mask': {
            mask: { data: Uint8Array.from(there, Number), dims: [2, 1, 1, 300], type: 'bool' as const },
          },
          'an additive mask': {
            mask: {
              ...from(
                there.map((is) => (is ? 0.5 : -Infinity)),
                [2, 1, 1, 300],
              ),
              type: 'float32' as const,
            },
          },
          // All rows see the two keys that hold numbers in both sequences, or fewer.
          causality: { causal: true, queryOffset: 2, window: [Infinity, 0] as const, queryLengths: [1, 1] },
        }[how] as LrkvMeaning;
        const { inputs } = lrkvCase({ ...shape, queries }, mode ? { mode } : {}, options);
        cases[`${how}, ${queries} queries, ${mode ?? 'no rope'}`] = {
          inputs: () => {
            const data = inputs();
            return { ...data, given: { ...data.given, ...poisoned(data.given) } };
          },
        };
      }
    }
  }
  lrkvTable(cases);
});

describe('what is not finite and seen spreads as IEEE arithmetic says', () => {
  const shape = { heads: 4, kvHeads: 2, keys: 140, headDim: 16, keyRank: 4, valueRank: 6 };
  const cases: Record<string, LrkvCase> = {};
  for (const queries of [1, 40]) {
    for (const [which, value, mode] of [
      ['q', NaN, undefined],
      ['q', NaN, 'exact'],
      ['keyBase', NaN, undefined],
      ['keyBase', NaN, 'latent'],
      ['keyLatent', NaN, undefined],
      ['keyLatent', NaN, 'exact'],
      ['keyLatent', NaN, 'latent'],
      ['valueBase', NaN, undefined],
      ['valueLatent', NaN, undefined],
      ['keyBase', Infinity, undefined],
      ['valueBase', Infinity, undefined],
      ['valueBase', -Infinity, 'exact'],
    ] as const) {
      const { inputs } = lrkvCase({ ...shape, queries }, mode ? { mode } : {});
      cases[`${value} in ${which}, ${queries} queries, ${mode ?? 'no rope'}`] = {
        inputs: () => {
          const data = inputs();
          const source = which === 'q' ? data.q : data.given[which];
          const at = which === 'q' ? 18 : source.dims[2] * 133 + 2;
          const plain = toFloat64(source);
          const spoilt = filled(source.dims, 'float32', (i) => (i === at ? value : plain[i]));
          if (which === 'q') return { ...data, q: spoilt };
          return { ...data, given: { ...data.given, [which]: spoilt } };
        },
      };
    }
  }
  lrkvTable(cases);
});
