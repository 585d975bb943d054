import type { Tensor } from '../lib/tensor';
import {
  additiveMask,
  boolMask,
  filled,
  from,
  hurtful,
  normal,
  normalInputs,
  poisonPast,
  slice,
  swapLayout,
} from './data';
import { expectAttention, expectMatmul } from './expectation';
import { toFloat64 } from './half';
import { naiveAttention } from './naive32';
import { referenceAttention, referenceMerge } from './reference';
import { referenceMatmul } from './reference-matmul';

const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 5, keys: 9, headDim: 3, valueDim: 2 };
const { q, k, v } = normalInputs(shape, 7);

function expectClose(found: ArrayLike<number>, wanted: ArrayLike<number>) {
  expect(found.length).toBe(wanted.length);
  for (let i = 0; i < wanted.length; i++) {
    if (!Object.is(found[i], wanted[i])) expect(Math.abs(found[i] - wanted[i])).toBeLessThan(1e-12);
  }
}

/** One head of one sequence. */
const matrix = (rows: number[][]): Tensor => from(rows.flat(), [1, 1, rows.length, rows[0].length]);

describe('attention by hand', () => {
  const ln = (x: number) => Math.fround(Math.log(x));

  test('weights 1 : 3, whose logits are 0 and ln 3', () => {
    const { output, lse } = referenceAttention(
      matrix([[1]]),
      matrix([[0], [ln(3)]]),
      matrix([
        [4, 0],
        [8, 1],
      ]),
    );
    expect(output[0]).toBeCloseTo(7, 6);
    expect(output[1]).toBeCloseTo(0.75, 6);
    expect(lse[0]).toBeCloseTo(Math.log(4), 6);
  });

  test('the scale is one over the root of the head size unless given', () => {
    const [query, keys, values] = [
      matrix([[1, 1, 1, 1]]),
      matrix([
        [0, 0, 0, 0],
        [1, 1, 1, 1],
      ]),
      matrix([[0], [1]]),
    ];
    expect(referenceAttention(query, keys, values).output[0]).toBeCloseTo(1 / (1 + Math.exp(-2)), 12);
    expect(referenceAttention(query, keys, values, { scale: 1 }).output[0]).toBeCloseTo(1 / (1 + Math.exp(-4)), 12);
  });

  test('a cap bends the scaled score before the mask is added', () => {
    const mask = { data: Float32Array.of(0, 0.5), dims: [1, 2], type: 'float32' } as const;
    const { output } = referenceAttention(matrix([[2]]), matrix([[0], [3]]), matrix([[0], [1]]), {
      scale: 0.5,
      softcap: 2,
      mask,
    });
    expect(output[0]).toBeCloseTo(1 / (1 + Math.exp(-(2 * Math.tanh(1.5) + 0.5))), 12);
  });

  test('a sink takes weight and gives nothing', () => {
    const options = { sinks: Float32Array.of(ln(2)) };
    const { output, lse } = referenceAttention(matrix([[0]]), matrix([[1], [1]]), matrix([[4], [8]]), options);
    expect(output[0]).toBeCloseTo(3, 6);
    expect(lse[0]).toBeCloseTo(Math.log(4), 6);
  });

  test('query heads share key heads in order', () => {
    const zeros = (dims: number[]) => filled(dims, 'float32', () => 0);
    const { output } = referenceAttention(zeros([1, 4, 1, 1]), zeros([1, 2, 1, 1]), from([5, 6], [1, 2, 1, 1]));
    expect([...output]).toEqual([5, 5, 6, 6]);
  });
});

