/** Caches of LRKV over one set of rows, in each of its modes. */
import { LrkvCache } from '../lib';
import type { DataType, Tensor } from '../lib/tensor';
import { slice } from './data';
import { type LrkvFeatures, type LrkvInputs, type LrkvShape, lrkvShape, ropeModes } from './lrkv-run';
import type { LrkvGiven, LrkvRowsMeaning } from './reference-lrkv';

export const shape = {
  ...{ heads: 4, kvHeads: 2, queries: 300, keys: 300, headDim: 24, valueDim: 40 },
  ...{ keyRank: [6, 10], valueRank: [9, 0] },
} satisfies LrkvShape;
export const features: Readonly<Record<string, LrkvFeatures>> = {
  'no rope, gauges and QK-norm': { keyGauge: 'free', valueGauge: 'free', norm: 'plain' },
  ...Object.fromEntries(ropeModes.map((mode) => [mode, { mode, firstPosition: 3 }])),
  'latent, QK-norm with a gain': { mode: 'latent', norm: 'before-rotation' },
  'exact, QK-norm with a gain': { mode: 'exact', norm: 'after-rotation' },
};
export const settings = Object.entries(features);

const parts = ['keyBase', 'keyLatent', 'valueBase', 'valueLatent'] as const;

/** Positions [start, end) of one sequence. */
export function rowsOf(given: LrkvGiven, start: number, end: number): LrkvRowsMeaning {
  const part = (name: (typeof parts)[number]) => slice(given[name], 1, start, end);
  return {
    ...{ keyBase: part('keyBase'), keyLatent: part('keyLatent') },
    ...{ valueBase: part('valueBase'), valueLatent: part('valueLatent') },
  };
}

export function emptyCache({ given }: LrkvInputs, extents: LrkvShape = shape, type: DataType = 'float32'): LrkvCache {
  const { keyBase, keyLatent, valueBase, valueLatent, ...model } = given;
  const { kvHeads, headDim, valueDim, keyBaseDim, valueBaseDim } = lrkvShape(extents);
  return new LrkvCache({ heads: kvHeads, headDim, valueDim, keyBaseDim, valueBaseDim, type, ...model });
}

export function filledCache(
  inputs: LrkvInputs,
  length: number,
  extents: LrkvShape = shape,
  type?: DataType,
): LrkvCache {
  const cache = emptyCache(inputs, extents, type);
  cache.append(rowsOf(inputs.given, 0, length));
  return cache;
}

export const queryRows = ({ q }: LrkvInputs, start: number, end: number): Tensor => slice(q, 2, start, end);
