/**
 * Conversion to LRKV as its objective has it, in float64: roots of the moments, heads whitened by them, and the
 * alternating least squares written out on whole matrices. Independent of lib/fit, which never has more than products
 * of the heads with each other.
 */
import { uniform } from './data';

/** Rows of numbers. */
export type Rows = number[][];

const make = (rows: number, columns: number, of: (i: number, j: number) => number): Rows =>
  Array.from({ length: rows }, (_, i) => Array.from({ length: columns }, (_, j) => of(i, j)));
export const identityOf = (n: number): Rows => make(n, n, (i, j) => Number(i === j));
export const transposed = (a: Rows): Rows => make(a[0].length, a.length, (i, j) => a[j][i]);
export const combine = (a: Rows, b: Rows, sign: number): Rows =>
  a.map((row, i) => row.map((value, j) => value + sign * b[i][j]));

export function times(a: Rows, b: Rows): Rows {
  return a.map((row) => {
    const sum = new Array<number>(b[0].length).fill(0);
    for (const [k, factor] of row.entries()) for (let j = 0; j < sum.length; j++) sum[j] += factor * b[k][j];
    return sum;
  });
}

export const energyOf = (a: Rows): number =>
  a.reduce((sum, row) => row.reduce((part, value) => part + value * value, sum), 0);

/** Eigenvalues, descending, and vectors, a column each, by Jacobi's rotations (1846). */
export function jacobiEigen(symmetric: Rows): { values: number[]; vectors: Rows } {
  const n = symmetric.length;
  const a = symmetric.map((row) => [...row]);
  const v = identityOf(n);
  for (let sweep = 0; sweep < 100; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        const [x, y, z] = [a[p][p], a[q][q], a[p][q]];
        if (Math.abs(z) <= 1e-17 * Math.sqrt(Math.abs(x * y)) || z === 0) continue;
        off++;
        const theta = (y - x) / (2 * z);
        const t = Math.sign(theta || 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const [c, s] = [1 / Math.sqrt(t * t + 1), t / Math.sqrt(t * t + 1)];
        for (let k = 0; k < n; k++) [a[k][p], a[k][q]] = [c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]];
        for (let k = 0; k < n; k++) [a[p][k], a[q][k]] = [c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]];
        for (let k = 0; k < n; k++) [v[k][p], v[k][q]] = [c * v[k][p] - s * v[k][q], s * v[k][p] + c * v[k][q]];
      }
    }
    if (off === 0) break;
  }
  const order = a.map((_, i) => i).sort((i, j) => a[j][j] - a[i][i]);
  return { values: order.map((i) => a[i][i]), vectors: make(n, n, (i, j) => v[i][order[j]]) };
}

/** V·f(Λ)·Vᵀ. */
function spectral(a: Rows, map: (value: number, largest: number) => number): Rows {
  const { values, vectors } = jacobiEigen(a);
  const scaled = vectors.map((row) => row.map((value, j) => value * map(values[j], values[0])));
  return times(scaled, transposed(vectors));
}
const root = (a: Rows): Rows => spectral(a, (value) => Math.sqrt(Math.max(0, value)));
const inverse = (a: Rows): Rows => spectral(a, (value, largest) => (value > 1e-13 * largest ? 1 / value : 0));

/** a of rank `rank` at most, as near as can be. */
function truncate(a: Rows, rank: number): Rows {
  const kept = jacobiEigen(times(transposed(a), a)).vectors.map((row) => row.slice(0, rank));
  return rank === 0 ? a.map((row) => row.map(() => 0)) : times(times(a, kept), transposed(kept));
}

/** What is fitted: heads W_h [inputs × width], E[x·xᵀ], and the metric of each head's outputs. */
export interface FitProblem {
  readonly heads: readonly Rows[];
  readonly moment: Rows;
  readonly metrics: readonly Rows[];
}