describe('which keys a query sees', () => {
  /** Bit j of row i: query i sees key j. The values are powers of two, and all scores are equal. */
  function seen(queries: number, keys: number, options: Parameters<typeof referenceAttention>[3]) {
    const ones = (rows: number) => filled([1, 1, rows, 1], 'float32', () => 1);
    const values = filled([1, 1, keys, 1], 'float32', (j) => 2 ** j);
    const { output, lse } = referenceAttention(ones(queries), ones(keys), values, { ...options, scale: 0 });
    return Array.from(output, (value, i) =>
      Math.round(value * Math.exp(lse[i]))
        .toString(2)
        .padStart(keys, '0')
        .split('')
        .reverse()
        .join(''),
    );
  }

  test('causal: the last query stands at the last key', () => {
    expect(seen(3, 3, { causal: true })).toEqual(['100', '110', '111']);
    expect(seen(2, 4, { causal: true })).toEqual(['1110', '1111']);
    expect(seen(4, 2, { causal: true })).toEqual(['00', '00', '10', '11']);
  });

  test('causal with an offset', () => {
    expect(seen(3, 4, { causal: true, queryOffset: 0 })).toEqual(['1000', '1100', '1110']);
    expect(seen(3, 4, { causal: true, queryOffset: -1 })).toEqual(['0000', '1000', '1100']);
    expect(seen(2, 3, { causal: true, queryOffset: 7 })).toEqual(['111', '111']);
  });

  test('a window counts from the own key, which is in it', () => {
    expect(seen(4, 4, { window: [0, 0] })).toEqual(['1000', '0100', '0010', '0001']);
    expect(seen(4, 4, { window: [1, 0] })).toEqual(['1000', '1100', '0110', '0011']);
    expect(seen(4, 4, { window: [0, 2] })).toEqual(['1110', '0111', '0011', '0001']);
    expect(seen(4, 4, { window: [Infinity, 1] })).toEqual(['1100', '1110', '1111', '1111']);
    expect(seen(2, 4, { window: [1, 0] })).toEqual(['0110', '0011']);
    expect(seen(4, 4, { window: [1, 5], causal: true })).toEqual(['1000', '1100', '0110', '0011']);
    expect(seen(2, 5, { window: [1, 1], queryOffset: 1 })).toEqual(['11100', '01110']);
  });

  test('the own position follows the valid lengths', () => {
    expect(seen(3, 5, { causal: true, keyLengths: [4] })).toEqual(['11000', '11100', '11110']);
    expect(seen(3, 5, { causal: true, queryLengths: [2] })).toEqual(['11110', '11111', '00000']);
    expect(seen(3, 5, { causal: true, queryLengths: [2], keyLengths: [3] })).toEqual(['11000', '11100', '00000']);
    expect(seen(2, 3, { keyLengths: [0] })).toEqual(['000', '000']);
  });

  test('a mask is aligned on the right and composes with the rest', () => {
    const mask = { data: Uint8Array.of(1, 0, 1), dims: [1, 3], type: 'bool' } as const;
    expect(seen(3, 3, { mask })).toEqual(['101', '101', '101']);
    expect(seen(3, 3, { mask, causal: true })).toEqual(['100', '100', '101']);
    const rows = { data: Uint8Array.of(1, 1, 0, 0, 0, 0), dims: [1, 1, 2, 3], type: 'bool' } as const;
    expect(seen(2, 3, { mask: rows })).toEqual(['110', '000']);
  });
});

