import {
  approximationError,
  attendBatch,
  attendBatchSync,
  attendBatchWithLse,
  attendBatchWithLseSync,
  attention,
  attentionFactors,
  attentionFactorsSync,
  attentionLayer,
  attentionRowKl,
  attentionSync,
  attentionWithLse,
  attentionWithLseSync,
  cast,
  elu,
  headSimilarity,
  headSimilaritySync,
  KvCache,
  LinearState,
  LinformerState,
  linearAttention,
  linearAttentionSync,
  linearCka,
  linearCkaSync,
  linformerAttention,
  linformerAttentionSync,
  lowRankAttention,
  lowRankAttentionSync,
  lrkvAttention,
  lrkvAttentionSync,
  lrkvAttentionWithLse,
  lrkvAttentionWithLseSync,
  matmul,
  matmulSync,
  mergeAttention,
  mergeAttentionSync,
  nystromAttention,
  nystromAttentionSync,
  pca,
  pcaSync,
  principalAngles,
  principalAnglesSync,
  ropeFrequencies,
  rotary,
  rotarySync,
  spectrum,
  spectrumSync,
} from '../lib';
import type { LrkvCache } from '../lib/lrkv-cache';
import type { Tensor } from '../lib/tensor';
import { filled, normal } from './data';
import { layerWeights } from './layer-data';
import { projection } from './linformer-run';
import { lrkvModel, lrkvProjections, lrkvRows, smallLrkvCache } from './lrkv-small';

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
  /** It takes tensors only, or something else than options beside them. */
  readonly optionless?: boolean;
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

type Call = (of: Loose, tensors: Readonly<Record<string, unknown>>, options: unknown) => unknown;

function pair(
  name: string,
  functions: readonly [asynchronous: Loose, synchronous: Loose],
  rest: Pick<Entry, 'tensors' | 'rank' | 'outDims'>,
  call: Call,
): Entry[] {
  return functions.map((of, index) => ({
    name: index === 0 ? name : `${name}Sync`,
    asynchronous: index === 0,
    ...rest,
    call: (tensors, options) => call(of, tensors, options),
  }));
}

const method =
  (name: 'attend' | 'attendSync' | 'attendWithLse' | 'attendWithLseSync', make: () => AnyCache = smallCache): Loose =>
  (...args) => {
    using cache = make();
    return (cache[name] as Loose)(...args);
  };

type AnyCache = KvCache | LrkvCache;

const keyProjection = projection([3, 7], 13);

/** Puts options without which there is no call on the very object of options that came, whatever it is. */
function beside(required: object, options: unknown = {}): unknown {
  try {
    Object.assign(options as object, required);
  } catch {
    // No object, or one that cannot be written to.
  }
  return options;
}

function linformer(of: Loose, given: Readonly<Record<string, unknown>>, options?: unknown): unknown {
  const t = { q, k, v, keyProjection, ...given };
  return of(t.q, t.k, t.v, beside({ keyProjection: t.keyProjection }, options));
}

const { keyUp, valueUp } = lrkvModel;

function lrkvCall(of: Loose, given: Readonly<Record<string, unknown>>, options?: unknown): unknown {
  const { q: queries, ...lrkv } = { q, ...lrkvRows(5, { batch: 2 }), ...lrkvModel, ...given };
  return of(queries, lrkv, beside({ kvHeads: 2 }, options));
}

/** Calls a method on a cache of five positions, which it leaves as it was if it is refused. */
function onLrkvCache(
  name: 'append' | 'appendHidden' | 'appendHiddenSync',
  added: number,
): (...args: readonly unknown[]) => unknown {
  return (...args) => {
    const cache = smallLrkvCache();
    const bytes = cache.byteLength;
    const refused = (error: unknown): never => {
      if (cache.length !== 5 || cache.byteLength !== bytes) throw new Error('a refused append changed the cache');
      throw error;
    };
    const done = (): number => {
      if (cache.length !== 5 + added) throw new Error('an append that added something else');
      return cache.length;
    };
    return disposing([cache], () => {
      try {
        const result = (cache[name] as Loose)(...args);
        return result instanceof Promise ? result.then(done, refused) : done();
      } catch (error) {
        return refused(error);
      }
    });
  };
}

