/** The command `convert`: what it does, one step after another. */
import { access, constants, stat } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { readable } from '../../files/safetensors-format';
import { fitLayers } from '../../fit/fit';
import { checkFit, readFitOptions } from '../../fit/options';
import type { LayerSource } from '../../fit/source';
import type { DataType, FitOptions, LrkvReport } from '../../index';
import { partOf } from '../../model/names';
import { type Model, type ModelOptions, withModel } from '../../model/read';
import { checkTarget, writeOver } from '../../model/write';
import { runStepsAsync } from '../../steps';
import { Usage } from '../arguments';
import type { Progress } from '../bench';
import { percentText } from '../numbers';
import { provenance } from '../provenance';
import { openCalibration } from './calibration';
import { layersOf } from './layers';
import { type ConvertReport, resultsOf } from './results';

/** How ranks are found. */
export type RankRule = Pick<FitOptions, 'rank' | 'budget'>;

export interface ConvertRequest {
  readonly source: string;
  readonly output: string;
  /** Replace an output that is there. */
  readonly force: boolean;
  readonly rule: RankRule;
  readonly fit: Pick<FitOptions, 'gauge' | 'ropeMode' | 'iterations' | 'type'>;
  /** File of hidden states. */
  readonly calibration?: string;
  readonly model: ModelOptions;
  readonly threads: number;
}

/**
 * @param signal stops it, and nothing is left of the output
 * @throws Usage, AttentionError, errors of the file system
 */
export async function runConvert(
  { source, output, force, rule, fit, calibration: file, model: options, threads }: ConvertRequest,
  progress: Progress,
  signal: AbortSignal,
): Promise<ConvertReport> {
  const loadAverage = os.loadavg();
  await checkOutput(output, force);
  return await withModel(source, options, async (model) => {
    const { checkpoint, layers: named } = model;
    await checkTarget(output, checkpoint);
    const calibration = file === undefined ? undefined : await openCalibration(file, named);
    progress.start(2 * named.length + 1);
    try {
      progress.show('reading');
      const layers = await layersOf(model, calibration, signal);
      const onProgress = watch(
        progress,
        named.map(({ index }) => index),
      );
      const type = fit.type ?? typeOf(model);
      const request = checkFit(layers, readFitOptions({ ...rule, ...fit, type, threads, signal, onProgress }));
      const result = await runStepsAsync(runConvert, fitLayers(layers, request));
      progress.show('writing');
      await writeOver(output, checkpoint, named, result.layers, signal);
      const { layers: _, ...whole } = result.report;
      return {
        ...provenance(loadAverage),
        ...whole,
        threads,
        model: factsOf(source, layers),
        output,
        rule: ruleText(rule),
        ...(calibration === undefined ? {} : { tokens: calibration.tokens }),
        ...resultsOf(result, named),
        notes: notesOf(result.report, layers, fit.ropeMode),
      };
    } finally {
      progress.stop();
    }
  });
}

function factsOf(source: string, layers: readonly LayerSource[]): ConvertReport['model'] {
  const { modelDim, heads, kvHeads } = (layers[0] as LayerSource).shape;
  return { source, modelDim, heads, kvHeads, rotated: layers.some(({ rope }) => rope !== null) };
}

/** The element type that the projections of keys have; float32 where layers differ. */
function typeOf({ checkpoint, layers }: Model): DataType {
  const dtypes = new Set(layers.map((layer) => checkpoint.entry(partOf(layer, 'key').name).dtype));
  const [dtype] = dtypes;
  return (dtypes.size === 1 ? readable.get(dtype as string) : undefined) ?? 'float32';
}

/** Before hours of work, not after them. */
async function checkOutput(output: string, force: boolean): Promise<void> {
  await access(path.dirname(path.resolve(output)), constants.W_OK);
  const found = await stat(output).catch(() => undefined);
  if (found?.isDirectory()) throw new Usage(`${output} is a folder`);
  if (found !== undefined && !force) throw new Usage(`${output} is there already: --force replaces it`);
}

/** A step for each side that is fitted for the first time: budgets have some fitted again, which counts no more. */
function watch(progress: Progress, indices: readonly number[]): FitOptions['onProgress'] {
  const seen = new Set<string>();
  return ({ layer, side, iteration, iterations, error }) => {
    progress.show(
      `layer ${indices[layer]}, ${side}s, iteration ${iteration} of at most ${iterations}, error ${percentText(error)}`,
    );
    const fitted = `${layer} ${side}`;
    if (!seen.has(fitted)) progress.step();
    seen.add(fitted);
  };
}

function ruleText({ rank, budget }: RankRule): string {
  if (budget !== undefined) return `ranks by a budget of ${percentText(budget as number)} of the cache`;
  return typeof rank === 'object' ? `rank ${rank.key} of keys, ${rank.value} of values` : `rank ${rank}`;
}

function notesOf(
  { calibrated, layers }: LrkvReport,
  sources: readonly LayerSource[],
  ropeMode: FitOptions['ropeMode'],
): string[] {
  const keysWhole = ropeMode !== 'intertwined' && sources.some(({ rope }) => rope !== null);
  const notes = [
    ...(calibrated
      ? []
      : [
          'Without --calibration every direction of the input counts alike, and errors are of weights: of keys and values ' +
            'on real text they may be far from that.',
        ]),
    ...(keysWhole
      ? [
          'Keys are rotated, so a cache keeps them whole, and all it saves is saved by values; --rope-mode intertwined ' +
            'stores latents of keys too.',
        ]
      : []),
    ...new Set(layers.flatMap((layer) => layer.notes)),
  ];
  return [...notes, 'Nothing was trained. What a model makes of these errors only its own evaluation can tell.'];
}
