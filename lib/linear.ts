import {
  type Call,
  type CallOptions,
  callOptionNames,
  checkFlag,
  checkLayout,
  nothing,
  runAsync,
  runSync,
} from './call';
import { checkBoolTensor, checkOptions } from './check';
import { expected, Text } from './errors';
import { planFeatures } from './features';
import type { Layout } from './full-options';
import {
  type CheckedMethod,
  checkBeta,
  checkDecay,
  checkMethod,
  checkPositions,
  type LinearCall,
  type LinearMethod,
  linearNumbers,
  linearOperands,
  methodNames,
} from './linear-call';
import { checkState, type LinearState, type UpdateInputs, updateNames, updating } from './linear-state';
import { addon } from './native';
import { checkQkv, outputOf } from './qkv';
import { view } from './read';
import type { Tensor } from './tensor';

/** Options of linear attention. With `state`, the method is the state's and need not be said again. */
export interface LinearAttentionOptions extends CallOptions, UpdateInputs, Partial<LinearMethod> {
  /** Axis order of the tensors. Default `'bhld'`. */
  readonly layout?: Layout;
  /** Query i sees keys 0 to i, of which there are as many as queries. Default false, with `state` true. */
  readonly causal?: boolean;
  /**
   * Goes on after what it holds, and adds the keys and values to it when the call has succeeded; causal. Its batch,
   * heads and head sizes are those of the call.
   */
  readonly state?: LinearState;
}

/** Options of exact attention that have no meaning here, and why. */
const refused: Readonly<Record<string, string>> = {
  mask: 'nothing: sums over all keys know no pairs (`keyMask` hides keys)',
  window: 'nothing: the state holds all keys',
  queryOffset: 'nothing: query i stands at key i',
  softcap: 'nothing: there are no logits',
  sinks: 'nothing: there is no softmax',
  keyLengths: 'nothing (`keyMask` hides keys)',
  queryLengths: 'nothing: rows of padding are computed like others',
};

const optionNames: ReadonlySet<string> = new Set([
  ...callOptionNames,
  ...methodNames,
  ...updateNames,
  'layout',
  'causal',
  'state',
]);

/**
 * Attention with a feature map φ in the softmax's place, whose cost is linear in the length: φ(q)S/(φ(q)·z + epsilon) with
 * S = Σ φ(k)ᵀv and z = Σ φ(k) (Katharopoulos et al. 2020, arXiv 2006.16236), on a worker thread. Causal it is a recurrence
 * over a state (S, z), whose further rules are those of ONNX's LinearAttention (operator set 27).
 *
 * Query heads may be a multiple of key/value heads, which share a state, and the value's head size may differ from the
 * key's. With `normalize` a row whose denominator is 0, as when it may see no key, gives zeros. NaN and infinities that a
 * row sees give what IEEE float32 arithmetic gives; what `keyMask` hides never shows.
 * The result is the same, bit for bit, whatever stands beside a sequence in its batch and however many threads run.
 * Do not write to the tensors of a call, nor transfer their buffers, before its promise settles.
 *
 * @param q `[batch, heads, queries, headDim]`
 * @param k `[batch, kvHeads, keys, headDim]`, heads a multiple of kvHeads; as many keys as queries when causal
 * @param v `[batch, kvHeads, keys, valueDim]`, of k's type
 * @returns `[batch, heads, queries, valueDim]` of q's type
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_UNSUPPORTED (`mask`, `window` and their
 *   like, and combinations that mean nothing), ERR_DEVICE, ERR_MEMORY, ERR_ABORTED, ERR_CLOSED
 */
export async function linearAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: LinearAttentionOptions,
): Promise<Tensor> {
  return await runAsync(linearAttention, () => prepare(q, k, v, options));
}

/** {@link linearAttention} on the calling thread. */
export function linearAttentionSync(q: Tensor, k: Tensor, v: Tensor, options: LinearAttentionOptions): Tensor {
  return runSync(linearAttentionSync, () => prepare(q, k, v, options));
}

function prepare(q: Tensor, k: Tensor, v: Tensor, given: LinearAttentionOptions): Call<Tensor> {
  const options = readOptions(given);
  const qkv = checkQkv(q, k, v, checkLayout(options.layout));
  const { batch, heads, kvHeads, queries, keys, headDim, valueDim } = qkv;
  const { state, method } = readMethod(options);
  const causal = state !== undefined || checkFlag('causal', options.causal);
  if (state !== undefined) {
    if (options.causal !== undefined && !checkFlag('causal', options.causal))
      throw expected('ERR_UNSUPPORTED', 'causal', 'true beside `state`', false);
    const own = [state.batch, state.heads, state.headDim, state.valueDim];
    if ([batch, kvHeads, headDim, valueDim].some((extent, i) => extent !== own[i])) {
      const shape = new Text(`one of [${own.join(', ')}]`);
      const what = `a state of batch, heads, headDim and valueDim [${[batch, kvHeads, headDim, valueDim].join(', ')}]`;
      throw expected('ERR_SHAPE', 'state', what, shape);
    }
  }
  if (method.updateRule !== 'linear' && !causal)
    throw expected('ERR_UNSUPPORTED', 'updateRule', "'linear' where `causal` is false", method.updateRule);
  if (causal && queries !== keys) throw expected('ERR_SHAPE', 'q', `${keys} rows as in \`k\`, being causal`, q.dims);

  const first = state?.length ?? 0;
  checkPositions('k', method.featureMap, first + keys);
  checkPositions('q', method.featureMap, first + queries);
  const plan = planFeatures(method.featureMap, { headDim, valueDim, kvHeads, heads });
  const decay = checkDecay(options.decay, method.updateRule, qkv, plan.features);
  const beta = checkBeta(options.beta, method.updateRule, qkv);
  const keyMask = checkBoolTensor('keyMask', options.keyMask, [batch, keys]);
  const weights = [plan.queryWeights?.data ?? null, plan.keyWeights?.data ?? null];
  const output = outputOf(qkv, options.out, [...weights, decay.data, beta, keyMask]);
  const call: LinearCall = {
    ...{ qkv, output, method, plan, causal, firstQuery: first, firstKey: first, decay, beta, keyMask },
  };
  const op = state === undefined ? addon.linear : updating(state, keys, call);
  return {
    op: view.length(output.data) === 0 ? nothing : op,
    operands: linearOperands(call, { before: null, after: null }),
    numbers: linearNumbers(call),
    options,
    result: options.out ?? (output as Tensor),
  };
}

function readOptions(given: LinearAttentionOptions): Partial<LinearAttentionOptions> {
  if (given === undefined) throw expected('ERR_ARGUMENT', 'options', '{ featureMap, … }', given);
  return checkOptions<LinearAttentionOptions>('options', given, optionNames, refused);
}

/** The method of the options, or that of their state, which they may repeat. */
function readMethod(options: Partial<LinearAttentionOptions>): {
  readonly state: LinearState | undefined;
  readonly method: CheckedMethod;
} {
  if (options.state === undefined) return { state: undefined, method: checkMethod(options) };
  const { state, method } = checkState(options.state);
  for (const name of methodNames) {
    if (options[name] !== undefined && options[name] !== method[name])
      throw expected('ERR_ARGUMENT', name, 'nothing else than what `state` was made with', options[name]);
  }
  return { state, method };
}
