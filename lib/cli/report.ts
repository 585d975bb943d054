/** Turns results into tables for people. */
import Table from 'cli-table3';

import type { BenchReport } from './bench';
import type { CaseResult, Ratio, Row } from './measured';

/** A frame that survives a log file: no colours, lines only under the head. */
const plain = {
  chars: {
    top: '',
    'top-mid': '',
    'top-left': '',
    'top-right': '',
    bottom: '',
    'bottom-mid': '',
    'bottom-left': '',
    'bottom-right': '',
    left: '',
    'left-mid': '',
    mid: '',
    'mid-mid': '',
    right: '',
    'right-mid': '',
    middle: '  ',
  },
  style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
};

/** A plain table; columns named in `right` hold numbers. */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  right: readonly string[] = [],
): string {
  const result = new Table({
    ...plain,
    head: [...head],
    colAligns: head.map((name) => (right.includes(name) ? 'right' : 'left')),
  });
  for (const row of rows) result.push([...row]);
  return result
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');
}

/** The whole report as text. */
export function benchText(report: BenchReport): string {
  return [headText(report), ...suitesOf(report.cases).map(suiteText), footText(report)].join('\n\n');
}

function headText({ package: own, peer, node, machine, threads, isa, runs }: BenchReport): string {
  const load = machine.loadAverage.map((value) => value.toFixed(2)).join(' ');
  const lines = [
    `lowrank-attention ${own.version} (${own.build.type}, ${own.build.compiler})` +
      `${peer === undefined ? '' : ` against ${peer.name} ${peer.version}`}, Node.js ${node}`,
    `${machine.cpu}, ${machine.cores} cores, ${machine.memoryGiB.toFixed(0)} GiB, ${machine.platform}, load ${load}`,
    `${threads} ${threads === 1 ? 'thread' : 'threads'}${isa === undefined ? '' : `, ${isa}`}; ` +
      `medians of up to ${runs} rounds in turn; every answer was checked first`,
  ];
  const best = Object.entries(machine.matmulGflops).sort((a, b) => b[1] - a[1])[0];
  if (best !== undefined) {
    lines.push(
      `best matrix product ${best[1].toFixed(0)} GFLOP/s (${best[0]}), memory read ${machine.readGbs.toFixed(1)} GB/s`,
    );
  }
  return lines.join('\n');
}

function suitesOf(cases: readonly CaseResult[]): CaseResult[][] {
  return [...new Set(cases.map(({ suite }) => suite))].map((name) => cases.filter(({ suite }) => suite === name));
}

const columns = [
  'ms',
  'min',
  'max',
  'GFLOP/s',
  'of matmul',
  'GB/s',
  'of read',
  'cache MiB',
  'time/byte',
  'error',
  'times ours',
];

function suiteText(results: readonly CaseResult[]): string {
  const rows = results.flatMap((result) => result.rows.map((row, index) => cells(result, row, index === 0)));
  const head = ['case', 'who', ...columns];
  // A column in which no row of this suite has anything says nothing.
  const used = head.map((_, column) => rows.some((row) => row[column] !== ''));
  const kept = <T>(items: readonly T[]) => items.filter((_, column) => used[column]);
  const best = results.filter(({ bestPeer }) => bestPeer !== undefined).map(bestText);
  const notes = results.flatMap(({ name, notes }) => notes.map((note) => `${name}: ${note}`));
  const hasYardstick = results.some(({ rows }) => rows.some(({ timePerByte }) => timePerByte !== undefined));
  const meanings = hasYardstick ? [timePerByteText] : [];
  return [`${results[0]?.suite}`, table(kept(head), rows.map(kept), columns), ...meanings, ...best, ...notes].join(
    '\n',
  );
}

const timePerByteText =
  'time/byte: time against that of whole keys and values of all heads, divided by the same of bytes read; 1 is what bytes bring';

function cells({ name, ratios }: CaseResult, row: Row, first: boolean): string[] {
  const ratio = ratios.find(({ to }) => to === row.name);
  const show = row.unit === 'ms' ? time : (mib: number) => `${mib.toFixed(1)} MiB`;
  const percent = (share?: number) => (share === undefined ? '' : `${(100 * share).toFixed(0)} %`);
  const { median, min, max } = row.value;
  return [
    first ? name : '',
    row.name,
    show(median),
    show(min),
    show(max),
    row.gflops?.toFixed(row.gflops < 10 ? 2 : 0) ?? '',
    percent(row.matmulShare),
    row.gbs?.toFixed(1) ?? '',
    percent(row.readShare),
    row.cacheMib?.toFixed(1) ?? '',
    row.timePerByte === undefined ? '' : factorText(row.timePerByte),
    row.error?.toExponential(0) ?? '',
    ratio === undefined ? '' : factorText(ratio.value.median),
  ];
}

function bestText({ name, bestPeer }: CaseResult): string {
  const { to, value } = bestPeer as Ratio;
  return `${name}: ${factorText(value.median)} against the best, ${to} (${factorText(value.min)} to ${factorText(value.max)})`;
}

const factorText = (factor: number): string => `${factor.toFixed(2)}×`;

/** Milliseconds with three significant digits. */
function time(ms: number): string {
  if (ms >= 100) return ms.toFixed(0);
  return ms >= 10 ? ms.toFixed(1) : ms >= 1 ? ms.toFixed(2) : ms.toFixed(4);
}

function footText({ warnings }: BenchReport): string {
  if (warnings.length === 0) return 'Ratios above 1: ours is faster, or smaller, by that factor.';
  return warnings.map((warning) => `warning: ${warning}`).join('\n');
}
