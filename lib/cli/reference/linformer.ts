import type { TensorOf } from '../../tensor';
import { Reference } from '../check';
import { headsOf, type Inputs } from '../inputs';
import { product, rowOf, softmaxWeights, weightedSum } from './matrix';

/** Projections of keys and values, `[projected, length]`. */
export interface Projections {
  readonly keyProjection: TensorOf<'float32'>;
  readonly valueProjection: TensorOf<'float32'>;
}

/** Linformer in float64: softmax(q (E k)ᵀ / √d) (F v) (Wang et al. 2020, arXiv 2006.04768, eq. 7). */
export function linformerReference({ q, k, v }: Inputs, { keyProjection, valueProjection }: Projections): Reference {
  const [, heads, queries, dim] = q.dims as [number, number, number, number];
  const keys = k.dims[2] as number;
  const [query, key, value] = [headsOf(q), headsOf(k), headsOf(v)];
  let projected: { readonly head: number; readonly keys: Float64Array; readonly values: Float64Array } | undefined;
  return new Reference(heads, queries, (head, row) => {
    if (projected?.head !== head) {
      projected = {
        head,
        keys: product(keyProjection.data, key(head), keys),
        values: product(valueProjection.data, value(head), keys),
      };
    }
    return weightedSum(softmaxWeights(rowOf(query(head), row, dim), projected.keys), projected.values);
  });
}
