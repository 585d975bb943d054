/** Converted layers into `.safetensors` files, by the names of names.ts. */
import { checkOptions } from '../check';
import { expected } from '../errors';
import { Safetensors } from '../files/safetensors';
import { contentOf, type SafetensorsContent, writeSafetensors } from '../files/safetensors-writer';
import type { RmsNormOptions } from '../rope';
import { type Tensor, tensor } from '../tensor';
import type { LrkvWeights } from '../weights';
import { type LayerNumbers, metadataOf, numbersOf } from './metadata';
import { findLayers, keyValueParts, lrkvParts, type NamedLayer, sharedParts } from './names';

export interface WriteLrkvOptions {
  /**
   * The `.safetensors` file that was converted. All of it but the keys' and values' matrices and biases is copied byte by
   * byte, so queries, outputs and gains of QK-norm are its own; the layers take the places of its layers, in their order.
   * Default none: the file holds the layers alone, as `layers.N.attention.…`.
   */
  readonly source?: string;
  /** Which layers of the source, if it has several stacks: what stands before `layers.` in their names. */
  readonly stack?: string;
}

/**
 * Writes converted layers so that `readLrkvWeights` gives them back bit by bit. The file is written whole or not at all,
 * one that is there is replaced (it may be the source itself), and no more than one tensor of the source is in memory.
 *
 * @param path where to: names and metadata are those of docs/converting.md
 * @throws AttentionError ERR_ARGUMENT, ERR_SHAPE, ERR_TYPE; errors of the file system
 */
export async function writeLrkvWeights(
  path: string,
  layers: readonly LrkvWeights[],
  options?: WriteLrkvOptions,
): Promise<void> {
  const { source, stack } = checkOptions('options', options, new Set(['source', 'stack']));
  if (source !== undefined) {
    await Safetensors.with(source, async (file) => {
      const named = findLayers(source, file.entries.keys(), stack);
      await writeOver(path, file, named, layers);
    });
    return;
  }
  const named = layers.map((layer, index) => [`layers.${index}.attention.`, layer] as const);
  const contents = named.flatMap(([prefix, layer]) => [
    ...partsOf(prefix, layer, sharedParts),
    ...normsOf(prefix, layer.qkNorm),
    ...partsOf(prefix, layer, lrkvParts),
  ]);
  await writeSafetensors(path, contents, metadataOf(numbersByPrefix(named)));
}

async function writeOver(
  path: string,
  source: Safetensors,
  places: readonly NamedLayer[],
  layers: readonly LrkvWeights[],
): Promise<void> {
  if (places.length !== layers.length) {
    throw expected('ERR_SHAPE', 'layers', `${places.length} layers, as the source has`, layers.length);
  }
  const named = places.map(({ prefix }, index) => [prefix, layers[index] as LrkvWeights] as const);
  const replaced = new Set(places.flatMap(({ parts }) => keyValueParts.map((part) => parts.get(part)?.name)));
  // A second conversion leaves nothing of the first.
  for (const { parts } of places) for (const part of lrkvParts) replaced.add(parts.get(part)?.name);
  const kept = [...source.entries]
    .filter(([name]) => !replaced.has(name))
    // In the order of the data, so that the source is read from its beginning to its end.
    .sort(([, a], [, b]) => a.begin - b.begin)
    .map(([name]) => source.content(name));
  const contents = named.flatMap(([prefix, layer]) => partsOf(prefix, layer, lrkvParts));
  const metadata = { ...Object.fromEntries(source.metadata), ...metadataOf(numbersByPrefix(named)) };
  await writeSafetensors(path, [...kept, ...contents], metadata);
}

function numbersByPrefix(named: readonly (readonly [string, LrkvWeights])[]): Map<string, LayerNumbers> {
  return new Map(named.map(([prefix, layer]) => [prefix, numbersOf(layer)]));
}

function partsOf(
  prefix: string,
  layer: LrkvWeights,
  parts: readonly (typeof sharedParts | typeof lrkvParts)[number][],
): SafetensorsContent[] {
  return parts.flatMap((part) => {
    const given: Tensor | undefined = layer[part];
    return given === undefined ? [] : [contentOf(`${prefix}${part}`, given)];
  });
}

function normsOf(prefix: string, qkNorm: LrkvWeights['qkNorm']): SafetensorsContent[] {
  return (['query', 'key'] as const).flatMap((side) => {
    const gain = (qkNorm?.[side] as RmsNormOptions | undefined)?.gain;
    return gain === undefined
      ? []
      : [contentOf(`${prefix}${side}Norm`, tensor(Float32Array.from(gain), [gain.length]))];
  });
}
