import type { DataType, Tensor } from '../lib/tensor';
import { filled, from, guarded, normal, swapLayout } from './data';
import { round, toFloat64, ulp } from './half';
import { compare, type Expected } from './tolerance';

const dims = [2, 3, 4, 5];
const values = toFloat64(normal(dims, 1));
const expected: Expected = { values, dims, terms: 16 };

/** The right answer in `type`, with some elements replaced. */
function answer(changes: Record<number, number> = {}, type: DataType = 'float32'): Tensor {
  return filled(dims, type, (i) => changes[i] ?? values[i]);
}

test('the rounded reference passes and uses little of its tolerance', () => {
  expect(compare(answer(), expected)).toBeLessThan(0.2);
});

test('a 16-bit output may be off by half a unit in its last place, and no more', () => {
  for (const type of ['float16', 'bfloat16'] as const) {
    const share = compare(answer({}, type), expected);
    expect(share).toBeGreaterThan(0.5);
    expect(share).toBeLessThanOrEqual(1);
    const next = round(values[7], type) + ulp(values[7], type);
    expect(() => compare(answer({ 7: next }, type), expected)).toThrow('1 of 120 elements');
  }
});

describe('wrong results are refused', () => {
  const at = 2 * 60 - 1;

  test.each([
    ['NaN', { [at]: NaN }],
    ['infinity', { [at]: Infinity }],
    ['a flipped sign', { [at]: -values[at] }],
    ['one element off', { [at]: values[at] + 1e-5 }],
    ['zero', { [at]: 0 }],
  ])('%s', (_name, changes) => {
    expect(() => compare(answer(changes), expected, 'the op')).toThrow(
      'the op: 1 of 120 elements are out of tolerance',
    );
    expect(() => compare(answer(changes), expected)).toThrow('worst at [1, 2, 3, 4]');
  });

  test('both negative', () => {
    const wrong: Expected = { values: Float64Array.of(-1, -2), dims: [2], terms: 1 };
    expect(() => compare(from([-1, -1], [2]), wrong)).toThrow('found -1, expected -2');
    expect(() => compare(from([-1, -3], [2]), wrong)).toThrow('found -3, expected -2');
  });

  test('heads swapped', () => {
    const heads = filled(dims, 'float32', (i) => {
      const head = Math.floor(i / 20) % 3;
      return values[i + 20 * (head === 0 ? 1 : head === 1 ? -1 : 0)];
    });
    expect(() => compare(heads, expected)).toThrow('80 of 120');
  });

  test('the other layout', () => {
    const swapped = swapLayout(answer());
    expect(() => compare(swapped, expected)).toThrow('dims [2, 4, 3, 5], expected [2, 3, 4, 5]');
    expect(() => compare({ ...swapped, dims }, expected)).toThrow('out of tolerance');
  });

  test('an untouched output', () => {
    expect(() => compare(guarded(dims).tensor, expected)).toThrow('120 of 120');
  });

  test('data of another length than the dims say', () => {
    expect(() => compare({ ...answer(), data: new Float32Array(119) }, expected)).toThrow('119 elements');
  });
});

describe('NaN and infinity', () => {
  const special: Expected = { values: Float64Array.of(NaN, Infinity, -Infinity, 1), dims: [4], terms: 1 };

  test('pass where the reference has the same', () => {
    expect(compare(from([NaN, Infinity, -Infinity, 1], [4]), special)).toBe(0);
  });

  test.each([
    ['a number for NaN', [0, Infinity, -Infinity, 1]],
    ['infinity for NaN', [Infinity, Infinity, -Infinity, 1]],
    ['a number for infinity', [NaN, 3e38, -Infinity, 1]],
    ['the other infinity', [NaN, -Infinity, -Infinity, 1]],
    ['NaN for infinity', [NaN, Infinity, NaN, 1]],
    ['NaN for a number', [NaN, Infinity, -Infinity, NaN]],
  ])('fail otherwise: %s', (_name, found) => {
    expect(() => compare(from(found, [4]), special)).toThrow('1 of 4');
  });

  test('a value too large for the output type must become infinity', () => {
    const large: Expected = { values: Float64Array.of(70000, -70000), dims: [2], terms: 1 };
    expect(compare(from([Infinity, -Infinity], [2], 'float16'), large)).toBe(0);
    expect(() => compare(from([65504, -Infinity], [2], 'float16'), large)).toThrow('1 of 2');
  });
});

