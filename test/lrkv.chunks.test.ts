import { additiveMask } from './data';
import { type LrkvCase, type LrkvFeatures, lrkvCase, lrkvTable } from './lrkv-run';

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