/** Disposes what a call uses once it has ended, whichever way. */
function disposing(used: readonly AnyCache[], call: () => unknown): unknown {
  const dispose = (): void => {
    for (const cache of used) cache.dispose();
  };
  let ended = true;
  try {
    const result = call();
    ended = !(result instanceof Promise);
    return result instanceof Promise ? result.finally(dispose) : result;
  } finally {
    if (ended) dispose();
  }
}

type AnyState = LinearState | LinformerState;

function filledState<State extends AnyState>(state: State): State {
  state.append(normal([1, 2, 2, 8], 15), normal([1, 2, 2, 6], 16));
  return state;
}

/** A state of two positions of the keys and values below. */
export function smallState(): LinformerState {
  return filledState(new LinformerState({ keyProjection, heads: 2, headDim: 8, valueDim: 6 }));
}

function smallLinearState(): LinearState {
  return filledState(new LinearState({ heads: 2, headDim: 8, valueDim: 6, featureMap: elu() }));
}

const stateMethod =
  (make: () => AnyState, name: 'attend' | 'attendSync'): Loose =>
  (...args) => {
    using state = make();
    return (state[name] as Loose)(...args);
  };

const smallWeights = layerWeights({ kvHeads: 2 });
const smallLayer = attentionLayer(smallWeights);
const smallMatrices = Object.fromEntries(
  (['query', 'key', 'value', 'output'] as const).map((name) => [`weights.${name}`, smallWeights[name]]),
);

const layerMethod =
  (name: 'step' | 'stepSync'): Loose =>
  (hidden, options) => {
    const caches = [smallLayer.createCache(), smallLayer.createCache()];
    return disposing(caches, () => (smallLayer[name] as Loose)(hidden, caches, options));
  };

function append(make: () => AnyState, key: unknown, value: unknown, options: unknown): number {
  using state = make();
  try {
    (state.append as Loose).call(state, key, value, options);
  } catch (error) {
    if (state.length !== 2) throw new Error('a refused append changed the state');
    throw error;
  }
  return state.length;
}

const three = { tensors: { q, k, v }, rank: 4, outDims: [2, 4, 3, 6] };
const ranked = { rank: { value: 2, enumerable: true } };
const one = { tensors: { query }, rank: 4, outDims: [1, 4, 2, 6] };
const hiddenStates = { tensors: { hidden: normal([2, 3, 20], 24) }, rank: 3, outDims: [2, 3, 20] };
const representations = { tensors: { x: normal([7, 3], 18), y: normal([7, 2], 19) }, rank: 2 };

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
  ...pair(
    'LinformerState.attend',
    [stateMethod(smallState, 'attend'), stateMethod(smallState, 'attendSync')],
    one,
    (of, t, options) => of(t.query, options),
  ),
  ...pair('linearAttention', [linearAttention, linearAttentionSync], three, (of, t, options) =>
    of(t.q, t.k, t.v, beside({ featureMap: elu() }, options)),
  ),
  ...pair('rotary', [rotary, rotarySync], { tensors: { x: q }, rank: 4, outDims: q.dims }, (of, t, options) =>
    of(t.x, beside({ rope: { frequencies: ropeFrequencies(8) } }, options)),
  ),
  ...pair(
    'LinearState.attend',
    [stateMethod(smallLinearState, 'attend'), stateMethod(smallLinearState, 'attendSync')],
    one,
    (of, t, options) => of(t.query, options),
  ),
  ...pair(
    'AttentionLayer.forward',
    [
      (hidden, options) => smallLayer.forward(hidden, options),
      (hidden, options) => smallLayer.forwardSync(hidden, options),
    ],
    hiddenStates,
    (of, t, options) => of(t.hidden, options),
  ),
  ...pair('AttentionLayer.step', [layerMethod('step'), layerMethod('stepSync')], hiddenStates, (of, t, options) =>
    of(t.hidden, options),
  ),
  ...pair('lrkvAttention', [lrkvAttention, lrkvAttentionSync], { ...three, tensors: { q } }, lrkvCall),
  ...pair(
    'lrkvAttentionWithLse',
    [lrkvAttentionWithLse, lrkvAttentionWithLseSync],
    { ...three, tensors: { q } },
    lrkvCall,
  ),
  ...pair(
    'LrkvCache.attend',
    [method('attend', smallLrkvCache), method('attendSync', smallLrkvCache)],
    one,
    (of, t, options) => of(t.query, options),
  ),
  // Tensors of different ranks: named again below, output by output and lse by lse.
  ...pair(
    'mergeAttention',
    [mergeAttention, mergeAttentionSync],
    { tensors: pick(/output/), rank: 4, outDims: [1, 2, 3, 4] },
    merge,
  ),
];

