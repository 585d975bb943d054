import { type AttentionFactors, attentionFactorsSync, type FactorOptions } from '../lib';
import type { Tensor } from '../lib/tensor';
import { headRatios, headSizes, hurtful, normal, oddLengths, type Shape, slice, swapLayout, types } from './data';
import { toFloat64 } from './half';
import {
  attentionMatrices,
  distance,
  type Matrix,
  type MatrixMeaning,
  outerProduct,
  referenceSvd,
  sumOfSquares,
} from './reference-lowrank';
import { isaRows, once } from './rows';
import { compare } from './tolerance';

const rows = isaRows('lowrank');

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

interface Pair {
  readonly q: Tensor;
  readonly k: Tensor;
}

const pairOf = (
  { batch = 1, heads = 1, kvHeads = heads, queries, keys, headDim }: Shape,
  seed: number,
  spread = 1,
  type: Tensor['type'] = 'float32',
): Pair => ({
  q: scaled(normal([batch, heads, queries, headDim], seed, type), spread),
  k: normal([batch, kvHeads, keys, headDim], seed + 1, type),
});

/** Larger queries make larger logits, so sharper attention of higher rank. */
function scaled(tensor: Tensor, factor: number): Tensor {
  if (factor !== 1) for (let i = 0; i < tensor.data.length; i++) tensor.data[i] *= factor;
  return tensor;
}

/** The factors of one matrix. */
interface One {
  readonly u: Float64Array;
  readonly v: Float64Array;
  readonly values: Float64Array;
  readonly rank: number;
}

function factorsOf({ u, v, singularValues }: AttentionFactors): One[] {
  const rank = u.dims[3];
  const part = (tensor: Tensor, size: number, index: number) =>
    toFloat64(tensor).subarray(index * size, (index + 1) * size);
  return Array.from({ length: u.dims[0] * u.dims[1] }, (_, index) => ({
    u: part(u, u.dims[2] * rank, index),
    v: part(v, v.dims[2] * rank, index),
    values: part(singularValues, rank, index),
    rank,
  }));
}

/** Largest |basisᵀ·basis − diagonal| of columns, the first `width` of them with norms `norms`. */
function skew(basis: Float64Array, width: number, norms: ArrayLike<number>): number {
  let worst = 0;
  for (let a = 0; a < width; a++) {
    for (let b = 0; b <= a; b++) {
      let dot = 0;
      for (let i = 0; i < basis.length; i += width) dot += basis[i + a] * basis[i + b];
      worst = Math.max(worst, Math.abs(dot - (a === b ? norms[a] * norms[a] : 0)));
    }
  }
  return worst;
}

const eps = 2 ** -23;

/**
 * What holds of the factors of any matrix, at any rank: v orthonormal, u orthogonal with the singular values as norms,
 * values descending and none above the true one, and the identity ‖A − u·vᵀ‖² = ‖A‖² − Σσ². `rounding` is what an entry
 * of A is off by in float32, relative to it.
 */
function checkFactors(one: One, exact: Matrix, rounding: number): void {
  const { u, v, values, rank } = one;
  const truth = referenceSvd(exact).values;
  const [largest] = truth;
  const ones = new Float64Array(rank).fill(1);
  const slack = (rounding + 32 * eps) * Math.sqrt(exact.rows + exact.columns);
  expect(skew(v, rank, ones)).toBeLessThan(32 * eps);
  expect(skew(u, rank, values)).toBeLessThan(slack * largest * largest);
  for (const [i, value] of values.entries()) {
    expect(value).toBeLessThanOrEqual(i === 0 ? Infinity : values[i - 1]);
    expect(value).toBeLessThanOrEqual(truth[i] + slack * largest);
  }
  const energy = sumOfSquares(exact.data);
  const error = distance(outerProduct(u, v, rank).values, exact.data) ** 2;
  expect(Math.abs(error - (energy - sumOfSquares(values)))).toBeLessThan(slack * energy);
}

