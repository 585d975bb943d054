import { linearAttention, linearAttentionSync } from '../lib';
import type { BoolTensor, DataType, Tensor } from '../lib/tensor';
import {
  filled,
  guarded,
  headRatios,
  headSizes,
  hurtful,
  type Inputs,
  normalInputs,
  oddLengths,
  type Shape,
  swapLayout,
  types,
} from './data';
import { expectLinear } from './expectation';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { checkLinear, maps, optionsOf, plainMeaning } from './linear-run';
import type { LinearMeaning } from './reference-linear';
import { isaRows, once, testRows } from './rows';
import { compare } from './tolerance';

const rows = isaRows('linear');

interface Case {
  readonly inputs: () => Inputs;
  readonly meaning: LinearMeaning;
}

const table = (cases: Readonly<Record<string, Case>>) =>
  testRows(rows, cases, ({ inputs, meaning }) => {
    const data = inputs();
    const expected = expectLinear(data.q, data.k, data.v, meaning);
    return (isa) => checkLinear(data, meaning, { isa }, expected);
  });

/** A case for each map, all keys and causal. */
function everyMap(shape: Shape, seed: number, type: DataType = 'float32', more: Partial<LinearMeaning> = {}) {
  const cases: Record<string, Case> = {};
  for (const name of Object.keys(maps)) {
    for (const causal of shape.queries === shape.keys ? [false, true] : [false]) {
      cases[`${name}${causal ? ', causal' : ''}`] = {
        inputs: once(() => normalInputs(shape, seed, type)),
        meaning: { ...plainMeaning(name, shape), ...more, causal },
      };
    }
  }
  return cases;
}

const onlyElu = (shape: Shape, seed: number, causal: boolean): Case => ({
  inputs: () => normalInputs(shape, seed),
  meaning: { map: { kind: 'elu' }, causal },
});

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

describe('every map', () => {
  table(everyMap({ batch: 2, heads: 4, kvHeads: 2, queries: 75, keys: 75, headDim: 11, valueDim: 19 }, 11));
});

describe('every map, other lengths of queries and keys', () => {
  table(everyMap({ heads: 3, queries: 37, keys: 141, headDim: 8, valueDim: 33 }, 12));
});

describe('every map, one row', () => {
  table(everyMap({ batch: 2, heads: 2, kvHeads: 1, queries: 1, keys: 1, headDim: 9, valueDim: 5 }, 13));
});

describe('every map, rows before heads', () => {
  const shape = { batch: 2, heads: 6, kvHeads: 3, queries: 41, keys: 41, headDim: 10, valueDim: 7 };
  table(everyMap({ ...shape, layout: 'blhd' }, 14, 'float32', { layout: 'blhd' }));
});

describe.each(types)('every map, %s', (type) => {
  table(everyMap({ heads: 2, queries: 70, keys: 70, headDim: 12, valueDim: 16 }, 15, type));
});

describe('lengths', () => {
  const cases: Record<string, Case> = {};
  // On both sides of every chunk that a kernel may cut a sequence into.
  const boundaries = [2, 8, 16, 32, 64, 128, 256].flatMap((chunk) => [chunk - 1, chunk, chunk + 1]);
  const lengths = [...new Set([...oddLengths, ...boundaries, 1024, 1025, 2100])].sort((a, b) => a - b);
  for (const length of lengths) {
    const shape = { heads: 2, kvHeads: 1, queries: length, keys: length, headDim: 16, valueDim: 24 };
    cases[`${length}, causal`] = onlyElu(shape, length, true);
    cases[`${length} keys, 5 queries`] = onlyElu({ ...shape, queries: 5 }, length, false);
    cases[`${length} queries, 5 keys`] = onlyElu({ ...shape, keys: 5 }, length, false);
  }
  for (const name of ['favor', 'taylor', 'hedgehog', 'cosformer', 'relu, weights a head, offset']) {
    for (const length of [63, 64, 65, 129, 257]) {
      const shape = { heads: 1, queries: length, keys: length, headDim: 6, valueDim: 9 };
      cases[`${length}, causal, ${name}`] = {
        inputs: () => normalInputs(shape, length),
        meaning: { ...plainMeaning(name, shape), causal: true },
      };
    }
  }
  table(cases);
});

