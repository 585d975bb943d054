import fc from 'fast-check';
import { matmul, matmulSync } from '../lib';
import type { DataType, Tensor } from '../lib/tensor';
import { filled, guarded, normal, slice, types } from './data';
import { expectMatmul } from './expectation';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import type { MatmulMeaning } from './reference-matmul';
import { isaRows, testRows } from './rows';
import { compare, type Expected } from './tolerance';

const rows = isaRows('matmul');

interface Factors {
  readonly a: Tensor;
  readonly b: Tensor;
}

function checkMatmul(
  { a, b }: Factors,
  options: MatmulMeaning,
  run: { readonly isa?: string; readonly threads?: number },
  expected: Expected,
): Tensor {
  const out = guarded(expected.dims, a.type);
  const product = matmulSync(a, b, { ...options, ...run, out: out.tensor });
  out.check();
  expect(product.data).toBe(out.tensor.data);
  compare(product, expected, `product (${run.isa ?? 'auto'})`);
  return product;
}

const factors = (
  m: number,
  k: number,
  n: number,
  type: DataType,
  transposeB: boolean,
  transposeA = false,
): Factors => ({
  a: normal(transposeA ? [k, m] : [m, k], m + k, type),
  b: normal(transposeB ? [n, k] : [k, n], n + k + 1, type),
});

interface Case {
  readonly inputs: () => Factors;
  readonly options?: MatmulMeaning;
}

const table = (cases: Readonly<Record<string, Case>>) =>
  testRows(rows, cases, ({ inputs, options = {} }) => {
    const data = inputs();
    const expected = expectMatmul(data.a, data.b, options);
    return (isa) => checkMatmul(data, options, { isa, threads: 2 }, expected);
  });

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

describe('shapes', () => {
  const cases: Record<string, Case> = {};
  const shapes = [
    [1, 1, 1],
    [1, 64, 1],
    [1, 300, 257],
    [257, 300, 1],
    [6, 16, 16],
    [7, 17, 33],
    [63, 113, 203],
    [129, 1, 130],
    [200, 1023, 40],
    [31, 600, 65],
  ] as const;
  for (const [m, k, n] of shapes) {
    for (const transposeB of [false, true]) {
      cases[`${m} × ${k} × ${n}${transposeB ? ', transposed' : ''}`] = {
        inputs: () => factors(m, k, n, 'float32', transposeB),
        options: { transposeB },
      };
    }
  }
  for (const [m, k, n] of [...shapes, [300, 20, 5], [577, 260, 17]] as const) {
    for (const transposeB of [false, true]) {
      cases[`${m} × ${k} × ${n}, the left side transposed${transposeB ? ', and the right' : ''}`] = {
        inputs: () => factors(m, k, n, 'float32', transposeB, true),
        options: { transposeA: true, transposeB },
      };
    }
  }
  for (let size = 2; size <= 40; size++) {
    const transposeB = size % 2 === 0;
    const transposeA = size % 4 < 2;
    cases[`${size} rows, ${57 - size} columns`] = {
      inputs: () => factors(size, 9 + size, 57 - size, 'float32', transposeB, transposeA),
      options: { transposeA, transposeB },
    };
  }
  table(cases);
});

describe.each(types)('%s', (type) => {
  const normalFactors = (transposeB: boolean) => () => factors(37, 150, 70, type, transposeB);
  table({
    plain: { inputs: normalFactors(false) },
    transposed: { inputs: normalFactors(true), options: { transposeB: true } },
    'left side transposed': {
      inputs: () => factors(37, 150, 70, type, true, true),
      options: { transposeA: true, transposeB: true },
    },
    'one row': { inputs: () => factors(1, 515, 131, type, false) },
    'one row, transposed': { inputs: () => factors(1, 515, 131, type, true), options: { transposeB: true } },
    'sums that cancel': {
      inputs: () => ({
        a: filled([9, 120], type, (i) => 4 + (i % 7)),
        b: filled([120, 21], type, (i) => (Math.floor(i / 21) % 2 === 0 ? 1 : -1) * (4 + (i % 5))),
      }),
    },
    'large and small rows': {
      inputs: () => {
        const { a, b } = factors(12, 50, 19, 'float32', false);
        const sized = (i: number) => 2 ** ((Math.floor(i / 50) % 5) - 2) * a.data[i];
        return { a: filled(a.dims, type, sized), b: filled(b.dims, type, (i) => b.data[i]) };
      },
    },
  });
});

