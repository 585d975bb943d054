import type { DataType, Tensor } from '../lib/tensor';
import { from } from './data';
import { round as roundTo, toFloat64 } from './half';
import { naiveAttention } from './naive32';
import { type AttentionMeaning, type Problem, problemOf, type Shaped } from './problem';
import { attentionOver, type Measured } from './reference';
import type { Expected } from './tolerance';

/** What is the same for all tokens. */
export interface LrkvModelMeaning {
  readonly keyUp: Tensor;
  readonly valueUp: Tensor;
  readonly keyGauge?: Tensor;
  readonly valueGauge?: Tensor;
  readonly keyRanks?: readonly number[];
  readonly valueRanks?: readonly number[];
  readonly rope?: {
    readonly frequencies: ArrayLike<number>;
    readonly pairing?: 'half' | 'interleaved';
    readonly firstPosition?: number;
  };
  readonly ropeMode?: 'exact' | 'latent' | 'none' | 'paper' | 'intertwined';
  readonly latentFrequencies?: ArrayLike<number>;
  readonly keyNorm?: {
    readonly epsilon?: number;
    readonly gain?: ArrayLike<number>;
    readonly gainOrder?: 'before-rotation' | 'after-rotation';
  };
}

/** Base and latents of every key and value, as the projections give them: [batch, keys, columns]. */
export interface LrkvRowsMeaning {
  readonly keyBase: Tensor;
  readonly keyLatent: Tensor;
  readonly valueBase: Tensor;
  readonly valueLatent: Tensor;
}

export type LrkvGiven = LrkvModelMeaning & LrkvRowsMeaning;

export interface LrkvMeaning extends AttentionMeaning {
  /** Default the heads of q. */
  readonly kvHeads?: number;
}

/** How one step of arithmetic rounds, and what becomes of rows that are kept for later. */
interface Rounding {
  readonly step: (value: number) => number;
  /**
   * How a number rounds that is kept. Left out, nothing is kept, and keys are made in the words of the definition. What is
   * kept is what a cache keeps, since each of its roundings moves the result in a way of its own: bases and latents as
   * they come, without gauge and Bᵀ, and rotated where the mode rotates them; in the mode 'exact' the whole key with its gain.
   */
  readonly store?: (value: number) => number;
}

/** A row of numbers with the sums of the absolute values of the terms of each. */
interface Row {
  readonly values: number[];
  readonly sizes: number[];
}

const plainRow = (values: readonly number[]): Row => ({ values: [...values], sizes: values.map(Math.abs) });

const join = (...rows: readonly Row[]): Row => ({
  values: rows.flatMap(({ values }) => values),
  sizes: rows.flatMap(({ sizes }) => sizes),
});

/** Rows of numbers and matrices, each step rounded alike. */
class Arithmetic {
  constructor(readonly rounding: Rounding) {}

  /** row · matrix, whose element (r, c) is `at(r, c)`. */
  times(row: Row, columns: number, at: (r: number, c: number) => number): Row {
    const { step } = this.rounding;
    const result = plainRow(new Array<number>(columns).fill(0));
    for (let c = 0; c < columns; c++) {
      for (let r = 0; r < row.values.length; r++) {
        result.values[c] = step(result.values[c] + step(row.values[r] * at(r, c)));
        result.sizes[c] += row.sizes[r] * Math.abs(at(r, c));
      }
    }
    return result;
  }

  sum(a: Row, b: Row): Row {
    return {
      values: a.values.map((value, i) => this.rounding.step(value + b.values[i])),
      sizes: a.sizes.map((size, i) => size + b.sizes[i]),
    };
  }

  /** Element by element; a factor left out is 1. */
  scaled(row: Row, factor: ((i: number) => number) | undefined): Row {
    if (factor === undefined) return row;
    return {
      values: row.values.map((value, i) => this.rounding.step(value * factor(i))),
      sizes: row.sizes.map((size, i) => size * Math.abs(factor(i))),
    };
  }

  stored({ values, sizes }: Row): Row {
    const { store } = this.rounding;
    return { values: store ? values.map(store) : values, sizes };
  }

