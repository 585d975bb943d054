/** Results as tables for people. */
import type { Side } from '../../fit/source';
import { percentText } from '../numbers';
import { table } from '../report';
import { type ConvertReport, gaugeText, type LayerResult, modelText, ranksText } from './results';

export const columns = [
  'layer',
  ...['key', 'value'].flatMap((side) => [`${side} ranks`, `${side} gauge`, 'predicted', 'measured']),
  'cache',
] as const;

export function layerCells(layer: LayerResult): string[] {
  const side = (of: Side) => {
    const { predictedError, measuredError } = layer[of];
    return [ranksText(layer[of]), gaugeText(layer[of]), percentText(predictedError), percentText(measuredError)];
  };
  return [String(layer.index), ...side('key'), ...side('value'), percentText(layer.cacheRatio)];
}

export function errorNote({ weightType }: ConvertReport): readonly string[] {
  return [
    'Errors: ‖W − Ŵ‖ / ‖W‖ in the norm of the fit, of logits for keys and of outputs for values; predicted by the spectra,',
    `damping included; measured on the calibration rows, if there are any, through the ${weightType} weights that are written.`,
  ];
}

export function convertText(report: ConvertReport): string {
  const { rule, tokens, layers, factoredRatio, output, notes } = report;
  const calibration = tokens === undefined ? 'no calibration' : `calibrated on ${tokens} tokens a layer`;
  const right = columns.filter((name) => !/layer|gauge/.test(name));
  return [
    `${modelText(report)}\n${rule}; ${calibration}`,
    `${table(columns, layers.map(layerCells), right)}\n${errorNote(report).join('\n')}\n` +
      `Cache: of a KvCache, as stored. Bases and latents alone: ${percentText(factoredRatio)} of whole keys and values.`,
    [...notes, `Written: ${output}`].join('\n'),
  ].join('\n\n');
}
