/** Results as tables for people. */

import { bytesText, factorText, percentText, timeText, wholeText } from '../numbers';
import { table } from '../report';
import {
  type AnalyzeReport,
  type CompareReport,
  type InputFacts,
  inputText,
  label,
  metrics,
  metricTexts,
  type Run,
  type Spectra,
  spectraNote,
  totalMs,
} from './results';

/** All runs, exact attention first. */
export function runsTable({ exact, runs }: Pick<CompareReport, 'exact' | 'runs'>): string {
  const head = ['method', 'setting', 'time', 'factors given', 'speed', 'error', 'largest', 'memory', ''];
  const exactCells = ['exact', '', timeText(exact.time.median), '', factorText(1), '0', '0', '0', ''];
  const rows = [exactCells, ...runs.map(runCells)];
  return table(head, rows, head.slice(2));
}

export function compareText(report: CompareReport): string {
  const { notes, leftOut, lengths, rounds, spectra, threads, warnings } = report;
  return [
    headText(report),
    `${runsTable(report)}\n` +
      `Medians of ${rounds} rounds in turn on ${threads} ${threads === 1 ? 'thread' : 'threads'}. ` +
      'Error: Frobenius norm of the difference over that of exact attention’s output;\n' +
      'largest: of any element. Memory: beside inputs and output, by formula. *: best for its time.',
    lengthsText(lengths),
    spectraText(spectra),
    [
      ...notes.map(({ name, note }) => `${name}: ${note}`),
      ...leftOut.map((one) => `left out: ${label(one)}: ${one.reason}`),
      ...warnings.map((warning) => `warning: ${warning}`),
    ].join('\n'),
  ]
    .filter((part) => part !== '')
    .join('\n\n');
}

export function analyzeText({ spectra, ...report }: AnalyzeReport): string {
  return [headText(report), spectraText(spectra)].join('\n\n');
}

function headText({ input }: { readonly input: InputFacts }): string {
  return [inputText(input), ...input.notes].join('\n');
}

function runCells(run: Run): string[] {
  const { name, setting, preparationMs, speedup, error, extraBytes, onFront } = run;
  return [
    name,
    setting?.text ?? '',
    timeText(totalMs(run)),
    preparationMs === undefined ? '' : timeText(run.time.median),
    factorText(speedup),
    percentText(error.relativeFrobenius),
    error.maxAbs.toPrecision(2),
    bytesText(extraBytes),
    onFront ? '*' : '',
  ];
}

function lengthsText(series: CompareReport['lengths']): string {
  const lengths = [...new Set(series.flatMap(({ points }) => points.map(({ length }) => length)))];
  if (lengths.length === 0) return '';
  const head = ['time by length', ...lengths.map(wholeText), 'grows as'];
  const rows = series.map((one) => [
    label(one),
    ...lengths.map((length) => {
      const point = one.points.find((other) => other.length === length);
      return point === undefined ? '' : timeText(point.ms);
    }),
    one.slope === undefined ? '' : `n^${one.slope.toFixed(2)}`,
  ]);
  return table(head, rows, head.slice(1));
}

/** Heads down, variants of effective rank across. */
function spectraText(spectra: Spectra): string {
  const { heads, length, count } = spectra;
  const head = ['head', 'largest σ', ...metrics.map(({ title }) => title)];
  const rows = heads.map((one) => [
    String(one.head),
    (one.values[0] as number).toPrecision(3),
    ...metricTexts(one, count === length),
  ]);
  return `${table(head, rows, head.slice(1))}\n${spectraNote(spectra)}`;
}
