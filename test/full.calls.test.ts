import {
  attention,
  attentionSync,
  attentionWithLse,
  attentionWithLseSync,
  mergeAttention,
  mergeAttentionSync,
} from '../lib';
import type { Tensor } from '../lib/tensor';
import { filled, from, guarded, normal, normalInputs, slice, swapLayout, types } from './data';
import { expectAttention } from './expectation';
import { bitsOf, expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { referenceMerge } from './reference';
import { isaRows } from './rows';
import { compare } from './tolerance';

const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 30, keys: 170, headDim: 32, valueDim: 24 };
const { q, k, v } = normalInputs(shape, 81);
const options = { causal: true, softcap: 5, sinks: Float32Array.of(0, 1, 2, 3) };

describe('one call, four ways', () => {
  test.each(types)('%s: sync and async, with and without lse, give the same bits', async (type) => {
    const inputs = normalInputs(shape, 82, type);
    const wanted = attentionWithLseSync(inputs.q, inputs.k, inputs.v, options);
    expect(wanted.output.type).toBe(type);
    expect(wanted.lse.type).toBe('float32');
    expect(wanted.lse.dims).toEqual([2, 4, 30]);
    expectSameBits(attentionSync(inputs.q, inputs.k, inputs.v, options), wanted.output);
    expectSameBits(await attention(inputs.q, inputs.k, inputs.v, options), wanted.output);
    const both = await attentionWithLse(inputs.q, inputs.k, inputs.v, options);
    expectSameBits(both.output, wanted.output);
    expectSameBits(both.lse, wanted.lse);
  });

  test('calls in flight do not disturb each other', async () => {
    const shapes = [1, 2, 3, 4, 5, 6].map((n) => ({ ...shape, queries: 7 * n, keys: 400 - 50 * n }));
    const inputs = shapes.map((each, i) => normalInputs(each, 83 + i));
    const results = await Promise.all(inputs.map((each) => attention(each.q, each.k, each.v, { causal: true })));
    results.forEach((result, i) => {
      expectSameBits(result, attentionSync(inputs[i].q, inputs[i].k, inputs[i].v, { causal: true }));
    });
  });

  test('inputs are left as they were', async () => {
    const before = [q, k, v].map((tensor) => Uint8Array.from(bitsOf(tensor)));
    attentionSync(q, k, v, options);
    await attention(q, k, v, options);
    [q, k, v].forEach((tensor, i) => {
      expect(Buffer.compare(bitsOf(tensor), before[i])).toBe(0);
    });
  });

  test('an asynchronous call leaves the event loop free', async () => {
    const large = normalInputs({ heads: 8, queries: 1500, keys: 1500, headDim: 64 }, 84);
    const order: string[] = [];
    const done = attention(large.q, large.k, large.v, { threads: 1 }).then(() => order.push('attention'));
    setImmediate(() => order.push('immediate'));
    await done;
    expect(order).toEqual(['immediate', 'attention']);
  });
});

describe('out', () => {
  test.each(types)('%s: is filled, and nothing beside it', async (type) => {
    const inputs = normalInputs(shape, 85, type);
    const wanted = attentionSync(inputs.q, inputs.k, inputs.v);
    const runs = [
      (out: Tensor) => attentionSync(inputs.q, inputs.k, inputs.v, { out }),
      (out: Tensor) => attention(inputs.q, inputs.k, inputs.v, { out }),
      (out: Tensor) => attentionWithLseSync(inputs.q, inputs.k, inputs.v, { out }).output,
      async (out: Tensor) => (await attentionWithLse(inputs.q, inputs.k, inputs.v, { out })).output,
    ];
    for (const run of runs) {
      const { tensor, check } = guarded(wanted.dims, type);
      const result = await run(tensor);
      check();
      expect(result.data).toBe(tensor.data);
      expectSameBits(result, wanted);
    }
  });
});

describe('out of another type', () => {
  const pairs = types.flatMap((type) => types.filter((other) => other !== type).map((other) => [type, other] as const));

  test.each(pairs)('%s inputs, %s output: rounded once, from float32', (type, other) => {
    const inputs = normalInputs(shape, 87, type);
    const expected = expectAttention(inputs.q, inputs.k, inputs.v, options);
    for (const isa of isaRows('full')) {
      const { tensor, check } = guarded(expected.output.dims, other);
      const { output } = attentionWithLseSync(inputs.q, inputs.k, inputs.v, { ...options, isa, out: tensor });
      check();
      expect(output.type).toBe(other);
      compare(output, expected.output, isa);
    }
  });
});

