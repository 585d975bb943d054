/** NaN and infinities: where they are seen the result is what IEEE arithmetic gives, where they are hidden nothing. */
import { attentionSync, cast, KvCache, matmulSync, mergeAttentionSync, type Tensor, tensor } from '../lib';
import { filled, from, type Inputs, normalInputs } from './data';
import { expectAttention, expectMatmul } from './expectation';
import { checkAttention, expectSameBits } from './full-run';
import type { AttentionMeaning } from './problem';
import { isaRows, once } from './rows';
import { compare } from './tolerance';

const rows = isaRows('full');
const dim = 16;
/** One query and few (decode), several, and more than a block. */
const queryCounts = [1, 3, 20, 140] as const;
const keys = 300;
const bad = 131;

/** Normal inputs, some elements exchanged: (head, position, coordinate) → value, or undefined to leave it. */
type Change = (head: number, position: number, coordinate: number) => number | undefined;
function changed(queries: number, change: { readonly q?: Change; readonly k?: Change; readonly v?: Change }): Inputs {
  const plain = normalInputs({ heads: 2, queries, keys, headDim: dim }, 41);
  const apply = (source: Tensor, by?: Change) => {
    if (by === undefined) return source;
    const length = source.dims[2];
    return filled(source.dims, 'float32', (i) => {
      const row = Math.floor(i / dim);
      return by(Math.floor(row / length), row % length, i % dim) ?? source.data[i];
    });
  };
  return { q: apply(plain.q, change.q), k: apply(plain.k, change.k), v: apply(plain.v, change.v) };
}

const at =
  (position: number, coordinate: number, value: number): Change =>
  (_head, p, c) =>
    p === position && c === coordinate ? value : undefined;

const additive = (queries: number, value: (query: number, key: number) => number) => ({
  mask: {
    data: Float32Array.from({ length: queries * keys }, (_, i) => value(Math.floor(i / keys), i % keys)),
    dims: [queries, keys],
    type: 'float32' as const,
  },
});

interface Case {
  readonly inputs: (queries: number) => Inputs;
  readonly options?: (queries: number) => AttentionMeaning;
  /** What some element must be, so that the reference itself is held to its word. */
  readonly some: number;
}

