import { Reference } from '../check';
import { headsOf, type Inputs } from '../inputs';
import type { NystromMethod } from '../method';
import { type Numbers, product, rowOf, type Sum, softmaxWeights, weightedSum } from './matrix';

/**
 * Nyström attention in float64: softmax(q k̃ᵀ) · Z · (softmax(q̃ kᵀ) v), with means of segments q̃, k̃ and an iterated
 * pseudo-inverse Z of softmax(q̃ k̃ᵀ) (Xiong et al. 2021, arXiv 2102.03902).
 */
export function nystromReference({ q, k, v }: Inputs, { landmarks, iterations }: NystromMethod): Reference {
  const [, heads, queries, dim] = q.dims as [number, number, number, number];
  const [query, key, value] = [headsOf(q), headsOf(k), headsOf(v)];
  let prepared: { readonly head: number; readonly keyMeans: Float64Array; readonly sums: Sum } | undefined;
  const prepare = (head: number) => {
    const queryMeans = segmentMeans(query(head), landmarks, dim);
    const keyMeans = segmentMeans(key(head), landmarks, dim);
    const middle = stack(landmarks, (i) => softmaxWeights(rowOf(queryMeans, i, dim), keyMeans));
    const inverse = iteratedInverse(middle, landmarks, iterations);
    const seen = Array.from({ length: landmarks }, (_, i) =>
      weightedSum(softmaxWeights(rowOf(queryMeans, i, dim), key(head)), value(head)),
    );
    const [values, scale] = [stack(landmarks, (i) => seen[i]?.values), stack(landmarks, (i) => seen[i]?.scale)];
    return {
      head,
      keyMeans,
      sums: { values: product(inverse, values, landmarks), scale: product(inverse.map(Math.abs), scale, landmarks) },
    };
  };
  return new Reference(heads, queries, (head, row) => {
    if (prepared?.head !== head) prepared = prepare(head);
    const { keyMeans, sums } = prepared;
    return weightedSum(softmaxWeights(rowOf(query(head), row, dim), keyMeans), sums.values, sums.scale);
  });
}

/** Means of `count` segments in a row; where they do not divide the length, the last ones are longer by one. */
function segmentMeans(rows: Numbers, count: number, dim: number): Float64Array {
  const length = rows.length / dim;
  const short = Math.floor(length / count);
  const firstLong = count - (length % count);
  let start = 0;
  return stack(count, (segment) => {
    const size = segment < firstLong ? short : short + 1;
    const mean = new Float64Array(dim);
    for (let i = start * dim; i < (start + size) * dim; i++) {
      mean[i % dim] = (mean[i % dim] as number) + (rows[i] as number) / size;
    }
    start += size;
    return mean;
  });
}

/** Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z))) from Aᵀ over the product of A's 1- and ∞-norms (paper, eq. 11). */
function iteratedInverse(a: Float64Array, size: number, iterations: number): Float64Array {
  let columns = 0;
  let rows = 0;
  let z: Float64Array = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    let [column, row] = [0, 0];
    for (let j = 0; j < size; j++) {
      column += Math.abs(a[j * size + i] as number);
      row += Math.abs(a[i * size + j] as number);
      z[i * size + j] = a[j * size + i] as number;
    }
    columns = Math.max(columns, column);
    rows = Math.max(rows, row);
  }
  z = z.map((x) => x / (columns * rows));
  const minus = (factor: number, x: Float64Array) => x.map((y, i) => (i % (size + 1) === 0 ? factor : 0) - y);
  for (let i = 0; i < iterations; i++) {
    const az = product(a, z, size);
    const inner = product(az, minus(15, product(az, minus(7, az), size)), size);
    z = product(z, minus(13, inner), size).map((x) => x / 4);
  }
  return z;
}

/** A matrix of these rows. */
function stack(count: number, row: (index: number) => Float64Array | undefined): Float64Array {
  return Float64Array.from(Array.from({ length: count }, (_, i) => [...(row(i) ?? [])]).flat());
}
