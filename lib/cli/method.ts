/** The low-rank family as data: which method, with which parameters, at which cost. */
import { attentionFlops } from './contender';
import type { Shape } from './suite';

/** Landmarks in place of keys, and an iterated pseudo-inverse. */
export interface NystromMethod {
  readonly op: 'nystrom';
  readonly landmarks: number;
  readonly iterations: number;
}

/** φ of queries and keys, as many features as the head is wide. */
export type FeatureName = 'identity' | 'elu' | 'relu';

/** Feature maps in place of the softmax. */
export interface LinearMethod {
  readonly op: 'linear';
  readonly featureMap: FeatureName;
  readonly causal: boolean;
  readonly normalize: boolean;
}

/** Keys and values projected along the sequence. */
export interface LinformerMethod {
  readonly op: 'linformer';
  readonly projected: number;
}

/** The attention matrix as factors, from passes over it that never hold it. */
export interface LowrankMethod {
  readonly op: 'lowrank';
  readonly rank: number;
  readonly oversample: number;
  readonly powerIterations: number;
}

/** Keys and values as a base that all heads share and a latent for each; causal, with rotary embedding. */
export interface LrkvMethod {
  readonly op: 'lrkv';
  /** Of the keys and the values of every head. */
  readonly rank: number;
  /** How rotary embedding meets the keys' latents. */
  readonly ropeMode: 'exact' | 'latent' | 'none';
  /** The values' base meets a matrix of each head, as factors of a trained model have it. */
  readonly gauge: boolean;
}

export type Method = NystromMethod | LinearMethod | LinformerMethod | LowrankMethod | LrkvMethod;

/** A change of our own call, to compare with. */
export interface MethodVariant {
  readonly name: string;
  readonly threads?: number;
  /** Write into a tensor given by the caller. */
  readonly out?: boolean;
  readonly method?: Method;
  /** Of a decode step: one state in every step, which stays in the processor's cache. */
  readonly warm?: boolean;
}

/** Rows or columns that the method makes of the n keys: what its memory grows with, beside the head size. */
export function width(method: Method, shape: Shape): number {
  const { dim, heads } = shape;
  switch (method.op) {
    case 'nystrom':
      return method.landmarks;
    case 'linear':
      return dim;
    case 'linformer':
      return method.projected;
    case 'lowrank':
      return method.rank + method.oversample;
    case 'lrkv':
      return lrkvElements(method, shape) / heads;
  }
}

/** Elements that a position takes in the cache, of all heads. In the mode `'exact'` keys are held whole. */
export function lrkvElements({ rank, ropeMode }: LrkvMethod, { kvHeads, dim }: Shape): number {
  const factored = dim + kvHeads * rank;
  return factored + (ropeMode === 'exact' ? kvHeads * dim : factored);
}

/**
 * Multiplications and additions of one query over n positions in LRKV's form: scores and sums over base and latents, and
 * what takes the query and the sums from and to the head size.
 */
export function lrkvDecodeFlops({ rank, ropeMode, gauge }: LrkvMethod, { n, heads, dim }: Shape): number {
  const exact = ropeMode === 'exact';
  const seen = (exact ? dim : dim + rank) + (dim + rank);
  const once = (exact ? 1 : 2) * dim * rank + (gauge ? dim * dim : 0);
  return 2 * heads * (n * seen + once);
}

/** The same of matrix products that make n whole keys and values. */
export function lrkvProductFlops({ rank, gauge }: LrkvMethod, { n, kvHeads, dim }: Shape): number {
  return 2 * kvHeads * n * dim * (2 * rank + (gauge ? dim : 0));
}

/** Passes over the whole attention matrix that the factors take (Halko et al. 2011, arXiv 0909.4061, alg. 4.4 and 5.1). */
export function passes({ powerIterations }: LowrankMethod): number {
  return 2 * powerIterations + 2;
}

/**
 * Multiplications and additions of the method in its cheapest order, whoever computes more: what a causal form spends
 * on pairs within a block, softmax, features and denominators do not count.
 */
export function methodFlops(method: Method, shape: Shape): number {
  const { n, heads, dim } = shape;
  const m = width(method, shape);
  switch (method.op) {
    case 'nystrom':
      return heads * (8 * n * m * dim + method.iterations * 8 * m ** 3 + 4 * m ** 2 * dim);
    case 'linear':
      return heads * 4 * n * m * dim;
    case 'linformer':
      return heads * 8 * n * m * dim;
    case 'lowrank':
      return heads * passes(method) * 2 * n ** 2 * (dim + m);
    case 'lrkv':
      return lrkvProductFlops(method, shape) + attentionFlops(shape, true);
  }
}

const ropeWords = { exact: 'exact rope', latent: 'latent rope', none: '' } as const;

/** `m64`, `elu causal`, `k256`, `rank 32`. */
export function methodName(method: Method): string {
  switch (method.op) {
    case 'nystrom':
      return `m${method.landmarks}`;
    case 'linear':
      return [method.featureMap, method.causal ? 'causal' : '', method.normalize ? '' : 'not normalised']
        .filter((word) => word !== '')
        .join(' ');
    case 'linformer':
      return `k${method.projected}`;
    case 'lowrank':
      return `rank ${method.rank}`;
    case 'lrkv':
      return [`rank ${method.rank}`, ropeWords[method.ropeMode], method.gauge ? 'gauges' : '']
        .filter((word) => word !== '')
        .join(' ');
  }
}
