/** Feature maps φ of linear attention: made by a constructor each, and planned for the shape of a call. */
import { checkBoolean, checkFinite, checkFloat32, checkInteger, checkOptions } from './check';
import { expected, guard, Text } from './errors';
import { defaultFeatures, orthogonalFeatures } from './favor';
import { checkSeed } from './random';
import type { Tensor, TensorOf } from './tensor';

/** Kinds of maps, by the numbers of core/linear.h. */
const kinds = { identity: 0, elu: 1, relu: 2, favor: 3, cosformer: 4, hedgehog: 5, taylor: 6 } as const;

/** A map from a query or key of size headDim to F features. Frozen; made by {@link elu} and its like only. */
export interface FeatureMap {
  readonly kind: keyof typeof kinds;
  /** Of `relu` and `hedgehog`, where given. */
  readonly queryWeights?: TensorOf<'float32'>;
  readonly keyWeights?: TensorOf<'float32'>;
  /** Of `relu`. */
  readonly offset?: number;
  /** Of `favor`: the matrix, or what it is made from. */
  readonly matrix?: TensorOf<'float32'>;
  readonly features?: number;
  readonly seed?: number;
  /** Of `cosformer`. */
  readonly maxLength?: number;
  /** Of `hedgehog`. */
  readonly joint?: boolean;
}

/**
 * Weights W of a trained map, float32: `[outputs, headDim]` for all heads, or `[heads, outputs, headDim]` for each its
 * own. Those of queries count query heads, those of keys key/value heads. Not copied: do not write to them meanwhile.
 */
export interface FeatureWeights {
  /** For queries and keys alike. Where key heads are shared (GQA) one for each head cannot be meant: give both below. */
  readonly weights?: Tensor;
  /** For queries; only together with `keyWeights`. */
  readonly queryWeights?: Tensor;
  /** For keys, with as many outputs. */
  readonly keyWeights?: Tensor;
}

/** Options of {@link relu}. */
export interface ReluOptions extends FeatureWeights {
  /** Added to every feature, ≥ 0; Performer's ReLU has 1e-3. Default 0. */
  readonly offset?: number;
}

/** Options of {@link favor}. */
export interface FavorOptions {
  /** Number of random features, ≥ 1. Default round(headDim · ln headDim) of the call. */
  readonly features?: number;
  /** Seed of the matrix, from 0 to 2³² − 1. Default 0. */
  readonly seed?: number;
  /** The matrix itself, float32 `[features, headDim]`, for all heads; then neither of the above is given. */
  readonly matrix?: Tensor;
}

/** Options of {@link cosformer}. */
export interface CosformerOptions {
  /**
   * Positions that there may ever be, 1 to 2³¹ − 1: M of the paper. It belongs to the model, not to the sequence at hand:
   * another one gives other features. A call that goes past it is refused.
   */
  readonly maxLength: number;
}

/** Options of {@link hedgehog}: weights of one of the two forms are required. */
export interface HedgehogOptions extends FeatureWeights {
  /** One softmax over [Wx, −Wx], as flash-linear-attention has it, rather than one over each. Default false. */
  readonly joint?: boolean;
}

const made = new WeakSet<FeatureMap>();
const weightNames = ['weights', 'queryWeights', 'keyWeights'] as const;
const reluNames: ReadonlySet<string> = new Set([...weightNames, 'offset']);
const favorNames: ReadonlySet<string> = new Set(['features', 'seed', 'matrix']);
const cosformerNames: ReadonlySet<string> = new Set(['maxLength']);
const hedgehogNames: ReadonlySet<string> = new Set([...weightNames, 'joint']);

function make(map: FeatureMap): FeatureMap {
  made.add(Object.freeze(map));
  return map;
}

/** φ(x) = elu(x) + 1: x + 1 above 0, eˣ below; F = headDim (Katharopoulos et al. 2020, arXiv 2006.16236). */
export function elu(): FeatureMap {
  return make({ kind: 'elu' });
}

/** φ(x) = x; F = headDim. Products may be negative, so the sum that normalises may vanish: see `normalize`. */
export function identity(): FeatureMap {
  return make({ kind: 'identity' });
}

/**
 * φ(x) = max(Wx, 0) + offset; F = outputs of W, headDim without weights (T2R, Kasai et al. 2021, arXiv 2103.13076;
 * Performer's ReLU, arXiv 2009.14794).
 *
 * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT
 */
export function relu(options?: ReluOptions): FeatureMap {
  return guard(relu, () => {
    const given = checkOptions<ReluOptions>('options', options, reluNames);
    const offset = given.offset === undefined ? 0 : checkFinite('offset', given.offset, 0);
    return make({ kind: 'relu', ...checkWeights(given), offset });
  });
}

