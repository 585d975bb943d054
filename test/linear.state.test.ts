import { elu, LinearState, linearAttention, linearAttentionSync } from '../lib';
import type { Tensor } from '../lib/tensor';
import { filled, guarded, type Inputs, normal, normalInputs, type Shape, slice, types, uniform } from './data';
import { expectLinear } from './expectation';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { maps, plainMeaning, stateFor } from './linear-run';
import { type LinearMeaning, referenceLinear } from './reference-linear';
import { faultOf } from './refusal';
import { isaRows, once } from './rows';
import { compare, type Expected } from './tolerance';

const rows = isaRows('linear');

/** Rows [start, end) of an answer whose dims are [batch, heads, length, dim]. */
function rowsOf(expected: Expected, start: number, end: number): Expected {
  const [batch, heads, length, dim] = expected.dims as [number, number, number, number];
  const pick = (all: ArrayLike<number>) =>
    Float64Array.from({ length: batch * heads * (end - start) * dim }, (_, i) => {
      const [head, within] = [Math.floor(i / ((end - start) * dim)), i % ((end - start) * dim)];
      return all[(head * length + start) * dim + within];
    });
  return {
    ...expected,
    dims: [batch, heads, end - start, dim],
    values: pick(expected.values),
    scale: pick(expected.scale as ArrayLike<number>),
    naive: pick(expected.naive as ArrayLike<number>),
  };
}

const part = (tensor: Tensor, start: number, end: number): Tensor => slice(tensor, 2, start, end);
const inputsOf = ({ q, k, v }: Inputs, start: number, end: number) =>
  [part(q, start, end), part(k, start, end), part(v, start, end)] as const;

const shape: Shape = { batch: 2, heads: 4, kvHeads: 2, queries: 23, keys: 23, headDim: 7, valueDim: 10 };

/** Every map, and every rule with identity features: what a sequence may be continued with. */
const meanings: Readonly<Record<string, (shape: Shape) => LinearMeaning>> = {
  ...Object.fromEntries(
    Object.keys(maps).map((name) => [name, (of: Shape) => ({ ...plainMeaning(name, of), causal: true })]),
  ),
  'favor, epsilon': (of) => ({ ...plainMeaning('favor', of), epsilon: 0.1, causal: true }),
  'gated, normalized': (of) => ({ ...ruled('gated', of), map: { kind: 'elu' }, normalize: true }),
  gated: (of) => ruled('gated', of),
  'gated a feature': (of) => ruled('gated', of, of.headDim),
  delta: (of) => ruled('delta', of),
  gatedDelta: (of) => ruled('gatedDelta', of, of.headDim),
};

function ruled(updateRule: 'gated' | 'delta' | 'gatedDelta', of: Shape, features?: number): LinearMeaning {
  const { batch = 1, heads = 1, kvHeads = heads, keys } = of;
  const dims = [batch, kvHeads, keys];
  const next = uniform(5);
  const decayDims = features === undefined ? dims : [...dims, features];
  return {
    map: { kind: 'identity' },
    updateRule,
    causal: true,
    ...(updateRule === 'delta' ? {} : { decay: filled(decayDims, 'float32', () => -0.3 * next()) }),
    ...(updateRule === 'gated' ? {} : { beta: filled(dims, 'float32', () => 0.2 * next()) }),
  };
}

/** The options of a call on positions [start, end) of a sequence with its state; the method is the state's. */
function optionsAt({ decay, beta }: LinearMeaning, start: number, end: number) {
  return {
    ...(decay === undefined ? {} : { decay: part(decay, start, end) }),
    ...(beta === undefined ? {} : { beta: part(beta, start, end) }),
  };
}

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

