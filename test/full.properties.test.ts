import fc from 'fast-check';
import { attentionWithLseSync, mergeAttentionSync } from '../lib';
import type { MaskTensor, Tensor } from '../lib/tensor';
import { additiveMask, boolMask, normalInputs, type Shape, slice, swapLayout, types, uniform } from './data';
import { expectAttention } from './expectation';
import { checkAttention, expectSameBits } from './full-run';
import type { AttentionMeaning } from './problem';
import { isaRows, once } from './rows';
import { compare } from './tolerance';

// The same examples in every run; a failure prints the seed and the smallest example found.
const runs = (numRuns: number) => ({ numRuns, seed: 20240607 });

const seed = fc.integer({ min: 0, max: 2 ** 31 });
const isa = fc.constantFrom(...isaRows('full'));
const type = fc.constantFrom(...types);

/** Shapes with few queries over many keys as likely as square ones. */
const shape: fc.Arbitrary<Required<Omit<Shape, 'layout'>>> = fc
  .record({
    batch: fc.integer({ min: 1, max: 3 }),
    kvHeads: fc.integer({ min: 1, max: 3 }),
    group: fc.integer({ min: 1, max: 4 }),
    lengths: fc.oneof(
      fc.record({ queries: fc.integer({ min: 1, max: 140 }), keys: fc.integer({ min: 1, max: 140 }) }),
      fc.record({ queries: fc.integer({ min: 1, max: 4 }), keys: fc.integer({ min: 1, max: 2200 }) }),
    ),
    headDim: fc.integer({ min: 1, max: 40 }),
    valueDim: fc.integer({ min: 1, max: 40 }),
  })
  .map(({ group, lengths, ...rest }) => ({ ...rest, ...lengths, heads: rest.kvHeads * group }));

/** Options that fit a shape, drawn after it. */
function optionsFor({ batch, heads, queries, keys }: Required<Omit<Shape, 'layout'>>): fc.Arbitrary<AttentionMeaning> {
  const lengths = (most: number) => fc.array(fc.integer({ min: 0, max: most }), { minLength: batch, maxLength: batch });
  const offset = fc.integer({ min: -5, max: keys + 5 });
  const side = fc.oneof(fc.integer({ min: 0, max: keys }), fc.constant(Infinity));
  const maskDims = fc
    .constantFrom([keys], [queries, keys], [heads, 1, keys], [batch, heads, queries, keys])
    .map((dims) => (dims.length === 1 ? [1, ...dims] : dims));
  return fc.record(
    {
      causal: fc.boolean(),
      queryOffset: offset,
      window: fc.tuple(side, side),
      mask: fc.oneof(
        fc.tuple(maskDims, seed).map(([dims, s]) => boolMask(dims, s)),
        fc.tuple(maskDims, seed).map(([dims, s]) => additiveMask(dims, s)),
      ),
      softcap: fc.constantFrom(1, 10),
      sinks: fc
        .array(fc.integer({ min: -5, max: 5 }), { minLength: heads, maxLength: heads })
        .map((logits) => Float32Array.from(logits)),
      keyLengths: lengths(keys),
      queryLengths: lengths(queries),
    },
    { requiredKeys: [] },
  );
}

const call = shape.chain((extents) =>
  fc.record({ extents: fc.constant(extents), options: optionsFor(extents), seed, isa }),
);

/** The part of a mask that one sequence of a batch sees. */
function maskOf({ data, dims, type }: MaskTensor, b: number, queries: number, keys: number): MaskTensor {
  const [batch, heads, rows, columns] = [1, 1, 1, ...dims].slice(-4);
  const cut = [1, heads, rows === 1 ? 1 : queries, keys];
  const size = cut.reduce((x, y) => x * y, 1);
  const at = (i: number) => {
    const row = Math.floor(i / keys);
    const head = Math.floor(row / cut[2]) + (batch === 1 ? 0 : b * heads);
    return data[(head * rows + (row % cut[2])) * columns + (i % keys)];
  };
  if (type === 'bool') return { data: Uint8Array.from({ length: size }, (_, i) => at(i)), dims: cut, type };
  return { data: Float32Array.from({ length: size }, (_, i) => at(i)), dims: cut, type };
}

/** The elements of one sequence of a batch. */
const sequence = (tensor: Tensor, index: number) => slice(tensor, 0, index, index + 1);

