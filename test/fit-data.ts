/** Layers whose heads share as much as is wanted, and what a fitted layer stands for. */
import type { AttentionWeights, LrkvWeights, Tensor } from '../lib';
import { filled, normal } from './data';
import { toFloat64 } from './half';
import { type Rows, times } from './reference-fit';

export interface LayerShape {
  readonly modelDim: number;
  readonly heads: number;
  readonly kvHeads?: number;
  readonly width: number;
  /** Share of a head's energy that lies in a base common to all, turned by a matrix of each head's own. */
  readonly shared: number;
  readonly tokens: number;
  readonly biases?: boolean;
  readonly seed: number;
}

export interface Layer {
  readonly weights: AttentionWeights;
  readonly hidden: Tensor;
}

const scaled = (dims: readonly number[], seed: number, factor: number): Tensor => {
  const source = normal(dims, seed);
  return filled(dims, 'float32', (i) => source.data[i] * factor);
};

/**
 * √shared·base·T_h + √(1 − shared)·own_h·decay·mix_h, all normal; the decay is 2^(−8k / width) of column k. The hidden states'
 * columns are scaled by 2^−(i mod 7).
 */
export function layerOf(shape: LayerShape): Layer {
  const { modelDim: d, heads, kvHeads = heads, width: w, shared, tokens, biases = false, seed } = shape;
  const [base, own] = [normal([d, w], seed).data, normal([kvHeads, d, w], seed + 1).data];
  const [turn, mix] = [normal([kvHeads, w, w], seed + 2).data, normal([kvHeads, w, w], seed + 3).data];
  const whole = filled([d, kvHeads * w], 'float32', (i) => {
    const [row, head, column] = [Math.floor(i / (kvHeads * w)), Math.floor(i / w) % kvHeads, i % w];
    let [common, single] = [0, 0];
    for (let k = 0; k < w; k++) {
      common += base[row * w + k] * turn[(head * w + k) * w + column];
      single += own[(head * d + row) * w + k] * 2 ** ((-8 * k) / w) * mix[(head * w + k) * w + column];
    }
    return (Math.sqrt(shared) * common + Math.sqrt(1 - shared) * single) / Math.sqrt(w * d);
  });
  const states = normal([tokens, d], seed + 6);
  const bias = (columns: number, nth: number): Tensor => scaled([columns], seed + nth, 0.3);
  return {
    weights: {
      query: scaled([d, heads * w], seed + 4, 1 / Math.sqrt(d)),
      key: whole,
      value: whole,
      output: scaled([heads * w, d], seed + 5, 1 / Math.sqrt(d)),
      ...(biases
        ? { queryBias: bias(heads * w, 7), keyBias: bias(kvHeads * w, 8), valueBias: bias(kvHeads * w, 9) }
        : {}),
      heads,
      kvHeads,
    },
    hidden: filled([tokens, d], 'float32', (i) => states.data[i] * 2 ** -((i % d) % 7)),
  };
}

/** A matrix, or several columns of one, as rows; the bias, or zeros, as a last row where it is asked for. */
export function rowsOf(matrix: Tensor, bias?: Tensor | null): Rows {
  const [rows, columns] = matrix.dims;
  const values = toFloat64(matrix);
  const result = Array.from({ length: rows }, (_, i) => [...values.subarray(i * columns, (i + 1) * columns)]);
  if (bias !== undefined) result.push(bias === null ? new Array(columns).fill(0) : [...toFloat64(bias)]);
  return result;
}

export const columnsOf = (rows: Rows, first: number, count: number): Rows =>
  rows.map((row) => row.slice(first, first + count));

/** W_h `[modelDim + 1, width]` of every head of keys or values. */
export function headsOf(weights: AttentionWeights, side: 'key' | 'value'): Rows[] {
  const { kvHeads = weights.heads } = weights;
  const whole = rowsOf(weights[side], weights[`${side}Bias`] ?? null);
  const width = whole[0].length / kvHeads;
  return Array.from({ length: kvHeads }, (_, head) => columnsOf(whole, head * width, width));
}

/** The same of a fitted layer: base·gauge + down·up. */
export function fittedHeadsOf(weights: LrkvWeights, side: 'key' | 'value'): Rows[] {
  const base = rowsOf(weights[`${side}Base`], weights[`${side}BaseBias`] ?? null);
  const down = rowsOf(weights[`${side}Down`], weights[`${side}DownBias`] ?? null);
  const up = rowsOf(weights[`${side}Up`]);
  const gauge = weights[`${side}Gauge`];
  const [baseDim, width] = [base[0].length, weights[`${side}Up`].dims[1]];
  let first = 0;
  return weights[`${side}Ranks`].map((rank, head) => {
    const result = Array.from({ length: base.length }, () => new Array<number>(width).fill(0));
    const add = (rows: Rows): void => {
      for (const [i, row] of rows.entries()) for (let j = 0; j < width; j++) result[i][j] += row[j];
    };
    if (baseDim > 0) {
      if (gauge === undefined) add(base);
      else {
        const values = toFloat64(gauge);
        const own = Array.from({ length: baseDim }, (_, i) => {
          const at = (head * baseDim + i) * width;
          return [...values.subarray(at, at + width)];
        });
        add(times(base, own));
      }
    }
    if (rank > 0) add(times(columnsOf(down, first, rank), up.slice(first, first + rank)));
    first += rank;
    return result;
  });
}