describe.each(Object.entries(meanings))('%s', (_, meaningFor) => {
  const meaning = meaningFor(shape);
  const inputs = once(() => normalInputs(shape, 1));
  const expected = once(() => expectLinear(inputs().q, inputs().k, inputs().v, meaning));

  test.each(rows)('%s: a prompt and what follows it equal one pass, at every split', (isa) => {
    for (let split = 0; split <= 23; split++) {
      using state = stateFor(meaning, shape);
      for (const [start, end] of [
        [0, split],
        [split, 23],
      ] as const) {
        const options = { state, isa, ...optionsAt(meaning, start, end) };
        const output = linearAttentionSync(...inputsOf(inputs(), start, end), options);
        compare(output, rowsOf(expected(), start, end), `rows ${start} to ${end}`);
        expect(state.length).toBe(end);
      }
    }
  });

  test.each(rows)('%s: token by token', (isa) => {
    using state = stateFor(meaning, shape);
    for (let i = 0; i < 23; i++) {
      const options = { state, isa, ...optionsAt(meaning, i, i + 1) };
      const output = linearAttentionSync(...inputsOf(inputs(), i, i + 1), options);
      compare(output, rowsOf(expected(), i, i + 1), `row ${i}`);
    }
  });

  test.each(rows)('%s: append and attend', async (isa) => {
    using state = stateFor(meaning, shape);
    for (const [start, end] of [
      [0, 1],
      [1, 18],
      [18, 22],
      [22, 23],
    ] as const) {
      const [q, k, v] = inputsOf(inputs(), start, end);
      state.append(k, v, { isa, ...optionsAt(meaning, start, end) });
      expect(state.length).toBe(end);
      const last = part(q, end - start - 1, end - start);
      const out = guarded([2, 4, 1, 10]);
      const output = state.attendSync(last, { isa, out: out.tensor });
      out.check();
      compare(output, rowsOf(expected(), end - 1, end), `row ${end - 1}`);
      expectSameBits(await state.attend(last, { isa }), output);
    }
  });

  test('forks go their own ways', () => {
    const { q, k, v } = inputs();
    using state = stateFor(meaning, shape);
    linearAttentionSync(...inputsOf(inputs(), 0, 9), { state, ...optionsAt(meaning, 0, 9) });
    using fork = state.fork();
    expect({ ...fork }).toEqual({ ...state });
    expect(fork.length).toBe(9);
    const other = normalInputs(shape, 7);
    fork.append(part(other.k, 9, 15), part(other.v, 9, 15), optionsAt(meaning, 9, 15));
    const output = linearAttentionSync(...inputsOf({ q, k, v }, 9, 23), { state, ...optionsAt(meaning, 9, 23) });
    compare(output, rowsOf(expected(), 9, 23));
    expect([state.length, fork.length]).toEqual([23, 15]);
    // The fork holds the common part and its own.
    const mixed = (a: Tensor, b: Tensor) =>
      filled(a.dims, 'float32', (i) => (Math.floor(i / a.dims[3]) % 23 < 9 ? a.data[i] : b.data[i]));
    const own = expectLinear(q, mixed(k, other.k), mixed(v, other.v), meaning);
    compare(fork.attendSync(part(q, 14, 15)), rowsOf(own, 14, 15));
  });
});

describe('long sequences', () => {
  const length = 1100;
  const long: Shape = { heads: 2, kvHeads: 1, queries: length, keys: length, headDim: 8, valueDim: 12 };
  const splits = [1, 15, 16, 63, 64, 65, 127, 128, 129, 500, 1024, 1099];

  test.each(['elu', 'favor', 'gated', 'delta', 'gatedDelta'])('%s, split where chunks may end', (name) => {
    const meaning = (meanings[name] as (of: Shape) => LinearMeaning)(long);
    const plain = normalInputs(long, 2);
    const k = filled(plain.k.dims, 'float32', (i) => 0.5 * plain.k.data[i]);
    const inputs = { ...plain, k };
    const expected = expectLinear(inputs.q, k, inputs.v, meaning);
    for (const isa of rows) {
      for (const split of splits) {
        using state = stateFor(meaning, long);
        state.append(part(k, 0, split), part(inputs.v, 0, split), { isa, ...optionsAt(meaning, 0, split) });
        const options = { state, isa, ...optionsAt(meaning, split, length) };
        const output = linearAttentionSync(...inputsOf(inputs, split, length), options);
        compare(output, rowsOf(expected, split, length), `from ${split} (${isa})`);
      }
    }
  });

  // A float32 sum of 200 000 terms loses three digits; the state must not. No naive form: only rounding of the result.
  test.each(['elu', 'favor'])('%s: 200 000 positions do not drift', (name) => {
    const [count, pieces] = [200_000, 40];
    const far: Shape = { queries: 1, keys: count, headDim: 3, valueDim: 2 };
    const k = normal([1, 1, count, 3], 3);
    // All near 1, so that sums grow all the way.
    const noise = normal([1, 1, count, 2], 4);
    const v = filled([1, 1, count, 2], 'float32', (i) => 1 + 0.1 * noise.data[i]);
    const q = normal([1, 1, 1, 3], 5);
    const meaning = plainMeaning(name, far);
    const expected = { ...referenceLinear(q, k, v, meaning), terms: 9 };
    for (const isa of rows) {
      using state = stateFor(meaning, far);
      for (let i = 0; i < pieces; i++) {
        const [start, end] = [(i * count) / pieces, ((i + 1) * count) / pieces];
        // A prompt's worth at once, and single tokens.
        const single = end - 20;
        state.append(part(k, start, single), part(v, start, single), { isa });
        for (let at = single; at < end; at++) state.append(part(k, at, at + 1), part(v, at, at + 1), { isa });
      }
      expect(state.length).toBe(count);
      compare(state.attendSync(q, { isa }), expected, isa);
    }
  });
});

