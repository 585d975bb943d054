import {
  type AttentionFactors,
  type AttentionLayer,
  attendBatch,
  attendBatchSync,
  attention,
  attentionFactors,
  attentionFactorsSync,
  attentionLayer,
  attentionSync,
  attentionWithLse,
  attentionWithLseSync,
  type CallOptions,
  type DataType,
  elu,
  headSimilarity,
  headSimilaritySync,
  identity,
  KvCache,
  LinearState,
  LinformerState,
  LrkvCache,
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
  lrkvLayer,
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
  type Spectrum,
  spectrum,
  spectrumSync,
  type Tensor,
  type TensorOf,
} from '../lib';
import { filled, type Inputs, normal, normalInputs, type Shape, types } from './data';
import { layerBiases, layerWeights, lrkvWeights } from './layer-data';
import { projection } from './linformer-run';
import { once } from './rows';

/** A call of any kind, whose tensors are those of all its outputs. */
export interface MixedCall {
  readonly name: string;
  readonly sync: (options?: CallOptions) => readonly Tensor[];
  readonly async: (options?: CallOptions) => Promise<readonly Tensor[]>;
}

/** Of few rows and of many, on one thread and on all, in tiles and in splits. */
const shapes: readonly Shape[] = [
  { batch: 2, heads: 4, kvHeads: 2, queries: 130, keys: 190, headDim: 32, valueDim: 24 },
  { heads: 2, queries: 203, keys: 410, headDim: 64 },
  { heads: 4, kvHeads: 1, queries: 1, keys: 2500, headDim: 32 },
  { heads: 3, queries: 4, keys: 1100, headDim: 40 },
  { batch: 3, heads: 1, queries: 7, keys: 5, headDim: 8 },
];

type Result = Tensor | readonly Tensor[] | { readonly output: Tensor; readonly lse: Tensor };

function listOf(result: Result): readonly Tensor[] {
  if ('lse' in result) return [result.output, result.lse];
  return 'dims' in result ? [result] : result;
}

function pair(
  name: string,
  sync: (options: CallOptions) => Result,
  async: (options: CallOptions) => Promise<Result>,
): MixedCall {
  return {
    name,
    sync: (options = {}) => listOf(sync(options)),
    async: async (options = {}) => listOf(await async(options)),
  };
}

function attentionCall(shape: Shape, { q, k, v }: Inputs, causal: boolean): MixedCall {
  return pair(
    `attention of ${shape.queries} on ${shape.keys} in ${q.type}${causal ? ', causal' : ''}`,
    (options) => attentionSync(q, k, v, { causal, ...options }),
    (options) => attention(q, k, v, { causal, ...options }),
  );
}

function lseCall(shape: Shape, { q, k, v }: Inputs): MixedCall {
  const meaning = { causal: true, softcap: 5, sinks: new Float32Array(shape.heads ?? 1).fill(0.5) };
  return pair(
    `attention with lse of ${shape.queries} on ${shape.keys} in ${q.type}`,
    (options) => attentionWithLseSync(q, k, v, { ...meaning, ...options }),
    (options) => attentionWithLse(q, k, v, { ...meaning, ...options }),
  );
}

function matmulCall(m: number, k: number, n: number, type: DataType): MixedCall {
  const [a, b] = [normal([2, m, k], m, type), normal([n, k], n)];
  return pair(
    `matmul ${m}·${k}·${n} in ${type}`,
    (options) => matmulSync(a, b, { transposeB: true, ...options }),
    (options) => matmul(a, b, { transposeB: true, ...options }),
  );
}

function factorsCall(shape: Shape, { q, k }: Inputs): MixedCall {
  const meaning = { rank: Math.min(shape.queries, shape.keys, 12), powerIterations: 1, causal: true };
  const listed = ({ u, v, singularValues }: AttentionFactors): readonly Tensor[] => [u, v, singularValues];
  return pair(
    `factors of ${shape.queries} on ${shape.keys} in ${q.type}`,
    ({ out: _, ...options }) => listed(attentionFactorsSync(q, k, { ...meaning, ...options })),
    async ({ out: _, ...options }) => listed(await attentionFactors(q, k, { ...meaning, ...options })),
  );
}

