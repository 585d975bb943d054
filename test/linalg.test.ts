import { runAsync, runSync } from '../lib/call';
import { basisOf, eigenOf, type Matrices, type ProductKind, productOf, svdOf } from '../lib/linalg';
import { normal } from './data';
import { toFloat64 } from './half';
import { isaRows } from './rows';

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

describe.each(isaRows('full'))('products on %s', (isa) => {
  /** Checks every element against Σ left·right in float64, whose rounding it may have too. */
  function check(a: Matrices, b: Matrices, kind: ProductKind, found: Float64Array): void {
    const [rows, depth] = kind.plain === true ? [a.rows, a.columns] : [a.columns, a.rows];
    expect(found).toHaveLength(a.batch * rows * b.columns);
    let worst = 0;
    for (let item = 0; item < a.batch; item++) {
      const [left, right] = [entryOf(a, item), entryOf(b, item)];
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < b.columns; j++) {
          let [sum, size] = [0, 0];
          for (let k = 0; k < depth; k++) {
            const term = (kind.plain === true ? left(i, k) : left(k, i)) * right(k, j);
            sum += term;
            size += Math.abs(term);
          }
          const off = Math.abs(found[(item * rows + i) * b.columns + j] - sum);
          worst = Math.max(worst, off / (2 ** -52 * depth * size));
          if (!(off <= 2 ** -52 * depth * size)) throw new Error(`element ${item}, ${i}, ${j} is off by ${off}`);
        }
      }
    }
    expect(worst).toBeLessThanOrEqual(1);
  }

  test.each([
    [1, 1, 1, 1],
    [3, 5, 4, 2],
    [2, 130, 40, 70],
    [1, 9, 200, 1],
    [1, 300, 150, 131],
    [2, 257, 145, 129],
  ])('%d of %d × %d by %d columns, and of the transposed', async (batch, rows, columns, others) => {
    const a = normalMatrices(batch, rows, columns, 3);
    for (const kind of [{}, { plain: true }]) {
      const b = normalMatrices(batch, kind.plain === true ? columns : rows, others);
      const found = runSync(productOf, () => productOf(a, b, { isa, threads: 1 }, kind));
      check(a, b, kind, found);
      expect(await runAsync(productOf, () => productOf(a, b, { isa }, kind))).toEqual(found);
      for (let item = 0; item < batch; item++) {
        const one = ({ data, ...of }: Matrices): Matrices => {
          const size = of.rows * of.columns;
          return { ...of, batch: 1, data: data.slice(item * size, (item + 1) * size) };
        };
        const size = found.length / batch;
        expect(runSync(productOf, () => productOf(one(a), one(b), { isa }, kind))).toEqual(
          found.slice(item * size, (item + 1) * size),
        );
      }
    }
  });

  test.each([
    [2, 40, 1],
    [1, 270, 17],
    [2, 90, 145],
    [1, 33, 290],
  ])('%d symmetric: (%d × %d)ᵀ by itself is the same bits', (batch, rows, columns) => {
    const a = normalMatrices(batch, rows, columns, 2);
    const whole = runSync(productOf, () => productOf(a, a, { isa }));
    expect(runSync(productOf, () => productOf(a, a, { isa }, { symmetric: true }))).toEqual(whole);
    // Of a product that is not, the lower triangle counts, and is mirrored.
    const b = normalMatrices(batch, rows, columns);
    const lower = runSync(productOf, () => productOf(a, b, { isa }));
    const mirrored = lower.map((_, index) => {
      const first = index - (index % columns ** 2);
      const [i, j] = [Math.floor((index - first) / columns), index % columns];
      return lower[first + Math.max(i, j) * columns + Math.min(i, j)];
    });
    expect(runSync(productOf, () => productOf(a, b, { isa }, { symmetric: true }))).toEqual(mirrored);
  });
});

describe('bases of columns', () => {
  test.each([
    [1, 1, 1],
    [2, 7, 7],
    [2, 150, 40],
  ])('%d of %d × %d', (batch, rows, columns) => {
    const of = normalMatrices(batch, rows, columns, 6);
    const basis = runSync(basisOf, () => basisOf(of));
    for (let item = 0; item < batch; item++) {
      expect(skew(basis, item, rows, columns)).toBeLessThan(1e-14 * rows);
      // What is left of a column beside its part in the basis is nothing.
      for (let column = 0; column < columns; column++) {
        const own = Array.from({ length: rows }, (_, row) => entryOf(of, item)(row, column));
        const size = Math.hypot(...own);
        const rest = [...own];
        for (let vector = 0; vector < columns; vector++) {
          const along = (row: number) => basis[(item * rows + row) * columns + vector];
          const share = own.reduce((sum, value, row) => sum + value * along(row), 0);
          for (let row = 0; row < rows; row++) rest[row] -= share * along(row);
        }
        expect(Math.hypot(...rest)).toBeLessThan(1e-13 * size);
      }
    }
  });

  test('of dependent columns there is one, and of what is not finite NaN', () => {
    const data = Float64Array.from({ length: 30 }, (_, i) => Math.floor(i / 3) + 1);
    const dependent = { data, batch: 1, rows: 10, columns: 3 };
    expect(
      skew(
        runSync(basisOf, () => basisOf(dependent)),
        0,
        10,
        3,
      ),
    ).toBeLessThan(1e-14);
    data[4] = NaN;
    expect(runSync(basisOf, () => basisOf(dependent)).every(Number.isNaN)).toBe(true);
  });
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
