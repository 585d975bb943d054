import {
  filled,
  headRatios,
  headSizes,
  hurtful,
  type Inputs,
  normal,
  normalInputs,
  oddLengths,
  poisonPast,
  type Shape,
  types,
} from './data';
import { toFloat64 } from './half';
import { checkLinformer, projection } from './linformer-run';
import { expectLinformer, type LinformerMeaning } from './reference-linformer';
import { isaRows, testRows } from './rows';

const rows = isaRows('linformer');

interface Case {
  readonly inputs: () => Inputs;
  readonly meaning: () => LinformerMeaning;
  readonly threads?: number;
}

const table = (cases: Readonly<Record<string, Case>>) =>
  testRows(rows, cases, ({ inputs, meaning, threads = 1 }) => {
    const data = inputs();
    const options = meaning();
    const expected = expectLinformer(data.q, data.k, data.v, options);
    return (isa) => checkLinformer(data, options, { isa, threads }, expected);
  });

/** Normal data; projections of `projected` rows for so many keys, or more. */
function normalCase(
  shape: Shape,
  projected: number,
  how: { maxLength?: number; perHead?: boolean; shared?: boolean } = {},
): Case {
  const { maxLength = shape.keys, perHead = false, shared = false } = how;
  const heads = shape.kvHeads ?? shape.heads ?? 1;
  const dims = perHead ? [heads, projected, maxLength] : [projected, maxLength];
  return {
    inputs: () => normalInputs(shape, shape.keys + projected),
    meaning: () => ({
      keyProjection: projection(dims, projected),
      ...(shared ? {} : { valueProjection: projection(dims, projected + 1) }),
      layout: shape.layout,
    }),
  };
}

/** A mask over the keys of each sequence, from a rule. */
const keyMask = (batch: number, keys: number, there: (sequence: number, key: number) => boolean) => ({
  data: Uint8Array.from({ length: batch * keys }, (_, i) => Number(there(Math.floor(i / keys), i % keys))),
  dims: [batch, keys],
  type: 'bool' as const,
});

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

describe('projections', () => {
  const shape = { batch: 2, heads: 6, kvHeads: 3, queries: 35, keys: 141, headDim: 24, valueDim: 40 };
  const cases: Record<string, Case> = {};
  for (const perHead of [false, true]) {
    for (const shared of [false, true]) {
      const name = `${perHead ? 'a matrix a head' : 'one matrix'}, ${shared ? 'for keys and values' : 'each'}`;
      cases[name] = normalCase(shape, 20, { perHead, shared });
      cases[`${name}, leading columns`] = normalCase(shape, 20, { perHead, shared, maxLength: 256 });
      cases[`${name}, layout blhd`] = normalCase({ ...shape, layout: 'blhd' }, 20, { perHead, shared, maxLength: 150 });
    }
  }
  table(cases);
});

describe('projected rows', () => {
  const cases: Record<string, Case> = {};
  for (const projected of [1, 2, 5, 6, 7, 11, 12, 13, 47, 64, 127, 128, 130, 287, 289, 600]) {
    const shape = { heads: 2, queries: 5, keys: 70, headDim: 9, valueDim: 7 };
    cases[`${projected}`] = normalCase(shape, projected, { shared: projected % 2 === 0 });
    cases[`${projected}, two threads`] = {
      ...normalCase(shape, projected, { shared: projected % 2 === 1 }),
      threads: 2,
    };
  }
  table(cases);
});

describe('lengths', () => {
  const cases: Record<string, Case> = {};
  for (const length of oddLengths) {
    cases[`${length} queries, ${length} keys`] = normalCase({ queries: length, keys: length, headDim: 20 }, 17);
    cases[`1 query, ${length} keys`] = normalCase({ heads: 3, queries: 1, keys: length, headDim: 16 }, 8, {
      maxLength: 1024,
      shared: true,
    });
    cases[`${length} queries, 1 key`] = normalCase({ queries: length, keys: 1, headDim: 9 }, 5);
  }
  for (const keys of [255, 256, 257, 511, 513]) {
    cases[`around a block: ${keys}`] = normalCase({ heads: 2, queries: 3, keys, headDim: 12 }, 9, {
      maxLength: 512 + 1,
    });
  }
  for (const keys of [4095, 4096, 4097, 4352, 6144, 6145, 20_000]) {
    // Keys are summed in ranges.
    const shape = { batch: 2, heads: 2, kvHeads: 1, queries: 3, keys, headDim: 5, valueDim: 3 };
    cases[`ranges: ${keys}`] = { ...normalCase(shape, 4, { shared: keys % 2 === 0 }), threads: keys % 3 ? 2 : 1 };
  }
  table(cases);
});

