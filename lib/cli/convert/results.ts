/** What a conversion finds: what `--json` prints, and what the tables and the page show. */
import type { Side } from '../../fit/source';
import type { LrkvHeadReport, LrkvLayerReport, LrkvReport, LrkvSideReport, LrkvWeights } from '../../index';
import type { NamedLayer } from '../../model/names';
import { percentText, wholeText } from '../numbers';
import type { Provenance } from '../provenance';
import { baseOf, type CurvePoint, curveOf } from './curve';

export type HeadResult = Omit<LrkvHeadReport, 'spectrum'> & { readonly spectrum: readonly number[] };

export interface SideResult extends Omit<LrkvSideReport, 'heads'> {
  readonly heads: readonly HeadResult[];
  /** Size of a head, which is also its largest rank. */
  readonly width: number;
}

export interface LayerResult extends Omit<LrkvLayerReport, Side> {
  /** N of `layers.N`. */
  readonly index: number;
  /** What its tensors' names begin with. */
  readonly prefix: string;
  readonly key: SideResult;
  readonly value: SideResult;
}

/** Extents that all layers have, or the smallest and largest. */
export interface ModelFacts {
  readonly source: string;
  readonly modelDim: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly rotated: boolean;
}

export interface ConvertReport extends Provenance, Omit<LrkvReport, 'layers'> {
  readonly threads: number;
  readonly model: ModelFacts;
  readonly output: string;
  /** How ranks were found, for people. */
  readonly rule: string;
  /** Rows of hidden states a layer; undefined without calibration. */
  readonly tokens?: number;
  readonly layers: readonly LayerResult[];
  /** Of all layers together: root mean square of the layers' relative errors, and the memory of bases and latents. */
  readonly totals: Readonly<Record<Side, SideTotals>>;
  /** What other memory would leave, by the spectra of this fit. */
  readonly curves: Readonly<Record<Side, readonly CurvePoint[]>>;
  /** What must be known to judge all that. */
  readonly notes: readonly string[];
}

export interface SideTotals {
  readonly predictedError: number;
  readonly measuredError: number;
  /** Components of bases and padded latents, as a share of those of whole heads. */
  readonly share: number;
}

export const sideNames: Readonly<Record<Side, string>> = { key: 'keys', value: 'values' };

/** The report of a fit, with the names of its layers and what follows from its spectra. */
export function resultsOf(
  { layers, report }: { readonly layers: readonly Pick<LrkvWeights, `${Side}Up`>[]; readonly report: LrkvReport },
  named: readonly NamedLayer[],
): Pick<ConvertReport, 'layers' | 'totals' | 'curves'> {
  const results = report.layers.map((layer, at): LayerResult => {
    const weights = layers[at] as (typeof layers)[number];
    const { index, prefix } = named[at] as NamedLayer;
    const side = (of: Side): SideResult => ({
      ...layer[of],
      heads: layer[of].heads.map((head) => ({ ...head, spectrum: Array.from(head.spectrum) })),
      width: weights[`${of}Up`].dims[1] as number,
    });
    return { ...layer, index, prefix, key: side('key'), value: side('value') };
  });
  const both = <Result>(make: (side: Side) => Result) => ({ key: make('key'), value: make('value') });
  return {
    layers: results,
    totals: both((side) => totalsOf(results.map((layer) => layer[side]))),
    curves: both((side) => curveOf(results.map((layer) => layer[side]))),
  };
}

function totalsOf(sides: readonly SideResult[]): SideTotals {
  const rootMeanSquare = (of: (side: SideResult) => number) =>
    Math.sqrt(sides.reduce((sum, side) => sum + of(side) ** 2, 0) / sides.length);
  const sum = (of: (side: SideResult) => number) => sides.reduce((all, side) => all + of(side), 0);
  return {
    predictedError: rootMeanSquare((side) => side.predictedError),
    measuredError: rootMeanSquare((side) => side.measuredError),
    share:
      sum((side) => side.heads.reduce((all, { allocatedRank }) => all + allocatedRank, baseOf(side))) /
      sum(({ heads, width }) => heads.length * width),
  };
}

/** `6 layers of 8 heads over 2 key/value heads: 50 % of the cache` */
export function modelText({ model, layers, cacheRatio }: ConvertReport): string {
  const { source, heads, kvHeads } = model;
  const groups = heads === kvHeads ? '' : ` over ${kvHeads} key/value heads`;
  const count = `${wholeText(layers.length)} ${layers.length === 1 ? 'layer' : 'layers'}`;
  return `${source}: ${count} of ${heads} heads${groups}; the cache takes ${percentText(cacheRatio)} of a KvCache`;
}

/** Ranks of a side's heads: `16`, or from the smallest to the largest. */
export function ranksText({ heads }: SideResult): string {
  const ranks = heads.map(({ rank }) => rank);
  const [least, most] = [Math.min(...ranks), Math.max(...ranks)];
  return least === most ? String(least) : `${least}–${most}`;
}

/** The gauge that was kept. */
export function gaugeText({ gauge, baseError }: SideResult): string {
  if (gauge !== 'none') return gauge;
  return baseError === undefined ? 'no base' : 'no base (better)';
}
