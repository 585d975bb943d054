import { table } from '../../page/document';
import type { Markup } from '../../page/markup';
import { metrics, metricTexts, type Spectra } from '../results';

/** Heads down, variants of effective rank across. */
export function spectraTable({ heads, length, count }: Spectra): Markup {
  return table(
    'ranks',
    ['head', ...metrics.map(({ title }) => title)],
    heads.map((one) => ({ cells: [String(one.head), ...metricTexts(one, count === length)] })),
  );
}
