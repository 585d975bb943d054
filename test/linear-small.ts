/** A small call of linear attention and a state that fits it, and options that both refuse. */
import { elu, LinearState, zeros } from '../lib';
import type { Tensor } from '../lib/tensor';
import { normal } from './data';
import type { Refusal } from './refusal';
import { primitives, thrown } from './wrong-tensors';

// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
export type Loose = (...args: any[]) => unknown;

export const of = (...dims: number[]): Tensor => zeros(dims);
export const q = normal([2, 4, 5, 8], 1);
export const k = normal([2, 2, 5, 8], 2);
export const v = normal([2, 2, 5, 6], 3);
export const decay = of(2, 2, 5);
export const keyMask = { data: new Uint8Array(10).fill(1), dims: [2, 5], type: 'bool' };
export const state = () => new LinearState({ batch: 2, heads: 2, headDim: 8, valueDim: 6, featureMap: elu() });

export const raise = (): never => {
  throw thrown;
};

/** Values that an option of another kind may have by mistake, with what is said of them. */
export const given = primitives.filter(([value]) => value !== undefined);
export const notFinite: readonly (readonly [unknown, string])[] = [
  ...given.filter(([value]) => typeof value !== 'number'),
  [NaN, 'NaN'],
  [Infinity, 'Infinity'],
  [1e39, '1e+39'],
  [{ valueOf: () => 1 }, 'an object'],
];

/** Wrong options, the argument they are refused for, and what is said of them. */
export type Row = readonly [options: object, code: Refusal['code'], argument: string, received?: string | RegExp];