const causal = () => ({ causal: true });
const cases: Readonly<Record<string, Case>> = {
  'NaN in a key': { inputs: (n) => changed(n, { k: at(bad, 3, NaN) }), some: NaN },
  'NaN in a value: its column alone': { inputs: (n) => changed(n, { v: at(bad, 3, NaN) }), some: NaN },
  'NaN in a query: its row alone': { inputs: (n) => changed(n, { q: at(0, 3, NaN) }), some: NaN },
  'infinity in a key: scores of both signs': { inputs: (n) => changed(n, { k: at(bad, 3, Infinity) }), some: NaN },
  'infinities that cancel in a key': {
    inputs: (n) =>
      changed(n, {
        q: (_h, _p, c) => (c < 2 ? 1 : undefined),
        k: (_h, p, c) => (p === bad && c < 2 ? [Infinity, -Infinity][c] : undefined),
      }),
    some: NaN,
  },
  'infinity in a query': { inputs: (n) => changed(n, { q: at(0, 3, Infinity) }), some: NaN },
  'a query of zeros against an infinite key': {
    inputs: (n) => changed(n, { q: () => 0, k: at(bad, 3, Infinity) }),
    some: NaN,
  },
  'infinity in a value': { inputs: (n) => changed(n, { v: at(bad, 3, Infinity) }), some: Infinity },
  'minus infinity in a value': { inputs: (n) => changed(n, { v: at(bad, 3, -Infinity) }), some: -Infinity },
  'both infinities in a column of values': {
    inputs: (n) =>
      changed(n, {
        v: (_h, p, c) => (c === 3 && (p === bad || p === 7) ? (p === 7 ? -Infinity : Infinity) : undefined),
      }),
    some: NaN,
  },
  'infinity in a value, causal': {
    inputs: (n) => changed(n, { v: at(bad, 3, Infinity) }),
    options: causal,
    some: Infinity,
  },
  'softcap bounds an infinite score': {
    inputs: (n) => changed(n, { q: (_h, _p, c) => (c === 3 ? 2 : undefined), k: at(bad, 3, Infinity) }),
    options: () => ({ softcap: 4 }),
    some: 0,
  },
  'softcap keeps NaN': {
    inputs: (n) => changed(n, { k: at(bad, 3, NaN) }),
    options: () => ({ softcap: 4 }),
    some: NaN,
  },
  'infinity in a mask': {
    inputs: (n) => changed(n, {}),
    options: (n) => additive(n, (query, key) => (query === 0 && key === bad ? Infinity : 0)),
    some: NaN,
  },
  'NaN in a mask': {
    inputs: (n) => changed(n, {}),
    options: (n) => additive(n, (query, key) => (query === 0 && key === bad ? NaN : 0)),
    some: NaN,
  },
  'minus infinity over a whole mask': {
    inputs: (n) => changed(n, { k: () => NaN, v: () => NaN }),
    options: (n) => additive(n, () => -Infinity),
    some: 0,
  },
  'minus infinity over a whole mask, with a sink': {
    inputs: (n) => changed(n, { k: () => Infinity, v: () => Infinity }),
    options: (n) => ({ ...additive(n, () => -Infinity), sinks: Float32Array.of(1, -2) }),
    some: 0,
  },
  'infinities behind a mask': {
    inputs: (n) =>
      changed(n, { k: (_h, p) => (p % 2 ? Infinity : undefined), v: (_h, p) => (p % 2 ? -Infinity : undefined) }),
    options: (n) => additive(n, (_query, key) => (key % 2 ? -Infinity : 0)),
    some: 0,
  },
  'infinities in the padding': {
    inputs: (n) =>
      changed(n, { k: (_h, p) => (p > 200 ? Infinity : undefined), v: (_h, p) => (p > 200 ? NaN : undefined) }),
    options: () => ({ keyLengths: [201] }),
    some: 0,
  },
  'infinities past the causal edge and outside the window': {
    inputs: (n) =>
      changed(n, {
        k: (_h, p) => (p >= 240 || p < 200 - n ? Infinity : undefined),
        v: (_h, p) => (p >= 240 || p < 200 - n ? NaN : undefined),
      }),
    options: (n) => ({ causal: true, queryOffset: 240 - n, window: [40, 0] as const }),
    some: 0,
  },
  'NaN in a mask where causality hides': {
    inputs: (n) => changed(n, {}),
    options: (n) => ({
      ...additive(n, (_query, key) => (key > 290 - n ? NaN : 0)),
      causal: true,
      queryOffset: 290 - 2 * n,
    }),
    some: 0,
  },
};

describe.each(Object.entries(cases))('%s', (_name, { inputs, options = () => ({}), some }) => {
  test.each(queryCounts)('%i queries', (queries) => {
    const data = inputs(queries);
    const meaning = options(queries);
    const expected = expectAttention(data.q, data.k, data.v, meaning);
    const holds = (value: number) => (some === 0 ? Number.isFinite(value) : Object.is(value, some));
    expect(some === 0 ? expected.output.values.every(holds) : expected.output.values.some(holds)).toBe(true);
    for (const isa of rows) checkAttention(data, meaning, { isa, threads: 2 }, expected);
  });
});

test.each(queryCounts)('%i queries: a score too large for float32 is infinite, and its row NaN', (queries) => {
  const { q, k, v } = changed(queries, { q: () => 1e20, k: (_h, p) => (p === bad ? 1e20 : 0) });
  for (const isa of rows) {
    const { data } = attentionSync(q, k, v, { isa, scale: 1 });
    expect((data as Float32Array).every(Number.isNaN)).toBe(true);
  }
});

describe('sinks', () => {
  const inputs = once(() => normalInputs({ heads: 2, queries: 20, keys: 40, headDim: dim }, 42));

  test('of minus infinity are none', () => {
    const { q, k, v } = inputs();
    for (const isa of rows) {
      const none = attentionSync(q, k, v, { isa });
      expectSameBits(attentionSync(q, k, v, { isa, sinks: [-Infinity, -Infinity] }), none);
    }
  });
});

