/** The page: one file, no script, nothing fetched; legible in light and in dark, wide and narrow. */
import type { Provenance } from '../../provenance';
import { bytesText, factorText, percentText, timeText } from '../numbers';
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
import { loadD3 } from './axes';
import { Identities } from './identity';
import { lengthsChart } from './lengths';
import { mapsSection } from './maps';
import { Markup, tag } from './markup';
import { spectraTable } from './spectra-table';
import { spectrumChart } from './spectrum';
import { style } from './style';
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
  const section = (title: string, note: string, ...content: readonly (Markup | readonly Markup[])[]) =>
    tag('section', {}, tag('h2', {}, title), tag('p', { class: 'note' }, note), ...content);
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
    tag(
      'section',
      { class: 'whole' },
      tag('h2', {}, 'Spectrum'),
      tag('p', { class: 'note' }, `${spectraNote(report.spectra)} Both axes logarithmic.`),
      spectrumChart(d3, report.spectra),
    ),
    tag('section', { class: 'whole' }, tag('h2', {}, 'Effective ranks'), spectraTable(report.spectra)),
  ]);
}

function pageOf(title: string, report: Facts, content: readonly Markup[]): string {
  const { input } = report;
  const page = tag(
    'html',
    { lang: 'en' },
    tag(
      'head',
      {},
      tag('meta', { charset: 'utf-8' }),
      tag('meta', { name: 'viewport', content: 'width=device-width, initial-scale=1' }),
      tag('title', {}, `${title}: ${input.source}`),
      tag('style', {}, new Markup(style)),
    ),
    tag(
      'body',
      {},
      tag(
        'main',
        {},
        tag('h1', {}, title),
        tag('p', { class: 'quiet' }, inputText(input)),
        input.notes.map((note) => tag('p', { class: 'note' }, note)),
        ...content,
        provenance(report),
      ),
    ),
  );
  return `<!doctype html>\n${page.text}\n`;
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
    return tag(
      'tr',
      { class: run.onFront ? 'best' : undefined },
      cells.map((cell) => tag('td', {}, cell)),
    );
  };
  const { median, min, max } = exact.time;
  const exactCells = ['exact', '', timeText(median), timeText(min), timeText(max), '', factorText(1), '0', '0', '0'];
  return tag(
    'section',
    { class: 'whole' },
    tag('h2', {}, 'All runs'),
    tag(
      'p',
      { class: 'note' },
      `Medians of ${rounds} rounds in turn, and the fastest and slowest round. Error: ‖output − exact‖ / ‖exact‖, Frobenius; ` +
        'largest error: of any element. Speed: exact attention’s time over this one, preparation included. Memory: beside ' +
        'inputs and output, by formula. ■ best for its time.',
    ),
    tag(
      'div',
      { class: 'scroll' },
      tag(
        'table',
        { id: 'runs' },
        tag(
          'thead',
          {},
          tag(
            'tr',
            {},
            head.map((name) => tag('th', {}, name)),
          ),
        ),
        tag(
          'tbody',
          {},
          tag(
            'tr',
            {},
            exactCells.map((cell) => tag('td', {}, cell)),
          ),
          runs.map(row),
        ),
      ),
    ),
    notes.map(({ name, note }) => tag('p', { class: 'note' }, tag('b', {}, name), `: ${note}`)),
    leftOut.map((one) => tag('p', { class: 'note' }, `Left out: ${label(one)}: ${one.reason}`)),
    warnings.map((warning) => tag('p', { class: 'note' }, `Warning: ${warning}`)),
  );
}

function provenance({ date, package: own, node, machine, threads, input }: Facts) {
  const facts = {
    input: `${input.source}; values of size ${input.valueDim}`,
    package: `lowrank-attention ${own.version}, ${own.build.type} build, ${own.build.compiler}`,
    machine: `${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB.toFixed(0)} GiB, ${machine.platform}`,
    'load before': machine.loadAverage.map((load) => load.toFixed(2)).join(' '),
    threads: String(threads),
    'Node.js': node,
    date,
  };
  return tag(
    'section',
    { class: 'whole' },
    tag('h2', {}, 'Input, package and machine'),
    tag(
      'dl',
      {},
      Object.entries(facts).map(([name, value]) => [tag('dt', {}, name), tag('dd', {}, value)]),
    ),
  );
}
