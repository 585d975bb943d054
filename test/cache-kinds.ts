import fc from 'fast-check';
import { type AttendOptions, KvCache, LrkvCache } from '../lib';
import type { DataType, Tensor } from '../lib/tensor';
import { from, guarded, types, uniform } from './data';
import { expectAttention } from './expectation';
import { type LrkvFeatures, lrkvModel, ropeModes } from './lrkv-run';
import type { Layout } from './problem';
import { expectLrkv, type LrkvModelMeaning } from './reference-lrkv';
import { once } from './rows';

// Both kinds of caches, filled from one table of rows.

export type Cache = KvCache | LrkvCache;

export const pageRows = 128;

// Keys and values of every row there is. Their numbers are exact in every type, so that what is appended may be of any,
// and a cache that keeps rows as they are may be, too. After the last row stands one of NaN, for what must never be seen.
export const [mostHeads, mostDim] = [3, 17];
export const [tableRows, tableWidth] = [1009, mostHeads * mostDim];
export const poison = tableRows;
const tables = once(() => ({ key: makeTable(1), value: makeTable(2) }));

function makeTable(seed: number): Readonly<Record<DataType, Tensor>> {
  const next = uniform(seed);
  const size = tableRows * tableWidth;
  const values = Float64Array.from({ length: size + tableWidth }, (_, i) =>
    i < size ? (Math.floor(256 * next()) - 128) / 32 : NaN,
  );
  const table = (type: DataType) => from(values, [tableRows + 1, tableWidth], type);
  return { float32: table('float32'), float16: table('float16'), bfloat16: table('bfloat16') };
}

/** What all caches of a history have in common. */
export interface Shape {
  readonly kvHeads: number;
  /** Query heads of each key/value head. */
  readonly group: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly type: DataType;
  readonly capacity?: number;
  /** The model of LRKV caches; left out, caches hold keys and values as they are. */
  readonly lrkv?: LrkvShape;
}

interface LrkvShape {
  readonly keyRanks: readonly number[];
  readonly valueRanks: readonly number[];
  readonly keyBaseDim: number;
  readonly valueBaseDim: number;
  readonly features: LrkvFeatures;
}

export function pageBytesOf({ kvHeads, headDim, valueDim, type, lrkv }: Shape): number {
  const elementBytes = type === 'float32' ? 4 : 2;
  if (lrkv === undefined) return pageRows * kvHeads * (headDim + valueDim) * elementBytes;
  const padded = (rank: number) => 8 * Math.ceil(rank / 8);
  const isWhole = lrkv.features.mode === 'exact';
  const bases = (isWhole ? 0 : lrkv.keyBaseDim) + lrkv.valueBaseDim;
  const latents = Array.from({ length: kvHeads }, (_, head) => {
    return padded(isWhole ? headDim : lrkv.keyRanks[head]) + padded(lrkv.valueRanks[head]);
  });
  const scales = lrkv.features.norm && !isWhole ? 4 * kvHeads : 0;
  return pageRows * (latents.reduce((sum, width) => sum + width, bases) * elementBytes + scales);
}

/** In what form rows or queries are handed over. */
export interface Source {
  readonly layout: Layout;
  readonly type: DataType;
}

/** Rows of a table as a tensor to append. */
function gather(table: Tensor, ids: readonly number[], heads: number, dim: number, { layout, type }: Source): Tensor {
  const dims = layout === 'bhld' ? [1, heads, ids.length, dim] : [1, ids.length, heads, dim];
  const { tensor } = guarded(dims, type);
  const [to, rows] = [tensor.data as Uint16Array, table.data as Uint16Array];
  ids.forEach((id, i) => {
    for (let head = 0; head < heads; head++) {
      const start = id * tableWidth + head * dim;
      to.set(rows.subarray(start, start + dim), (layout === 'bhld' ? head * ids.length + i : i * heads + head) * dim);
    }
  });
  return tensor;
}

const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0);

/** Columns [start, start + dim) of rows of a table: [1, rows, dim]. */
function columns(table: Tensor, ids: readonly number[], start: number, dim: number): Tensor {
  const { tensor } = guarded([1, ids.length, dim], table.type);
  const [to, rows] = [tensor.data as Uint16Array, table.data as Uint16Array];
  ids.forEach((id, i) => {
    to.set(rows.subarray(id * tableWidth + start, id * tableWidth + start + dim), i * dim);
  });
  return tensor;
}

function lrkvRowsOf(
  { keyBaseDim, valueBaseDim, keyRanks, valueRanks }: LrkvShape,
  ids: readonly number[],
  type: DataType,
) {
  const [key, value] = [tables().key[type], tables().value[type]];
  return {
    keyBase: columns(key, ids, 0, keyBaseDim),
    keyLatent: columns(key, ids, keyBaseDim, sum(keyRanks)),
    valueBase: columns(value, ids, 0, valueBaseDim),
    valueLatent: columns(value, ids, valueBaseDim, sum(valueRanks)),
  };
}

const models = new WeakMap<LrkvShape, LrkvModelMeaning>();

