import type { DataType, Tensor } from '../tensor';
import { type Inputs, numbers } from './inputs';

/** An answer that must not be timed. */
export class WrongAnswer extends Error {}

/** What decides which keys a query sees: the last query stands at the last key. */
export interface Meaning {
  readonly causal: boolean;
  /** Keys seen up to the query's own, that one included. */
  readonly window?: number;
}

/** One row of the answer in float64. */
interface Sample {
  readonly head: number;
  readonly row: number;
  readonly values: Float64Array;
  /** Σ p |v|: what rounding errors are relative to. */
  readonly scale: Float64Array;
}

/**
 * Largest error allowed, as a share of Σ p |v|, by the output's type. Far above what float32 arithmetic loses (about
 * 1e-6) and far below what any mistake makes; for 16 bits, a few units in the last place.
 */
const tolerances: Readonly<Record<DataType, number>> = { float32: 2e-5, float16: 4e-3, bfloat16: 2e-2 };

/** Rows of exact attention in float64: of a few heads, the first, some in the middle and the last. */
export class Reference {
  readonly #samples: Sample[] = [];
  readonly #queries: number;
  readonly #heads: number;

  constructor(inputs: Inputs, meaning: Meaning) {
    const [, heads, queries] = inputs.q.dims as [number, number, number];
    this.#queries = queries;
    this.#heads = heads;
    const values = { q: numbers(inputs.q), k: numbers(inputs.k), v: numbers(inputs.v) };
    for (const head of distinct([0, heads >> 1, heads - 1])) {
      for (const row of distinct([0, 1, queries >> 2, queries >> 1, queries - 2, queries - 1])) {
        if (row >= 0 && row < queries) this.#samples.push(sample(inputs, values, meaning, head, row));
      }
    }
  }

  /**
   * Holds the sampled rows of an output against the reference.
   *
   * @param output elements in the order `[heads, length, dim]`, or `[length, heads, dim]` if `positionsFirst`
   * @returns the largest error as a share of Σ p |v|
   * @throws WrongAnswer
   */
  check(name: string, output: Tensor, positionsFirst = false): number {
    const found = numbers(output);
    let worst = 0;
    for (const { head, row, values, scale } of this.#samples) {
      const start = (positionsFirst ? row * this.#heads + head : head * this.#queries + row) * values.length;
      for (const [d, value] of values.entries()) {
        const error = Math.abs((found[start + d] as number) - value) / (scale[d] as number);
        // Written so that NaN, and an element that is not there, fail.
        if (!(error <= tolerances[output.type])) {
          throw new WrongAnswer(
            `${name}: wrong answer, not timed: head ${head}, row ${row}, element ${d} is ${found[start + d]}, ` +
              `expected ${value} (relative error ${error.toExponential(1)}, allowed ${tolerances[output.type]})`,
          );
        }
        worst = Math.max(worst, error);
      }
    }
    return worst;
  }
}

function sample(
  { q, k }: Inputs,
  values: { readonly q: Float32Array; readonly k: Float32Array; readonly v: Float32Array },
  { causal, window = Infinity }: Meaning,
  head: number,
  row: number,
): Sample {
  const [, heads, queries, dim] = q.dims as [number, number, number, number];
  const [, kvHeads, keys] = k.dims as [number, number, number];
  const own = row + keys - queries;
  const end = causal ? own + 1 : keys;
  const start = Math.max(0, own - window + 1);
  const query = values.q.subarray((head * queries + row) * dim, (head * queries + row + 1) * dim);
  const first = Math.floor((head * kvHeads) / heads) * keys;

  const weights = new Float64Array(end - start);
  let max = -Infinity;
  for (let key = start; key < end; key++) {
    let dot = 0;
    for (let d = 0; d < dim; d++) dot += (query[d] as number) * (values.k[(first + key) * dim + d] as number);
    weights[key - start] = dot / Math.sqrt(dim);
    max = Math.max(max, dot / Math.sqrt(dim));
  }
  let sum = 0;
  for (const [i, score] of weights.entries()) {
    weights[i] = Math.exp(score - max);
    sum += weights[i] as number;
  }

  const result = { head, row, values: new Float64Array(dim), scale: new Float64Array(dim) };
  for (let key = start; key < end; key++) {
    const weight = (weights[key - start] as number) / sum;
    for (let d = 0; d < dim; d++) {
      const value = values.v[(first + key) * dim + d] as number;
      result.values[d] = (result.values[d] as number) + weight * value;
      result.scale[d] = (result.scale[d] as number) + weight * Math.abs(value);
    }
  }
  return result;
}

function distinct(items: readonly number[]): number[] {
  return [...new Set(items)];
}
