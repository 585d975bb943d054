import type { Tensor } from '../lib/tensor';
import { naiveAttention, naiveMatmul } from './naive32';
import type { AttentionMeaning } from './problem';
import { referenceAttention } from './reference';
import { type LinearMeaning, naiveLinear, referenceLinear } from './reference-linear';
import { type MatmulMeaning, referenceMatmul } from './reference-matmul';
import type { Expected } from './tolerance';

/** What exact attention must give, with its error budget. */
export function expectAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionMeaning = {},
): { readonly output: Expected; readonly lse: Expected } {
  const exact = referenceAttention(q, k, v, options);
  const naive = naiveAttention(q, k, v, options);
  const [keys, headDim] = [options.layout === 'blhd' ? k.dims[1] : k.dims[2], q.dims[3]];
  return {
    output: {
      values: exact.output,
      dims: exact.dims,
      scale: exact.outputScale,
      naive: naive.output,
      terms: headDim + keys,
    },
    lse: { values: exact.lse, dims: exact.lseDims, scale: exact.lseScale, naive: naive.lse, terms: headDim + keys },
  };
}

/** What a matrix product must give, with its error budget. */
export function expectMatmul(a: Tensor, b: Tensor, options: MatmulMeaning = {}): Expected {
  return {
    ...referenceMatmul(a, b, options),
    naive: naiveMatmul(a, b, options),
    terms: a.dims.at(options.transposeA ? -2 : -1) as number,
  };
}

/** What linear attention must give, with its error budget. */
export function expectLinear(q: Tensor, k: Tensor, v: Tensor, meaning: LinearMeaning): Expected {
  const [keys, headDim] = [meaning.layout === 'blhd' ? k.dims[1] : k.dims[2], q.dims[3]];
  return {
    ...referenceLinear(q, k, v, meaning),
    naive: naiveLinear(q, k, v, meaning),
    terms: headDim + keys,
  };
}
