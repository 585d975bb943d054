import { AttentionError, LinformerState, linformerAttentionSync, type Tensor } from '../lib';
import { filled, guarded, type Inputs, normal, normalInputs, slice, swapLayout, types } from './data';
import { expectSameBits } from './full-run';
import { projection } from './linformer-run';
import { expectLinformer } from './reference-linformer';
import { isaRows } from './rows';
import { compare } from './tolerance';

const rows = isaRows('linformer');

const [heads, headDim, valueDim, longest, projected] = [2, 12, 17, 70, 9];
const keyProjection = projection([projected, longest], 1);
const valueProjection = projection([projected, longest], 2);
const options = { keyProjection, valueProjection, heads, headDim, valueDim };
const inputs = normalInputs({ heads: 4, kvHeads: heads, queries: 5, keys: longest, headDim, valueDim }, 3);

/** Keys or values [from, to) of every sequence and head. */
const part = (tensor: Tensor, from: number, to: number) => slice(tensor, 2, from, to);

/** Appends keys [from, to), so many at a time. */
function appendTo(state: LinformerState, { k, v }: Inputs, from: number, to: number, step: number, isa?: string): void {
  for (let at = from; at < to; at += step) {
    const end = Math.min(at + step, to);
    state.append(part(k, at, end), part(v, at, end), isa === undefined ? {} : { isa });
  }
}

function filledState(length: number): LinformerState {
  const state = new LinformerState(options);
  appendTo(state, inputs, 0, length, longest);
  return state;
}

/** What attending after `length` keys must give. */
const expectPrefix = (
  length: number,
  { q, k, v }: Inputs = inputs,
  projections: object = { keyProjection, valueProjection },
) => expectLinformer(q, part(k, 0, length), part(v, 0, length), { keyProjection, ...projections });

describe.each(rows)('%s', (isa) => {
  test('all keys in one piece: the bits of the parallel form', () => {
    using state = new LinformerState(options);
    appendTo(state, inputs, 0, longest, longest, isa);
    const { q, k, v } = inputs;
    const wanted = linformerAttentionSync(q, k, v, { keyProjection, valueProjection, isa });
    expectSameBits(state.attendSync(q, { isa }), wanted);
  });

  test.each([1, 3, 64])('%i at a time: as the parallel form of the keys so far', (step) => {
    using state = new LinformerState(options);
    for (let at = 0; at < longest; at += step) {
      const length = Math.min(at + step, longest);
      appendTo(state, inputs, at, length, step, isa);
      expect(state.length).toBe(length);
      if (step === 1 && length % 7 > 0 && length < longest) continue;
      const expected = expectPrefix(length);
      const out = guarded(expected.dims);
      state.attendSync(inputs.q, { isa, out: out.tensor });
      out.check();
      compare(out.tensor, expected, `after ${length}`);
    }
  });

  test('in ranges: one piece and many pieces agree', () => {
    const long = normalInputs({ batch: 2, heads: 2, queries: 3, keys: 4400, headDim: 5 }, 4);
    const shared = { keyProjection: projection([2, 3, 4500], 5) };
    const expected = expectPrefix(4400, long, { ...shared, valueProjection: undefined });
    for (const step of [4400, 2100, 130]) {
      using state = new LinformerState({ ...shared, heads: 2, headDim: 5, batch: 2 });
      appendTo(state, long, 0, 4400, step, isa);
      compare(state.attendSync(long.q, { isa }), expected, `${step} at a time`);
    }
  });

  test.each(types)('keys, values and queries in %s', (type) => {
    const typed = normalInputs({ heads: 4, kvHeads: heads, queries: 5, keys: longest, headDim, valueDim }, 6, type);
    using state = new LinformerState(options);
    appendTo(state, typed, 0, longest, 11, isa);
    const output = state.attendSync(typed.q, { isa });
    expect(output.type).toBe(type);
    compare(output, expectPrefix(longest, typed));
  });

  test('a pooling projection does not drift token by token', () => {
    // A mean over many equal keys. Summed one by one in float32 it would end some 1e-4 off.
    const length = 30_000;
    const pooling = { data: new Float32Array(length).fill(1 / length), dims: [1, length], type: 'float32' } as const;
    using state = new LinformerState({ keyProjection: pooling, heads: 1, headDim: 1 });
    const one = filled([1, 1, 1, 1], 'float32', () => 0.7);
    for (let i = 0; i < length; i++) state.append(one, one, { isa });
    const mean = Math.fround(1 / length) * length * Math.fround(0.7);
    const error = Math.abs(state.attendSync(one, { isa }).data[0] - mean) / mean;
    expect(error).toBeLessThan(2 ** -22);
  });
});

