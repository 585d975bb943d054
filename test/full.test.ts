import {
  additiveMask,
  boolMask,
  filled,
  headRatios,
  headSizes,
  hurtful,
  type Inputs,
  normalInputs,
  oddLengths,
  poisonPast,
  types,
} from './data';
import { expectAttention } from './expectation';
import { checkAttention } from './full-run';
import { toFloat64 } from './half';
import type { AttentionMeaning } from './problem';
import { isaRows, once, testRows } from './rows';

const rows = isaRows('full');

interface Case {
  readonly inputs: () => Inputs;
  readonly options?: AttentionMeaning;
}

const table = (cases: Readonly<Record<string, Case>>) =>
  testRows(rows, cases, ({ inputs, options = {} }) => {
    const data = inputs();
    const expected = expectAttention(data.q, data.k, data.v, options);
    return (isa) => checkAttention(data, options, { isa }, expected);
  });

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

describe('each option alone', () => {
  // More keys than one tile, more queries than one block, neither a multiple of a vector.
  const shape = { batch: 2, heads: 2, queries: 75, keys: 141, headDim: 24, valueDim: 40 };
  const inputs = once(() => normalInputs(shape, 11));
  const options: Record<string, AttentionMeaning> = {
    none: {},
    scale: { scale: 0.3 },
    'negative scale': { scale: -0.2 },
    'scale 0': { scale: 0 },
    causal: { causal: true },
    'causal, offset 0': { causal: true, queryOffset: 0 },
    'causal, offset before the first key': { causal: true, queryOffset: -20 },
    'causal, offset past the last key': { causal: true, queryOffset: 500 },
    'window, open to the right': { window: [10, Infinity] },
    'window, open to the left': { window: [Infinity, 7] },
    'window, both sides': { window: [130, 3] },
    'window of the own key': { window: [0, 0] },
    'window, offset': { window: [5, 5], queryOffset: -3 },
    'window, all keys past it': { window: [2, 2], queryOffset: 1000 },
    'bool mask, rank 2': { mask: boolMask([75, 141], 1) },
    'bool mask, rank 2, one row': { mask: boolMask([1, 141], 2) },
    'bool mask, rank 3': { mask: boolMask([2, 1, 141], 3) },
    'bool mask, rank 4': { mask: boolMask([2, 2, 75, 141], 4) },
    'bool mask, broadcast heads': { mask: boolMask([2, 1, 75, 141], 5) },
    'bool mask, broadcast batch and queries': { mask: boolMask([1, 2, 1, 141], 6) },
    'bool mask, sparse': { mask: boolMask([75, 141], 7, 0.01) },
    'bool mask, nothing visible': { mask: boolMask([75, 141], 8, 0) },
    'additive mask, rank 2': { mask: additiveMask([75, 141], 1) },
    'additive mask, rank 3': { mask: additiveMask([1, 75, 141], 2) },
    'additive mask, rank 4': { mask: additiveMask([2, 2, 75, 141], 3) },
    'additive mask, broadcast': { mask: additiveMask([2, 1, 1, 141], 4) },
    softcap: { softcap: 0.8 },
    'softcap 0 is off': { softcap: 0 },
    'softcap far above every score': { softcap: 1000 },
    sinks: { sinks: Float32Array.of(1.5, -2) },
    'sinks, one dominant, one off': { sinks: Float32Array.of(30, -Infinity) },
    keyLengths: { keyLengths: [141, 62] },
    'keyLengths, an empty sequence': { keyLengths: [0, 128] },
    queryLengths: { queryLengths: [75, 13] },
    'queryLengths, an empty sequence': { queryLengths: [0, 64] },
    'all lengths': { keyLengths: [129, 1], queryLengths: [1, 70], causal: true },
  };
  table(Object.fromEntries(Object.entries(options).map(([name, value]) => [name, { inputs, options: value }])));
});

