/** Singular values that ranks cut off: how fast they fall says what a rank more would buy. */
import type { Side } from '../../../fit/source';
import { percentText } from '../../numbers';
import { type Axis, axes, chart, type D3, type Frame } from '../../page/axes';
import { legend } from '../../page/identity';
import { type Markup, tag } from '../../page/markup';
import { evenly, lineKnob, spectrumLines } from '../../page/spectra';
import { type LayerResult, type SideResult, sideNames } from '../results';

/** More lines than this cannot be told apart. */
const mostLayers = 4;

/** Decades below the largest value that are shown. */
const decades = 4;

/** The i-th singular values of a side's heads as shares of the heads' norms, their root mean square. */
export function meanSpectrum({ heads, width }: SideResult): number[] {
  return Array.from({ length: width }, (_, i) => {
    const squares = heads.map(({ spectrum, energy }) => (spectrum[i] as number) ** 2 / (energy || 1));
    return Math.sqrt(squares.reduce((sum, square) => sum + square, 0) / heads.length);
  });
}

export function spectraChart(d3: D3, layers: readonly LayerResult[], side: Side): Markup[] {
  const knob = (): Markup => tag('path', { d: d3.symbol(d3.symbolCircle, 70)() ?? '' });
  const lines = evenly(layers, mostLayers).map((layer) => {
    const values = meanSpectrum(layer[side]);
    const mean = layer[side].heads.reduce((sum, { rank }) => sum + rank, 0) / layer[side].heads.length;
    const rank = Math.round(mean);
    const title = `layer ${layer.index}: rank ${mean.toFixed(1)} in the mean`;
    const marks = [{ symbol: knob(), title, rank, value: values[rank - 1] }];
    return { title: `layer ${layer.index}`, values, marks };
  });
  const all = lines.flatMap(({ values }) => values).filter((value) => value > 0);
  if (all.length === 0) return [tag('p', {}, 'Nothing is left beside the base.')];
  const largest = Math.max(...all);
  const low = Math.max(Math.min(...all), largest / 10 ** decades);
  const widest = Math.max(...lines.map(({ values }) => values.length));
  const draw = (frame: Frame): Markup[] => {
    const { width, height, left, right, top, bottom } = frame;
    const x: Axis = {
      scale: d3.scaleLinear([1, Math.max(2, widest)], [left, width - right - 8]),
      title: 'i, of the i-th largest singular value',
      format: String,
      log: false,
    };
    const y: Axis = {
      scale: d3.scaleLog([low / 1.3, largest * 1.3], [height - bottom, top]),
      title: 'σᵢ, as a share of the head’s norm',
      format: percentText,
      log: true,
    };
    return [axes(frame, x, y), ...spectrumLines(d3, lines, [x, y], low)];
  };
  const entries = [
    ...lines.map(({ title }, at) => ({ mark: lineKnob(), class: `series-${at}`, text: title })),
    { mark: knob(), class: 'series-exact', text: 'mean rank kept' },
  ];
  return [legend(entries), ...chart(`spectra-${side}`, `Singular values of ${sideNames[side]}`, 320, draw)];
}
