import type { BoolTensor } from '../lib/tensor';
import {
  filled,
  headRatios,
  headSizes,
  hurtful,
  type Inputs,
  normal,
  normalInputs,
  type Shape,
  swapLayout,
  types,
  uniform,
} from './data';
import { bitsOf } from './full-run';
import { checkNystrom, expectNystrom } from './nystrom-run';
import type { NystromMeaning } from './reference-nystrom';
import { isaRows, once, testRows } from './rows';

const rows = isaRows('nystrom');

interface Case {
  readonly inputs: () => Inputs;
  readonly options?: NystromMeaning;
}

const table = (cases: Readonly<Record<string, Case>>) =>
  testRows(rows, cases, ({ inputs, options = {} }) => {
    const data = inputs();
    const expected = expectNystrom(data, options);
    return (isa) => checkNystrom(data, options, { isa, threads: 2 }, expected);
  });

/** A filter of each head. */
const filters = (heads: number, size: number): NystromMeaning['convKernel'] =>
  normal([heads, size], 100 + size) as NystromMeaning['convKernel'];

/** A mask [batch, length] by a rule. */
function mask(batch: number, length: number, lives: (item: number, position: number) => boolean): BoolTensor {
  const data = Uint8Array.from({ length: batch * length }, (_, i) => Number(lives(Math.floor(i / length), i % length)));
  return { data, dims: [batch, length], type: 'bool' };
}

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

describe('each option alone', () => {
  const shape = { batch: 2, heads: 2, queries: 150, keys: 150, headDim: 24, valueDim: 40 };
  const inputs = once(() => normalInputs(shape, 11));
  const next = uniform(5);
  const scattered = mask(2, 150, () => next() < 0.7);
  const options: Record<string, NystromMeaning> = {
    none: {},
    scale: { scale: 0.3 },
    'scale 0': { scale: 0 },
    'one landmark': { landmarks: 1 },
    'landmarks that divide the length': { landmarks: 30 },
    'landmarks that do not': { landmarks: 47 },
    'one iteration': { iterations: 1 },
    'eight iterations': { iterations: 8, landmarks: 16 },
    'singular values': { pinv: 'svd' },
    'singular values, other regularization': { pinv: 'svd', regularization: 0.2, landmarks: 33 },
    'singular values, none': { pinv: 'svd', regularization: 0, landmarks: 12 },
    'landmark positions': { landmarkIndices: [3, 77, 149, 0, 20] },
    'landmark positions of each': { landmarkIndices: { query: [3, 77, 149], key: [0, 140, 141] } },
    'a filter of one tap': { convKernel: filters(2, 1) },
    'a filter': { convKernel: filters(2, 33) },
    'one filter for all heads': { convKernel: filters(1, 65) },
    'a filter longer than the sequence twice': { convKernel: filters(2, 401) },
    'masked keys': { keyMask: scattered },
    'masked queries': { queryMask: scattered },
    'both masked': { keyMask: scattered, queryMask: scattered },
    'both masked, and a filter': { keyMask: scattered, queryMask: scattered, convKernel: filters(2, 35) },
    'padding that leaves landmarks without positions': {
      keyMask: mask(2, 150, (item, j) => j < [40, 149][item]),
      queryMask: mask(2, 150, (item, j) => j < [40, 149][item]),
      landmarks: 20,
    },
    'masked landmark positions': {
      landmarkIndices: [10, 149, 40, 77],
      keyMask: mask(2, 150, (item, j) => item === 0 || j !== 40),
      queryMask: mask(2, 150, (item, j) => item === 1 || j !== 149),
    },
    'no landmark left in one item': {
      landmarks: 2,
      keyMask: mask(2, 150, (item, j) => item === 0 || j < 75),
      queryMask: mask(2, 150, (item, j) => item === 0 || j >= 75),
      convKernel: filters(2, 3),
    },
    'everything masked in one item': { keyMask: mask(2, 150, (item) => item === 0) },
  };
  table(Object.fromEntries(Object.entries(options).map(([name, value]) => [name, { inputs, options: value }])));
});

describe('lengths', () => {
  const cases: Record<string, Case> = {};
  const lengths = [
    [1, 1],
    [3, 3],
    [1, 203],
    [203, 1],
    [63, 113],
    [113, 63],
    [203, 203],
    [1023, 70],
    [70, 1023],
  ] as const;
  for (const [queries, keys] of lengths) {
    cases[`${queries} queries, ${keys} keys`] = {
      inputs: () => normalInputs({ heads: 2, kvHeads: 1, queries, keys, headDim: 20 }, queries + keys),
    };
  }
  for (const landmarks of [2, 3, 4, 5, 8, 16, 17, 63, 64, 65, 90]) {
    cases[`${landmarks} landmarks`] = {
      inputs: () => normalInputs({ queries: 101, keys: 97, headDim: 16 }, landmarks),
      options: { landmarks, iterations: 3 },
    };
  }
  table(cases);
});

