import type { BoolTensor, Tensor } from '../lib/tensor';
import { toFloat64 } from './half';
import { hidden, type Layout, problemOf } from './problem';
import type { Answer } from './reference';

/** The options of Nyström attention that change its result. */
export interface NystromMeaning {
  readonly scale?: number;
  readonly layout?: Layout;
  readonly landmarks?: number;
  readonly landmarkIndices?: readonly number[] | { readonly query: readonly number[]; readonly key: readonly number[] };
  readonly pinv?: 'iterative' | 'svd';
  readonly iterations?: number;
  readonly regularization?: number;
  readonly convKernel?: Tensor & { readonly data: Float32Array; readonly type: 'float32' };
  readonly keyMask?: BoolTensor;
  readonly queryMask?: BoolTensor;
}

/** Rows of numbers. */
type Matrix = readonly Float64Array[];

/** What every result of an operation is rounded to: float64 leaves it as it is. */
export type Round = (value: number) => number;

const exactly: Round = (value) => value;

/**
 * F·Z·B·V + depthwise convolution of V, by the formulas of the paper, one head after the other. In float64, or with
 * every step rounded: to float32 that is the naive form, whose error is what plain arithmetic costs on the given data.
 *
 * The scale of a value is F·√(Z²·(B·|V|)²) + Σ |filter| |v|, squares and root element by element. Each row of B·V is off
 * by its own rounding errors, in units of B·|V|, and large entries of Z of both signs multiply them; being independent,
 * they add up like the root of their squares. Σ |Z|·(B·|V|), as if none cancelled, would be some eight times as large.
 */
export function referenceNystrom(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: NystromMeaning = {},
  round: Round = exactly,
): Answer {
  const p = problemOf(q, k, v, { layout: options.layout, scale: options.scale });
  const [qs, ks, vs] = [toFloat64(q), toFloat64(k), toFloat64(v)];
  const values = new Float64Array(p.dims.reduce((a, b) => a * b, 1));
  const scale = new Float64Array(values.length);
  const given = options.landmarkIndices;
  const [queryIndices, keyIndices] =
    given === undefined ? [] : 'query' in given ? [given.query, given.key] : [given, given];
  const segments = (indices: readonly number[] | undefined, length: number): number[][] =>
    indices?.map((index) => [index]) ?? segmentsOf(length, options.landmarks ?? Math.min(64, p.queries, p.keys));
  const querySegments = segments(queryIndices, p.queries);
  const keySegments = segments(keyIndices, p.keys);
  const logitScale = round(p.scale);

  for (let b = 0; b < p.batch; b++) {
    const queryLives = (i: number) =>
      options.queryMask === undefined || options.queryMask.data[b * p.queries + i] !== 0;
    const keyLives = (j: number) => options.keyMask === undefined || options.keyMask.data[b * p.keys + j] !== 0;
    const live = querySegments.flatMap((segment, i) =>
      segment.some(queryLives) && keySegments[i].some(keyLives) ? [i] : [],
    );
    for (let h = 0; h < p.heads; h++) {
      const kvHead = Math.floor(h / p.group);
      const rowsOf = (tensor: Tensor, data: Float64Array, head: number, length: number): Matrix =>
        Array.from({ length }, (_, i) => {
          const start = p.row(tensor, b, head, i);
          return data.subarray(start, start + tensor.dims[3]);
        });
      const query = rowsOf(q, qs, h, p.queries);
      const key = rowsOf(k, ks, kvHead, p.keys);
      const value = rowsOf(v, vs, kvHead, p.keys);
      const mean = (rows: Matrix, segment: readonly number[], lives: (i: number) => boolean) =>
        meanOf(
          segment.filter(lives).map((i) => rows[i]),
          round,
        );
      const queryMarks = live.map((i) => mean(query, querySegments[i], queryLives));
      const keyMarks = live.map((i) => mean(key, keySegments[i], keyLives));

      const weigh = (a: Matrix, b: Matrix, lives?: (j: number) => boolean) => softmax(a, b, logitScale, round, lives);
      const toKeys = weigh(queryMarks, key, keyLives);
      const inverse = inverseOf(weigh(queryMarks, keyMarks), options, round);
      const fromKeys = weigh(query, keyMarks);
      const liveValues = value.map((row, j) => (keyLives(j) ? row : new Float64Array(p.valueDim)));
      const gathered = product(inverse, product(toKeys, liveValues, round), round);
      const sums = square(product(toKeys, absolute(liveValues), exactly));
      const sizes = product(square(inverse), sums, exactly).map((row) => row.map(Math.sqrt));

      for (let i = 0; i < p.queries; i++) {
        if (!queryLives(i)) continue;
        const [sum, size] = live.length === 0 ? [] : [gathered, sizes].map((m) => product([fromKeys[i]], m, round)[0]);
        const out = p.row(p, b, h, i);
        for (let c = 0; c < p.valueDim; c++) {
          values[out + c] = sum?.[c] ?? 0;
          scale[out + c] = size?.[c] ?? 0;
        }
        if (options.convKernel === undefined) continue;
        const [filters, taps] = options.convKernel.dims;
        const filter = options.convKernel.data.subarray(filters === 1 ? 0 : h * taps);
        for (let t = 0; t < taps; t++) {
          const j = i + t - (taps - 1) / 2;
          if (j < 0 || j >= p.keys || !keyLives(j)) continue;
          for (let c = 0; c < p.valueDim; c++) {
            values[out + c] = round(values[out + c] + round(filter[t] * value[j][c]));
            scale[out + c] += Math.abs(filter[t] * value[j][c]);
          }
        }
      }
    }
  }
  return { values, scale, dims: p.dims };
}