describe('nothing to compute', () => {
  const shape = { batch: 2, heads: 2, queries: 3, keys: 4, headDim: 5 };
  table({
    'no keys': normalCase({ ...shape, keys: 0 }, 3, { maxLength: 7 }),
    'no queries': normalCase({ ...shape, queries: 0 }, 3),
    'no sequences': normalCase({ ...shape, batch: 0 }, 3),
  });
});

describe('head sizes', () => {
  const cases: Record<string, Case> = {};
  for (const headDim of headSizes) {
    cases[`${headDim}`] = normalCase({ heads: 3, queries: 7, keys: 60, headDim }, 14);
    cases[`${headDim}, shared`] = normalCase({ heads: 3, queries: 7, keys: 60, headDim }, 14, { shared: true });
  }
  for (const [headDim, valueDim] of [
    [1, 256],
    [256, 1],
    [60, 100],
    [13, 7],
    [80, 33],
    [511, 300],
  ] as const) {
    const shape = { heads: 2, queries: 7, keys: 50, headDim, valueDim };
    cases[`${headDim}, values of ${valueDim}`] = normalCase(shape, 10);
    cases[`${headDim}, values of ${valueDim}, shared`] = normalCase(shape, 10, { shared: true });
  }
  for (let headDim = 2; headDim <= 35; headDim += 3) {
    const shape = { heads: 5, queries: 2, keys: 19, headDim, valueDim: 37 - headDim };
    cases[`${headDim} and ${37 - headDim}`] = normalCase(shape, 6, { shared: headDim % 2 === 0 });
  }
  table(cases);
});

describe('head ratios', () => {
  const cases: Record<string, Case> = {};
  for (const [heads, kvHeads] of [...headRatios, [48, 2], [26, 26]] as const) {
    for (const queries of [1, 40]) {
      for (const perHead of [false, true]) {
        // Items and heads that share a matrix stand side by side, more of them than fit one unit.
        const shape = { batch: 3, heads, kvHeads, queries, keys: 33, headDim: 12, valueDim: 20 };
        const name = `${heads} on ${kvHeads}, ${queries} queries${perHead ? ', a matrix a head' : ''}`;
        cases[name] = { ...normalCase(shape, 7, { perHead, shared: heads % 2 === 0 }), threads: 1 + (heads % 2) };
      }
    }
  }
  table(cases);
});

describe('scale', () => {
  const cases: Record<string, Case> = {};
  for (const scale of [0.3, -0.2, 0, 5]) {
    const plain = normalCase({ heads: 2, queries: 20, keys: 50, headDim: 12 }, 12);
    cases[`${scale}`] = { ...plain, meaning: () => ({ ...plain.meaning(), scale }) };
  }
  table(cases);
});

describe.each(types)('%s', (type) => {
  const shape = { heads: 4, kvHeads: 2, queries: 30, keys: 130, headDim: 20, valueDim: 31 };
  const cases: Record<string, Case> = {};
  for (const other of types) {
    cases[`projections of ${other}`] = {
      inputs: () => normalInputs(shape, 31, type),
      meaning: () => ({
        keyProjection: projection([9, 200], 32, other),
        valueProjection: projection([9, 200], 33, other),
      }),
    };
    cases[`queries on keys of ${other}`] = {
      inputs: () => ({ ...normalInputs(shape, 34, other), q: normalInputs(shape, 34, type).q }),
      meaning: () => ({ keyProjection: projection([9, 130], 35, other) }),
    };
  }
  for (const [name, make] of Object.entries(hurtful)) {
    cases[name] = {
      inputs: () => make({ heads: 2, queries: 12, keys: 300, headDim: 32 }, 41, type),
      meaning: () => ({ keyProjection: projection([13, 300], 42), valueProjection: projection([13, 300], 43) }),
    };
  }
  cases['a pooling projection'] = {
    inputs: () => normalInputs({ heads: 2, queries: 12, keys: 300, headDim: 32 }, 44, type),
    meaning: () => ({
      keyProjection: filled([10, 300], type, (i) => (Math.floor((i % 300) / 30) === Math.floor(i / 300) ? 1 / 30 : 0)),
    }),
  };
  cases['rows without any key'] = {
    inputs: () => normalInputs({ heads: 2, queries: 12, keys: 30, headDim: 32 }, 45, type),
    meaning: () => ({
      keyProjection: filled([10, 300], type, (i) => ((i % 300) % 10 < Math.floor(i / 300) ? 0.25 : 0)),
    }),
  };
  // [which input, element, value]; it spreads as IEEE arithmetic says.
  for (const [which, at, value] of [
    ['q', 16 * 3 + 1, NaN],
    ['k', 16 * 12 + 2, NaN],
    ['v', 16 * 12 + 5, NaN],
    ['v', 16 * 12 + 5, -Infinity],
  ] as const) {
    cases[`${value} in ${which}`] = {
      inputs: () => {
        const inputs = normalInputs({ queries: 7, keys: 20, headDim: 16 }, 46, type);
        const plain = toFloat64(inputs[which]);
        return { ...inputs, [which]: filled(inputs[which].dims, type, (i) => (i === at ? value : plain[i])) };
      },
      meaning: () => ({ keyProjection: filled([3, 20], 'float32', (i) => 0.1 + (i % 7) / 10) }),
    };
  }
  table(cases);
});

