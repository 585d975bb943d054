/** The commands `compare` and `analyze`: what they do, one step after another. */
import os from 'node:os';

import type { Progress } from '../bench';
import type { Inputs } from '../inputs';
import { Load } from '../load';
import { provenance } from '../provenance';
import { mapsOf } from './maps';
import { type Method, settingsOf } from './methods';
import type { AnalyzeReport, AttentionMaps, CompareReport, InputFacts, Spectra } from './results';
import { runLengths, runSettings } from './run';
import { spectraOf } from './spectra';

export interface CompareRequest {
  readonly inputs: Inputs;
  readonly facts: InputFacts;
  readonly methods: readonly Method[];
  /** Ascending, none above the inputs' length. */
  readonly lengths: readonly number[];
  readonly rounds: number;
  readonly threads: number;
}

/** Singular values of a head that a comparison looks at; more of them take longer than all the rest. */
const spectrumCount = 128;

/** Load of others from which times mean little, in cores. */
const busyCores = 0.15;

/** Lengths by halves, down to a sixteenth: where slopes can be seen. */
export function usualLengths(length: number): number[] {
  const halves = [16, 8, 4, 2, 1].map((part) => Math.round(length / part));
  return [...new Set(halves)].filter((part) => part >= Math.min(64, length));
}

export async function runCompare(
  { inputs, facts, methods, lengths, rounds, threads }: CompareRequest,
  progress: Progress,
): Promise<{ report: CompareReport; maps: AttentionMaps }> {
  const loadAverage = os.loadavg();
  const load = new Load();
  const settings = methods.reduce((sum, method) => sum + settingsOf(method, facts.length).length, 0);
  progress.start(settings + rounds + lengths.length * (methods.length + rounds) + 2);
  const onStep = (what: string) => {
    progress.show(what);
    progress.step();
  };
  try {
    const options = { methods, rounds, threads, onStep };
    const { exact, runs, leftOut } = await runSettings(inputs, options);
    const series = await runLengths(inputs, lengths, options);
    const busy = load.others();
    onStep('singular values');
    const spectra = await spectraOf(inputs, spectrumCount, threads);
    onStep('attention maps');
    const maps = await mapsOf(inputs, typicalHead(spectra), methods, threads);
    const report: CompareReport = {
      ...provenance(loadAverage),
      threads,
      input: facts,
      rounds,
      exact: { time: exact },
      runs,
      notes: notesOf(methods),
      leftOut,
      lengths: series,
      spectra,
      warnings: busy > busyCores ? [`other processes used ${busy.toFixed(1)} cores meanwhile`] : [],
    };
    return { report, maps };
  } finally {
    progress.stop();
  }
}

/** Every note once, with the names of all methods it is about. */
function notesOf(methods: readonly Method[]): CompareReport['notes'] {
  const names = new Map<string, string[]>();
  for (const { name, note } of methods) if (note !== undefined) names.set(note, [...(names.get(note) ?? []), name]);
  return [...names].map(([note, about]) => ({ name: about.join(', '), note }));
}

/** The head whose stable rank is the median: neither a single pattern nor nothing but noise. */
function typicalHead({ heads }: Spectra): number {
  const sorted = heads.toSorted((a, b) => a.metrics.stableRank - b.metrics.stableRank);
  return sorted[(sorted.length - 1) >> 1]?.head ?? 0;
}

export async function runAnalyze(
  inputs: Pick<Inputs, 'q' | 'k'>,
  input: InputFacts,
  count: number,
  threads: number,
): Promise<AnalyzeReport> {
  const loadAverage = os.loadavg();
  return { ...provenance(loadAverage), threads, input, spectra: await spectraOf(inputs, count, threads) };
}