test('scale, layout and the number of queries are of the call', () => {
  const { q, k, v } = inputs;
  using state = filledState(longest);
  const wanted = linformerAttentionSync(q, k, v, { keyProjection, valueProjection, scale: -0.7 });
  expectSameBits(state.attendSync(q, { scale: -0.7 }), wanted);
  expectSameBits(swapLayout(state.attendSync(swapLayout(q), { scale: -0.7, layout: 'blhd' })), wanted);
  expectSameBits(
    state.attendSync(slice(q, 2, 1, 2), { scale: -0.7 }),
    linformerAttentionSync(slice(q, 2, 1, 2), k, v, {
      keyProjection,
      valueProjection,
      scale: -0.7,
    }),
  );
  expect(state.attendSync(slice(q, 2, 0, 0)).dims).toEqual([1, 4, 0, valueDim]);
});

test('appending in layout blhd gives the same bits', () => {
  using state = new LinformerState(options);
  state.append(swapLayout(inputs.k), swapLayout(inputs.v), { layout: 'blhd' });
  using wanted = filledState(longest);
  expectSameBits(state.attendSync(inputs.q), wanted.attendSync(inputs.q));
});

test('any number of threads gives the same bits', () => {
  const long = normalInputs({ batch: 2, heads: 3, queries: 40, keys: 5000, headDim: 24 }, 7);
  const shared = { keyProjection: projection([60, 5000], 8) };
  const outputs = [1, 2].map((threads) => {
    using state = new LinformerState({ ...shared, heads: 3, headDim: 24, batch: 2 });
    state.append(long.k, long.v, { threads });
    return state.attendSync(long.q, { threads });
  });
  expectSameBits(outputs[1] as Tensor, outputs[0] as Tensor);
});

test('with nothing appended the output is zero', () => {
  using state = new LinformerState(options);
  const { data } = state.attendSync(inputs.q);
  expect([...(data as Float32Array)].every((value) => value === 0)).toBe(true);
});

test('what a key mask hides counts as zeros, and its position passes', () => {
  const batch = 2;
  const { q, k, v } = normalInputs({ batch, heads, queries: 4, keys: 30, headDim, valueDim }, 9);
  const there = (sequence: number, key: number) => key % 3 > 0 || sequence === 1;
  const mask = (from: number, to: number) => ({
    data: Uint8Array.from({ length: batch * (to - from) }, (_, i) =>
      Number(there(Math.floor(i / (to - from)), from + (i % (to - from)))),
    ),
    dims: [batch, to - from],
    type: 'bool' as const,
  });
  const ruin = ({ data, dims }: Tensor): Tensor =>
    filled(dims, 'float32', (i) => {
      const row = Math.floor(i / (dims[3] as number));
      return there(Math.floor(row / (heads * 30)), row % 30) ? data[i] : NaN;
    });
  const [ruinedKeys, ruinedValues] = [ruin(k), ruin(v)];
  using state = new LinformerState({ ...options, batch });
  for (const [from, to] of [
    [0, 1],
    [1, 17],
    [17, 30],
  ] as const) {
    state.append(part(ruinedKeys, from, to), part(ruinedValues, from, to), { keyMask: mask(from, to) });
  }
  expect(state.length).toBe(30);
  compare(state.attendSync(q), expectLinformer(q, k, v, { keyProjection, valueProjection, keyMask: mask(0, 30) }));
});

test('says what it is', () => {
  using state = filledState(13);
  expect(state).toMatchObject({ heads, headDim, valueDim, batch: 1, projected, maxLength: longest, length: 13 });
  expect(state.byteLength).toBe(8 * heads * projected * (headDim + valueDim));
  using other = new LinformerState({ keyProjection, heads: 1, headDim: 4, batch: 3 });
  expect(other).toMatchObject({ valueDim: 4, batch: 3, length: 0 });
  expect(other.byteLength).toBe(8 * 3 * projected * 8);
});

