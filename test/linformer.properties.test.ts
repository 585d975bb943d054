import fc from 'fast-check';
import { cast, linformerAttention, linformerAttentionSync } from '../lib';
import type { Tensor } from '../lib/tensor';
import { guarded, type Inputs, inputDims, normalInputs, type Shape, slice, swapLayout, types } from './data';
import { bitsOf, expectSameBits } from './full-run';
import { checkLinformer, projection } from './linformer-run';
import { expectLinformer, type LinformerMeaning } from './reference-linformer';
import { isaRows } from './rows';
import { compare } from './tolerance';

const rows = isaRows('linformer');

const copyOf = (tensor: Tensor): Tensor => slice(tensor, 0, 0, tensor.dims[0]);

/** Many rows over few blocks of keys, or few over several ranges. */
const extents = fc.oneof(
  fc.record({ keys: fc.integer({ min: 100, max: 600 }), projected: fc.integer({ min: 1, max: 320 }) }),
  fc.record({ keys: fc.integer({ min: 4000, max: 4600 }), projected: fc.integer({ min: 1, max: 16 }) }),
);

const drawn = fc.record({
  batch: fc.integer({ min: 1, max: 3 }),
  kvHeads: fc.integer({ min: 1, max: 5 }),
  group: fc.integer({ min: 1, max: 2 }),
  queries: fc.integer({ min: 0, max: 40 }),
  extents,
  beyond: fc.integer({ min: 0, max: 100 }),
  headDim: fc.integer({ min: 1, max: 40 }),
  valueDim: fc.integer({ min: 1, max: 40 }),
  perHead: fc.boolean(),
  shared: fc.boolean(),
  masked: fc.boolean(),
  type: fc.constantFrom(...types),
  projectionType: fc.constantFrom(...types),
  isa: fc.constantFrom(...rows),
  seed: fc.nat(),
});
type Drawn = typeof drawn extends fc.Arbitrary<infer T> ? T : never;

function build(given: Drawn): { inputs: Inputs; meaning: LinformerMeaning; shape: Shape } {
  const { batch, kvHeads, group, queries, beyond, headDim, valueDim, perHead, seed } = given;
  const { keys, projected } = given.extents;
  const shape = { batch, heads: kvHeads * group, kvHeads, queries, keys, headDim, valueDim };
  const dims = [...(perHead ? [kvHeads] : []), projected, keys + beyond];
  const meaning = {
    keyProjection: projection(dims, seed + 3, given.projectionType),
    ...(given.shared ? {} : { valueProjection: projection(dims, seed + 4, given.projectionType) }),
    ...(given.masked
      ? {
          keyMask: {
            data: Uint8Array.from({ length: batch * keys }, (_, i) => Number(((i * 7919 + seed) >>> 3) % 3 > 0)),
            dims: [batch, keys],
            type: 'bool' as const,
          },
        }
      : {}),
  };
  return { inputs: normalInputs(shape, seed, given.type), meaning, shape };
}

const run = ({ q, k, v }: Inputs, meaning: LinformerMeaning, how: { isa: string; threads?: number }) =>
  linformerAttentionSync(q, k, v, { ...meaning, ...how });

const settings = { numRuns: 15, seed: 20240607 };

/** Checks a property of many calls. */
const always = (property: (given: Drawn) => void) => () => fc.assert(fc.property(drawn, property), settings);

