/** Attention layers out of `.safetensors` files, by the names of names.ts. */
import { checkChoice, checkFinite, checkInteger, checkOptions } from '../check';
import { cast } from '../convert';
import { expected, Text } from '../errors';
import { Checkpoint } from '../files/checkpoint';
import { type Pairing, type RmsNormOptions, type Rope, ropeFrequencies } from '../rope';
import { allocate, type Tensor } from '../tensor';
import { type AttentionWeights, checkAttentionWeights, type LrkvWeights } from '../weights';
import { type ModelConfig, readConfig } from './config';
import { type LayerNumbers, readMetadata } from './metadata';
import { findLayers, keyValueParts, lrkvParts, type NamedLayer, type Part, partOf, sharedParts } from './names';

/** What a file does not say of its model. Default of each: the metadata this package writes, then `config.json` beside it. */
export interface ModelOptions {
  /** Query heads, a whole number ≥ 1. */
  readonly heads?: number;
  /** Key/value heads, a divisor of `heads`. Default also: as many as the keys have columns for. */
  readonly kvHeads?: number;
  /** Rotary embedding of base^(−2i/headDim), `pairing` as in `Rope`; false: none. */
  readonly rope?: { readonly base: number; readonly pairing?: Pairing } | false;
  /** Of QK-norm, in layers that have its gains; ≥ 0. */
  readonly normEpsilon?: number;
  /** What stands before `layers.` in the names of the layers meant, if a file has several stacks. */
  readonly stack?: string;
}

/** Parts without which a layer is not LRKV. */
const neededParts = ['keyBase', 'keyDown', 'keyUp', 'valueBase', 'valueDown', 'valueUp'] as const;

const modelOptions: ReadonlySet<string> = new Set(['heads', 'kvHeads', 'rope', 'normEpsilon', 'stack']);

/**
 * Reads the attention layers of a model that is not converted.
 *
 * @param path a `.safetensors` file, the `.safetensors.index.json` of several, or a folder with `model.safetensors` or
 *   `model.safetensors.index.json`, in the naming of Hugging Face's Llama, Mistral and Qwen or in this package's own:
 *   docs/converting.md. Matrices stored as [out, in] are transposed
 * @returns one entry a layer, in the order of their numbers; tensors of the file's own element types
 * @throws AttentionError ERR_ARGUMENT for what is no such file, files that are not there or outside their index's folder,
 *   layers or parts of them that are not there, or of which heads and rotary embedding are not known; ERR_SHAPE where
 *   matrices do not fit the heads; ERR_UNSUPPORTED for rotary embedding that cannot be told from config.json; ERR_TYPE for
 *   element types beside float32, float16 and bfloat16, and several files whose projections are not of one type; errors of
 *   the file system
 */
export async function readAttentionWeights(path: string, options?: ModelOptions): Promise<AttentionWeights[]> {
  return await withModel(path, options, async ({ layers, read }) => {
    const weights: AttentionWeights[] = [];
    for (const layer of layers) weights.push(await read(layer));
    return weights;
  });
}

/** A model that is open, whose layers are not converted. */
export interface Model {
  readonly checkpoint: Checkpoint;
  readonly layers: readonly NamedLayer[];
  /** Reads the tensors of a layer, and checks that they fit each other. */
  readonly read: (layer: NamedLayer) => Promise<AttentionWeights>;
}

/** Opens a model, hands it to `use`, and closes it. @throws as `readAttentionWeights`, and what `use` throws */
export async function withModel<Result>(
  path: string,
  options: ModelOptions | undefined,
  use: (model: Model) => Promise<Result>,
): Promise<Result> {
  const given = checkModelOptions(options);
  return await Checkpoint.with(path, async (checkpoint) => {
    const config = await readConfig(checkpoint.path);
    const numbers = readMetadata(checkpoint.metadata);
    const layers = findLayers(checkpoint.path, checkpoint.names, given.stack);
    for (const { prefix, parts } of layers) {
      if (!parts.has('keyDown')) continue;
      throw expected('ERR_ARGUMENT', prefix, 'keys and values that are not converted', new Text('LRKV'));
    }
    if (checkpoint.files.length > 1) checkTypes(checkpoint, layers);
    const read = async (layer: NamedLayer): Promise<AttentionWeights> =>
      await readLayer(checkpoint, layer, { given, config, numbers: numbers.get(layer.prefix) });
    return await use({ checkpoint, layers, read });
  });
}

