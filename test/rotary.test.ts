import fc from 'fast-check';
import { type AttentionError, type Pairing, type RotaryOptions, ropeFrequencies, rotary, rotarySync } from '../lib';
import type { DataType, Tensor } from '../lib/tensor';
import { filled, guarded, normal, oddLengths, slice, swapLayout, types } from './data';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { expectRotary, type RotaryMeaning } from './reference-rotary';
import { Faults, faultOf } from './refusal';
import { isaRows, testRows } from './rows';
import { compare, type Expected } from './tolerance';
import { primitives } from './wrong-tensors';

const rows = isaRows('rotary');
const pairings: readonly Pairing[] = ['half', 'interleaved'];
const gainOrders = ['before-rotation', 'after-rotation'] as const;

const ropeOf = (dim: number, pairing: Pairing = 'half', firstPosition = 0) => ({
  frequencies: ropeFrequencies(dim),
  pairing,
  firstPosition,
});
const gainOf = (dim: number) => normal([dim], 77).data as Float32Array;

function checkRotary(
  x: Tensor,
  meaning: RotaryMeaning,
  run: { readonly isa?: string; readonly threads?: number },
  expected: Expected,
  type: DataType = x.type,
): Tensor {
  const out = guarded(expected.dims, type);
  const result = rotarySync(x, { ...meaning, ...run, out: out.tensor });
  out.check();
  expect(result.data).toBe(out.tensor.data);
  compare(result, expected, `rows (${run.isa ?? 'auto'})`);
  return result;
}

interface Case {
  readonly x: () => Tensor;
  readonly meaning: RotaryMeaning;
  readonly budget?: 'floor';
}

const table = (cases: Readonly<Record<string, Case>>) =>
  testRows(rows, cases, ({ x: make, meaning, budget }) => {
    const x = make();
    const expected = expectRotary(x, meaning, budget);
    return (isa) => checkRotary(x, meaning, { isa, threads: 2 }, expected);
  });

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

test('frequencies are those of the paper', () => {
  expect([...ropeFrequencies(8)]).toEqual([1, 0.1, 0.01, 0.001].map((value) => expect.closeTo(value, 15)));
  expect([...ropeFrequencies(6, 1e6)]).toEqual([1, 0.01, 1e-4].map((value) => expect.closeTo(value, 15)));
});

test('a pair is turned from its first element to its second', () => {
  // A quarter turn at position 1.
  const frequencies = [Math.PI / 2, Math.PI / 2];
  const x = filled([1, 1, 2, 4], 'float32', (i) => (i % 4) + 1);
  const turned = (pairing: Pairing) =>
    Array.from(toFloat64(rotarySync(x, { rope: { frequencies, pairing } })), Math.round);
  expect(turned('half')).toEqual([1, 2, 3, 4, -3, -4, 1, 2]);
  expect(turned('interleaved')).toEqual([1, 2, 3, 4, -2, 1, -4, 3]);
});

describe.each(pairings)('shapes, pairing %s', (pairing) => {
  const cases: Record<string, Case> = {};
  for (const dim of [2, 4, 6, 10, 16, 30, 34, 60, 64, 96, 128, 130, 256]) {
    cases[`head size ${dim}`] = { x: () => normal([2, 3, 5, dim], dim), meaning: { rope: ropeOf(dim, pairing) } };
  }
  for (const length of oddLengths) {
    const firstPosition = 7 * length;
    cases[`length ${length}`] = {
      x: () => normal([1, 2, length, 20], length),
      meaning: { rope: ropeOf(20, pairing, firstPosition) },
    };
    cases[`length ${length}, blhd`] = {
      x: () => normal([1, length, 2, 20], length),
      meaning: { rope: ropeOf(20, pairing, firstPosition), layout: 'blhd' },
    };
  }
  table(cases);
});

describe.each(types)('%s', (type) => {
  const cases: Record<string, Case> = {};
  for (const pairing of pairings) {
    for (const gainOrder of gainOrders) {
      cases[`${pairing}, gain ${gainOrder}`] = {
        x: () => normal([2, 3, 19, 40], 1, type),
        meaning: { rope: ropeOf(40, pairing, 100), norm: { gain: gainOf(40), gainOrder, epsilon: 1e-5 } },
      };
    }
    cases[`${pairing}, no gain`] = {
      x: () => normal([2, 3, 19, 40], 1, type),
      meaning: { rope: ropeOf(40, pairing), norm: {} },
    };
  }
  for (const dim of [1, 3, 7, 16, 61, 128]) {
    cases[`normalised, not rotated, head size ${dim}`] = {
      x: () => normal([1, 2, 9, dim], dim, type),
      meaning: { norm: { gain: gainOf(dim) } },
    };
  }
  table(cases);
});