const twoQueries = { tensors: { 'items[0].query': query, 'items[1].query': query }, rank: 4 };
const batchCall: Call = (of, t, options) => {
  using cache = smallCache();
  return of(
    [0, 1].map((i) => ({ cache, query: t[`items[${i}].query`] })),
    options,
  );
};

/** Every function that takes tensors. */
export const entries: readonly Entry[] = [
  ...calls,
  ...pair('mergeAttention', [mergeAttention, mergeAttentionSync], { tensors: pick(/lse/), rank: 3 }, merge),
  ...pair('attendBatch', [attendBatch, attendBatchSync], twoQueries, batchCall),
  ...pair('attendBatchWithLse', [attendBatchWithLse, attendBatchWithLseSync], twoQueries, batchCall),
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
  ...pair('pca', [pca, pcaSync], { tensors: { x: normal([7, 3], 18) }, rank: 2 }, (of, t, options) => of(t.x, options)),
  ...pair('linearCka', [linearCka, linearCkaSync], representations, (of, t, options) => of(t.x, t.y, options)),
  ...pair('principalAngles', [principalAngles, principalAnglesSync], representations, (of, t, options) =>
    of(t.x, t.y, options),
  ),
  {
    name: 'attentionLayer',
    asynchronous: false,
    optionless: true,
    tensors: smallMatrices,
    rank: 2,
    call: (t) => {
      const weights = Object.entries(t).map(([name, matrix]) => [name.replace('weights.', ''), matrix]);
      const layer = (attentionLayer as Loose)({ ...smallWeights, ...Object.fromEntries(weights) });
      return (layer as typeof smallLayer).forwardSync(hiddenStates.tensors.hidden);
    },
  },
  {
    name: 'approximationError',
    asynchronous: false,
    optionless: true,
    tensors: { approximation: normal([3, 4], 20), exact: normal([3, 4], 21) },
    rank: undefined,
    call: (t) => (approximationError as Loose)(t.approximation, t.exact),
  },
  {
    name: 'attentionRowKl',
    asynchronous: false,
    optionless: true,
    tensors: { exact: filled([3, 4], 'float32', (i) => (1 + i) / 78), approximation: normal([3, 4], 22) },
    rank: undefined,
    call: (t) => (attentionRowKl as Loose)(t.exact, t.approximation),
  },
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
    call: (t, options) => append(smallState, t.key, t.value, options),
  },
  {
    name: 'LinearState.append',
    asynchronous: false,
    tensors: { key: keyRows, value: valueRows },
    rank: 4,
    call: (t, options) => append(smallLinearState, t.key, t.value, options),
  },
  ...pair(
    'lrkvAttention',
    [lrkvAttention, lrkvAttentionSync],
    { tensors: { ...lrkvRows(5, { batch: 2 }) }, rank: 3 },
    lrkvCall,
  ),
  ...pair('lrkvAttention', [lrkvAttention, lrkvAttentionSync], { tensors: { keyUp, valueUp }, rank: 2 }, lrkvCall),
  {
    name: 'LrkvCache.append',
    asynchronous: false,
    optionless: true,
    tensors: { ...lrkvRows(2) },
    rank: 3,
    call: (rows) => onLrkvCache('append', 2)(rows),
  },
  ...pair(
    'LrkvCache.appendHidden',
    [onLrkvCache('appendHidden', 3), onLrkvCache('appendHiddenSync', 3)],
    { tensors: { hidden: normal([1, 3, 10], 23) }, rank: 3 },
    (of, t, options) => of(t.hidden, lrkvProjections, options),
  ),
  {
    name: 'cast',
    asynchronous: false,
    optionless: true,
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