/** One model for all caches of a shape. */
function modelOf({ kvHeads, headDim, valueDim }: Shape, lrkv: LrkvShape): LrkvModelMeaning {
  const { keyRanks: keyRank, valueRanks: valueRank, keyBaseDim, valueBaseDim, features } = lrkv;
  const extents = { heads: kvHeads, queries: 0, keys: 0, headDim, valueDim, keyBaseDim, valueBaseDim };
  const model = models.get(lrkv) ?? lrkvModel({ ...extents, keyRank, valueRank }, 3, features);
  models.set(lrkv, model);
  return model;
}

function rowsOf({ kvHeads, headDim, valueDim }: Shape, ids: readonly number[], source: Source): [Tensor, Tensor] {
  const { key, value } = tables();
  return [
    gather(key[source.type], ids, kvHeads, headDim, source),
    gather(value[source.type], ids, kvHeads, valueDim, source),
  ];
}

export const plain = (type: DataType): Source => ({ layout: 'bhld', type });

export function newCache(shape: Shape): Cache {
  const { kvHeads: heads, headDim, valueDim, type, capacity, lrkv } = shape;
  const options = { heads, headDim, valueDim, type, ...(capacity !== undefined && { capacity }) };
  if (lrkv === undefined) return new KvCache(options);
  const { keyBaseDim, valueBaseDim } = lrkv;
  return new LrkvCache({ ...options, keyBaseDim, valueBaseDim, ...modelOf(shape, lrkv) });
}

/** Appends rows of the table. */
export function append(cache: Cache, shape: Shape, ids: readonly number[], source = plain(shape.type)): void {
  if (shape.lrkv !== undefined) {
    (cache as LrkvCache).append(lrkvRowsOf(shape.lrkv, ids, source.type));
    return;
  }
  const [key, value] = rowsOf(shape, ids, source);
  (cache as KvCache).append(key, value, { layout: source.layout });
}

/** Whether what a cache keeps is exact in its type: a rotated or normalised key of 16 bits is not, and costs accuracy. */
export const keepsNumbers = ({ type, lrkv }: Shape): boolean => type === 'float32' || lrkv?.features.mode === undefined;

/** What a cache of these rows must answer. */
export function expectationOf(
  shape: Shape,
  ids: readonly number[],
  query: Tensor,
  given: AttendOptions,
): ReturnType<typeof expectAttention> {
  const options = { causal: true, ...given } as Parameters<typeof expectAttention>[3];
  if (shape.lrkv === undefined) {
    const [key, value] = rowsOf(shape, ids, plain('float32'));
    return expectAttention(query, key, value, options);
  }
  const rows = lrkvRowsOf(shape.lrkv, ids, 'float32');
  return expectLrkv(
    query,
    { ...modelOf(shape, shape.lrkv), ...rows },
    { ...options, kvHeads: shape.kvHeads },
    shape.type,
  );
}

export const kvShape: fc.Arbitrary<Shape> = fc.record(
  {
    kvHeads: fc.integer({ min: 1, max: mostHeads }),
    group: fc.integer({ min: 1, max: 4 }),
    headDim: fc.integer({ min: 1, max: mostDim }),
    valueDim: fc.integer({ min: 1, max: mostDim }),
    type: fc.constantFrom(...types),
    capacity: fc.integer({ min: 200, max: 900 }),
  },
  { requiredKeys: ['kvHeads', 'group', 'headDim', 'valueDim', 'type'] },
);

const ranks = (heads: number, step: number) =>
  fc.array(
    fc.nat(10 / step).map((rank) => step * rank),
    { minLength: heads, maxLength: heads },
  );

/** Models of every rope mode, with and without bases, gauges and QK-norm. */
export const lrkvShape: fc.Arbitrary<Shape> = fc
  .record(
    {
      kvHeads: fc.integer({ min: 1, max: mostHeads }),
      group: fc.integer({ min: 1, max: 4 }),
      half: fc.integer({ min: 1, max: Math.floor(mostDim / 2) }),
      valueDim: fc.integer({ min: 1, max: mostDim }),
      type: fc.constantFrom(...types),
      capacity: fc.integer({ min: 200, max: 900 }),
      mode: fc.constantFrom(undefined, ...ropeModes),
      bases: fc.tuple(fc.boolean(), fc.boolean()),
      gauges: fc.tuple(fc.boolean(), fc.boolean()),
      norm: fc.boolean(),
    },
    { requiredKeys: ['kvHeads', 'group', 'half', 'valueDim', 'type', 'mode', 'bases', 'gauges', 'norm'] },
  )
  .chain(({ half, mode, bases, gauges, norm, ...shape }) => {
    const headDim = 2 * half;
    const commuting = mode === undefined || mode === 'exact' ? 'free' : 'pairs';
    const features: LrkvFeatures = {
      ...(mode && { mode }),
      ...(bases[0] && gauges[0] && { keyGauge: commuting }),
      ...(bases[1] && gauges[1] && { valueGauge: 'free' }),
      ...(norm && { norm: 'plain' }),
    };
    const baseDims = { keyBaseDim: bases[0] ? headDim : 0, valueBaseDim: bases[1] ? shape.valueDim : 0 };
    return fc
      .record({ keyRanks: ranks(shape.kvHeads, 2), valueRanks: ranks(shape.kvHeads, 1) })
      .map((both) => ({ ...shape, headDim, lrkv: { ...both, ...baseDims, features } }));
  });