/** Refuses files whose projections are not of one element type: they are not of one model. */
function checkTypes(checkpoint: Checkpoint, layers: readonly NamedLayer[]): void {
  let first: { readonly name: string; readonly dtype: string } | undefined;
  for (const { parts } of layers) {
    for (const part of ['query', 'key', 'value', 'output'] as const) {
      const name = parts.get(part)?.name;
      if (name === undefined) continue;
      const { dtype } = checkpoint.entry(name);
      first ??= { name, dtype };
      if (dtype !== first.dtype) {
        throw expected('ERR_TYPE', name, `elements ${first.dtype}, as of ${first.name}`, new Text(dtype));
      }
    }
  }
}

/**
 * Reads the layers of a file that `writeLrkvWeights` or the command `convert` wrote, as they were given to it.
 *
 * @param options `stack` as in {@link ModelOptions}
 * @throws AttentionError ERR_ARGUMENT for what is no such file, ERR_SHAPE, ERR_TYPE; errors of the file system
 */
export async function readLrkvWeights(path: string, options?: Pick<ModelOptions, 'stack'>): Promise<LrkvWeights[]> {
  const { stack } = checkOptions('options', options, new Set(['stack']));
  return await Checkpoint.with(path, async (file) => {
    const numbers = readMetadata(file.metadata);
    const result: LrkvWeights[] = [];
    for (const layer of findLayers(file.path, file.names, stack)) {
      const own = numbers.get(layer.prefix);
      if (own?.lrkv === undefined) {
        throw expected('ERR_ARGUMENT', layer.prefix, 'the metadata of a converted layer', new Text('none'));
      }
      for (const part of ['query', 'output', ...neededParts] as const) partOf(layer, part);
      const parts = await readParts(file, layer, [...sharedParts, ...lrkvParts]);
      const qkNorm = await readNorms(file, layer, own, undefined);
      const { heads, kvHeads, rope, scale, lrkv } = own;
      result.push({
        ...(parts as typeof parts & Pick<LrkvWeights, 'query' | 'output' | (typeof neededParts)[number]>),
        heads,
        kvHeads,
        ...(rope === undefined ? {} : { rope }),
        ...(qkNorm === undefined ? {} : { qkNorm }),
        ...(scale === undefined ? {} : { scale }),
        ...lrkv,
      });
    }
    return result;
  });
}

function checkModelOptions(options: ModelOptions | undefined): ModelOptions {
  const given = checkOptions('options', options, modelOptions);
  if (given.heads !== undefined) checkInteger('heads', given.heads, 1);
  if (given.kvHeads !== undefined) checkInteger('kvHeads', given.kvHeads, 1);
  if (given.normEpsilon !== undefined) checkFinite('normEpsilon', given.normEpsilon, 0);
  if (given.rope === undefined || given.rope === false) return given;
  const { base, pairing = 'half' } = checkOptions('rope', given.rope, new Set(['base', 'pairing']));
  if (checkFinite('rope.base', base) <= 0) throw expected('ERR_ARGUMENT', 'rope.base', 'a number > 0', base);
  checkChoice('rope.pairing', pairing, ['half', 'interleaved']);
  return { ...given, rope: { base: base as number, pairing } };
}

/** Where the numbers of a layer come from, first to last. */
interface Sources {
  readonly given: ModelOptions;
  readonly numbers: LayerNumbers | undefined;
  readonly config: ModelConfig | undefined;
}

