import { linearCka, linearCkaSync, pca, pcaSync, principalAngles, principalAnglesSync, type Tensor } from '../lib';
import { filled, from, normal, types } from './data';
import { toFloat64 } from './half';
import { Faults, faultOf } from './refusal';

/** Rows of a tensor of rank 2. */
const rowsOf = (tensor: Tensor): number[][] => {
  const values = toFloat64(tensor);
  const [rows, columns] = tensor.dims;
  return Array.from({ length: rows }, (_, i) => [...values.subarray(i * columns, (i + 1) * columns)]);
};
const tensorOf = (rows: readonly (readonly number[])[]): Tensor => from(rows.flat(), [rows.length, rows[0].length]);
const transposed = (rows: readonly (readonly number[])[]) => rows[0].map((_, j) => rows.map((row) => row[j]));
const dot = (a: ArrayLike<number>, b: ArrayLike<number>) => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
};
const product = (a: readonly (readonly number[])[], b: readonly (readonly number[])[]) => {
  const columns = transposed(b);
  return a.map((row) => columns.map((column) => dot(row, column)));
};
const centred = (rows: readonly (readonly number[])[]) => {
  const means = transposed(rows).map((column) => column.reduce((sum, value) => sum + value, 0) / column.length);
  return rows.map((row) => row.map((value, j) => value - means[j]));
};
const norm = (rows: readonly (readonly number[])[]) => Math.hypot(...rows.flat());

/** A rotation in the plane of two columns after another, over all pairs. */
function rotated(rows: readonly (readonly number[])[], angle = 0.7): number[][] {
  const result = rows.map((row) => [...row]);
  for (let j = 0; j + 1 < result[0].length; j++) {
    for (const row of result) {
      const [x, y] = [row[j], row[j + 1]];
      row[j] = Math.cos(angle) * x - Math.sin(angle) * y;
      row[j + 1] = Math.sin(angle) * x + Math.cos(angle) * y;
    }
  }
  return result;
}

describe('linear CKA', () => {
  const naive = (x: Tensor, y: Tensor): number => {
    const [a, b] = [centred(rowsOf(x)), centred(rowsOf(y))];
    const across = norm(product(transposed(b), a)) ** 2;
    return across / (norm(product(transposed(a), a)) * norm(product(transposed(b), b)));
  };

  test.each([
    [50, 3, 4],
    [50, 30, 40],
    [7, 9, 5],
    [2, 1, 1],
    [20, 20, 1],
  ])('%d samples of %d and %d features', async (samples, a, b) => {
    for (const type of types) {
      const [x, y] = [normal([samples, a], a, type), normal([samples, b], b + 50, type)];
      const found = linearCkaSync(x, y);
      expect(Math.abs(found - naive(x, y))).toBeLessThan(1e-12);
      expect(await linearCka(x, y)).toBe(found);
      expect(Math.abs(linearCkaSync(y, x) - found)).toBeLessThan(1e-12);
      expect(linearCkaSync(x, x)).toBeCloseTo(1, 12);
    }
  });

  test('rotation, scale and shift change nothing', () => {
    for (const [samples, features] of [
      [60, 10],
      [8, 20],
    ]) {
      const [x, y] = [normal([samples, features], 1), normal([samples, 7], 2)];
      const moved = rotated(rowsOf(x)).map((row) => row.map((value, j) => 300 * value + j));
      expect(linearCkaSync(tensorOf(moved), y)).toBeCloseTo(linearCkaSync(x, y), 5);
      expect(linearCkaSync(tensorOf(moved), x)).toBeCloseTo(1, 5);
      const tiny = filled(x.dims, 'float32', (i) => x.data[i] * 2 ** -100);
      expect(linearCkaSync(tiny, y)).toBeCloseTo(linearCkaSync(x, y), 12);
    }
  });

  test('nothing in common is 0', () => {
    const x = tensorOf([[1], [-1], [1], [-1]]);
    const y = tensorOf([[1], [1], [-1], [-1]]);
    expect(linearCkaSync(x, y)).toBe(0);
  });
});

