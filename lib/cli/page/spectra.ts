/** Lines of values that fall, with marks upon them. */
import type { Axis, D3 } from './axes';
import { type Markup, tag } from './markup';

export interface SpectrumLine {
  readonly title: string;
  /** Descending; the i-th stands at i + 1. */
  readonly values: readonly number[];
  readonly marks: readonly SpectrumMark[];
}

export interface SpectrumMark {
  readonly symbol: Markup;
  readonly title: string;
  /** Where it stands; values that are not there or too small have no mark. */
  readonly rank: number;
  readonly value: number | undefined;
}

/** The first of a list, the last, and those evenly between, at most so many. */
export function evenly<Item>(items: readonly Item[], most: number): Item[] {
  const count = Math.min(most, items.length);
  const place = (i: number): number => (count === 1 ? 0 : Math.round((i * (items.length - 1)) / (count - 1)));
  return Array.from({ length: count }, (_, i) => items[place(i)] as Item);
}

/** The lines one after the other, as `series-0` and on, down to the least value that is shown. */
export function spectrumLines(
  d3: D3,
  lines: readonly SpectrumLine[],
  [x, y]: readonly [Axis, Axis],
  low: number,
): Markup[] {
  return lines.map(({ title, values, marks }, index) => {
    const corners = values.flatMap((value, i): [number, number][] =>
      value >= low ? [[x.scale(i + 1), y.scale(value)]] : [],
    );
    return tag(
      'g',
      { class: `series-${index}` },
      tag('path', { class: 'line', d: d3.line()(corners) ?? '' }, tag('title', {}, title)),
      marks.flatMap((mark) => {
        if (mark.value === undefined || mark.value < low) return [];
        const place = `translate(${x.scale(mark.rank).toFixed(1)} ${y.scale(mark.value).toFixed(1)})`;
        return [tag('g', { class: 'mark', transform: place }, mark.symbol, tag('title', {}, mark.title))];
      }),
    );
  });
}

/** A line in a legend. */
export const lineKnob = (): Markup => tag('line', { x1: -8, x2: 8, y1: 0, y2: 0, class: 'line' });
