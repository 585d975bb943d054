/** Weights of one attention layer, as checkpoints have them and as LRKV has them. */
import { checkAnyTensor, checkFinite, checkInteger, checkOptions } from './check';
import { expected } from './errors';
import type { RopeMode } from './lrkv-model';
import { checkRmsNorm, checkRope, type RmsNormOptions, type Rope } from './rope';
import type { Tensor } from './tensor';

/** What keys and queries meet between their projections and their product, and what follows it. */
interface CommonWeights {
  /** `[modelDim, heads·headDim]`, head after head. All matrices are `[in, out]`: y = x·W + b. */
  readonly query: Tensor;
  /** `[heads·valueDim, outDim]`. */
  readonly output: Tensor;
  /** `[heads·headDim]`. Default none. */
  readonly queryBias?: Tensor;
  /** `[outDim]`. Default none. */
  readonly outputBias?: Tensor;
  readonly heads: number;
  /** Heads of keys and values, which divides `heads`. Default `heads`. */
  readonly kvHeads?: number;
  /** How queries and keys are rotated. Default not at all. */
  readonly rope?: Rope;
  /** Normalisation of queries and keys of every head (QK-norm). Default none. */
  readonly qkNorm?: { readonly query?: RmsNormOptions; readonly key?: RmsNormOptions };
  /** Multiplies q·k before the softmax. Any finite number. Default 1/√headDim. */
  readonly scale?: number;
}

/** Multi-head or grouped-query attention. Tensors are of any element types. */
export interface AttentionWeights extends CommonWeights {
  /** `[modelDim, kvHeads·headDim]`. */
  readonly key: Tensor;
  /** `[modelDim, kvHeads·valueDim]`. */
  readonly value: Tensor;
  /** `[kvHeads·headDim]`. Default none. */
  readonly keyBias?: Tensor;
  /** `[kvHeads·valueDim]`. Default none. */
  readonly valueBias?: Tensor;
}

/**
 * LRKV (arXiv 2601.11471): key of head h = (x·keyBase + keyBaseBias)·keyGauge[h] + (x·keyDown[h] + keyDownBias[h])·keyUp[h],
 * and values alike. Columns of `…Down` and rows of `…Up` stand head after head, as many for each as `…Ranks` say.
 */
export interface LrkvWeights extends CommonWeights {
  /** `[modelDim, keyBaseDim]`; keyBaseDim 0: no base. */
  readonly keyBase: Tensor;
  /** `[modelDim, Σ keyRanks]`. */
  readonly keyDown: Tensor;
  /** `[Σ keyRanks, headDim]`. */
  readonly keyUp: Tensor;
  /** `[kvHeads, keyBaseDim, headDim]`. Default the identity. */
  readonly keyGauge?: Tensor;
  /** kvHeads whole numbers ≥ 0. */
  readonly keyRanks: readonly number[];
  /** `[keyBaseDim]`. Default none. */
  readonly keyBaseBias?: Tensor;
  /** `[Σ keyRanks]`. Default none. */
  readonly keyDownBias?: Tensor;
  /** `[modelDim, valueBaseDim]`; valueBaseDim 0: no base. */
  readonly valueBase: Tensor;
  /** `[modelDim, Σ valueRanks]`. */
  readonly valueDown: Tensor;
  /** `[Σ valueRanks, valueDim]`. */
  readonly valueUp: Tensor;
  /** `[kvHeads, valueBaseDim, valueDim]`. Default the identity. */
  readonly valueGauge?: Tensor;
  /** kvHeads whole numbers ≥ 0. */
  readonly valueRanks: readonly number[];
  /** `[valueBaseDim]`. Default none. */
  readonly valueBaseBias?: Tensor;
  /** `[Σ valueRanks]`. Default none. */
  readonly valueDownBias?: Tensor;
  /** Only with `rope`. Default `'exact'`. */
  readonly ropeMode?: RopeMode;
  /** Of `ropeMode` `'latent'` and `'paper'`: Σ keyRanks / 2 numbers. */
  readonly latentFrequencies?: ArrayLike<number>;
}

/** Extents of a layer. */
export interface AttentionShape {
  readonly modelDim: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly outDim: number;
}