describe('the same bits', () => {
  test(
    'on any number of threads',
    always((given) => {
      const { inputs, meaning } = build(given);
      const one = run(inputs, meaning, { isa: given.isa, threads: 1 });
      for (const threads of [2, 7]) expectSameBits(run(inputs, meaning, { isa: given.isa, threads }), one);
    }),
  );

  test(
    'in any batch',
    always((given) => {
      const { inputs, meaning } = build(given);
      const whole = run(inputs, meaning, { isa: given.isa, threads: 2 });
      for (let item = 0; item < given.batch; item++) {
        const part = (tensor: Tensor) => slice(tensor, 0, item, item + 1);
        const alone = { q: part(inputs.q), k: part(inputs.k), v: part(inputs.v) };
        const { keyMask } = meaning;
        const data = keyMask?.data.slice(item * given.extents.keys, (item + 1) * given.extents.keys);
        const own =
          data === undefined ? {} : { keyMask: { data, dims: [1, given.extents.keys], type: 'bool' as const } };
        expectSameBits(part(whole), run(alone, { ...meaning, ...own }, { isa: given.isa, threads: 1 }));
      }
    }),
  );

  test(
    'for one head alone',
    always((given) => {
      const { inputs, meaning } = build({ ...given, group: 1 });
      const whole = run(inputs, meaning, { isa: given.isa });
      const head = given.kvHeads - 1;
      const part = (tensor: Tensor) => slice(tensor, 1, head, head + 1);
      const own = (matrix: Tensor) => (given.perHead ? slice(matrix, 0, head, head + 1) : matrix);
      const { keyProjection, valueProjection } = meaning;
      const alone = run(
        { q: part(inputs.q), k: part(inputs.k), v: part(inputs.v) },
        {
          ...meaning,
          keyProjection: own(keyProjection),
          ...(valueProjection === undefined ? {} : { valueProjection: own(valueProjection) }),
        },
        { isa: given.isa },
      );
      expectSameBits(part(whole), alone);
    }),
  );

  test(
    'in either layout',
    always((given) => {
      const { inputs, meaning } = build(given);
      const { q, k, v } = inputs;
      const turned = { q: swapLayout(q), k: swapLayout(k), v: swapLayout(v) };
      const found = run(turned, { ...meaning, layout: 'blhd' }, { isa: given.isa });
      expectSameBits(swapLayout(found), run(inputs, meaning, { isa: given.isa }));
    }),
  );

  test(
    'with one projection for keys and values, given once, given twice, or as a copy',
    always((given) => {
      const { inputs, meaning } = build({ ...given, shared: true });
      const { keyProjection } = meaning;
      const once = run(inputs, meaning, { isa: given.isa });
      for (const valueProjection of [keyProjection, copyOf(keyProjection)]) {
        expectSameBits(run(inputs, { ...meaning, valueProjection }, { isa: given.isa }), once);
      }
    }),
  );

  test(
    'with one matrix for all heads, or repeated for each',
    always((given) => {
      const { inputs, meaning } = build({ ...given, perHead: false });
      const repeat = ({ data, dims, type }: Tensor): Tensor => {
        const all = new (data.constructor as Float32ArrayConstructor)(given.kvHeads * data.length);
        for (let head = 0; head < given.kvHeads; head++) all.set(data as Float32Array, head * data.length);
        return { data: all, dims: [given.kvHeads, ...dims], type };
      };
      const { keyProjection, valueProjection } = meaning;
      const found = run(
        inputs,
        {
          ...meaning,
          keyProjection: repeat(keyProjection),
          ...(valueProjection === undefined ? {} : { valueProjection: repeat(valueProjection) }),
        },
        { isa: given.isa },
      );
      expectSameBits(found, run(inputs, meaning, { isa: given.isa }));
    }),
  );

  test(
    'whatever columns follow those in use',
    always((given) => {
      const { inputs, meaning } = build(given);
      const cut = (matrix: Tensor) => slice(matrix, matrix.dims.length - 1, 0, given.extents.keys);
      const { keyProjection, valueProjection } = meaning;
      const found = run(
        inputs,
        {
          ...meaning,
          keyProjection: cut(keyProjection),
          ...(valueProjection === undefined ? {} : { valueProjection: cut(valueProjection) }),
        },
        { isa: given.isa },
      );
      expectSameBits(found, run(inputs, meaning, { isa: given.isa }));
    }),
  );

  test(
    'whatever stands behind the mask',
    always((given) => {
      const { inputs, meaning } = build({ ...given, masked: true });
      const mask = meaning.keyMask?.data as Uint8Array;
      const ruin = (source: Tensor): Tensor => {
        const copy = copyOf(source);
        const [, heads, keys, dim] = copy.dims;
        for (let i = 0; i < copy.data.length; i++) {
          const row = Math.floor(i / dim);
          const there = mask[Math.floor(row / (heads * keys)) * keys + (row % keys)];
          if (!there) copy.data[i] = copy.type === 'float32' ? NaN : 0x7fff;
        }
        return copy;
      };
      const ruined = { q: inputs.q, k: ruin(inputs.k), v: ruin(inputs.v) };
      expectSameBits(run(ruined, meaning, { isa: given.isa }), run(inputs, meaning, { isa: given.isa }));
    }),
  );

  test.each(types)('%s: sync, async, out', async (type) => {
    const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 50, keys: 300, headDim: 24, valueDim: 18 };
    const { q, k, v } = normalInputs(shape, 1, type);
    const options = { keyProjection: projection([40, 300], 2), valueProjection: projection([40, 300], 3) };
    const wanted = linformerAttentionSync(q, k, v, options);
    expect(wanted.type).toBe(type);
    expect(wanted.dims).toEqual([2, 4, 50, 18]);
    expectSameBits(await linformerAttention(q, k, v, options), wanted);
    const out = guarded(wanted.dims, type);
    const result = await linformerAttention(q, k, v, { ...options, out: out.tensor });
    out.check();
    expect(result.data).toBe(out.tensor.data);
    expectSameBits(result, wanted);
  });
});

test('right for whatever is drawn', () => {
  fc.assert(
    fc.property(drawn, (given) => {
      const { keys, projected } = given.extents;
      const small = { ...given, extents: { keys: keys % 700, projected: 1 + (projected % 40) } };
      const { inputs, meaning } = build(small);
      checkLinformer(
        inputs,
        meaning,
        { isa: given.isa, threads: 2 },
        expectLinformer(inputs.q, inputs.k, inputs.v, meaning),
      );
    }),
    settings,
  );
});

test.each(types)('an output of %s, rounded to once', (type) => {
  const { q, k, v } = normalInputs({ heads: 2, queries: 9, keys: 40, headDim: 8 }, 5);
  const meaning = { keyProjection: projection([6, 40], 6) };
  const expected = expectLinformer(q, k, v, meaning);
  const out = guarded(expected.dims, type);
  const output = linformerAttentionSync(q, k, v, { ...meaning, out: out.tensor });
  out.check();
  compare(output, expected);
  expectSameBits(output, cast(linformerAttentionSync(q, k, v, meaning), type));
});

test('aborting stops a call, and nothing else', async () => {
  const shape = { heads: 8, queries: 3000, keys: 6000, headDim: 64 };
  const dims = inputDims(shape);
  const zero = (extents: number[]): Tensor => ({
    data: new Float32Array(extents.reduce((a, b) => a * b, 1)),
    dims: extents,
    type: 'float32',
  });
  const options = { keyProjection: zero([256, 6000]) };
  const controller = new AbortController();
  const call = linformerAttention(zero(dims.q), zero(dims.k), zero(dims.v), { ...options, signal: controller.signal });
  controller.abort();
  await expect(call).rejects.toMatchObject({ code: 'ERR_ABORTED', argument: 'signal' });
  const small = normalInputs({ queries: 3, keys: 10, headDim: 4 }, 7);
  expect(bitsOf(linformerAttentionSync(small.q, small.k, small.v, { keyProjection: zero([3, 10]) })).length).toBe(48);
});
