import fc from 'fast-check';
import { attentionSync, nystromAttention, nystromAttentionSync } from '../lib';
import type { BoolTensor, Tensor, TensorOf } from '../lib/tensor';
import { filled, type Inputs, normal, normalInputs, poisonPast, slice, types } from './data';
import { bitsOf, expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { checkNystrom, expectNystrom } from './nystrom-run';
import { referenceAttention } from './reference';
import type { NystromMeaning } from './reference-nystrom';
import { isaRows } from './rows';
import { compare } from './tolerance';

const rows = isaRows('nystrom');

/** A mask [batch, length] of which each item has so many valid positions, then padding. */
function padding(length: number, valid: readonly number[]): BoolTensor {
  const data = Uint8Array.from({ length: valid.length * length }, (_, i) =>
    Number(i % length < valid[Math.floor(i / length)]),
  );
  return { data, dims: [valid.length, length], type: 'bool' };
}

/** ‖found − wanted‖ / ‖wanted‖. */
function distance(found: Tensor, wanted: Float64Array): number {
  let [difference, size] = [0, 0];
  toFloat64(found).forEach((value, i) => {
    difference += (value - wanted[i]) ** 2;
    size += wanted[i] ** 2;
  });
  return Math.sqrt(difference / size);
}

/** Rows that resemble their neighbours, as those of a sequence do: a stationary random walk with unit variance. */
function walk(length: number, dim: number, seed: number, stay: number): Float32Array {
  const steps = normal([length, dim], seed).data as Float32Array;
  const path = Float32Array.from(steps);
  for (let i = dim; i < path.length; i++) path[i] = stay * path[i - dim] + Math.sqrt(1 - stay * stay) * steps[i];
  return path;
}

describe('the same bits', () => {
  const call = fc.record({
    queries: fc.integer({ min: 1, max: 140 }),
    keys: fc.oneof(fc.integer({ min: 1, max: 140 }), fc.constantFrom(1500, 3000)),
    heads: fc.constantFrom([2, 2], [4, 2], [3, 1]),
    headDim: fc.integer({ min: 1, max: 40 }),
    type: fc.constantFrom(...types),
    pinv: fc.constantFrom('iterative', 'svd'),
    filter: fc.boolean(),
    isa: fc.constantFrom(...rows),
    seed: fc.nat(),
  });
  type Call = typeof call extends fc.Arbitrary<infer T> ? T : never;
  const batch = 3;
  const build = ({ queries, keys, heads: [heads, kvHeads], headDim, type, pinv, filter, seed }: Call) => {
    const square = filter ? queries : keys;
    const inputs = normalInputs({ batch, heads, kvHeads, queries, keys: square, headDim }, seed, type);
    const masks = (length: number) => padding(length, [length, Math.ceil(length / 2), Math.floor(length / 3)]);
    const options = {
      pinv,
      queryMask: masks(queries),
      keyMask: masks(square),
      ...(filter && { convKernel: normal([heads, 5], seed) as TensorOf<'float32'> }),
    };
    return { inputs, options };
  };
  const run = { numRuns: 60, seed: 20210207 };

  test('on any number of threads', () => {
    fc.assert(
      fc.property(call, (drawn) => {
        const { inputs, options } = build(drawn);
        const on = (threads: number) =>
          nystromAttentionSync(inputs.q, inputs.k, inputs.v, { ...options, isa: drawn.isa, threads });
        const wanted = on(1);
        for (const threads of [2, 7]) expectSameBits(on(threads), wanted);
      }),
      run,
    );
  });

  test('in any batch', () => {
    fc.assert(
      fc.property(call, (drawn) => {
        const { inputs, options } = build(drawn);
        const whole = nystromAttentionSync(inputs.q, inputs.k, inputs.v, { ...options, isa: drawn.isa });
        for (let item = 0; item < batch; item++) {
          const of = <T extends Tensor>(tensor: T) => slice(tensor, 0, item, item + 1);
          const maskOf = ({ data, dims: [, length] }: BoolTensor): BoolTensor => ({
            data: data.slice(item * length, (item + 1) * length),
            dims: [1, length],
            type: 'bool',
          });
          const alone = nystromAttentionSync(of(inputs.q), of(inputs.k), of(inputs.v), {
            ...options,
            queryMask: maskOf(options.queryMask),
            keyMask: maskOf(options.keyMask),
            isa: drawn.isa,
          });
          expectSameBits(of(whole), alone);
        }
      }),
      run,
    );
  });

  test('sync and async, and with masks that hide nothing', async () => {
    const inputs = normalInputs({ batch: 2, heads: 2, queries: 100, keys: 100, headDim: 16 }, 3);
    const { q, k, v } = inputs;
    const before = [q, k, v].map((tensor) => Uint8Array.from(bitsOf(tensor)));
    const wanted = nystromAttentionSync(q, k, v, { landmarks: 20 });
    expectSameBits(await nystromAttention(q, k, v, { landmarks: 20 }), wanted);
    const all = padding(100, [100, 100]);
    expectSameBits(nystromAttentionSync(q, k, v, { landmarks: 20, queryMask: all, keyMask: all }), wanted);
    [q, k, v].forEach((tensor, i) => {
      expect(Buffer.compare(bitsOf(tensor), before[i])).toBe(0);
    });
  });
});

// The first estimate of the inverse divides by norms. Taken over the whole batch, as published implementations do, they
// would let a sharper neighbour slow the iteration down for everyone.
test('the iteration starts from the norms of its own matrix', () => {
  const calm = normalInputs({ heads: 1, queries: 96, keys: 96, headDim: 16 }, 5);
  const [q, k, v] = (['q', 'k', 'v'] as const).map((name) => {
    const { data, dims } = calm[name];
    const factor = name === 'v' ? 1 : 6;
    return filled([2, ...dims.slice(1)], 'float32', (i) => data[i % data.length] * (i < data.length ? 1 : factor));
  });
  const pair = nystromAttentionSync(q, k, v, { landmarks: 12 });
  const alone = nystromAttentionSync(calm.q, calm.k, calm.v, { landmarks: 12 });
  expectSameBits(slice(pair, 0, 0, 1), alone);
  expect(distance(slice(pair, 0, 1, 2), toFloat64(alone))).toBeGreaterThan(0.1);
});

describe('exact where nothing is approximated', () => {
  // With every position a landmark F = A = B, and A·A⁺·A·V = A·V. Each query is most like its own key, so that A is far
  // from singular: its condition number is about 3.
  const [length, headDim] = [60, 32];
  const near = normal([2, 2, length, headDim], 8).data;
  const keys = normal([2, 2, length, headDim], 9);
  const inputs: Inputs = {
    q: filled(keys.dims, 'float32', (i) => keys.data[i] + 0.1 * near[i]),
    k: keys,
    v: normal([2, 2, length, 24], 10),
  };
  const exact = referenceAttention(inputs.q, inputs.k, inputs.v);
  const all = Array.from({ length }, (_, i) => (7 * i) % length);

  test.each(rows)('%s: all positions as landmarks, the pseudo-inverse as it is', (isa) => {
    for (const options of [{ landmarkIndices: all }, { landmarks: length }] as const) {
      const { q, k, v } = inputs;
      const found = nystromAttentionSync(q, k, v, { ...options, pinv: 'svd', regularization: 0, isa });
      // Three products in a row, each off by some eps, times the condition number.
      compare(found, {
        values: exact.output,
        dims: exact.dims,
        scale: exact.outputScale,
        terms: 9 * (length + headDim),
      });
      const iterated = nystromAttentionSync(q, k, v, { ...options, iterations: 12, isa });
      compare(iterated, {
        values: exact.output,
        dims: exact.dims,
        scale: exact.outputScale,
        terms: 9 * (length + headDim),
      });
    }
  });

  test('which is not what few landmarks give', () => {
    const { q, k, v } = inputs;
    expect(distance(nystromAttentionSync(q, k, v, { landmarks: 10 }), exact.output)).toBeGreaterThan(0.05);
  });
});

test('the order of landmark positions does not matter', () => {
  const inputs = normalInputs({ heads: 2, queries: 80, keys: 90, headDim: 16 }, 12);
  const [query, key] = [
    [0, 11, 25, 39, 40, 62, 79],
    [3, 9, 30, 44, 45, 71, 89],
  ];
  const expected = expectNystrom(inputs, { landmarkIndices: { query, key } });
  const order = [4, 0, 6, 2, 1, 5, 3];
  const shuffled = { query: order.map((i) => query[i]), key: order.toReversed().map((i) => key[i]) };
  for (const isa of rows) checkNystrom(inputs, { landmarkIndices: shuffled }, { isa }, expected);
});

describe('how near it comes to exact attention', () => {
  const [length, headDim] = [512, 32];
  const rough = (seed: number) => {
    const path = walk(length, headDim, seed, 0.97);
    return filled([1, 1, length, headDim], 'float32', (i) => 1.5 * path[i]);
  };
  const { q, k, v } = { q: rough(1), k: rough(2), v: normal([1, 1, length, 16], 3) };
  const exact = referenceAttention(q, k, v).output;
  const error = (options: NystromMeaning) => distance(nystromAttentionSync(q, k, v, options), exact);

  // Logits of this spread give an A whose smallest singular values are noise; their inverses drown the rest.
  test('an exact inverse of an ill-conditioned matrix is far worse than six iterations', () => {
    expect(error({})).toBeLessThan(0.3);
    expect(error({ pinv: 'svd', regularization: 0 })).toBeGreaterThan(4 * error({}));
  });

  test('and so are more iterations', () => {
    expect(error({ iterations: 10 })).toBeGreaterThan(1.3 * error({}));
    expect(error({ iterations: 30 })).toBeGreaterThan(4 * error({}));
  });

  test('the default regularization is as good as the iterations', () => {
    expect(Math.abs(error({ pinv: 'svd' }) / error({}) - 1)).toBeLessThan(0.1);
  });

  test('more landmarks come nearer, on a sequence that changes slowly', () => {
    const errors = [8, 32, 128].map((landmarks) => error({ landmarks }));
    expect(errors[1]).toBeLessThan(errors[0]);
    expect(errors[2]).toBeLessThan(errors[1]);
  });
});

describe('padding', () => {
  // 8 of 16 segments are valid, and they are the segments of the sequence alone.
  const [length, valid] = [128, 64];
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: length, keys: length, headDim: 16 };
  const convKernel = normal([4, 9], 22) as TensorOf<'float32'>;

  test.each(types)('%s: a padded sequence gives what it gives alone, whatever the padding holds', (type) => {
    const { q, k, v } = normalInputs(shape, 21, type);
    const [short, poisoned] = [
      (tensor: Tensor) => slice(tensor, 2, 0, valid),
      (tensor: Tensor) => poisonPast(tensor, [valid, valid]),
    ].map((change) => ({ q: change(q), k: change(k), v: change(v) }));
    const mask = padding(length, [valid, valid]);
    for (const more of [{}, { pinv: 'svd' }, { convKernel }] as const) {
      const expected = expectNystrom(short, { landmarks: 8, ...more });
      for (const isa of rows) {
        const padded = nystromAttentionSync(poisoned.q, poisoned.k, poisoned.v, {
          landmarks: 16,
          keyMask: mask,
          queryMask: mask,
          isa,
          ...more,
        });
        compare(slice(padded, 2, 0, valid), expected, isa);
        expect(toFloat64(slice(padded, 2, valid, length)).every((value) => Object.is(value, 0))).toBe(true);
      }
    }
  });

  test('each mask hides its own side only', () => {
    const { q, k, v } = normalInputs({ ...shape, batch: 1 }, 23);
    const mask = padding(length, [valid]);
    // Keys alone: all queries have an output. Queries alone: what they attend to includes all keys.
    const keysMasked = checkNystrom({ q, k, v }, { landmarks: 16, keyMask: mask });
    expect(toFloat64(keysMasked).every((value) => value !== 0)).toBe(true);
    const changed = { q, k, v: filled(v.dims, 'float32', (i) => v.data[i] + Number((i / 16) % length >= valid)) };
    const queriesMasked = [{ q, k, v }, changed].map((inputs) =>
      checkNystrom(inputs, { landmarks: 16, queryMask: mask }),
    );
    expect(Buffer.compare(bitsOf(queriesMasked[0]), bitsOf(queriesMasked[1]))).not.toBe(0);
  });

  test('where no landmark is left rows are zero, and those of other items are not', () => {
    const { q, k, v } = normalInputs(shape, 24);
    const found = nystromAttentionSync(q, k, v, { landmarks: 16, keyMask: padding(length, [0, length]) });
    const [none, all] = [0, 1].map((item) => toFloat64(slice(found, 0, item, item + 1)));
    expect(none.every((value) => Object.is(value, 0))).toBe(true);
    expect(all.some((value) => value !== 0)).toBe(true);
  });
});

test('a sequence whose whole matrix would not fit in memory', () => {
  const length = 100_000;
  const inputs = normalInputs({ queries: length, keys: length, headDim: 4 }, 31);
  checkNystrom(inputs, { landmarks: 8, convKernel: normal([1, 3], 32) as TensorOf<'float32'> });
});

test('one landmark: every row is the same', () => {
  const { q, k, v } = normalInputs({ queries: 50, keys: 70, headDim: 8 }, 33);
  const found = toFloat64(nystromAttentionSync(q, k, v, { landmarks: 1 }));
  const mean = (tensor: Tensor) =>
    filled([1, 1, 1, 8], 'float32', (c) => {
      const data = toFloat64(tensor);
      return data.reduce((sum, value, i) => (i % 8 === c ? sum + value : sum), 0) / (data.length / 8);
    });
  const row = toFloat64(attentionSync(mean(q), k, v));
  found.forEach((value, i) => {
    expect(value).toBeCloseTo(row[i % 8], 5);
  });
});
