/** How a method looks, the same in every chart: a colour, and a symbol for those who cannot tell the colours. */
import type { SymbolType } from 'd3-shape';

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
    return method === 'exact' ? 'series-exact' : `series-${this.#order.indexOf(method) % colors}`;
  }

  /** The method's symbol, about `size` pixels wide. */
  symbol(method: string, size: number): Markup {
    const { d3 } = this;
    const forms: readonly (readonly [SymbolType, transform?: string])[] = [
      [d3.symbolTriangle],
      [d3.symbolSquare],
      [d3.symbolDiamond],
      [d3.symbolCross],
      [d3.symbolWye],
      [d3.symbolStar],
      [d3.symbolTriangle, 'rotate(180)'],
      [d3.symbolCross, 'rotate(45)'],
    ];
    const [type, transform] =
      method === 'exact' ? [d3.symbolCircle] : (forms[this.#order.indexOf(method) % forms.length] ?? [d3.symbolCircle]);
    return tag('path', { transform, d: d3.symbol(type, size ** 2 * 0.75)() ?? '' });
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