  /** Pair i of the row turned by the angle position · frequencies[i]. */
  rotated(row: Row, position: number, frequencies: readonly number[], pairing: string): Row {
    const { step } = this.rounding;
    const [values, sizes] = [[...row.values], [...row.sizes]];
    const pairs = row.values.length / 2;
    for (let i = 0; i < pairs; i++) {
      const [x, y] = pairing === 'half' ? [i, i + pairs] : [2 * i, 2 * i + 1];
      const [cos, sin] = [step(Math.cos(position * frequencies[i])), step(Math.sin(position * frequencies[i]))];
      values[x] = step(step(row.values[x] * cos) - step(row.values[y] * sin));
      values[y] = step(step(row.values[x] * sin) + step(row.values[y] * cos));
      sizes[x] = row.sizes[x] * Math.abs(cos) + row.sizes[y] * Math.abs(sin);
      sizes[y] = row.sizes[x] * Math.abs(sin) + row.sizes[y] * Math.abs(cos);
    }
    return { values, sizes };
  }

  /** 1 / √(mean(row²) + epsilon) */
  normalizer({ values }: Row, epsilon: number): number {
    const { step } = this.rounding;
    const squares = values.reduce((sum, value) => step(sum + step(value * value)), 0);
    return step(1 / step(Math.sqrt(step(step(squares / values.length) + epsilon))));
  }
}

/** One side of a model for one key/value head. */
interface Factors {
  /** base · gauge */
  readonly shared: (base: Row) => Row;
  /** latent · Bᵀ */
  readonly residual: (latent: Row) => Row;
  /** The head's columns of a latent row of all heads. */
  readonly columns: readonly [start: number, end: number];
}

function factorsOf(
  math: Arithmetic,
  head: number,
  kvHeads: number,
  up: Tensor,
  gauge: Tensor | undefined,
  baseDim: number,
  given: readonly number[] | undefined,
): Factors {
  const [rows, dim] = up.dims;
  const ranks = given ?? new Array<number>(kvHeads).fill(rows / kvHeads);
  const start = ranks.slice(0, head).reduce((a, b) => a + b, 0);
  const ups = toFloat64(up);
  const gauges = gauge && toFloat64(gauge);
  const identity = (r: number, c: number) => (r === c ? 1 : 0);
  const element = gauges ? (r: number, c: number) => gauges[(head * baseDim + r) * dim + c] : identity;
  return {
    // An identity must not spread what is not finite.
    shared: (base) => (gauges || baseDim === 0 ? math.times(base, dim, element) : base),
    residual: (latent) => math.times(latent, dim, (r, c) => ups[(start + r) * dim + c]),
    columns: [start, start + ranks[head]],
  };
}

/** Queries, keys and values of ordinary attention whose logits and outputs are those of LRKV. */
interface Materialized {
  readonly q: Measured;
  readonly k: Measured;
  readonly v: Measured;
}

/**
 * Keys k_h = base·A_h + u_h·B_hᵀ and values alike (arXiv 2601.11471, section 3), and rotary embedding in the mode's own
 * words, R and R' the rotations of heads and latents, n the query's position and p the key's:
 * - no rope: q · k
 * - exact, and intertwined, which is a way to compute it: (R_n q) · R_p k
 * - latent: (R_n q) · R_p(base·A) + (R'_n Bᵀq) · R'_p u
 * - none: (R_n q) · R_p(base·A) + q · B u
 * - paper: (R_n q) · (R_p(base·A) + B R'_p u)
 *
 * A mode with two different products becomes one of longer rows. QK-norm divides by the root mean square of k, whatever
 * the mode; the gain g multiplies base·A and B (before rotation) or what is multiplied with R_n q (after it).
 */