describe('attention identities', () => {
  test('weights add up to one: values of 1 give 1, under every option', () => {
    const ones = filled(v.dims, 'float32', () => 1);
    const plain = [
      {},
      { causal: true },
      { window: [2, 1] as const },
      { softcap: 1 },
      { mask: additiveMask([5, 9], 3) },
    ];
    for (const options of plain) {
      const { output, lse } = referenceAttention(q, k, ones, options);
      expectClose(
        output,
        Float64Array.from(output, (_, i) => (lse[Math.floor(i / 2)] === -Infinity ? 0 : 1)),
      );
    }
  });

  test('causal is a triangular mask', () => {
    const triangle = Uint8Array.from({ length: 45 }, (_, i) => Number((i % 9) - 4 <= Math.floor(i / 9)));
    const mask = { data: triangle, dims: [5, 9], type: 'bool' } as const;
    const [byMask, causal] = [referenceAttention(q, k, v, { mask }), referenceAttention(q, k, v, { causal: true })];
    expect(byMask.output).toEqual(causal.output);
    expect(byMask.lse).toEqual(causal.lse);
  });

  test('a bool mask is an additive one of 0 and −Infinity', () => {
    for (const dims of [
      [2, 4, 5, 9],
      [2, 1, 1, 9],
      [4, 1, 9],
      [1, 5, 9],
      [5, 9],
      [1, 9],
    ]) {
      const mask = boolMask(dims, 5);
      const data = Float32Array.from(mask.data, (visible) => (visible ? 0 : -Infinity));
      const additive = { data, dims, type: 'float32' } as const;
      expect(referenceAttention(q, k, v, { mask: additive })).toEqual(referenceAttention(q, k, v, { mask }));
    }
  });

  test('lengths are what slicing gives, whatever stands in the padding', () => {
    const [keyLengths, queryLengths] = [
      [6, 0],
      [5, 3],
    ];
    const whole = referenceAttention(
      poisonPast(q, queryLengths),
      poisonPast(k, keyLengths),
      poisonPast(v, keyLengths),
      { causal: true, keyLengths, queryLengths },
    );
    for (const b of [0, 1]) {
      const cut = (tensor: Tensor, length: number) => slice(slice(tensor, 0, b, b + 1), 2, 0, length);
      const alone = referenceAttention(cut(q, queryLengths[b]), cut(k, keyLengths[b]), cut(v, keyLengths[b]), {
        causal: true,
      });
      for (let h = 0; h < 4; h++) {
        const [start, length] = [(b * 4 + h) * 5, queryLengths[b]];
        const padded = whole.output.subarray(start * 2, (start + 5) * 2);
        expect(padded.subarray(0, length * 2)).toEqual(alone.output.subarray(h * length * 2, (h + 1) * length * 2));
        expect([...padded.subarray(length * 2)].every((value) => value === 0)).toBe(true);
        const lse = whole.lse.subarray(start, start + 5);
        expect(lse.subarray(0, length)).toEqual(alone.lse.subarray(h * length, (h + 1) * length));
        expect([...lse.subarray(length)].every((value) => value === -Infinity)).toBe(true);
      }
    }
  });

  test('layouts differ in order only', () => {
    const options = { causal: true, mask: boolMask([2, 4, 5, 9], 1), sinks: Float32Array.of(0, 1, 2, -Infinity) };
    const swapped = referenceAttention(swapLayout(q), swapLayout(k), swapLayout(v), { ...options, layout: 'blhd' });
    const straight = referenceAttention(q, k, v, options);
    expect(swapped.dims).toEqual([2, 5, 4, 2]);
    expect(swapped.lse).toEqual(straight.lse);
    const back = swapLayout({ data: Float32Array.from(swapped.output), dims: swapped.dims, type: 'float32' });
    expect(back.data).toEqual(Float32Array.from(straight.output));
  });

  test('merged parts are the whole', () => {
    const whole = referenceAttention(q, k, v);
    const parts = [
      [0, 4],
      [4, 4],
      [4, 5],
      [5, 9],
    ].map(([start, end]) => referenceAttention(q, slice(k, 2, start, end), slice(v, 2, start, end)));
    const merged = referenceMerge(parts);
    expectClose(merged.output, whole.output);
    expectClose(merged.lse, whole.lse);
  });

  test('merging parts that saw nothing gives a row that saw nothing', () => {
    const empty = { output: new Float64Array(2), lse: Float64Array.of(-Infinity) };
    expect(referenceMerge([empty, empty])).toMatchObject(empty);
  });

  test('rows without a key: zeros, lse −Infinity or the sink', () => {
    const mask = { data: new Uint8Array(9), dims: [1, 9], type: 'bool' } as const;
    const sinks = Float32Array.of(0, 1, 2, -Infinity);
    const { output, lse } = referenceAttention(q, k, v, { mask, sinks });
    expect(output.every((value) => value === 0)).toBe(true);
    expect([...lse]).toEqual(Array.from(lse, (_, row) => sinks[Math.floor(row / 5) % 4]));
  });
});

describe('NaN and infinity', () => {
  const nanAt = (tensor: Tensor, index: number, value = NaN) =>
    filled(tensor.dims, 'float32', (i) => (i === index ? value : tensor.data[i]));

  test('a hidden NaN does nothing, a visible one poisons its row', () => {
    // Key 8 of the first key head, which query heads 0 and 1 read; under causality only query 4 sees it.
    const plain = referenceAttention(q, k, v, { causal: true }).output;
    const badKey = referenceAttention(q, nanAt(k, 8 * 3), v, { causal: true }).output;
    const badValue = referenceAttention(q, k, nanAt(v, 8 * 2 + 1), { causal: true }).output;
    plain.forEach((value, i) => {
      const sees = i < 20 && Math.floor(i / 2) % 5 === 4;
      expect(badKey[i]).toBe(sees ? NaN : value);
      expect(badValue[i]).toBe(sees && i % 2 === 1 ? NaN : value);
    });
  });

  test('an additive −Infinity hides a NaN too', () => {
    const mask = {
      data: Float32Array.from({ length: 9 }, (_, j) => (j === 8 ? -Infinity : 0)),
      dims: [1, 9],
      type: 'float32',
    } as const;
    const { output } = referenceAttention(q, nanAt(k, 8 * 3), nanAt(v, 8 * 2), { mask });
    expect(output.some(Number.isNaN)).toBe(false);
  });

  test('a score of −Infinity is a key not seen', () => {
    const { output, lse } = referenceAttention(matrix([[1]]), matrix([[-Infinity], [2]]), matrix([[NaN], [3]]));
    expect([output[0], lse[0]]).toEqual([3, 2]);
    const none = referenceAttention(matrix([[1]]), matrix([[-Infinity]]), matrix([[3]]));
    expect([none.output[0], none.lse[0]]).toEqual([0, -Infinity]);
  });
});