/** Positions of each of `count` segments that follow one another, as equal as can be, the longer ones last. */
function segmentsOf(length: number, count: number): number[][] {
  const segments: number[][] = [];
  for (let start = 0, i = 0; i < count; i++) {
    const size = Math.floor(length / count) + (i >= count - (length % count) ? 1 : 0);
    segments.push(Array.from({ length: size }, (_, j) => start + j));
    start += size;
  }
  return segments;
}

function meanOf(rows: Matrix, round: Round): Float64Array {
  const sum = Float64Array.from(rows[0]);
  for (const row of rows.slice(1)) {
    for (let c = 0; c < sum.length; c++) sum[c] = round(sum[c] + row[c]);
  }
  return sum.map((total) => round(total / rows.length));
}

/** Row by row over the keys that live. */
function softmax(
  queries: Matrix,
  keys: Matrix,
  scale: number,
  round: Round,
  lives: (j: number) => boolean = () => true,
): Matrix {
  const live = keys.map((_, j) => lives(j));
  return queries.map((query) => {
    const weights = new Float64Array(keys.length);
    let max = hidden;
    for (let j = 0; j < keys.length; j++) {
      if (!live[j]) continue;
      let dot = 0;
      for (let c = 0; c < query.length; c++) dot = round(dot + round(query[c] * keys[j][c]));
      weights[j] = round(dot * scale);
      max = Math.max(max, weights[j]);
    }
    let sum = 0;
    for (let j = 0; j < keys.length; j++) {
      if (!live[j]) continue;
      weights[j] = round(Math.exp(round(weights[j] - max)));
      sum = round(sum + weights[j]);
    }
    return weights.map((weight) => round(weight / sum));
  });
}

function product(a: Matrix, b: Matrix, round: Round): Matrix {
  const columns = b[0]?.length ?? 0;
  return a.map((row) => {
    const sum = new Float64Array(columns);
    for (let k = 0; k < b.length; k++) {
      const [factor, terms] = [row[k], b[k]];
      for (let c = 0; c < columns; c++) sum[c] = round(sum[c] + round(factor * terms[c]));
    }
    return sum;
  });
}

const square = (matrix: Matrix): Matrix => matrix.map((row) => row.map((x) => x * x));
const absolute = (matrix: Matrix): Matrix => matrix.map((row) => row.map(Math.abs));

