/** The frame that all charts share: scales, axes with units, grid. */
import type { ScaleContinuousNumeric } from 'd3-scale';

import { type Markup, tag } from './markup';

export type Scale = ScaleContinuousNumeric<number, number>;

/** The parts of d3 that are used. */
export type D3 = Pick<typeof import('d3-scale'), 'scaleLinear' | 'scaleLog'> &
  Pick<
    typeof import('d3-shape'),
    | 'line'
    | 'curveStepAfter'
    | 'symbol'
    | 'symbolCircle'
    | 'symbolSquare'
    | 'symbolTriangle'
    | 'symbolDiamond'
    | 'symbolCross'
    | 'symbolStar'
    | 'symbolWye'
  >;

/** d3 consists of ES modules only; before Node.js 20.19 a CommonJS module can get at them in no other way. */
export async function loadD3(): Promise<D3> {
  const [scale, shape] = await Promise.all([import('d3-scale'), import('d3-shape')]);
  return { ...scale, ...shape };
}

/** Pixels of a chart and of its margins. */
export interface Frame {
  readonly width: number;
  readonly height: number;
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** A chart is drawn twice, for wide and for narrow screens: text keeps its size, and what does not fit is left out. */
export const widths = { wide: 560, narrow: 336 } as const;

export function frameOf(width: number, height: number): Frame {
  return { width, height, left: 52, right: 16, top: 24, bottom: 42 };
}

/** An axis: what it is about, with its unit, and how its numbers are written. */
export interface Axis {
  readonly scale: Scale;
  readonly title: string;
  readonly format: (value: number) => string;
  /** Only whole powers of ten, or 1, 2, 5 of each, or more, as many as the range asks for. */
  readonly log: boolean;
}

/** A range with some room at both ends of a logarithmic axis. */
export function logDomain(values: readonly number[], room = 1.15): [number, number] {
  return [Math.min(...values) / room, Math.max(...values) * room];
}

function ticksOf({ scale, log }: Axis, count: number): number[] {
  // On a logarithmic scale d3 gives 1 to 9 times each power of ten, or powers of ten alone where there are many.
  if (!log) return scale.ticks(count);
  const all = scale.ticks();
  const leading = (value: number) => Math.round(value / 10 ** Math.floor(Math.log10(value) + 1e-9));
  for (const kept of [[1], [1, 3], [1, 2, 5]]) {
    const ticks = all.filter((value) => kept.includes(leading(value)));
    if (ticks.length >= 3) return ticks;
  }
  return all;
}

/** Grid lines, numbers and titles. The title of y stands above its axis, where it is read without turning one's head. */
export function axes(frame: Frame, x: Axis, y: Axis): Markup {
  const { width, height, left, right, top, bottom } = frame;
  const [base, end] = [height - bottom, width - right];
  const xTicks = thinned(ticksOf(x, width / 80), (value) => x.scale(value), 44).map((value) => {
    const at = x.scale(value);
    return tag(
      'g',
      {},
      tag('line', { class: 'grid', x1: at, x2: at, y1: top, y2: base }),
      tag('text', { class: 'tick', x: at, y: base + 16, 'text-anchor': 'middle' }, x.format(value)),
    );
  });
  const yTicks = thinned(ticksOf(y, height / 50), (value) => y.scale(value), 18).map((value) => {
    const at = y.scale(value);
    return tag(
      'g',
      {},
      tag('line', { class: 'grid', x1: left, x2: end, y1: at, y2: at }),
      tag('text', { class: 'tick', x: left - 6, y: at + 4, 'text-anchor': 'end' }, y.format(value)),
    );
  });
  return tag(
    'g',
    { class: 'axes' },
    xTicks,
    yTicks,
    tag('line', { class: 'axis', x1: left, x2: end, y1: base, y2: base }),
    tag('line', { class: 'axis', x1: left, x2: left, y1: top, y2: base }),
    tag('text', { class: 'title', x: (left + end) / 2, y: height - 6, 'text-anchor': 'middle' }, x.title),
    tag('text', { class: 'title', x: 4, y: 12 }, y.title),
  );
}

/** Ticks far enough from each other for their text. */
function thinned(ticks: readonly number[], place: (value: number) => number, distance: number): number[] {
  const kept: number[] = [];
  for (const tick of ticks) {
    const last = kept.at(-1);
    if (last === undefined || Math.abs(place(tick) - place(last)) >= distance) kept.push(tick);
  }
  return kept;
}

/** A chart, once for each width. */
export function chart(
  name: string,
  label: string,
  height: number,
  draw: (frame: Frame) => readonly Markup[],
): Markup[] {
  return Object.entries(widths).map(([size, width]) => {
    const frame = frameOf(width, size === 'wide' ? height : Math.round(height * 0.86));
    return tag(
      'svg',
      {
        class: `chart ${size}`,
        id: `${name}-${size}`,
        viewBox: `0 0 ${frame.width} ${frame.height}`,
        role: 'img',
        'aria-label': label,
      },
      draw(frame),
    );
  });
}