describe.each(types)('%s', (type) => {
  test('keys, values and queries', () => {
    const inputs = normalInputs(shape, 8, type);
    const meaning: LinearMeaning = { map: { kind: 'elu' }, causal: true };
    const expected = expectLinear(inputs.q, inputs.k, inputs.v, meaning);
    for (const isa of rows) {
      using state = stateFor(meaning, shape);
      const [, k, v] = inputsOf(inputs, 0, 11);
      state.append(k, v, { isa });
      const output = linearAttentionSync(...inputsOf(inputs, 11, 23), { state, isa });
      expect(output.type).toBe(type);
      compare(output, rowsOf(expected, 11, 23), isa);
    }
  });
});

describe('what a state is', () => {
  test('its properties, and what it takes', () => {
    using state = new LinearState({ heads: 2, headDim: 5, featureMap: elu() });
    expect(state).toMatchObject({ heads: 2, headDim: 5, valueDim: 5, batch: 1, updateRule: 'linear' });
    expect(state).toMatchObject({ normalize: true, epsilon: 1e-6, scale: undefined, features: 5, length: 0 });
    // S, z and a logarithm, twice, in float64.
    expect(state.byteLength).toBe(2 * 2 * (5 * 6 + 1) * 8);
    const before = state.byteLength;
    state.append(normal([1, 2, 300, 5], 1), normal([1, 2, 300, 5], 2));
    expect(state.length).toBe(300);
    expect(state.byteLength).toBe(before);
    state.dispose();
    expect([state.length, state.byteLength]).toEqual([0, 0]);
    state.dispose();
  });

  test('empty, it gives zeros', () => {
    for (const meaningFor of Object.values(meanings)) {
      using state = stateFor(meaningFor(shape), shape);
      for (const isa of rows) {
        const output = state.attendSync(normal([2, 4, 3, 7], 1), { isa });
        expect(toFloat64(output)).toEqual(new Float64Array(2 * 4 * 3 * 10));
      }
    }
  });

  test.each(Object.entries(meanings))('queries of attend all read everything: %s', (_, meaningFor) => {
    const meaning = meaningFor(shape);
    const { q, k, v } = normalInputs(shape, 3);
    const expected = expectLinear(q, k, v, { ...meaning, causal: false });
    for (const isa of rows) {
      using state = stateFor(meaning, shape);
      state.append(k, v, { isa, ...optionsAt(meaning, 0, 23) });
      compare(state.attendSync(q, { isa }), expected, isa);
    }
  });

  test('positions go on where it ends', () => {
    const meaning: LinearMeaning = { map: { kind: 'cosformer', maxLength: 23 }, causal: true };
    const inputs = normalInputs(shape, 4);
    const expected = expectLinear(inputs.q, inputs.k, inputs.v, meaning);
    using state = stateFor(meaning, shape);
    state.append(...(inputsOf(inputs, 0, 20).slice(1) as [Tensor, Tensor]));
    compare(linearAttentionSync(...inputsOf(inputs, 20, 23), { state }), rowsOf(expected, 20, 23));
  });

  test('hidden keys only count as positions', () => {
    for (const name of Object.keys(maps)) {
      const meaning: LinearMeaning = { ...plainMeaning(name, shape), causal: true };
      const { q, k, v } = normalInputs(shape, 5);
      const keyMask = {
        data: Uint8Array.from({ length: 46 }, (_, i) => Number(i % 23 >= 12)),
        dims: [2, 23],
        type: 'bool' as const,
      };
      const expected = expectLinear(q, k, v, { ...meaning, keyMask });
      using state = stateFor(meaning, shape);
      const hidden = { ...keyMask, data: new Uint8Array(24), dims: [2, 12] };
      state.append(part(k, 0, 12), part(v, 0, 12), { keyMask: hidden });
      expect(state.length).toBe(12);
      expect(toFloat64(state.attendSync(part(q, 11, 12))).every((value) => value === 0)).toBe(true);
      compare(linearAttentionSync(...inputsOf({ q, k, v }, 12, 23), { state }), rowsOf(expected, 12, 23), name);
    }
  });
});

