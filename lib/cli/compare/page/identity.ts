/** How a method looks, the same in every chart: a colour, and a symbol for those who cannot tell the colours. */
import type { D3 } from './axes';
import { type Markup, tag } from './markup';

/** Colours are `--series-0` to `--series-7` of the style. */
const colors = 8;

export class Identities {
  readonly #order: readonly string[];

  constructor(
    private readonly d3: D3,
    methods: Iterable<string>,
  ) {
    this.#order = [...new Set(methods)];
  }

  /** Class that gives an element the method's colour. */
  classOf(method: string): string {
    return `series-${this.#indexOf(method) % colors}`;
  }

  /** The method's symbol, about `size` pixels wide. */
  symbol(method: string, size: number, attributes: Readonly<Record<string, string | number>> = {}): Markup {
    const { d3 } = this;
    const shapes = [
      d3.symbolCircle,
      d3.symbolSquare,
      d3.symbolTriangle,
      d3.symbolDiamond,
      d3.symbolCross,
      d3.symbolWye,
      d3.symbolStar,
    ];
    const shape = shapes[this.#indexOf(method) % shapes.length] as (typeof shapes)[number];
    return tag('path', { ...attributes, d: d3.symbol(shape, size ** 2 * 0.75)() ?? '' });
  }

  #indexOf(method: string): number {
    return Math.max(0, this.#order.indexOf(method));
  }
}

/** One entry of a legend. */
export interface LegendEntry {
  readonly mark: Markup;
  readonly class: string;
  readonly text: string;
}

export function legend(entries: readonly LegendEntry[]): Markup {
  return tag(
    'ul',
    { class: 'legend' },
    entries.map((entry) =>
      tag(
        'li',
        { class: entry.class },
        tag('svg', { viewBox: '-8 -8 16 16', width: 16, height: 16, 'aria-hidden': 'true' }, entry.mark),
        entry.text,
      ),
    ),
  );
}
