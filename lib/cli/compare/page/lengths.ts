/** Time against length: what grows with the square and what does not. */

import { timeText, timeTick, wholeText } from '../../numbers';
import { type Axis, axes, chart, type D3, type Frame, logDomain } from '../../page/axes';
import { type Identities, legend } from '../../page/identity';
import { type Markup, tag } from '../../page/markup';
import { type LengthSeries, label } from '../results';

export function lengthsChart(d3: D3, series: readonly LengthSeries[], identities: Identities): Markup[] {
  const points = series.flatMap((one) => one.points);
  const lengths = [...new Set(points.map(({ length }) => length))].sort((a, b) => a - b);
  const draw = (frame: Frame): Markup[] => {
    const { width, height, left, right, top, bottom } = frame;
    const scale = d3.scaleLog(logDomain(lengths, 1.08), [left, width - right]);
    // Only what was measured has a number.
    const x: Axis = {
      scale: Object.assign(scale.copy(), { ticks: () => lengths }),
      title: 'length (positions)',
      format: wholeText,
      log: false,
    };
    const y: Axis = {
      scale: d3.scaleLog(logDomain(points.map(({ ms }) => ms)), [height - bottom, top]),
      title: 'time a call',
      format: timeTick,
      log: true,
    };
    return [axes(frame, x, y), ...series.map((one) => line(d3, one, x, y, identities))];
  };
  const entries = series.map((one) => ({
    mark: identities.symbol(one.method, 9),
    class: identities.classOf(one.method),
    text: label(one) + (one.slope === undefined ? '' : `: ∝ n^${one.slope.toFixed(2)}`),
  }));
  return [legend(entries), ...chart('lengths', 'Time against length of all methods', 340, draw)];
}

function line(d3: D3, series: LengthSeries, x: Axis, y: Axis, identities: Identities): Markup {
  const corners = series.points.map(({ length, ms }): [number, number] => [x.scale(length), y.scale(ms)]);
  return tag(
    'g',
    { class: identities.classOf(series.method) },
    tag('path', { class: 'line', d: d3.line()(corners) ?? '' }),
    series.points.map(({ length, ms }, index) => {
      const [left, top] = corners[index] as [number, number];
      return tag(
        'g',
        { class: 'mark', transform: `translate(${left.toFixed(1)} ${top.toFixed(1)})` },
        identities.symbol(series.method, 7),
        tag('title', {}, `${label(series)}\n${wholeText(length)} positions: ${timeText(ms)}`),
      );
    }),
  );
}
