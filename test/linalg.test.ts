import { runAsync, runSync } from '../lib/call';
import { eigenOf, type Matrices, productOf, svdOf } from '../lib/linalg';
import { normal } from './data';
import { toFloat64 } from './half';

/** A batch of normal matrices, columns of which are scaled by powers of ten where `spread` is given. */
function normalMatrices(batch: number, rows: number, columns: number, spread = 0): Matrices {
  const data = toFloat64(normal([batch, rows, columns], rows + columns));
  for (const [i] of data.entries()) data[i] *= 10 ** (-spread * ((i % columns) / columns));
  return { data, batch, rows, columns };
}

type Entry = (row: number, column: number) => number;

const entryOf =
  ({ data, rows, columns }: Matrices, item: number): Entry =>
  (row, column) =>
    data[(item * rows + row) * columns + column];

/** Largest |Σₖ left[i][k]·values[k]·right[j][k] − a[i][j]|. */
function residual(of: Matrices, item: number, left: Float64Array, values: Float64Array, right: Float64Array): number {
  const { rows, columns } = of;
  const rank = Math.min(rows, columns);
  const entry = entryOf(of, item);
  let worst = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) {
        sum += left[(item * rows + i) * rank + k] * values[item * rank + k] * right[(item * columns + j) * rank + k];
      }
      worst = Math.max(worst, Math.abs(sum - entry(i, j)));
    }
  }
  return worst;
}

/** Largest |basisᵀ·basis − I| of the columns of a rows × rank basis. */
function skew(basis: Float64Array, item: number, rows: number, rank: number): number {
  let worst = 0;
  for (let a = 0; a < rank; a++) {
    for (let b = 0; b < rank; b++) {
      let dot = 0;
      for (let i = 0; i < rows; i++) {
        dot += basis[(item * rows + i) * rank + a] * basis[(item * rows + i) * rank + b];
      }
      worst = Math.max(worst, Math.abs(dot - Number(a === b)));
    }
  }
  return worst;
}

describe('singular value decomposition', () => {
  test.each([
    [1, 1, 1, 0],
    [3, 5, 5, 0],
    [2, 40, 17, 0],
    [2, 17, 40, 0],
    [1, 64, 64, 8],
    [1, 150, 90, 3],
  ])('%d of %d × %d, columns over 10^-%d', (batch, rows, columns, spread) => {
    const of = normalMatrices(batch, rows, columns, spread);
    const { values, left, right } = runSync(svdOf, () => svdOf(of, true));
    const rank = Math.min(rows, columns);
    for (let item = 0; item < batch; item++) {
      const own = values.slice(item * rank, (item + 1) * rank);
      expect([...own].sort((a, b) => b - a)).toEqual([...own]);
      expect(own.at(-1)).toBeGreaterThanOrEqual(0);
      const eps = 1e-14 * (rows + columns);
      expect(residual(of, item, left as Float64Array, values, right as Float64Array)).toBeLessThan(eps * own[0]);
      expect(skew(left as Float64Array, item, rows, rank)).toBeLessThan(eps);
      expect(skew(right as Float64Array, item, columns, rank)).toBeLessThan(eps);
    }
  });

  test('values alone are the same up to rounding, and known ones are found', () => {
    const of = normalMatrices(2, 30, 22);
    const all = runSync(svdOf, () => svdOf(of, true)).values;
    const { values, left, right } = runSync(svdOf, () => svdOf(of, false));
    expect([left, right]).toEqual([null, null]);
    for (const [i, value] of values.entries()) expect(value).toBeCloseTo(all[i], 10);
    const diagonal = { data: Float64Array.of(0, -3, 2, 0, 0, 0), batch: 1, rows: 3, columns: 2 };
    const found = runSync(svdOf, () => svdOf(diagonal, false)).values;
    expect(found[0]).toBeCloseTo(3, 14);
    expect(found[1]).toBeCloseTo(2, 14);
  });

  test('a matrix that is not finite gives NaN, and its neighbours are what they were', async () => {
    const of = normalMatrices(3, 6, 4);
    const before = runSync(svdOf, () => svdOf(of, true));
    of.data[24 + 5] = Infinity;
    const after = await runAsync(svdOf, () => svdOf(of, true));
    for (const [name, size] of [
      ['values', 4],
      ['left', 24],
      ['right', 16],
    ] as const) {
      const [was, is] = [before[name] as Float64Array, after[name] as Float64Array];
      expect([...is.slice(size, 2 * size)].every(Number.isNaN)).toBe(true);
      expect(is.slice(0, size)).toEqual(was.slice(0, size));
      expect(is.slice(2 * size)).toEqual(was.slice(2 * size));
    }
  });
});

test.each([
  [1, 1, 1, 1],
  [3, 5, 4, 2],
  [2, 130, 40, 70],
  [1, 9, 200, 1],
])('products of %d: (%d × %d)ᵀ by %d columns', async (batch, rows, columns, others) => {
  const [a, b] = [normalMatrices(batch, rows, columns, 3), normalMatrices(batch, rows, others)];
  const found = runSync(productOf, () => productOf(a, b));
  expect(found).toHaveLength(batch * columns * others);
  for (const [index, value] of found.entries()) {
    const item = Math.floor(index / (columns * others));
    const [i, j] = [Math.floor(index / others) % columns, index % others];
    let sum = 0;
    let size = 0;
    for (let row = 0; row < rows; row++) {
      const term = entryOf(a, item)(row, i) * entryOf(b, item)(row, j);
      sum += term;
      size += Math.abs(term);
    }
    expect(Math.abs(value - sum)).toBeLessThanOrEqual(2 ** -52 * rows * size);
  }
  expect(await runAsync(productOf, () => productOf(a, b))).toEqual(found);
});

describe('eigenvalues of symmetric matrices', () => {
  const symmetric = (batch: number, rows: number): Matrices => {
    const of = normalMatrices(batch, rows, rows);
    const data = of.data.map((_, index) => {
      const item = Math.floor(index / rows ** 2);
      const [i, j] = [Math.floor(index / rows) % rows, index % rows];
      return entryOf(of, item)(i, j) + entryOf(of, item)(j, i);
    });
    return { ...of, data };
  };

  test.each([
    [1, 1],
    [2, 7],
    [1, 80],
  ])('%d of order %d', (batch, rows) => {
    const of = symmetric(batch, rows);
    const { values, vectors } = runSync(eigenOf, () => eigenOf(of, true));
    for (let item = 0; item < batch; item++) {
      const own = values.slice(item * rows, (item + 1) * rows);
      expect([...own].sort((a, b) => a - b)).toEqual([...own]);
      const basis = vectors as Float64Array;
      expect(residual(of, item, basis, values, basis)).toBeLessThan(1e-13 * rows * Math.max(...own.map(Math.abs)));
      expect(skew(basis, item, rows, rows)).toBeLessThan(1e-13 * rows);
    }
    expect(runSync(eigenOf, () => eigenOf(of, false)).vectors).toBeNull();
  });
});