describe.each(types)('what a key mask hides counts as zeros, in %s', (type) => {
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 9, keys: 140, headDim: 16, valueDim: 21 };
  const lengths = [100, 3];
  const projections = (perHead: boolean, shared: boolean) => {
    const dims = perHead ? [2, 11, 160] : [11, 160];
    return {
      keyProjection: projection(dims, 51),
      ...(shared ? {} : { valueProjection: projection(dims, 52) }),
    };
  };
  const cases: Record<string, Case> = {};
  for (const [perHead, shared] of [
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ] as const) {
    cases[`NaN in the padding${perHead ? ', a matrix a head' : ''}${shared ? ', shared' : ''}`] = {
      inputs: () => {
        const { q, k, v } = normalInputs(shape, 53, type);
        return { q, k: poisonPast(k, lengths), v: poisonPast(v, lengths) };
      },
      meaning: () => ({
        ...projections(perHead, shared),
        keyMask: keyMask(2, 140, (sequence, key) => key < lengths[sequence]),
      }),
    };
  }
  cases['layout blhd'] = {
    inputs: () => {
      const { q, k, v } = normalInputs({ ...shape, layout: 'blhd' }, 54, type);
      return { q, k: poisonPast(k, lengths, 'blhd'), v: poisonPast(v, lengths, 'blhd') };
    },
    meaning: () => ({
      ...projections(false, false),
      layout: 'blhd',
      keyMask: keyMask(2, 140, (sequence, key) => key < lengths[sequence]),
    }),
  };
  cases['infinity in every other key'] = {
    inputs: () => {
      const { q, k, v } = normalInputs(shape, 55, type);
      const ruin = (dim: number, plain: Float64Array) => (i: number) =>
        Math.floor(i / dim) % 2 === 1 ? Infinity : plain[i];
      return { q, k: filled(k.dims, type, ruin(16, toFloat64(k))), v: filled(v.dims, type, ruin(21, toFloat64(v))) };
    },
    meaning: () => ({ ...projections(false, false), keyMask: keyMask(2, 140, (_sequence, key) => key % 2 === 0) }),
  };
  cases['every key of one sequence'] = {
    inputs: () => {
      const { q, k, v } = normalInputs(shape, 56, type);
      return { q, k: poisonPast(k, [140, 0]), v: poisonPast(v, [140, 0]) };
    },
    meaning: () => ({ ...projections(false, true), keyMask: keyMask(2, 140, (sequence) => sequence === 0) }),
  };
  cases['any number but 0 is there'] = {
    inputs: () => normalInputs(shape, 57, type),
    meaning: () => {
      const mask = keyMask(2, 140, (_sequence, key) => key % 3 > 0);
      return { ...projections(false, true), keyMask: { ...mask, data: mask.data.map((there) => 255 * there) } };
    },
  };
  table(cases);
});

describe('what is not used is not read', () => {
  table({
    'NaN in the columns past the keys': {
      inputs: () => normalInputs({ heads: 2, queries: 5, keys: 30, headDim: 8 }, 61),
      meaning: () => {
        const plain = projection([4, 50], 62).data;
        return { keyProjection: filled([4, 50], 'float32', (i) => (i % 50 >= 30 ? NaN : plain[i])) };
      },
    },
    // A head with NaN throughout must not touch its neighbours, which it shares panels with.
    'NaN in another head': {
      inputs: () => {
        const { q, k, v } = normalInputs({ heads: 3, queries: 5, keys: 30, headDim: 8 }, 63);
        const ruin = (plain: ArrayLike<number>) => (i: number) => (Math.floor(i / 240) === 1 ? NaN : plain[i]);
        return { q, k: filled(k.dims, 'float32', ruin(k.data)), v: filled(v.dims, 'float32', ruin(v.data)) };
      },
      meaning: () => ({ keyProjection: normal([4, 50], 64) }),
    },
  });
});
