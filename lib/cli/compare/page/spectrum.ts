/** Singular values of attention matrices, and where each head's effective ranks lie. */

import { wholeText } from '../../numbers';
import { type Axis, axes, chart, type D3, type Frame } from '../../page/axes';
import { legend } from '../../page/identity';
import { type Markup, tag } from '../../page/markup';
import { evenly, lineKnob, spectrumLines } from '../../page/spectra';
import { type HeadSpectrum, metrics, type Spectra } from '../results';

/** More lines than this cannot be told apart. */
const mostHeads = 4;

/** Decades below the largest value that are shown. */
const decades = 5;

/** Variants that have a mark on the line. */
const marked = metrics.filter(({ title }) => /^effective|^90/.test(title));

/** Heads from the lowest to the highest stable rank, which takes no more than the largest value, evenly taken. */
function chosen(heads: readonly HeadSpectrum[]): HeadSpectrum[] {
  const sorted = [...heads].sort((a, b) => a.metrics.stableRank - b.metrics.stableRank);
  return evenly(sorted, mostHeads).sort((a, b) => a.head - b.head);
}

export function spectrumChart(d3: D3, spectra: Spectra): Markup[] {
  const heads = chosen(spectra.heads);
  const largest = Math.max(...heads.map(({ values }) => values[0] as number));
  const smallest = Math.min(...heads.flatMap(({ values }) => values.filter((value) => value > 0)));
  const low = Math.max(smallest, largest / 10 ** decades);
  const symbols = [d3.symbolCircle, d3.symbolDiamond, d3.symbolTriangle];
  const symbol = (index: number, size: number) =>
    tag('path', { d: d3.symbol(symbols[index] as (typeof symbols)[number], size ** 2 * 0.75)() ?? '' });
  const lines = heads.map(({ head, values, metrics: own }) => ({
    title: `head ${head}`,
    values,
    marks: marked.flatMap(({ title, of }, at) => {
      const rank = of(own);
      if (rank === undefined) return [];
      const told = `head ${head}: ${title} ${rank.toFixed(1)}`;
      return [{ symbol: symbol(at, 10), title: told, rank, value: valueAt(values, rank) }];
    }),
  }));
  const draw = (frame: Frame): Markup[] => {
    const { width, height, left, right, top, bottom } = frame;
    const x: Axis = {
      scale: d3.scaleLog([1, spectra.count], [left, width - right]),
      title: 'i, of the i-th largest singular value',
      format: wholeText,
      log: true,
    };
    const y: Axis = {
      scale: d3.scaleLog([low / 1.2, largest * 1.3], [height - bottom, top]),
      title: 'singular value σ',
      format: (value) => (value >= 1e-4 && value < 1e4 ? String(Number(value.toPrecision(2))) : value.toExponential(0)),
      log: true,
    };
    return [axes(frame, x, y), ...spectrumLines(d3, lines, [x, y], low)];
  };
  const entries = [
    ...heads.map(({ head }, index) => ({
      mark: lineKnob(),
      class: `series-${index}`,
      text: `head ${head}`,
    })),
    ...marked.map(({ title }, index) => ({ mark: symbol(index, 9), class: 'series-exact', text: title })),
  ];
  return [legend(entries), ...chart('spectrum', 'Singular values of attention matrices', 340, draw)];
}

/** The spectrum between its values, at a rank that need not be whole. */
function valueAt(values: readonly number[], rank: number): number | undefined {
  const below = values[Math.floor(rank) - 1];
  const above = values[Math.ceil(rank) - 1];
  if (below === undefined || above === undefined || below <= 0 || above <= 0) return undefined;
  return Math.exp(Math.log(below) + (rank % 1) * (Math.log(above) - Math.log(below)));
}
