import { checkValues } from '../analysis/matrix';
import { expected, Text } from '../errors';
import { float64, type Matrices } from '../linalg';
import { runStepsAsync, runStepsSync, type Steps } from '../steps';
import type { DataType, Tensor } from '../tensor';
import type { AttentionWeights, LrkvWeights } from '../weights';
import { matrices, type Run } from './algebra';
import { alternate, type Factors, type FitPlan, tailOf } from './als';
import { finish } from './finish';
import { keyMetric, momentOf, type Objective, objectiveOf, valueMetric } from './moments';
import { checkFit, type FitLayer, type FitOptions, type FitRequest, type Side, sides } from './options';
import { allocateRanks, type Choice, leastComponents, ranksFor, storedComponents, storedStep, type Way } from './ranks';
import {
  bytesOf,
  type FinishedSide,
  fixedBytes,
  fullBytes,
  type LrkvReport,
  lrkvBytes,
  relative,
  reportOf,
  storedWhole,
  total,
} from './report';

/** What `fitLrkv` gives. */
export interface LrkvFit {
  /** One a layer. */
  readonly layers: LrkvWeights[];
  readonly report: LrkvReport;
}

/**
 * Trained multi-head or grouped-query attention as LRKV (arXiv 2601.11471), on worker threads, in float64: of keys and of
 * values, a base that all heads of a layer share, a gauge that fits it to each head, and a residual of low rank for each,
 * by alternating least squares. What is least is the expected squared error of logits (keys) and of heads' outputs
 * (values) over the calibration rows, heads together; a side for which separate low-rank heads without a base are
 * better at the same memory gets none. Nothing is trained: at equal memory expect less than a model trained as LRKV.
 *
 * With rotary embedding the metric of keys takes all distances for equally likely. With QK-norm the norms of a head's
 * queries and keys are taken for constant, equal to their root mean square, and gains for applied. `budget` makes layers and
 * sides comparable by the squared relative error of each side (times its `sensitivity`). It keeps a matrix of
 * (kvHeads·headDim)² float64 for every side of every layer; the other rules go layer by layer.
 *
 * @param weights one layer or several; matrices `[in, out]`, of any element types
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT (also for numbers that are not finite, and a
 *   budget below the least there is), ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function fitLrkv(
  weights: AttentionWeights | readonly AttentionWeights[],
  options: FitOptions,
): Promise<LrkvFit> {
  return await runStepsAsync(fitLrkv, fitSteps(weights, options));
}

/** {@link fitLrkv} on the calling thread. */
export function fitLrkvSync(weights: AttentionWeights | readonly AttentionWeights[], options: FitOptions): LrkvFit {
  return runStepsSync(fitLrkvSync, fitSteps(weights, options));
}

type Sides<Value> = Readonly<Record<Side, Value>>;

function* fitSteps(given: unknown, options: FitOptions): Steps<LrkvFit> {
  const request = checkFit(given, options);
  const { layers, rule } = request;
  for (const layer of layers) checkNumbers(layer);
  const finished: Sides<FinishedSide>[] = [];
  if (rule.kind === 'budget') finished.push(...(yield* fitBudget(request, rule)));
  else {
    for (const [index, layer] of layers.entries()) {
      const objectives = yield* objectivesOf(layer, request);
      const fit = function* (side: Side): Steps<FinishedSide> {
        const plan = planOf(request, index, side, objectives[side]);
        const found =
          rule.kind === 'energy'
            ? yield* fitEnergy(objectives[side], plan, rule.energy, request.run)
            : yield* fitRanks(objectives[side], plan, rule.of(index, side), request.run);
        return yield* finishSide(objectives[side], plan, found, request.run);
      };
      finished.push({ key: yield* fit('key'), value: yield* fit('value') });
    }
  }
  return assemble(request, finished, rule.kind === 'budget' ? rule.type : 'float32');
}

const tensorNames = ['query', 'key', 'value', 'output', 'queryBias', 'keyBias', 'valueBias', 'outputBias'] as const;

/** Refuses numbers that are not finite before anything is computed. */
function checkNumbers({ weights, name }: FitLayer): void {
  for (const of of tensorNames) {
    const tensor = weights[of];
    if (tensor !== undefined) checkValues(`${name}.${of}`, tensor);
  }
}

/** A projection `[modelDim + 1, columns]` with its bias, or zeros, as the last row. */
function withBias(name: string, matrix: Tensor, bias: Tensor | undefined): Matrices {
  const { data, dims } = checkValues(name, matrix);
  const [rows, columns] = dims as [number, number];
  const whole = float64(name, data.length + columns);
  whole.set(data);
  if (bias !== undefined) whole.set(checkValues(`${name}Bias`, bias).data, data.length);
  return matrices(whole, 1, rows + 1, columns);
}