describe('forms an option may take', () => {
  test('lists of numbers are plain or typed', () => {
    const lengths = { keyLengths: [100, 7], queryLengths: [3, 30] };
    const plain = attentionSync(q, k, v, { ...lengths, sinks: [1, 2, 3, 4] });
    const typed = attentionSync(q, k, v, {
      keyLengths: Int32Array.from(lengths.keyLengths),
      queryLengths: Int32Array.from(lengths.queryLengths),
      sinks: Float32Array.of(1, 2, 3, 4),
    });
    expectSameBits(typed, plain);
  });

  test('an option that is undefined is not given', () => {
    const none = { causal: undefined, window: undefined, mask: undefined, sinks: undefined, threads: undefined };
    expectSameBits(attentionSync(q, k, v, none as Parameters<typeof attentionSync>[3]), attentionSync(q, k, v));
  });
});

describe('isa', () => {
  test("is 'auto' unless given, which is one of the rows", () => {
    const wanted = attentionSync(q, k, v, options);
    expectSameBits(attentionSync(q, k, v, { ...options, isa: 'auto' }), wanted);
    const same = isaRows('full').filter(
      (isa) => Buffer.compare(bitsOf(attentionSync(q, k, v, { ...options, isa })), bitsOf(wanted)) === 0,
    );
    expect(same).not.toEqual([]);
  });
});

describe('merging', () => {
  const cuts = [0, 1, 64, 64, 170];
  const pieces = cuts.slice(1).map((end, i) => ({ k: slice(k, 2, cuts[i], end), v: slice(v, 2, cuts[i], end) }));

  test('parts over all key ranges, one of them empty, are the whole', async () => {
    const expected = expectAttention(q, k, v);
    const parts = pieces.map((piece) => attentionWithLseSync(q, piece.k, piece.v));
    const merged = mergeAttentionSync(parts);
    compare(merged.output, expected.output, 'output');
    compare(merged.lse, expected.lse, 'lse');
    const later = await mergeAttention(parts);
    expectSameBits(later.output, merged.output);
    expectSameBits(later.lse, merged.lse);
  });

  test('layout and out', async () => {
    const parts = pieces.map((piece) => attentionWithLseSync(q, piece.k, piece.v));
    const wanted = mergeAttentionSync(parts);
    const swapped = parts.map(({ output, lse }) => ({ output: swapLayout(output), lse }));
    for (const merge of [mergeAttentionSync, mergeAttention]) {
      const { tensor, check } = guarded([2, 30, 4, 24]);
      const { output, lse } = await merge(swapped, { layout: 'blhd', out: tensor });
      check();
      expect(output.data).toBe(tensor.data);
      expectSameBits(swapLayout(output), wanted.output);
      expectSameBits(lse, wanted.lse);
    }
  });

  test('one part is itself', () => {
    const part = attentionWithLseSync(q, k, v);
    const merged = mergeAttentionSync([part]);
    expectSameBits(merged.output, part.output);
    expectSameBits(merged.lse, part.lse);
  });

  test.each(types)('%s: any outputs and weights, also rows that saw no key', (type) => {
    const dims = [2, 3, 5, 7];
    const parts = [91, 92, 93].map((seed) => {
      const noKey = (row: number) => (row + seed) % 4 === 0 || row % 10 === 0;
      const output = normal(dims, seed);
      const lse = normal(dims.slice(0, 3), seed + 10);
      return {
        output: filled(dims, type, (i) => (noKey(Math.floor(i / 7)) ? 0 : output.data[i])),
        lse: filled(dims.slice(0, 3), 'float32', (row) => (noKey(row) ? -Infinity : 30 * lse.data[row])),
      };
    });
    const exact = referenceMerge(parts.map((part) => ({ output: toFloat64(part.output), lse: toFloat64(part.lse) })));
    const merged = mergeAttentionSync(parts as Parameters<typeof mergeAttentionSync>[0]);
    const { output, lse, scale } = exact;
    // The weights exp(lse − max) carry the rounding of exponents of up to about 100.
    compare(merged.output, { values: output, dims, scale: scale.map((x) => 100 * x), terms: 3 }, 'output');
    compare(
      merged.lse,
      { values: lse, dims: dims.slice(0, 3), scale: lse.map((x) => 1 + Math.abs(x)), terms: 3 },
      'lse',
    );
    expect(merged.output.type).toBe(type);
  });

  test('very large and very small lse do not overflow', () => {
    const part = (value: number, lse: number) => ({
      output: from([value], [1, 1, 1, 1]),
      lse: from([lse], [1, 1, 1]),
    });
    for (const shift of [-3e4, -500, 500, 3e4]) {
      const parts = [part(4, shift), part(8, shift)] as Parameters<typeof mergeAttentionSync>[0];
      const { output, lse } = mergeAttentionSync(parts);
      expect(output.data[0]).toBeCloseTo(6, 5);
      expect(lse.data[0]).toBeCloseTo(shift + Math.log(2), 2);
    }
  });
});
