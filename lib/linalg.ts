import type { Call, CallOptions } from './call';
import { expected } from './errors';
import { addon } from './native';

/** Numbers that stand for operations in core/linalg.h. */
const operations = { svd: 0, eigen: 1, basis: 2, product: 3 } as const;

/** Row-major float64 matrices of the same extents, one after the other. */
export interface Matrices {
  readonly data: Float64Array;
  readonly batch: number;
  readonly rows: number;
  readonly columns: number;
}

/** a = left · diag(values) · rightᵀ of each matrix, rank = min(rows, columns). NaN where a matrix is not finite. */
export interface Svd {
  /** `[batch, rank]`, descending. */
  readonly values: Float64Array;
  /** `[batch, rows, rank]` and `[batch, columns, rank]`, if they were asked for. */
  readonly left: Float64Array | null;
  readonly right: Float64Array | null;
}

/** a = vectors · diag(values) · vectorsᵀ of each symmetric matrix. NaN where a matrix is not finite. */
export interface Eigen {
  /** `[batch, rows]`, ascending. */
  readonly values: Float64Array;
  /** `[batch, rows, rows]`, a vector a column, if they were asked for. */
  readonly vectors: Float64Array | null;
}

/** The singular value decomposition of every matrix, as a call for `runSync` and `runAsync`. */
export function svdOf(of: Matrices, bases: boolean, options: CallOptions = {}): Call<Svd> {
  const rank = Math.min(of.rows, of.columns);
  const values = float64('values', of.batch * rank);
  const left = bases ? float64('left', of.batch * of.rows * rank) : null;
  const right = bases ? float64('right', of.batch * of.columns * rank) : null;
  return call(operations.svd, of, [values, left, right, null], options, { values, left, right });
}

/** Eigenvalues, and vectors if asked for, of every matrix, which are square; the lower triangles are read. */
export function eigenOf(of: Matrices, vectors: boolean, options: CallOptions = {}): Call<Eigen> {
  const values = float64('values', of.batch * of.rows);
  const basis = vectors ? float64('vectors', of.batch * of.rows * of.rows) : null;
  return call(operations.eigen, of, [values, basis, null, null], options, { values, vectors: basis });
}

/** An orthonormal basis `[batch, rows, columns]` of the columns of matrices that have no more columns than rows. */
export function basisOf(of: Matrices, options: CallOptions = {}): Call<Float64Array> {
  const basis = float64('basis', of.data.length);
  return call(operations.basis, of, [basis, null, null, null], options, basis);
}

/** What is known of a product. */
export interface ProductKind {
  /** a·b instead of aᵀ·b. */
  readonly plain?: boolean;
  /** That it is symmetric, so that half of it is enough work. */
  readonly symmetric?: boolean;
}

/** aᵀ·b `[batch, a.columns, b.columns]` of matrices with as many rows; or a·b of as many columns as b has rows. */
export function productOf(
  a: Matrices,
  b: Matrices,
  options: CallOptions = {},
  { plain = false, symmetric = false }: ProductKind = {},
): Call<Float64Array> {
  const product = float64('product', a.batch * (plain ? a.rows : a.columns) * b.columns);
  const kind = [b.columns, Number(!plain), Number(symmetric)];
  return call(operations.product, a, [product, null, null, b.data], options, product, kind);
}

function call<Result>(
  operation: number,
  { data, batch, rows, columns }: Matrices,
  outputs: readonly (Float64Array | null)[],
  options: CallOptions,
  result: Result,
  ofProduct: readonly number[] = [0, 0, 0],
): Call<Result> {
  return {
    op: addon.linalg,
    operands: [data, ...outputs],
    numbers: Float64Array.of(operation, batch, rows, columns, ...ofProduct),
    options,
    result,
  };
}

/** Zeros, or the error that there is no memory for them. */
export function float64(name: string, length: number): Float64Array {
  try {
    return new Float64Array(length);
  } catch (cause) {
    throw expected('ERR_MEMORY', name, 'enough memory', length, { cause });
  }
}