describe('the budget', () => {
  const one = (extra: Partial<Expected>): Expected => ({ values: Float64Array.of(1), dims: [1], terms: 1, ...extra });

  test('is twice the naive error over the floor', () => {
    const naive = one({ naive: [1 + 2 ** -15] });
    expect(compare(from([1 + 2 ** -14], [1]), naive)).toBeCloseTo(1 / (1 + 2 ** -9), 6);
    expect(() => compare(from([1 + 2 ** -14 + 2 ** -21], [1]), naive)).toThrow('tolerance 6.115e-5');
  });

  test('without a naive error is the floor, which grows with the root of the terms', () => {
    expect(compare(from([1 + 2 ** -23], [1]), one({}))).toBe(1);
    expect(() => compare(from([1 + 2 ** -22], [1]), one({}))).toThrow('out of tolerance');
    expect(compare(from([1 + 2 ** -21], [1]), one({ terms: 16 }))).toBe(1);
  });

  test('follows the scale: a sum that cancels is judged by its terms', () => {
    expect(compare(from([1 + 2 ** -20], [1]), one({ scale: [8] }))).toBe(1);
    expect(() => compare(from([1 + 2 ** -19], [1]), one({ scale: [8] }))).toThrow('out of tolerance');
  });

  test('is nothing for a value without terms', () => {
    const zero: Expected = { values: Float64Array.of(0, 1), dims: [2], scale: [0, 1], naive: [0, 1.001], terms: 1 };
    expect(compare(from([0, 1], [2]), zero)).toBe(0);
    expect(() => compare(from([1e-30, 1], [2]), zero)).toThrow('found 1.0000000031710769e-30, expected 0');
  });

  test('is nothing where the scale is no finite number', () => {
    for (const scale of [NaN, Infinity]) {
      expect(compare(from([1], [1]), one({ scale: [scale] }))).toBe(0);
      expect(() => compare(from([1 + 2 ** -23], [1]), one({ scale: [scale] }))).toThrow('1 of 1');
    }
  });

  test('is not granted on data that the naive form cannot handle', () => {
    expect(() => compare(from([1], [1]), one({ naive: [1.5] }))).toThrow('unfit data');
    expect(() => compare(from([1], [1]), one({ naive: [NaN] }))).toThrow('unfit data');
  });
});

describe('guarded outputs', () => {
  test('pass when exactly the tensor was written', () => {
    for (const type of ['float32', 'float16', 'bfloat16'] as const) {
      const { tensor, check } = guarded([2, 3], type);
      expect(toFloat64(tensor).every(Number.isNaN)).toBe(true);
      (tensor.data as Float32Array).fill(0);
      expect(check).not.toThrow();
    }
  });

  test('tell an element that was not written from a NaN that was', () => {
    const { tensor, check } = guarded([4]);
    const data = tensor.data as Float32Array;
    data.set([1, NaN, 1]);
    expect(check).toThrow('element 3 of an output of 4 was not written');
    data[3] = NaN;
    expect(check).not.toThrow();
  });

  test('notice a write on either side', () => {
    for (const beside of [-1, 4]) {
      const { tensor, check } = guarded([4]);
      const data = tensor.data as Float32Array;
      data.fill(1);
      new Float32Array(data.buffer, data.byteOffset + 4 * beside, 1)[0] = 1;
      expect(check).toThrow(`element ${beside} of an output of 4 was written`);
    }
  });
});
