import { float32Of } from '../convert';
import type { DataType, Tensor } from '../tensor';

/** An answer that must not be timed. */
export class WrongAnswer extends Error {}

/** One row of the right answer in float64. */
export interface Sample {
  readonly head: number;
  readonly row: number;
  readonly values: Float64Array;
  /** What rounding errors are relative to: Σ |p| |v| where the row is Σ p v. */
  readonly scale: Float64Array;
}

/**
 * Largest error allowed, as a share of the scale, by the output's type. Far above what float32 arithmetic loses (about
 * 1e-6) and far below what any mistake makes; for 16 bits, a few units in the last place.
 */
const tolerances: Readonly<Record<DataType, number>> = { float32: 2e-5, float16: 4e-3, bfloat16: 2e-2 };

/** Sampled rows of the right answer `[1, heads, queries, dim]`. */
export class Reference {
  readonly #samples: readonly Sample[];

  /**
   * @param rowOf computes a row; all rows of a head are asked for one after the other
   * @param allowance how many times the usual error may be
   */
  constructor(
    private readonly heads: number,
    private readonly queries: number,
    rowOf: (head: number, row: number) => Omit<Sample, 'head' | 'row'>,
    private readonly allowance = 1,
  ) {
    this.#samples = sampledHeads(heads).flatMap((head) =>
      sampledRows(queries).map((row) => ({ head, row, ...rowOf(head, row) })),
    );
  }

  /**
   * Holds the sampled rows of an output against the reference.
   *
   * @param output elements in the order `[heads, length, dim]`, or `[length, heads, dim]` if `positionsFirst`
   * @returns the largest error as a share of the scale
   * @throws WrongAnswer
   */
  check(name: string, output: Tensor, positionsFirst = false): number {
    const found = float32Of(output);
    const allowed = this.allowance * tolerances[output.type];
    let worst = 0;
    for (const { head, row, values, scale } of this.#samples) {
      const start = (positionsFirst ? row * this.heads + head : head * this.queries + row) * values.length;
      for (const [d, value] of values.entries()) {
        const error = Math.abs((found[start + d] as number) - value) / (scale[d] as number);
        // Written so that NaN, and an element that is not there, fail.
        if (!(error <= allowed)) {
          throw new WrongAnswer(
            `${name}: wrong answer, not timed: head ${head}, row ${row}, element ${d} is ${found[start + d]}, ` +
              `expected ${value} (relative error ${error.toExponential(1)}, allowed ${allowed})`,
          );
        }
        worst = Math.max(worst, error);
      }
    }
    return worst;
  }
}

/** A few heads: the first, the middle one and the last. */
function sampledHeads(heads: number): number[] {
  return distinct([0, heads >> 1, heads - 1]);
}

/** A few rows: the first, some in the middle and the last. */
function sampledRows(rows: number): number[] {
  return distinct([0, 1, rows >> 2, rows >> 1, rows - 2, rows - 1]).filter((row) => row >= 0 && row < rows);
}

function distinct(items: readonly number[]): number[] {
  return [...new Set(items)];
}