function materialize(
  q: Tensor,
  given: LrkvGiven,
  { kvHeads, ...options }: LrkvMeaning,
  rounding: Rounding,
): Materialized {
  const { keyUp, valueUp, keyBase, valueBase, rope, keyNorm } = given;
  const math = new Arithmetic(rounding);
  const mode = rope === undefined ? 'off' : (given.ropeMode ?? 'exact');
  const layout = options.layout ?? 'bhld';
  const heads = q.dims[layout === 'bhld' ? 1 : 2];
  const shared = kvHeads ?? heads;
  const keys = keyBase.dims[1];
  const of = (count: number, rows: number, dim: number): Shaped => ({
    dims: layout === 'bhld' ? [q.dims[0], count, rows, dim] : [q.dims[0], rows, count, dim],
  });
  const [headDim, valueDim] = [keyUp.dims[1], valueUp.dims[1]];
  const p = problemOf(q, of(shared, keys, headDim), of(shared, keys, valueDim), options);

  const pairing = rope?.pairing ?? 'half';
  const position = (index: number) => (rope?.firstPosition ?? 0) + index;
  const frequencies = Array.from(rope?.frequencies ?? []);
  const turned = (row: Row, at: number) =>
    mode === 'off' ? row : math.rotated(row, position(at), frequencies, pairing);
  const gain = keyNorm?.gain && ((i: number) => Math.fround((keyNorm.gain as ArrayLike<number>)[i]));
  const isAfter = keyNorm?.gainOrder === 'after-rotation';
  const [before, after] = isAfter ? [undefined, gain] : [gain, undefined];

  const ups = toFloat64(keyUp);
  /** Of pair `i` of a head's latents, whose factors intertwine: that of the pairs they are coupled to, 0 of none. */
  const coupledFrequency = (first: number, i: number) => {
    const row = first + (pairing === 'half' ? i : 2 * i);
    const column = ups.subarray(row * headDim, (row + 1) * headDim).findIndex((value) => value !== 0);
    return column < 0 ? 0 : frequencies[pairing === 'half' ? column % (headDim / 2) : column >> 1];
  };

  const sides = Array.from({ length: shared }, (_, head) => {
    const key = factorsOf(math, head, shared, keyUp, given.keyGauge, keyBase.dims[2], given.keyRanks);
    const value = factorsOf(math, head, shared, valueUp, given.valueGauge, valueBase.dims[2], given.valueRanks);
    const [start, end] = key.columns.map((column) => column / 2);
    const latents =
      mode === 'intertwined'
        ? Array.from({ length: end - start }, (_, i) => coupledFrequency(key.columns[0], i))
        : Array.from(given.latentFrequencies ?? []).slice(start, end);
    return { key, value, turnedLatent: (row: Row, at: number) => math.rotated(row, position(at), latents, pairing) };
  });
  const widest = sides.reduce((most, { key }) => Math.max(most, key.columns[1] - key.columns[0]), 0);
  const padded = (row: Row) => join(row, plainRow(new Array<number>(widest - row.values.length).fill(0)));

  const queryRow = (row: Row, at: number, { key, turnedLatent }: (typeof sides)[number]): Row => {
    const base = turned(row, at);
    if (mode === 'none') return join(base, row);
    if (mode !== 'latent') return base;
    const [start, end] = key.columns;
    const absorbed = math.times(math.scaled(row, before), end - start, (r, c) => ups[(start + c) * headDim + r]);
    return join(base, padded(turnedLatent(absorbed, at)));
  };

  const keyRow = (base: Row, latent: Row, at: number, { key, turnedLatent }: (typeof sides)[number]): Row => {
    const [part, residual] = [key.shared(base), key.residual(latent)];
    const factor = keyNorm && math.normalizer(math.sum(part, residual), keyNorm.epsilon ?? 1e-6);
    const scale = factor === undefined ? undefined : () => factor;
    const sharedOf = (row: (base: Row) => Row) => (rounding.store ? key.shared(math.stored(row(base))) : row(part));
    switch (mode === 'intertwined' && rounding.store ? 'paper' : mode) {
      case 'off': {
        const whole = math.sum(
          sharedOf((row) => row),
          key.residual(math.stored(latent)),
        );
        return math.scaled(math.scaled(whole, scale), gain);
      }
      case 'exact':
      case 'intertwined': {
        const whole = math.scaled(math.scaled(math.sum(part, residual), scale), before);
        return math.stored(math.scaled(turned(whole, at), after));
      }
      case 'latent': {
        const first = sharedOf((row) => turned(math.scaled(row, before), at));
        return math.scaled(join(first, padded(math.stored(turnedLatent(latent, at)))), scale);
      }
      case 'none': {
        const first = sharedOf((row) => turned(math.scaled(row, before), at));
        return math.scaled(join(first, math.scaled(key.residual(math.stored(latent)), before)), scale);
      }
      case 'paper': {
        const first = sharedOf((row) => turned(row, at));
        const second = key.residual(math.stored(turnedLatent(latent, at)));
        return math.scaled(math.scaled(math.sum(first, second), scale), after);
      }
    }
  };

  const valueRow = (base: Row, latent: Row, { value }: (typeof sides)[number]): Row =>
    math.sum(value.shared(math.stored(base)), value.residual(math.stored(latent)));

  const rowsOf = (tensor: Tensor, head: number, side: 'key' | 'value' | undefined) => {
    const values = toFloat64(tensor);
    const width = tensor.dims[2];
    const [start, end] = side === undefined ? [0, width] : sides[head][side].columns;
    return (b: number, j: number) =>
      plainRow(Array.from(values.subarray((b * keys + j) * width + start, (b * keys + j) * width + end)));
  };

  const dim = mode === 'none' ? 2 * headDim : mode === 'latent' ? headDim + widest : headDim;
  const qs = toFloat64(q);
  const perHead = sides.map((_, head) => ({
    keyBase: rowsOf(keyBase, head, undefined),
    keyLatent: rowsOf(given.keyLatent, head, 'key'),
    valueBase: rowsOf(valueBase, head, undefined),
    valueLatent: rowsOf(given.valueLatent, head, 'value'),
  }));
  return {
    q: gather(p, of(heads, p.queries, dim), heads, p.queries, (b, h, i) => {
      const row = plainRow(Array.from(qs.subarray(p.row(q, b, h, i), p.row(q, b, h, i) + headDim)));
      return queryRow(row, i + p.offset(b), sides[Math.floor(h / p.group)]);
    }),
    k: gather(p, of(shared, keys, dim), shared, keys, (b, h, j) =>
      keyRow(perHead[h].keyBase(b, j), perHead[h].keyLatent(b, j), j, sides[h]),
    ),
    v: gather(p, of(shared, keys, valueDim), shared, keys, (b, h, j) =>
      valueRow(perHead[h].valueBase(b, j), perHead[h].valueLatent(b, j), sides[h]),
    ),
  };
}

