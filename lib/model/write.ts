/** Converted layers into `.safetensors` files, by the names of names.ts. */
import { stat } from 'node:fs/promises';

import { checkOptions } from '../check';
import { expected } from '../errors';
import { Checkpoint } from '../files/checkpoint';
import { contentOf, type SafetensorsContent, writeSafetensors } from '../files/safetensors-writer';
import type { RmsNormOptions } from '../rope';
import { type Tensor, tensor } from '../tensor';
import type { LrkvWeights } from '../weights';
import { type ConvertedLayer, type LayerNumbers, metadataOf, numbersOf } from './metadata';
import { findLayers, keyValueParts, lrkvParts, type NamedLayer, sharedParts } from './names';

export interface WriteLrkvOptions {
  /**
   * The model that was converted, as `readAttentionWeights` takes it. All of it but the keys' and values' matrices and
   * biases is copied byte by byte, so queries, outputs and gains of QK-norm are its own; the layers take the places of its
   * layers, in their order. Of several files too the result is one. Default none: the file holds the layers alone, as
   * `layers.N.attention.…`.
   */
  readonly source?: string;
  /** Which layers of the source, if it has several stacks: what stands before `layers.` in their names. */
  readonly stack?: string;
}

/**
 * Writes converted layers so that `readLrkvWeights` gives them back bit by bit. The file is written whole or not at all,
 * one that is there is replaced (it may be the source itself, but no part of a source of several files), and no more than
 * one tensor of the source is in memory.
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
    await Checkpoint.with(source, async (file) => {
      await writeOver(path, file, findLayers(file.path, file.names, stack), layers);
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

/** Refuses to replace one of a model's several files: the others would be left without it. */
export async function checkTarget(path: string, { path: index, files }: Checkpoint): Promise<void> {
  if (files.length === 1 && files[0] === index) return;
  const target = await stat(path).catch(() => undefined);
  if (target === undefined) return;
  for (const file of [index, ...files]) {
    const { dev, ino } = await stat(file);
    if (dev === target.dev && ino === target.ino) {
      throw expected('ERR_ARGUMENT', 'path', 'a file that is no part of the source', path);
    }
  }
}

/** Writes a model with converted layers in the places of its own. @param signal as of `writeWhole` */
export async function writeOver(
  path: string,
  source: Checkpoint,
  places: readonly NamedLayer[],
  layers: readonly ConvertedLayer[],
  signal?: AbortSignal,
): Promise<void> {
  if (places.length !== layers.length) {
    throw expected('ERR_SHAPE', 'layers', `${places.length} layers, as the source has`, layers.length);
  }
  await checkTarget(path, source);
  const named = places.map(({ prefix }, index) => [prefix, layers[index] as ConvertedLayer] as const);
  const replaced = new Set(places.flatMap(({ parts }) => keyValueParts.map((part) => parts.get(part)?.name)));
  // A second conversion leaves nothing of the first.
  for (const { parts } of places) for (const part of lrkvParts) replaced.add(parts.get(part)?.name);
  // In the order of the data, so that the source is read from its beginning to its end.
  const kept = [...source.names].filter((name) => !replaced.has(name)).map((name) => source.content(name));
  const contents = named.flatMap(([prefix, layer]) => partsOf(prefix, layer, lrkvParts));
  const metadata = { ...Object.fromEntries(source.metadata), ...metadataOf(numbersByPrefix(named)) };
  await writeSafetensors(path, [...kept, ...contents], metadata, signal);
}

function numbersByPrefix(named: readonly (readonly [string, ConvertedLayer])[]): Map<string, LayerNumbers> {
  return new Map(named.map(([prefix, layer]) => [prefix, numbersOf(layer)]));
}

function partsOf<Name extends string>(
  prefix: string,
  layer: { readonly [part in Name]?: Tensor },
  parts: readonly Name[],
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
