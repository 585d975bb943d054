import fc from 'fast-check';
import { linearAttention, linearAttentionSync } from '../lib';
import type { BoolTensor, Tensor } from '../lib/tensor';
import { filled, type Inputs, normalInputs, type Shape, slice, types, uniform } from './data';
import { expectSameBits } from './full-run';
import { maps, optionsOf, plainMeaning, stateFor } from './linear-run';
import type { LinearMeaning } from './reference-linear';
import { isaRows } from './rows';

const rows = isaRows('linear');
const rules = ['linear', 'gated', 'gated a feature', 'delta', 'gatedDelta'] as const;

/** Any call: every map, or every rule with identity features. Long ones are worth more than one thread. */
const calls = fc.record({
  way: fc.constantFrom(...Object.keys(maps), ...rules),
  batch: fc.integer({ min: 1, max: 3 }),
  kvHeads: fc.integer({ min: 1, max: 3 }),
  group: fc.integer({ min: 1, max: 3 }),
  length: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.constantFrom(511, 513, 700, 1100, 1600)),
  headDim: fc.integer({ min: 1, max: 24 }),
  valueDim: fc.integer({ min: 1, max: 40 }),
  type: fc.constantFrom(...types),
  causal: fc.boolean(),
  masked: fc.boolean(),
  isa: fc.constantFrom(...rows),
  seed: fc.nat(1e6),
});
type Drawn = typeof calls extends fc.Arbitrary<infer T> ? T : never;

interface Built {
  readonly shape: Shape;
  readonly inputs: Inputs;
  readonly meaning: LinearMeaning;
}

function build({ way, batch, kvHeads, group, length, headDim, valueDim, type, causal, masked, seed }: Drawn): Built {
  const heads = kvHeads * group;
  const shape: Shape = { batch, heads, kvHeads, queries: length, keys: length, headDim, valueDim };
  const plain = normalInputs(shape, seed, type);
  const next = uniform(seed);
  const dims = [batch, kvHeads, length];
  const some = <Value>(condition: boolean, value: Value): Value | undefined => (condition ? value : undefined);
  const keyMask: BoolTensor = {
    data: Uint8Array.from({ length: batch * length }, () => Number(next() < 0.7)),
    dims: [batch, length],
    type: 'bool',
  };
  const decayDims = way === 'gated a feature' ? [...dims, headDim] : dims;
  const ruled: LinearMeaning = {
    map: { kind: 'identity' },
    updateRule: way.startsWith('gated a') ? 'gated' : (way as 'gated'),
    causal: true,
    normalize: false,
    ...(way.startsWith('gated') ? { decay: filled(decayDims, 'float32', () => -0.1 * next()) } : {}),
    // Small enough for keys of any length.
    ...(/delta/i.test(way) ? { beta: filled(dims, 'float32', () => 0.02 * next()) } : {}),
  };
  const isRule = (rules as readonly string[]).includes(way);
  const method = isRule ? ruled : { ...plainMeaning(way, { heads, kvHeads, headDim }), causal };
  const mask = some(masked, keyMask);
  return { shape, inputs: plain, meaning: mask === undefined ? method : { ...method, keyMask: mask } };
}

/** The call on sequence `b` alone. */
function alone({ inputs, meaning }: Built, b: number): { inputs: Inputs; meaning: LinearMeaning } {
  const own = (tensor: Tensor) => slice(tensor, 0, b, b + 1);
  const { decay, beta, keyMask } = meaning;
  const [, length] = keyMask?.dims ?? [];
  return {
    inputs: { q: own(inputs.q), k: own(inputs.k), v: own(inputs.v) },
    meaning: {
      ...meaning,
      ...(decay === undefined ? {} : { decay: own(decay) }),
      ...(beta === undefined ? {} : { beta: own(beta) }),
      ...(keyMask === undefined
        ? {}
        : { keyMask: { ...keyMask, dims: [1, length], data: keyMask.data.slice(b * length, (b + 1) * length) } }),
    },
  };
}