function* objectivesOf(layer: FitLayer, { damping, run }: FitRequest): Steps<Sides<Objective>> {
  const { weights, shape, name, hidden } = layer;
  const { heads, kvHeads, headDim } = shape;
  const moment = yield* momentOf(hidden, damping, run);
  const query = withBias(`${name}.query`, weights.query, weights.queryBias);
  const key = withBias(`${name}.key`, weights.key, weights.keyBias);
  const value = withBias(`${name}.value`, weights.value, weights.valueBias);
  const { data, dims } = checkValues(`${name}.output`, weights.output);
  const output = matrices(data, 1, dims[0] as number, dims[1] as number);
  const gainOf = (side: 'query' | 'key'): Float64Array | null => {
    const norm = weights.qkNorm?.[side];
    if (norm === undefined) return null;
    return norm.gain === undefined ? new Float64Array(headDim).fill(1) : Float64Array.from(norm.gain);
  };
  const norms = { query: gainOf('query'), key: gainOf('key') };
  const { rope } = weights;
  const keys = yield* keyMetric({ query, key }, moment, { heads, kvHeads, rope, norms }, run);
  const values = yield* valueMetric(output, heads, kvHeads, run);
  return {
    key: yield* objectiveOf(key, kvHeads, moment, keys, rope !== undefined, run),
    value: yield* objectiveOf(value, kvHeads, moment, values, false, run),
  };
}