function lowRankCall(type: DataType): MixedCall {
  const [u, v, x] = [normal([2, 4, 150, 12], 26), normal([2, 4, 170, 12], 27), normal([2, 2, 170, 24], 28, type)];
  return pair(
    `low rank in ${type}`,
    (options) => lowRankAttentionSync({ u, v }, x, options),
    (options) => lowRankAttention({ u, v }, x, options),
  );
}

function mergeCall(type: DataType): MixedCall {
  const parts = [1, 2, 3].map((seed) => ({
    output: normal([1, 4, 300, 64], seed, type),
    lse: normal([1, 4, 300], 10 + seed) as TensorOf<'float32'>,
  }));
  return pair(
    `merge in ${type}`,
    (options) => mergeAttentionSync(parts, options),
    (options) => mergeAttention(parts, options),
  );
}

function rotaryCall(type: DataType): MixedCall {
  const x = normal([3, 4, 150, 64], 31, type);
  const meaning = { rope: { frequencies: ropeFrequencies(64) }, norm: {}, positions: [5, 0, 1e6] };
  return pair(
    `rotary in ${type}`,
    (options) => rotarySync(x, { ...meaning, ...options }),
    (options) => rotary(x, { ...meaning, ...options }),
  );
}

function nystromCall(type: DataType): MixedCall {
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 600, keys: 600, headDim: 32, valueDim: 24 };
  const { q, k, v } = normalInputs(shape, 23, type);
  const meaning = { landmarks: 20, convKernel: normal([4, 9], 24) as TensorOf<'float32'> };
  return pair(
    `nystrom in ${type}`,
    (options) => nystromAttentionSync(q, k, v, { ...meaning, ...options }),
    (options) => nystromAttention(q, k, v, { ...meaning, ...options }),
  );
}

function linformerCalls(type: DataType): MixedCall[] {
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 60, keys: 700, headDim: 32, valueDim: 24 };
  const { q, k, v } = normalInputs(shape, 20, type);
  const keyProjection = projection([50, 700], 21);
  const state = new LinformerState({ keyProjection, heads: 2, headDim: 32, valueDim: 24, batch: 2 });
  state.append(k, v);
  return [
    pair(
      `linformer in ${type}`,
      (options) => linformerAttentionSync(q, k, v, { keyProjection, ...options }),
      (options) => linformerAttention(q, k, v, { keyProjection, ...options }),
    ),
    pair(
      `linformer state in ${type}`,
      (options) => state.attendSync(q, options),
      (options) => state.attend(q, options),
    ),
  ];
}

function linearCalls(type: DataType): MixedCall[] {
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 700, keys: 700, headDim: 32, valueDim: 24 };
  const { q, k, v } = normalInputs(shape, 25, type);
  const decay = filled([2, 2, 700], 'float32', (i) => -(i % 7) / 50);
  const state = new LinearState({
    ...{ heads: 2, headDim: 32, valueDim: 24, batch: 2 },
    ...{ featureMap: identity(), updateRule: 'gated' as const },
  });
  state.append(k, v, { decay });
  return [
    pair(
      `linear in ${type}`,
      (options) => linearAttentionSync(q, k, v, { featureMap: elu(), ...options }),
      (options) => linearAttention(q, k, v, { featureMap: elu(), ...options }),
    ),
    // Each goes on from the same state.
    pair(
      `linear, a state that goes on, in ${type}`,
      (options) => linearAttentionSync(q, k, v, { decay, state: state.fork(), ...options }),
      (options) => linearAttention(q, k, v, { decay, state: state.fork(), ...options }),
    ),
  ];
}

/** Float64 numbers as a tensor of their bits. */
function bitsTensor(values: ArrayLike<number>): Tensor {
  const data = new Float32Array(Float64Array.from(values).buffer);
  return { data, dims: [data.length], type: 'float32' };
}

