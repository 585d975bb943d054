import { float32Of, randomNormal } from '../convert';
import { type DataType, type Tensor, tensor } from '../tensor';
import type { Shape } from './suite';

/** Queries, keys and values `[1, heads, length, dim]`. */
export interface Inputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
}

/** Seeded normal inputs: the same numbers in every run and for every contender. One query row if `queries` is 1. */
export function makeInputs({ n, heads, kvHeads, dim }: Shape, type: DataType = 'float32', queries = n): Inputs {
  return {
    q: makeQueries(heads, queries, dim, type),
    k: randomNormal([1, kvHeads, n, dim], { seed: 2, type }),
    v: randomNormal([1, kvHeads, n, dim], { seed: 3, type }),
  };
}

/** The queries `[1, heads, queries, dim]` of these inputs. */
export function makeQueries(heads: number, queries: number, dim: number, type: DataType = 'float32'): Tensor {
  return randomNormal([1, heads, queries, dim], { seed: 1, type });
}

/**
 * Inputs whose rows stand around a centre that moves on `steps` times along the sequence, as those of texts do. Of rows
 * that are independent of each other, the means of segments and the sums over all keys would nearly vanish, and with them
 * every mistake in what is made of them.
 *
 * @param spread standard deviation around the centres, whose own is 1; with 0 exact attention has a rank of `steps`
 */
export function driftingInputs(shape: Shape, steps = 64, spread = 1): Inputs {
  const inputs = makeInputs(shape);
  for (const [index, { data, dims }] of [inputs.q, inputs.k, inputs.v].entries()) {
    const [, heads, n, dim] = dims as [number, number, number, number];
    const rows = data as Float32Array;
    const centres = randomNormal<'float32'>([1, heads, steps, dim], { seed: 4 + index }).data;
    for (let row = 0; row < heads * n; row++) {
      const centre = Math.floor(row / n) * steps + Math.floor(((row % n) * steps) / n);
      for (let d = 0; d < dim; d++) {
        const value = rows[row * dim + d] as number;
        rows[row * dim + d] = (centres[centre * dim + d] as number) + spread * value;
      }
    }
  }
  return inputs;
}

/** Positions [start, end) of a sequence. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** Cuts n positions into sequences whose lengths are all unlike, the longest about `count` times the shortest. */
export function unlikeSpans(n: number, count: number): Span[] {
  // 29 shares no factor with the usual counts, which are powers of two: its multiples are a permutation.
  const weights = Array.from({ length: count }, (_, i) => ((29 * i) % count) + 1);
  const total = weights.reduce((a, b) => a + b, 0);
  let before = 0;
  const cuts = weights.map((weight, i) => {
    before += weight;
    return i + 1 + Math.floor(((n - count) * before) / total);
  });
  return cuts.map((end, i) => ({ start: i === 0 ? 0 : (cuts[i - 1] as number), end }));
}

/** The rows [start, end) of every head. */
export function rows({ data, dims, type }: Tensor, start: number, end: number): Tensor {
  const [, heads, n, dim] = dims as [number, number, number, number];
  const source = data as Float32Array | Uint16Array;
  const size = (end - start) * dim;
  const result = type === 'float32' ? new Float32Array(heads * size) : new Uint16Array(heads * size);
  for (let head = 0; head < heads; head++) {
    const from = (head * n + start) * dim;
    result.set(source.subarray(from, from + size), head * size);
  }
  return tensor(result, [1, heads, end - start, dim], type);
}

/** The same with heads after positions: `[1, length, heads, dim]`, as onnxruntime's own operators want it. */
export function positionsFirst({ data, dims, type }: Tensor): Tensor {
  const [, heads, n, dim] = dims as [number, number, number, number];
  const source = data as Float32Array | Uint16Array;
  const result = type === 'float32' ? new Float32Array(source.length) : new Uint16Array(source.length);
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < n; row++) {
      const from = (head * n + row) * dim;
      result.set(source.subarray(from, from + dim), (row * heads + head) * dim);
    }
  }
  return tensor(result, [1, n, heads, dim], type);
}

/** And back, which is the same exchange of axes: `[1, length, heads, dim]` to `[1, heads, length, dim]`. */
export const headsFirst = positionsFirst;

/** A copy in memory of its own. */
export function copy({ data, dims, type }: Tensor): Tensor {
  return tensor((data as Float32Array | Uint16Array).slice(), dims, type);
}

/** The numbers of each head of a tensor `[1, heads, length, dim]`. */
export function headsOf(of: Tensor): (head: number) => Float32Array {
  const all = float32Of(of);
  const size = all.length / (of.dims[1] as number);
  return (head) => all.subarray(head * size, (head + 1) * size);
}