describe('calls on one state', () => {
  const meaning: LinearMeaning = { map: { kind: 'elu' }, causal: true };
  const big: Shape = { heads: 2, queries: 3000, keys: 3000, headDim: 32 };
  const inputs = once(() => normalInputs(big, 6));
  const busy = { code: 'ERR_ARGUMENT', argument: 'state', received: 'one that a call is updating: await it' } as const;

  test('while one is updating it are refused, and work after it', async () => {
    const { q, k, v } = inputs();
    using state = stateFor(meaning, big);
    using twin = stateFor(meaning, big);
    const wanted = linearAttentionSync(q, k, v, { state: twin });
    const running = linearAttention(q, k, v, { state });
    const one = part(q, 0, 1);
    expect(await faultOf(() => state.append(k, v), false, busy)).toBeUndefined();
    expect(await faultOf(() => state.attendSync(one), false, busy)).toBeUndefined();
    expect(await faultOf(() => state.fork(), false, busy)).toBeUndefined();
    expect(await faultOf(() => linearAttentionSync(q, k, v, { state }), false, busy)).toBeUndefined();
    const refused = [() => state.attend(one), () => linearAttention(q, k, v, { state })];
    const faults = await Promise.all(refused.map((call) => faultOf(call, true, busy)));
    expect(faults).toEqual([undefined, undefined]);
    expectSameBits(await running, wanted);
    expect(state.length).toBe(3000);
    expectSameBits(state.attendSync(one), twin.attendSync(one));
  });

  test('any number may read at once, and what they read stays as it was', async () => {
    const { q, k, v } = inputs();
    using state = stateFor(meaning, big);
    state.append(k, v);
    const before = state.attendSync(q);
    const reading = [state.attend(q), state.attend(q)];
    // Two updates: the second one writes where the first state was.
    for (let i = 0; i < 3; i++) state.append(part(k, i, i + 1), part(v, i, i + 1));
    for (const output of await Promise.all(reading)) expectSameBits(output, before);
    expect(state.length).toBe(3003);
  });

  test('that are aborted or refused leave it as it was', async () => {
    const { q, k, v } = inputs();
    using state = stateFor(meaning, big);
    state.append(part(k, 0, 50), part(v, 0, 50));
    const one = part(q, 0, 1);
    const before = state.attendSync(one);
    for (let round = 0; round < 5; round++) {
      // The call may be done before it is aborted.
      using fork = state.fork();
      const controller = new AbortController();
      const running = linearAttention(q, k, v, { state: fork, signal: controller.signal });
      setTimeout(() => controller.abort(), round % 3);
      const result = await running.catch((error: { code: string }) => error.code);
      if (result !== 'ERR_ABORTED') continue;
      expect(fork.length).toBe(50);
      expectSameBits(fork.attendSync(one), before);
    }
    const aborted = AbortSignal.abort();
    using other = stateFor(meaning, big);
    await expect(linearAttention(q, k, v, { state: other, signal: aborted })).rejects.toThrow(/signal/);
    expect(() => linearAttentionSync(q, k, v, { state: other, threads: 0 })).toThrow(/threads/);
    expect(other.length).toBe(0);
    // Not left in a state of being updated.
    other.append(part(k, 0, 50), part(v, 0, 50));
    expectSameBits(other.attendSync(one), before);
  });

  test('that is disposed meanwhile still give their result', async () => {
    const { q, k, v } = inputs();
    using twin = stateFor(meaning, big);
    const state = stateFor(meaning, big);
    const wanted = linearAttentionSync(q, k, v, { state: twin });
    const running = linearAttention(q, k, v, { state });
    state.dispose();
    expectSameBits(await running, wanted);
    expect([state.length, state.byteLength]).toEqual([0, 0]);
    const closed = { code: 'ERR_CLOSED', argument: 'state', received: 'a disposed one' } as const;
    expect(await faultOf(() => state.append(k, v), false, closed)).toBeUndefined();
    expect(await faultOf(() => state.attend(q), true, closed)).toBeUndefined();
    expect(await faultOf(() => state.fork(), false, closed)).toBeUndefined();
    expect(await faultOf(() => linearAttention(q, k, v, { state }), true, closed)).toBeUndefined();
  });

  test('whose own code changes it are refused', async () => {
    const { q, k, v } = normalInputs(shape, 9);
    using state = stateFor(meaning, shape);
    const signal = {
      get aborted() {
        state.append(k, v);
        return false;
      },
      addEventListener() {},
      removeEventListener() {},
    };
    const options = { state, signal: signal as unknown as AbortSignal };
    const changed = { code: 'ERR_ARGUMENT', argument: 'state' } as const;
    expect(await faultOf(() => linearAttentionSync(q, k, v, options), false, changed)).toBeUndefined();
    expect(await faultOf(() => linearAttention(q, k, v, options), true, changed)).toBeUndefined();
  });
});
