/** What is fitted of a layer, and how. */
import { checkValues } from '../analysis/matrix';
import type { CheckedRmsNorm } from '../rope';
import type { Steps } from '../steps';
import { matrices } from './algebra';
import type { FitPlan } from './als';
import { keyMetric, momentOf, type Objective, objectiveOf, valueMetric } from './moments';
import type { FitLayer, FitRequest, Side } from './options';
import { withBias } from './projections';
import { relative, total } from './report';

export type Sides<Value> = Readonly<Record<Side, Value>>;

export function* objectivesOf(layer: FitLayer, { damping, run }: FitRequest): Steps<Sides<Objective>> {
  const { weights, shape, name, hidden, rope, queryNorm, keyNorm } = layer;
  const { heads, kvHeads, headDim } = shape;
  const moment = yield* momentOf(hidden, damping, run);
  const query = withBias(`${name}.query`, weights.query, weights.queryBias);
  const key = withBias(`${name}.key`, weights.key, weights.keyBias);
  const value = withBias(`${name}.value`, weights.value, weights.valueBias);
  const { data, dims } = checkValues(`${name}.output`, weights.output);
  const output = matrices(data, 1, dims[0] as number, dims[1] as number);
  const gainOf = (norm: CheckedRmsNorm | null): ArrayLike<number> | null =>
    norm === null ? null : (norm.gain ?? new Float64Array(headDim).fill(1));
  const norms = { query: gainOf(queryNorm), key: gainOf(keyNorm) };
  const keys = yield* keyMetric({ query, key }, moment, { heads, kvHeads, rope, norms }, run);
  const values = yield* valueMetric(output, heads, kvHeads, run);
  return {
    key: yield* objectiveOf(key, kvHeads, moment, keys, rope !== null, run),
    value: yield* objectiveOf(value, kvHeads, moment, values, false, run),
  };
}

export function planOf(request: FitRequest, index: number, side: Side, { energies }: Objective): FitPlan {
  const { layers, iterations, ropeMode, onProgress } = request;
  const layer = layers[index] as FitLayer;
  const rope = side === 'key' ? layer.rope : null;
  const plan: FitPlan = {
    gauge: layer.gauges[side],
    rope,
    pairs: rope !== null && ropeMode === 'intertwined',
    iterations,
  };
  if (onProgress === undefined) return plan;
  const energy = total(energies);
  return {
    ...plan,
    onIteration: (iteration, error) =>
      onProgress({ layer: index, layers: layers.length, side, iteration, iterations, error: relative(error, energy) }),
  };
}
