/** The command `convert`: what it does, one step after another. */
import { access, constants, stat } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';

import { type FitOptions, fitLrkv } from '../../index';
import { type ModelOptions, readModel } from '../../model/read';
import { writeLrkvWeights } from '../../model/write';
import { Usage } from '../arguments';
import type { Progress } from '../bench';
import { percentText } from '../numbers';
import { provenance } from '../provenance';
import { readCalibration } from './calibration';
import { type ConvertReport, resultsOf } from './results';

/** How ranks are found. */
export type RankRule = Pick<FitOptions, 'rank' | 'budget'>;

export interface ConvertRequest {
  readonly source: string;
  readonly output: string;
  /** Replace an output that is there. */
  readonly force: boolean;
  readonly rule: RankRule;
  readonly fit: Pick<FitOptions, 'gauge' | 'ropeMode' | 'iterations'>;
  /** File of hidden states. */
  readonly calibration?: string;
  readonly model: ModelOptions;
  readonly threads: number;
}

/** @throws Usage, AttentionError, errors of the file system */
export async function runConvert(
  { source, output, force, rule, fit, calibration, model, threads }: ConvertRequest,
  progress: Progress,
): Promise<ConvertReport> {
  const loadAverage = os.loadavg();
  await checkOutput(output, force);
  const { layers: named, weights } = await readModel(source, model);
  const hidden = calibration === undefined ? undefined : await readCalibration(calibration, named);
  progress.start(2 * named.length + 1);
  try {
    const result = await fitLrkv(weights, {
      ...rule,
      ...fit,
      ...(hidden === undefined ? {} : { calibration: hidden }),
      threads,
      onProgress: watch(
        progress,
        named.map(({ index }) => index),
      ),
    });
    progress.show('writing');
    await writeLrkvWeights(output, result.layers, {
      source,
      ...(model.stack === undefined ? {} : { stack: model.stack }),
    });
    const [first] = weights as [(typeof weights)[number]];
    const { layers: _, ...whole } = result.report;
    const rotated = weights.some(({ rope }) => rope !== undefined);
    return {
      ...provenance(loadAverage),
      ...whole,
      threads,
      model: {
        source,
        modelDim: first.query.dims[0] as number,
        heads: first.heads,
        kvHeads: first.kvHeads ?? first.heads,
        rotated,
      },
      output,
      rule: ruleText(rule),
      ...(hidden === undefined ? {} : { tokens: Math.min(...hidden.map(({ dims }) => dims[0] as number)) }),
      ...resultsOf(result, named),
      notes: notesOf(whole, rotated && fit.ropeMode !== 'intertwined'),
    };
  } finally {
    progress.stop();
  }
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

function notesOf({ calibrated }: Pick<ConvertReport, 'calibrated'>, keysWhole: boolean): string[] {
  return [
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
    'Nothing was trained. What a model makes of these errors only its own evaluation can tell.',
  ];
}