const run = ({ q, k, v }: Inputs, meaning: LinearMeaning, how: object) =>
  linearAttentionSync(q, k, v, { ...optionsOf(meaning), ...how });

const options = { numRuns: 80, seed: 20250311 };

test('any number of threads gives the same bits, async too', async () => {
  await fc.assert(
    fc.asyncProperty(calls, async (drawn) => {
      const { inputs, meaning } = build(drawn);
      const wanted = run(inputs, meaning, { isa: drawn.isa, threads: 1 });
      expectSameBits(run(inputs, meaning, { isa: drawn.isa, threads: 2 }), wanted);
      const { q, k, v } = inputs;
      expectSameBits(await linearAttention(q, k, v, { ...optionsOf(meaning), isa: drawn.isa }), wanted);
    }),
    options,
  );
});

test('a sequence gives the same bits in any batch', () => {
  fc.assert(
    fc.property(calls, (drawn) => {
      const built = build(drawn);
      const whole = run(built.inputs, built.meaning, { isa: drawn.isa });
      for (let b = 0; b < drawn.batch; b++) {
        const { inputs, meaning } = alone(built, b);
        expectSameBits(slice(whole, 0, b, b + 1), run(inputs, meaning, { isa: drawn.isa }));
      }
    }),
    options,
  );
});

test('a state too, whatever its threads and its batch', () => {
  const causal = calls.filter(({ causal: is, way }) => is || (rules as readonly string[]).includes(way));
  fc.assert(
    fc.property(causal, fc.double({ min: 0, max: 1, noNaN: true }), (drawn, at) => {
      const built = build(drawn);
      const split = Math.floor(at * drawn.length);
      const through = ({ inputs, meaning }: Pick<Built, 'inputs' | 'meaning'>, batch: number, threads: number) => {
        using state = stateFor(meaning, { ...built.shape, batch });
        const outputs: Tensor[] = [];
        for (const [start, end] of [
          [0, split],
          [split, drawn.length],
        ] as const) {
          const part = (tensor: Tensor) => slice(tensor, 2, start, end);
          const { decay, beta, keyMask } = meaning;
          const keys = drawn.length;
          const data = Uint8Array.from({ length: batch * (end - start) }, (_, i) => {
            const [item, j] = [Math.floor(i / (end - start)), i % (end - start)];
            return keyMask?.data[item * keys + start + j] as number;
          });
          outputs.push(
            linearAttentionSync(part(inputs.q), part(inputs.k), part(inputs.v), {
              ...{ state, threads, isa: drawn.isa },
              ...(decay === undefined ? {} : { decay: part(decay) }),
              ...(beta === undefined ? {} : { beta: part(beta) }),
              ...(keyMask === undefined ? {} : { keyMask: { ...keyMask, dims: [batch, end - start], data } }),
            }),
          );
        }
        return outputs;
      };
      const wanted = through(built, drawn.batch, 1);
      for (const [i, output] of through(built, drawn.batch, 2).entries()) expectSameBits(output, wanted[i] as Tensor);
      for (let b = 0; b < drawn.batch; b++) {
        for (const [i, output] of through(alone(built, b), 1, 2).entries()) {
          expectSameBits(output, slice(wanted[i] as Tensor, 0, b, b + 1));
        }
      }
    }),
    options,
  );
});

test('scaling all values scales the output by as much', () => {
  fc.assert(
    fc.property(calls, (drawn) => {
      const { inputs, meaning } = build({ ...drawn, type: 'float32' });
      const { q, k, v } = inputs;
      const doubled = filled(v.dims, 'float32', (i) => 2 * v.data[i]);
      const once = run({ q, k, v }, meaning, { isa: drawn.isa });
      // A power of two: exactly.
      const twice = run({ q, k, v: doubled }, meaning, { isa: drawn.isa });
      expectSameBits(twice, { ...once, data: Float32Array.from(once.data, (value) => 2 * value) });
    }),
    options,
  );
});