test('any call agrees with the reference', () => {
  fc.assert(
    fc.property(call, type, ({ extents, options, seed, isa }, type) => {
      const { q, k, v } = normalInputs(extents, seed, type);
      checkAttention({ q, k, v }, options, { isa });
    }),
    runs(60),
  );
});

test('the order of the keys does not matter', () => {
  fc.assert(
    fc.property(shape, seed, isa, (extents, seed, isa) => {
      const { q, k, v } = normalInputs(extents, seed);
      const next = uniform(seed);
      const order = Array.from({ length: extents.keys }, (_, key) => ({ key, at: next() }))
        .sort((a, b) => a.at - b.at)
        .map(({ key }) => key);
      const permuted = (tensor: Tensor): Tensor => {
        const [, , keys, dim] = tensor.dims;
        const data = Float32Array.from(tensor.data, (_, i) => {
          const row = Math.floor(i / dim);
          const source = row - (row % keys) + order[row % keys];
          return tensor.data[source * dim + (i % dim)];
        });
        return { ...tensor, data };
      };
      const expected = expectAttention(q, k, v);
      const { output, lse } = attentionWithLseSync(q, permuted(k), permuted(v), { isa });
      compare(output, expected.output, 'output');
      compare(lse, expected.lse, 'lse');
    }),
    runs(25),
  );
});

test('a sequence gives the same bits in any batch, padded or not', () => {
  fc.assert(
    fc.property(call, type, fc.constantFrom(1, 2), ({ extents, options, seed, isa }, type, threads) => {
      const { q, k, v } = normalInputs(extents, seed, type);
      const { mask, keyLengths, queryLengths, ...shared } = options;
      const batch = attentionWithLseSync(q, k, v, { ...options, isa, threads });
      for (let b = 0; b < extents.batch; b++) {
        const queries = queryLengths?.[b] ?? extents.queries;
        const keys = keyLengths?.[b] ?? extents.keys;
        const own = mask && { mask: maskOf(mask, b, queries, keys) };
        const alone = attentionWithLseSync(
          slice(sequence(q, b), 2, 0, queries),
          slice(sequence(k, b), 2, 0, keys),
          slice(sequence(v, b), 2, 0, keys),
          { ...shared, ...own, isa, threads },
        );
        expectSameBits(slice(sequence(batch.output, b), 2, 0, queries), alone.output);
        expectSameBits(slice(sequence(batch.lse, b), 2, 0, queries), alone.lse);
      }
    }),
    runs(40),
  );
});

test('any number of threads gives the same bits', () => {
  fc.assert(
    fc.property(call, type, ({ extents, options, seed, isa }, type) => {
      const { q, k, v } = normalInputs(extents, seed, type);
      const one = attentionWithLseSync(q, k, v, { ...options, isa, threads: 1 });
      const two = attentionWithLseSync(q, k, v, { ...options, isa, threads: 2 });
      expectSameBits(two.output, one.output);
      expectSameBits(two.lse, one.lse);
    }),
    runs(60),
  );
});

test('causality and windows are masks', () => {
  fc.assert(
    fc.property(call, ({ extents, options, seed, isa }) => {
      const { q, k, v } = normalInputs(extents, seed);
      const { batch, queries, keys } = extents;
      const { causal, window = [Infinity, Infinity], queryOffset, keyLengths, queryLengths, softcap } = options;
      const data = Uint8Array.from({ length: batch * queries * keys }, (_, i) => {
        const b = Math.floor(i / (queries * keys));
        const valid = { keys: keyLengths?.[b] ?? keys, queries: queryLengths?.[b] ?? queries };
        const own = (Math.floor(i / keys) % queries) + (queryOffset ?? valid.keys - valid.queries);
        const key = i % keys;
        return Number(!(causal && key > own) && key >= own - window[0] && key <= own + window[1]);
      });
      const lengths = {
        ...(keyLengths && { keyLengths }),
        ...(queryLengths && { queryLengths }),
        ...(softcap && { softcap }),
      };
      const expected = expectAttention(q, k, v, {
        ...lengths,
        causal: causal ?? false,
        window,
        ...(queryOffset !== undefined && { queryOffset }),
      });
      const mask = { data, dims: [batch, 1, queries, keys], type: 'bool' } as const;
      const { output, lse } = attentionWithLseSync(q, k, v, { ...lengths, mask, isa });
      compare(output, expected.output, 'output');
      compare(lse, expected.lse, 'lse');
    }),
    runs(25),
  );
});