describe('nothing to compute', () => {
  const shape = { batch: 2, heads: 2, queries: 3, keys: 4, headDim: 5 };
  table({
    'no keys': onlyElu({ ...shape, keys: 0 }, 1, false),
    'no queries': onlyElu({ ...shape, queries: 0 }, 1, false),
    'no rows, causal': onlyElu({ ...shape, queries: 0, keys: 0 }, 1, true),
    'no sequences': onlyElu({ ...shape, batch: 0 }, 1, false),
    'no keys, favor': {
      inputs: () => normalInputs({ ...shape, keys: 0 }, 1),
      meaning: plainMeaning('favor', shape),
    },
    'features that are all 0': {
      inputs: () => {
        const { q, k, v } = normalInputs({ ...shape, queries: 4 }, 2);
        return { q, k: filled(k.dims, 'float32', (i) => -Math.abs(k.data[i])), v };
      },
      meaning: { map: { kind: 'relu' }, epsilon: 0, causal: true },
    },
  });
});

describe('head sizes', () => {
  const cases: Record<string, Case> = {};
  for (const headDim of headSizes) {
    for (const causal of [false, true]) {
      const shape = { queries: 67, keys: 67, headDim };
      cases[`${headDim}${causal ? ', causal' : ''}`] = onlyElu(shape, headDim, causal);
    }
    cases[`${headDim}, favor`] = {
      inputs: () => normalInputs({ queries: 19, keys: 19, headDim }, headDim),
      meaning: { ...plainMeaning('favor', { headDim }), causal: true },
    };
  }
  for (let headDim = 2; headDim <= 35; headDim += 3) {
    const shape = { queries: 20, keys: 20, headDim, valueDim: 37 - headDim };
    cases[`${headDim} and ${37 - headDim}`] = onlyElu(shape, headDim, headDim % 2 === 0);
  }
  for (const [headDim, valueDim] of [
    [1, 256],
    [256, 1],
    [60, 100],
  ] as const) {
    cases[`${headDim}, values of ${valueDim}`] = onlyElu({ queries: 40, keys: 40, headDim, valueDim }, headDim, true);
  }
  for (const headDim of [1, 2, 3, 5, 16, 17]) {
    cases[`${headDim}, taylor`] = {
      inputs: () => normalInputs({ queries: 21, keys: 21, headDim }, headDim),
      meaning: { map: { kind: 'taylor' }, causal: true },
    };
  }
  table(cases);
});

describe('head ratios', () => {
  const cases: Record<string, Case> = {};
  for (const [heads, kvHeads] of [...headRatios, [24, 2], [33, 1]] as const) {
    for (const causal of [false, true]) {
      const shape = { batch: 2, heads, kvHeads, queries: 34, keys: 34, headDim: 12 };
      cases[`${heads} on ${kvHeads}${causal ? ', causal' : ''}`] = onlyElu(shape, heads, causal);
    }
  }
  table(cases);
});

describe('queries of another type than keys and values', () => {
  const cases: Record<string, Case> = {};
  for (const type of types) {
    for (const other of types.filter((each) => each !== type)) {
      const shape = { heads: 2, kvHeads: 1, queries: 40, keys: 40, headDim: 9, valueDim: 14 };
      cases[`${type} on ${other}`] = {
        inputs: () => ({ ...normalInputs(shape, 43, other), q: normalInputs(shape, 43, type).q }),
        meaning: { map: { kind: 'elu' }, causal: true },
      };
    }
  }
  table(cases);
});