describe('three types at once', () => {
  const triples = types.flatMap((a) => types.flatMap((b) => types.map((c) => [a, b, c] as const)));
  test.each(triples)('%s by %s to %s', (typeA, typeB, typeC) => {
    for (const transposeB of [false, true]) {
      const { a } = factors(11, 40, 23, typeA, transposeB);
      const { b } = factors(11, 40, 23, typeB, transposeB);
      const expected = expectMatmul(a, b, { transposeB });
      for (const isa of rows) {
        const out = guarded(expected.dims, typeC);
        const product = matmulSync(a, b, { transposeB, isa, out: out.tensor });
        out.check();
        expect(product.type).toBe(typeC);
        compare(product, expected, isa);
      }
    }
  });
});

describe('batches', () => {
  const cases: Record<string, Case> = {};
  const batches = [
    [[3], [3]],
    [[3], [1]],
    [[1], [3]],
    [[4], []],
    [[], [4]],
    [[2, 1], [3]],
    [
      [2, 1, 2],
      [3, 1],
    ],
    [
      [2, 3],
      [2, 3],
    ],
  ] as const;
  for (const [a, b] of batches) {
    for (const transposeB of [false, true]) {
      const transposeA = a.length === 1;
      cases[`[${a}] and [${b}]${transposeB ? ', transposed' : ''}`] = {
        inputs: () => ({
          a: normal([...a, ...(transposeA ? [19, 5] : [5, 19])], 1),
          b: normal([...b, ...(transposeB ? [11, 19] : [19, 11])], 2),
        }),
        options: { transposeA, transposeB },
      };
    }
  }
  table(cases);
});

describe('nothing to compute', () => {
  table({
    'no terms': { inputs: () => factors(3, 0, 4, 'float32', false) },
    'no rows': { inputs: () => factors(0, 3, 4, 'float32', false) },
    'no columns': { inputs: () => factors(2, 3, 0, 'float32', true), options: { transposeB: true } },
    'no matrices': { inputs: () => ({ a: normal([0, 2, 3], 1), b: normal([3, 4], 2) }) },
  });
});

describe.each(types)('NaN and infinity in %s', (type) => {
  const poisoned = (value: number) => () => {
    const { a, b } = factors(20, 40, 30, type, false);
    const plain = toFloat64(a);
    return { a: filled(a.dims, type, (i) => (i === 40 * 7 + 5 ? value : plain[i])), b };
  };
  table({ 'NaN stays in its row': { inputs: poisoned(NaN) }, 'infinity too': { inputs: poisoned(Infinity) } });
});

describe('ways to call', () => {
  test.each(types)('%s: sync, async and out give the same bits', async (type) => {
    const { a, b } = factors(33, 65, 47, type, false);
    const wanted = matmulSync(a, b);
    expect(wanted.type).toBe(type);
    expect(wanted.dims).toEqual([33, 47]);
    expectSameBits(await matmul(a, b), wanted);
    const out = guarded([33, 47], type);
    const result = await matmul(a, b, { out: out.tensor });
    out.check();
    expect(result.data).toBe(out.tensor.data);
    expectSameBits(result, wanted);
  });
});

describe('properties', () => {
  const options = { numRuns: 40, seed: 20240607 };
  const extent = (max: number) => fc.integer({ min: 1, max });
  const call = fc.record({
    m: extent(90),
    k: extent(200),
    n: extent(90),
    batch: extent(3),
    type: fc.constantFrom(...types),
    transposeA: fc.boolean(),
    transposeB: fc.boolean(),
    isa: fc.constantFrom(...rows),
    seed: fc.nat(),
  });
  const build = ({
    m,
    k,
    n,
    batch,
    type,
    transposeA,
    transposeB,
    seed,
  }: typeof call extends fc.Arbitrary<infer T> ? T : never) => ({
    a: normal([batch, ...(transposeA ? [k, m] : [m, k])], seed, type),
    b: normal([batch, ...(transposeB ? [n, k] : [k, n])], seed + 1, type),
  });

  test('any number of threads gives the same bits', () => {
    fc.assert(
      fc.property(call, (drawn) => {
        const { a, b } = build(drawn);
        const { isa, transposeA, transposeB } = drawn;
        const options = { transposeA, transposeB };
        const expected = expectMatmul(a, b, options);
        const [one, two] = [1, 2].map((threads) => checkMatmul({ a, b }, options, { isa, threads }, expected));
        expectSameBits(two as Tensor, one as Tensor);
      }),
      options,
    );
  });

  test('a matrix gives the same bits in any batch', () => {
    fc.assert(
      fc.property(call, (drawn) => {
        const { a, b } = build(drawn);
        const { isa, transposeA, transposeB, batch } = drawn;
        const whole = matmulSync(a, b, { transposeA, transposeB, isa });
        for (let i = 0; i < batch; i++) {
          const alone = matmulSync(slice(a, 0, i, i + 1), slice(b, 0, i, i + 1), { transposeA, transposeB, isa });
          expectSameBits(slice(whole, 0, i, i + 1), alone);
        }
      }),
      options,
    );
  });
});
