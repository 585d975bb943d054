import { type FitOptions, fitLrkvSync } from '../../lib';
import { multipliedOut } from './multiplied';
import { headDim, heads, logitError, type Structure, structuredLayer, structuredRows } from './structured';

/** Parts of the heads' weights that are common to all. */
export const sharedParts = [0, 0.2, 0.5, 0.8];

/** Errors of keys in the fitted norm, at the same memory, and of the logits of what is kept, on rows that were not seen. */
export interface GaugeErrors {
  readonly none: number;
  readonly identity: number;
  readonly fitted: number;
  readonly logits: number;
}

/** Of the head size: at rank 8 of 32 a cache of 37.5 % for 8 heads with a base. */
const rank = 8;

/** How keys fare with a base of gauge 1, of the gauge that is fitted (one a rotary pair where there are such), and with none. */
export function compareGauges(structure: Structure): GaugeErrors {
  const weights = structuredLayer(structure);
  const calibration = structuredRows(4096, 1);
  const converted = (key: 'auto' | 'identity') => fitLrkvSync(weights, { rank, gauge: { key }, calibration });
  const [identity] = converted('identity').report.layers;
  const { layers, report } = converted('auto');
  const { baseError: fitted = Number.NaN, noBaseError: none = Number.NaN } = report.layers[0].key;
  const logits = logitError(weights, multipliedOut(layers[0]), structuredRows(512, 2));
  return { none, identity: identity.key.baseError ?? Number.NaN, fitted, logits };
}

/** Errors of rotated keys in the fitted norm, as they are not by default. */
export interface OtherErrors {
  /** No base, and as much memory as a base takes dealt out alike: rank 12, which a cache has no use for. */
  readonly evenly: number;
  /** A base fitted in up to 400 iterations instead of 100. */
  readonly longer: number;
}

export function otherErrors(shared: number): OtherErrors {
  const weights = structuredLayer({ shared, rope: true, seed: 100 });
  const calibration = structuredRows(4096, 1);
  const keyError = (options: FitOptions) => fitLrkvSync(weights, { ...options, calibration }).report.layers[0].key;
  const { baseError: longer = Number.NaN } = keyError({ rank, iterations: 400 });
  return { evenly: keyError({ rank: rank + headDim / heads, gauge: 'none' }).predictedError, longer };
}

/**
 * Error in the fitted norm of rotated keys whose residuals rotate by themselves, so that a cache keeps base and latents: at
 * rank 8 of 32 they take 37.5 % where keys that are rotated whole take all.
 */
export function intertwinedError(shared: number): number {
  const calibration = structuredRows(4096, 1);
  const weights = structuredLayer({ shared, rope: true, seed: 100 });
  const { report } = fitLrkvSync(weights, { rank, ropeMode: 'intertwined', calibration });
  return report.layers[0].key.predictedError;
}