const attentionNames: ReadonlySet<string> = new Set([
  ...(['query', 'key', 'value', 'output', 'queryBias', 'keyBias', 'valueBias', 'outputBias'] as const),
  ...(['heads', 'kvHeads', 'rope', 'qkNorm', 'scale'] as const),
]);
const normNames: ReadonlySet<string> = new Set(['query', 'key']);

/** Weights that fit each other: a copy of what was given, and its extents. */
export function checkAttentionWeights(
  name: string,
  given: AttentionWeights,
): { readonly weights: AttentionWeights; readonly shape: AttentionShape } {
  if (given === undefined) throw expected('ERR_ARGUMENT', name, 'an object', given);
  const weights = checkOptions(name, given, attentionNames) as AttentionWeights;
  const heads = checkInteger(`${name}.heads`, weights.heads, 1);
  const kvHeads = weights.kvHeads === undefined ? heads : checkInteger(`${name}.kvHeads`, weights.kvHeads, 1, heads);
  if (heads % kvHeads !== 0)
    throw expected('ERR_ARGUMENT', `${name}.kvHeads`, `a divisor of the ${heads} heads`, kvHeads);
  const matrix = (of: 'query' | 'key' | 'value' | 'output'): { tensor: Tensor; rows: number; columns: number } => {
    const tensor = checkAnyTensor(`${name}.${of}`, weights[of], 2);
    const [rows, columns] = tensor.dims as [number, number];
    if (rows === 0 || columns === 0)
      throw expected('ERR_SHAPE', `${name}.${of}`, 'at least one row and column', tensor.dims);
    return { tensor, rows, columns };
  };
  const refuse = (of: string, what: string, tensor: Tensor): never => {
    throw expected('ERR_SHAPE', `${name}.${of}`, what, tensor.dims);
  };
  const query = matrix('query');
  const key = matrix('key');
  const value = matrix('value');
  const output = matrix('output');
  const modelDim = query.rows;
  const headDim = query.columns / heads;
  const valueDim = value.columns / kvHeads;
  if (!Number.isInteger(headDim)) refuse('query', `a multiple of ${heads} columns, one part a head`, query.tensor);
  if (key.rows !== modelDim || key.columns !== kvHeads * headDim)
    refuse(
      'key',
      `dims [${modelDim}, ${kvHeads * headDim}], as \`query\` and the numbers of heads have it`,
      key.tensor,
    );
  if (value.rows !== modelDim || !Number.isInteger(valueDim))
    refuse('value', `${modelDim} rows and a multiple of ${kvHeads} columns`, value.tensor);
  if (output.rows !== heads * valueDim) refuse('output', `${heads * valueDim} rows, heads·valueDim`, output.tensor);
  const bias = (of: 'queryBias' | 'keyBias' | 'valueBias' | 'outputBias', columns: number): Tensor | undefined => {
    if (weights[of] === undefined) return undefined;
    const tensor = checkAnyTensor(`${name}.${of}`, weights[of], 1);
    if (tensor.dims[0] !== columns) refuse(of, `dims [${columns}]`, tensor);
    return tensor;
  };
  const biases = {
    queryBias: bias('queryBias', query.columns),
    keyBias: bias('keyBias', key.columns),
    valueBias: bias('valueBias', value.columns),
    outputBias: bias('outputBias', output.columns),
  };
  if (weights.rope !== undefined) checkRope(`${name}.rope`, weights.rope, headDim);
  if (weights.qkNorm !== undefined) {
    const norms = checkOptions(`${name}.qkNorm`, weights.qkNorm, normNames);
    for (const of of ['query', 'key'] as const) {
      if (norms[of] !== undefined) checkRmsNorm(`${name}.qkNorm.${of}`, norms[of], headDim);
    }
  }
  if (weights.scale !== undefined) checkFinite(`${name}.scale`, weights.scale);
  const tensors = { query: query.tensor, key: key.tensor, value: value.tensor, output: output.tensor };
  return {
    weights: { ...weights, ...tensors, ...Object.fromEntries(Object.entries(biases).filter(([, of]) => of)), kvHeads },
    shape: { modelDim, heads, kvHeads, headDim, valueDim, outDim: output.columns },
  };
}
