/** Attention matrices as pictures: the exact one, and what the methods make of it. */

import { percentText } from '../../numbers';
import { bitmapUrl } from '../../page/bitmap';
import { type Color, magma, ramp } from '../../page/colors';
import { type Markup, tag } from '../../page/markup';
import { type AttentionMaps, label } from '../results';

/** Weights below zero, which exact attention never has: a colour that the others do not have, brighter when lower. */
const negative: readonly Color[] = [
  [6, 40, 48],
  [60, 220, 230],
];

/** Colours of either kind. */
const shades = 128;

const palette: readonly Color[] = [negative, magma].flatMap((between) =>
  Array.from({ length: shades }, (_, shade) => ramp(between, shade / (shades - 1))),
);

/** The square root brings out small weights, of which a row of attention mostly consists. */
function shadeOf(weight: number, largest: number): number {
  const shade = Math.min(shades - 1, Math.round(Math.sqrt(Math.abs(weight) / largest) * (shades - 1)));
  return weight < 0 && shade > 0 ? shade : shades + shade;
}

/** @param largest weight that is told from larger ones */
function picture(weights: Float32Array, width: number, largest: number): string {
  return bitmapUrl(
    Uint8Array.from(weights, (weight) => shadeOf(weight, largest)),
    width,
    palette,
  );
}

export function mapsSection({ head, length, maps }: AttentionMaps): Markup {
  const [exact] = maps;
  // A few weights are much larger than all others, and would leave those dark.
  const sorted = Float32Array.from(exact?.weights ?? []).sort();
  const largest = Math.max(sorted[Math.floor(0.998 * (sorted.length - 1))] ?? 0, 1e-30);
  const scale = bitmapUrl(
    Uint8Array.from({ length: 2 * shades }, (_, index) => (index < shades ? shades - 1 - index : index)),
    2 * shades,
    palette,
  );
  const text = (weight: number) => Number(weight.toPrecision(2));
  return tag(
    'section',
    { class: 'whole' },
    tag('h2', {}, 'Attention maps'),
    tag(
      'p',
      { class: 'note' },
      `Head ${head}, the first ${length} positions: queries down, keys across. A method’s matrix is what it makes of the ` +
        'identity as values. Same colours in all.',
    ),
    tag(
      'div',
      { class: 'maps' },
      maps.map(({ name, setting, weights, error }) =>
        tag(
          'figure',
          {},
          tag('img', {
            src: picture(weights, length, largest),
            alt: label({ name, ...(setting === undefined ? {} : { setting }) }),
          }),
          tag(
            'figcaption',
            {},
            tag('b', {}, name),
            setting === undefined ? undefined : `, ${setting.text}`,
            error === undefined ? undefined : [tag('br', {}), `error ${percentText(error)}`],
          ),
        ),
      ),
    ),
    tag(
      'div',
      { class: 'ramp' },
      `weight ${text(-largest)}`,
      tag('img', { src: scale, alt: 'scale of colours' }),
      `${text(largest)} and more; turquoise: below zero, which no softmax gives`,
    ),
  );
}