function inverseOf(a: Matrix, options: NystromMeaning, round: Round): Matrix {
  if (options.pinv === 'svd') return regularizedInverse(a, options.regularization ?? 0.025, round);
  const indices = a.map((_, i) => i);
  const rowSums = a.map((row) => row.reduce((sum, x) => round(sum + Math.abs(x)), 0));
  const columnSums = indices.map((j) => a.reduce((sum, row) => round(sum + Math.abs(row[j])), 0));
  const norms = round(Math.max(...rowSums) * Math.max(...columnSums));
  let z: Matrix = indices.map((i) => Float64Array.from(indices, (j) => round(a[j][i] / norms)));
  /** diagonal·I − m. */
  const minus = (diagonal: number, m: Matrix): Matrix =>
    m.map((row, i) => row.map((x, j) => (i === j ? round(diagonal - x) : -x)));
  for (let step = 0; step < (options.iterations ?? 6); step++) {
    const x = product(a, z, round);
    const inner = minus(15, product(x, minus(7, x), round));
    z = product(z, minus(13, product(x, inner, round)), round).map((row) => row.map((each) => each / 4));
  }
  return z;
}

/** V·diag(σ/(σ² + λ²))·Uᵀ, λ relative to the largest σ. Of a matrix that is not finite, NaN. */
function regularizedInverse(a: Matrix, regularization: number, round: Round): Matrix {
  if (!a.every((row) => row.every(Number.isFinite))) return a.map((row) => row.map(() => NaN));
  const { columns, v } = orthogonalColumns(a);
  const sigma = columns.map((column) => Math.hypot(...column));
  const largest = Math.max(...sigma);
  const lambda = regularization * largest;
  const zero = regularization > 0 ? 0 : a.length * 2 ** -24 * largest;
  // columns[l] is σ·u, so that one more division by σ stands in the factor.
  const factor = sigma.map((s) => (s > zero ? 1 / (s * s + lambda * lambda) : 0));
  return a.map((_, i) =>
    Float64Array.from(a, (_row, j) => round(v.reduce((sum, axis, l) => sum + axis[i] * factor[l] * columns[l][j], 0))),
  );
}

/** One-sided Jacobi (Hestenes 1958): rotations v, a list of columns, after which a·v has orthogonal columns σ·u. */
function orthogonalColumns(a: Matrix): { readonly columns: Matrix; readonly v: Matrix } {
  const size = a.length;
  const columns = Array.from({ length: size }, (_, j) => Float64Array.from(a, (row) => row[j]));
  const v = Array.from({ length: size }, (_, j) => Float64Array.from(a, (_row, i) => Number(i === j)));
  const rotate = (rows: Matrix, p: number, q: number, c: number, s: number) => {
    const [x, y] = [rows[p], rows[q]];
    for (let i = 0; i < size; i++) [x[i], y[i]] = [c * x[i] - s * y[i], s * x[i] + c * y[i]];
  };
  for (let sweep = 0, rotated = true; rotated; sweep++) {
    if (sweep === 60) throw new Error('Jacobi does not converge');
    rotated = false;
    for (let p = 0; p < size; p++) {
      for (let q = p + 1; q < size; q++) {
        const [x, y] = [columns[p], columns[q]];
        let [xx, yy, xy] = [0, 0, 0];
        for (let i = 0; i < size; i++) {
          xx += x[i] * x[i];
          yy += y[i] * y[i];
          xy += x[i] * y[i];
        }
        if (xy * xy <= 1e-30 * xx * yy) continue;
        rotated = true;
        const tau = (yy - xx) / (2 * xy);
        const t = (tau < 0 ? -1 : 1) / (Math.abs(tau) + Math.hypot(1, tau));
        const c = 1 / Math.hypot(1, t);
        rotate(columns, p, q, c, c * t);
        rotate(v, p, q, c, c * t);
      }
    }
  }
  return { columns, v };
}