test('attention over parts of the keys, merged, is attention over all', () => {
  fc.assert(
    fc.property(shape, seed, isa, fc.array(fc.nat(), { maxLength: 4 }), (extents, seed, isa, picks) => {
      const { q, k, v } = normalInputs(extents, seed);
      const cuts = [0, ...picks.map((pick) => pick % (extents.keys + 1)), extents.keys].sort((a, b) => a - b);
      const parts = cuts
        .slice(1)
        .map((end, i) => attentionWithLseSync(q, slice(k, 2, cuts[i], end), slice(v, 2, cuts[i], end), { isa }));
      const expected = expectAttention(q, k, v);
      const { output, lse } = mergeAttentionSync(parts);
      compare(output, expected.output, 'output');
      compare(lse, expected.lse, 'lse');
    }),
    runs(25),
  );
});

test('both layouts give the same bits', () => {
  fc.assert(
    fc.property(call, type, ({ extents, options, seed, isa }, type) => {
      const { q, k, v } = normalInputs(extents, seed, type);
      const heads = attentionWithLseSync(q, k, v, { ...options, isa });
      const rows = attentionWithLseSync(swapLayout(q), swapLayout(k), swapLayout(v), {
        ...options,
        isa,
        layout: 'blhd',
      });
      expectSameBits(swapLayout(rows.output), heads.output);
      expectSameBits(rows.lse, heads.lse);
    }),
    runs(40),
  );
});

describe('calls large enough for several threads', () => {
  // Small calls stay on one thread, so that the properties above say little about threads of large ones.
  const large = {
    prefill: { batch: 2, heads: 4, kvHeads: 2, queries: 300, keys: 333, headDim: 48, valueDim: 40 },
    'short prefill': { batch: 1, heads: 3, kvHeads: 3, queries: 130, keys: 1100, headDim: 64 },
    decode: { batch: 3, heads: 8, kvHeads: 2, queries: 2, keys: 5000, headDim: 64 },
    'one sequence': { batch: 1, heads: 4, kvHeads: 4, queries: 1, keys: 9000, headDim: 64 },
  };
  const options = (batch: number, keys: number): Record<string, AttentionMeaning> => ({
    plain: {},
    causal: { causal: true, sinks: Float32Array.from([1, 2, 3, 4, 5, 6, 7, 8]), softcap: 9 },
    padded: { keyLengths: [keys, 77, keys - 5].slice(0, batch), window: [900, 30] },
  });

  describe.each(Object.entries(large))('%s', (_name, extents) => {
    const inputs = once(() => types.map((type) => normalInputs(extents, 77, type)));
    test.each(isaRows('full'))('%s: the same bits on one thread, on two, and alone', (isa) => {
      for (const { q, k, v } of inputs()) {
        for (const each of Object.values(options(extents.batch, extents.keys))) {
          const { sinks, keyLengths, ...shared } = each;
          const all = { ...shared, ...(sinks && { sinks: sinks.subarray(0, extents.heads) }) };
          const call = { ...all, ...(keyLengths && { keyLengths }), isa };
          const wanted = attentionWithLseSync(q, k, v, { ...call, threads: 1 });
          const found = attentionWithLseSync(q, k, v, { ...call, threads: 2 });
          expectSameBits(found.output, wanted.output);
          expectSameBits(found.lse, wanted.lse);
          for (let b = 0; b < extents.batch; b++) {
            const own = keyLengths && { keyLengths: [keyLengths[b]] };
            const alone = attentionWithLseSync(sequence(q, b), sequence(k, b), sequence(v, b), { ...all, ...own, isa });
            expectSameBits(sequence(found.output, b), alone.output);
            expectSameBits(sequence(found.lse, b), alone.lse);
          }
        }
      }
    });
  });

  test('merging', () => {
    const parts = [1, 2, 3].map((seed) => {
      const { q, k, v } = normalInputs({ heads: 8, queries: 700, keys: 20, headDim: 64 }, seed);
      return attentionWithLseSync(q, k, v);
    });
    const one = mergeAttentionSync(parts, { threads: 1 });
    const two = mergeAttentionSync(parts, { threads: 2 });
    expectSameBits(two.output, one.output);
    expectSameBits(two.lse, one.lse);
  });
});
