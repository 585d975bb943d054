import { type Call, type CallOptions, callOptionNames, checkLayout, nothing, runAsync, runSync } from './call';
import { checkBoolTensor, checkOptions, checkTensor, type Operand } from './check';
import { expected } from './errors';
import { checkScale, type Layout } from './full-options';
import { addon, typeNumbers } from './native';
import { checkQkv, outputOf, type Qkv, qkvNumbers, qkvOperands } from './qkv';
import { view } from './read';
import type { BoolTensor, Tensor } from './tensor';

/** The learned matrices that project keys and values along the sequence. */
export interface LinformerProjections {
  /**
   * E: `[projected, maxLength]` for all heads, or `[kvHeads, projected, maxLength]`. Of any element type. A shorter
   * sequence uses the leading columns, a longer one is refused.
   */
  readonly keyProjection: Tensor;
  /** F, of E's dims and type. Default E itself (key-value sharing), which is then read once for both. */
  readonly valueProjection?: Tensor;
}

/** Options of {@link linformerAttention}. */
export interface LinformerOptions extends CallOptions, LinformerProjections {
  /**
   * Keys that are there: `'bool'` `[batch, keys]`. A masked key and its value count as rows of zeros before they are
   * projected, whatever they hold, NaN included. Default all.
   */
  readonly keyMask?: BoolTensor;
  /** Multiplies q·k′ before the softmax. Any finite number. Default 1/√headDim. */
  readonly scale?: number;
  /** Axis order of the tensors of this call. Default `'bhld'`. */
  readonly layout?: Layout;
}

const optionNames: ReadonlySet<string> = new Set([
  ...callOptionNames,
  'keyProjection',
  'valueProjection',
  'keyMask',
  'scale',
  'layout',
]);

const mixed = 'nothing, as a projected key mixes all positions,';
const absent = 'nothing, as Linformer is not defined with it,';

/** Options of exact attention that this method refuses, and why. */
export const linformerRefused: Readonly<Record<string, string>> = {
  causal: mixed,
  queryOffset: mixed,
  window: mixed,
  mask: mixed,
  keyLengths: 'nothing, as `keyMask` says which keys there are,',
  queryLengths: absent,
  softcap: absent,
  sinks: absent,
};

/**
 * Linformer attention, softmax(scale·Q(E K)ᵀ)·(F V) (Wang et al. 2020, arXiv 2006.04768, equation 7), on a worker
 * thread. Its cost is linear in the length: 2·projected·(headDim + valueDim) operations a query and as many a key.
 *
 * E and F are learned for one maxLength; this is not an approximation of exact attention with the same weights. Queries
 * and keys may differ in number. Query heads may be a multiple of key/value heads, which are projected once for all of
 * them. Rotate keys (RoPE) before they come here. There is no causal form, as every row of E K mixes all positions: what
 * would hide single keys from single queries is refused. For a causal model see {@link LinformerState}.
 *
 * The softmax runs over all `projected` rows. One to which no key contributes, because E is zero there in the columns
 * in use or all its keys are masked, is a zero vector: it has the logit 0, takes its share of the softmax and gives
 * nothing. So a short input attends to less than the whole of its values; without keys the output is zero.
 *
 * NaN and infinities in what is not masked give what IEEE float32 arithmetic gives. The result is the same, bit for
 * bit, in any batch and on any number of threads. Do not write to the tensors of a call, nor transfer their buffers,
 * before its promise settles.
 *
 * @param q `[batch, heads, queries, headDim]`
 * @param k `[batch, kvHeads, keys, headDim]`, heads a multiple of kvHeads, keys at most maxLength
 * @param v `[batch, kvHeads, keys, valueDim]`, of k's type
 * @returns `[batch, heads, queries, valueDim]` of q's type
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_UNSUPPORTED, ERR_DEVICE, ERR_MEMORY,
 *   ERR_ABORTED
 */
export async function linformerAttention(q: Tensor, k: Tensor, v: Tensor, options: LinformerOptions): Promise<Tensor> {
  return await runAsync(linformerAttention, () => prepare(q, k, v, options));
}

