import { Reference } from '../check';
import { headsOf, type Inputs } from '../inputs';
import { rowOf, softmaxWeights, weightedSum } from './matrix';

/** What decides which keys a query sees: the last query stands at the last key. */
export interface Meaning {
  readonly causal: boolean;
  /** Keys seen up to the query's own, that one included. */
  readonly window?: number;
}

/** Exact attention in float64: softmax(q kᵀ / √d) v. */
export function fullReference({ q, k, v }: Inputs, { causal, window = Infinity }: Meaning, allowance = 1): Reference {
  const [, heads, queries, dim] = q.dims as [number, number, number, number];
  const [, kvHeads, keys] = k.dims as [number, number, number];
  const valueDim = v.dims[3] as number;
  const [query, key, value] = [headsOf(q), headsOf(k), headsOf(v)];
  const rowOfHead = (head: number, row: number) => {
    const own = row + keys - queries;
    const end = causal ? own + 1 : keys;
    const start = Math.max(0, own - window + 1);
    const kvHead = Math.floor((head * kvHeads) / heads);
    const weights = softmaxWeights(rowOf(query(head), row, dim), key(kvHead).subarray(start * dim, end * dim));
    return weightedSum(weights, value(kvHead).subarray(start * valueDim, end * valueDim));
  };
  return new Reference(heads, queries, rowOfHead, allowance);
}
