/**
 * What tensors cannot say of attention layers, as text in the metadata of a `.safetensors` file: under the name
 * `lowrank_attention` a JSON object { version: 1, layers: { <prefix of the layer's tensors>: {…} } }. Numbers are written so
 * that they are read back to the last bit.
 */
import { checkInteger } from '../check';
import { expected } from '../errors';
import { isObject } from '../files/json';
import type { ConvertedParts, UnchangedNumbers } from '../fit/source';
import type { RmsNormOptions, Rope } from '../rope';
import type { LrkvWeights } from '../weights';

const metadataKey = 'lowrank_attention';
const version = 1;

type NormNumbers = Omit<RmsNormOptions, 'gain'>;

/** One layer's entry. Gains of QK-norm are tensors. */
export interface LayerNumbers {
  readonly heads: number;
  readonly kvHeads: number;
  readonly rope?: Rope;
  readonly queryNorm?: NormNumbers;
  readonly keyNorm?: NormNumbers;
  readonly scale?: number;
  /** Of converted layers. */
  readonly lrkv?: Pick<LrkvWeights, 'keyRanks' | 'valueRanks' | 'ropeMode' | 'latentFrequencies'>;
}

/** A converted layer, with or without the matrices that conversion leaves as they are. */
export type ConvertedLayer = UnchangedNumbers & ConvertedParts;

/** The numbers of a layer's weights. */
export function numbersOf(layer: ConvertedLayer): LayerNumbers {
  const { heads, kvHeads = heads, rope, qkNorm, scale, keyRanks, valueRanks, ropeMode, latentFrequencies } = layer;
  const norm = ({ epsilon, gainOrder }: RmsNormOptions): NormNumbers => ({
    ...(epsilon === undefined ? {} : { epsilon }),
    ...(gainOrder === undefined ? {} : { gainOrder }),
  });
  return {
    heads,
    kvHeads,
    ...(rope === undefined ? {} : { rope: { ...rope, frequencies: Array.from(rope.frequencies) } }),
    ...(qkNorm?.query === undefined ? {} : { queryNorm: norm(qkNorm.query) }),
    ...(qkNorm?.key === undefined ? {} : { keyNorm: norm(qkNorm.key) }),
    ...(scale === undefined ? {} : { scale }),
    lrkv: {
      keyRanks: [...keyRanks],
      valueRanks: [...valueRanks],
      ...(ropeMode === undefined ? {} : { ropeMode }),
      ...(latentFrequencies === undefined ? {} : { latentFrequencies: Array.from(latentFrequencies) }),
    },
  };
}

/** The metadata of a file, by prefix of the layers' tensors. */
export function metadataOf(layers: ReadonlyMap<string, LayerNumbers>): Record<string, string> {
  return { [metadataKey]: JSON.stringify({ version, layers: Object.fromEntries(layers) }) };
}

/**
 * The entries of a file's layers; none where it was not written by this package.
 *
 * @throws AttentionError ERR_ARGUMENT for metadata that cannot be read. What the numbers mean is checked where they are used
 */
export function readMetadata(metadata: ReadonlyMap<string, string>): ReadonlyMap<string, LayerNumbers> {
  const text = metadata.get(metadataKey);
  if (text === undefined) return new Map();
  const wrong = (what: string, received: unknown, options?: ErrorOptions) =>
    expected('ERR_ARGUMENT', metadataKey, what, received, options);
  let all: unknown;
  try {
    all = JSON.parse(text);
  } catch (cause) {
    throw wrong('metadata in JSON', text, { cause });
  }
  if (!isObject(all) || all.version !== version) throw wrong(`metadata of version ${version}`, text);
  if (!isObject(all.layers)) throw wrong('metadata of layers by prefix', all.layers);
  return new Map(
    Object.entries(all.layers).map(([prefix, layer]) => {
      if (!isObject(layer)) throw wrong(`numbers of ${prefix}`, layer);
      checkInteger('heads', layer.heads, 1);
      checkInteger('kvHeads', layer.kvHeads, 1);
      for (const name of ['rope', 'queryNorm', 'keyNorm', 'lrkv']) {
        if (layer[name] !== undefined && !isObject(layer[name])) throw wrong(`an object ${name}`, layer[name]);
      }
      return [prefix, layer as unknown as LayerNumbers];
    }),
  );
}
