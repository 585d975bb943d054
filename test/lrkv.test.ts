import { headRatios, oddLengths } from './data';
import { type LrkvCase, type LrkvFeatures, lrkvCase, lrkvRows, lrkvTable, ropeModes } from './lrkv-run';

const pairings = ['half', 'interleaved'] as const;
/** A decode step, a few rows, and more than a block. */
const queryCounts = [1, 5, 75] as const;

test('this machine runs at least one kernel row', () => {
  expect(lrkvRows.length).toBeGreaterThan(0);
});

describe('rope modes', () => {
  const shape = {
    batch: 2,
    heads: 4,
    kvHeads: 2,
    keys: 141,
    headDim: 24,
    valueDim: 40,
    keyRank: [12, 6],
    valueRank: 7,
  };
  const cases: Record<string, LrkvCase> = {};
  for (const queries of queryCounts) {
    for (const mode of [undefined, ...ropeModes]) {
      for (const pairing of mode === undefined ? [undefined] : pairings) {
        const name = `${mode ?? 'no rope'}${pairing ? `, ${pairing}` : ''}, ${queries} queries`;
        const features = { ...(mode && { mode }), ...(pairing && { pairing }) };
        cases[name] = lrkvCase({ ...shape, queries }, { ...features, ...(mode && { firstPosition: 100 }) });
        const gauge = mode === undefined || mode === 'exact' ? 'free' : 'pairs';
        cases[`${name}, gauges`] = lrkvCase(
          { ...shape, queries },
          { ...features, keyGauge: gauge, valueGauge: 'free' },
        );
        cases[`${name}, no bases`] = lrkvCase({ ...shape, queries, keyBaseDim: 0, valueBaseDim: 0 }, features);
        cases[`${name}, QK-norm`] = lrkvCase({ ...shape, queries }, { ...features, norm: 'plain', keyGauge: gauge });
        if (mode === undefined || mode === 'exact' || mode === 'latent' || mode === 'none')
          cases[`${name}, gain before`] = lrkvCase({ ...shape, queries }, { ...features, norm: 'before-rotation' });
        if (mode === undefined || mode === 'exact' || mode === 'paper' || mode === 'intertwined')
          cases[`${name}, gain after`] = lrkvCase(
            { ...shape, queries },
            { ...features, norm: 'after-rotation', keyGauge: gauge },
          );
      }
    }
  }
  lrkvTable(cases);
});

describe('lengths', () => {
  const cases: Record<string, LrkvCase> = {};
  for (const length of oddLengths) {
    for (const mode of [undefined, 'exact', 'latent'] as const) {
      const features = mode ? { mode } : {};
      const name = mode ?? 'no rope';
      const shape = { heads: 2, keys: length, headDim: 20, keyRank: 4, valueRank: 5 };
      cases[`${length} queries, ${length} keys, causal, ${name}`] = lrkvCase(
        { ...shape, queries: length, heads: length > 500 ? 1 : 2 },
        features,
        { causal: true },
      );
      cases[`1 query, ${length} keys, ${name}`] = lrkvCase({ ...shape, queries: 1 }, features);
      cases[`${length} queries, 1 key, ${name}`] = lrkvCase({ ...shape, keys: 1, queries: length }, features);
    }
  }
  for (const keys of [127, 128, 129, 255, 256, 257, 1024, 1025, 2049]) {
    for (const queries of [2, 66]) {
      const features: LrkvFeatures = queries === 2 ? { mode: 'none', norm: 'plain' } : { mode: 'exact' };
      const shape = { heads: 2, kvHeads: 1, queries, keys, headDim: 12, keyRank: 4, valueRank: 3 };
      cases[`around pages and ranges: ${queries} queries, ${keys} keys`] = {
        ...lrkvCase(shape, features, { causal: queries !== 2 }),
        threads: 2,
      };
    }
  }
  for (const queries of [2, 3, 4, 6, 7, 8, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33, 48, 63, 64, 65, 129, 300]) {
    const shape = { heads: 4, kvHeads: 2, queries, keys: 150 + queries, headDim: 16, keyRank: 6, valueRank: 10 };
    cases[`${queries} queries`] = lrkvCase(shape, queries % 2 ? { mode: 'latent' } : {}, {
      causal: queries % 3 === 0,
    });
  }
  lrkvTable(cases);
});

