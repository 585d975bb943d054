import { headDiversity, headSimilarity, headSimilaritySync, type Tensor } from '../lib';
import { filled, normal, types } from './data';
import { toFloat64 } from './half';
import { Faults, faultOf } from './refusal';

/** The cosines of the modelDim × modelDim forms themselves, which the library never makes. */
function naiveSimilarity(wq: Tensor, wk: Tensor): number[][] {
  const [heads, dim, width] = wq.dims;
  const group = heads / wk.dims[0];
  const [qs, ks] = [toFloat64(wq), toFloat64(wk)];
  const forms = Array.from({ length: heads }, (_, head) => {
    const form = new Float64Array(dim * dim);
    for (let i = 0; i < dim * dim; i++) {
      const [row, column] = [Math.floor(i / dim), i % dim];
      for (let c = 0; c < width; c++) {
        const key = (Math.floor(head / group) * dim + column) * width + c;
        form[i] += qs[(head * dim + row) * width + c] * ks[key];
      }
    }
    return form;
  });
  const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  return forms.map((a) => forms.map((b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))));
}

function expectNear(
  found: readonly ArrayLike<number>[],
  wanted: readonly ArrayLike<number>[],
  tolerance = 1e-12,
): void {
  expect(found).toHaveLength(wanted.length);
  for (const [i, row] of wanted.entries()) {
    expect(found[i]).toHaveLength(row.length);
    for (let j = 0; j < row.length; j++) expect(Math.abs(found[i][j] - row[j])).toBeLessThan(tolerance);
  }
}

describe('similarity of heads', () => {
  test.each([
    [1, 1, 5, 3],
    [2, 2, 16, 16],
    [6, 6, 24, 4],
    [6, 2, 24, 4],
    [5, 1, 9, 12],
  ])('%d heads on %d, %d × %d', async (heads, kvHeads, dim, width) => {
    for (const type of types) {
      const [wq, wk] = [normal([heads, dim, width], heads, type), normal([kvHeads, dim, width], dim, type)];
      const found = headSimilaritySync(wq, wk);
      expectNear(found, naiveSimilarity(wq, wk));
      expect(await headSimilarity(wq, wk)).toEqual(found);
    }
  });

  test('an invertible matrix between the weights of a head changes nothing; scale neither', () => {
    const [wq, wk] = [normal([3, 20, 2], 1), normal([3, 20, 2], 2)];
    const wanted = headSimilaritySync(wq, wk);
    // M = [[2, 1], [1, 1]] and its inverse transposed, exact in float32 up to the sums.
    const mixed = (source: Tensor, [a, b, c, d]: readonly number[]) =>
      filled(source.dims, 'float32', (i) => {
        const [x, y] = [source.data[i - (i % 2)], source.data[i - (i % 2) + 1]];
        return i % 2 === 0 ? x * a + y * c : x * b + y * d;
      });
    expectNear(headSimilaritySync(mixed(wq, [2, 1, 1, 1]), mixed(wk, [1, -1, -1, 2])), wanted, 1e-6);
    const large = filled(wq.dims, 'float32', (i) => wq.data[i] * (i < 40 ? 2 ** 40 : 2 ** -40));
    expectNear(headSimilaritySync(large, wk), wanted);
  });

  test('the same head twice, and its negative', () => {
    const [wq, wk] = [normal([1, 8, 3], 1), normal([1, 8, 3], 2)];
    const times = (source: Tensor, factors: readonly number[]) =>
      filled([factors.length, 8, 3], 'float32', (i) => source.data[i % 24] * factors[Math.floor(i / 24)]);
    const found = headSimilaritySync(times(wq, [1, 3, -1]), times(wk, [1, 1, 1]));
    expectNear(found, [
      [1, 1, -1],
      [1, 1, -1],
      [-1, -1, 1],
    ]);
  });

  test('wrong weights', async () => {
    const faults = new Faults();
    const [wq, wk] = [normal([4, 6, 3], 1), normal([2, 6, 3], 2)];
    const of = (...dims: number[]) => normal(dims, 3);
    const zeroHead = filled(wq.dims, 'float32', (i) => (i >= 18 && i < 36 ? 0 : 1));
    const wrong = [
      [[of(4, 6), wk], 'ERR_SHAPE', 'wq'],
      [[of(0, 6, 3), wk], 'ERR_SHAPE', 'wq'],
      [[of(4, 6, 0), of(4, 6, 0)], 'ERR_SHAPE', 'wq'],
      [[wq, of(2, 5, 3)], 'ERR_SHAPE', 'wk'],
      [[wq, of(2, 6, 2)], 'ERR_SHAPE', 'wk'],
      [[wq, of(3, 6, 3)], 'ERR_SHAPE', 'wk'],
      [[wq, of(0, 6, 3)], 'ERR_SHAPE', 'wk'],
      [[zeroHead, wk], 'ERR_ARGUMENT', 'wq', '1'],
      [[filled(wq.dims, 'float16', (i) => (i === 5 ? Infinity : 1)), wk], 'ERR_ARGUMENT', 'wq', 'Infinity'],
      [[wq, filled(wk.dims, 'float32', (i) => (i === 5 ? NaN : 1))], 'ERR_ARGUMENT', 'wk', 'NaN'],
    ] as const;
    for (const [[a, b], code, argument, received] of wrong) {
      const wanted = { code, argument, received };
      faults.add(argument, await faultOf(() => headSimilaritySync(a, b), false, wanted));
      faults.add(`${argument}, async`, await faultOf(() => headSimilarity(a, b), true, wanted));
    }
    faults.none();
  });
});

