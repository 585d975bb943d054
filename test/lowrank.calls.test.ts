import {
  type AttentionFactors,
  attentionFactors,
  attentionFactorsSync,
  attentionSync,
  cast,
  type FactorOptions,
  lowRankAttention,
  lowRankAttentionSync,
  spectrumSync,
  type Tensor,
} from '../lib';
import { guarded, headRatios, normal, slice, swapLayout, types } from './data';
import { expectMatmul } from './expectation';
import { bitsOf, expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { distance, sumOfSquares } from './reference-lowrank';
import { Faults, faultOf, type Refusal } from './refusal';
import { isaRows } from './rows';
import { compare } from './tolerance';

const inputs = (batch: number, heads: number, kvHeads: number, queries: number, keys: number, seed = 1) => ({
  q: normal([batch, heads, queries, 20], seed),
  k: normal([batch, kvHeads, keys, 20], seed + 1),
});

function expectSameFactors(found: AttentionFactors, wanted: AttentionFactors): void {
  for (const name of ['u', 'v', 'singularValues'] as const) expectSameBits(found[name], wanted[name]);
  expect(found.ranks).toEqual(wanted.ranks);
}

describe('the same bits', () => {
  // Few rows and many keys, so that keys are split; many of both; more rows than one unit of work.
  type Extents = [batch: number, heads: number, kvHeads: number, queries: number, keys: number];
  const shapes: readonly Extents[] = [
    [2, 4, 2, 150, 210],
    [3, 2, 1, 20, 1500],
    [1, 3, 3, 700, 90],
  ];
  const options: readonly FactorOptions[] = [
    { rank: 9 },
    { rank: 6, causal: true, seed: 7 },
    { energy: 0.6, causal: true },
    { rank: 4, oversample: 0, powerIterations: 0 },
  ];
  const cases = shapes.flatMap((shape) => options.map((option) => ({ shape, option })));

  test.each(cases)('$shape $option: any threads, async, twice', async ({ shape, option }) => {
    const { q, k } = inputs(...shape);
    for (const isa of isaRows('lowrank')) {
      const wanted = attentionFactorsSync(q, k, { ...option, isa, threads: 1 });
      expectSameFactors(attentionFactorsSync(q, k, { ...option, isa, threads: 2 }), wanted);
      expectSameFactors(await attentionFactors(q, k, { ...option, isa }), wanted);
    }
  });

  test.each(cases)('$shape $option: in any batch, beside any head, in either layout', ({ shape, option }) => {
    const { q, k } = inputs(...shape);
    const [batch, heads, kvHeads] = shape;
    const whole = attentionFactorsSync(q, k, option);
    const swapped = attentionFactorsSync(swapLayout(q), swapLayout(k), { ...option, layout: 'blhd' });
    expectSameFactors(swapped, whole);
    for (let item = 0; item < batch; item++) {
      for (let head = 0; head < heads; head++) {
        const kvHead = Math.floor((head * kvHeads) / heads);
        const one = (tensor: Tensor, at: number) => slice(slice(tensor, 0, item, item + 1), 1, at, at + 1);
        const alone = attentionFactorsSync(one(q, head), one(k, kvHead), option);
        const rank = alone.ranks[0];
        expect(whole.ranks[item * heads + head]).toBe(rank);
        for (const name of ['u', 'v'] as const) expectSameBits(slice(one(whole[name], head), 3, 0, rank), alone[name]);
      }
    }
  });

  test('another seed gives other bits, and the same singular values', () => {
    const { q, k } = inputs(1, 2, 2, 60, 60);
    const [a, b] = [0, 1].map((seed) => attentionFactorsSync(q, k, { rank: 60, seed }));
    expect(Buffer.compare(bitsOf(a.u), bitsOf(b.u))).not.toBe(0);
    for (const [i, value] of a.singularValues.data.entries())
      expect(Math.abs(value - b.singularValues.data[i])).toBeLessThan(1e-5);
  });

  test.each(types)('%s inputs are what they are in float32', (type) => {
    const { q, k } = inputs(2, 4, 2, 70, 50);
    const [a, b] = [cast(q, type), cast(k, type)];
    const wanted = attentionFactorsSync(cast(a, 'float32'), cast(b, 'float32'), { rank: 8 });
    expectSameFactors(attentionFactorsSync(a, b, { rank: 8 }), wanted);
  });
});

describe('options that a call must get right', () => {
  const { q, k } = inputs(1, 1, 1, 12, 15);
  const wrong: readonly (readonly [unknown, Refusal['argument'], string])[] = [
    [undefined, 'rank', 'undefined'],
    [{}, 'rank', 'undefined'],
    [{ rank: 0 }, 'rank', '0'],
    [{ rank: 13 }, 'rank', '13'],
    [{ rank: 1.5 }, 'rank', '1.5'],
    [{ rank: '3' }, 'rank', '"3"'],
    [{ rank: 3, energy: 0.5 }, 'energy', '0.5'],
    [{ rank: 3, maxRank: 5 }, 'maxRank', '5'],
    [{ energy: 0 }, 'energy', '0'],
    [{ energy: 1.01 }, 'energy', '1.01'],
    [{ energy: NaN }, 'energy', 'NaN'],
    [{ energy: '0.5' }, 'energy', '"0.5"'],
    [{ energy: 0.5, maxRank: 13 }, 'maxRank', '13'],
    [{ energy: 0.5, maxRank: 0 }, 'maxRank', '0'],
    [{ rank: 3, oversample: -1 }, 'oversample', '-1'],
    [{ rank: 3, powerIterations: 101 }, 'powerIterations', '101'],
    [{ rank: 3, seed: 2 ** 32 }, 'seed', '4294967296'],
    [{ rank: 3, out: q }, 'out', 'an object'],
    [{ energy: 0.999, maxRank: 1 }, 'energy', '0.999'],
  ];
  test.each(wrong)('%j', async (options, argument, received) => {
    const wanted = { code: 'ERR_ARGUMENT', argument, received } as const;
    const given = options as FactorOptions;
    expect(await faultOf(() => attentionFactorsSync(q, k, given), false, wanted)).toBeUndefined();
    // What shows only once the passes are over has no caller on the stack any more but the awaiting one.
    expect(await faultOf(() => attentionFactors(q, k, given), true, wanted)).toBeUndefined();
  });

  test('without sequences', () => {
    const [none, alone] = [normal([0, 2, 5, 4], 1), normal([0, 1, 6, 4], 1)];
    const { u, v, singularValues, ranks } = attentionFactorsSync(none, alone, { rank: 3 });
    expect([u.dims, v.dims, singularValues.dims]).toEqual([
      [0, 2, 5, 3],
      [0, 2, 6, 3],
      [0, 2, 3],
    ]);
    expect(ranks).toHaveLength(0);
  });

  test('an abort stops the passes', async () => {
    const long = inputs(1, 8, 8, 3000, 3000);
    const controller = new AbortController();
    const call = attentionFactors(long.q, long.k, { rank: 8, powerIterations: 100, signal: controller.signal });
    setTimeout(() => controller.abort(), 20);
    await expect(call).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  });

  test('more than there is memory', async () => {
    const long = { q: normal([1, 1, 1, 1], 1), k: normal([1, 1, 1, 1], 1) };
    const rows = (count: number) => ({
      data: new Float32Array(count),
      dims: [1, 1, count, 1],
      type: 'float32' as const,
    });
    const [q, k] = [rows(2_000_000), rows(2_000_000)];
    const wanted = { code: 'ERR_MEMORY', argument: 'rank' } as const;
    expect(await faultOf(() => attentionFactorsSync(q, k, { rank: 2_000_000 }), false, wanted)).toBeUndefined();
    expect(attentionFactorsSync(long.q, long.k, { rank: 1 }).singularValues.data[0]).toBeCloseTo(1, 6);
  });
});

describe('attention by factors', () => {
  const factorsOf = (batch: number, heads: number, queries: number, keys: number, rank: number) => ({
    u: normal([batch, heads, queries, rank], 1),
    v: normal([batch, heads, keys, rank], 2),
  });

  test.each(headRatios)('%d heads on %d: u·(vᵀ·x) of every type', async (heads, kvHeads) => {
    const { u, v } = factorsOf(2, heads, 37, 310, 9);
    for (const type of types) {
      const x = normal([2, kvHeads, 310, 21], 3, type);
      for (const isa of isaRows('matmul')) {
        const out = guarded([2, heads, 37, 21], type);
        const found = lowRankAttentionSync({ u, v }, x, { isa, out: out.tensor });
        out.check();
        expect(found.data).toBe(out.tensor.data);
        expectSameBits(await lowRankAttention({ u, v }, x, { isa, threads: 1 }), found);
        for (let item = 0; item < 2; item++) {
          for (let head = 0; head < heads; head++) {
            const one = (tensor: Tensor, at: number) => slice(slice(tensor, 0, item, item + 1), 1, at, at + 1);
            const own = one(x, Math.floor((head * kvHeads) / heads));
            const inner = expectMatmul(one(v, head), own, { transposeA: true });
            const reduced = { data: Float32Array.from(inner.values), dims: inner.dims, type: 'float32' as const };
            const outer = expectMatmul(one(u, head), reduced);
            // What the inner sums lose is relative to their own terms, which cancel.
            const sizes = { ...reduced, data: Float32Array.from(inner.scale as Float64Array) };
            const absolute = { ...u, data: Float32Array.from(u.data, Math.abs) };
            const { values: scale } = expectMatmul(one(absolute, head), sizes);
            compare(one(found, head), { ...outer, scale, terms: 310 + 9 });
          }
        }
      }
    }
  });

  test('of all components it is attention', () => {
    const { q, k } = inputs(2, 4, 2, 80, 60);
    const x = normal([2, 2, 60, 12], 5);
    for (const causal of [false, true]) {
      const factors = attentionFactorsSync(q, k, { rank: 60, causal });
      const [found, exact] = [lowRankAttentionSync(factors, x), attentionSync(q, k, x, { causal })];
      const [a, b] = [toFloat64(found), toFloat64(exact)];
      expect(distance(a, b)).toBeLessThan(1e-5 * Math.sqrt(sumOfSquares(b)));
    }
  });

  test('nothing to compute', () => {
    const dims = (batch: number, heads: number, queries: number, keys: number, rank: number, dim: number) =>
      lowRankAttentionSync(factorsOf(batch, heads, queries, keys, rank), normal([batch, heads, keys, dim], 3));
    expect(dims(0, 2, 3, 4, 2, 5).dims).toEqual([0, 2, 3, 5]);
    expect(dims(1, 2, 0, 4, 2, 5).dims).toEqual([1, 2, 0, 5]);
    expect(dims(1, 2, 3, 4, 2, 0).dims).toEqual([1, 2, 3, 0]);
    expect([...toFloat64(dims(1, 1, 2, 0, 2, 2))]).toEqual([0, 0, 0, 0]);
    expect([...toFloat64(dims(1, 1, 2, 3, 0, 2))]).toEqual([0, 0, 0, 0]);
  });

  test('factors that do not fit', async () => {
    const faults = new Faults();
    const { u, v } = factorsOf(2, 4, 3, 5, 2);
    const x = normal([2, 2, 5, 6], 3);
    const of = (...dims: number[]) => normal(dims, 4);
    const wrong: readonly (readonly [unknown, unknown, Refusal['code'], string])[] = [
      [undefined, x, 'ERR_TYPE', 'factors'],
      [5, x, 'ERR_TYPE', 'factors'],
      [{ u }, x, 'ERR_TYPE', 'factors.v'],
      [{ v }, x, 'ERR_TYPE', 'factors.u'],
      [{ u, v: of(1, 4, 5, 2) }, x, 'ERR_SHAPE', 'factors.v'],
      [{ u, v: of(2, 2, 5, 2) }, x, 'ERR_SHAPE', 'factors.v'],
      [{ u, v: of(2, 4, 5, 3) }, x, 'ERR_SHAPE', 'factors.v'],
      [{ u, v }, of(1, 2, 5, 6), 'ERR_SHAPE', 'x'],
      [{ u, v }, of(2, 2, 6, 6), 'ERR_SHAPE', 'x'],
      [{ u, v }, of(2, 3, 5, 6), 'ERR_SHAPE', 'x'],
      [{ u, v }, of(2, 0, 5, 6), 'ERR_SHAPE', 'x'],
    ];
    for (const [factors, value, code, argument] of wrong) {
      // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
      const [f, y] = [factors as any, value as any];
      faults.add(argument, await faultOf(() => lowRankAttentionSync(f, y), false, { code, argument }));
      faults.add(`${argument}, async`, await faultOf(() => lowRankAttention(f, y), true, { code, argument }));
    }
    faults.none();
  });
});

test('options of exact attention that a whole matrix cannot have are refused with the reason', () => {
  const { q, k } = inputs(1, 2, 2, 6, 7);
  for (const option of ['window', 'queryOffset', 'mask', 'keyMask', 'keyLengths', 'queryLengths', 'softcap', 'sinks']) {
    const wanted = { code: 'ERR_UNSUPPORTED', argument: option, message: expect.stringMatching(/as a whole/) };
    const given = { [option]: 1 } as object;
    expect(() => attentionFactorsSync(q, k, { rank: 2, ...given })).toThrow(expect.objectContaining(wanted));
    expect(() => spectrumSync(q, k, given)).toThrow(expect.objectContaining(wanted));
  }
});