/**
 * FAVOR+, positive random features of the softmax kernel: φ(x) = exp(w·x′ − |x′|²/2) for each row w of a random matrix,
 * x′ = √scale·x, so that φ(q)·φ(k)/F estimates exp(scale·q·k) (Choromanski et al. 2021, arXiv 2009.14794). Computed as
 * logarithms, from which the largest one of the keys so far is subtracted, so that nothing overflows.
 *
 * The error grows exponentially with |q||k|: it approximates attention with small logits, and does not stand in for the
 * softmax of a trained model; with logits in the hundreds denominators vanish, and rows with them. The matrix made from a
 * seed is made once for each headDim; `favorMatrix` gives the same one to be saved.
 *
 * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT
 */
export function favor(options?: FavorOptions): FeatureMap {
  return guard(favor, () => {
    const given = checkOptions<FavorOptions>('options', options, favorNames);
    if (given.matrix === undefined) {
      const seed = given.seed === undefined ? 0 : checkSeed(given.seed);
      if (given.features === undefined) return make({ kind: 'favor', seed });
      return make({ kind: 'favor', seed, features: checkInteger('features', given.features, 1, 2 ** 31 - 1) });
    }
    for (const name of ['features', 'seed'] as const) {
      if (given[name] !== undefined) throw expected('ERR_ARGUMENT', name, 'nothing beside `matrix`', given[name]);
    }
    const matrix = checkMatrix('matrix', given.matrix, [2]);
    return make({ kind: 'favor', matrix, features: matrix.dims[0] as number });
  });
}

/**
 * φ(x) = [max(x, 0)·sin a, max(x, 0)·cos a], a = π/2·(position + 1)/maxLength; F = 2·headDim (cosFormer, Qin et al. 2022,
 * arXiv 2202.08791). Positions count from 0 in queries and in keys, or go on where a state ends; hidden keys count.
 *
 * @throws AttentionError ERR_ARGUMENT
 */
export function cosformer(options: CosformerOptions): FeatureMap {
  return guard(cosformer, () => {
    if (options === undefined) throw expected('ERR_ARGUMENT', 'options', '{ maxLength }', options);
    const given = checkOptions<CosformerOptions>('options', options, cosformerNames);
    return make({ kind: 'cosformer', maxLength: checkInteger('maxLength', given.maxLength, 1, 2 ** 31 - 1) });
  });
}

/**
 * φ(x) = [softmax(Wx), softmax(−Wx)], or one softmax over both halves with `joint`; F = 2·outputs of W (Hedgehog, Zhang
 * et al. 2024, arXiv 2402.04347). The two forms are different functions: weights trained for one give garbage in the other.
 *
 * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT
 */
export function hedgehog(options: HedgehogOptions): FeatureMap {
  return guard(hedgehog, () => {
    if (options === undefined) throw expected('ERR_ARGUMENT', 'options', '{ weights, … }', options);
    const given = checkOptions<HedgehogOptions>('options', options, hedgehogNames);
    const joint = given.joint !== undefined && checkBoolean('joint', given.joint);
    const weights = checkWeights(given);
    if (weights.queryWeights === undefined)
      throw expected('ERR_TYPE', 'weights', 'a tensor { data, dims, type }', undefined);
    return make({ kind: 'hedgehog', ...weights, joint });
  });
}

/**
 * The second-order Taylor series of the softmax kernel: φ(q)·φ(k) = 1 + s + s²/2 with s = scale·q·k, always positive;
 * F = 1 + headDim + headDim·(headDim + 1)/2 (Based, Arora et al. 2024, arXiv 2402.18668). For small heads, 16 in the paper.
 */
export function taylor(): FeatureMap {
  return make({ kind: 'taylor' });
}

/** A float32 matrix, or one for each head, with at least one row and column. */
function checkMatrix(name: string, value: unknown, ranks: readonly number[]): TensorOf<'float32'> {
  const tensor = checkFloat32(name, value);
  const { dims } = tensor;
  if (!ranks.includes(dims.length) || dims.some((extent) => extent === 0)) {
    const heads = ranks.includes(3) ? ' or [heads, outputs, headDim]' : '';
    throw expected('ERR_SHAPE', name, `dims [outputs, headDim]${heads} of at least 1`, dims);
  }
  return Object.freeze({ ...tensor, dims: Object.freeze(dims) });
}

