import { metrics, metricTexts, type Spectra } from '../results';
import { type Markup, tag } from './markup';

/** Heads down, variants of effective rank across. */
export function spectraTable({ heads, length, count }: Spectra): Markup {
  const cells = (name: 'th' | 'td', texts: readonly string[]) => texts.map((text) => tag(name, {}, text));
  const head = cells('th', ['head', ...metrics.map(({ title }) => title)]);
  const rows = heads.map((one) =>
    tag('tr', {}, cells('td', [String(one.head), ...metricTexts(one, count === length)])),
  );
  return tag(
    'div',
    { class: 'scroll' },
    tag('table', { id: 'ranks' }, tag('thead', {}, tag('tr', {}, head)), tag('tbody', {}, rows)),
  );
}
