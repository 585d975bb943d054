import type { CallOptions } from '../../call';
import { elu, type FeatureMap, identity, relu } from '../../features';
import { linearAttention } from '../../linear';
import { driftingInputs } from '../inputs';
import type { FeatureName, LinearMethod } from '../method';
import { linearGraph } from '../peer/approximate-models';
import { linearAttention as onnxLinearAttention } from '../peer/models';
import { linearReference } from '../reference/linear';
import type { Shape } from '../suite';
import type { Approximation, PeerModel } from './approximation';

const featureMaps: Readonly<Record<FeatureName, () => FeatureMap>> = { identity, elu, relu };

/** The method as calls and states of the package take it. */
export function linearOptions({ featureMap, normalize }: LinearMethod) {
  // Without a denominator the output would be scaled by default.
  return { featureMap: featureMaps[featureMap](), normalize, ...(normalize ? {} : { scale: 1 }) };
}

export function linear(method: LinearMethod, shape: Shape, inputs = driftingInputs(shape)): Approximation {
  const { q, k, v } = inputs;
  const asked = { ...linearOptions(method), causal: method.causal };
  const call = (options: CallOptions) => linearAttention(q, k, v, { ...options, ...asked });
  const model = peerModel(method, shape);
  return {
    inputs,
    call,
    answer: call,
    reference: () => linearReference(inputs, method),
    ...(model === undefined ? {} : { peer: { ...model, feeds: { q, k, v } } }),
  };
}

/** onnxruntime's LinearAttention as this package's `identity` features without a denominator. */
export const linearRecurrence = ({ heads, dim }: Shape, past = false): Uint8Array =>
  onnxLinearAttention(heads, heads, dim, dim, { rule: 'linear', scale: 1, past });

/** onnxruntime has a recurrence for causal calls, which knows neither features nor denominators. */
function peerModel(
  { featureMap, causal, normalize }: LinearMethod,
  shape: Shape,
): Omit<PeerModel, 'feeds'> | undefined {
  if (!causal && normalize && featureMap !== 'identity')
    return { form: 'graph', model: () => linearGraph(shape, featureMap), positionsFirst: false };
  if (causal && !normalize && featureMap === 'identity')
    return { form: 'LinearAttention', model: () => linearRecurrence(shape), positionsFirst: true };
  return undefined;
}