/** Rounding of a logit, relative to its exponential: eps times the largest logit, and the sum behind it. */
function roundingOf({ q, k }: Pair, { scale = 1 / Math.sqrt(q.dims[3]) }: MatrixMeaning): number {
  const largest = (tensor: Tensor) =>
    toFloat64(tensor).reduce((most, value, i) => {
      row = i % tensor.dims[3] === 0 ? value * value : row + value * value;
      return Math.max(most, row);
    }, 0);
  let row = 0;
  return 4 * eps * (1 + Math.abs(scale) * Math.sqrt(largest(q) * largest(k)));
}

interface Case {
  readonly inputs: () => Pair;
  readonly options?: MatrixMeaning;
  /** Default 7, or what the matrix has. */
  readonly rank?: number;
}

/** One test for each case and kernel row, at a low rank and at the full one, where the product is the matrix. */
function table(cases: Readonly<Record<string, Case>>) {
  describe.each(Object.entries(cases))('%s', (_name, { inputs, options = {}, rank = 7 }) => {
    const prepared = once(() => {
      const pair = inputs();
      const exact = attentionMatrices(pair.q, pair.k, options);
      const naive = attentionMatrices(pair.q, pair.k, options, true);
      return { pair, exact, naive, rounding: roundingOf(pair, options) };
    });
    test.each(rows)('%s', (isa) => {
      const { pair, exact, naive, rounding } = prepared();
      const most = Math.min(exact[0].rows, exact[0].columns);
      const run = (wanted: number) => attentionFactorsSync(pair.q, pair.k, { ...options, rank: wanted, isa });
      const low = run(Math.min(rank, most));
      expect([...low.ranks]).toEqual(exact.map(() => Math.min(rank, most)));
      for (const [index, one] of factorsOf(low).entries()) checkFactors(one, exact[index], rounding);

      for (const [index, one] of factorsOf(run(most)).entries()) {
        checkFactors(one, exact[index], rounding);
        const { rows: m, columns: n } = exact[index];
        const product = outerProduct(one.u, one.v, most);
        // The naive form: the float32 matrix, its own factors rounded to float32.
        const whole = referenceSvd(naive[index]);
        const left = Float32Array.from(whole.u, (value, i) => value * whole.values[i % most]);
        const byNaive = outerProduct(left, Float32Array.from(whole.v), most).values;
        // Orthogonal steps mix a matrix's entries: what each is off by is relative to the largest value of all.
        const scale = product.scale.map((size) => size + whole.values[0]);
        compare(
          { data: Float32Array.from(product.values), dims: [m, n], type: 'float32' },
          { values: exact[index].data, dims: [m, n], scale, naive: byNaive, terms: pair.q.dims[3] + m + n },
          `u·vᵀ (${isa})`,
        );
      }
    });
  });
}

describe('lengths', () => {
  const cases: Record<string, Case> = {};
  for (const length of oddLengths.filter((each) => each < 300)) {
    cases[`${length} by ${length}, causal`] = {
      inputs: () => pairOf({ queries: length, keys: length, headDim: 24 }, length, 2),
      options: { causal: true },
    };
    cases[`${length} by 40`] = { inputs: () => pairOf({ queries: length, keys: 40, headDim: 24 }, length, 2) };
    cases[`40 by ${length}`] = { inputs: () => pairOf({ queries: 40, keys: length, headDim: 24 }, length, 2) };
  }
  cases['90 by 130, causal'] = {
    inputs: () => pairOf({ queries: 90, keys: 130, headDim: 24 }, 7, 2),
    options: { causal: true },
  };
  cases['130 by 90, causal: rows that see no key'] = {
    inputs: () => pairOf({ queries: 130, keys: 90, headDim: 24 }, 8, 2),
    options: { causal: true },
  };
  table(cases);
});

