import { type Call, checkLayout, nothing, runAsync, runSync } from './call';
import { checkInteger, checkOptions, checkOut, checkTensor, type Operand } from './check';
import { expected } from './errors';
import type { AttentionWithLse } from './full';
import { type AttentionOptions, attentionOptionNames, checkAttention } from './full-options';
import {
  type CheckedLrkvModel,
  checkLrkvModel,
  type LrkvModel,
  lrkvModelNames,
  lrkvModelNumbers,
  lrkvModelOperands,
  mostKvHeads,
} from './lrkv-model';
import {
  type CheckedLrkvRows,
  checkLrkvColumns,
  checkLrkvRows,
  type LrkvRows,
  lrkvRowNames,
  lrkvRowOperands,
} from './lrkv-rows';
import { addon, typeNumbers } from './native';
import { outputDims } from './qkv';
import { view } from './read';
import { allocate, type Tensor, type TensorOf } from './tensor';

/** Options of {@link lrkvAttention}: those of exact attention. `queryOffset` is where rotary embedding sees query 0, too. */
export interface LrkvOptions extends AttentionOptions {
  /** Key/value heads, 1 to 65536 and a divisor of q's heads. Default q's. */
  readonly kvHeads?: number;
}

const lrkvNames: ReadonlySet<string> = new Set([...lrkvRowNames, ...lrkvModelNames]);
const optionNames: ReadonlySet<string> = new Set([...attentionOptionNames, 'kvHeads']);

/**
 * Attention over keys and values in LRKV's form (O'Neill et al. 2026, arXiv 2601.11471, section 3), on a worker thread:
 * a base that all heads share and a latent of low rank for each, under one softmax,
 *
 *     score = (q·A_hᵀ)·base + (q·B_h)·latent_h        output = (Σ p·base)·A_h + (Σ p·latent_h)·B_hᵀ
 *
 * It is exact attention over the keys base·A_h + latent_h·B_hᵀ and such values, without forming them. With rotary embedding
 * see {@link RopeMode}: in the default mode keys are formed and rotated whole, and only values stay factored.
 *
 * Queries come without rotation: query i stands at rope.firstPosition + queryOffset + i, key j at rope.firstPosition + j.
 * Masks, causality, windows, lengths and what is not finite are as in {@link attention}; ranks may differ from head to
 * head. The result is the same, bit for bit, whatever stands beside a sequence in its batch and however many threads run.
 * Do not write to the tensors of a call, nor transfer their buffers, before its promise settles.
 *
 * @param q `[batch, heads, queries, headDim]`, heads a multiple of kvHeads
 * @param lrkv the rows of the keys and values, and the model; valueDim is the columns of `valueUp`
 * @returns `[batch, heads, queries, valueDim]` of q's type
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_UNSUPPORTED, ERR_DEVICE, ERR_MEMORY,
 *   ERR_ABORTED
 */
export async function lrkvAttention(q: Tensor, lrkv: LrkvRows & LrkvModel, options?: LrkvOptions): Promise<Tensor> {
  return (await runAsync(lrkvAttention, () => prepare(q, lrkv, options, false))).output;
}

/** {@link lrkvAttention} on the calling thread. */
export function lrkvAttentionSync(q: Tensor, lrkv: LrkvRows & LrkvModel, options?: LrkvOptions): Tensor {
  return runSync(lrkvAttentionSync, () => prepare(q, lrkv, options, false)).output;
}

/** {@link lrkvAttention} that also returns each row's log-sum-exp, so that parts can be merged with `mergeAttention`. */
export async function lrkvAttentionWithLse(
  q: Tensor,
  lrkv: LrkvRows & LrkvModel,
  options?: LrkvOptions,
): Promise<AttentionWithLse> {
  return await runAsync(lrkvAttentionWithLse, () => prepare(q, lrkv, options, true));
}

/** {@link lrkvAttentionWithLse} on the calling thread. */
export function lrkvAttentionWithLseSync(
  q: Tensor,
  lrkv: LrkvRows & LrkvModel,
  options?: LrkvOptions,
): AttentionWithLse {
  return runSync(lrkvAttentionWithLseSync, () => prepare(q, lrkv, options, true));
}

function prepare(
  q: Tensor,
  lrkv: LrkvRows & LrkvModel,
  given: LrkvOptions | undefined,
  withLse: boolean,
): Call<AttentionWithLse> {
  const options: LrkvOptions = checkOptions('options', given, optionNames);
  const query = checkTensor('q', q, 4);
  const [batch, second, third, headDim] = query.dims as [number, number, number, number];
  const heads = checkLayout(options.layout) ? third : second;
  if (heads === 0 || headDim === 0) throw expected('ERR_SHAPE', 'q', 'at least one head of size >= 1', query.dims);
  const kvHeads = checkInteger('kvHeads', options.kvHeads === undefined ? heads : options.kvHeads, 1, mostKvHeads);
  if (heads % kvHeads !== 0)
    throw expected('ERR_ARGUMENT', 'kvHeads', `a divisor of the ${heads} heads of \`q\``, kvHeads);

  if (lrkv === undefined) throw expected('ERR_ARGUMENT', 'lrkv', '{ keyBase, keyLatent, keyUp, … }', lrkv);
  const parts = checkOptions<LrkvRows & LrkvModel>('lrkv', lrkv, lrkvNames);
  const rows = checkLrkvRows(parts, batch);
  const [keyBaseDim, valueBaseDim] = [rows.keyBase.dims[2], rows.valueBase.dims[2]];
  const model = checkLrkvModel(parts, { kvHeads, headDim, keyBaseDim, valueBaseDim });
  checkLrkvColumns(rows, model);
  return lrkvCall(query, rows, model, options, withLse);
}

/** The call on queries, rows and a model that fit each other. */
export function lrkvCall(
  query: Operand,
  rows: CheckedLrkvRows,
  model: CheckedLrkvModel,
  options: AttentionOptions,
  withLse: boolean,
): Call<AttentionWithLse> {
  const rowsBeforeHeads = checkLayout(options.layout);
  const [batch, second, third, headDim] = query.dims as [number, number, number, number];
  const [heads, queries] = rowsBeforeHeads ? [third, second] : [second, third];
  const extents = { batch, heads, queries, keys: rows.count, headDim, valueDim: model.value.dim, rowsBeforeHeads };
  const { lse, mask, operands, numbers } = checkAttention(options, extents, withLse);
  const modelOperands = lrkvModelOperands(model);
  const rowOperands = lrkvRowOperands(rows);
  const dims = outputDims(extents);
  const inputs = [query.data, mask.data, ...rowOperands, ...modelOperands];
  const output =
    options.out === undefined ? (allocate('out', dims, query.type) as Operand) : checkOut(options.out, dims, inputs);
  return {
    op: view.length(output.data) === 0 ? nothing : addon.lrkv,
    operands: [query.data, output.data, ...operands, ...rowOperands, ...modelOperands],
    numbers: Float64Array.of(
      typeNumbers[query.type],
      typeNumbers[output.type],
      typeNumbers[rows.type],
      batch,
      heads,
      queries,
      rows.count,
      rowsBeforeHeads ? 1 : 0,
      ...numbers,
      ...lrkvModelNumbers(model),
    ),
    options,
    result: { output: options.out ?? (output as Tensor), lse: lse as TensorOf<'float32'> },
  };
}
