import { types } from 'node:util';

import { checkDims, checkExtent, checkOut, checkTensor, type Operand, readTensor } from './check';
import { expected } from './errors';
import { typeNumbers } from './native';
import { allocate, type MaskTensor, type Tensor } from './tensor';

/** Queries, keys and values of one call that fit each other, and their extents. */
export interface Qkv {
  readonly query: Operand;
  readonly key: Operand;
  readonly value: Operand;
  readonly batch: number;
  /** A multiple of `kvHeads`. */
  readonly heads: number;
  readonly kvHeads: number;
  readonly queries: number;
  readonly keys: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly rowsBeforeHeads: boolean;
}

/**
 * Checks `[batch, heads, length, dim]` tensors, or `[batch, length, heads, dim]` with `rowsBeforeHeads`, against each
 * other. Queries may be of another type than keys and values, which share one.
 */
export function checkQkv(q: Tensor, k: Tensor, v: Tensor, rowsBeforeHeads: boolean): Qkv {
  const query = checkTensor('q', q, 4);
  const key = checkTensor('k', k, 4);
  const value = checkTensor('v', v, 4);
  const [headAxis, rowAxis] = rowsBeforeHeads ? [2, 1] : [1, 2];
  const extent = (operand: Operand, axis: number): number => operand.dims[axis] as number;

  const batch = extent(query, 0);
  const heads = extent(query, headAxis);
  const queries = extent(query, rowAxis);
  const headDim = extent(query, 3);
  const kvHeads = extent(key, headAxis);
  const keys = extent(key, rowAxis);
  const valueDim = extent(value, 3);
  if (heads === 0 || headDim === 0) throw expected('ERR_SHAPE', 'q', 'at least one head of size >= 1', query.dims);
  if (valueDim === 0) throw expected('ERR_SHAPE', 'v', 'a head size >= 1', value.dims);
  if (extent(key, 0) !== batch) throw expected('ERR_SHAPE', 'k', `batch ${batch} as in \`q\``, key.dims);
  if (extent(key, 3) !== headDim) throw expected('ERR_SHAPE', 'k', `head size ${headDim} as in \`q\``, key.dims);
  if (kvHeads === 0 || heads % kvHeads !== 0) {
    throw expected('ERR_SHAPE', 'k', `a number of heads that divides the ${heads} of \`q\``, key.dims);
  }
  if (extent(value, 0) !== batch || extent(value, headAxis) !== kvHeads || extent(value, rowAxis) !== keys) {
    throw expected('ERR_SHAPE', 'v', `batch ${batch}, ${kvHeads} heads and ${keys} rows as in \`k\``, value.dims);
  }
  if (value.type !== key.type) throw expected('ERR_TYPE', 'v', `type '${key.type}' as in \`k\``, value.type);
  return { query, key, value, batch, heads, kvHeads, queries, keys, headDim, valueDim, rowsBeforeHeads };
}

/** Which keys there are: `[batch, keys]`, 1 = is, 0 = is padding. */
export type KeyMask = Extract<MaskTensor, { readonly type: 'bool' }>;

/** Checks the option `keyMask`. */
export function checkKeyMask(mask: unknown, batch: number, keys: number): Uint8Array | null {
  if (mask === undefined) return null;
  const { data, dims: given, type } = readTensor('keyMask', mask);
  if (type !== 'bool') throw expected('ERR_TYPE', 'keyMask', "type 'bool'", type);
  if (!types.isUint8Array(data)) throw expected('ERR_TYPE', 'keyMask', "a Uint8Array for type 'bool'", data);
  const dims = checkDims('keyMask', given);
  if (dims.length !== 2 || dims[0] !== batch || dims[1] !== keys)
    throw expected('ERR_SHAPE', 'keyMask', `dims [${batch}, ${keys}]`, dims);
  checkExtent('keyMask', data, dims);
  return data;
}

/** Dims of the call's output, in its layout. */
export function outputDims({ batch, heads, queries, valueDim, rowsBeforeHeads }: Qkv): number[] {
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
  const { query, key, batch, heads, kvHeads, queries, keys, headDim, valueDim, rowsBeforeHeads } = qkv;
  return [
    typeNumbers[query.type],
    typeNumbers[key.type],
    typeNumbers[output.type],
    batch,
    heads,
    kvHeads,
    queries,
    keys,
    headDim,
    valueDim,
    rowsBeforeHeads ? 1 : 0,
  ];
}