describe('principal angles', () => {
  const degrees = (angle: number) => (angle * Math.PI) / 180;

  test('known ones, however the spaces are written', async () => {
    // Planes of four dimensions, at 20° and 70°, through mixed columns.
    const [a, b] = [degrees(20), degrees(70)];
    const x = [
      [1, 2],
      [0, 0],
      [1, -3],
      [0, 0],
    ];
    const basis = [
      [Math.cos(a), 0],
      [Math.sin(a), 0],
      [0, Math.cos(b)],
      [0, Math.sin(b)],
    ];
    const y = product(basis, [
      [3, 1],
      [-1, 2],
    ]);
    const found = principalAnglesSync(tensorOf(x), tensorOf(y));
    expect(found).toHaveLength(2);
    expect(found[0]).toBeCloseTo(a, 6);
    expect(found[1]).toBeCloseTo(b, 6);
    expect(await principalAngles(tensorOf(x), tensorOf(y))).toEqual(found);
  });

  test('spaces of different dimensions: an angle for each of the smaller', () => {
    const x = normal([30, 8], 1);
    const inside = product(rowsOf(x), rowsOf(normal([8, 3], 2)));
    const found = principalAnglesSync(x, tensorOf(inside));
    expect(found).toHaveLength(3);
    for (const angle of found) expect(angle).toBeLessThan(1e-6);
    const all = principalAnglesSync(tensorOf(inside), normal([30, 5], 3));
    expect(all).toHaveLength(3);
    expect([...all].sort((a, b) => a - b)).toEqual([...all]);
  });

  test('tiny angles, which no cosine shows, and right angles', () => {
    for (const angle of [1e-4, 2 ** -30, 2 ** -60, 2 ** -120]) {
      const found = principalAnglesSync(tensorOf([[1], [0], [0]]), tensorOf([[1], [angle], [0]]));
      expect(Math.abs(found[0] / Math.fround(angle) - 1)).toBeLessThan(1e-6);
    }
    expect(principalAnglesSync(tensorOf([[1], [0]]), tensorOf([[0], [5]]))[0]).toBeCloseTo(Math.PI / 2, 14);
    expect(principalAnglesSync(tensorOf([[1], [0]]), tensorOf([[-2], [0]]))[0]).toBe(0);
  });

  test('columns that depend on others, and more columns than rows', () => {
    const x = normal([9, 2], 1);
    const doubled = tensorOf(rowsOf(x).map(([a, b]) => [a, b, 2 * a, 0]));
    const y = normal([9, 3], 2);
    const [wanted, found] = [principalAnglesSync(x, y), principalAnglesSync(doubled, y)];
    expect(found).toHaveLength(2);
    for (const [i, angle] of found.entries()) expect(angle).toBeCloseTo(wanted[i], 10);
    expect([...principalAnglesSync(normal([3, 5], 3), normal([3, 4], 4))].every((angle) => angle < 1e-7)).toBe(true);
  });

  test('cosines are the singular values of the bases, by Gram and Schmidt', () => {
    const basis = (tensor: Tensor) => {
      const columns: number[][] = [];
      for (let column of transposed(rowsOf(tensor))) {
        for (let pass = 0; pass < 2; pass++) {
          for (const other of columns) {
            const share = dot(column, other);
            column = column.map((value, i) => value - share * other[i]);
          }
        }
        const length = Math.sqrt(dot(column, column));
        columns.push(column.map((value) => value / length));
      }
      return columns;
    };
    const [x, y] = [normal([25, 4], 5), normal([25, 4], 6)];
    const cross = basis(x).map((a) => basis(y).map((b) => dot(a, b)));
    const found = principalAnglesSync(x, y);
    // Σcos² and Πcos are the squared norm and the determinant of the products.
    const cosines = [...found].map(Math.cos);
    expect(dot(cosines, cosines)).toBeCloseTo(norm(cross) ** 2, 10);
    expect(cosines.reduce((a, b) => a * b, 1)).toBeCloseTo(Math.abs(determinant(cross)), 10);
  });
});

function determinant(rows: readonly (readonly number[])[]): number {
  if (rows.length === 1) return rows[0][0];
  return rows[0].reduce((sum, value, j) => {
    const minor = rows.slice(1).map((row) => row.filter((_, c) => c !== j));
    return sum + (j % 2 === 0 ? 1 : -1) * value * determinant(minor);
  }, 0);
}