describe('few queries over many keys', () => {
  // Long enough for key ranges to be computed apart and merged.
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 2, keys: 2500, headDim: 32 };
  const inputs = once(() => normalInputs(shape, 21));
  const hideRange = (from: number, to: number): AttentionMeaning['mask'] => ({
    data: Uint8Array.from({ length: 2500 }, (_, key) => Number(key < from || key >= to)),
    dims: [1, 2500],
    type: 'bool',
  });
  const options: Record<string, AttentionMeaning> = {
    none: {},
    causal: { causal: true },
    'a first range without a visible key': { mask: hideRange(0, 1100) },
    'a middle range without a visible key': { mask: hideRange(1000, 2100) },
    'a last range without a visible key': { mask: hideRange(1020, 2500) },
    'nothing visible': { mask: hideRange(0, 2500) },
    'additive mask': { mask: additiveMask([2, 4, 2, 2500], 5) },
    'sinks are counted once': { sinks: Float32Array.of(8, 9, -1, 7) },
    'sinks and nothing visible': { sinks: Float32Array.of(8, 9, -1, 7), mask: hideRange(0, 2500) },
    'a window inside one range': { window: [20, 3], queryOffset: 1500 },
    'a window over a boundary': { window: [1200, 0] },
    'a window just past the last key': { window: [0, Infinity], queryOffset: 2503 },
    'a window far past the last key': { window: [2, 2], queryOffset: 1e6 },
    'a window before the first key': { window: [2, 2], queryOffset: -4 },
    'lengths on either side of a boundary': { keyLengths: [1024, 1025] },
    'lengths of one and three ranges': { keyLengths: [1, 2049], causal: true },
    softcap: { softcap: 2 },
  };
  table({
    ...Object.fromEntries(Object.entries(options).map(([name, value]) => [name, { inputs, options: value }])),
    'more keys than the most ranges of the usual length': {
      inputs: () => normalInputs({ queries: 2, keys: 70_001, headDim: 5, valueDim: 3 }, 22),
      options: { causal: true },
    },
  });
});

describe('lengths', () => {
  const cases: Record<string, Case> = {};
  for (const length of oddLengths) {
    cases[`${length} queries, ${length} keys, causal`] = {
      inputs: () => normalInputs({ queries: length, keys: length, headDim: 40 }, length),
      options: { causal: true },
    };
    cases[`1 query, ${length} keys`] = {
      inputs: () => normalInputs({ heads: 3, queries: 1, keys: length, headDim: 64 }, length),
    };
    cases[`${length} queries, 1 key`] = {
      inputs: () => normalInputs({ queries: length, keys: 1, headDim: 9 }, length),
    };
  }
  for (const keys of [127, 128, 129, 255, 256, 257]) {
    cases[`65 queries, ${keys} keys`] = { inputs: () => normalInputs({ queries: 65, keys, headDim: 16 }, keys) };
  }
  for (let queries = 1; queries <= 36; queries++) {
    cases[`${queries} queries`] = { inputs: () => normalInputs({ queries, keys: 50 + queries, headDim: 8 }, queries) };
  }
  table(cases);
});

describe('nothing to compute', () => {
  const shape = { batch: 2, heads: 2, queries: 3, keys: 4, headDim: 5 };
  table({
    'no keys': { inputs: () => normalInputs({ ...shape, keys: 0 }, 1) },
    'no keys, with sinks': {
      inputs: () => normalInputs({ ...shape, keys: 0 }, 1),
      options: { sinks: Float32Array.of(1, 2) },
    },
    'no queries': { inputs: () => normalInputs({ ...shape, queries: 0 }, 1) },
    'no sequences': { inputs: () => normalInputs({ ...shape, batch: 0 }, 1) },
  });
});

describe('head sizes', () => {
  const cases: Record<string, Case> = {};
  for (const headDim of headSizes) {
    cases[`${headDim}`] = { inputs: () => normalInputs({ queries: 40, keys: 150, headDim }, headDim) };
    cases[`${headDim}, one query`] = { inputs: () => normalInputs({ queries: 1, keys: 150, headDim }, headDim) };
  }
  for (const [headDim, valueDim] of [
    [1, 256],
    [256, 1],
    [60, 100],
    [13, 7],
    [80, 33],
  ] as const) {
    cases[`${headDim}, values of ${valueDim}`] = {
      inputs: () => normalInputs({ queries: 23, keys: 135, headDim, valueDim }, headDim),
      options: { causal: true },
    };
  }
  for (const headDim of [320, 384, 511, 512]) {
    for (const queries of [1, 70]) {
      cases[`${headDim}, ${queries} queries`] = {
        inputs: () => normalInputs({ heads: 2, kvHeads: 1, queries, keys: 150, headDim }, headDim),
        options: { causal: true },
      };
    }
  }
  for (let headDim = 2; headDim <= 35; headDim += 3) {
    cases[`${headDim} and ${37 - headDim}`] = {
      inputs: () => normalInputs({ queries: 7, keys: 19, headDim, valueDim: 37 - headDim }, headDim),
    };
  }
  table(cases);
});