describe('diversity of heads', () => {
  const identity = (n: number) => Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => +(i === j)));

  test('orthogonal heads are at every ceiling', () => {
    for (const heads of [2, 6, 18]) {
      const { uncentred, centredOfHeads, centredOfCeiling } = headDiversity(identity(heads));
      expect(uncentred).toBeCloseTo(1, 12);
      expect(centredOfHeads).toBeCloseTo((heads - 1) / heads, 12);
      expect(centredOfCeiling).toBeCloseTo(1, 12);
    }
  });

  test('identical heads are one, and none when centred', () => {
    const same = Array.from({ length: 5 }, () => Array<number>(5).fill(1));
    const found = headDiversity(same);
    expect(found.uncentred).toBeCloseTo(1 / 5, 12);
    expect([found.centredOfHeads, found.centredOfCeiling]).toEqual([0, 0]);
  });

  test('one cosine between all: known eigenvalues', () => {
    // (1 − c)·I + c·1: one eigenvalue 1 + (n − 1)c, n − 1 of 1 − c; centred, n − 1 of 1 − c and one 0.
    for (const c of [0.1, 0.5, 0.9]) {
      const n = 7;
      const found = headDiversity(identity(n).map((row) => row.map((value) => c + (1 - c) * value)));
      const eigenvalues = [1 + (n - 1) * c, ...Array<number>(n - 1).fill(1 - c)].map((value) => value / n);
      const entropy = eigenvalues.reduce((sum, p) => sum - p * Math.log(p), 0);
      expect(found.uncentred).toBeCloseTo(Math.exp(entropy) / n, 12);
      expect(found.centredOfCeiling).toBeCloseTo(1, 12);
    }
  });

  test('the order of heads does not matter; typed rows are as good', () => {
    const similarity = headSimilaritySync(normal([6, 30, 4], 1), normal([6, 30, 4], 2));
    const order = [3, 1, 5, 0, 2, 4];
    const found = headDiversity(order.map((i) => Float64Array.from(order, (j) => similarity[i][j])));
    for (const [name, value] of Object.entries(headDiversity(similarity)))
      expect(found[name as 'uncentred']).toBeCloseTo(value, 12);
  });

  test('wrong similarities', async () => {
    const faults = new Faults();
    const wrong = [
      [undefined, 'ERR_TYPE', 'similarity'],
      [{}, 'ERR_TYPE', 'similarity'],
      [[[1]], 'ERR_SHAPE', 'similarity', '1'],
      [[[1, 0], 5], 'ERR_SHAPE', 'similarity[1]', '5'],
      [[[1, 0], [0]], 'ERR_SHAPE', 'similarity[1]', '[0]'],
      [
        [
          [1, 0],
          [0.1, 1],
        ],
        'ERR_ARGUMENT',
        'similarity[1][0]',
        '0.1',
      ],
      [
        [
          [1, NaN],
          [NaN, 1],
        ],
        'ERR_ARGUMENT',
        'similarity[0][1]',
        'NaN',
      ],
      [
        [
          [1, '0'],
          ['0', 1],
        ],
        'ERR_ARGUMENT',
        'similarity[0][1]',
        '"0"',
      ],
    ] as const;
    for (const [value, code, argument, received] of wrong) {
      // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
      const fault = await faultOf(() => headDiversity(value as any), false, { code, argument, received });
      faults.add(argument, fault);
    }
    faults.none();
  });
});
