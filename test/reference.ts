import type { Tensor } from '../lib/tensor';
import { toFloat64 } from './half';
import { type AttentionMeaning, hidden, problemOf, type Shaped } from './problem';

/**
 * The float64 answer of a computation. `scale` has, for each value, the sum of the absolute values of the terms that
 * were added up for it: what a rounding error is relative to, also where the terms cancel.
 */
export interface Answer {
  readonly values: Float64Array;
  readonly scale: Float64Array;
  readonly dims: readonly number[];
}

/** Rows in float64, `values` and `sizes` as of an {@link Answer}: of plain data the sizes are the absolute values. */
export interface Measured extends Shaped {
  readonly values: Float64Array;
  readonly sizes: Float64Array;
}

export function measured(tensor: Tensor): Measured {
  const values = toFloat64(tensor);
  return { values, sizes: values.map(Math.abs), dims: tensor.dims };
}

/** Exact attention in float64: `output` in the layout of the inputs, `lse` [batch, heads, length], natural log. */
export interface AttentionAnswer {
  readonly output: Float64Array;
  readonly lse: Float64Array;
  /** Dims of `output`. */
  readonly dims: readonly number[];
  readonly lseDims: readonly number[];
  /** Σ pⱼ |vⱼ| for each output, with the sizes of the vⱼ. */
  readonly outputScale: Float64Array;
  /**
   * 1 + Σ pⱼ (scale · Σ |q| |kⱼ| + |biasⱼ|), with the sizes of q and kⱼ, for each lse: the logits' own rounding is what moves it. Under a softcap the
   * first term counts by the slope of the cap there, and the capped logit is rounded too.
   */
  readonly lseScale: Float64Array;
}

/** {@link attentionOver} rows as they are. */
export function referenceAttention(q: Tensor, k: Tensor, v: Tensor, options: AttentionMeaning = {}): AttentionAnswer {
  return attentionOver(measured(q), measured(k), measured(v), options);
}

/**
 * softmax(q kᵀ · scale, capped, masked) v, one row at a time, straight from the definition.
 *
 * A hidden key is skipped before anything of it is read, so NaN there cannot leak; a NaN that is seen poisons its row.
 */
export function attentionOver(q: Measured, k: Measured, v: Measured, options: AttentionMeaning): AttentionAnswer {
  const p = problemOf(q, k, v, options);
  const [qs, ks, vs] = [q.values, k.values, v.values];
  const lseDims = [p.batch, p.heads, p.queries];
  const output = new Float64Array(p.dims.reduce((a, b) => a * b, 1));
  const outputScale = new Float64Array(output.length);
  const lse = new Float64Array(p.batch * p.heads * p.queries).fill(-Infinity);
  const lseScale = new Float64Array(lse.length).fill(1);
  const scores = new Float64Array(p.keys);
  const sizes = new Float64Array(p.keys);

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
          let dot = 0;
          let size = 0;
          for (let d = 0; d < p.headDim; d++) {
            dot += qs[qRow + d] * ks[kRow + d];
            size += q.sizes[qRow + d] * k.sizes[kRow + d];
          }
          let score = dot * p.scale;
          let moved = size * Math.abs(p.scale);
          if (p.softcap !== undefined) {
            const capped = Math.tanh(score / p.softcap);
            const slope = 1 - capped * capped;
            score = p.softcap * capped;
            moved = (slope === 0 ? 0 : slope * moved) + Math.abs(score);
          }
          scores[j] = score + bias;
          sizes[j] = moved + Math.abs(bias);
          max = Math.max(max, scores[j]);
        }
        if (max === hidden) continue;

        let sum = Math.exp(sink - max);
        for (const score of scores) sum += Math.exp(score - max);

        const row = (b * p.heads + h) * p.queries + i;
        const oRow = p.row(p, b, h, i);
        lse[row] = max + Math.log(sum);
        if (sink !== -Infinity) lseScale[row] += Math.abs(sink);
        for (let j = 0; j < p.keys; j++) {
          if (scores[j] === hidden) continue;
          const weight = Math.exp(scores[j] - max) / sum;
          const vRow = p.row(v, b, kvHead, j);
          lseScale[row] += weight * sizes[j];
          for (let d = 0; d < p.valueDim; d++) {
            output[oRow + d] += weight * vs[vRow + d];
            outputScale[oRow + d] += weight * v.sizes[vRow + d];
          }
        }
      }
    }
  }
  return { output, lse, dims: p.dims, lseDims, outputScale, lseScale };
}

/** One partial result of attention over some of the keys: `output` with its `lse` of one axis less. */
export interface ReferencePart {
  readonly output: Float64Array;
  readonly lse: Float64Array;
}

/**
 * Attention over the union of disjoint key ranges: each part's output weighted by its share exp(lse) of the whole
 * denominator. A part that saw no key (lse −Infinity) adds nothing. Outputs are [..., length, dim], rows as in `lse`.
 */
export function referenceMerge(parts: readonly ReferencePart[]): ReferencePart & { readonly scale: Float64Array } {
  const [{ output: first, lse: firstLse }] = parts as [ReferencePart];
  const dim = first.length / firstLse.length;
  const output = new Float64Array(first.length);
  const scale = new Float64Array(first.length);
  const lse = new Float64Array(firstLse.length).fill(-Infinity);
  for (let row = 0; row < lse.length; row++) {
    const max = parts.reduce((most, part) => Math.max(most, part.lse[row]), -Infinity);
    if (max === hidden) continue;
    const sum = parts.reduce((total, part) => total + Math.exp(part.lse[row] - max), 0);
    lse[row] = max + Math.log(sum);
    for (const part of parts) {
      if (part.lse[row] === -Infinity) continue;
      const weight = Math.exp(part.lse[row] - max) / sum;
      for (let d = row * dim; d < (row + 1) * dim; d++) {
        output[d] += weight * part.output[d];
        scale[d] += weight * Math.abs(part.output[d]);
      }
    }
  }
  return { output, lse, scale };
}