describe('head ratios', () => {
  const cases: Record<string, Case> = {};
  for (const [heads, kvHeads] of [...headRatios, [48, 2], [70, 1]] as const) {
    for (const queries of [1, 3, 70]) {
      cases[`${heads} on ${kvHeads}, ${queries} queries`] = {
        inputs: () => normalInputs({ batch: 2, heads, kvHeads, queries, keys: 90, headDim: 12 }, heads),
        options: { causal: true, mask: boolMask([heads, queries, 90], heads, 0.8) },
      };
    }
  }
  table(cases);
});

describe.each(types)('%s', (type) => {
  const cases: Record<string, Case> = {
    'many queries': { inputs: () => normalInputs({ heads: 2, queries: 90, keys: 200, headDim: 60 }, 31, type) },
    'one query': {
      inputs: () => normalInputs({ heads: 4, kvHeads: 1, queries: 1, keys: 1300, headDim: 65 }, 32, type),
    },
    'large values': {
      inputs: () => {
        const { q, k } = normalInputs({ queries: 9, keys: 20, headDim: 16 }, 33, type);
        const large = type === 'float16' ? 65504 : 2 ** 100;
        return { q, k, v: filled([1, 1, 20, 16], type, (i) => (i % 2 === 0 ? large : -large)) };
      },
    },
    'tiny values': {
      inputs: () => {
        const { q, k } = normalInputs({ queries: 9, keys: 20, headDim: 16 }, 34, type);
        const unit = type === 'float16' ? 2 ** -24 : 2 ** -100;
        return { q, k, v: filled([1, 1, 20, 16], type, (i) => unit * (1 + (i % 50))) };
      },
    },
  };
  // [which input, element, value]; the rows of keys it is seen by become what IEEE arithmetic makes of it.
  const special = [
    ['q', 16 * 3 + 1, NaN],
    ['q', 16 * 3 + 1, Infinity],
    ['k', 16 * 12 + 2, NaN],
    ['k', 16 * 12 + 2, -Infinity],
    ['v', 16 * 12 + 5, NaN],
    ['v', 16 * 12 + 5, -Infinity],
  ] as const;
  for (const [which, at, value] of special) {
    for (const queries of [4, 70]) {
      cases[`${value} in ${which}, ${queries} queries`] = {
        inputs: () => {
          const inputs = normalInputs({ queries, keys: 20, headDim: 16 }, 35, type);
          const plain = toFloat64(inputs[which]);
          return { ...inputs, [which]: filled(inputs[which].dims, type, (i) => (i === at ? value : plain[i])) };
        },
        options: { causal: true },
      };
    }
  }
  for (const [name, make] of Object.entries(hurtful)) {
    cases[name] = { inputs: () => make({ heads: 2, queries: 20, keys: 300, headDim: 64 }, 41, type) };
    cases[`${name}, one query, causal`] = {
      inputs: () => make({ heads: 4, kvHeads: 2, queries: 1, keys: 1500, headDim: 64 }, 42, type),
      options: { causal: true },
    };
  }
  table(cases);
});

describe('queries of another type than keys and values', () => {
  const cases: Record<string, Case> = {};
  for (const type of types) {
    for (const other of types.filter((each) => each !== type)) {
      for (const queries of [1, 70]) {
        cases[`${queries} ${type} on ${other}`] = {
          inputs: () => {
            const shape = { heads: 4, kvHeads: 2, queries, keys: 200, headDim: 24, valueDim: 31 };
            return { ...normalInputs(shape, 43, other), q: normalInputs(shape, 43, type).q };
          },
          options: { causal: true },
        };
      }
    }
  }
  table(cases);
});

