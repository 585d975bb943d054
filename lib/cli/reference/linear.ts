import { Reference } from '../check';
import { headsOf, type Inputs } from '../inputs';
import type { FeatureName, LinearMethod } from '../method';
import { dots, type Numbers, rowOf, weightedSum } from './matrix';

const features: Readonly<Record<FeatureName, (x: number) => number>> = {
  identity: (x) => x,
  elu: (x) => (x > 0 ? x + 1 : Math.exp(x)),
  relu: (x) => Math.max(x, 0),
};

/**
 * Linear attention in float64, in its quadratic form: Σⱼ (φ(q)·φ(kⱼ)) vⱼ, divided by the sum of those weights if
 * normalised (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 4). Causal: the last query stands at the last key.
 */
export function linearReference({ q, k, v }: Inputs, { featureMap, causal, normalize }: LinearMethod): Reference {
  const [, heads, queries, dim] = q.dims as [number, number, number, number];
  const [, , keys, valueDim] = v.dims as [number, number, number, number];
  const [query, key, value] = [headsOf(q), headsOf(k), headsOf(v)];
  const map = (x: Numbers): Float64Array => new Float64Array(x).map(features[featureMap]);
  let mapped: { readonly head: number; readonly keys: Float64Array } | undefined;
  return new Reference(heads, queries, (head, row) => {
    if (mapped?.head !== head) mapped = { head, keys: map(key(head)) };
    const seen = causal ? row + keys - queries + 1 : keys;
    const weights = dots(map(rowOf(query(head), row, dim)), mapped.keys.subarray(0, seen * dim));
    const sum = normalize ? weights.reduce((a, b) => a + b, 0) : 1;
    return weightedSum(
      weights.map((weight) => weight / sum),
      value(head).subarray(0, seen * valueDim),
    );
  });
}