function analysisCalls(): MixedCall[] {
  const { q, k } = normalInputs({ heads: 2, queries: 90, keys: 110, headDim: 16 }, 26);
  const values = (found: Spectrum[][]) => found.flat().map((each) => bitsTensor([...each.values, each.energy]));
  const [wq, wk] = [normal([4, 60, 12], 27), normal([2, 60, 12], 28)];
  const [x, y] = [normal([80, 30], 29), normal([80, 20], 30)];
  const rows = (found: number[][]) => found.map(bitsTensor);
  return [
    pair(
      'spectrum',
      ({ out: _, ...options }) => values(spectrumSync(q, k, options)),
      async ({ out: _, ...options }) => values(await spectrum(q, k, options)),
    ),
    pair(
      'similarity of heads',
      ({ out: _, ...options }) => rows(headSimilaritySync(wq, wk, options)),
      async ({ out: _, ...options }) => rows(await headSimilarity(wq, wk, options)),
    ),
    pair(
      'alignment',
      ({ out: _, ...options }) => bitsTensor([linearCkaSync(x, y, options)]),
      async ({ out: _, ...options }) => bitsTensor([await linearCka(x, y, options)]),
    ),
    pair(
      'angles',
      ({ out: _, ...options }) => bitsTensor(principalAnglesSync(x, y, options)),
      async ({ out: _, ...options }) => bitsTensor(await principalAngles(x, y, options)),
    ),
    pair(
      'principal components',
      ({ out: _, ...options }) => pcaSync(x, options).components.map(bitsTensor),
      async ({ out: _, ...options }) => (await pca(x, options)).components.map(bitsTensor),
    ),
  ];
}

/** A cache of random rows, with 2 heads of 32. */
export function filledCache(length: number, type: DataType = 'float32', seed = length): KvCache {
  const cache = new KvCache({ heads: 2, headDim: 32, type });
  cache.append(normal([1, 2, length, 32], seed), normal([1, 2, length, 32], seed + 1));
  return cache;
}

function cacheCalls(type: DataType): MixedCall[] {
  const caches = [1, 130, 1025, 2100].map((length) => filledCache(length, type));
  const query = (rows: number) => normal([1, 4, rows, 32], rows);
  const attends = [1, 5, 40].map((rows) => {
    const [cache, q] = [caches[rows % 4], query(rows)];
    return pair(
      `attend of ${rows} on ${cache.length} in ${type}`,
      (options) => cache.attendSync(q, options),
      (options) => cache.attend(q, options),
    );
  });
  const one = query(1);
  const withLse = pair(
    `attend with lse in ${type}`,
    (options) => caches[3].attendWithLseSync(one, options),
    (options) => caches[3].attendWithLse(one, options),
  );
  // The same cache may occur more than once.
  const items = [...caches, caches[2], caches[0]].map((cache, i) => ({ cache, query: query(1 + (i % 2)) }));
  const batch = pair(
    `batch of caches in ${type}`,
    (options) => attendBatchSync(items, options),
    (options) => attendBatch(items, options),
  );
  return [...attends, withLse, batch];
}

const layerShape = { modelDim: 48, heads: 4, kvHeads: 2, headDim: 32 };

/** A prompt, and a step of sequences of different lengths, each on a fork so that every call finds the same past. */
function layerCalls<Cache extends KvCache | LrkvCache>(
  name: string,
  layer: AttentionLayer<Cache>,
  caches: readonly Cache[],
  type: DataType,
): MixedCall[] {
  const hidden = normal([2, 70, 48], 34, type);
  const next = normal([caches.length, 1, 48], 35, type);
  const forked = () => caches.map((cache) => cache.fork() as Cache);
  return [
    pair(
      `forward of ${name} in ${type}`,
      (options) => layer.forwardSync(hidden, options),
      (options) => layer.forward(hidden, options),
    ),
    pair(
      `step of ${name} in ${type}`,
      (options) => layer.stepSync(next, forked(), options),
      (options) => layer.step(next, forked(), options),
    ),
  ];
}

function attentionLayerCalls(type: DataType): MixedCall[] {
  const weights = layerWeights(layerShape, 33, type);
  const layer = attentionLayer({ ...weights, ...layerBiases(weights), rope: { frequencies: ropeFrequencies(32) } });
  const caches = [3, 130, 1030].map((length) => filledCache(length, type));
  return layerCalls('a layer', layer, caches, type);
}