/** {@link linformerAttention} on the calling thread. */
export function linformerAttentionSync(q: Tensor, k: Tensor, v: Tensor, options: LinformerOptions): Tensor {
  return runSync(linformerAttentionSync, () => prepare(q, k, v, options));
}

function prepare(q: Tensor, k: Tensor, v: Tensor, given: LinformerOptions): Call<Tensor> {
  if (given === undefined) throw expected('ERR_ARGUMENT', 'options', '{ keyProjection, … }', given);
  const options = checkOptions<LinformerOptions>('options', given, optionNames, linformerRefused);
  const qkv = checkQkv(q, k, v, checkLayout(options.layout));
  const projections = checkProjections(options, qkv.kvHeads);
  const { maxLength } = projections;
  if (qkv.keys > maxLength)
    throw expected('ERR_SHAPE', 'k', `at most ${maxLength} rows, the columns of \`keyProjection\``, qkv.key.dims);
  const keyMask = checkBoolTensor('keyMask', options.keyMask, [qkv.batch, qkv.keys]);
  const scale = checkScale(options.scale, qkv.headDim);
  const { key, value } = projections;
  const output = outputOf(qkv, options.out, [key.data, value?.data ?? null, keyMask]);
  return {
    op: view.length(output.data) === 0 ? nothing : addon.linformer,
    ...linformerArguments(qkv, output, projections, { keyMask, scale }),
    options,
    result: options.out ?? (output as Tensor),
  };
}

/** Projections that fit each other. */
export interface CheckedProjections {
  readonly key: Operand;
  /** Null where values share the keys' matrix. */
  readonly value: Operand | null;
  readonly projected: number;
  readonly maxLength: number;
  readonly perHead: boolean;
}

export function checkProjections(
  { keyProjection, valueProjection }: Partial<LinformerProjections>,
  heads: number,
): CheckedProjections {
  const key = checkTensor('keyProjection', keyProjection);
  const perHead = key.dims.length === 3;
  const [projected, maxLength] = key.dims.slice(-2) as [number, number];
  if (key.dims.length > 3 || (perHead && key.dims[0] !== heads) || projected === 0 || maxLength === 0) {
    const what = `dims [projected, maxLength] or [${heads}, projected, maxLength], none of them 0`;
    throw expected('ERR_SHAPE', 'keyProjection', what, key.dims);
  }
  const value = valueProjection === undefined ? null : checkTensor('valueProjection', valueProjection, key.dims.length);
  if (value?.dims.some((extent, axis) => extent !== key.dims[axis])) {
    const what = `dims [${key.dims.join(', ')}] as in \`keyProjection\``;
    throw expected('ERR_SHAPE', 'valueProjection', what, value.dims);
  }
  if (value !== null && value.type !== key.type)
    throw expected('ERR_TYPE', 'valueProjection', `type '${key.type}' as in \`keyProjection\``, value.type);
  return { key, value, projected, maxLength, perHead };
}

/** What a native call takes beside queries, keys, values and projections. */
export interface LinformerExtras {
  readonly keyMask?: Uint8Array | null;
  readonly scale?: number;
  /** Of the projections, for the first key. */
  readonly firstColumn?: number;
  /** Sums of earlier keys, and where to leave those with the keys of this call. */
  readonly stateIn?: Float64Array;
  readonly stateOut?: Float64Array;
}

/** Operands and numbers as binding/linformer.cc reads them. */
export function linformerArguments(
  qkv: Qkv,
  output: Operand,
  { key, value, projected, maxLength, perHead }: CheckedProjections,
  { keyMask = null, scale = 1, firstColumn = 0, stateIn, stateOut }: LinformerExtras,
): Pick<Call<unknown>, 'operands' | 'numbers'> {
  return {
    operands: [...qkvOperands(qkv, output), key.data, value?.data ?? null, keyMask, stateIn ?? null, stateOut ?? null],
    numbers: Float64Array.of(
      ...qkvNumbers(qkv, output),
      scale,
      typeNumbers[key.type],
      projected,
      maxLength,
      perHead ? 1 : 0,
      firstColumn,
    ),
  };
}