describe('16-bit types', () => {
  test.each(['float16', 'bfloat16'] as const)('%s: infinities come and go as in float32', (type) => {
    const numbers = [0, -0, 1, Infinity, -Infinity, NaN, 1e30, -1e30, 65519, 65520, 3.39e38, 3.4e38];
    const there = cast(tensor(Float32Array.from(numbers), [numbers.length]), type);
    const back = [...cast(there, 'float32').data];
    const largest = type === 'float16' ? 65504 : (2 - 2 ** -7) * 2 ** 127;
    back.forEach((value, i) => {
      const original = Math.fround(numbers[i]);
      if (Number.isNaN(original) || !Number.isFinite(original) || original === 0) expect(value).toBe(original);
      else
        expect(Math.abs(value) === Infinity).toBe(
          Math.abs(original) >= largest * (1 + (type === 'float16' ? 2 ** -12 : 2 ** -9)),
        );
    });
  });

  test.each(['float16', 'bfloat16'] as const)('%s inputs with infinities and NaN', (type) => {
    const plain = changed(20, { k: at(bad, 3, Infinity), v: at(7, 2, NaN) });
    const data = { q: cast(plain.q, type), k: cast(plain.k, type), v: cast(plain.v, type) };
    for (const isa of rows) checkAttention(data, {}, { isa });
  });
});

describe('a cache', () => {
  test('forgets what is truncated, NaN included', () => {
    const { q, k, v } = normalInputs({ heads: 2, queries: 1, keys: 200, headDim: dim }, 43);
    using cache = new KvCache({ heads: 2, headDim: dim });
    const wrong = { ...k, data: new Float32Array(k.data.length).fill(NaN) };
    cache.append(wrong, wrong);
    cache.truncate(0);
    cache.append(wrong, wrong);
    cache.truncate(0);
    cache.append(k, v);
    for (const isa of rows) {
      const expected = expectAttention(q, k, v, { causal: true });
      compare(cache.attendSync(q, { isa }), expected.output, isa);
    }
  });

  test('shows NaN and infinities that are seen', () => {
    for (const queries of [1, 3, 20]) {
      const { q, k, v } = changed(queries, { k: at(bad, 3, Infinity), v: at(7, 2, Infinity) });
      using cache = new KvCache({ heads: 2, headDim: dim });
      cache.append(k, v);
      const expected = expectAttention(q, k, v, { causal: true });
      for (const isa of rows) compare(cache.attendSync(q, { isa }), expected.output, isa);
    }
  });
});

describe('merging', () => {
  const part = (value: number, lse: number) => ({ output: from([value], [1, 1, 1, 1]), lse: from([lse], [1, 1, 1]) });
  const merged = (...parts: ReturnType<typeof part>[]) => {
    const { output, lse } = mergeAttentionSync(parts as Parameters<typeof mergeAttentionSync>[0]);
    return [output.data[0], lse.data[0]];
  };
  test.each([
    ['a part that saw nothing adds nothing, whatever it holds', [part(NaN, -Infinity), part(3, 1)], [3, 1]],
    ['parts that saw nothing make one that saw nothing', [part(NaN, -Infinity), part(2, -Infinity)], [0, -Infinity]],
    ['a value that is NaN shows', [part(NaN, 0), part(3, 1)], [NaN, expect.closeTo(1 + Math.log1p(Math.exp(-1)), 5)]],
    ['an infinite value shows', [part(Infinity, 0), part(3, 0)], [Infinity, expect.closeTo(Math.log(2), 5)]],
    ['an lse that is NaN shows', [part(2, NaN), part(3, 1)], [NaN, NaN]],
    ['in the last place, too', [part(3, 1), part(2, NaN)], [NaN, NaN]],
    ['an infinite lse shows', [part(2, Infinity), part(3, 1)], [NaN, NaN]],
  ] as const)('%s', (_name, parts, wanted) => {
    expect(merged(...parts)).toEqual(wanted);
  });
});

describe('matmul', () => {
  const shape = [21, 40, 35] as const;
  test.each([
    ['NaN', NaN, 1],
    ['infinity', Infinity, 1],
    ['infinity against zeros', Infinity, 0],
    ['infinities that cancel', Infinity, -Infinity],
  ] as const)('%s', (_name, inA, inB) => {
    const [m, k, n] = shape;
    const a = filled([m, k], 'float32', (i) => (i === 3 * k + 7 ? inA : i === 3 * k + 8 ? 1 : 0.5));
    for (const transposeB of [false, true]) {
      const b = filled(transposeB ? [n, k] : [k, n], 'float32', (i) => {
        const [row, column] = transposeB ? [i % k, Math.floor(i / k)] : [Math.floor(i / n), i % n];
        if (row === 7 && column === 2) return inB === -Infinity ? 1 : inB;
        return row === 8 && column === 2 && inB === -Infinity ? -Infinity : 1;
      });
      const expected = expectMatmul(a, b, { transposeB });
      for (const isa of isaRows('matmul')) compare(matmulSync(a, b, { transposeB, isa }), expected, isa);
    }
  });
});
