import { additiveMask, boolMask } from './data';
import { type LrkvCase, type LrkvFeatures, lrkvCase, lrkvTable } from './lrkv-run';
import type { LrkvMeaning } from './reference-lrkv';

// What a call gives by the head or by the key, where it is computed in parts.

describe('more heads than are materialised at a time', () => {
  // Keys and values of one head are all that a thread takes at a time, so heads come one after the other, each with its
  // part of whatever is given by the head.
  const shape = { heads: 4, kvHeads: 2, queries: 40, keys: 10_200, headDim: 48, valueDim: 56 };
  const cases: Record<string, LrkvCase> = {};
  for (const [mode, layout] of [
    [undefined, 'bhld'],
    ['exact', 'blhd'],
    ['latent', 'bhld'],
  ] as const) {
    const options = { mask: additiveMask([1, 4, 40, 10_200], 5), sinks: Float32Array.of(6, 5, 7, 8) };
    const features: LrkvFeatures = mode ? { mode } : { norm: 'plain' };
    cases[`${mode ?? 'no rope'}, ${layout}`] = lrkvCase(
      { ...shape, keyRank: [6, 4], valueRank: [5, 3], layout },
      features,
      options,
    );
  }
  lrkvTable(cases);
});

describe('keys in several splits, few queries', () => {
  const shape = { batch: 2, heads: 4, kvHeads: 2, keys: 1025, headDim: 8, valueDim: 12, keyRank: 4, valueRank: [3, 0] };
  const cases: Record<string, LrkvCase> = {};
  for (const queries of [1, 5]) {
    const options: Record<string, LrkvMeaning> = {
      // About as heavy as all keys together.
      sinks: { sinks: Float32Array.of(7, 6, 8, -Infinity) },
      causal: { causal: true, queryOffset: 700 },
      'a window within a split': { window: [30, 2], queryOffset: 600 },
      'a window over several': { window: [500, 0] },
      softcap: { softcap: 2 },
      'a bool mask': { mask: boolMask([2, 4, queries, 1025], 1) },
      'an additive mask': { mask: additiveMask([2, 4, queries, 1025], 2) },
      'nothing visible': { mask: boolMask([queries, 1025], 3, 0) },
      lengths: { keyLengths: [1025, 400], queryLengths: [queries, 1] },
    };
    for (const [name, value] of Object.entries(options)) {
      for (const mode of [undefined, 'exact', 'none'] as const) {
        const features: LrkvFeatures = mode ? { mode } : { norm: 'plain' };
        cases[`${name}, ${queries} queries, ${mode ?? 'no rope'}`] = lrkvCase({ ...shape, queries }, features, value);
      }
    }
  }
  lrkvTable(cases);
});