function planOf(request: FitRequest, index: number, side: Side, { energies }: Objective): FitPlan {
  const { layers, iterations, ropeMode, onProgress } = request;
  const { weights, gauges } = layers[index] as FitLayer;
  const rope = side === 'key' ? weights.rope : undefined;
  const plan: FitPlan = {
    gauge: gauges[side],
    rope,
    pairs: rope !== undefined && ropeMode === 'intertwined',
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

/** Factors and the ranks that are kept of them. */
interface Kept {
  readonly factors: Factors;
  readonly ranks: readonly number[];
}

/** Both ways to spend the same memory. */
interface Ways {
  readonly based: Kept | undefined;
  readonly baseless: Kept | undefined;
}

const errorOf = ({ factors, ranks }: Kept): number => tailOf(factors.spectra, ranks);

/** Heads without a base: the spectra of all ranks at once. */
function* baselessFactors(objective: Objective, plan: FitPlan, run: Run): Steps<Factors> {
  const ranks = Array<number>(objective.heads).fill(0);
  return yield* alternate(objective, ranks, { ...plan, gauge: 'none', onIteration: undefined }, run);
}

/** Ranks without a base, within so many components. */
function spread({ heads }: Objective, factors: Factors, components: number): Kept {
  const way: Way = { fixed: 0, least: 0, spectra: factors.spectra, heads };
  const [choice] = allocateRanks([[way]], components, storedStep);
  return { factors, ranks: (choice as Choice).ranks };
}

function* fitRanks(objective: Objective, plan: FitPlan, ranks: readonly number[], run: Run): Steps<Ways> {
  if (plan.gauge === 'none')
    return { based: undefined, baseless: { factors: yield* alternate(objective, ranks, plan, run), ranks } };
  const based = { factors: yield* alternate(objective, ranks, plan, run), ranks };
  const factors = yield* baselessFactors(objective, plan, run);
  return { based, baseless: spread(objective, factors, storedComponents(objective.width, ranks)) };
}

/** Rounds of fits, each under ranks that follow from the one before. */
const rounds = 3;

function* fitEnergy(objective: Objective, plan: FitPlan, energy: number, run: Run): Steps<Ways> {
  const { energies, width } = objective;
  const enough = (factors: Factors): Kept => {
    const ranks = ranksFor(factors.spectra, energies, 1 - energy);
    return { factors, ranks: plan.pairs ? ranks.map((rank) => rank + (rank % 2)) : ranks };
  };
  const baseless = enough(yield* baselessFactors(objective, plan, run));
  if (plan.gauge === 'none') return { based: undefined, baseless };
  let based: Kept | undefined;
  let ranks: readonly number[] = baseless.ranks.map((rank) => Math.floor(rank / 4) * 2);
  for (let round = 0; round < rounds; round++) {
    const found = enough(yield* alternate(objective, ranks, plan, run));
    if (based === undefined || memoryOf(found, width) < memoryOf(based, width)) based = found;
    ({ ranks } = found);
  }
  return { based, baseless };
}

const memoryOf = ({ factors, ranks }: Kept, width: number): number =>
  storedComponents(factors.base === null ? 0 : width, ranks);

/** The way that takes less memory, or errs less in the same. */
function better({ based, baseless }: Ways, width: number): Kept {
  if (based === undefined) return baseless as Kept;
  if (baseless === undefined) return based;
  // Memory that none needs, as where a base makes room for more than all of every head, is no gain.
  const [own, other] = [memoryOf(based, width), memoryOf(baseless, width)];
  const [error, otherError] = [errorOf(based), errorOf(baseless)];
  if (own === other) return otherError <= error ? baseless : based;
  if (own < other) return based;
  return otherError <= error ? baseless : based;
}

function* finishSide(objective: Objective, plan: FitPlan, ways: Ways, run: Run): Steps<FinishedSide> {
  const { factors, ranks } = better(ways, objective.width);
  const energy = total(objective.energies);
  const errorIn = (kept: Kept | undefined): number | undefined =>
    kept === undefined ? undefined : relative(errorOf(kept), energy);
  return {
    fitted: yield* finish(objective, factors, ranks, plan, run),
    gauge: factors.gauge,
    ranks,
    history: factors.history.map((error) => relative(error, energy)),
    baseError: errorIn(ways.based),
    noBaseError: errorIn(ways.baseless),
  };
}

/** A side whose ranks a budget decides. */
interface Sharer {
  readonly layer: number;
  readonly side: Side;
  readonly objective: Objective;
  readonly plan: FitPlan;
  readonly weight: number;
  readonly baseless: Factors;
  based: Factors | undefined;
}

type BudgetRule = Extract<FitRequest['rule'], { kind: 'budget' }>;

function* fitBudget(request: FitRequest, { share, bytes, type }: BudgetRule): Steps<Sides<FinishedSide>[]> {
  const { layers, ropeMode, rankStep, run } = request;
  const full = layers.reduce((sum, layer) => sum + fullBytes(layer, type), 0);
  const fixed = layers.reduce((sum, layer) => sum + fixedBytes(layer, ropeMode, type), 0);
  const wanted = share === undefined ? bytes : share * full;
  const components = Math.floor((wanted - fixed) / bytesOf(type) + 1e-9);

  // What is least possible is known before anything is fitted.
  const least = layers.reduce((sum, layer) => {
    return sides
      .filter((side) => !storedWhole(layer, side, ropeMode))
      .reduce((part, side) => {
        const { kvHeads, headDim, valueDim } = layer.shape;
        const width = side === 'key' ? headDim : valueDim;
        return part + Math.min(...leastOf(layer.gauges[side] !== 'none', kvHeads, width, rankStep));
      }, sum);
  }, 0);
  if (components < least) {
    const enough = least * bytesOf(type) + fixed;
    const what = share === undefined ? `at least ${enough} bytes a token` : `at least ${enough / full} of the cache`;
    throw expected('ERR_ARGUMENT', 'budget', what, share ?? new Text(`${bytes} bytes`));
  }

  const sharers: Sharer[] = [];
  const finished: Record<Side, FinishedSide | undefined>[] = layers.map(() => ({ key: undefined, value: undefined }));
  for (const [index, layer] of layers.entries()) {
    const objectives = yield* objectivesOf(layer, request);
    for (const side of sides) {
      const objective = objectives[side];
      const plan = planOf(request, index, side, objective);
      const baseless = yield* baselessFactors(objective, plan, run);
      if (storedWhole(layer, side, ropeMode)) {
        // Their cache takes the same whatever their rank: nothing is left out.
        const kept = { factors: baseless, ranks: Array<number>(objective.heads).fill(objective.width) };
        const record = finished[index] as Record<Side, FinishedSide | undefined>;
        record[side] = yield* finishSide(objective, plan, { based: undefined, baseless: kept }, run);
        continue;
      }
      const weight = layer.sensitivity[side] / (total(objective.energies) || 1);
      sharers.push({ layer: index, side, objective, plan, weight, baseless, based: undefined });
    }
  }

  // First ranks as if all sides were to have as large a share.
  const mean = components / sharers.reduce((sum, { objective }) => sum + objective.gram.rows, 0);
  for (const sharer of sharers) {
    const { objective, plan } = sharer;
    if (plan.gauge === 'none') continue;
    const { heads, width } = objective;
    const rank = Math.min(width, Math.max(0, Math.floor((mean * width - width / heads) / rankStep) * rankStep));
    sharer.based = yield* alternate(objective, Array<number>(heads).fill(rank), plan, run);
  }
  let choices = allocateRanks(
    sharers.map((sharer) => waysOf(sharer, rankStep)),
    components,
    rankStep,
  );
  for (let round = 1; round < rounds; round++) {
    for (const [index, sharer] of sharers.entries()) {
      const { way, ranks } = choices[index] as Choice;
      if (way === 1) sharer.based = yield* alternate(sharer.objective, ranks, sharer.plan, run);
    }
    choices = allocateRanks(
      sharers.map((sharer) => waysOf(sharer, rankStep)),
      components,
      rankStep,
    );
  }
  for (const [index, sharer] of sharers.entries()) {
    const { objective, plan, baseless, based } = sharer;
    const { way, ranks } = choices[index] as Choice;
    const record = finished[sharer.layer] as Record<Side, FinishedSide | undefined>;
    const memory = storedComponents(way === 1 ? objective.width : 0, ranks);
    let ways: Ways;
    if (way === 1) ways = yield* fitRanks(objective, plan, ranks, run);
    else {
      const room = memory - objective.width;
      const other =
        based === undefined || room < 0 ? undefined : { factors: based, ranks: spread(objective, based, room).ranks };
      ways = { based: other, baseless: { factors: baseless, ranks } };
    }
    record[sharer.side] = yield* finishSide(objective, plan, ways, run);
  }
  return finished as Sides<FinishedSide>[];
}

/** Least components without and with a base. */
function leastOf(based: boolean, heads: number, width: number, step: number): number[] {
  const spectra = new Float64Array(heads * width);
  const ways: Way[] = [{ fixed: 0, least: step, spectra, heads }];
  if (based) ways.push({ fixed: width, least: 0, spectra, heads });
  return ways.map(leastComponents);
}

/** Without a base every head keeps a block at least: a head of nothing attends to nothing. */
function waysOf({ objective, weight, baseless, based }: Sharer, step: number): Way[] {
  const weighted = ({ spectra }: Factors): Float64Array => spectra.map((energy) => energy * weight);
  const { heads, width } = objective;
  const ways: Way[] = [{ fixed: 0, least: step, spectra: weighted(baseless), heads }];
  if (based !== undefined) ways.push({ fixed: width, least: 0, spectra: weighted(based), heads });
  return ways;
}

function assemble({ layers, ropeMode }: FitRequest, finished: readonly Sides<FinishedSide>[], type: DataType): LrkvFit {
  let [stored, factored, full] = [0, 0, 0];
  const results: LrkvWeights[] = [];
  const reports = layers.map((layer, index) => {
    const sides = finished[index] as Sides<FinishedSide>;
    const ranksOf = ({ fitted, ranks }: FinishedSide) => ({ baseDim: fitted.base.dims[1] as number, ranks });
    const bytes = lrkvBytes(layer, { key: ranksOf(sides.key), value: ranksOf(sides.value) }, ropeMode, type);
    const whole = fullBytes(layer, type);
    [stored, factored, full] = [stored + bytes.stored, factored + bytes.factored, full + whole];
    results.push(weightsOf(layer, sides, ropeMode));
    return {
      key: reportOf(sides.key),
      value: reportOf(sides.value),
      cacheRatio: bytes.stored / whole,
      factoredRatio: bytes.factored / whole,
    };
  });
  return {
    layers: results,
    report: {
      layers: reports,
      cacheRatio: stored / full,
      factoredRatio: factored / full,
      calibrated: layers.every(({ hidden }) => hidden !== null),
      type,
    },
  };
}

function weightsOf(
  { weights }: FitLayer,
  { key, value }: Sides<FinishedSide>,
  ropeMode: FitRequest['ropeMode'],
): LrkvWeights {
  const { key: _key, value: _value, keyBias, valueBias, ...common } = weights;
  const biasOf = (name: string, bias: Tensor, source: Tensor | undefined): Record<string, Tensor> =>
    source === undefined || bias.dims[0] === 0 ? {} : { [name]: bias };
  return {
    ...common,
    keyBase: key.fitted.base,
    keyDown: key.fitted.down,
    keyUp: key.fitted.up,
    ...(key.fitted.gauge === null ? {} : { keyGauge: key.fitted.gauge }),
    keyRanks: [...key.ranks],
    ...biasOf('keyBaseBias', key.fitted.baseBias, keyBias),
    ...biasOf('keyDownBias', key.fitted.downBias, keyBias),
    valueBase: value.fitted.base,
    valueDown: value.fitted.down,
    valueUp: value.fitted.up,
    ...(value.fitted.gauge === null ? {} : { valueGauge: value.fitted.gauge }),
    valueRanks: [...value.ranks],
    ...biasOf('valueBaseBias', value.fitted.baseBias, valueBias),
    ...biasOf('valueDownBias', value.fitted.downBias, valueBias),
    ...(weights.rope === undefined ? {} : { ropeMode }),
  };
}
