import type { RotaryOptions } from '../lib';
import type { Tensor } from '../lib/tensor';
import { toFloat32, toFloat64 } from './half';
import type { Expected } from './tolerance';

/** What of the options changes the result. */
export type RotaryMeaning = Pick<RotaryOptions, 'rope' | 'norm' | 'positions' | 'layout'>;

/** Rows of the tensor with the positions they stand at. */
function rowsOf(x: Tensor, { rope, positions, layout = 'bhld' }: RotaryMeaning): { start: number; position: number }[] {
  const [batch, second, third, dim] = x.dims;
  return Array.from({ length: batch * second * third }, (_, row) => {
    const item = Math.floor(row / (second * third));
    const first = positions?.[item] ?? rope?.firstPosition ?? 0;
    return { start: row * dim, position: first + (layout === 'bhld' ? row % third : Math.floor(row / third) % second) };
  });
}

/** Places of both elements of pair i. */
const pairAt = (i: number, dim: number, pairing = 'half'): [number, number] =>
  pairing === 'half' ? [i, i + dim / 2] : [2 * i, 2 * i + 1];

/** `rotary` in float64, and for each element the sum of the absolute values of its terms. */
function referenceRotary(x: Tensor, meaning: RotaryMeaning): { values: Float64Array; scale: Float64Array } {
  const { rope, norm } = meaning;
  const dim = x.dims[3];
  const values = toFloat64(x);
  const scale = values.map(Math.abs);
  for (const { start, position } of rowsOf(x, meaning)) {
    const [row, size] = [values.subarray(start, start + dim), scale.subarray(start, start + dim)];
    const square = row.reduce((sum, value) => sum + value * value, 0) / dim;
    const factor = 1 / Math.sqrt(square + (norm?.epsilon ?? 1e-6));
    const normalize = (when: string): void => {
      if (norm === undefined) return;
      for (let c = 0; c < dim; c++) {
        const own = when === 'first' ? factor : 1;
        const gain = (norm.gainOrder ?? 'before-rotation') === when ? (norm.gain?.[c] ?? 1) : 1;
        row[c] = row[c] * own * gain;
        size[c] *= own * Math.abs(gain);
      }
    };
    normalize('first');
    normalize('before-rotation');
    for (let i = 0; rope !== undefined && i < dim / 2; i++) {
      const [a, b] = pairAt(i, dim, rope.pairing);
      const angle = position * rope.frequencies[i];
      const [cosine, sine] = [Math.cos(angle), Math.sin(angle)];
      const [p, q, sizeP, sizeQ] = [row[a], row[b], size[a], size[b]];
      row[a] = p * cosine - q * sine;
      row[b] = p * sine + q * cosine;
      size[a] = sizeP * Math.abs(cosine) + sizeQ * Math.abs(sine);
      size[b] = sizeP * Math.abs(sine) + sizeQ * Math.abs(cosine);
    }
    normalize('after-rotation');
  }
  return { values, scale };
}

/** The same with every step rounded to float32; only angles are float64. */
function naiveRotary(x: Tensor, meaning: RotaryMeaning): Float32Array {
  const f32 = Math.fround;
  const { rope, norm } = meaning;
  const dim = x.dims[3];
  const values = toFloat32(x).slice();
  for (const { start, position } of rowsOf(x, meaning)) {
    const row = values.subarray(start, start + dim);
    const square = f32(row.reduce((sum, value) => f32(sum + f32(value * value)), 0) / dim);
    const factor = f32(1 / f32(Math.sqrt(f32(square + (norm?.epsilon ?? 1e-6)))));
    const multiply = (by: ArrayLike<number> | undefined): void => {
      for (let c = 0; by !== undefined && c < dim; c++) row[c] = f32(row[c] * f32(by[c]));
    };
    const late = norm?.gainOrder === 'after-rotation';
    if (norm !== undefined) multiply(new Float32Array(dim).fill(factor));
    if (!late) multiply(norm?.gain);
    for (let i = 0; rope !== undefined && i < dim / 2; i++) {
      const [a, b] = pairAt(i, dim, rope.pairing);
      const angle = position * rope.frequencies[i];
      const [cosine, sine] = [f32(Math.cos(angle)), f32(Math.sin(angle))];
      const [p, q] = [row[a], row[b]];
      row[a] = f32(f32(p * cosine) - f32(q * sine));
      row[b] = f32(f32(p * sine) + f32(q * cosine));
    }
    if (late) multiply(norm?.gain);
  }
  return values;
}

/**
 * What `rotary` must give, with its error budget.
 *
 * @param budget `'floor'` for data on which float32 squares overflow or vanish, and with them the naive form
 */
export function expectRotary(x: Tensor, meaning: RotaryMeaning, budget: 'naive' | 'floor' = 'naive'): Expected {
  return {
    ...referenceRotary(x, meaning),
    dims: x.dims,
    naive: budget === 'naive' ? naiveRotary(x, meaning) : undefined,
    terms: meaning.norm === undefined ? 2 : x.dims[3] + 2,
  };
}
