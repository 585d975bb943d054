/** Weights of one attention layer, as checkpoints have them and as LRKV has them. */
import { checkAnyTensor, checkFinite, checkInteger, checkOptions } from './check';
import { expected } from './errors';
import type { RopeMode } from './lrkv-model';
import { type CheckedRmsNorm, type CheckedRope, checkRmsNorm, checkRope, type RmsNormOptions, type Rope } from './rope';
import type { Tensor } from './tensor';

/** What keys and queries meet between their projections and their product, and what follows it. */
export interface CommonWeights {
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

const commonNames = [
  'query',
  'output',
  'queryBias',
  'outputBias',
  'heads',
  'kvHeads',
  'rope',
  'qkNorm',
  'scale',
] as const;
const attentionNames: ReadonlySet<string> = new Set([...commonNames, 'key', 'value', 'keyBias', 'valueBias']);
const normNames: ReadonlySet<string> = new Set(['query', 'key']);

/** Weights that are being checked, by their names within `name`. */
class Reader<Weights extends CommonWeights> {
  readonly weights: Weights;

  constructor(
    readonly name: string,
    given: Weights,
    names: ReadonlySet<string>,
  ) {
    if (given === undefined) throw expected('ERR_ARGUMENT', name, 'an object', given);
    this.weights = checkOptions(name, given, names) as Weights;
  }

  refuse(of: string, what: string, { dims }: Tensor): never {
    throw expected('ERR_SHAPE', `${this.name}.${of}`, what, dims);
  }

  /** A matrix with so many rows, if that is known already, and columns unless it may have none. */
  matrix(of: keyof Weights & string, rows: number | undefined, mayBeEmpty = false): Tensor {
    const tensor = checkAnyTensor(`${this.name}.${of}`, this.weights[of], 2);
    const [own, columns] = tensor.dims as [number, number];
    if (own === 0 || (columns === 0 && !mayBeEmpty)) this.refuse(of, 'at least one row and column', tensor);
    if (rows !== undefined && own !== rows) this.refuse(of, `${rows} rows`, tensor);
    return tensor;
  }

  bias(of: keyof Weights & string, columns: number): Tensor | undefined {
    if (this.weights[of] === undefined) return undefined;
    const tensor = checkAnyTensor(`${this.name}.${of}`, this.weights[of], 1);
    if (tensor.dims[0] !== columns) this.refuse(of, `dims [${columns}]`, tensor);
    return tensor;
  }

  /** Heads, and what there is of the queries. */
  queries() {
    const { name, weights } = this;
    const heads = checkInteger(`${name}.heads`, weights.heads, 1);
    const kvHeads = weights.kvHeads === undefined ? heads : checkInteger(`${name}.kvHeads`, weights.kvHeads, 1, heads);
    if (heads % kvHeads !== 0)
      throw expected('ERR_ARGUMENT', `${name}.kvHeads`, `a divisor of the ${heads} heads`, kvHeads);
    const query = this.matrix('query', undefined);
    const [modelDim, columns] = query.dims as [number, number];
    const headDim = columns / heads;
    if (!Number.isInteger(headDim)) this.refuse('query', `a multiple of ${heads} columns, one part a head`, query);
    const { rope, qkNorm, scale } = weights;
    const norms = checkOptions(`${name}.qkNorm`, qkNorm, normNames);
    const norm = (side: 'query' | 'key'): CheckedRmsNorm | null =>
      norms[side] === undefined ? null : checkRmsNorm(`${name}.qkNorm.${side}`, norms[side], headDim);
    const placing = {
      rope: rope === undefined ? null : checkRope(`${name}.rope`, rope, headDim),
      queryNorm: norm('query'),
      keyNorm: norm('key'),
    };
    if (scale !== undefined) checkFinite(`${name}.scale`, scale);
    const checked = { query, queryBias: this.bias('queryBias', columns), kvHeads };
    return { checked, placing, modelDim, heads, kvHeads, headDim };
  }

