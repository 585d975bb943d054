// Ways to spend a share of the cache, and what the embeddings feel of an error in each part of it.
import { fitLrkv, type Tensor } from '../../lib';
import type { EncodeOptions } from '../../lib/cli/sentence-encoder/encoder';
import type { EncoderWeights } from '../../lib/cli/sentence-encoder/weights';
import type { FitOptions } from '../../lib/fit/options';
import { encodeAll } from '../sentence-encoder/batches';
import { attentionWeights, withConverted } from './encoder';
import { cosines } from './quality';

/** Ranks that take a share of the cache, all heads alike, with a base or without one: base and latents are 1/heads + rank/headDim. */
export function evenRanks(weights: EncoderWeights, share: number, base: boolean): NonNullable<FitOptions['ranks']> {
  return weights.layers.map(({ heads, key }) => {
    const headDim = key.bias.length / heads;
    const rank = Math.round(headDim * (share - (base ? 1 / heads : 0)));
    const ranks = Array<number>(heads).fill(rank);
    return { key: ranks, value: ranks };
  });
}

/** One probe a layer and side: this share of its cache, all else as it is. */
const probeShare = 0.5;

/**
 * What a relative error of 1 in the keys or values of a layer, squared, would do to the embeddings: mean of 1 − cosine for
 * what a conversion of that side alone does, divided by its squared relative error. For `sensitivity` of `fitLrkv`.
 */
export async function sensitivities(
  weights: EncoderWeights,
  calibration: readonly Tensor[],
  sentences: readonly (readonly number[])[],
  options: EncodeOptions,
): Promise<{ key: number; value: number }[]> {
  const { layers, report } = await fitLrkv(weights.layers.map(attentionWeights), {
    ranks: evenRanks(weights, probeShare, true),
    calibration,
  });
  const converted = withConverted(weights, layers);
  const original = await encodeAll(weights, sentences, options);
  const found: { key: number; value: number }[] = [];
  for (const index of layers.keys()) {
    const of = async (side: 'key' | 'value'): Promise<number> => {
      const probed = weights.layers.map((layer, at) =>
        at === index ? { ...layer, [side]: converted.layers[at][side] } : layer,
      );
      const { mean } = cosines(original, await encodeAll({ ...weights, layers: probed }, sentences, options));
      return (1 - mean) / report.layers[index][side].predictedError ** 2;
    };
    found.push({ key: await of('key'), value: await of('value') });
  }
  return found;
}
