/** A small LRKV model of 2 key/value heads of 8 and 6, and what fits it. */
import { LrkvCache, type LrkvProjections, type LrkvRows } from '../lib';
import { normal } from './data';

export const lrkvModel = {
  keyUp: normal([8, 8], 40),
  valueUp: normal([4, 6], 41),
  keyRanks: [3, 5],
  valueRanks: [1, 3],
} as const;

export function lrkvRows(count: number, { batch = 1, keyLatents = 8, keyBaseDim = 8 } = {}): LrkvRows {
  return {
    keyBase: normal([batch, count, keyBaseDim], 42),
    keyLatent: normal([batch, count, keyLatents], 43),
    valueBase: normal([batch, count, 6], 44),
    valueLatent: normal([batch, count, 4], 45),
  };
}

/** Of hidden states of 10. */
export const lrkvProjections: LrkvProjections = {
  keyBase: normal([10, 8], 46),
  keyDown: normal([10, 8], 47, 'bfloat16'),
  valueBase: normal([10, 6], 48),
  valueDown: normal([10, 4], 49, 'float16'),
};

/** An empty cache of the model, or of one that differs from it. */
export function lrkvCacheOf(options: object = {}): LrkvCache {
  return new LrkvCache({ heads: 2, headDim: 8, valueDim: 6, ...lrkvModel, ...options });
}

/** A cache of five positions. */
export function smallLrkvCache(): LrkvCache {
  const cache = lrkvCacheOf();
  cache.append(lrkvRows(5));
  return cache;
}