test('a fork goes its own way', () => {
  using state = filledState(40);
  using fork = state.fork();
  expect(fork).toMatchObject({ heads, headDim, valueDim, batch: 1, projected, maxLength: longest, length: 40 });
  appendTo(fork, inputs, 40, longest, longest);
  expect([state.length, fork.length]).toEqual([40, longest]);
  compare(state.attendSync(inputs.q), expectPrefix(40));
  compare(fork.attendSync(inputs.q), expectPrefix(longest));
  state.dispose();
  compare(fork.attendSync(inputs.q), expectPrefix(longest));
});

describe('calls in flight see the state as it was', () => {
  test('while it grows', async () => {
    using state = filledState(40);
    // Long calls, so that the last of them begin when the state has grown.
    const { q } = normalInputs({ heads: 4, queries: 6000, keys: 1, headDim }, 10);
    const before = state.attendSync(q);
    const calls = Array.from({ length: 8 }, () => state.attend(q));
    appendTo(state, inputs, 40, 60, 1);
    const later = Array.from({ length: 2 }, () => state.attend(inputs.q));
    appendTo(state, inputs, 60, longest, 5);
    for (const call of calls) expectSameBits(await call, before);
    for (const call of later) compare(await call, expectPrefix(60));
    compare(await state.attend(inputs.q), expectPrefix(longest));
  });

  test('while it is disposed', async () => {
    const state = filledState(40);
    const before = state.attendSync(inputs.q);
    const call = state.attend(inputs.q);
    state.dispose();
    expectSameBits(await call, before);
  });

  test('and afterwards it grows in place again', async () => {
    using state = filledState(40);
    await Promise.all([state.attend(inputs.q), state.attend(inputs.q)]);
    await expect(state.attend(inputs.q, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    });
    const bytes = state.byteLength;
    appendTo(state, inputs, 40, longest, 1);
    expect(state.byteLength).toBe(bytes);
    compare(state.attendSync(inputs.q), expectPrefix(longest));
  });
});

describe('a call that fails leaves the state as it was', () => {
  const { k, v } = inputs;
  const failures: Readonly<Record<string, (state: LinformerState) => void>> = {
    'past maxLength': (state) => state.append(part(k, 0, 31), part(v, 0, 31)),
    'keys of other dims': (state) => state.append(normal([1, 3, 5, headDim], 1), part(v, 0, 5)),
    'other values': (state) => state.append(part(k, 0, 5), part(v, 0, 4)),
    'a mask of other dims': (state) =>
      state.append(part(k, 0, 5), part(v, 0, 5), { keyMask: { data: new Uint8Array(4), dims: [1, 4], type: 'bool' } }),
    'an unknown instruction set': (state) => state.append(part(k, 0, 5), part(v, 0, 5), { isa: 'abacus' }),
    'keys that go elsewhere meanwhile': (state) => {
      const { data, dims, type } = part(k, 0, 5);
      const key = { data: Float32Array.from(data), dims, type } as Tensor;
      const trap = {
        get layout() {
          return 'bhld' as const;
        },
        get keyMask() {
          return {
            data: new Uint8Array(5).fill(1),
            type: 'bool' as const,
            get dims() {
              structuredClone(key.data, { transfer: [key.data.buffer as ArrayBuffer] });
              return [1, 5];
            },
          };
        },
      };
      state.append(key, part(v, 0, 5), trap);
    },
  };
  test.each(Object.entries(failures))('%s', (_name, fail) => {
    using state = filledState(40);
    const before = state.attendSync(inputs.q);
    expect(() => fail(state)).toThrow(AttentionError);
    expect(state.length).toBe(40);
    expectSameBits(state.attendSync(inputs.q), before);
    appendTo(state, inputs, 40, longest, longest);
    compare(state.attendSync(inputs.q), expectPrefix(longest));
  });

  test('also where a getter appends to the state that is being appended to', () => {
    using state = filledState(40);
    const greedy = {
      get layout() {
        appendTo(state, inputs, 40, 60, longest);
        return undefined;
      },
    };
    expect(() => state.append(part(k, 40, longest), part(v, 40, longest), greedy)).toThrow(AttentionError);
    expect(state.length).toBe(60);
    compare(state.attendSync(inputs.q), expectPrefix(60));
  });
});