describe('input and output of different types', () => {
  test.each(types.flatMap((from) => types.map((to) => [from, to] as const)))('%s to %s', (from, to) => {
    const x = normal([1, 2, 5, 24], 3, from);
    const meaning = { rope: ropeOf(24, 'half', 11), norm: { gain: gainOf(24) } };
    const expected = expectRotary(x, meaning);
    for (const isa of rows) checkRotary(x, meaning, { isa }, expected, to);
  });
});

describe('positions', () => {
  const cases: Record<string, Case> = {};
  for (const firstPosition of [0, 1, 1000, 999_999, 1e6, 1.6e6 - 3, 2 ** 31, 2 ** 47]) {
    cases[`from ${firstPosition}`] = {
      x: () => normal([1, 2, 6, 64], 5),
      meaning: { rope: ropeOf(64, 'half', firstPosition) },
    };
  }
  cases['an own one for each batch item'] = {
    x: () => normal([4, 2, 18, 16], 6),
    meaning: { rope: ropeOf(16, 'half', 3), positions: [0, 17, 1e6, 5] },
  };
  cases['frequencies of any sign and size'] = {
    x: () => normal([1, 1, 40, 12], 7),
    meaning: { rope: { frequencies: [0, -0.3, 3, 100, -1e7, 1e-300], firstPosition: 12 } },
  };
  table(cases);

  test('a row has the same bits wherever it stands in a tensor', () => {
    const x = normal([1, 2, 53, 34], 8);
    for (const isa of rows) {
      const whole = rotarySync(x, { rope: ropeOf(34), isa });
      for (const [start, end] of [
        [0, 1],
        [13, 14],
        [16, 53],
        [5, 40],
      ]) {
        const part = rotarySync(slice(x, 2, start, end), { rope: ropeOf(34, 'half', start), isa });
        expectSameBits(part, slice(whole, 2, start, end));
      }
    }
  });

  test.each(pairings)('q · k depends on the distance alone, pairing %s', (pairing) => {
    const dim = 64;
    const [q, k] = [toFloat64(normal([dim], 9)), toFloat64(normal([dim], 10))];
    const [queries, keys] = [q, k].map((row) => filled([1, 1, 1, dim], 'float32', (i) => row[i]));
    const scale = Array.from(q, (value, i) => Math.abs(value * k[i])).reduce((a, b) => a + b);
    const at = (x: Tensor, position: number) => toFloat64(rotarySync(x, { rope: ropeOf(dim, pairing, position) }));
    const dot = (n: number, m: number) => at(queries, n).reduce((sum, value, i) => sum + value * at(keys, m)[i], 0);
    for (const [n, m] of [
      [5, 0],
      [12, 12],
      [300, 17],
    ]) {
      const wanted = dot(n, m);
      for (const shift of [1, 1000, 999_000])
        expect(Math.abs(dot(n + shift, m + shift) - wanted)).toBeLessThan(1e-6 * scale);
      // The distance does matter.
      expect(Math.abs(dot(n + 3, m) - wanted)).toBeGreaterThan(1e-4 * scale);
    }
  });
});

describe('numbers that hurt', () => {
  const hurt = (value: (i: number) => number) => () => filled([1, 2, 3, 20], 'float32', value);
  const rope = ropeOf(20, 'half', 4);
  table({
    'squares that overflow float32': {
      x: hurt((i) => (i % 7) * 1e37),
      meaning: { rope, norm: { gain: gainOf(20) } },
      budget: 'floor',
    },
    'squares that vanish in float32': {
      x: hurt((i) => (1 + (i % 5)) * 1e-30),
      meaning: { rope, norm: { epsilon: 0 } },
      budget: 'floor',
    },
    'zeros without epsilon': { x: hurt((i) => (i < 20 ? 0 : 1)), meaning: { rope, norm: { epsilon: 0 } } },
    zeros: { x: hurt(() => 0), meaning: { rope, norm: {} } },
    'NaN stays in its pair': { x: hurt((i) => (i === 43 ? NaN : i)), meaning: { rope } },
    'NaN stays in its row': { x: hurt((i) => (i === 43 ? NaN : i)), meaning: { rope, norm: { gain: gainOf(20) } } },
    infinity: { x: hurt((i) => (i === 43 ? Infinity : i)), meaning: { rope } },
    'infinity, normalised': { x: hurt((i) => (i === 43 ? -Infinity : i)), meaning: { rope, norm: {} } },
  });
});

