/** The page of `convert`. */
import type { Side } from '../../../fit/source';
import { percentText, wholeText } from '../../numbers';
import { loadD3 } from '../../page/axes';
import { documentOf, provenanceFacts, section, table, wholeSection } from '../../page/document';
import { type Markup, tag } from '../../page/markup';
import { type ConvertReport, modelText } from '../results';
import { columns, errorNote, layerCells } from '../text';
import { curveChart } from './curve';
import { ranksChart } from './ranks';
import { spectraChart } from './spectra';

const titles: Readonly<Record<Side, string>> = { key: 'Keys', value: 'Values' };

export async function convertPage(report: ConvertReport): Promise<string> {
  const d3 = await loadD3();
  const { model, layers, output, rule, tokens, notes, threads } = report;
  const both = (make: (side: Side) => Markup) => [make('key'), make('value')];
  return documentOf({
    title: 'Attention as LRKV',
    subject: model.source,
    lead: modelText(report),
    notes,
    content: [
      answers(report),
      tag(
        'div',
        { class: 'charts' },
        both((side) =>
          section(
            `${titles[side]}: ranks`,
            'Of every head’s residual. A brighter head needs more beside the base.',
            ranksChart(layers, side),
          ),
        ),
        both((side) =>
          section(
            `${titles[side]}: spectra`,
            'Of heads less their base, root mean square over those of a layer. What lies right of the mark is left out.',
            spectraChart(d3, layers, side),
          ),
        ),
      ),
      wholeSection(
        'Error against memory',
        'Bases and directions as they were fitted here, ranks dealt out anew: a fit at that memory is about as good or better.',
        curveChart(d3, report),
      ),
      wholeSection(
        'Layers',
        `${errorNote(report).join(' ')} Cache: of a KvCache, as stored.`,
        table(
          'layers',
          columns,
          layers.map((layer) => ({ cells: layerCells(layer) })),
        ),
      ),
    ],
    factsTitle: 'Input, package and machine',
    facts: {
      model: `${model.source}: modelDim ${wholeText(model.modelDim)}, keys ${model.rotated ? 'rotated' : 'not rotated'}`,
      output,
      ranks: rule,
      calibration: tokens === undefined ? 'none' : `${wholeText(tokens)} tokens a layer`,
      ...provenanceFacts(report, threads),
    },
  });
}

function answers({ cacheRatio, factoredRatio, totals, layers, tokens }: ConvertReport): Markup {
  const item = (name: string, value: string, more: string) =>
    tag('li', {}, tag('span', { class: 'quiet' }, name), tag('b', {}, value), tag('span', { class: 'quiet' }, more));
  return tag(
    'ul',
    { class: 'answers' },
    item('Cache', percentText(cacheRatio), 'of a KvCache, as stored'),
    item('Base and latents', percentText(factoredRatio), 'of whole keys and values'),
    (['key', 'value'] as const).map((side) =>
      item(
        `Error of ${titles[side].toLowerCase()}`,
        percentText(totals[side].measuredError),
        `${percentText(totals[side].predictedError)} predicted`,
      ),
    ),
    item(
      'Bases kept',
      String(
        layers.reduce((sum, layer) => sum + [layer.key, layer.value].filter(({ gauge }) => gauge !== 'none').length, 0),
      ),
      `of ${2 * layers.length} sides`,
    ),
    item(
      'Calibration',
      tokens === undefined ? 'none' : wholeText(tokens),
      tokens === undefined ? 'errors are of weights' : 'tokens a layer',
    ),
  );
}
