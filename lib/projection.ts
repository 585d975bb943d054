/** Linear maps of the rows of a layer, y = x·W + b. */
import type { Call, CallOptions } from './call';
import { asBits, type Operand } from './check';
import { cast, convertCall } from './convert';
import { productCall } from './matmul';
import { type Steps, step } from './steps';
import { allocate, type DataType, type Tensor } from './tensor';

/** One of several maps of the same rows. */
export interface LinearMap {
  /** `[in, columns]`; columns may be 0. */
  readonly weight: Tensor;
  /** `[columns]` */
  readonly bias?: Tensor | undefined;
}

/** A map as native code takes it. */
export interface OperandMap {
  readonly weight: Operand;
  readonly bias: Float32Array | null;
  /** What errors call the weights. */
  readonly name: string;
}

/** The weights where they lie, and a copy of the bias. */
export function operandMap({ weight, bias }: LinearMap, name = 'weights'): OperandMap {
  return {
    name,
    weight: { ...weight, data: asBits(weight.data) },
    bias: bias === undefined ? null : cast(bias, 'float32').data,
  };
}

/** Maps that read the same rows, as one matrix product: their weights side by side. */
export class Projection {
  readonly #weights: Operand;
  /** Of all maps, or null where none has one. */
  readonly #bias: Float32Array | null;
  readonly #widths: readonly number[];

  /** Copies the weights, in their element type if they have one in common, else in float32. */
  constructor(maps: readonly LinearMap[]) {
    const types = new Set(maps.map(({ weight }) => weight.type));
    const type: DataType = types.size === 1 ? (maps[0] as LinearMap).weight.type : 'float32';
    const rows = (maps[0] as LinearMap).weight.dims[0] as number;
    this.#widths = maps.map(({ weight }) => weight.dims[1] as number);
    const width = this.#widths.reduce((sum, own) => sum + own, 0);
    this.#weights = allocate('weights', [rows, width], type) as Operand;
    this.#bias = maps.some(({ bias }) => bias !== undefined) ? new Float32Array(width) : null;
    let first = 0;
    for (const [index, { weight, bias }] of maps.entries()) {
      const own = this.#widths[index] as number;
      const source = asBits((weight.type === type ? weight : cast(weight, type)).data);
      for (let row = 0; row < rows; row++) {
        this.#weights.data.set(source.subarray(row * own, (row + 1) * own), row * width + first);
      }
      if (bias !== undefined) this.#bias?.set(cast(bias, 'float32').data, first);
      first += own;
    }
  }

  /**
   * @param input `[…, in]`
   * @returns for each map its `[rows, columns]`
   */
  *apply(input: Operand, how: CallOptions): Steps<Float32Array[]> {
    const rows = input.dims.slice(0, -1).reduce((product, extent) => product * extent, 1);
    const all = allocate('hidden', [rows, this.#weights.dims[1] as number], 'float32') as Tensor<Float32Array>;
    yield* step(rowProduct(input, this.#weights, all as Operand, 'weights', how));
    return this.#split(all.data, rows);
  }

  /** Takes the columns of each map out of the rows of all, and adds the biases. */
  #split(all: Float32Array, rows: number): Float32Array[] {
    const width = this.#weights.dims[1] as number;
    const bias = this.#bias;
    let first = 0;
    return this.#widths.map((own) => {
      const part = allocate('hidden', [rows, own], 'float32').data as Float32Array;
      for (let row = 0; row < rows; row++) {
        const from = row * width + first;
        const to = row * own;
        if (bias === null) part.set(all.subarray(from, from + own), to);
        else for (let c = 0; c < own; c++) part[to + c] = (all[from + c] as number) + (bias[first + c] as number);
      }
      first += own;
      return part;
    });
  }
}

/**
 * One map, whose weights stay where they are.
 *
 * @param input [in] elements a row, in any dims
 * @param output as many rows, of any element type; rounded to once
 * @param isValid of a row; one that is not holds padding, which gets no bias
 */
export function* applyInto(
  input: Tensor,
  { weight, bias, name }: OperandMap,
  output: Operand,
  isValid: (row: number) => boolean,
  how: CallOptions,
): Steps<void> {
  const inPlace = bias === null || output.type === 'float32';
  const sums = inPlace ? output : (allocate('out', output.dims, 'float32') as Operand);
  yield* step(rowProduct(input as Operand, weight, sums, name, how));
  if (bias === null) return;
  const { data } = sums;
  const n = bias.length;
  for (let first = 0; first < data.length; first += n) {
    if (!isValid(first / n)) continue;
    for (let c = 0; c < n; c++) data[first + c] = (data[first + c] as number) + (bias[c] as number);
  }
  if (!inPlace) yield* step(convertCall(sums, output, how));
}

/** The product of rows of as many elements as `b` has rows, in any dims. */
function rowProduct(a: Operand, b: Operand, output: Operand, weights: string, how: CallOptions): Call<Operand> {
  const [k, n] = b.dims as [number, number];
  const m = output.dims.slice(0, -1).reduce((product, extent) => product * extent, 1);
  const names = { a: 'hidden', b: weights };
  const shape = { starts: Float64Array.of(0, 0), batch: 1, m, n, k, transposeA: false, transposeB: false };
  return productCall({ a, b, output, ...shape, names }, how);
}