/** The rows of all sequences and heads in the problem's layout. */
function gather(
  p: Problem,
  { dims }: Shaped,
  heads: number,
  rows: number,
  make: (sequence: number, head: number, row: number) => Row,
): Measured {
  const size = dims.reduce((a, b) => a * b, 1);
  const result = { dims, values: new Float64Array(size), sizes: new Float64Array(size) };
  for (let b = 0; b < p.batch; b++) {
    for (let h = 0; h < heads; h++) {
      for (let i = 0; i < rows; i++) {
        const { values, sizes } = make(b, h, i);
        result.values.set(values, p.row(result, b, h, i));
        result.sizes.set(sizes, p.row(result, b, h, i));
      }
    }
  }
  return result;
}

/** LRKV in float64, from the definition. */
export function referenceLrkv(q: Tensor, given: LrkvGiven, options: LrkvMeaning = {}) {
  const { q: queries, k, v } = materialize(q, given, options, { step: (value) => value });
  const scale = options.scale ?? 1 / Math.sqrt(given.keyUp.dims[1]);
  return attentionOver(queries, k, v, { ...options, scale });
}

/** The same step by step in float32, with rows kept in `stored`. */
export function naiveLrkv(q: Tensor, given: LrkvGiven, options: LrkvMeaning = {}, stored: DataType = 'float32') {
  const rounding = { step: Math.fround, store: (value: number) => roundTo(value, stored) };
  const { q: queries, k, v } = materialize(q, given, options, rounding);
  const scale = options.scale ?? 1 / Math.sqrt(given.keyUp.dims[1]);
  const [qs, ks, vs] = [queries, k, v].map(({ values, dims }) => from(values, dims)) as [Tensor, Tensor, Tensor];
  return naiveAttention(qs, ks, vs, { ...options, scale });
}

/**
 * What LRKV must give, with its error budget.
 *
 * @param stored element type in which rows are kept: that of a cache, or by default that of a call without one
 */
export function expectLrkv(
  q: Tensor,
  given: LrkvGiven,
  options: LrkvMeaning = {},
  stored: DataType = 'float32',
): { readonly output: Expected; readonly lse: Expected } {
  const exact = referenceLrkv(q, given, options);
  const naive = naiveLrkv(q, given, options, stored);
  const { keyBase, valueBase, keyUp, valueUp } = given;
  const longest = Math.max(keyBase.dims[2] + keyUp.dims[0], valueBase.dims[2] + valueUp.dims[0]);
  const terms = keyUp.dims[1] + keyBase.dims[1] + longest;
  return {
    output: { values: exact.output, dims: exact.dims, scale: exact.outputScale, naive: naive.output, terms },
    lse: { values: exact.lse, dims: exact.lseDims, scale: exact.lseScale, naive: naive.lse, terms },
  };
}
