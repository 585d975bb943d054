import { checkInteger, checkOut, checkTensor, type Operand } from './check';
import { expected } from './errors';
import { typeNumbers } from './native';
import { allocate, type Tensor } from './tensor';

/** Queries and keys of one call that fit each other, and their extents. */
export interface Qk {
  readonly query: Operand;
  readonly key: Operand;
  readonly batch: number;
  /** A multiple of `kvHeads`. */
  readonly heads: number;
  readonly kvHeads: number;
  readonly queries: number;
  readonly keys: number;
  readonly headDim: number;
  readonly rowsBeforeHeads: boolean;
}

/** Queries, keys and values. */
export interface Qkv extends Qk {
  readonly value: Operand;
  readonly valueDim: number;
}

const axes = (rowsBeforeHeads: boolean): readonly [head: number, row: number] => (rowsBeforeHeads ? [2, 1] : [1, 2]);

/**
 * Checks `[batch, heads, length, dim]` tensors, or `[batch, length, heads, dim]` with `rowsBeforeHeads`, against each
 * other. Queries may be of another type than keys.
 */
export function checkQk(q: Tensor, k: Tensor, rowsBeforeHeads: boolean): Qk {
  const query = checkTensor('q', q, 4);
  const key = checkTensor('k', k, 4);
  const [headAxis, rowAxis] = axes(rowsBeforeHeads);
  const extent = (operand: Operand, axis: number): number => operand.dims[axis] as number;

  const batch = extent(query, 0);
  const heads = extent(query, headAxis);
  const queries = extent(query, rowAxis);
  const headDim = extent(query, 3);
  const kvHeads = extent(key, headAxis);
  const keys = extent(key, rowAxis);
  if (heads === 0 || headDim === 0) throw expected('ERR_SHAPE', 'q', 'at least one head of size >= 1', query.dims);
  if (extent(key, 0) !== batch) throw expected('ERR_SHAPE', 'k', `batch ${batch} as in \`q\``, key.dims);
  if (extent(key, 3) !== headDim) throw expected('ERR_SHAPE', 'k', `head size ${headDim} as in \`q\``, key.dims);
  if (kvHeads === 0 || heads % kvHeads !== 0) {
    throw expected('ERR_SHAPE', 'k', `a number of heads that divides the ${heads} of \`q\``, key.dims);
  }
  return { query, key, batch, heads, kvHeads, queries, keys, headDim, rowsBeforeHeads };
}

/** {@link checkQk}, and values of the keys' type, heads and rows. */
export function checkQkv(q: Tensor, k: Tensor, v: Tensor, rowsBeforeHeads: boolean): Qkv {
  const qk = checkQk(q, k, rowsBeforeHeads);
  const { key, batch, kvHeads, keys } = qk;
  const value = checkTensor('v', v, 4);
  const [headAxis, rowAxis] = axes(rowsBeforeHeads);
  const valueDim = value.dims[3] as number;
  if (valueDim === 0) throw expected('ERR_SHAPE', 'v', 'a head size >= 1', value.dims);
  if (value.dims[0] !== batch || value.dims[headAxis] !== kvHeads || value.dims[rowAxis] !== keys) {
    throw expected('ERR_SHAPE', 'v', `batch ${batch}, ${kvHeads} heads and ${keys} rows as in \`k\``, value.dims);
  }
  if (value.type !== key.type) throw expected('ERR_TYPE', 'v', `type '${key.type}' as in \`k\``, value.type);
  return { ...qk, value, valueDim };
}

/** Heads and head sizes of what is kept between calls: caches and states. */
export interface HeadShape {
  /** Key/value heads. */
  readonly heads: number;
  readonly headDim: number;
  readonly valueDim: number;
}

/** The largest number of heads, elements of a head or sequences. */
export const mostExtent = 2 ** 31 - 1;

/** Heads and head sizes as options of what is kept between calls. */
export interface HeadOptions {
  /** Key/value heads, >= 1. */
  readonly heads: number;
  /** Head size of queries and keys, >= 1. */
  readonly headDim: number;
  /** Head size of the values, >= 1. Default headDim. */
  readonly valueDim?: number;
}

/** Options of what is kept of several sequences. */
export interface StateOptions extends HeadOptions {
  /** Sequences, >= 1, which grow together. Default 1. */
  readonly batch?: number;
}

export const headOptionNames = ['heads', 'headDim', 'valueDim'] as const;
export const stateOptionNames = [...headOptionNames, 'batch'] as const;

/** Reads the heads and head sizes among options; values have the keys' size unless they say otherwise. */
export function checkHeadShape({ heads, headDim, valueDim }: Partial<HeadOptions>): HeadShape {
  return {
    heads: checkInteger('heads', heads, 1, mostExtent),
    headDim: checkInteger('headDim', headDim, 1, mostExtent),
    valueDim: checkInteger('valueDim', valueDim === undefined ? headDim : valueDim, 1, mostExtent),
  };
}

