import { type Call, checkLayout, nothing, runAsync, runSync } from './call';
import { checkOptions } from './check';
import { type AttentionOptions, attentionOptionNames, checkAttention } from './full-options';
import { addon } from './native';
import { checkQkv, outputOf, qkvNumbers, qkvOperands } from './qkv';
import { view } from './read';
import type { Tensor, TensorOf } from './tensor';

/** Attention together with the natural logarithm of each row's softmax denominator. */
export interface AttentionWithLse {
  /** `[batch, heads, length, valueDim]` in the call's layout. */
  readonly output: Tensor;
  /** `[batch, heads, length]`: ln Σⱼ exp(scoreⱼ); −∞ for a row that sees no key. */
  readonly lse: TensorOf<'float32'>;
}

/**
 * Exact attention, softmax(scale·QKᵀ + mask)·V (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1), on a worker thread.
 *
 * Query heads may be a multiple of key/value heads (GQA, MQA), and the value's head size may differ from the key's.
 * A row that may see no key gives zeros, never NaN. NaN and infinities that a row sees give what IEEE float32 arithmetic
 * gives: a NaN, or a score of +∞ (also one that overflows, or comes from a mask), makes the row and its `lse` NaN; an
 * infinite value makes its column infinite. A score of −∞ weighs nothing, but then a value there that is not finite may
 * show as NaN or not. What masks, causality, windows and lengths hide never shows, whatever it holds.
 * Tensors lie in memory of a fixed size that is not shared: a SharedArrayBuffer or a resizable buffer is refused.
 * The result is the same, bit for bit, whatever stands beside a sequence in its batch and however many threads run.
 * Do not write to the tensors of a call, nor transfer their buffers, before its promise settles.
 *
 * @param q `[batch, heads, queries, headDim]`
 * @param k `[batch, kvHeads, keys, headDim]`, heads a multiple of kvHeads
 * @param v `[batch, kvHeads, keys, valueDim]`, of k's type
 * @returns `[batch, heads, queries, valueDim]` of q's type
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function attention(q: Tensor, k: Tensor, v: Tensor, options?: AttentionOptions): Promise<Tensor> {
  return (await runAsync(attention, () => attentionCall(q, k, v, options, false))).output;
}

/** {@link attention} on the calling thread. */
export function attentionSync(q: Tensor, k: Tensor, v: Tensor, options?: AttentionOptions): Tensor {
  return runSync(attentionSync, () => attentionCall(q, k, v, options, false)).output;
}

/** {@link attention} that also returns each row's log-sum-exp, so that parts can be merged with `mergeAttention`. */
export async function attentionWithLse(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options?: AttentionOptions,
): Promise<AttentionWithLse> {
  return await runAsync(attentionWithLse, () => attentionCall(q, k, v, options, true));
}

/** {@link attentionWithLse} on the calling thread. */
export function attentionWithLseSync(q: Tensor, k: Tensor, v: Tensor, options?: AttentionOptions): AttentionWithLse {
  return runSync(attentionWithLseSync, () => attentionCall(q, k, v, options, true));
}

/** The call of {@link attention}. */
export function attentionCall(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  given: AttentionOptions | undefined,
  withLse: boolean,
): Call<AttentionWithLse> {
  const options: AttentionOptions = checkOptions('options', given, attentionOptionNames);
  const qkv = checkQkv(q, k, v, checkLayout(options.layout));
  const { lse, mask, operands, numbers } = checkAttention(options, qkv, withLse);
  const output = outputOf(qkv, options.out, [mask.data]);
  return {
    op: view.length(output.data) === 0 ? nothing : addon.full,
    operands: [...qkvOperands(qkv, output), ...operands],
    numbers: Float64Array.of(...qkvNumbers(qkv, output), ...numbers),
    options,
    result: { output: options.out ?? (output as Tensor), lse: lse as TensorOf<'float32'> },
  };
}
