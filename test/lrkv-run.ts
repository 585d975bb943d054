import { lrkvAttentionWithLseSync } from '../lib';
import type { DataType, Tensor } from '../lib/tensor';
import { filled, from, guarded, normal, type Shape, uniform } from './data';
import type { Run } from './full-run';
import { toFloat64 } from './half';
import { expectLrkv, type LrkvGiven, type LrkvMeaning, type LrkvModelMeaning } from './reference-lrkv';
import { isaRows, testRows } from './rows';
import { compare } from './tolerance';

/** The extents of one call of LRKV. */
export interface LrkvShape extends Shape {
  /** Columns of the bases. Default headDim and valueDim; another number calls for a gauge. */
  readonly keyBaseDim?: number;
  readonly valueBaseDim?: number;
  /** Ranks of all key/value heads, or of each. */
  readonly keyRank?: number | readonly number[];
  readonly valueRank?: number | readonly number[];
}

/** What a model has beside its factors. */
export interface LrkvFeatures {
  readonly mode?: Exclude<LrkvModelMeaning['ropeMode'], undefined>;
  readonly pairing?: 'half' | 'interleaved';
  readonly firstPosition?: number;
  /** `'pairs'` commutes with the rotation. Default none where the base has the head's size. */
  readonly keyGauge?: 'free' | 'pairs';
  readonly valueGauge?: 'free';
  readonly norm?: 'plain' | 'before-rotation' | 'after-rotation';
  /** Element type of the model's tensors. Default `'float32'`. */
  readonly modelType?: DataType;
}

/** Queries, and rows and model, of one call. */
export interface LrkvInputs {
  readonly q: Tensor;
  readonly given: LrkvGiven;
  readonly options: LrkvMeaning;
}

export interface FullLrkvShape extends Required<Omit<LrkvShape, 'keyRank' | 'valueRank'>> {
  readonly keyRanks: readonly number[];
  readonly valueRanks: readonly number[];
}

/** The shape with its defaults. */
export function lrkvShape(shape: LrkvShape): FullLrkvShape {
  const { batch = 1, heads = 1, kvHeads = heads, headDim, valueDim = headDim, layout = 'bhld' } = shape;
  const { keyBaseDim = headDim, valueBaseDim = valueDim, keyRank = 8, valueRank = 8 } = shape;
  const list = (rank: number | readonly number[]) =>
    typeof rank === 'number' ? new Array<number>(kvHeads).fill(rank) : rank;
  return {
    ...{ batch, heads, kvHeads, queries: shape.queries, keys: shape.keys, headDim, valueDim, layout },
    ...{ keyBaseDim, valueBaseDim, keyRanks: list(keyRank), valueRanks: list(valueRank) },
  };
}

const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0);

/** Frequencies of rotary embedding, 10000^(−2i/d) (arXiv 2104.09864, section 3.2.2). */
export const frequenciesOf = (dim: number): number[] =>
  Array.from({ length: dim / 2 }, (_, i) => 10_000 ** ((-2 * i) / dim));

/** Normal numbers of deviation 1/√terms: products with normal rows are normal again. */
function weights(dims: readonly number[], terms: number, seed: number, type: DataType): Tensor {
  const plain = normal(dims, seed).data;
  return filled(dims, type, (i) => plain[i] / Math.sqrt(terms));
}

/** Factors of all heads, one after the other. */
function ups(ranks: readonly number[], dim: number, seed: number, type: DataType): Tensor {
  const parts = ranks.map((rank, head) => toFloat64(weights([rank, dim], Math.max(rank, 1), seed + 7 * head, type)));
  return from(Float64Array.from(parts.flatMap((part) => [...part])), [sum(ranks), dim], type);
}

/** Elements of pair i of a row of `dim`. */
const pairOf = (i: number, dim: number, pairing: 'half' | 'interleaved' = 'half'): readonly [number, number] =>
  pairing === 'half' ? [i, i + dim / 2] : [2 * i, 2 * i + 1];

/** Factors each of whose pairs of rows turns as one pair of the head does. */
function intertwinedUps(ranks: readonly number[], dim: number, pairing: LrkvFeatures['pairing'], seed: number): Tensor {
  const next = uniform(seed);
  const data = new Float64Array(sum(ranks) * dim);
  let start = 0;
  for (const rank of ranks) {
    for (let k = 0; k < rank / 2; k++) {
      const [x, y] = pairOf(Math.min(Math.floor((next() * dim) / 2), dim / 2 - 1), dim, pairing);
      const [real, imaginary] = [4 * next() - 2, 4 * next() - 2];
      const [first, second] = pairOf(k, rank, pairing).map((row) => (start + row) * dim);
      [data[first + x], data[first + y]] = [real, imaginary];
      [data[second + x], data[second + y]] = [-imaginary, real];
    }
    start += rank;
  }
  return from(data, [sum(ranks), dim]);
}

/** One complex number a pair. */
function pairGauges(heads: number, dim: number, pairing: LrkvFeatures['pairing'], seed: number): Tensor {
  const next = uniform(seed);
  const data = new Float64Array(heads * dim * dim);
  for (let head = 0; head < heads; head++) {
    for (let i = 0; i < dim / 2; i++) {
      const [x, y] = pairOf(i, dim, pairing);
      const [real, imaginary] = [4 * next() - 2, 4 * next() - 2];
      const at = (row: number, column: number) => (head * dim + row) * dim + column;
      data[at(x, x)] = data[at(y, y)] = real;
      data[at(x, y)] = imaginary;
      data[at(y, x)] = -imaginary;
    }
  }
  return from(data, [heads, dim, dim]);
}

