/** Error against memory, of keys and of values, and where this conversion lies. */
import type { Side } from '../../../fit/source';
import { percentText } from '../../numbers';
import { type Axis, axes, chart, type D3, type Frame } from '../../page/axes';
import { Identities, type LegendEntry, legend } from '../../page/identity';
import { type Markup, tag } from '../../page/markup';
import { lineKnob } from '../../page/spectra';
import { type ConvertReport, sideNames } from '../results';

const sides: readonly Side[] = ['key', 'value'];

export function curveChart(d3: D3, { curves, totals }: ConvertReport): Markup[] {
  const identities = new Identities(d3, sides);
  const errors = sides.flatMap((side) => [
    ...curves[side].map(({ error }) => error),
    totals[side].predictedError,
    totals[side].measuredError,
  ]);
  const most = Math.max(1, ...sides.flatMap((side) => [totals[side].share, ...curves[side].map(({ share }) => share)]));
  const draw = (frame: Frame): Markup[] => {
    const { width, height, left, right, top, bottom } = frame;
    const x: Axis = {
      scale: d3.scaleLinear([0, most], [left, width - right - 8]),
      title: 'base and latents, of whole keys or values',
      format: percentText,
      log: false,
    };
    const y: Axis = {
      scale: d3.scaleLinear([0, Math.max(0.01, ...errors) * 1.08], [height - bottom, top]),
      title: 'relative error, all layers (root mean square)',
      format: percentText,
      log: false,
    };
    const point = (side: Side, error: number, kind: 'predicted' | 'measured') =>
      tag(
        'g',
        {
          class: `${kind === 'predicted' ? 'hollow' : 'mark'} ${identities.classOf(side)}`,
          transform: `translate(${x.scale(totals[side].share).toFixed(1)} ${y.scale(error).toFixed(1)})`,
        },
        identities.symbol(side, kind === 'predicted' ? 13 : 9),
        tag('title', {}, `${sideNames[side]}: error ${percentText(error)}, ${kind}`),
      );
    return [
      axes(frame, x, y),
      ...sides.map((side) =>
        tag('path', {
          class: `line ${identities.classOf(side)}`,
          d:
            d3.line()(curves[side].map(({ share, error }): [number, number] => [x.scale(share), y.scale(error)])) ?? '',
        }),
      ),
      ...sides.flatMap((side) => [
        point(side, totals[side].predictedError, 'predicted'),
        point(side, totals[side].measuredError, 'measured'),
      ]),
    ];
  };
  const line = lineKnob();
  const entries = sides.flatMap((side): LegendEntry[] => {
    const name = sideNames[side];
    const own = identities.classOf(side);
    return [
      { mark: line, class: own, text: `${name} by their spectra` },
      { mark: identities.symbol(side, 11), class: `hollow ${own}`, text: 'here, predicted' },
      { mark: identities.symbol(side, 9), class: own, text: 'here, measured' },
    ];
  });
  return [legend(entries), ...chart('curve', 'Error against memory of keys and values', 340, draw)];
}
