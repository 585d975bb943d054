/** The rank of every head as a picture: layers down, heads across. */
import type { Side } from '../../../fit/source';
import { percentText } from '../../numbers';
import { chart, type Frame } from '../../page/axes';
import { bitmapUrl } from '../../page/bitmap';
import { type Color, magma, ramp } from '../../page/colors';
import { type Markup, tag } from '../../page/markup';
import { type LayerResult, sideNames } from '../results';

/** Pixels of a row, and of cells that have room for their number. */
const rows = { least: 9, most: 26 } as const;
const roomy = { width: 22, height: 14 } as const;

/** Steps of the scale beside the picture. */
const steps = 64;

export function ranksChart(layers: readonly LayerResult[], side: Side): Markup[] {
  const heads = Math.max(...layers.map((layer) => layer[side].heads.length));
  const widest = Math.max(...layers.map((layer) => layer[side].width));
  const row = Math.min(rows.most, Math.max(rows.least, 320 / layers.length));
  const draw = (frame: Frame): Markup[] => {
    const { left, right, top, bottom } = frame;
    const across = (frame.width - left - right) / heads;
    const down = (frame.height - top - bottom) / layers.length;
    const numbered = across >= roomy.width && down >= roomy.height;
    const cells = layers.flatMap((layer, y) =>
      layer[side].heads.map(({ rank, allocatedRank, predictedError, measuredError }, x) => {
        const color = ramp(magma, rank / widest);
        const [cx, cy] = [left + (x + 0.5) * across, top + (y + 0.5) * down];
        const told = [
          `layer ${layer.index}, head ${x}: rank ${rank} of ${layer[side].width}, stored as ${allocatedRank}`,
          `error ${percentText(predictedError)} predicted, ${percentText(measuredError)} measured`,
        ];
        return tag(
          'g',
          { class: 'cell' },
          tag('rect', {
            x: cx - across / 2 + 0.5,
            y: cy - down / 2 + 0.5,
            width: across - 1,
            height: down - 1,
            fill: `rgb(${color.join()})`,
          }),
          numbered
            ? tag('text', { x: cx, y: cy + 4, 'text-anchor': 'middle', fill: inkOn(color) }, String(rank))
            : undefined,
          tag('title', {}, told.join('\n')),
        );
      }),
    );
    const numbers = (count: number, size: number, distance: number) => {
      const step = Math.ceil(distance / size);
      return Array.from({ length: Math.ceil(count / step) }, (_, i) => i * step);
    };
    return [
      ...cells,
      tag(
        'g',
        { class: 'axes' },
        numbers(heads, across, 24).map((head) =>
          tag(
            'text',
            {
              class: 'tick',
              x: left + (head + 0.5) * across,
              y: frame.height - bottom + 16,
              'text-anchor': 'middle',
            },
            String(head),
          ),
        ),
        numbers(layers.length, down, 15).map((at) =>
          tag(
            'text',
            { class: 'tick', x: left - 6, y: top + (at + 0.5) * down + 4, 'text-anchor': 'end' },
            String((layers[at] as LayerResult).index),
          ),
        ),
        tag(
          'text',
          { class: 'title', x: (left + frame.width - right) / 2, y: frame.height - 6, 'text-anchor': 'middle' },
          'key/value head',
        ),
        tag('text', { class: 'title', x: 4, y: 12 }, 'layer'),
      ),
    ];
  };
  const scale = bitmapUrl(
    Uint8Array.from({ length: steps }, (_, step) => step),
    steps,
    Array.from({ length: steps }, (_, step) => ramp(magma, step / (steps - 1))),
  );
  return [
    ...chart(`ranks-${side}`, `Ranks of ${sideNames[side]}`, 24 + 42 + row * layers.length, draw),
    tag(
      'div',
      { class: 'ramp' },
      'rank 0',
      tag('img', { src: scale, alt: 'scale of colours' }),
      `${widest}, the head’s size`,
    ),
  ];
}

/** Black or white, whichever stands out more (relative luminance of WCAG 2). */
function inkOn(color: Color): string {
  const [red, green, blue] = color.map((channel) => (channel / 255) ** 2.2) as [number, number, number];
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? '#000000' : '#ffffff';
}