  /** What there is of the output. */
  outputs(heads: number, valueDim: number) {
    const output = this.matrix('output', heads * valueDim);
    const outDim = output.dims[1] as number;
    return { checked: { output, outputBias: this.bias('outputBias', outDim) }, outDim };
  }
}

/** Copies of objects as one, without what is undefined. */
function merged<Merged>(...parts: readonly object[]): Merged {
  const entries = parts.flatMap((part) => Object.entries(part));
  return Object.fromEntries(entries.filter(([, value]) => value !== undefined)) as Merged;
}

/** Weights that fit each other. */
export interface CheckedWeights<Weights> {
  /** A copy of what was given, its tensors checked. */
  readonly weights: Weights;
  readonly shape: AttentionShape;
  readonly rope: CheckedRope | null;
  readonly queryNorm: CheckedRmsNorm | null;
  readonly keyNorm: CheckedRmsNorm | null;
}

export function checkAttentionWeights(name: string, given: AttentionWeights): CheckedWeights<AttentionWeights> {
  const reader = new Reader(name, given, attentionNames);
  const { checked, placing, modelDim, heads, kvHeads, headDim } = reader.queries();
  const key = reader.matrix('key', modelDim);
  if (key.dims[1] !== kvHeads * headDim)
    reader.refuse('key', `${kvHeads * headDim} columns, as \`query\` and the numbers of heads have it`, key);
  const value = reader.matrix('value', modelDim);
  const valueColumns = value.dims[1] as number;
  const valueDim = valueColumns / kvHeads;
  if (!Number.isInteger(valueDim)) reader.refuse('value', `a multiple of ${kvHeads} columns`, value);
  const outputs = reader.outputs(heads, valueDim);
  const rest = {
    ...{ key, value },
    keyBias: reader.bias('keyBias', kvHeads * headDim),
    valueBias: reader.bias('valueBias', valueColumns),
  };
  return {
    weights: merged(reader.weights, checked, outputs.checked, rest),
    shape: { modelDim, heads, kvHeads, headDim, valueDim, outDim: outputs.outDim },
    ...placing,
  };
}

const lrkvNames: ReadonlySet<string> = new Set([
  ...commonNames,
  ...(['keyBase', 'keyDown', 'keyUp', 'keyGauge', 'keyRanks', 'keyBaseBias', 'keyDownBias'] as const),
  ...(['valueBase', 'valueDown', 'valueUp', 'valueGauge', 'valueRanks', 'valueBaseBias', 'valueDownBias'] as const),
  ...(['ropeMode', 'latentFrequencies'] as const),
]);

/** {@link checkAttentionWeights} of LRKV, but for what {@link checkLrkvModel} has to say of the model. */
export function checkLrkvWeights(name: string, given: LrkvWeights): CheckedWeights<LrkvWeights> {
  const reader = new Reader(name, given, lrkvNames);
  const { checked, placing, modelDim, heads, kvHeads, headDim } = reader.queries();
  const side = (of: 'key' | 'value') => {
    const up = checkAnyTensor(`${name}.${of}Up`, reader.weights[`${of}Up`], 2);
    if (up.dims[1] === 0) reader.refuse(`${of}Up`, 'at least one column', up);
    const base = reader.matrix(`${of}Base`, modelDim, true);
    const down = reader.matrix(`${of}Down`, modelDim, true);
    if (down.dims[1] !== up.dims[0]) reader.refuse(`${of}Down`, `${up.dims[0]} columns, the rows of \`${of}Up\``, down);
    return {
      [`${of}Up`]: up,
      [`${of}Base`]: base,
      [`${of}Down`]: down,
      [`${of}BaseBias`]: reader.bias(`${of}BaseBias`, base.dims[1] as number),
      [`${of}DownBias`]: reader.bias(`${of}DownBias`, down.dims[1] as number),
    };
  };
  const [key, value] = [side('key'), side('value')];
  const valueDim = (value.valueUp as Tensor).dims[1] as number;
  const outputs = reader.outputs(heads, valueDim);
  return {
    weights: merged(reader.weights, checked, key, value, outputs.checked),
    shape: { modelDim, heads, kvHeads, headDim, valueDim, outDim: outputs.outDim },
    ...placing,
  };
}