describe('the naive float32 form', () => {
  test('stays near the reference under every option at once', () => {
    const options = {
      causal: true,
      window: [4, 0] as const,
      mask: additiveMask([2, 1, 5, 9], 2),
      softcap: 3,
      sinks: Float32Array.of(0, 1, 2, 3),
      keyLengths: [9, 6],
      queryLengths: [4, 5],
    };
    const exact = referenceAttention(q, k, v, options);
    const naive = naiveAttention(q, k, v, options);
    for (let i = 0; i < exact.output.length; i++) expect(naive.output[i]).toBeCloseTo(exact.output[i], 6);
    for (let i = 0; i < exact.lse.length; i++) {
      if (exact.lse[i] === -Infinity) expect(naive.lse[i]).toBe(-Infinity);
      else expect(naive.lse[i]).toBeCloseTo(exact.lse[i], 5);
    }
  });

  test.each(Object.keys(hurtful))('has an error on hurtful data, but not one that excuses all: %s', (name) => {
    const data = hurtful[name]({ heads: 2, queries: 20, keys: 150, headDim: 64 }, 3);
    const { output } = expectAttention(data.q, data.k, data.v);
    let largest = 0;
    output.values.forEach((value, i) => {
      const error = Math.abs((output.naive as Float32Array)[i] - value) / (output.scale as Float64Array)[i];
      largest = Math.max(largest, error);
    });
    expect(largest).toBeGreaterThan(0);
    expect(largest).toBeLessThan(1e-4);
  });
});

describe('matrix product', () => {
  test('by hand', () => {
    const a = from([1, 2, 3, 4], [2, 2]);
    const b = from([5, 6, 7, 8], [2, 2]);
    expect([...referenceMatmul(a, b).values]).toEqual([19, 22, 43, 50]);
    expect([...referenceMatmul(a, b, { transposeB: true }).values]).toEqual([17, 23, 39, 53]);
    expect([...referenceMatmul(from([1, -2], [1, 2]), b).scale]).toEqual([19, 22]);
  });

  test('batches broadcast as in numpy', () => {
    const a = normal([3, 1, 2, 4], 1);
    const b = normal([5, 4, 6], 2);
    const { values, dims } = referenceMatmul(a, b);
    expect(dims).toEqual([3, 5, 2, 6]);
    for (let i = 0; i < 3; i++) {
      for (let j = 0; j < 5; j++) {
        const single = referenceMatmul(slice(a, 0, i, i + 1), slice(b, 0, j, j + 1)).values;
        expect(values.subarray((i * 5 + j) * 12, (i * 5 + j + 1) * 12)).toEqual(single);
      }
    }
    expect(referenceMatmul(normal([2, 4], 1), normal([7, 4, 3], 2)).dims).toEqual([7, 2, 3]);
  });

  test('a product without terms is zero', () => {
    const { values, dims } = referenceMatmul(normal([2, 0], 1), normal([0, 3], 1));
    expect(dims).toEqual([2, 3]);
    expect([...values]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  test('transposeB reads the transposed matrix', () => {
    const a = normal([2, 3, 5], 1);
    const b = normal([2, 5, 4], 2);
    const data = toFloat64(b);
    const transposed = filled([2, 4, 5], 'float32', (i) => {
      const [matrix, n, k] = [Math.floor(i / 20), Math.floor(i / 5) % 4, i % 5];
      return data[matrix * 20 + k * 4 + n];
    });
    expect(expectMatmul(a, transposed, { transposeB: true })).toEqual(expectMatmul(a, b));
  });
});