describe('ranks', () => {
  const cases: Record<string, LrkvCase> = {};
  const shape = { heads: 6, kvHeads: 3, keys: 150, headDim: 64, valueDim: 48 };
  const all: Record<string, readonly [number | readonly number[], number | readonly number[]]> = {};
  for (const rank of [0, 1, 8, 13, 16, 32, 64]) all[`${rank}`] = [rank, Math.min(rank, 48)];
  all['0 of keys'] = [0, 9];
  all['0 of values'] = [9, 0];
  all['more than the head size'] = [70, 50];
  all.ragged = [
    [0, 13, 32],
    [16, 1, 0],
  ];
  all['ragged, the last none'] = [
    [9, 8, 0],
    [0, 17, 0],
  ];
  for (const [name, [keyRank, valueRank]] of Object.entries(all)) {
    for (const queries of queryCounts) {
      cases[`${name}, ${queries} queries`] = lrkvCase({ ...shape, keyRank, valueRank, queries });
      cases[`${name}, ${queries} queries, exact`] = lrkvCase(
        { ...shape, keyRank, valueRank, queries },
        { mode: 'exact' },
      );
    }
  }
  const even: Record<string, number | readonly number[]> = { 2: 2, 16: 16, 64: 64, ragged: [0, 14, 32] };
  for (const [name, keyRank] of Object.entries(even)) {
    for (const mode of ['latent', 'paper', 'intertwined'] as const) {
      for (const queries of [1, 40])
        cases[`${name}, ${queries} queries, ${mode}`] = lrkvCase({ ...shape, keyRank, queries }, { mode });
    }
  }
  lrkvTable(cases);
});

describe('head sizes', () => {
  const cases: Record<string, LrkvCase> = {};
  for (const queries of [1, 40]) {
    for (const headDim of [1, 60, 64, 96, 128]) {
      const shape = { heads: 2, queries, keys: 60, headDim, keyRank: 8, valueRank: 12 };
      cases[`${headDim}, ${queries} queries`] = lrkvCase(shape);
      if (headDim === 1) continue;
      for (const mode of ['exact', 'none', 'latent'] as const)
        cases[`${headDim}, ${queries} queries, ${mode}`] = lrkvCase(shape, { mode });
    }
    for (const [headDim, valueDim, keyBaseDim, valueBaseDim] of [
      [1, 256, 1, 256],
      [128, 1, 40, 3],
      [60, 100, 100, 60],
      [13, 7, 0, 20],
      [14, 33, 9, 0],
    ] as const) {
      const shape = {
        heads: 4,
        kvHeads: 2,
        queries,
        keys: 50,
        headDim,
        valueDim,
        keyBaseDim,
        valueBaseDim,
        keyRank: 5,
      };
      const name = `${headDim} and ${valueDim}, bases of ${keyBaseDim} and ${valueBaseDim}, ${queries} queries`;
      cases[name] = lrkvCase(shape);
      if (headDim % 2 === 0) cases[`${name}, exact`] = lrkvCase(shape, { mode: 'exact' });
    }
  }
  lrkvTable(cases);
});

describe('one value of more elements than all else of a call', () => {
  const shape = { heads: 1, queries: 1, keys: 3, headDim: 8, valueDim: 200_000 };
  lrkvTable({ 'no bases': lrkvCase({ ...shape, keyBaseDim: 0, valueBaseDim: 0 }) });
});

describe('head ratios and layouts', () => {
  const cases: Record<string, LrkvCase> = {};
  for (const [heads, kvHeads] of [...headRatios, [1, 1], [16, 2], [14, 14]] as const) {
    for (const queries of [1, 4, 40]) {
      for (const layout of ['bhld', 'blhd'] as const) {
        const shape = { batch: 3, heads, kvHeads, queries, keys: 33, headDim: 12, valueDim: 20, keyRank: 4, layout };
        const features =
          heads % 2 ? { mode: 'exact' as const } : { mode: 'latent' as const, valueGauge: 'free' as const };
        cases[`${heads} on ${kvHeads}, ${queries} queries, ${layout}`] = {
          ...lrkvCase(shape, features, { causal: queries > 1 }),
          threads: 1 + (queries % 2),
        };
      }
    }
  }
  lrkvTable(cases);
});

describe('nothing to compute', () => {
  const shape = { batch: 2, heads: 2, queries: 3, keys: 4, headDim: 6, keyRank: 2 };
  lrkvTable({
    'no keys': lrkvCase({ ...shape, keys: 0 }),
    'no keys, exact': lrkvCase({ ...shape, keys: 0 }, { mode: 'exact' }),
    'no keys, with sinks': lrkvCase({ ...shape, keys: 0 }, {}, { sinks: Float32Array.of(1, 2) }),
    'no queries': lrkvCase({ ...shape, queries: 0 }),
    'no sequences': lrkvCase({ ...shape, batch: 0 }),
    'nothing of keys: all scores 0': lrkvCase({ ...shape, keyBaseDim: 0, keyRank: 0 }),
    'nothing of values: all outputs 0': lrkvCase({ ...shape, valueBaseDim: 0, valueRank: 0 }),
  });
});