describe('ways to call', () => {
  const meaning = { rope: ropeOf(24, 'interleaved', 9), norm: { gain: gainOf(24) } };

  test.each(types)('%s: sync, async and out give the same bits', async (type) => {
    const x = normal([2, 3, 21, 24], 11, type);
    const wanted = rotarySync(x, meaning);
    expect(wanted.type).toBe(type);
    expect(wanted.dims).toEqual(x.dims);
    expectSameBits(await rotary(x, meaning), wanted);
    const out = guarded(x.dims, type);
    const result = await rotary(x, { ...meaning, out: out.tensor });
    out.check();
    expect(result.data).toBe(out.tensor.data);
    expectSameBits(result, wanted);
  });

  test('lists and typed arrays mean the same', () => {
    const x = normal([1, 1, 3, 8], 12);
    const wanted = rotarySync(x, {
      rope: { frequencies: [1, 0.5, 0.25, 0.125] },
      norm: { gain: [1, 2, 3, 4, 5, 6, 7, 8] },
    });
    const frequencies = Float32Array.of(1, 0.5, 0.25, 0.125);
    const gain = Float64Array.of(1, 2, 3, 4, 5, 6, 7, 8);
    expectSameBits(rotarySync(x, { rope: { frequencies }, norm: { gain } }), wanted);
  });

  test('nothing to compute', () => {
    for (const dims of [
      [0, 2, 3, 8],
      [2, 2, 0, 8],
    ]) {
      expect(rotarySync(normal(dims, 1), { rope: ropeOf(8) })).toEqual(normal(dims, 1));
    }
  });
});

describe('properties', () => {
  const call = fc.record({
    batch: fc.integer({ min: 1, max: 3 }),
    heads: fc.integer({ min: 1, max: 4 }),
    length: fc.integer({ min: 1, max: 70 }),
    pairs: fc.integer({ min: 1, max: 70 }),
    type: fc.constantFrom(...types),
    pairing: fc.constantFrom(...pairings),
    gainOrder: fc.constantFrom(...gainOrders),
    normalized: fc.boolean(),
    position: fc.integer({ min: 0, max: 2_000_000 }),
    isa: fc.constantFrom(...rows),
    seed: fc.nat(),
  });

  test('right, and the same bits on any number of threads, in any batch and layout', () => {
    fc.assert(
      fc.property(
        call,
        ({ batch, heads, length, pairs, type, pairing, gainOrder, normalized, position, isa, seed }) => {
          const dim = 2 * pairs;
          const x = normal([batch, heads, length, dim], seed, type);
          const positions = Array.from({ length: batch }, (_, item) => position + 3 * item);
          const meaning: RotaryOptions = {
            rope: ropeOf(dim, pairing),
            norm: normalized ? { gain: gainOf(dim), gainOrder } : undefined,
            positions,
          };
          const one = checkRotary(x, meaning, { isa, threads: 1 }, expectRotary(x, meaning));
          expectSameBits(rotarySync(x, { ...meaning, isa, threads: 2 }), one);
          const swapped = rotarySync(swapLayout(x), { ...meaning, isa, layout: 'blhd' });
          expectSameBits(swapLayout(swapped), one);
          for (let item = 0; item < batch; item++) {
            const alone = rotarySync(slice(x, 0, item, item + 1), { ...meaning, isa, positions: [positions[item]] });
            expectSameBits(alone, slice(one, 0, item, item + 1));
          }
        },
      ),
      { numRuns: 60, seed: 20240608 },
    );
  });
});

