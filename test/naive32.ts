import type { Tensor } from '../lib/tensor';
import { toFloat32 } from './half';
import { type AttentionMeaning, hidden, problemOf } from './problem';
import { type MatmulMeaning, planMatmul } from './reference-matmul';

// The textbook forms in the kernels' own precision: every step rounded to float32, sums from left to right. Their
// error against float64 is what plain arithmetic costs on the given data, and a kernel may use twice that.

const f32 = Math.fround;

/** softmax(q kᵀ · scale, capped, masked) v in float32 and three passes: scores, exponentials, weighted sum. */
export function naiveAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionMeaning = {},
): { readonly output: Float32Array; readonly lse: Float32Array } {
  const p = problemOf(q, k, v, options);
  const [qs, ks, vs] = [toFloat32(q), toFloat32(k), toFloat32(v)];
  const scale = f32(p.scale);
  const cap = p.softcap === undefined ? undefined : f32(p.softcap);
  const output = new Float32Array(p.dims.reduce((a, b) => a * b, 1));
  const lse = new Float32Array(p.batch * p.heads * p.queries).fill(-Infinity);
  const scores = new Float32Array(p.keys);

  for (let b = 0; b < p.batch; b++) {
    for (let h = 0; h < p.heads; h++) {
      const kvHead = Math.floor(h / p.group);
      const sink = p.sink(h);
      for (let i = 0; i < p.queries; i++) {
        if (!p.valid(b, i)) continue;
        const qRow = p.row(q, b, h, i);

        let max = sink;
        for (let j = 0; j < p.keys; j++) {
          scores[j] = hidden;
          const bias = p.bias(b, h, i, j);
          if (bias === hidden) continue;
          const kRow = p.row(k, b, kvHead, j);
          let dot = f32(0);
          for (let d = 0; d < p.headDim; d++) dot = f32(dot + f32(qs[qRow + d] * ks[kRow + d]));
          let score = f32(dot * scale);
          if (cap !== undefined) score = f32(cap * f32(Math.tanh(f32(score / cap))));
          scores[j] = f32(score + bias);
          max = Math.max(max, scores[j]);
        }
        if (max === hidden) continue;

        let sum = f32(Math.exp(f32(sink - max)));
        for (let j = 0; j < p.keys; j++) {
          if (scores[j] === hidden) continue;
          scores[j] = Math.exp(f32(scores[j] - max));
          sum = f32(sum + scores[j]);
        }
        lse[(b * p.heads + h) * p.queries + i] = f32(max + f32(Math.log(sum)));

        const oRow = p.row(p, b, h, i);
        for (let j = 0; j < p.keys; j++) {
          if (scores[j] === hidden) continue;
          const weight = f32(scores[j] / sum);
          const vRow = p.row(v, b, kvHead, j);
          for (let d = 0; d < p.valueDim; d++) {
            output[oRow + d] = f32(output[oRow + d] + f32(weight * vs[vRow + d]));
          }
        }
      }
    }
  }
  return { output, lse };
}

/** a · b in float32, either of them transposed if wanted. */
export function naiveMatmul(a: Tensor, b: Tensor, options: MatmulMeaning = {}): Float32Array {
  const plan = planMatmul(a, b, options);
  const [as, bs] = [toFloat32(a), toFloat32(b)];
  const { rows, columns, terms, starts } = plan;
  const result = new Float32Array(starts.length * rows * columns);
  let at = 0;
  for (const start of starts) {
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, at++) {
        let sum = f32(0);
        for (let term = 0; term < terms; term++) {
          const right = bs[start.b + column * plan.columnStep + term * plan.termStep];
          sum = f32(sum + f32(as[start.a + row * plan.rowStepA + term * plan.termStepA] * right));
        }
        result[at] = sum;
      }
    }
  }
  return result;
}