function checkWeights(given: FeatureWeights): Pick<FeatureMap, 'queryWeights' | 'keyWeights'> {
  if (given.weights !== undefined) {
    for (const name of ['queryWeights', 'keyWeights'] as const) {
      if (given[name] !== undefined) throw expected('ERR_ARGUMENT', name, 'nothing beside `weights`', given[name]);
    }
    const weights = checkMatrix('weights', given.weights, [2, 3]);
    return { queryWeights: weights, keyWeights: weights };
  }
  if (given.queryWeights === undefined && given.keyWeights === undefined) return {};
  const queryWeights = checkMatrix('queryWeights', given.queryWeights, [2, 3]);
  const keyWeights = checkMatrix('keyWeights', given.keyWeights, [2, 3]);
  if (keyWeights.dims.at(-2) !== queryWeights.dims.at(-2) || keyWeights.dims.at(-1) !== queryWeights.dims.at(-1)) {
    const [outputs, headDim] = queryWeights.dims.slice(-2);
    const what = `${outputs} outputs of head size ${headDim} as in \`queryWeights\``;
    throw expected('ERR_SHAPE', 'keyWeights', what, keyWeights.dims);
  }
  return { queryWeights, keyWeights };
}

export function checkFeatureMap(map: unknown): FeatureMap {
  if (!made.has(map as FeatureMap))
    throw expected('ERR_TYPE', 'featureMap', `a map made by ${Object.keys(kinds).join('(), ')}()`, map);
  return map as FeatureMap;
}

/** Whether φ(q)·φ(k) stands for exp(scale·q·k), so that the scale belongs inside of φ. */
export function isSoftmaxKernel({ kind }: FeatureMap): boolean {
  return kind === 'favor' || kind === 'taylor';
}

interface HeadCounts {
  readonly headDim: number;
  readonly valueDim: number;
  readonly kvHeads: number;
  /** Undefined where there are no queries. */
  readonly heads?: number;
}

/** A map for the shape of a call, as native code takes it. */
export interface FeaturePlan {
  readonly kind: number;
  readonly features: number;
  readonly queryWeights: TensorOf<'float32'> | null;
  readonly keyWeights: TensorOf<'float32'> | null;
  readonly offset: number;
  readonly period: number;
  readonly joint: boolean;
}

/** Most numbers in the state of one head. */
const mostState = 2 ** 31 - 1;

export function planFeatures(map: FeatureMap, shape: HeadCounts): FeaturePlan {
  const { kind, queryWeights, keyWeights, offset = 0, maxLength = 0, joint = false } = map;
  const { headDim, valueDim, kvHeads, heads } = shape;
  const features = featureCount(map, headDim);
  if (features * (valueDim + 1) > mostState) {
    const what = `features·(valueDim + 1) of at most ${mostState}`;
    throw expected('ERR_SHAPE', 'featureMap', what, new Text(`${features} · ${valueDim + 1}`));
  }
  const matrix = kind === 'favor' ? favorMatrixOf(map, headDim) : null;
  if (heads !== undefined) checkHeads('queryWeights', queryWeights, heads, headDim);
  checkHeads('keyWeights', keyWeights, kvHeads, headDim);
  checkHeads('matrix', matrix ?? undefined, kvHeads, headDim);
  return {
    kind: kinds[kind],
    features,
    queryWeights: heads === undefined ? null : (matrix ?? queryWeights ?? null),
    keyWeights: matrix ?? keyWeights ?? null,
    offset,
    period: maxLength,
    joint,
  };
}

function featureCount({ kind, keyWeights, features }: FeatureMap, headDim: number): number {
  const outputs = keyWeights?.dims.at(-2);
  switch (kind) {
    case 'identity':
    case 'elu':
      return headDim;
    case 'relu':
      return outputs ?? headDim;
    case 'favor':
      return features ?? defaultFeatures(headDim);
    case 'cosformer':
      return 2 * headDim;
    case 'hedgehog':
      return 2 * (outputs as number);
    case 'taylor':
      return 1 + headDim + (headDim * (headDim + 1)) / 2;
  }
}

function checkHeads(name: string, weights: TensorOf<'float32'> | undefined, heads: number, headDim: number): void {
  if (weights === undefined) return;
  const { dims } = weights;
  if (dims.at(-1) === headDim && (dims.length === 2 || dims[0] === heads)) return;
  const each = name === 'matrix' ? '' : ` or [${heads}, outputs, ${headDim}]`;
  const what = `${name} of dims [${name === 'matrix' ? 'features' : 'outputs'}, ${headDim}]${each}`;
  throw expected('ERR_SHAPE', 'featureMap', what, dims);
}

/** Matrices made from a seed, by map and headDim. */
const favorMatrices = new WeakMap<FeatureMap, Map<number, TensorOf<'float32'>>>();

function favorMatrixOf(map: FeatureMap, headDim: number): TensorOf<'float32'> {
  if (map.matrix !== undefined) return map.matrix;
  const matrices = favorMatrices.get(map) ?? new Map<number, TensorOf<'float32'>>();
  favorMatrices.set(map, matrices);
  const matrix = matrices.get(headDim) ?? orthogonalFeatures(headDim, map.features, map.seed as number);
  matrices.set(headDim, matrix);
  return matrix;
}
