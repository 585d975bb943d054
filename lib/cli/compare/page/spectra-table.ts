import { type MetricName, metricTitles, type Spectra } from '../results';
import { type Markup, tag } from './markup';

/** Heads down, variants of effective rank across. */
export function spectraTable({ heads }: Spectra): Markup {
  const names = Object.keys(metricTitles) as MetricName[];
  return tag(
    'div',
    { class: 'scroll' },
    tag(
      'table',
      { id: 'ranks' },
      tag(
        'thead',
        {},
        tag(
          'tr',
          {},
          ['head', ...names.map((name) => metricTitles[name])].map((title) => tag('th', {}, title)),
        ),
      ),
      tag(
        'tbody',
        {},
        heads.map(({ head, metrics }) =>
          tag(
            'tr',
            {},
            tag('td', {}, head),
            names.map((name) => tag('td', {}, rankText(metrics[name]))),
          ),
        ),
      ),
    ),
  );
}

function rankText(rank: number | undefined): string {
  if (rank === undefined) return 'not computed';
  return Number.isInteger(rank) ? String(rank) : rank.toFixed(1);
}
