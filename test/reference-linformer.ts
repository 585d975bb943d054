import type { BoolTensor } from '../lib';
import type { Tensor } from '../lib/tensor';
import { toFloat64 } from './half';
import { type Layout, problemOf } from './problem';
import type { Answer } from './reference';
import type { Expected } from './tolerance';

/** What a call of Linformer computes from beside queries, keys and values. */
export interface LinformerMeaning {
  readonly keyProjection: Tensor;
  readonly valueProjection?: Tensor;
  readonly keyMask?: BoolTensor;
  readonly scale?: number;
  readonly layout?: Layout;
}

/**
 * softmax(q (E k)ᵀ · scale) (F v) from the definition: one projected row after the other, then one query after the
 * other, every step rounded by `round`, sums from left to right. `scale` of a value is Σᵣ pᵣ Σⱼ |F[r, j]| |vⱼ|.
 */
function linformer(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  { keyProjection, valueProjection = keyProjection, keyMask, scale, layout }: LinformerMeaning,
  round: (value: number) => number,
): Answer {
  const p = problemOf(q, k, v, { scale, layout });
  const [qs, ks, vs] = [toFloat64(q), toFloat64(k), toFloat64(v)];
  const [es, fs] = [toFloat64(keyProjection), toFloat64(valueProjection)];
  const [projected, maxLength] = keyProjection.dims.slice(-2);
  const perHead = keyProjection.dims.length === 3;
  const factor = round(p.scale);
  const values = new Float64Array(p.dims.reduce((a, b) => a * b, 1));
  const sizes = new Float64Array(values.length);

  /** Rows of E·K or F·V of one head, and of |E|·|K|. */
  const project = (
    matrix: Float64Array,
    data: Float64Array,
    source: Tensor,
    b: number,
    kvHead: number,
    dim: number,
  ) => {
    const rows = new Float64Array(projected * dim);
    const absolute = new Float64Array(projected * dim);
    for (let r = 0; r < projected; r++) {
      for (let d = 0; d < dim; d++) {
        let sum = 0;
        let size = 0;
        for (let j = 0; j < p.keys; j++) {
          const there = keyMask === undefined || keyMask.data[b * p.keys + j] !== 0;
          const element = there ? data[p.row(source, b, kvHead, j) + d] : 0;
          const product = round(matrix[((perHead ? kvHead : 0) * projected + r) * maxLength + j] * element);
          sum = round(sum + product);
          size += Math.abs(product);
        }
        rows[r * dim + d] = sum;
        absolute[r * dim + d] = size;
      }
    }
    return { rows, absolute };
  };

  for (let b = 0; b < p.batch; b++) {
    for (let kvHead = 0; kvHead < p.heads / p.group; kvHead++) {
      const key = project(es, ks, k, b, kvHead, p.headDim);
      const value = project(fs, vs, v, b, kvHead, p.valueDim);
      for (let h = kvHead * p.group; h < (kvHead + 1) * p.group; h++) {
        for (let i = 0; i < p.queries; i++) {
          const qRow = p.row(q, b, h, i);
          const weights = new Float64Array(projected);
          for (let r = 0; r < projected; r++) {
            let dot = 0;
            for (let d = 0; d < p.headDim; d++) dot = round(dot + round(qs[qRow + d] * key.rows[r * p.headDim + d]));
            weights[r] = round(dot * factor);
          }
          const max = weights.reduce((a, b) => Math.max(a, b));
          let sum = 0;
          for (let r = 0; r < projected; r++) {
            weights[r] = round(Math.exp(round(weights[r] - max)));
            sum = round(sum + weights[r]);
          }
          const oRow = p.row(p, b, h, i);
          for (let r = 0; r < projected; r++) {
            const weight = round(weights[r] / sum);
            for (let d = 0; d < p.valueDim; d++) {
              const at = r * p.valueDim + d;
              values[oRow + d] = round(values[oRow + d] + round(weight * value.rows[at]));
              sizes[oRow + d] += weight * value.absolute[at];
            }
          }
        }
      }
    }
  }
  return { values, scale: sizes, dims: p.dims };
}

/** What Linformer must give, with its error budget. */
export function expectLinformer(q: Tensor, k: Tensor, v: Tensor, meaning: LinformerMeaning): Expected {
  const keys = k.dims[meaning.layout === 'blhd' ? 1 : 2];
  const terms = keys + q.dims[3] + meaning.keyProjection.dims.slice(-2)[0];
  return {
    ...linformer(q, k, v, meaning, (value) => value),
    naive: linformer(q, k, v, meaning, Math.fround).values,
    terms,
  };
}