/** A random model. */
export function lrkvModel(given: LrkvShape, seed: number, features: LrkvFeatures = {}): LrkvModelMeaning {
  const shape = lrkvShape(given);
  const { kvHeads, headDim, valueDim, keyBaseDim, valueBaseDim, keyRanks, valueRanks } = shape;
  const { mode, pairing, firstPosition, norm, modelType = 'float32' } = features;
  const free = (dims: readonly number[], at: number) => weights(dims, dims[1], seed + at, modelType);
  const keyGauge = features.keyGauge ?? (keyBaseDim === headDim || keyBaseDim === 0 ? undefined : 'free');
  const valueGauge =
    features.valueGauge ?? (valueBaseDim === valueDim || valueBaseDim === 0 ? undefined : ('free' as const));
  const gain = toFloat64(normal([headDim], seed + 5)).map((value) => 1 + 0.3 * value);
  return {
    keyUp:
      mode === 'intertwined'
        ? intertwinedUps(keyRanks, headDim, pairing, seed + 1)
        : ups(keyRanks, headDim, seed + 1, modelType),
    valueUp: ups(valueRanks, valueDim, seed + 2, modelType),
    keyRanks,
    valueRanks,
    ...(keyGauge === 'free' && { keyGauge: free([kvHeads, keyBaseDim, headDim], 3) }),
    ...(keyGauge === 'pairs' && { keyGauge: pairGauges(kvHeads, headDim, pairing, seed + 3) }),
    ...(valueGauge && { valueGauge: free([kvHeads, valueBaseDim, valueDim], 4) }),
    ...(mode && {
      rope: {
        frequencies: frequenciesOf(headDim),
        ...(pairing && { pairing }),
        ...(firstPosition !== undefined && { firstPosition }),
      },
      ropeMode: mode,
    }),
    ...((mode === 'latent' || mode === 'paper') && {
      latentFrequencies: keyRanks.flatMap((rank) => frequenciesOf(rank).map((frequency) => 0.7 * frequency)),
    }),
    ...(norm && { keyNorm: { epsilon: 1e-3, ...(norm !== 'plain' && { gain, gainOrder: norm }) } }),
  };
}

/** Normal queries and rows on a random model. */
export function lrkvInputs(
  given: LrkvShape,
  seed: number,
  features: LrkvFeatures = {},
  type: DataType = 'float32',
): LrkvInputs {
  const { batch, heads, kvHeads, queries, keys, headDim, layout, ...rest } = lrkvShape(given);
  const rows = (columns: number, at: number) => normal([batch, keys, columns], seed + at, type);
  return {
    q: normal(layout === 'bhld' ? [batch, heads, queries, headDim] : [batch, queries, heads, headDim], seed + 10, type),
    given: {
      ...lrkvModel(given, seed, features),
      keyBase: rows(rest.keyBaseDim, 11),
      keyLatent: rows(sum(rest.keyRanks), 12),
      valueBase: rows(rest.valueBaseDim, 13),
      valueLatent: rows(sum(rest.valueRanks), 14),
    },
    options: { kvHeads, layout },
  };
}

export type LrkvExpectation = ReturnType<typeof expectLrkv>;

/**
 * One call into a guarded output, held against the reference.
 *
 * @returns the output and lse, which passed
 */
export function checkLrkv(
  { q, given, options }: LrkvInputs,
  run: Run = {},
  expected: LrkvExpectation = expectLrkv(q, given, options),
): { readonly output: Tensor; readonly lse: Tensor } {
  const out = guarded(expected.output.dims, q.type);
  const { output, lse } = lrkvAttentionWithLseSync(q, given, { ...options, ...run, out: out.tensor });
  out.check();
  expect(output.data).toBe(out.tensor.data);
  compare(output, expected.output, `output (${run.isa ?? 'auto'})`);
  compare(lse, expected.lse, `lse (${run.isa ?? 'auto'})`);
  return { output, lse };
}

export const lrkvRows = isaRows('lrkv');

/** One call to be held against the reference on every kernel row. */
export interface LrkvCase {
  readonly inputs: () => LrkvInputs;
  readonly threads?: number;
}

export const lrkvTable = (cases: Readonly<Record<string, LrkvCase>>) =>
  testRows(lrkvRows, cases, ({ inputs, threads = 1 }) => {
    const data = inputs();
    const expected = expectLrkv(data.q, data.given, data.options);
    return (isa) => checkLrkv(data, { isa, threads }, expected);
  });

/** Normal data of a seed of its own. */
export function lrkvCase(
  shape: LrkvShape,
  features: LrkvFeatures = {},
  options: LrkvMeaning = {},
  type: DataType = 'float32',
): LrkvCase {
  const seed = shape.queries + shape.keys + shape.headDim;
  return {
    inputs: () => {
      const inputs = lrkvInputs(shape, seed, features, type);
      return { ...inputs, options: { ...inputs.options, ...options } };
    },
  };
}

export const ropeModes = ['exact', 'latent', 'none', 'paper', 'intertwined'] as const;
