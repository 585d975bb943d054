/** Converted layers into `.safetensors` files, by the names of names.ts. */
import { stat } from 'node:fs/promises';

import { checkOptions, checkType } from '../check';
import { castFinite } from '../convert';
import { expected, Text } from '../errors';
import { Checkpoint } from '../files/checkpoint';
import { contentOf, type SafetensorsContent, writeSafetensors } from '../files/safetensors-writer';
import { type CheckedLrkvLayer, checkLrkvLayer } from '../lrkv-layer';
import { isArray, readList } from '../read';
import type { RmsNormOptions } from '../rope';
import { type DataType, type Tensor, tensor } from '../tensor';
import type { LrkvWeights } from '../weights';
import { type ConvertedLayer, type LayerNumbers, metadataOf, numbersOf } from './metadata';
import { findLayers, keyValueParts, lrkvParts, type NamedLayer, type Part, partOf, sharedParts } from './names';

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
  /**
   * Element type of the parts that keys and values are made by, each number rounded to nearest with ties to even; one that is
   * too large for the type is refused. What that costs no report of a fit says: the option `type` of `fitLrkv` rounds
   * before it measures. Default that of each tensor.
   */
  readonly type?: DataType;
}

/**
 * Writes converted layers so that `readLrkvWeights` gives them back, without `type` bit by bit. The file is written whole or not at all,
 * one that is there is replaced (it may be the source itself, but no part of a source of several files), and no more than
 * one tensor of the source is in memory.
 *
 * @param path where to: names and metadata are those of docs/converting.md
 * @throws AttentionError ERR_ARGUMENT, ERR_SHAPE, ERR_TYPE, ERR_UNSUPPORTED for layers that `lrkvLayer` refuses, and such as
 *   do not fit what is kept of the source; errors of the file system
 */
export async function writeLrkvWeights(
  path: string,
  layers: readonly LrkvWeights[],
  options?: WriteLrkvOptions,
): Promise<void> {
  const { source, stack, type } = checkOptions('options', options, new Set(['source', 'stack', 'type']));
  if (type !== undefined) checkType('type', type);
  const checked = checkLayers(layers);
  const rounded = checked.map(({ given }) => (type === undefined ? given : roundedTo(type, given)));
  if (source !== undefined) {
    await Checkpoint.with(source, async (file) => {
      const places = findLayers(file.path, file.names, stack);
      checkCount(places, rounded);
      for (const [index, place] of places.entries())
        checkPlace(`layers[${index}]`, checked[index] as CheckedLayer, place, file);
      await writeOver(path, file, places, rounded);
    });
    return;
  }
  const named = rounded.map((layer, index) => [`layers.${index}.attention.`, layer] as const);
  const contents = named.flatMap(([prefix, layer]) => [
    ...partsOf(prefix, layer, sharedParts),
    ...normsOf(prefix, layer.qkNorm),
    ...partsOf(prefix, layer, lrkvParts),
  ]);
  await writeSafetensors(path, contents, metadataOf(numbersByPrefix(named)));
}

/** Without the model, which may hold copies in float32. */
type CheckedLayer = Pick<CheckedLrkvLayer, 'given' | 'shape'>;

/** Refuses what `readLrkvWeights` would give back as weights of no layer. */
function checkLayers(layers: unknown): CheckedLayer[] {
  const check = (layer: unknown, index: number): CheckedLayer => {
    const { given, shape } = checkLrkvLayer(`layers[${index}]`, layer as LrkvWeights);
    return { given, shape };
  };
  const checked = isArray(layers) ? readList('layers', layers, (count) => count > 0, check) : undefined;
  if (checked === undefined) throw expected('ERR_ARGUMENT', 'layers', 'an array of at least one layer', layers);
  return checked;
}

function roundedTo(type: DataType, layer: LrkvWeights): LrkvWeights {
  const parts = lrkvParts.flatMap((part) => {
    const given = layer[part];
    return given === undefined ? [] : [[part, castFinite('type', given, type)] as const];
  });
  return { ...layer, ...Object.fromEntries(parts) };
}

function checkCount(places: readonly NamedLayer[], layers: readonly unknown[]): void {
  if (places.length === layers.length) return;
  throw expected('ERR_SHAPE', 'layers', `${places.length} layers, as the source has`, layers.length);
}

/** Refuses a layer that another model's place is to hold: what the source keeps there would not fit it. */
function checkPlace(name: string, { given, shape }: CheckedLayer, place: NamedLayer, source: Checkpoint): void {
  const { modelDim, heads, kvHeads, headDim, valueDim, outDim } = shape;
  for (const part of ['query', 'output'] as const) partOf(place, part);
  const wanted: Partial<Record<Part, readonly number[]>> = {
    query: [modelDim, heads * headDim],
    key: [modelDim, kvHeads * headDim],
    value: [modelDim, kvHeads * valueDim],
    output: [heads * valueDim, outDim],
    queryNorm: [headDim],
    keyNorm: [headDim],
  };
  for (const [part, own] of Object.entries(wanted)) {
    const found = place.parts.get(part as Part);
    if (found === undefined) continue;
    const stored = source.entry(found.name).dims;
    const dims = found.transposed ? stored.toReversed() : stored;
    if (dims.length === own.length && dims.every((extent, axis) => extent === own[axis])) continue;
    const what = `a layer whose ${part} is [${dims.join(', ')}], as ${found.name} is`;
    throw expected('ERR_SHAPE', name, what, new Text(`one of [${own.join(', ')}]`));
  }
  for (const side of ['query', 'key'] as const) {
    const gain = place.parts.get(`${side}Norm`)?.name;
    if ((gain === undefined) === (given.qkNorm?.[side]?.gain === undefined)) continue;
    const what = gain === undefined ? 'no gain, as the source has none' : `a gain, as the source has ${gain}`;
    throw expected('ERR_ARGUMENT', `${name}.qkNorm.${side}`, what, given.qkNorm?.[side]);
  }
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
  checkCount(places, layers);
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