async function readLayer(file: Checkpoint, layer: NamedLayer, sources: Sources): Promise<AttentionWeights> {
  const { given, numbers, config } = sources;
  const parts = await readParts(file, layer, [...sharedParts, ...keyValueParts]);
  for (const part of ['query', 'key', 'value', 'output'] as const) partOf(layer, part);
  const { query, key, ...others } = parts as typeof parts &
    Pick<AttentionWeights, 'query' | 'key' | 'value' | 'output'>;
  const heads = given.heads ?? numbers?.heads ?? config?.heads;
  if (heads === undefined) {
    throw expected('ERR_ARGUMENT', 'heads', 'the number of query heads, or config.json beside the file', heads);
  }
  const headDim = (query.dims[1] as number) / heads;
  if (config?.headDim !== undefined && headDim !== config.headDim) {
    const what = `${heads * config.headDim} columns for ${heads} heads of ${config.headDim}`;
    throw expected('ERR_SHAPE', partOf(layer, 'query').name, what, query.dims[1]);
  }
  if (!Number.isInteger(headDim)) {
    throw expected('ERR_SHAPE', partOf(layer, 'query').name, `columns for ${heads} heads`, query.dims[1]);
  }
  // Keys that are no whole number of heads are refused below.
  const fitting = Math.max(1, Math.floor((key.dims[1] as number) / headDim));
  const kvHeads = given.kvHeads ?? numbers?.kvHeads ?? config?.kvHeads ?? fitting;
  const scale = numbers?.scale;
  const qkNorm = await readNorms(file, layer, numbers, given.normEpsilon ?? config?.normEpsilon);
  const weights = {
    query,
    key,
    ...others,
    heads,
    kvHeads,
    ...(qkNorm === undefined ? {} : { qkNorm }),
    ...(scale === undefined ? {} : { scale }),
  };
  // Errors are about the layer's tensors by their names, as near as the two namings allow.
  checkAttentionWeights(layer.prefix.slice(0, -1), weights);
  const rope = ropeOf(sources, headDim);
  return rope === undefined ? weights : { ...weights, rope };
}

/** Those of some parts that a layer has; matrices as [in, out]. */
async function readParts(
  file: Checkpoint,
  layer: NamedLayer,
  wanted: readonly Part[],
): Promise<Partial<Record<Part, Tensor>>> {
  const parts: Partial<Record<Part, Tensor>> = {};
  for (const part of wanted) {
    const found = layer.parts.get(part);
    if (found === undefined) continue;
    const tensor = await file.read(found.name);
    const rank = /Bias$/.test(part) ? 1 : /Gauge$/.test(part) ? 3 : 2;
    if (tensor.dims.length !== rank) {
      throw expected('ERR_SHAPE', found.name, `${rank} ${rank === 1 ? 'axis' : 'axes'}`, tensor.dims);
    }
    parts[part] = found.transposed ? transposed(tensor) : tensor;
  }
  return parts;
}

function ropeOf({ given, numbers, config }: Sources, headDim: number): Rope | undefined {
  if (given.rope === false) return undefined;
  if (given.rope !== undefined) {
    const { base, pairing = 'half' } = given.rope;
    config?.checkRotatedWhole(headDim);
    return { frequencies: ropeFrequencies(headDim, base), pairing };
  }
  if (numbers !== undefined) return numbers.rope;
  if (config !== undefined) return config.rope(headDim);
  throw expected('ERR_ARGUMENT', 'rope', 'a base, false for none, or config.json beside the file', undefined);
}

/**
 * QK-norm of a layer that has gains, or of which the metadata knows.
 *
 * @param epsilon where the metadata does not say
 */
async function readNorms(
  file: Checkpoint,
  layer: NamedLayer,
  numbers: LayerNumbers | undefined,
  epsilon: number | undefined,
): Promise<AttentionWeights['qkNorm']> {
  const result: { query?: RmsNormOptions; key?: RmsNormOptions } = {};
  for (const side of ['query', 'key'] as const) {
    const named = layer.parts.get(`${side}Norm`);
    const own = numbers?.[`${side}Norm`];
    if (named === undefined && own === undefined) continue;
    if (numbers === undefined && epsilon === undefined) {
      throw expected('ERR_ARGUMENT', 'normEpsilon', 'a number >= 0, or config.json beside the file', epsilon);
    }
    const gain = named === undefined ? undefined : cast(await file.read(named.name), 'float32').data;
    result[side] = {
      ...(numbers === undefined ? { epsilon: epsilon as number } : own),
      ...(gain === undefined ? {} : { gain }),
    };
  }
  return result.query === undefined && result.key === undefined ? undefined : result;
}

/** Elements on a side of the squares that are transposed at a time, so that both of their sides stay in the cache. */
const square = 32;

/** [rows, columns] as [columns, rows], in memory of its own. */
function transposed({ data, dims, type }: Tensor): Tensor {
  const [rows, columns] = dims as [number, number];
  const result = allocate('dims', [columns, rows], type);
  const [from, to] = [data, result.data] as [Float32Array, Float32Array];
  for (let top = 0; top < rows; top += square) {
    for (let left = 0; left < columns; left += square) {
      const [bottom, right] = [Math.min(rows, top + square), Math.min(columns, left + square)];
      for (let column = left; column < right; column++) {
        for (let row = top; row < bottom; row++) to[column * rows + row] = from[row * columns + column] as number;
      }
    }
  }
  return result;
}