/** Errors after each iteration, relative to the heads, in the fitted norm. */
export function referenceFit(
  { heads, moment, metrics }: FitProblem,
  ranks: readonly number[],
  gauge: 'free' | 'identity' | 'rope-pair' | 'none',
  iterations: number,
  pairs: readonly (readonly [number, number])[] = [],
): number[] {
  const whitener = root(moment);
  const roots = metrics.map(root);
  const targets = heads.map((head, h) => times(times(whitener, head), roots[h]));
  const energy = targets.reduce((sum, target) => sum + energyOf(target), 0);
  const width = heads[0][0].length;
  const sumOf = (list: readonly Rows[]): Rows => list.reduce((a, b) => combine(a, b, 1));
  const gaugesFor = (base: Rows, residuals: readonly Rows[]): Rows[] => {
    if (gauge === 'free') {
      const unit = times(inverse(times(transposed(base), base)), transposed(base));
      return targets.map((target) => times(unit, target));
    }
    if (gauge === 'identity') return roots;
    return targets.map((target, h) => {
      const left = combine(target, residuals[h], -1);
      const result = make(width, width, () => 0);
      for (const [a, b] of pairs) {
        let [real, imaginary, norm] = [0, 0, 0];
        for (const [i, row] of base.entries()) {
          real += row[a] * left[i][a] + row[b] * left[i][b];
          imaginary += row[a] * left[i][b] - row[b] * left[i][a];
          norm += row[a] ** 2 + row[b] ** 2;
        }
        [result[a][a], result[b][b], result[a][b], result[b][a]] = [real, real, imaginary, -imaginary].map(
          (x) => x / norm,
        );
      }
      return result;
    });
  };
  let base = make(targets[0].length, width, () => 0);
  let residuals = targets.map((target) => make(target.length, width, () => 0));
  if (gauge === 'free') {
    const all = targets[0].map((_, i) => targets.flatMap((target) => target[i]));
    base = jacobiEigen(times(all, transposed(all))).vectors.map((row) => row.slice(0, width));
  } else if (gauge === 'identity') {
    const weight = inverse(sumOf(roots.map((each) => times(each, each))));
    base = times(sumOf(targets.map((target, h) => times(target, roots[h]))), weight);
  } else if (gauge === 'rope-pair') {
    for (const [a, b] of pairs) {
      // The leading left singular vector of the heads' complex columns, by power iteration.
      const next = uniform(a + 1);
      let vector = targets[0].map(() => [next() - 0.5, next() - 0.5]);
      for (let pass = 0; pass < 3000; pass++) {
        const sum = vector.map(() => [0, 0]);
        for (const target of targets) {
          let [x, y] = [0, 0];
          for (const [i, row] of target.entries()) {
            x += row[a] * vector[i][0] + row[b] * vector[i][1];
            y += row[a] * vector[i][1] - row[b] * vector[i][0];
          }
          for (const [i, row] of target.entries()) {
            sum[i][0] += row[a] * x - row[b] * y;
            sum[i][1] += row[a] * y + row[b] * x;
          }
        }
        const norm = Math.sqrt(energyOf(sum));
        vector = sum.map(([x, y]) => [x / norm, y / norm]);
      }
      for (const [i, [x, y]] of vector.entries()) [base[i][a], base[i][b]] = [x, y];
    }
  }
  const history: number[] = [];
  for (let iteration = 0; iteration < iterations; iteration++) {
    const gauges = gauge === 'none' ? roots.map(() => make(width, width, () => 0)) : gaugesFor(base, residuals);
    const deviations = targets.map((target, h) => combine(target, times(base, gauges[h]), -1));
    residuals = deviations.map((deviation, h) => truncate(deviation, ranks[h]));
    const error = deviations.reduce((sum, deviation, h) => sum + energyOf(combine(deviation, residuals[h], -1)), 0);
    history.push(Math.sqrt(error / energy));
    if (gauge === 'none') break;
    const parts = targets.map((target, h) => times(combine(target, residuals[h], -1), transposed(gauges[h])));
    base = times(sumOf(parts), inverse(sumOf(gauges.map((each) => times(each, transposed(each))))));
  }
  return history;
}
