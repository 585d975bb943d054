/** The pages of `compare` and `analyze`. */

import { bytesText, factorText, percentText, timeText } from '../../numbers';
import { loadD3 } from '../../page/axes';
import { documentOf, provenanceFacts, section, table, wholeSection } from '../../page/document';
import { Identities } from '../../page/identity';
import { type Markup, tag } from '../../page/markup';
import type { Provenance } from '../../provenance';
import {
  type AnalyzeReport,
  type AttentionMaps,
  type CompareReport,
  type InputFacts,
  inputText,
  label,
  type Run,
  spectraNote,
  totalMs,
} from '../results';
import { lengthsChart } from './lengths';
import { mapsSection } from './maps';
import { spectraTable } from './spectra-table';
import { spectrumChart } from './spectrum';
import { tradeoffChart } from './tradeoff';

interface Facts extends Provenance {
  readonly threads: number;
  readonly input: InputFacts;
}

/** Errors that are asked about at the top of the page. */
const questions = [0.05, 0.1, 0.25, 0.5];

export async function comparePage(report: CompareReport, maps: AttentionMaps): Promise<string> {
  const d3 = await loadD3();
  const identities = new Identities(
    d3,
    report.runs.map(({ method }) => method),
  );
  return pageOf('Exact attention and its approximations', report, [
    answers(report),
    tag(
      'div',
      { class: 'charts' },
      section(
        'Error against time',
        'To the left is faster, down is nearer to exact. Numbers are the knob’s values.',
        tradeoffChart(d3, report, identities),
      ),
      section(
        'Time against length',
        'Both axes logarithmic: a slope of 2 is quadratic, of 1 linear.',
        lengthsChart(d3, report.lengths, identities),
      ),
      section('Spectrum', `${spectraNote(report.spectra)} Both axes logarithmic.`, spectrumChart(d3, report.spectra)),
      section(
        'Effective ranks',
        'Of each head’s attention matrix, every variant by its name.',
        spectraTable(report.spectra),
      ),
    ),
    mapsSection(maps),
    runsTable(report),
  ]);
}

export async function analyzePage(report: AnalyzeReport): Promise<string> {
  const d3 = await loadD3();
  return pageOf('Spectra of attention', report, [
    wholeSection(
      'Spectrum',
      `${spectraNote(report.spectra)} Both axes logarithmic.`,
      spectrumChart(d3, report.spectra),
    ),
    wholeSection('Effective ranks', undefined, spectraTable(report.spectra)),
  ]);
}

function pageOf(title: string, report: Facts, content: readonly Markup[]): string {
  const { input, threads } = report;
  return documentOf({
    title,
    subject: input.source,
    lead: inputText(input),
    notes: input.notes,
    content,
    factsTitle: 'Input, package and machine',
    facts: { input: `${input.source}; values of size ${input.valueDim}`, ...provenanceFacts(report, threads) },
  });
}

/** For an error one could live with: what is fastest? */
function answers({ runs, exact }: CompareReport): Markup {
  return tag(
    'ul',
    { class: 'answers' },
    tag('li', {}, tag('span', { class: 'quiet' }, 'Exact attention'), tag('b', {}, timeText(exact.time.median))),
    questions.map((most) => {
      const best = runs
        .filter((run) => run.error.relativeFrobenius <= most && run.speedup > 1)
        .sort((a, b) => totalMs(a) - totalMs(b))[0];
      return tag(
        'li',
        {},
        tag('span', { class: 'quiet' }, `Error up to ${percentText(most)}`),
        tag('b', {}, best === undefined ? 'nothing faster' : `${factorText(best.speedup)} as fast`),
        best === undefined
          ? tag('span', { class: 'quiet' }, 'than exact attention')
          : `${label(best)}: ${percentText(best.error.relativeFrobenius)}`,
      );
    }),
  );
}

function runsTable({ runs, exact, rounds, notes, leftOut, warnings }: CompareReport): Markup {
  const head = [
    'method',
    'setting',
    'time',
    'fastest',
    'slowest',
    'factors given',
    'speed',
    'error',
    'largest error',
    'memory',
  ];
  const row = (run: Run) => {
    const { time, preparationMs = 0 } = run;
    const cells = [
      run.name,
      run.setting?.text ?? '',
      timeText(totalMs(run)),
      timeText(time.min + preparationMs),
      timeText(time.max + preparationMs),
      preparationMs === 0 ? '' : timeText(time.median),
      factorText(run.speedup),
      percentText(run.error.relativeFrobenius),
      run.error.maxAbs.toPrecision(2),
      bytesText(run.extraBytes),
    ];
    return { cells, class: run.onFront ? 'best' : undefined };
  };
  const { median, min, max } = exact.time;
  const exactCells = ['exact', '', timeText(median), timeText(min), timeText(max), '', factorText(1), '0', '0', '0'];
  return wholeSection(
    'All runs',
    `Medians of ${rounds} rounds in turn, and the fastest and slowest round. Error: ‖output − exact‖ / ‖exact‖, Frobenius; ` +
      'largest error: of any element. Speed: exact attention’s time over this one, preparation included. Memory: beside ' +
      'inputs and output, by formula. ■ best for its time.',
    table('runs', head, [{ cells: exactCells }, ...runs.map(row)]),
    notes.map(({ name, note }) => tag('p', { class: 'note' }, tag('b', {}, name), `: ${note}`)),
    leftOut.map((one) => tag('p', { class: 'note' }, `Left out: ${label(one)}: ${one.reason}`)),
    warnings.map((warning) => tag('p', { class: 'note' }, `Warning: ${warning}`)),
  );
}
