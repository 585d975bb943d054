import { decodeHalf, encodeHalf, round, toFloat64, ulp } from './half';

const types = ['float16', 'bfloat16'] as const;

describe.each(types)('%s', (type) => {
  test('every pattern survives decoding and encoding', () => {
    const changed: number[] = [];
    for (let bits = 0; bits < 0x10000; bits++) {
      const value = decodeHalf(bits, type);
      const back = encodeHalf(value, type);
      const same = Number.isNaN(value) ? Number.isNaN(decodeHalf(back, type)) : back === bits;
      if (!same) changed.push(bits);
    }
    expect(changed).toEqual([]);
  });

  test('between two neighbours the nearer is taken, and the even one in the middle', () => {
    const wrong: number[] = [];
    const last = encodeHalf(Infinity, type) - 1;
    for (let bits = 0; bits < last; bits++) {
      const [low, high] = [decodeHalf(bits, type), decodeHalf(bits + 1, type)];
      const middle = (low + high) / 2;
      const nudge = (high - low) / 1024;
      const even = bits % 2 === 0 ? bits : bits + 1;
      const right =
        encodeHalf(middle, type) === even &&
        encodeHalf(middle - nudge, type) === bits &&
        encodeHalf(middle + nudge, type) === bits + 1 &&
        encodeHalf(-middle - nudge, type) === (0x8000 | (bits + 1)) &&
        ulp(low, type) === high - low;
      if (!right) wrong.push(bits);
    }
    expect(wrong).toEqual([]);
  });

  test('half a unit beyond the largest finite number is infinity', () => {
    const infinity = encodeHalf(Infinity, type);
    const largest = decodeHalf(infinity - 1, type);
    const edge = largest + ulp(largest, type) / 2;
    expect(encodeHalf(edge, type)).toBe(infinity);
    expect(encodeHalf(-edge, type)).toBe(0x8000 | infinity);
    expect(encodeHalf(edge * (1 - 2 ** -40), type)).toBe(infinity - 1);
    expect(encodeHalf(Number.MAX_VALUE, type)).toBe(infinity);
  });
});

test('known numbers', () => {
  expect(decodeHalf(0x3c00, 'float16')).toBe(1);
  expect(decodeHalf(0x0001, 'float16')).toBe(2 ** -24);
  expect(decodeHalf(0x7bff, 'float16')).toBe(65504);
  expect(decodeHalf(0xc000, 'float16')).toBe(-2);
  expect(decodeHalf(0x3f80, 'bfloat16')).toBe(1);
  expect(decodeHalf(0x0001, 'bfloat16')).toBe(2 ** -133);
  expect(encodeHalf(-0, 'float16')).toBe(0x8000);
  expect(encodeHalf(Number.MIN_VALUE, 'float16')).toBe(0);
  // float64 to float32 first would round this to the tie and then down.
  expect(encodeHalf(1 + 2 ** -11 + 2 ** -40, 'float16')).toBe(0x3c01);
});

test('float32 is rounded and spaced by its own format', () => {
  expect(round(0.1, 'float32')).toBe(Math.fround(0.1));
  expect(ulp(1, 'float32')).toBe(2 ** -23);
  expect(ulp(0.75, 'float32')).toBe(2 ** -24);
  expect(ulp(0, 'float32')).toBe(2 ** -149);
});

test('tensors are decoded by their type', () => {
  const data = Uint16Array.of(0x3c00, 0x3f80);
  expect([...toFloat64({ data, dims: [2], type: 'float16' })]).toEqual([1, 1.875]);
  expect([...toFloat64({ data, dims: [2], type: 'bfloat16' })]).toEqual([2 ** -7, 1]);
});