describe('head sizes, ratios and options', () => {
  const cases: Record<string, Case> = {};
  for (const headDim of headSizes) {
    cases[`head size ${headDim}`] = { inputs: () => pairOf({ queries: 70, keys: 75, headDim }, headDim, 2) };
  }
  for (const [heads, kvHeads] of headRatios) {
    cases[`${heads} on ${kvHeads}`] = {
      inputs: () => pairOf({ batch: 2, heads, kvHeads, queries: 30, keys: 45, headDim: 12 }, heads, 2),
      options: { causal: true },
    };
  }
  const inputs = () => pairOf({ heads: 2, queries: 50, keys: 66, headDim: 16 }, 5);
  table({
    ...cases,
    'scale 0: every weight the same': { inputs, options: { scale: 0 } },
    'negative scale': { inputs, options: { scale: -0.7 } },
    'large scale: almost a permutation': { inputs, options: { scale: 20 } },
    blhd: {
      inputs: () => {
        const { q, k } = pairOf({ batch: 2, heads: 4, kvHeads: 2, queries: 33, keys: 47, headDim: 20 }, 6, 2);
        return { q: swapLayout(q), k: swapLayout(k) };
      },
      options: { layout: 'blhd', causal: true },
    },
  });
});

describe.each(types)('%s', (type) => {
  const shape = { heads: 2, kvHeads: 1, queries: 60, keys: 80, headDim: 32 };
  const cases: Record<string, Case> = { normal: { inputs: () => pairOf(shape, 9, 1, type) } };
  for (const [name, make] of Object.entries(hurtful)) {
    cases[name] = { inputs: () => make(shape, 31, type) };
    cases[`${name}, causal`] = { inputs: () => make(shape, 32, type), options: { causal: true } };
  }
  table(cases);
});

test('queries of another type than keys', () => {
  const { q } = pairOf({ heads: 2, queries: 40, keys: 50, headDim: 16 }, 3, 1, 'float16');
  const { k } = pairOf({ heads: 2, queries: 40, keys: 50, headDim: 16 }, 3, 1, 'bfloat16');
  const exact = attentionMatrices(q, k);
  const found = factorsOf(attentionFactorsSync(q, k, { rank: 40 }));
  for (const [index, one] of found.entries()) {
    checkFactors(one, exact[index], roundingOf({ q, k }, {}));
    expect(distance(outerProduct(one.u, one.v, 40).values, exact[index].data)).toBeLessThan(1e-5);
  }
});

describe('analytic cases', () => {
  test('all keys the same: rank 1, σ = √(queries/keys), and nothing else', () => {
    const { q, k } = hurtful['all equal']({ queries: 30, keys: 50, headDim: 8 }, 1);
    const { u, v, singularValues } = attentionFactorsSync(q, k, { rank: 4 });
    expect(singularValues.data[0]).toBeCloseTo(Math.sqrt(30 / 50), 6);
    for (const value of singularValues.data.slice(1)) expect(value).toBeLessThan(1e-6);
    const product = outerProduct(toFloat64(u), toFloat64(v), 4).values;
    for (const weight of product) expect(weight).toBeCloseTo(1 / 50, 6);
    // Also the columns without a singular value are a basis.
    expect(skew(toFloat64(v), 4, [1, 1, 1, 1])).toBeLessThan(32 * eps);
  });

  test('every query sees its own key: the identity, all singular values 1', () => {
    const eye = normal([1, 1, 40, 40], 1);
    for (let i = 0; i < eye.data.length; i++) eye.data[i] = i % 41 === 0 ? 1 : 0;
    const { singularValues, ranks } = attentionFactorsSync(eye, eye, { scale: 100, rank: 40 });
    for (const value of singularValues.data) expect(value).toBeCloseTo(1, 5);
    expect([...ranks]).toEqual([40]);
    expect([...attentionFactorsSync(eye, eye, { scale: 100, energy: 0.5 }).ranks]).toEqual([20]);
  });
});