/** The layer of LRKV, and what its cache projects by itself. */
function lrkvLayerCalls(type: DataType): MixedCall[] {
  const weights = lrkvWeights({ ...layerShape, valueDim: 24, keyRank: 6 }, { mode: 'latent', norm: 'plain' }, 36);
  const { keyBase, keyDown, valueBase, valueDown } = weights;
  const projections = { keyBase, keyDown, valueBase, valueDown };
  const layer = lrkvLayer(weights);
  const caches = [3, 1030].map((length) => {
    const cache = layer.createCache({ type });
    cache.appendHiddenSync(normal([1, length, 48], 37), projections);
    return cache;
  });
  const hidden = normal([1, 40, 48], 38, type);
  const query = normal([1, 4, 3, 32], 39, type);
  const appended = pair(
    `lrkv, appendHidden and attend in ${type}`,
    (options) => {
      const { out: _, ...how } = options;
      const fork = caches[1].fork();
      fork.appendHiddenSync(hidden, projections, how);
      return fork.attendSync(query, options);
    },
    async (options) => {
      const { out: _, ...how } = options;
      const fork = caches[1].fork();
      await fork.appendHidden(hidden, projections, how);
      return await fork.attend(query, options);
    },
  );
  return [...layerCalls('a layer of LRKV', layer, caches, type), appended];
}

/** Of two-part keys, of whole ones that are rotated, and from a cache. */
function lrkvCalls(type: DataType): MixedCall[] {
  const model = { keyUp: normal([24, 32], 41), valueUp: normal([20, 24], 42), keyRanks: [7, 17], valueRanks: [12, 8] };
  const rows = (batch: number, count: number) => ({
    keyBase: normal([batch, count, 32], 43, type),
    keyLatent: normal([batch, count, 24], 44, type),
    valueBase: normal([batch, count, 24], 45, type),
    valueLatent: normal([batch, count, 20], 46, type),
  });
  const rope = { frequencies: ropeFrequencies(32) };
  const q = normal([2, 4, 70, 32], 47, type);
  const stateless = [{}, { rope, keyNorm: {} }].map((features, i) => {
    const lrkv = { ...rows(2, 300), ...model, ...features };
    return pair(
      `lrkv in ${type}${i === 0 ? '' : ', rotated'}`,
      (options) => lrkvAttentionSync(q, lrkv, { kvHeads: 2, causal: true, ...options }),
      (options) => lrkvAttention(q, lrkv, { kvHeads: 2, causal: true, ...options }),
    );
  });
  const cache = new LrkvCache({ heads: 2, headDim: 32, valueDim: 24, type, ...model, keyNorm: {} });
  cache.append(rows(1, 1500));
  const one = normal([1, 4, 1, 32], 48);
  const attend = pair(
    `lrkv, attend in ${type}`,
    (options) => cache.attendSync(one, options),
    (options) => cache.attend(one, options),
  );
  const fork = cache.fork();
  fork.truncate(300);
  const items = [cache, fork].map((each) => ({ cache: each, query: one }));
  const batch = pair(
    `lrkv, a batch of caches in ${type}`,
    (options) => attendBatchSync(items, options),
    (options) => attendBatch(items, options),
  );
  return [...stateless, attend, batch];
}

/** Every kind of call that can run on worker threads, in several shapes and types. Caches live as long as the process. */
export const mixedCalls: () => readonly MixedCall[] = once(() => [
  ...shapes.flatMap((shape, i) => {
    const inputs = normalInputs(shape, 10 * i, types[i % types.length]);
    return [
      attentionCall(shape, inputs, true),
      attentionCall(shape, inputs, false),
      lseCall(shape, inputs),
      factorsCall(shape, inputs),
    ];
  }),
  ...types.flatMap((type) => [
    matmulCall(110, 130, 90, type),
    matmulCall(3, 200, 5, type),
    mergeCall(type),
    nystromCall(type),
    rotaryCall(type),
    ...cacheCalls(type),
    ...linformerCalls(type),
    ...lrkvCalls(type),
    ...linearCalls(type),
    ...attentionLayerCalls(type),
    ...lrkvLayerCalls(type),
  ]),
  lowRankCall('bfloat16'),
  ...analysisCalls(),
]);
