/** A fit of all layers within a budget. */
import { expected, Text } from '../errors';
import type { Steps } from '../steps';
import type { Projection } from './moments';
import { objectivesOf, planOf, projectionsOf, type Sides } from './objectives';
import type { FitRequest } from './options';
import { leastComponents, type Way } from './ranks';
import { bytesOf, type FinishedSide, fixedBytes, fullBytes, storedWhole, total } from './report';
import { type Sharer, shareOut } from './share';
import { type Side, sides } from './source';
import { baselessFactors, finishSide, lesserError, type Ways } from './ways';

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

  const sharers: (Sharer & { readonly layer: number; readonly side: Side })[] = [];
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
      sharers.push({ layer: index, side, objective, plan, weight, baseless, fits: [] });
    }
  }

  const ways = yield* shareOut(sharers, components, rankStep, run);
  const found = sharers.map((sharer, index) => ({ sharer, kept: ways[index] as Ways }));
  for (const [index, layer] of layers.entries()) {
    const own = found.filter(({ sharer }) => sharer.layer === index);
    const objectives = Object.fromEntries(own.map(({ sharer }) => [sharer.side, sharer.objective]));
    // Layer by layer, as only their objectives were kept.
    const projections = yield* projectionsOf(layer, objectives, request);
    const record = finished[index] as Record<Side, FinishedSide | undefined>;
    for (const { sharer, kept } of own) {
      const { side, objective, plan } = sharer;
      record[side] = yield* finishSide(objective, projections[side] as Projection, plan, kept, run);
    }
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
