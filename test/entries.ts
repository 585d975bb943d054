import {
  attendBatch,
  attendBatchSync,
  attention,
  attentionFactors,
  attentionFactorsSync,
  attentionSync,
  attentionWithLse,
  attentionWithLseSync,
  cast,
  headSimilarity,
  headSimilaritySync,
  KvCache,
  LinformerState,
  linformerAttention,
  linformerAttentionSync,
  lowRankAttention,
  lowRankAttentionSync,
  matmul,
  matmulSync,
  mergeAttention,
  mergeAttentionSync,
  nystromAttention,
  nystromAttentionSync,
  spectrum,
  spectrumSync,
} from '../lib';
import type { Tensor } from '../lib/tensor';
import { filled, normal } from './data';
import { projection } from './linformer-run';

/** A public function with arguments that are right, any of which can be exchanged for something else. */
export interface Entry {
  readonly name: string;
  readonly asynchronous: boolean;
  /** Tensors by the names that errors give them. */
  readonly tensors: Readonly<Record<string, Tensor>>;
  /** Dims that a tensor must have in number; undefined where any number will do. */
  readonly rank: number | undefined;
  /** Dims of the output, where the function takes options. */
  readonly outDims?: readonly number[];
  readonly call: (tensors: Readonly<Record<string, unknown>>, options?: unknown) => unknown;
}

/** Calls of a function that the compiler would refuse. */
// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
type Loose = (...args: any[]) => unknown;

const q = normal([2, 4, 3, 8], 1);
const k = normal([2, 2, 5, 8], 2);
const v = normal([2, 2, 5, 6], 3);
const [keyRows, valueRows] = [normal([1, 2, 5, 8], 4), normal([1, 2, 5, 6], 5)];
const query = normal([1, 4, 2, 8], 6);
const parts = {
  'parts[0].output': normal([1, 2, 3, 4], 7),
  'parts[0].lse': normal([1, 2, 3], 8),
  'parts[1].output': normal([1, 2, 3, 4], 9),
  'parts[1].lse': normal([1, 2, 3], 10),
};

/** A cache of five positions, as the entries below use. */
export function smallCache(): KvCache {
  const cache = new KvCache({ heads: 2, headDim: 8, valueDim: 6 });
  cache.append(keyRows, valueRows);
  return cache;
}

function pair(
  name: string,
  functions: readonly [asynchronous: Loose, synchronous: Loose],
  rest: Pick<Entry, 'tensors' | 'rank' | 'outDims'>,
  call: (of: Loose, tensors: Readonly<Record<string, unknown>>, options: unknown) => unknown,
): Entry[] {
  return functions.map((of, index) => ({
    name: index === 0 ? name : `${name}Sync`,
    asynchronous: index === 0,
    ...rest,
    call: (tensors, options) => call(of, tensors, options),
  }));
}

const method =
  (name: 'attend' | 'attendSync' | 'attendWithLse' | 'attendWithLseSync'): Loose =>
  (...args) => {
    using cache = smallCache();
    return (cache[name] as Loose)(...args);
  };

const keyProjection = projection([3, 7], 13);

/** Puts the projection, without which there is no call, on the very object of options that came, whatever it is. */
function linformer(of: Loose, given: Readonly<Record<string, unknown>>, options: unknown = {}): unknown {
  const t = { q, k, v, keyProjection, ...given };
  try {
    Object.assign(options as object, { keyProjection: t.keyProjection });
  } catch {
    // No object, or one that cannot be written to.
  }
  return of(t.q, t.k, t.v, options);
}

/** A state of two positions of the keys and values below. */
export function smallState(): LinformerState {
  const state = new LinformerState({ keyProjection, heads: 2, headDim: 8, valueDim: 6 });
  state.append(normal([1, 2, 2, 8], 15), normal([1, 2, 2, 6], 16));
  return state;
}

const stateMethod =
  (name: 'attend' | 'attendSync'): Loose =>
  (...args) => {
    using state = smallState();
    return (state[name] as Loose)(...args);
  };

const three = { tensors: { q, k, v }, rank: 4, outDims: [2, 4, 3, 6] };
const ranked = { rank: { value: 2, enumerable: true } };
const one = { tensors: { query }, rank: 4, outDims: [1, 4, 2, 6] };

