/** What calls of linear attention and of its state share: the method, checked, and the native call. */
import { checkBoolean, checkChoice, checkExtent, checkFinite, checkFloat32, type Operand } from './check';
import { expected } from './errors';
import { checkFeatureMap, type FeatureMap, isSoftmaxKernel, type planFeatures } from './features';
import { type Qkv, qkvNumbers, qkvOperands } from './qkv';

/**
 * How a key k and a value v change the state S (F × valueDim) that queries read. Other rules than `'linear'` need decays
 * (g), step sizes (β), or both.
 *
 * - `'linear'`: S ← S + φ(k)ᵀv (Katharopoulos et al. 2020, arXiv 2006.16236)
 * - `'gated'`: S ← e^g ⊙ S + φ(k)ᵀv (GLA, Yang et al. 2023, arXiv 2312.06635)
 * - `'delta'`: S ← S + β·φ(k)ᵀ(v − φ(k)S) (DeltaNet, Yang et al. 2024, arXiv 2406.06484)
 * - `'gatedDelta'`: S ← e^g ⊙ S, then as `'delta'` (Gated DeltaNet, Yang et al. 2024, arXiv 2412.06464)
 */
export type UpdateRule = 'linear' | 'gated' | 'delta' | 'gatedDelta';

const rules: readonly UpdateRule[] = ['linear', 'gated', 'delta', 'gatedDelta'];

/** What linear attention computes. */
export interface LinearMethod {
  /** φ, made by `elu()`, `relu()`, `identity()`, `favor()`, `cosformer()`, `hedgehog()` or `taylor()`. */
  readonly featureMap: FeatureMap;
  /** Default `'linear'`. The others are causal only; those of the delta rule are not for `favor()`. */
  readonly updateRule?: UpdateRule;
  /**
   * Divides φ(q)S by φ(q)·z + epsilon, where z (F) is the sum of φ(k) that decays as S does; a row whose sum is 0 gives zeros.
   * Not for the delta rules; required by `favor()`. Default true for `'linear'`, false for the other rules.
   */
  readonly normalize?: boolean;
  /**
   * Added to the denominator, ≥ 0. For `favor()` it is relative to the largest feature of the keys so far, and 0 leaves
   * the estimate as it is. Default 1e-6, for `favor()` 0.
   */
  readonly epsilon?: number;
  /**
   * For `favor()` and `taylor()` the scale of the softmax whose kernel they stand for, > 0. For the other maps it
   * multiplies the output, as in ONNX's LinearAttention, and cancels with `normalize`: then it is refused.
   * Default 1/√headDim.
   */
  readonly scale?: number;
}

export const methodNames = ['featureMap', 'updateRule', 'normalize', 'epsilon', 'scale'] as const;

/** The method with its defaults filled in. */
export interface CheckedMethod {
  readonly featureMap: FeatureMap;
  readonly updateRule: UpdateRule;
  readonly normalize: boolean;
  readonly epsilon: number;
  /** Undefined where the default or none applies. */
  readonly scale: number | undefined;
}

export function checkMethod(given: Partial<LinearMethod>): CheckedMethod {
  const featureMap = checkFeatureMap(given.featureMap);
  const { kind } = featureMap;
  const rule = given.updateRule === undefined ? 'linear' : checkChoice('updateRule', given.updateRule, rules);
  const isFavor = kind === 'favor';
  if (isFavor && takesBeta(rule))
    throw expected('ERR_UNSUPPORTED', 'updateRule', "'linear' or 'gated' beside favor()", rule);
  const normalize = given.normalize === undefined ? rule === 'linear' : checkBoolean('normalize', given.normalize);
  if (isFavor && !normalize) throw expected('ERR_UNSUPPORTED', 'normalize', 'true beside favor()', normalize);
  if (normalize && takesBeta(rule))
    throw expected('ERR_UNSUPPORTED', 'normalize', `false beside updateRule '${rule}'`, normalize);
  const epsilon = given.epsilon === undefined ? undefined : checkFinite('epsilon', given.epsilon, 0);
  if (epsilon !== undefined && !normalize)
    throw expected('ERR_UNSUPPORTED', 'epsilon', 'nothing without `normalize`', epsilon);
  const scale = given.scale === undefined ? undefined : checkFinite('scale', given.scale);
  if (scale !== undefined && isSoftmaxKernel(featureMap)) {
    if (!(Math.fround(scale) > 0)) throw expected('ERR_ARGUMENT', 'scale', `a float32 > 0 beside ${kind}()`, scale);
  } else if (scale !== undefined && normalize) {
    throw expected('ERR_UNSUPPORTED', 'scale', `nothing beside a normalized ${kind}(), where it cancels`, scale);
  }
  return { featureMap, updateRule: rule, normalize, epsilon: epsilon ?? (isFavor ? 0 : 1e-6), scale };
}