describe('the decomposition of larger matrices', () => {
  const cases = {
    'n = 300': { length: 300, spread: 1, options: {} },
    'n = 300, causal': { length: 300, spread: 1, options: { causal: true } },
    'n = 650': { length: 650, spread: 1.5, options: {} },
    'n = 1000, causal': { length: 1000, spread: 1, options: { causal: true } },
  };
  test.each(Object.entries(cases))('%s: near the best of its rank', (_name, { length, spread, options }) => {
    const pair = pairOf({ queries: length, keys: length, headDim: 16 }, length, spread);
    const [exact] = attentionMatrices(pair.q, pair.k, options);
    const truth = referenceSvd(exact).values;
    for (const rank of [8, 32]) {
      const best = sumOfSquares(truth.subarray(rank));
      const errors = [0, 2, 6].map((powerIterations) => {
        const factors = attentionFactorsSync(pair.q, pair.k, { ...options, rank, powerIterations });
        const [one] = factorsOf(factors);
        checkFactors(one, exact, roundingOf(pair, options));
        // Eckart & Young: nothing of this rank is nearer.
        const error = distance(outerProduct(one.u, one.v, rank).values, exact.data) ** 2;
        expect(error).toBeGreaterThan(best * (1 - 1e-5));
        return error;
      });
      // The published bound of the basic scheme, in the mean over starts: (1 + k/(p − 1))·Σ of the rest.
      expect(errors[0]).toBeLessThan((1 + rank / 7) * best);
      expect(errors[1]).toBeLessThan(1.02 * best);
      expect(errors[2]).toBeLessThan(1.005 * best);
    }
  });
});

describe('energy', () => {
  const pair = once(() => pairOf({ batch: 2, heads: 2, queries: 90, keys: 110, headDim: 12 }, 91, 2));

  test.each([0.5, 0.9, 0.99, 1])('%d: the smallest rank of each matrix, zeros beyond it', (energy) => {
    const { q, k } = pair();
    const truth = attentionMatrices(q, k).map(referenceSvd);
    const found = attentionFactorsSync(q, k, { energy });
    const largest = Math.max(...found.ranks);
    expect(found.u.dims).toEqual([2, 2, 90, largest]);
    expect(found.v.dims).toEqual([2, 2, 110, largest]);
    expect(found.singularValues.dims).toEqual([2, 2, largest]);
    for (const [index, { u, v, values, rank }] of factorsOf(found).entries()) {
      const own = found.ranks[index];
      const total = sumOfSquares(truth[index].values);
      const share = (count: number) => sumOfSquares(truth[index].values.subarray(0, count)) / total;
      expect(share(own)).toBeGreaterThan(energy - 1e-5);
      // With all columns carried the singular values are the true ones.
      if (energy < 1) expect(share(own - 1)).toBeLessThan(energy);
      expect(values.subarray(own).every((value) => value === 0)).toBe(true);
      expect(u.every((value, i) => i % rank < own === (value !== 0))).toBe(true);
      expect(v.every((value, i) => i % rank < own === (value !== 0))).toBe(true);
    }
  });

  test('out of reach is refused, and says what is within it', () => {
    const { q, k } = pair();
    const { values } = referenceSvd(attentionMatrices(q, k)[0]);
    const reached = sumOfSquares(values.subarray(0, 5)) / sumOfSquares(values);
    const options: FactorOptions = { energy: 0.99, maxRank: 5 };
    const pattern = /^expected at most what 5 components keep of batch item 0, head 0 \((0\.\d+)\) for `energy`, rec/;
    let message = '';
    try {
      attentionFactorsSync(q, k, options);
    } catch (error) {
      ({ message } = error as Error);
    }
    expect(message).toMatch(pattern);
    expect(Math.abs(Number(pattern.exec(message)?.[1]) - reached)).toBeLessThan(0.02);
  });
});

test('NaN stays in its matrix', () => {
  const { q, k } = pairOf({ batch: 2, heads: 2, queries: 20, keys: 30, headDim: 8 }, 55);
  const clean = attentionFactorsSync(q, k, { rank: 4 });
  q.data[20 * 8 + 3] = NaN;
  const found = attentionFactorsSync(q, k, { rank: 4 });
  for (const name of ['u', 'v', 'singularValues'] as const) {
    for (const index of [0, 1, 2, 3]) {
      const [item, head] = [Math.floor(index / 2), index % 2];
      const of = (tensor: Tensor) => toFloat64(slice(slice(tensor, 0, item, item + 1), 1, head, head + 1));
      if (index === 1) expect(of(found[name]).every(Number.isNaN)).toBe(true);
      else expect(of(found[name])).toEqual(of(clean[name]));
    }
  }
  expect(() => attentionFactorsSync(q, k, { energy: 0.5 })).toThrow(/batch item 0, head 1 \(NaN\)/);
});
