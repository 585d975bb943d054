import { cast, type DataType, randomNormal, type Tensor, tensor, zeros } from '../lib';
import { filled, from, uniform } from './data';
import { expectSameBits } from './full-run';
import { decodeHalf, encodeHalf, toFloat64, ulp } from './half';

const halves = ['float16', 'bfloat16'] as const;

/** Every 16-bit pattern. */
const patterns = (type: (typeof halves)[number]): Tensor => ({
  data: Uint16Array.from({ length: 0x10000 }, (_, bits) => bits),
  dims: [256, 256],
  type,
});

/** The next float32 above or below a positive one. */
function neighbour(value: number, step: 1 | -1): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  bits[0] += step;
  return new Float32Array(bits.buffer)[0];
}

/** The tensor that casting must give: rounded once, to nearest and even; NaN stays NaN, whichever. */
function expectCast(source: Tensor, type: DataType): void {
  const values = toFloat64(source);
  const found = cast(source, type);
  expect(found.type).toBe(type);
  expect(found.dims).toEqual(source.dims);
  const decoded = toFloat64(found);
  const wrong: string[] = [];
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    const wanted = type === 'float32' ? Math.fround(value) : decodeHalf(encodeHalf(value, type), type);
    if (!Object.is(decoded[i], wanted)) wrong.push(`${value} became ${decoded[i]}, not ${wanted}`);
  }
  expect(wrong.slice(0, 5)).toEqual([]);
}

describe('cast', () => {
  test.each(halves)('%s to every type: every pattern', (type) => {
    expectCast(patterns(type), 'float32');
    expectCast(patterns(type), type === 'float16' ? 'bfloat16' : 'float16');
    expectCast(patterns(type), type);
  });

  test.each(halves)(
    'float32 to %s: every pattern, the middle to its neighbour, and both sides of the middle',
    (type) => {
      const infinity = encodeHalf(Infinity, type);
      const numbers: number[] = [];
      for (let bits = 0; bits < infinity; bits++) {
        const low = decodeHalf(bits, type);
        const middle = low + ulp(low, type) / 2;
        numbers.push(low, middle, neighbour(middle, 1), neighbour(middle, -1));
      }
      numbers.push(Infinity, NaN, 3.4e38, 65520, 65519.99, 1e-45, 2 ** -149, 2 ** -126);
      expectCast(from(numbers, [numbers.length]), type);
      expectCast(
        filled([numbers.length], 'float32', (i) => -numbers[i]),
        type,
      );
    },
  );

  test('tensors long enough for several threads, and of every short length', () => {
    const next = uniform(5);
    const long = filled([300_001], 'float32', () => (next() - 0.5) * 2 ** Math.floor(40 * next() - 25));
    for (const type of halves) expectCast(long, type);
    for (let length = 0; length <= 70; length++) {
      const short = filled([length], 'float32', () => next() - 0.5);
      for (const type of halves) {
        expectCast(short, type);
        expectCast(cast(short, type), 'float32');
      }
    }
  });

  test('copies, and leaves its source alone', () => {
    const source = from([1, 2, 3], [3]);
    const copy = cast(source, 'float32');
    copy.data[0] = 9;
    expect([...toFloat64(source)]).toEqual([1, 2, 3]);
    expect([...copy.data]).toEqual([9, 2, 3]);
  });
});

describe('tensor', () => {
  test('takes the array as it is and copies the dims', () => {
    const data = Float32Array.of(1, 2, 3, 4, 5, 6);
    const dims = [2, 3];
    const made = tensor(data, dims);
    dims[0] = 7;
    expect(made.data).toBe(data);
    expect(made).toMatchObject({ dims: [2, 3], type: 'float32' });
    expect(tensor(new Uint16Array(2), [2], 'bfloat16').type).toBe('bfloat16');
    expect(tensor(new Uint16Array(2), [2], 'float16').type).toBe('float16');
    expect(tensor(new Float32Array(1), []).dims).toEqual([]);
  });
});

describe('zeros', () => {
  test.each(['float32', ...halves] as const)('%s', (type) => {
    const made = zeros([2, 0, 3], type);
    expect([made.type, made.dims, made.data.length]).toEqual([type, [2, 0, 3], 0]);
    expect(toFloat64(zeros([2, 3], type))).toEqual(new Float64Array(6));
  });
  test('float32 unless said otherwise', () => expect(zeros([1]).type).toBe('float32'));
});

describe('randomNormal', () => {
  test('a seed gives the same numbers, another others, in any type', () => {
    const first = randomNormal([3, 5], { seed: 7 });
    expectSameBits(randomNormal([3, 5], { seed: 7 }), first);
    expect(randomNormal([3, 5], { seed: 8 }).data).not.toEqual(first.data);
    expectSameBits(randomNormal([3, 5]), randomNormal([3, 5], { seed: 0 }));
    for (const type of halves) expectSameBits(randomNormal([3, 5], { seed: 7, type }), cast(first, type));
  });

  test('is normal: moments and tails of 200,000 numbers', () => {
    const values = toFloat64(randomNormal([200_000], { seed: 3 }));
    const moment = (power: number) => values.reduce((sum, x) => sum + x ** power, 0) / values.length;
    // Bounds of five standard errors: 1, √2, √15 and √96 over √200000.
    expect(Math.abs(moment(1))).toBeLessThan(0.0112);
    expect(Math.abs(moment(2) - 1)).toBeLessThan(0.0159);
    expect(Math.abs(moment(3))).toBeLessThan(0.0434);
    expect(Math.abs(moment(4) - 3)).toBeLessThan(0.11);
    const beyond = values.filter((x) => Math.abs(x) > 3).length / values.length;
    expect(beyond).toBeGreaterThan(0.0022);
    expect(beyond).toBeLessThan(0.0032);
    // Neighbours, which the Box-Muller transform makes in pairs, do not go together.
    const together = values.reduce((sum, x, i) => sum + x * (values[i + 1] ?? 0), 0) / values.length;
    expect(Math.abs(together)).toBeLessThan(0.0112);
  });

  test('a seed gives the same numbers in every version', () => {
    // Of seed 1; saved matrices and published results depend on them.
    const numbers = [-0.43793004751205444, -0.01706247590482235, -2.0866048336029053, 0.16744929552078247];
    expectSameBits(randomNormal([5], { seed: 1 }), from([...numbers, -1.0662226676940918], [5]));
  });

  test('an odd number of elements', () => {
    expect(toFloat64(randomNormal([3], { seed: 2 })).every((x) => x !== 0 && Number.isFinite(x))).toBe(true);
  });
});