describe('epsilon and scale', () => {
  const shape = { heads: 2, queries: 40, keys: 40, headDim: 8 };
  const inputs = once(() => normalInputs(shape, 51));
  const favor = plainMeaning('favor', shape);
  const meanings: Record<string, LinearMeaning> = {
    'epsilon 0': { map: { kind: 'elu' }, epsilon: 0 },
    'a large epsilon': { map: { kind: 'elu' }, epsilon: 30 },
    'a large epsilon, causal': { map: { kind: 'relu' }, epsilon: 3, causal: true },
    'favor, epsilon': { ...favor, epsilon: 0.1 },
    'favor, epsilon, causal': { ...favor, epsilon: 0.1, causal: true },
    'favor, scale': { ...favor, scale: 0.05, causal: true },
    'favor, scale above 1': { ...favor, scale: 1.3 },
    'taylor, scale': { map: { kind: 'taylor' }, scale: 0.8, causal: true },
    'taylor, not normalized': { map: { kind: 'taylor' }, normalize: false, causal: true },
    'elu, not normalized': { map: { kind: 'elu' }, normalize: false, causal: true },
    'identity, scale': { map: { kind: 'identity' }, normalize: false, scale: -2.5 },
    'hedgehog, scale 0': { ...plainMeaning('hedgehog', shape), normalize: false, scale: 0 },
  };
  table(Object.fromEntries(Object.entries(meanings).map(([name, meaning]) => [name, { inputs, meaning }])));
  table({
    'identity, normalized': {
      inputs: () => {
        const { q, k, v } = inputs();
        return {
          q: filled(q.dims, 'float32', (i) => Math.abs(q.data[i])),
          k: filled(k.dims, 'float32', (i) => Math.abs(k.data[i])),
          v,
        };
      },
      meaning: { map: { kind: 'identity' }, causal: true },
    },
  });
});

describe('cosformer', () => {
  const shape = { heads: 2, queries: 50, keys: 50, headDim: 6 };
  const inputs = once(() => normalInputs(shape, 52));
  table({
    'as long as it may be': { inputs, meaning: { map: { kind: 'cosformer', maxLength: 50 }, causal: true } },
    'far shorter': { inputs, meaning: { map: { kind: 'cosformer', maxLength: 100_000 } } },
  });
});

const hiding = (batch: number, keys: number, isThere: (key: number, item: number) => boolean): BoolTensor => ({
  data: Uint8Array.from({ length: batch * keys }, (_, i) => Number(isThere(i % keys, Math.floor(i / keys)))),
  dims: [batch, keys],
  type: 'bool',
});

describe('a key mask hides keys as if they were not there, whatever they hold', () => {
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 90, keys: 90, headDim: 7, valueDim: 10 };
  const masks: Readonly<Record<string, BoolTensor>> = {
    'padding after': hiding(2, 90, (key, item) => key < (item === 0 ? 71 : 1)),
    'padding before': hiding(2, 90, (key, item) => key >= (item === 0 ? 70 : 3)),
    'every other key': hiding(2, 90, (key) => key % 2 === 1),
    'all of one sequence': hiding(2, 90, (_, item) => item === 1),
    'no key': hiding(2, 90, () => true),
    'any byte but 0 is there': {
      ...hiding(2, 90, () => true),
      data: Uint8Array.from({ length: 180 }, (_, i) => i % 3),
    },
  };
  const plain = once(() => normalInputs(shape, 61));
  const cases: Record<string, Case> = {};
  for (const [what, keyMask] of Object.entries(masks)) {
    for (const name of what === 'padding before' ? Object.keys(maps) : ['elu', 'favor', 'hedgehog']) {
      for (const causal of [false, true]) {
        cases[`${what}, ${name}${causal ? ', causal' : ''}`] = {
          inputs: () => {
            const { q, k, v } = plain();
            const ruin = (tensor: Tensor) => {
              const [, heads, keys, dim] = tensor.dims;
              return filled(tensor.dims, 'float32', (i) => {
                const key = Math.floor(i / dim) % keys;
                const item = Math.floor(i / (dim * keys * heads));
                return keyMask.data[item * keys + key] === 0 ? [NaN, Infinity, -Infinity][i % 3] : tensor.data[i];
              });
            };
            return { q, k: ruin(k), v: ruin(v) };
          },
          meaning: { ...plainMeaning(name, shape), causal, keyMask },
        };
      }
    }
  }
  table(cases);
});

