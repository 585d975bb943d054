// Attention layers of random weights with a known share of common structure, where real checkpoints with rotary embedding
// are too large to come along.
import {
  approximationError,
  matmulSync,
  randomNormal,
  ropeFrequencies,
  rotarySync,
  type Tensor,
  tensor,
} from '../../lib';
import { headsFirst } from '../../lib/cli/inputs';
import type { AttentionWeights } from '../../lib/weights';

export interface Structure {
  /** Of each head's weights, what is common to all heads but for a rotation of the head's own; the rest is its own. */
  readonly shared: number;
  readonly rope: boolean;
  readonly seed: number;
}

export const heads = 8;
export const headDim = 32;
export const modelDim = 256;

/**
 * Keys and values W_h = shared·S·T_h + (1 − shared)·N_h, of norm 1 each, with orthogonal T_h: any, or for keys that are rotated
 * one that commutes with it. The singular values of S fall by a factor e over 8 of them, those of N_h over 4.
 */
export function structuredLayer({ shared, rope: rotated, seed }: Structure): AttentionWeights {
  const seeds = counter(seed);
  const side = (turned: boolean): Tensor => {
    const common = decaying(8, seeds);
    const columns = Array.from({ length: heads }, () => {
      const turn = turned ? pairTurn(seeds()) : orthogonal(headDim, seeds());
      const ofAll = matmulSync(common, turn).data;
      const own = decaying(4, seeds).data;
      return Float32Array.from(own, (value, i) => shared * Number(ofAll[i]) + (1 - shared) * value);
    });
    return sideBySide(columns);
  };
  return {
    heads,
    query: randomNormal([modelDim, heads * headDim], { seed: seeds() }),
    key: side(rotated),
    value: side(false),
    output: randomNormal([heads * headDim, modelDim], { seed: seeds() }),
    ...(rotated && { rope: { frequencies: ropeFrequencies(headDim) } }),
  };
}

/** Inputs [rows, modelDim] whose covariance has eigenvalues 1, 1/2, 1/3, …: that of every call alike, rows by the seed. */
export function structuredRows(rows: number, seed: number): Tensor {
  const { data, dims } = randomNormal<'float32'>([rows, modelDim], { seed });
  const scaled = data.map((value, i) => value / Math.sqrt(1 + (i % modelDim)));
  basis ??= orthogonal(modelDim, 4321);
  return matmulSync(tensor(scaled, dims), basis);
}

/** The eigenvectors of the inputs' covariance, made when they are first needed. */
let basis: Tensor | undefined;

/** Error ‖converted − original‖ / ‖original‖ of the logits of all rows with all rows, heads together. */
export function logitError(original: AttentionWeights, converted: AttentionWeights, rows: Tensor): number {
  const logits = ({ query, key, rope }: AttentionWeights): Tensor => {
    const projected = (matrix: Tensor): Tensor => {
      const whole = byHead(matmulSync(rows, matrix));
      return rope === undefined ? whole : rotarySync(whole, { rope });
    };
    return matmulSync(projected(query), projected(key), { transposeB: true });
  };
  return approximationError(logits(converted), logits(original)).relativeFrobenius;
}

/** The same of the heads' values, as the output projection weighs them. */
export function valueError(original: AttentionWeights, converted: AttentionWeights, rows: Tensor): number {
  const seen = ({ value, output }: AttentionWeights): Tensor =>
    matmulSync(byHead(matmulSync(rows, value)), tensor(output.data as Float32Array, [1, heads, headDim, modelDim]));
  return approximationError(seen(converted), seen(original)).relativeFrobenius;
}

/** [rows, heads · headDim] → [1, heads, rows, headDim]. */
function byHead({ data, dims }: Tensor): Tensor {
  return headsFirst(tensor(data as Float32Array, [1, dims[0], heads, headDim]));
}

/** [modelDim, headDim] of norm 1, whose singular values fall by a factor e over `fall` of them. */
function decaying(fall: number, seeds: () => number): Tensor {
  const { data, dims } = randomNormal<'float32'>([modelDim, headDim], { seed: seeds() });
  const scaled = data.map((value, i) => value * Math.exp(-(i % headDim) / fall));
  const norm = Math.sqrt(scaled.reduce((sum, value) => sum + value ** 2, 0));
  return matmulSync(
    tensor(
      scaled.map((value) => value / norm),
      dims,
    ),
    orthogonal(headDim, seeds()),
  );
}

/** A random orthogonal matrix: rows of a normal one, made orthonormal one after the other (Gram and Schmidt). */
function orthogonal(size: number, seed: number): Tensor {
  const { data } = randomNormal<'float32'>([size, size], { seed });
  const rows = Array.from({ length: size }, (_, row) => Float64Array.from(data.subarray(row * size, (row + 1) * size)));
  const inner = (a: Float64Array, b: Float64Array) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  for (const [index, row] of rows.entries()) {
    for (const before of rows.slice(0, index)) {
      const along = inner(row, before);
      for (let i = 0; i < size; i++) row[i] -= along * before[i];
    }
    const norm = Math.sqrt(inner(row, row));
    for (let i = 0; i < size; i++) row[i] /= norm;
  }
  return tensor(Float32Array.from(rows.flatMap((row) => Array.from(row))), [size, size]);
}

/** [headDim, headDim]: turns each rotary pair by an angle of its own, which commutes with rotary embedding. */
function pairTurn(seed: number): Tensor {
  const half = headDim / 2;
  const turn = new Float32Array(headDim * headDim);
  // The direction of a normal point in the plane is uniform.
  const { data } = randomNormal<'float32'>([half, 2], { seed });
  for (let pair = 0; pair < half; pair++) {
    const [x, y] = [data[2 * pair], data[2 * pair + 1]];
    const norm = Math.hypot(x, y);
    const [first, second] = [pair, pair + half];
    turn[first * headDim + first] = turn[second * headDim + second] = x / norm;
    turn[first * headDim + second] = y / norm;
    turn[second * headDim + first] = -y / norm;
  }
  return tensor(turn, [headDim, headDim]);
}

/** Matrices [modelDim, headDim], one a head, as [modelDim, heads · headDim]. */
function sideBySide(columns: readonly Float32Array[]): Tensor {
  const all = new Float32Array(modelDim * heads * headDim);
  for (const [head, of] of columns.entries()) {
    for (let row = 0; row < modelDim; row++) {
      all.set(of.subarray(row * headDim, (row + 1) * headDim), (row * heads + head) * headDim);
    }
  }
  return tensor(all, [modelDim, heads * headDim]);
}

function counter(start: number): () => number {
  let next = start;
  return () => next++;
}
