/** Error against time: what each method gives for what it costs, and the runs that no other beats in both. */

import { bytesText, factorText, percentText, timeText, timeTick } from '../../numbers';
import { type Axis, axes, chart, type D3, type Frame, logDomain } from '../../page/axes';
import { type Identities, type LegendEntry, legend } from '../../page/identity';
import { type Label, placed } from '../../page/labels';
import { type Markup, tag } from '../../page/markup';
import { type CompareReport, label, type Run, totalMs } from '../results';

/** Lower errors than this are drawn here: a logarithmic axis has no zero. */
const least = 1e-7;

const errorOf = ({ error }: Run) => Math.max(least, error.relativeFrobenius);

export function tradeoffChart(d3: D3, report: CompareReport, identities: Identities): Markup[] {
  if (report.runs.length === 0) return [tag('p', {}, 'No method could be run: see below.')];
  const exactMs = report.exact.time.median;
  const times = report.runs.flatMap((run) => [run.time.median, totalMs(run)]);
  const xDomain = logDomain([...times, exactMs], 1.3);
  const yDomain = logDomain(report.runs.map(errorOf), 1.5);
  const draw = (frame: Frame): Markup[] => {
    const { width, height, left, right, top, bottom } = frame;
    const x: Axis = {
      scale: d3.scaleLog(xDomain, [left, width - right]),
      title: 'time a call',
      format: timeTick,
      log: true,
    };
    const y: Axis = {
      scale: d3.scaleLog(yDomain, [height - bottom, top]),
      title: 'relative error of the output',
      format: percentText,
      log: true,
    };
    const place = (run: Run) => ({ x: x.scale(totalMs(run)), y: y.scale(errorOf(run)) });
    const points = report.runs.map(place);
    const exactAt = x.scale(exactMs);
    const labels: Label[] = report.runs.flatMap((run) =>
      run.setting === undefined
        ? []
        : [{ ...place(run), text: String(run.setting.value), class: `point ${identities.classOf(run.method)}` }],
    );
    return [
      axes(frame, x, y),
      tag(
        'g',
        { class: 'exact' },
        tag('line', { x1: exactAt, x2: exactAt, y1: top, y2: height - bottom }),
        // On the side where there is room for it.
        exactAt < (left + width) / 2
          ? tag('text', { x: exactAt + 5, y: top + 12 }, `exact: ${timeText(exactMs)}`)
          : tag('text', { x: exactAt - 5, y: top + 12, 'text-anchor': 'end' }, `exact: ${timeText(exactMs)}`),
      ),
      front(d3, report, x, y, frame),
      ...methodsOf(report.runs).map((runs) => knobLine(d3, runs, place, identities)),
      ...report.runs.flatMap((run) => given(run, x, y, identities)),
      ...report.runs.map((run) => point(run, place(run), identities)),
      tag(
        'g',
        {},
        placed(labels, points, {
          x: left,
          y: top + 16,
          width: width - left - right,
          height: height - top - bottom - 16,
        }),
      ),
    ];
  };
  const named = methodsOf(report.runs).map(([run]) => run as Run);
  const entries: LegendEntry[] = named.map(({ method, name, setting }) => ({
    mark: identities.symbol(method, 9),
    class: identities.classOf(method),
    text: setting === undefined ? name : `${name} (${setting.knob})`,
  }));
  const bar = tag('line', { x1: -8, x2: 8, y1: 0, y2: 0 });
  entries.push({ mark: bar, class: 'front', text: 'best for its time' });
  const prepared = named.find(({ preparationMs }) => preparationMs !== undefined);
  if (prepared !== undefined) {
    const mark = identities.symbol(prepared.method, 9);
    entries.push({
      mark,
      class: `hollow ${identities.classOf(prepared.method)}`,
      text: `${prepared.name}, its factors given`,
    });
  }
  return [legend(entries), ...chart('tradeoff', 'Error against time of all runs', 380, draw)];
}

/** Runs by method, in the order of the knob. */
function methodsOf(runs: readonly Run[]): Run[][] {
  return [...new Set(runs.map(({ method }) => method))].map((method) => runs.filter((run) => run.method === method));
}

/** The best error to be had within each time: flat until the next run of the front, and zero from exact attention on. */
function front(d3: D3, { runs, exact }: CompareReport, x: Axis, y: Axis, { height, bottom }: Frame): Markup {
  const best = runs.filter(({ onFront }) => onFront).sort((a, b) => totalMs(a) - totalMs(b));
  const exactAt = x.scale(exact.time.median);
  const corners: [number, number][] = best.map((run) => [x.scale(totalMs(run)), y.scale(errorOf(run))]);
  const last = corners.at(-1);
  if (last !== undefined) corners.push([exactAt, last[1]], [exactAt, height - bottom]);
  return tag('path', { class: 'front', d: d3.line().curve(d3.curveStepAfter)(corners) ?? '' });
}

function knobLine(
  d3: D3,
  runs: readonly Run[],
  place: (run: Run) => { x: number; y: number },
  identities: Identities,
): Markup {
  const corners = runs.map(place).map(({ x, y }): [number, number] => [x, y]);
  return tag('path', {
    class: `knob ${identities.classOf((runs[0] as Run).method)}`,
    d: d3.line()(corners) ?? '',
  });
}

/** The call alone, where something is prepared before it. */
function given(run: Run, x: Axis, y: Axis, identities: Identities): Markup[] {
  if (run.preparationMs === undefined) return [];
  const at = `translate(${x.scale(run.time.median).toFixed(1)} ${y.scale(errorOf(run)).toFixed(1)})`;
  return [
    tag(
      'g',
      { class: `hollow ${identities.classOf(run.method)}`, transform: at },
      identities.symbol(run.method, 8),
      tag('title', {}, `${label(run)}, factors given\n${timeText(run.time.median)}`),
    ),
  ];
}

function point(run: Run, { x, y }: { x: number; y: number }, identities: Identities): Markup {
  const told = [
    label(run),
    `${timeText(totalMs(run))} (${factorText(run.speedup)} as fast as exact)`,
    `relative error ${percentText(run.error.relativeFrobenius)}, largest ${run.error.maxAbs.toPrecision(2)}`,
    `${bytesText(run.extraBytes)} beside inputs and output`,
  ];
  return tag(
    'g',
    {
      class: `mark ${identities.classOf(run.method)}`,
      transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
    },
    identities.symbol(run.method, run.onFront ? 11 : 8),
    tag('title', {}, told.join('\n')),
  );
}