/** Functions that take options, `out` among them. */
export const calls: readonly Entry[] = [
  ...pair('attention', [attention, attentionSync], three, (of, t, options) => of(t.q, t.k, t.v, options)),
  ...pair('attentionWithLse', [attentionWithLse, attentionWithLseSync], three, (of, t, options) =>
    of(t.q, t.k, t.v, options),
  ),
  ...pair('nystromAttention', [nystromAttention, nystromAttentionSync], three, (of, t, options) =>
    of(t.q, t.k, t.v, options),
  ),
  ...pair(
    'matmul',
    [matmul, matmulSync],
    { tensors: { a: normal([2, 3, 4], 11), b: normal([4, 5], 12) }, rank: undefined, outDims: [2, 3, 5] },
    (of, t, options) => of(t.a, t.b, options),
  ),
  ...pair(
    'lowRankAttention',
    [lowRankAttention, lowRankAttentionSync],
    {
      tensors: {
        'factors.u': normal([2, 4, 3, 2], 13),
        'factors.v': normal([2, 4, 5, 2], 14),
        x: normal([2, 2, 5, 6], 15),
      },
      rank: 4,
      outDims: [2, 4, 3, 6],
    },
    (of, t, options) => of({ u: t['factors.u'], v: t['factors.v'] }, t.x, options),
  ),
  ...pair('KvCache.attend', [method('attend'), method('attendSync')], one, (of, t, options) => of(t.query, options)),
  ...pair('KvCache.attendWithLse', [method('attendWithLse'), method('attendWithLseSync')], one, (of, t, options) =>
    of(t.query, options),
  ),
  ...pair('linformerAttention', [linformerAttention, linformerAttentionSync], three, linformer),
  ...pair('LinformerState.attend', [stateMethod('attend'), stateMethod('attendSync')], one, (of, t, options) =>
    of(t.query, options),
  ),
  // Tensors of different ranks: named again below, output by output and lse by lse.
  ...pair(
    'mergeAttention',
    [mergeAttention, mergeAttentionSync],
    { tensors: pick(/output/), rank: 4, outDims: [1, 2, 3, 4] },
    merge,
  ),
];

/** Every function that takes tensors. */
export const entries: readonly Entry[] = [
  ...calls,
  ...pair('mergeAttention', [mergeAttention, mergeAttentionSync], { tensors: pick(/lse/), rank: 3 }, merge),
  ...pair(
    'attendBatch',
    [attendBatch, attendBatchSync],
    { tensors: { 'items[0].query': query, 'items[1].query': query }, rank: 4 },
    (of, t, options) => {
      using cache = smallCache();
      return of(
        [0, 1].map((i) => ({ cache, query: t[`items[${i}].query`] })),
        options,
      );
    },
  ),
  ...pair(
    'attentionFactors',
    [attentionFactors, attentionFactorsSync],
    { tensors: { q, k }, rank: 4 },
    // The rank it must be given, beside options that are inherited so that accessors stay accessors.
    (of, t, options) => of(t.q, t.k, Object.create((options ?? null) as object | null, ranked)),
  ),
  ...pair('spectrum', [spectrum, spectrumSync], { tensors: { q, k }, rank: 4 }, (of, t, options) =>
    of(t.q, t.k, options),
  ),
  ...pair(
    'headSimilarity',
    [headSimilarity, headSimilaritySync],
    { tensors: { wq: normal([4, 6, 3], 16), wk: normal([2, 6, 3], 17) }, rank: 3 },
    (of, t, options) => of(t.wq, t.wk, options),
  ),
  {
    name: 'KvCache.append',
    asynchronous: false,
    tensors: { key: keyRows, value: valueRows },
    rank: 4,
    call: ({ key, value }, options) => {
      using cache = smallCache();
      const before = cache.byteLength;
      try {
        (cache.append as Loose).call(cache, key, value, options);
      } catch (error) {
        if (cache.length !== 5 || cache.byteLength !== before) throw new Error('a refused append changed the cache');
        throw error;
      }
      return cache.length;
    },
  },
  ...pair(
    'linformerAttention',
    [linformerAttention, linformerAttentionSync],
    { tensors: { keyProjection }, rank: undefined },
    linformer,
  ),
  {
    name: 'LinformerState.append',
    asynchronous: false,
    tensors: { key: keyRows, value: valueRows },
    rank: 4,
    call: (t, options) => {
      using state = smallState();
      try {
        (state.append as Loose).call(state, t.key, t.value, options);
      } catch (error) {
        if (state.length !== 2) throw new Error('a refused append changed the state');
        throw error;
      }
      return state.length;
    },
  },
  {
    name: 'cast',
    asynchronous: false,
    tensors: { source: filled([2, 3], 'float32', (i) => i) },
    rank: undefined,
    call: ({ source }, type) => (cast as Loose)(source, type ?? 'float16'),
  },
];

function pick(pattern: RegExp): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(parts).filter(([name]) => pattern.test(name)));
}

function merge(of: Loose, given: Readonly<Record<string, unknown>>, options: unknown): unknown {
  const t = { ...parts, ...given };
  return of(
    [0, 1].map((i) => ({
      output: t[`parts[${i}].output` as 'parts[0].output'],
      lse: t[`parts[${i}].lse` as 'parts[0].lse'],
    })),
    options,
  );
}
