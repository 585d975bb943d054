import { type FitOptions, fitLrkv, type LrkvWeights, type Tensor, tensor } from '../../lib';
import type { AttentionWeights } from '../../lib/weights';

/**
 * LRKV in the paper's form of trained layers, made in the obvious way: the mean of the heads is the base, as it stands, and what
 * is left of each head gets a residual. `fitLrkv` with `gauge: 'identity'` makes a better base than the mean, but keeps none
 * where none is better; here it is to be seen what such a base does.
 */
export async function meanBased(layers: readonly AttentionWeights[], options: FitOptions): Promise<LrkvWeights[]> {
  const split = layers.map(({ heads, kvHeads = heads, key, value }) => ({
    key: splitMean(key, kvHeads),
    value: splitMean(value, kvHeads),
  }));
  const residuals = layers.map((layer, i) => ({ ...layer, key: split[i].key.rest, value: split[i].value.rest }));
  const fit = await fitLrkv(residuals, { ...options, gauge: 'none' });
  return fit.layers.map((layer, i) => ({ ...layer, keyBase: split[i].key.mean, valueBase: split[i].value.mean }));
}

/** The mean of the heads `[modelDim, dim]`, and the heads less it `[modelDim, heads · dim]`. */
function splitMean({ data, dims }: Tensor, heads: number): { mean: Tensor; rest: Tensor } {
  const weights = data as Float32Array;
  const [inputs, columns] = dims;
  const dim = columns / heads;
  const mean = new Float32Array(inputs * dim);
  const place = (i: number) => Math.floor(i / columns) * dim + (i % dim);
  for (let i = 0; i < weights.length; i++) mean[place(i)] += weights[i] / heads;
  return {
    mean: tensor(mean, [inputs, dim]),
    rest: tensor(
      weights.map((value, i) => value - mean[place(i)]),
      dims,
    ),
  };
}