/** Extents of a state. */
export interface StateShape extends HeadShape {
  readonly batch: number;
}

export function checkStateShape(given: Partial<StateOptions>): StateShape {
  const { batch } = given;
  return { ...checkHeadShape(given), batch: batch === undefined ? 1 : checkInteger('batch', batch, 1, mostExtent) };
}

/** Keys and values of `count` positions, to be kept. */
export interface KeyValueRows {
  readonly key: Operand;
  readonly value: Operand;
  readonly count: number;
  readonly rowsBeforeHeads: boolean;
}

/** Checks the keys and values of as many sequences as there are, of one type and one number of positions. */
export function checkKeyValueRows(
  k: Tensor,
  v: Tensor,
  { heads, headDim, valueDim }: HeadShape,
  batch: number,
  rowsBeforeHeads: boolean,
): KeyValueRows {
  const key = checkTensor('key', k, 4);
  const count = key.dims[rowsBeforeHeads ? 1 : 2] as number;
  const dims = (dim: number): number[] => (rowsBeforeHeads ? [batch, count, heads, dim] : [batch, heads, count, dim]);
  checkExactDims('key', key, dims(headDim));
  const value = checkTensor('value', v, 4);
  checkExactDims('value', value, dims(valueDim));
  if (value.type !== key.type) throw expected('ERR_TYPE', 'value', `type '${key.type}' as in \`key\``, value.type);
  return { key, value, count, rowsBeforeHeads };
}

/** Refuses a tensor of other dims than these. */
export function checkExactDims(name: string, { dims: found }: Operand, dims: readonly number[]): void {
  if (found.some((extent, axis) => extent !== dims[axis]))
    throw expected('ERR_SHAPE', name, `dims [${dims.join(', ')}]`, found);
}

/** Queries over what is kept. */
export interface QueryRows {
  readonly query: Operand;
  readonly heads: number;
  readonly queries: number;
}

/** Checks queries of one head size, whose heads are a multiple of the key/value heads of what is kept, `owner`. */
export function checkQueryRows(
  name: string,
  q: Tensor,
  { heads: kvHeads, headDim }: HeadShape,
  batch: number,
  rowsBeforeHeads: boolean,
  owner: 'cache' | 'state',
): QueryRows {
  const query = checkTensor(name, q, 4);
  const { dims } = query;
  const [heads, queries] = (rowsBeforeHeads ? [dims[2], dims[1]] : [dims[1], dims[2]]) as [number, number];
  if (dims[0] !== batch || heads === 0 || heads % kvHeads !== 0 || dims[3] !== headDim) {
    const axes = rowsBeforeHeads ? 'queries, heads' : 'heads, queries';
    const what = `dims [${batch}, ${axes}, ${headDim}] with heads a multiple of the ${owner}'s ${kvHeads}`;
    throw expected('ERR_SHAPE', name, what, dims);
  }
  return { query, heads, queries };
}

/** Dims of the call's output, in its layout. */
export function outputDims({
  batch,
  heads,
  queries,
  valueDim,
  rowsBeforeHeads,
}: Pick<Qkv, 'batch' | 'heads' | 'queries' | 'valueDim' | 'rowsBeforeHeads'>): number[] {
  return rowsBeforeHeads ? [batch, queries, heads, valueDim] : [batch, heads, queries, valueDim];
}

/**
 * The call's output: the caller's `out`, checked against what will be written and what is read, or a new tensor of q's type.
 *
 * @param others further inputs of the call that `out` must not overlap
 */
export function outputOf(qkv: Qkv, out: unknown, others: readonly (ArrayBufferView | null)[] = []): Operand {
  const dims = outputDims(qkv);
  if (out === undefined) return allocate('out', dims, qkv.query.type) as Operand;
  return checkOut(out, dims, [qkv.query.data, qkv.key.data, qkv.value.data, ...others]);
}

/** The operands with which a native call on queries, keys and values begins. */
export function qkvOperands({ query, key, value }: Qkv, output: Operand): unknown[] {
  return [query.data, key.data, value.data, output.data];
}

/** And the numbers, as binding/qkv.h reads them. */
export function qkvNumbers(qkv: Qkv, output: Operand): number[] {
  const { query, key, valueDim, rowsBeforeHeads } = qkv;
  const types = [query, key, output].map(({ type }) => typeNumbers[type]);
  return [...types, ...qkExtents(qkv), valueDim, rowsBeforeHeads ? 1 : 0];
}

/** Extents of queries and keys, in the order of all native calls that take them. */
export function qkExtents({ batch, heads, kvHeads, queries, keys, headDim }: Qk): number[] {
  return [batch, heads, kvHeads, queries, keys, headDim];
}

/** What the methods of a state call the tensors that native code knows as q, k and v. */
export const stateTensorNames = { q: 'query', k: 'key', v: 'value' } as const;
