/** Ranks of all layers within a budget: fit, deal out by the spectra, fit again. */
import { expected, Text } from '../errors';
import type { Steps } from '../steps';
import { alternate, type Factors, type FitPlan } from './als';
import type { Objective, Projection } from './moments';
import { objectivesOf, planOf, projectionsOf, type Sides } from './objectives';
import type { FitRequest } from './options';
import { allocateRanks, type Choice, leastComponents, storedComponents, type Way } from './ranks';
import { bytesOf, type FinishedSide, fixedBytes, fullBytes, storedWhole, total } from './report';
import { type Side, sides } from './source';
import { baselessFactors, finishSide, fitRanks, lesserError, rounds, spread, type Ways } from './ways';

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

export function* fitBudget(request: FitRequest, { share, bytes, type }: BudgetRule): Steps<Sides<FinishedSide>[]> {
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
    const both = yield* objectivesOf(layer, request);
    for (const side of sides) {
      const { objective, projection } = both[side];
      const plan = planOf(request, index, side, objective);
      const baseless = yield* baselessFactors(objective, plan, run);
      if (storedWhole(layer, side, ropeMode)) {
        // Their cache takes the same whatever their rank: nothing is left out.
        const kept = { factors: baseless, ranks: Array<number>(objective.heads).fill(objective.width) };
        const record = finished[index] as Record<Side, FinishedSide | undefined>;
        record[side] = yield* finishSide(objective, projection, plan, lesserError(undefined, kept), run);
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
  const chosen = sharers.map((sharer, index) => ({ sharer, choice: choices[index] as Choice }));
  for (const [index, layer] of layers.entries()) {
    const own = chosen.filter(({ sharer }) => sharer.layer === index);
    const objectives = Object.fromEntries(own.map(({ sharer }) => [sharer.side, sharer.objective]));
    // Layer by layer, as only their objectives were kept.
    const projections = yield* projectionsOf(layer, objectives, request);
    const record = finished[index] as Record<Side, FinishedSide | undefined>;
    for (const { sharer, choice } of own) {
      const { side, objective, plan } = sharer;
      const ways = yield* waysOfChoice(sharer, choice, run);
      record[side] = yield* finishSide(objective, projections[side] as Projection, plan, ways, run);
    }
  }
  return finished as Sides<FinishedSide>[];
}

/** The way a budget has chosen, fitted at its ranks, and the other at the same memory. */
function* waysOfChoice(
  { objective, plan, baseless, based }: Sharer,
  { way, ranks }: Choice,
  run: FitRequest['run'],
): Steps<Ways> {
  if (way === 1) return yield* fitRanks(objective, plan, ranks, run);
  const room = storedComponents(0, ranks) - objective.width;
  const other =
    based === undefined || room < 0 ? undefined : { factors: based, ranks: spread(objective, based, room).ranks };
  return lesserError(other, { factors: baseless, ranks });
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
