/** A layer of attention in LRKV's form. */
import type { Operand } from './check';
import { expected, guard, Text } from './errors';
import { type AttentionLayer, checkLayerOptions, Layer, type LayerOptions, type PreparedRows } from './layer';
import { lrkvCall } from './lrkv';
import { appendLrkvRows, type LrkvCache, newLrkvCache } from './lrkv-cache';
import { type CheckedLrkvModel, checkLrkvModel, type LrkvModel, lrkvModelOperands, sameLrkvModel } from './lrkv-model';
import { type LrkvNorms, lrkvNormsOf, namingNorms } from './lrkv-norms';
import { checkLrkvRows, type LrkvRows } from './lrkv-rows';
import { operandMap, Projection } from './projection';
import { placeRows } from './rotary';
import type { Steps } from './steps';
import type { Tensor } from './tensor';
import { type AttentionShape, checkLrkvWeights, type LrkvWeights } from './weights';

/**
 * The attention layer of a Transformer whose keys and values are in LRKV's form (O'Neill et al. 2026, arXiv 2601.11471,
 * section 3): what `fitLrkv` makes of trained weights, or a model that was trained so. In the rope mode `'exact'`, and without
 * `rope`, it is the {@link attentionLayer} of the keys and values that base and factors add up to.
 *
 * Weights of queries, bases and latents are copied side by side, so that hidden states are read once: in their element type if
 * it is the same, else in float32. The output's, `…Up` and `…Gauge` stay where they are and must not change.
 *
 * A gain of queries after the rotation is multiplied into that of the keys, which must then come after it as well.
 *
 * @param weights matrices `[in, out]`, see {@link LrkvWeights}
 * @throws AttentionError ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_UNSUPPORTED, ERR_MEMORY
 */
export function lrkvLayer(weights: LrkvWeights, options?: LayerOptions): AttentionLayer<LrkvCache> {
  return guard(lrkvLayer, () => makeLayer(weights, options));
}

/** A function of its own, so that a layer does not hold on to weights that it has copied. */
function makeLayer(weights: LrkvWeights, options: LayerOptions | undefined): Layer<LrkvCache> {
  const { given, shape, norms, model } = checkLrkvLayer('weights', weights);
  const { heads, headDim } = shape;
  const scores = checkLayerOptions(options, given.scale, shape);
  const maps = [
    { weight: given.query, bias: given.queryBias },
    { weight: given.keyBase, bias: given.keyBaseBias },
    { weight: given.keyDown, bias: given.keyDownBias },
    { weight: given.valueBase, bias: given.valueBaseBias },
    { weight: given.valueDown, bias: given.valueDownBias },
  ];
  const columns = maps.map(({ weight }) => weight.dims[1] as number);

  return new Layer<LrkvCache>({
    shape,
    scores,
    projection: new Projection(maps),
    output: operandMap({ weight: given.output, bias: given.outputBias }),
    inPlace: lrkvModelOperands(model),

    createCache: (wanted) => newLrkvCache(model, wanted),

    kind: 'an LrkvCache',

    checkShape: (name, memory) => {
      if (!sameLrkvModel(memory.model as CheckedLrkvModel, model))
        throw expected('ERR_ARGUMENT', name, "a cache of the layer's model", new Text('one of another model'));
    },

    *prepare([q, ...parts], n, starts, how): Steps<PreparedRows> {
      const query = { data: q as Float32Array, dims: [starts.length, n, heads, headDim], type: 'float32' } as const;
      yield* placeRows(query, null, norms.queryNorm, starts, how);
      const rows = parts.map((data, index): Tensor => {
        return { data, dims: [starts.length, n, columns[index + 1] as number], type: 'float32' };
      });
      return { query, rows };
    },

    attend: ({ query, rows }, all) => {
      const [batch] = query.dims as [number];
      return lrkvCall(query as Operand, checkLrkvRows(rowsOf(rows), batch), model, all, false);
    },

    append: (memory, rows) => appendLrkvRows(memory, checkLrkvRows(rowsOf(rows), 1), 'hidden'),
  });
}

function rowsOf(rows: readonly Tensor[]): LrkvRows {
  const [keyBase, keyLatent, valueBase, valueLatent] = rows as [Tensor, Tensor, Tensor, Tensor];
  return { keyBase, keyLatent, valueBase, valueLatent };
}

/** Weights of which a layer can be made. */
export interface CheckedLrkvLayer {
  /** A copy of what was given, its tensors checked. */
  readonly given: LrkvWeights;
  readonly shape: AttentionShape;
  readonly norms: LrkvNorms;
  /** What keys and values are made by. */
  readonly model: CheckedLrkvModel;
}

/** Refuses weights that no layer can be made of. */
export function checkLrkvLayer(name: string, weights: LrkvWeights): CheckedLrkvLayer {
  const checked = checkLrkvWeights(name, weights);
  const { weights: given, shape } = checked;
  const norms = lrkvNormsOf(name, checked, given.qkNorm);
  const { keyUp, valueUp, keyGauge, valueGauge, keyRanks, valueRanks, rope, ropeMode, latentFrequencies } = given;
  const parts = { keyUp, valueUp, keyGauge, valueGauge, keyRanks, valueRanks, rope, ropeMode, latentFrequencies };
  const [keyBaseDim, valueBaseDim] = [given.keyBase.dims[1], given.valueBase.dims[1]];
  const model = namingNorms(name, norms, () =>
    checkLrkvModel({ ...parts, keyNorm: norms.keyNorm } as Partial<LrkvModel>, { ...shape, keyBaseDim, valueBaseDim }),
  );
  return { given, shape, norms, model };
}
