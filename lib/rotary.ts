import { types } from 'node:util';

import { type Call, type CallOptions, callOptionNames, checkLayout, nothing, runAsync, runSync } from './call';
import { checkNumbers, checkOptions, checkOut, checkTensor, type Operand } from './check';
import { expected } from './errors';
import type { Layout } from './full-options';
import { addon, typeNumbers } from './native';
import { view } from './read';
import {
  type CheckedRmsNorm,
  type CheckedRope,
  checkPosition,
  checkRmsNorm,
  checkRope,
  type RmsNormOptions,
  type Rope,
} from './rope';
import { type Steps, step } from './steps';
import { allocate, type Tensor } from './tensor';

/** Options of {@link rotary}: `rope`, `norm` or both must be given. */
export interface RotaryOptions extends CallOptions {
  /** How rows are rotated. Default not at all. */
  readonly rope?: Rope;
  /** How rows are normalised. Default not at all. */
  readonly norm?: RmsNormOptions;
  /**
   * Position of row 0 of each batch item, whole numbers from 0 to 2^47; only together with `rope`, whose `firstPosition`
   * then does not count. Default `rope.firstPosition` for all.
   */
  readonly positions?: readonly number[] | Int32Array;
  /** Axis order of `x` and the result. Default `'bhld'`. */
  readonly layout?: Layout;
}

const optionNames: ReadonlySet<string> = new Set([...callOptionNames, 'rope', 'norm', 'positions', 'layout']);

/**
 * Rotary position embedding, RMS normalisation (QK-norm), or both, of the rows of queries or keys, on a worker thread.
 *
 * Row i of a batch item stands at its first position + i, in all heads. Angles are computed in float64, so that positions
 * of a million are as good as small ones; the rest is float32.
 *
 * @param x `[batch, heads, length, headDim]`, or `[batch, length, heads, headDim]` with layout `'blhd'`; headDim is even
 *   where rows are rotated
 * @returns a tensor of x's dims and type
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function rotary(x: Tensor, options: RotaryOptions): Promise<Tensor> {
  return await runAsync(rotary, () => prepare(x, options));
}

/** {@link rotary} on the calling thread. */
export function rotarySync(x: Tensor, options: RotaryOptions): Tensor {
  return runSync(rotarySync, () => prepare(x, options));
}

function prepare(x: Tensor, given: RotaryOptions): Call<Tensor> {
  const options: Partial<RotaryOptions> = checkOptions('options', given, optionNames);
  const input = checkTensor('x', x, 4);
  const rowsBeforeHeads = checkLayout(options.layout);
  const [batch, second, third, dim] = input.dims as [number, number, number, number];
  const heads = rowsBeforeHeads ? third : second;
  if (heads === 0 || dim === 0) throw expected('ERR_SHAPE', 'x', 'at least one head of size >= 1', input.dims);
  if (options.rope === undefined && options.norm === undefined)
    throw expected('ERR_ARGUMENT', 'rope', 'this option or the option norm', undefined);
  const rope = options.rope === undefined ? null : checkRope('rope', options.rope, dim);
  const norm = options.norm === undefined ? null : checkRmsNorm('norm', options.norm, dim);
  if (rope === null && options.positions !== undefined)
    throw expected('ERR_ARGUMENT', 'positions', 'no positions, as no rows are rotated', options.positions);
  const output =
    options.out === undefined
      ? (allocate('out', input.dims, input.type) as Operand)
      : checkOut(options.out, input.dims, [input.data]);
  const empty = view.length(output.data) === 0;
  const positions =
    options.positions === undefined
      ? new Float64Array(empty ? 0 : batch).fill(rope?.firstPosition ?? 0)
      : checkPositions(options.positions, batch);
  const call = rotationCall({ input, output, rowsBeforeHeads, rope, norm, positions }, options);
  return { ...call, result: options.out ?? (output as Tensor) };
}

/** Rows that are to be rotated, normalised, or both. */
export interface Rotation {
  /** Of four axes. */
  readonly input: Operand;
  /** Of input's dims; may be the input itself. */
  readonly output: Operand;
  readonly rowsBeforeHeads: boolean;
  readonly rope: CheckedRope | null;
  readonly norm: CheckedRmsNorm | null;
  /** Of row 0 of each batch item. */
  readonly positions: Float64Array;
}

/** The native call of a rotation. */
export function rotationCall(rotation: Rotation, options: CallOptions): Call<Operand> {
  const { input, output, rowsBeforeHeads, rope, norm, positions } = rotation;
  const [batch, second, third, dim] = input.dims as [number, number, number, number];
  const [heads, length] = rowsBeforeHeads ? [third, second] : [second, third];
  return {
    op: view.length(output.data) === 0 ? nothing : addon.rotary,
    operands: [input.data, output.data, rope?.frequencies ?? null, positions, norm?.gain ?? null],
    numbers: Float64Array.of(
      typeNumbers[input.type],
      typeNumbers[output.type],
      batch,
      heads,
      length,
      dim,
      rowsBeforeHeads ? 1 : 0,
      rope?.pairing ?? 0,
      norm === null ? 0 : 1,
      norm?.epsilon ?? 0,
      norm?.gainOrder ?? 0,
    ),
    options,
    result: output,
  };
}

/**
 * Rotates and normalises rows where they lie; without a rotation and a norm there is nothing to do.
 *
 * @param x float32 `[batch, length, heads, headDim]`
 * @param starts number of rows before each batch item's first
 */
export function* placeRows(
  x: Tensor,
  rope: CheckedRope | null,
  norm: CheckedRmsNorm | null,
  starts: readonly number[],
  how: CallOptions,
): Steps<void> {
  if (rope === null && norm === null) return;
  const positions = Float64Array.from(starts, (start) => start + (rope?.firstPosition ?? 0));
  const rows = x as Operand;
  yield* step(rotationCall({ input: rows, output: rows, rowsBeforeHeads: true, rope, norm, positions }, how));
}

function checkPositions(positions: unknown, batch: number): Float64Array {
  const check = (position: unknown, item: number): number => checkPosition(`positions[${item}]`, position);
  const what = `${batch} positions (one a batch item)`;
  return Float64Array.from(checkNumbers('positions', positions, types.isInt32Array, batch, what, check));
}
