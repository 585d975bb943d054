/** What is fitted of a layer, and how. */
import { checkValues } from '../analysis/matrix';
import type { Steps } from '../steps';
import { matrices, type Run } from './algebra';
import type { FitPlan } from './als';
import {
  keyMetric,
  momentOf,
  type Objective,
  objectiveOf,
  type Projection,
  type Seen,
  seenBy,
  seenTimesHeads,
  valueMetric,
} from './moments';
import type { FitLayer, FitRequest } from './options';
import { withBias } from './projections';
import { relative, total } from './report';
import { checkHidden, type Side, sides } from './source';

export type Sides<Value> = Readonly<Record<Side, Value>>;

/** What is fitted of a layer, and what it is of. */
export function* objectivesOf(
  layer: FitLayer,
  { damping, type, run }: FitRequest,
): Steps<Sides<{ readonly objective: Objective; readonly projection: Projection }>> {
  const { shape, name, rope, queryNorm, keyNorm } = layer;
  const { heads, kvHeads } = shape;
  const { weights, moment } = yield* loaded(layer, damping, run);
  const seen = function* (of: 'query' | Side): Steps<Seen> {
    return yield* seenBy(moment, withBias(`${name}.${of}`, weights[of], weights[`${of}Bias`]), run);
  };
  const { data, dims } = checkValues(`${name}.output`, weights.output);
  const output = matrices(data, 1, dims[0] as number, dims[1] as number);
  const norms = { query: queryNorm, key: keyNorm };
  const key = yield* seen('key');
  const keys = yield* keyMetric({ query: yield* seen('query'), key }, moment, { heads, kvHeads, rope, norms }, run);
  const values = yield* valueMetric(output, heads, kvHeads, run);
  return {
    key: yield* objectiveOf(key, kvHeads, moment, keys, { diagonal: rope !== null, type }, run),
    value: yield* objectiveOf(yield* seen('value'), kvHeads, moment, values, { diagonal: false, type }, run),
  };
}

/** What objectives are of that were made before. */
export function* projectionsOf(
  layer: FitLayer,
  objectives: Partial<Sides<Objective>>,
  { damping, type, run }: FitRequest,
): Steps<Partial<Sides<Projection>>> {
  const { weights, moment } = yield* loaded(layer, damping, run);
  const found: Partial<Record<Side, Projection>> = {};
  for (const side of sides) {
    const roots = objectives[side]?.roots;
    if (roots === undefined) continue;
    const own = withBias(`${layer.name}.${side}`, weights[side], weights[`${side}Bias`]);
    const weighted = yield* seenTimesHeads(yield* seenBy(moment, own, run), roots, run);
    found[side] = { moment, weights: own, weighted, type };
  }
  return found;
}

function* loaded({ load, hiddenName, shape }: FitLayer, damping: number, run: Run) {
  const { weights, hidden } = yield* load();
  return { weights, moment: yield* momentOf(checkHidden(hiddenName, hidden, shape.modelDim), damping, run) };
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
