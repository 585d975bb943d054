/** A layer of exact attention. */
import { appendKeyValues, KvCache } from './cache';
import { expected, guard, Text } from './errors';
import { attentionCall } from './full';
import { type AttentionLayer, checkLayerOptions, Layer, type LayerOptions, type PreparedRows } from './layer';
import { operandMap, Projection } from './projection';
import { checkKeyValueRows } from './qkv';
import { placeRows } from './rotary';
import type { Steps } from './steps';
import type { Tensor } from './tensor';
import { type AttentionWeights, checkAttentionWeights } from './weights';

/**
 * The attention layer of a Transformer with these weights: multi-head or grouped-query attention (Vaswani et al. 2017, arXiv
 * 1706.03762, section 3.2.2), with rotary embedding and QK-norm where the weights have them.
 *
 * Weights of queries, keys and values are copied side by side, so that hidden states are read once: in their element type if
 * it is the same, else in float32. Those of the output stay where they are and must not change.
 *
 * @param weights matrices `[in, out]`, see {@link AttentionWeights}
 * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_MEMORY
 */
export function attentionLayer(weights: AttentionWeights, options?: LayerOptions): AttentionLayer<KvCache> {
  return guard(attentionLayer, () => makeLayer(weights, options));
}

/** A function of its own, so that a layer does not hold on to weights that it has copied. */
function makeLayer(weights: AttentionWeights, options: LayerOptions | undefined): Layer<KvCache> {
  const { weights: given, shape, rope, queryNorm, keyNorm } = checkAttentionWeights('weights', weights);
  const { heads, kvHeads, headDim, valueDim } = shape;
  const scores = checkLayerOptions(options, given.scale, shape);
  const cacheShape = { heads: kvHeads, headDim, valueDim };

  return new Layer<KvCache>({
    shape,
    scores,
    projection: new Projection([
      { weight: given.query, bias: given.queryBias },
      { weight: given.key, bias: given.keyBias },
      { weight: given.value, bias: given.valueBias },
    ]),
    output: operandMap({ weight: given.output, bias: given.outputBias }),
    inPlace: [],

    createCache: (wanted) => new KvCache({ ...cacheShape, ...wanted }),

    kind: 'a KvCache',

    checkShape: (name, memory) => {
      if (memory.heads !== kvHeads || memory.headDim !== headDim || memory.valueDim !== valueDim) {
        const what = `a cache of ${kvHeads} heads with keys of ${headDim} and values of ${valueDim}`;
        const received = new Text(`one of ${memory.heads} with ${memory.headDim} and ${memory.valueDim}`);
        throw expected('ERR_SHAPE', name, what, received);
      }
    },

    *prepare([q, k, v], n, starts, how): Steps<PreparedRows> {
      const rowsOf = (data: Float32Array | undefined, count: number, dim: number): Tensor => ({
        data: data as Float32Array,
        dims: [starts.length, n, count, dim],
        type: 'float32',
      });
      const query = rowsOf(q, heads, headDim);
      const key = rowsOf(k, kvHeads, headDim);
      yield* placeRows(query, rope, queryNorm, starts, how);
      yield* placeRows(key, rope, keyNorm, starts, how);
      return { query, rows: [key, rowsOf(v, kvHeads, valueDim)] };
    },

    attend: ({ query, rows: [key, value] }, all) => attentionCall(query, key as Tensor, value as Tensor, all, false),

    append: (memory, [key, value]) =>
      appendKeyValues(memory, checkKeyValueRows(key as Tensor, value as Tensor, memory, 1, true), 'hidden'),
  });
}