describe('many keys, whose ranges are computed apart', () => {
  const cases: Record<string, Case> = {};
  const shape: Shape = { heads: 2, kvHeads: 1, queries: 140, keys: 5000, headDim: 16 };
  for (const landmarks of [2, 33, 70]) {
    cases[`${landmarks} landmarks`] = { inputs: () => normalInputs(shape, landmarks), options: { landmarks } };
  }
  cases['a range without a valid key'] = {
    inputs: () => normalInputs(shape, 7),
    options: { landmarks: 20, keyMask: mask(1, 5000, (_, j) => j < 900 || j >= 3100) },
  };
  table(cases);
});

describe('head sizes and ratios', () => {
  const cases: Record<string, Case> = {};
  for (const headDim of headSizes) {
    cases[`${headDim}`] = {
      inputs: () => normalInputs({ queries: 80, keys: 80, headDim }, headDim),
      options: { landmarks: 20, convKernel: filters(1, 5) },
    };
  }
  for (const [headDim, valueDim] of [
    [13, 7],
    [7, 33],
    [40, 1],
  ] as const) {
    cases[`${headDim}, values of ${valueDim}`] = {
      inputs: () => normalInputs({ queries: 90, keys: 90, headDim, valueDim }, headDim),
      options: { landmarks: 11, convKernel: filters(1, 9), pinv: 'svd' },
    };
  }
  for (const [heads, kvHeads] of headRatios) {
    cases[`${heads} heads over ${kvHeads}`] = {
      inputs: () => normalInputs({ batch: 2, heads, kvHeads, queries: 60, keys: 60, headDim: 16 }, heads),
      options: { landmarks: 15, convKernel: filters(heads, 7) },
    };
  }
  table(cases);
});

describe('rows staged in several turns', () => {
  table({
    'one row in the last turn': {
      inputs: () => normalInputs({ heads: 2, kvHeads: 1, queries: 1025, keys: 1025, headDim: 8 }, 31),
      options: { landmarks: 10, convKernel: filters(2, 33) },
    },
    'a filter over several tiles of values': {
      inputs: () => normalInputs({ heads: 1, queries: 1100, keys: 1100, headDim: 8 }, 32),
      options: { landmarks: 10, convKernel: filters(1, 701), keyMask: mask(1, 1100, (_, j) => j % 5 !== 0) },
    },
  });
});

describe.each(types)('%s', (type) => {
  const shape: Shape = { batch: 2, heads: 4, kvHeads: 2, queries: 110, keys: 110, headDim: 32, valueDim: 24 };
  const inputs = once(() => normalInputs(shape, 41, type));
  const padding = mask(2, 110, (item, j) => j < [110, 71][item]);
  const options: Record<string, NystromMeaning> = {
    plain: { landmarks: 24 },
    'all at once': { landmarks: 24, keyMask: padding, queryMask: padding, convKernel: filters(4, 33) },
    positions: { landmarkIndices: [100, 50, 0, 7], pinv: 'svd' },
  };
  table(Object.fromEntries(Object.entries(options).map(([name, value]) => [name, { inputs, options: value }])));

  test.each(types)('rounded once to %s', (other) => {
    for (const meaning of Object.values(options)) {
      const expected = expectNystrom(inputs(), meaning);
      for (const isa of rows) expect(checkNystrom(inputs(), meaning, { isa, type: other }, expected).type).toBe(other);
    }
  });

  test('both layouts give the same bits', () => {
    const { q, k, v } = inputs();
    const swapped = { q: swapLayout(q), k: swapLayout(k), v: swapLayout(v) };
    for (const meaning of Object.values(options)) {
      const wanted = checkNystrom(inputs(), meaning);
      const found = checkNystrom(swapped, { ...meaning, layout: 'blhd' });
      expect(bitsOf(swapLayout(found))).toEqual(bitsOf(wanted));
    }
  });
});

describe('hurtful data', () => {
  const shape = { heads: 2, queries: 130, keys: 130, headDim: 16 };
  const cases: Record<string, Case> = {};
  for (const [name, make] of Object.entries(hurtful)) {
    cases[name] = { inputs: () => make(shape, 51), options: { landmarks: 16 } };
    cases[`${name}, singular values`] = { inputs: () => make(shape, 51), options: { landmarks: 16, pinv: 'svd' } };
  }
  table(cases);
});

describe('nothing to compute', () => {
  const shape = { batch: 2, heads: 2, queries: 3, keys: 4, headDim: 5 };
  table({
    'no keys': { inputs: () => normalInputs({ ...shape, keys: 0 }, 1) },
    'no queries': { inputs: () => normalInputs({ ...shape, queries: 0 }, 1) },
    'no batch items': { inputs: () => normalInputs({ ...shape, batch: 0 }, 1) },
  });
});

describe('a NaN that is not masked', () => {
  const shape = { heads: 2, queries: 50, keys: 50, headDim: 8 };
  const places = ['q', 'k', 'v'] as const;
  test.each(places.flatMap((place) => (['iterative', 'svd'] as const).map((pinv) => [place, pinv] as const)))(
    'in %s (%s) shows in its head and in no other',
    (place, pinv) => {
      const plain = normalInputs(shape, 61);
      const data = plain[place].data;
      const inputs = { ...plain, [place]: filled(plain[place].dims, 'float32', (i) => (i === 8 * 30 ? NaN : data[i])) };
      const options: NystromMeaning = { landmarks: 7, pinv };
      for (const isa of rows) checkNystrom(inputs, options, { isa });
    },
  );
});