describe('principal components', () => {
  test.each([
    [60, 5],
    [60, 60],
    [9, 30],
    [2, 3],
    [5, 1],
  ])('%d samples of %d features', async (samples, features) => {
    for (const type of types) {
      const x = normal([samples, features], samples + features, type);
      const found = pcaSync(x);
      const { mean, components, variances, explainedRatio } = found;
      const rows = rowsOf(x);
      const about = centred(rows);
      const most = Math.min(samples, features);
      expect([components.length, variances.length]).toEqual([most, most]);
      const total = norm(about) ** 2 / (samples - 1);
      for (const [j, value] of mean.entries()) {
        expect(value).toBeCloseTo(rows.reduce((sum, row) => sum + row[j], 0) / samples, 12);
      }
      const covariance = product(transposed(about), about).map((row) => row.map((value) => value / (samples - 1)));
      for (const [c, component] of components.entries()) {
        // An eigenvector of the covariance, unit, and orthogonal to those before it.
        for (const [j, row] of covariance.entries()) {
          expect(Math.abs(dot(row, component) - variances[c] * component[j])).toBeLessThan(1e-12 * total);
        }
        for (let other = 0; other < c; other++) expect(Math.abs(dot(component, components[other]))).toBeLessThan(1e-12);
        expect(dot(component, component)).toBeCloseTo(1, 12);
        expect(Math.max(...component)).toBeGreaterThanOrEqual(-Math.min(...component));
        expect(variances[c]).toBeLessThanOrEqual(c === 0 ? Infinity : variances[c - 1]);
        expect(explainedRatio[c]).toBeCloseTo(variances[c] / total, 12);
      }
      expect(explainedRatio.reduce((sum, share) => sum + share, 0)).toBeCloseTo(1, 12);
      expect(await pca(x)).toEqual(found);
      const first = pcaSync(x, { components: 1 });
      expect([first.components, first.variances]).toEqual([[components[0]], variances.slice(0, 1)]);
    }
  });

  test('a line, whichever way it is written', () => {
    const line = (count: number) =>
      filled([count, 3], 'float32', (i) => 100 + (Math.floor(i / 3) - 1) * [2, -2, 1][i % 3]);
    for (const count of [2, 3, 12]) {
      const { components, explainedRatio } = pcaSync(line(count));
      expect(explainedRatio[0]).toBeCloseTo(1, 12);
      const direction = [...components[0]].map((value) => 3 * value);
      const sign = Math.sign(direction[0]);
      for (const [j, value] of [2, -2, 1].entries()) expect(sign * direction[j]).toBeCloseTo(value, 10);
    }
  });

  test('samples that do not differ have no variance', () => {
    const { variances, explainedRatio } = pcaSync(filled([4, 3], 'float32', () => 2.5));
    expect([...variances, ...explainedRatio]).toEqual([0, 0, 0, 0, 0, 0]);
  });
});

test('wrong representations', async () => {
  const faults = new Faults();
  const [x, y] = [normal([6, 3], 1), normal([6, 2], 2)];
  const bad = filled([6, 3], 'float32', (i) => (i === 7 ? NaN : i));
  const constant = filled([6, 3], 'float32', (i) => i % 3);
  const zero = filled([6, 3], 'float32', () => 0);
  const both = [
    [linearCkaSync, linearCka],
    [principalAnglesSync, principalAngles],
  ] as const;
  const pairs = [
    [[normal([6], 1), y], 'ERR_SHAPE', 'x'],
    [[normal([2, 6, 3], 1), y], 'ERR_SHAPE', 'x'],
    [[normal([6, 0], 1), y], 'ERR_SHAPE', 'x'],
    [[x, normal([0, 2], 1)], 'ERR_SHAPE', 'y'],
    [[x, normal([5, 2], 1)], 'ERR_SHAPE', 'y'],
    [[bad, y], 'ERR_ARGUMENT', 'x', 'NaN'],
  ] as const;
  for (const [sync, async] of both) {
    for (const [[a, b], code, argument, received] of pairs) {
      faults.add(`${sync.name}`, await faultOf(() => sync(a, b), false, { code, argument, received }));
      faults.add(`${async.name}`, await faultOf(() => async(a, b), true, { code, argument, received }));
    }
  }
  const refused = async (call: () => unknown, code: 'ERR_SHAPE' | 'ERR_ARGUMENT', argument: string) =>
    faults.add(`${call}`, await faultOf(call, false, { code, argument }));
  await refused(() => linearCkaSync(constant, y), 'ERR_ARGUMENT', 'x');
  await refused(() => linearCkaSync(normal([1, 3], 1), normal([1, 3], 1)), 'ERR_SHAPE', 'x');
  await refused(() => principalAnglesSync(zero, y), 'ERR_ARGUMENT', 'x');
  await refused(() => principalAnglesSync(y, zero), 'ERR_ARGUMENT', 'y');
  await refused(() => pcaSync(bad), 'ERR_ARGUMENT', 'x');
  await refused(() => pcaSync(normal([1, 4], 1)), 'ERR_SHAPE', 'x');
  await refused(() => pcaSync(x, { components: 4 }), 'ERR_ARGUMENT', 'components');
  await refused(() => pcaSync(x, { components: 0 }), 'ERR_ARGUMENT', 'components');
  faults.none();
});