function takesDecay(rule: UpdateRule): boolean {
  return rule === 'gated' || rule === 'gatedDelta';
}

function takesBeta(rule: UpdateRule): boolean {
  return rule === 'delta' || rule === 'gatedDelta';
}

/** A decay that was checked. */
export interface Decay {
  readonly data: Float32Array | null;
  readonly perFeature: boolean;
}

/** What a rule takes beside keys and values: `[batch, kvHeads, keys]`, or `[batch, keys, kvHeads]` with rows before heads. */
function checkRows(name: string, value: unknown, qkv: Qkv, features?: number): { data: Float32Array; rank: number } {
  const { batch, kvHeads, keys, rowsBeforeHeads } = qkv;
  const { data, dims } = checkFloat32(name, value);
  const wanted = rowsBeforeHeads ? [batch, keys, kvHeads] : [batch, kvHeads, keys];
  if (features !== undefined && dims.length === 4) wanted.push(features);
  if (dims.length !== wanted.length || dims.some((extent, axis) => extent !== wanted[axis])) {
    const each = features === undefined ? '' : `, or those and ${features} features`;
    throw expected('ERR_SHAPE', name, `dims [${wanted.slice(0, 3).join(', ')}]${each}`, dims);
  }
  checkExtent(name, data, dims);
  return { data, rank: dims.length };
}

export function checkDecay(value: unknown, rule: UpdateRule, qkv: Qkv, features: number): Decay {
  if (!takesDecay(rule)) {
    if (value !== undefined) throw expected('ERR_UNSUPPORTED', 'decay', `nothing beside updateRule '${rule}'`, value);
    return { data: null, perFeature: false };
  }
  const { data, rank } = checkRows('decay', value, qkv, features);
  return { data, perFeature: rank === 4 };
}

export function checkBeta(value: unknown, rule: UpdateRule, qkv: Qkv): Float32Array | null {
  if (takesBeta(rule)) return checkRows('beta', value, qkv).data;
  if (value !== undefined) throw expected('ERR_UNSUPPORTED', 'beta', `nothing beside updateRule '${rule}'`, value);
  return null;
}

/** Refuses positions past the last one that a map knows. */
export function checkPositions(name: string, { kind, maxLength }: FeatureMap, end: number): void {
  if (kind === 'cosformer' && end > (maxLength as number))
    throw expected('ERR_SHAPE', name, `at most ${maxLength} positions (maxLength of cosformer())`, end);
}

/** One native call of the op. */
export interface LinearCall {
  readonly qkv: Qkv;
  readonly output: Operand;
  readonly method: CheckedMethod;
  readonly plan: ReturnType<typeof planFeatures>;
  readonly causal: boolean;
  /** Positions of the first query and of the first key. */
  readonly firstQuery: number;
  readonly firstKey: number;
  readonly decay: Decay;
  readonly beta: Float32Array | null;
  readonly keyMask: Uint8Array | null;
}

/** Memory of the state before and after a call, as the op takes it; null for none. */
export interface LinearStates {
  readonly before: Float64Array | null;
  readonly after: Float64Array | null;
}

/** Operands that come before those of {@link linearOperands} are queries, keys, values and the output. */
export function linearOperands(
  { qkv, output, plan, decay, beta, keyMask }: LinearCall,
  states: LinearStates,
): unknown[] {
  return [
    ...qkvOperands(qkv, output),
    states.before,
    states.after,
    plan.queryWeights?.data ?? null,
    plan.keyWeights?.data ?? null,
    decay.data,
    beta,
    keyMask,
  ];
}

/** The numbers of a call, as binding/linear.cc reads them. */
export function linearNumbers(call: LinearCall): Float64Array {
  const { qkv, output, method, plan, causal, firstQuery, firstKey, decay } = call;
  const scale = method.scale ?? 1 / Math.sqrt(qkv.headDim);
  const inside = isSoftmaxKernel(method.featureMap);
  return Float64Array.from([
    ...qkvNumbers(qkv, output),
    plan.kind,
    plan.features,
    inside ? Math.sqrt(scale) : 1,
    plan.queryWeights?.dims.length === 3 ? 1 : 0,
    plan.keyWeights?.dims.length === 3 ? 1 : 0,
    firstQuery,
    firstKey,
    plan.offset,
    plan.period,
    plan.joint ? 1 : 0,
    causal ? 1 : 0,
    rules.indexOf(method.updateRule),
    method.normalize ? 1 : 0,
    method.epsilon,
    inside ? 1 : scale,
    decay.perFeature ? 1 : 0,
  ]);
}
