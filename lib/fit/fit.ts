import { runStepsAsync, runStepsSync, type Steps } from '../steps';
import type { DataType, Tensor } from '../tensor';
import type { AttentionWeights, LrkvWeights } from '../weights';
import { fitBudget } from './budget';
import { objectivesOf, planOf, type Sides } from './objectives';
import { checkFit, type FitLayer, type FitOptions, type FitRequest, readFitOptions } from './options';
import { type FinishedSide, fullBytes, type LrkvReport, lrkvBytes, notesOf, reportOf } from './report';
import {
  type ConvertedParts,
  checkTensors,
  type LayerSource,
  type Side,
  sourcesOf,
  type UnchangedNumbers,
} from './source';
import { finishSide, fitEnergy, fitRanks } from './ways';

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
 * queries and keys are taken for constant, equal to their root mean square, and gains for applied, before or after the
 * rotation as they are; ranks that save no memory are told of in the report's notes. `budget` makes layers and sides
 * comparable by the squared relative error of each side (times its `sensitivity`), and leaves no more of it than uniform ranks
 * of the same memory. It keeps a matrix of (kvHeads·headDim)² float64 for every side of every layer, and of up to four fits of
 * each 3·kvHeads·headDim²; the other rules go layer by layer.
 *
 * @param weights one layer or several; matrices `[in, out]`, of any element types
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT (also for numbers that are not finite, and a
 *   budget below the least there is), ERR_UNSUPPORTED for gains of QK-norm that `lrkvLayer` refuses, ERR_DEVICE, ERR_MEMORY,
 *   ERR_ABORTED
 */
export async function fitLrkv(
  weights: AttentionWeights | readonly AttentionWeights[],
  options: FitOptions,
): Promise<LrkvFit> {
  return await runStepsAsync(fitLrkv, fitWeights(weights, options));
}

/** {@link fitLrkv} on the calling thread. */
export function fitLrkvSync(weights: AttentionWeights | readonly AttentionWeights[], options: FitOptions): LrkvFit {
  return runStepsSync(fitLrkvSync, fitWeights(weights, options));
}

function* fitWeights(given: unknown, options: FitOptions): Steps<LrkvFit> {
  const copy = readFitOptions(options);
  const sources = sourcesOf(given, copy.calibration);
  const request = checkFit(sources, copy);
  for (const source of sources) checkTensors(source, yield* source.load());
  return yield* fitLayers(sources, request);
}

/** Layers that are converted, without what their sources do not keep. */
export interface LayersFit<Kept> {
  readonly layers: (Kept & ConvertedParts)[];
  readonly report: LrkvReport;
}

/** A fit of layers wherever they come from: each is loaded when it is needed, and no two are held at once. */
export function* fitLayers<Kept extends UnchangedNumbers>(
  sources: readonly LayerSource<Kept>[],
  request: FitRequest,
): Steps<LayersFit<Kept>> {
  const { layers, rule } = request;
  const finished: Sides<FinishedSide>[] = [];
  if (rule.kind === 'budget') finished.push(...(yield* fitBudget(request, rule)));
  else {
    for (const [index, layer] of layers.entries()) {
      const both = yield* objectivesOf(layer, request);
      const done = function* (side: Side): Steps<FinishedSide> {
        const { objective, projection } = both[side];
        const plan = planOf(request, index, side, objective);
        const found =
          rule.kind === 'energy'
            ? yield* fitEnergy(objective, plan, rule.energy, request.run)
            : yield* fitRanks(objective, plan, rule.of(index, side), request.run);
        return yield* finishSide(objective, projection, plan, found, request.run);
      };
      finished.push({ key: yield* done('key'), value: yield* done('value') });
    }
  }
  const { parts, report } = assemble(request, finished, rule.kind === 'budget' ? rule.type : 'float32');
  return { layers: parts.map((part, index) => ({ ...(sources[index] as LayerSource<Kept>).kept, ...part })), report };
}

function assemble(
  { layers, ropeMode, type: weightType }: FitRequest,
  finished: readonly Sides<FinishedSide>[],
  type: DataType,
): { readonly parts: ConvertedParts[]; readonly report: LrkvReport } {
  let [stored, factored, full] = [0, 0, 0];
  const parts: ConvertedParts[] = [];
  const reports = layers.map((layer, index) => {
    const sides = finished[index] as Sides<FinishedSide>;
    const ranksOf = ({ fitted, ranks }: FinishedSide) => ({ baseDim: fitted.base.dims[1] as number, ranks });
    const bytes = lrkvBytes(layer, { key: ranksOf(sides.key), value: ranksOf(sides.value) }, ropeMode, type);
    const whole = fullBytes(layer, type);
    [stored, factored, full] = [stored + bytes.stored, factored + bytes.factored, full + whole];
    parts.push(partsOf(layer, sides, ropeMode));
    return {
      key: reportOf(sides.key),
      value: reportOf(sides.value),
      cacheRatio: bytes.stored / whole,
      factoredRatio: bytes.factored / whole,
      notes: notesOf(layer, sides.key, ropeMode),
    };
  });
  return {
    parts,
    report: {
      layers: reports,
      cacheRatio: stored / full,
      factoredRatio: factored / full,
      calibrated: layers.every(({ calibrated }) => calibrated),
      type,
      weightType,
    },
  };
}

function partsOf(
  { biased, rope }: FitLayer,
  { key, value }: Sides<FinishedSide>,
  ropeMode: FitRequest['ropeMode'],
): ConvertedParts {
  const biasOf = (name: string, bias: Tensor, side: Side): Record<string, Tensor> =>
    !biased[side] || bias.dims[0] === 0 ? {} : { [name]: bias };
  return {
    keyBase: key.fitted.base,
    keyDown: key.fitted.down,
    keyUp: key.fitted.up,
    ...(key.fitted.gauge === null ? {} : { keyGauge: key.fitted.gauge }),
    keyRanks: [...key.ranks],
    ...biasOf('keyBaseBias', key.fitted.baseBias, 'key'),
    ...biasOf('keyDownBias', key.fitted.downBias, 'key'),
    valueBase: value.fitted.base,
    valueDown: value.fitted.down,
    valueUp: value.fitted.up,
    ...(value.fitted.gauge === null ? {} : { valueGauge: value.fitted.gauge }),
    valueRanks: [...value.ranks],
    ...biasOf('valueBaseBias', value.fitted.baseBias, 'value'),
    ...biasOf('valueDownBias', value.fitted.downBias, 'value'),
    ...(rope === null ? {} : { ropeMode }),
  };
}