describe('NaN', () => {
  const shape = { heads: 2, queries: 70, keys: 70, headDim: 8 };
  const withNaN = (which: keyof Inputs, row: number) => () => {
    const inputs = normalInputs(shape, 62);
    const plain = toFloat64(inputs[which]);
    return { ...inputs, [which]: filled(inputs[which].dims, 'float32', (i) => (i === 8 * row + 3 ? NaN : plain[i])) };
  };
  const cases: Record<string, Case> = {};
  for (const name of Object.keys(maps)) {
    const meaning = { ...plainMeaning(name, shape), causal: true };
    cases[`${name}: in a query, its row alone`] = { inputs: withNaN('q', 37), meaning };
    cases[`${name}: in a key, from its row on`] = { inputs: withNaN('k', 37), meaning };
  }
  cases['in a value, its column'] = { inputs: withNaN('v', 37), meaning: { map: { kind: 'elu' }, causal: true } };
  cases['in a value, all keys'] = { inputs: withNaN('v', 37), meaning: { map: { kind: 'elu' } } };
  table(cases);
});

describe.each(types)('data that hurts, %s', (type) => {
  const cases: Record<string, Case> = {};
  for (const [name, make] of Object.entries(hurtful)) {
    for (const kind of ['elu', 'relu'] as const) {
      cases[`${name}, ${kind}`] = {
        inputs: () => make({ heads: 2, queries: 130, keys: 130, headDim: 24 }, 41, type),
        meaning: { map: { kind }, causal: true },
      };
    }
  }
  table(cases);
});

describe('ways to call', () => {
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 150, keys: 150, headDim: 16, valueDim: 24 };

  test.each(types)('%s: sync, async and out give the same bits', async (type) => {
    const { q, k, v } = normalInputs(shape, 71, type);
    for (const name of Object.keys(maps)) {
      const options = optionsOf({ ...plainMeaning(name, shape), causal: true });
      const wanted = linearAttentionSync(q, k, v, options);
      expect(wanted.type).toBe(type);
      expect(wanted.dims).toEqual([2, 4, 150, 24]);
      expectSameBits(await linearAttention(q, k, v, options), wanted);
    }
  });

  test.each(rows)('%s: both layouts give the same bits', (isa) => {
    const { q, k, v } = normalInputs(shape, 72);
    for (const name of Object.keys(maps)) {
      for (const causal of [false, true]) {
        const meaning = { ...plainMeaning(name, shape), causal };
        const run = { ...optionsOf(meaning), isa };
        const wanted = linearAttentionSync(q, k, v, run);
        const swapped = [q, k, v].map(swapLayout) as [Tensor, Tensor, Tensor];
        expectSameBits(swapLayout(linearAttentionSync(...swapped, { ...run, layout: 'blhd' })), wanted);
      }
    }
  });

  test('out may be of another type, and is rounded to once', () => {
    const { q, k, v } = normalInputs(shape, 73, 'bfloat16');
    const meaning = { map: { kind: 'elu' }, causal: true } as const;
    const expected = expectLinear(q, k, v, meaning);
    for (const isa of rows) {
      for (const type of types) {
        const out = guarded(expected.dims, type);
        const output = linearAttentionSync(q, k, v, { ...optionsOf(meaning), isa, out: out.tensor });
        out.check();
        expect(output).toBe(out.tensor);
        compare(output, expected, `${type} (${isa})`);
      }
    }
  });
});