describe('NaN', () => {
  const shape = { batch: 2, heads: 2, queries: 20, keys: 140, headDim: 16 };
  const plain = once(() => normalInputs(shape, 51));
  const lengths = { keyLengths: [100, 3], queryLengths: [20, 5] };

  /** The inputs with NaN over the whole of some key rows of both key heads of both sequences. */
  const poisoned = (bad: (key: number) => boolean, which: 'k' | 'v' | 'both') => () => {
    const { q, k, v } = plain();
    const ruin = (dim: number, data: ArrayLike<number>) => (i: number) =>
      bad(Math.floor(i / dim) % shape.keys) ? NaN : data[i];
    return {
      q,
      k: which === 'v' ? k : filled(k.dims, 'float32', ruin(16, k.data)),
      v: which === 'k' ? v : filled(v.dims, 'float32', ruin(16, v.data)),
    };
  };
  const hideOdd = Uint8Array.from({ length: 140 }, (_, key) => Number(key % 2 === 0));
  const odd = (key: number) => key % 2 === 1;

  table({
    'in the padding': {
      inputs: () => ({
        q: poisonPast(plain().q, lengths.queryLengths),
        k: poisonPast(plain().k, lengths.keyLengths),
        v: poisonPast(plain().v, lengths.keyLengths),
      }),
      options: lengths,
    },
    'behind a bool mask': {
      inputs: poisoned(odd, 'both'),
      options: { mask: { data: hideOdd, dims: [1, 140], type: 'bool' } },
    },
    'behind an additive mask': {
      inputs: poisoned(odd, 'both'),
      options: {
        mask: { data: Float32Array.from(hideOdd, (see) => (see ? 0.5 : -Infinity)), dims: [1, 140], type: 'float32' },
      },
    },
    'past the causal edge': {
      inputs: poisoned((key) => key >= 130, 'both'),
      options: { causal: true },
    },
    'outside the window': {
      inputs: poisoned((key) => key < 124 || key > 134, 'both'),
      options: { window: [3, 2] },
    },
    'in a visible key': { inputs: poisoned((key) => key === 131, 'k'), options: { causal: true } },
    'in a visible value': { inputs: poisoned((key) => key === 131, 'v'), options: { causal: true } },
    'in a query': {
      inputs: () => ({
        ...plain(),
        q: filled(plain().q.dims, 'float32', (i) => (i === 16 * 7 + 3 ? NaN : plain().q.data[i])),
      }),
    },
    'in one query over many keys': {
      inputs: () => {
        const { q, k, v } = normalInputs({ heads: 2, queries: 1, keys: 2100, headDim: 8 }, 52);
        return { q, k: filled(k.dims, 'float32', (i) => (i === 8 * 1500 ? NaN : k.data[i])), v };
      },
    },
    'in an additive mask': {
      inputs: plain,
      options: {
        mask: {
          data: Float32Array.from({ length: 20 * 140 }, (_, i) => (i === 140 * 4 + 9 ? NaN : 0)),
          dims: [20, 140],
          type: 'float32',
        },
      },
    },
  });
});

describe('+Infinity in an additive mask makes its row NaN, and no other', () => {
  const mask = (queries: number, keys: number): AttentionMeaning['mask'] => ({
    data: Float32Array.from({ length: queries * keys }, (_, i) => (i === keys * (queries - 1) + 9 ? Infinity : i % 3)),
    dims: [queries, keys],
    type: 'float32',
  });
  table({
    'many queries': {
      inputs: () => normalInputs({ heads: 2, queries: 20, keys: 140, headDim: 16 }, 53),
      options: { mask: mask(20, 140) },
    },
    'two queries over many keys': {
      inputs: () => normalInputs({ heads: 2, queries: 2, keys: 2100, headDim: 16 }, 54),
      options: { mask: mask(2, 2100) },
    },
    'hidden by causality': {
      inputs: () => normalInputs({ queries: 20, keys: 20, headDim: 16 }, 55),
      options: { mask: mask(20, 20), causal: true, queryOffset: -11 },
    },
  });
});

describe('scores of −Infinity', () => {
  // One key whose product with every query is −Infinity; finite values everywhere.
  const inputs = (queries: number, keys: number, bad: (key: number) => boolean) => () => ({
    q: filled([1, 1, queries, 4], 'float32', () => 1),
    k: filled([1, 1, keys, 4], 'float32', (i) => (bad(Math.floor(i / 4)) ? (i % 4 ? 0 : -Infinity) : (i % 7) / 7)),
    v: normalInputs({ queries, keys, headDim: 4 }, 61).v,
  });
  table({
    'one key': { inputs: inputs(9, 30, (key) => key === 11) },
    'the first tile': { inputs: inputs(9, 300, (key) => key < 128) },
    'every key': { inputs: inputs(9, 30, () => true) },
    'every key, one query': { inputs: inputs(1, 30, () => true) },
  });
});