describe('refused', () => {
  const x = normal([2, 2, 3, 8], 1);
  const frequencies = ropeFrequencies(8);
  type Row = readonly [options: unknown, code: AttentionError['code'], argument: string, received?: string | RegExp];
  const wrongNumbers = primitives.filter(([value]) => value !== 5 && !Object.is(value, -0));
  const list = (count: number, item: unknown) => Array.from({ length: count }, (_, i) => (i === 1 ? item : 1));
  const options: readonly Row[] = [
    [undefined, 'ERR_ARGUMENT', 'rope', 'undefined'],
    [{}, 'ERR_ARGUMENT', 'rope', 'undefined'],
    [{ norm: {}, positions: [0, 0] }, 'ERR_ARGUMENT', 'positions', '[0, 0]'],
    [{ rope: {} }, 'ERR_SHAPE', 'rope.frequencies', 'undefined'],
    [{ rope: { frequencies, base: 1e4 } }, 'ERR_ARGUMENT', 'base', '10000'],
    [{ norm: { eps: 1 } }, 'ERR_ARGUMENT', 'eps', '1'],
    ...primitives
      .filter(([value]) => value !== undefined)
      .flatMap(([value, received]): Row[] => [
        [{ rope: value }, 'ERR_ARGUMENT', 'rope', received],
        [{ norm: value }, 'ERR_ARGUMENT', 'norm', received],
        [{ rope: { frequencies: value } }, 'ERR_SHAPE', 'rope.frequencies', received],
        [{ rope: { frequencies, pairing: value } }, 'ERR_ARGUMENT', 'rope.pairing', received],
        [{ norm: { gain: value } }, 'ERR_SHAPE', 'norm.gain', received],
        [{ norm: { gainOrder: value } }, 'ERR_ARGUMENT', 'norm.gainOrder', received],
      ]),
    ...wrongNumbers.flatMap(([value, received]): Row[] => [
      [{ rope: { frequencies: list(4, value) } }, 'ERR_ARGUMENT', 'rope.frequencies[1]', received],
      [{ norm: { gain: list(8, value) } }, 'ERR_ARGUMENT', 'norm.gain[1]', received],
      ...(value === undefined
        ? []
        : ([
            [{ rope: { frequencies, firstPosition: value } }, 'ERR_ARGUMENT', 'rope.firstPosition', received],
            [{ norm: { epsilon: value } }, 'ERR_ARGUMENT', 'norm.epsilon', received],
          ] as const)),
    ]),
    ...[-1, 0.5, Infinity, 2 ** 47 + 1].flatMap((value): Row[] => [
      [{ rope: { frequencies, firstPosition: value } }, 'ERR_ARGUMENT', 'rope.firstPosition', String(value)],
      [{ rope: { frequencies }, positions: [0, value] }, 'ERR_ARGUMENT', 'positions[1]', String(value)],
    ]),
    ...[-1, -1e-30, Infinity, 1e39].map(
      (epsilon): Row => [{ norm: { epsilon } }, 'ERR_ARGUMENT', 'norm.epsilon', String(epsilon)],
    ),
    [{ rope: { frequencies: new Float64Array(3) } }, 'ERR_SHAPE', 'rope.frequencies', 'Float64Array(3)'],
    [{ rope: { frequencies: new Float64Array(8) } }, 'ERR_SHAPE', 'rope.frequencies', 'Float64Array(8)'],
    [{ rope: { frequencies: new Int32Array(4) } }, 'ERR_SHAPE', 'rope.frequencies', 'Int32Array(4)'],
    [{ rope: { frequencies: Float64Array.of(1, Infinity, 1, 1) } }, 'ERR_ARGUMENT', 'rope.frequencies[1]', 'Infinity'],
    [{ norm: { gain: new Float32Array(4) } }, 'ERR_SHAPE', 'norm.gain', 'Float32Array(4)'],
    [{ norm: { gain: list(8, 1e39) } }, 'ERR_ARGUMENT', 'norm.gain[1]', '1e+39'],
    [{ rope: { frequencies }, out: x }, 'ERR_ARGUMENT', 'out', /overlaps/],
  ];

  test('options', async () => {
    const faults = new Faults();
    for (const [given, code, argument, received] of options) {
      const what = `${argument}: ${String(received)}`;
      faults.add(what, await faultOf(() => rotarySync(x, given as RotaryOptions), false, { code, argument, received }));
      faults.add(what, await faultOf(() => rotary(x, given as RotaryOptions), true, { code, argument, received }));
    }
    faults.none();
  });

  test('shapes', async () => {
    const faults = new Faults();
    const odd = normal([1, 1, 2, 7], 1);
    const rope = { frequencies: [1, 1, 1] };
    const wanted = { code: 'ERR_SHAPE', argument: 'rope', received: '7' } as const;
    faults.add('an odd head size', await faultOf(() => rotarySync(odd, { rope }), false, wanted));
    for (const dims of [
      [1, 0, 2, 8],
      [1, 2, 2, 0],
    ]) {
      const none = { code: 'ERR_SHAPE', argument: 'x', received: `[${dims.join(', ')}]` } as const;
      faults.add(`[${dims}]`, await faultOf(() => rotarySync(normal(dims, 1), { norm: {} }), false, none));
    }
    faults.none();
  });

  test('what frequencies are asked for', async () => {
    const faults = new Faults();
    for (const headDim of [0, 1, 7, 2.5, NaN, Infinity, '8', undefined, 2 ** 20 + 2]) {
      const wanted = { code: 'ERR_ARGUMENT', argument: 'headDim' } as const;
      faults.add(String(headDim), await faultOf(() => ropeFrequencies(headDim as number), false, wanted));
    }
    for (const base of [0, -1, NaN, Infinity, '8', null]) {
      const wanted = { code: 'ERR_ARGUMENT', argument: 'base' } as const;
      faults.add(String(base), await faultOf(() => ropeFrequencies(8, base as number), false, wanted));
    }
    faults.none();
  });
});
