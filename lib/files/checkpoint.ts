/**
 * A model's tensors: one `.safetensors` file, or several (shards) that an index tells of, as Hugging Face writes them
 * (huggingface.co/docs/safetensors/metadata_parsing): `model.safetensors.index.json` is an object whose `weight_map` has
 * for the name of every tensor the name of the file beside it that holds it. Its `metadata` is not used: `total_size` is
 * wrong in many.
 */
import { readdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import { expected, Text } from '../errors';
import type { Tensor } from '../tensor';
import { isObject, readJson } from './json';
import { Safetensors } from './safetensors';
import type { SafetensorsEntry } from './safetensors-format';
import type { SafetensorsContent } from './safetensors-writer';

const singleName = 'model.safetensors';
const indexName = 'model.safetensors.index.json';
const indexEnd = '.safetensors.index.json';

/** What a tensor is, and the file that holds it. */
interface Place {
  readonly entry: SafetensorsEntry;
  readonly shard: Safetensors;
}

/** An open model. Tensors are read one at a time, as it may not fit into memory. */
export class Checkpoint {
  private constructor(
    /** The file that was given or found: of several, their index. */
    readonly path: string,
    /** All files that were opened, in the order of the index. */
    readonly files: readonly string[],
    /** In the order in which they lie in the files, one file after another. */
    private readonly places: ReadonlyMap<string, Place>,
    readonly metadata: ReadonlyMap<string, string>,
  ) {}

  /**
   * Opens a model, hands it to `use`, and closes it.
   *
   * @param path a `.safetensors` file; the index of several; or a folder with `model.safetensors`, or else with
   *   `model.safetensors.index.json`
   * @throws AttentionError ERR_ARGUMENT for what is no such file, an index that names files in other folders or that are
   *   not there, or that disagrees with its files; errors of the file system as they are
   */
  static async with<Result>(path: string, use: (checkpoint: Checkpoint) => Promise<Result>): Promise<Result> {
    const file = await fileOf(path);
    if (!file.endsWith('.json')) {
      return await Safetensors.with(file, async (shard) => {
        const places = placesOf([shard]);
        return await use(new Checkpoint(file, [file], places, shard.metadata));
      });
    }
    const index = await readIndex(file);
    const names = [...new Set(index.values())];
    const files = names.map((name) => join(dirname(file), name));
    return await openAll(file, files, [], async (shards) => {
      const places = placesOf(shards);
      checkIndex(file, index, new Map(shards.map((shard, i) => [shard, names[i] as string])), places);
      return await use(new Checkpoint(file, files, places, metadataOf(shards)));
    });
  }

  get names(): Iterable<string> {
    return this.places.keys();
  }

  /** What the header says of a tensor that there is. */
  entry(name: string): SafetensorsEntry {
    return this.placeOf(name).entry;
  }

  /** As `Safetensors.read`. */
  async read(name: string): Promise<Tensor> {
    return await this.placeOf(name).shard.read(name);
  }

  /** As `Safetensors.content`. */
  content(name: string): SafetensorsContent {
    return this.placeOf(name).shard.content(name);
  }

  private placeOf(name: string): Place {
    const found = this.places.get(name);
    if (found === undefined) throw expected('ERR_ARGUMENT', name, `one of the tensors of ${this.path}`, name);
    return found;
  }
}

/** The file that a path means. */
async function fileOf(path: string): Promise<string> {
  if (!(await stat(path)).isDirectory()) return path;
  const names = await readdir(path);
  for (const name of [singleName, indexName]) if (names.includes(name)) return join(path, name);
  const some = names.filter((name) => /\.(safetensors|json)$/.test(name)).slice(0, 6);
  throw expected(
    'ERR_ARGUMENT',
    path,
    `${singleName} or ${indexName} in the folder`,
    new Text(some.join(', ') || 'none'),
  );
}

/** File names by tensor. */
async function readIndex(path: string): Promise<ReadonlyMap<string, string>> {
  if (!path.endsWith(indexEnd)) throw expected('ERR_ARGUMENT', path, `a file *.safetensors or *${indexEnd}`, path);
  const all = await readJson(path);
  const map = isObject(all) ? all.weight_map : undefined;
  if (!isObject(map) || Object.keys(map).length === 0) {
    throw expected('ERR_ARGUMENT', path, "an object with 'weight_map', names of files by names of tensors", map ?? all);
  }
  return new Map(
    Object.entries(map).map(([tensor, file]) => {
      // No path: what an index names must not lead out of its folder, on any system.
      if (typeof file !== 'string' || !/^[^/\\:\0]+\.safetensors$/.test(file)) {
        throw expected('ERR_ARGUMENT', tensor, `the name of a .safetensors file beside ${path}`, file);
      }
      return [tensor, file];
    }),
  );
}

async function openAll<Result>(
  index: string,
  files: readonly string[],
  open: readonly Safetensors[],
  use: (shards: readonly Safetensors[]) => Promise<Result>,
): Promise<Result> {
  const file = files[open.length];
  if (file === undefined) return await use(open);
  await stat(file).catch((cause) => {
    if (cause.code !== 'ENOENT') throw cause;
    throw expected('ERR_ARGUMENT', index, `all files of its weight_map, ${file} among them,`, new Text('none'), {
      cause,
    });
  });
  return await Safetensors.with(file, (shard) => openAll(index, files, [...open, shard], use));
}

function placesOf(shards: readonly Safetensors[]): ReadonlyMap<string, Place> {
  const places = new Map<string, Place>();
  for (const shard of shards) {
    const byPlace = [...shard.entries].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
    for (const [name, entry] of byPlace) {
      const other = places.get(name);
      if (other !== undefined) throw expected('ERR_ARGUMENT', name, 'one file that holds it', new Text('two'));
      places.set(name, { entry, shard });
    }
  }
  return places;
}

/** Refuses an index and files that do not have the same tensors at the same places. */
function checkIndex(
  path: string,
  index: ReadonlyMap<string, string>,
  files: ReadonlyMap<Safetensors, string>,
  places: ReadonlyMap<string, Place>,
): void {
  for (const [name, file] of index) {
    const place = places.get(name);
    const found = place === undefined ? undefined : files.get(place.shard);
    if (found !== file) throw expected('ERR_ARGUMENT', name, `a tensor in ${file}`, new Text(found ?? 'none'));
  }
  for (const name of places.keys()) {
    if (!index.has(name)) throw expected('ERR_ARGUMENT', name, `a file for it in ${path}`, new Text('none'));
  }
}

/** Texts of all files; one that they do not agree upon is none's. */
function metadataOf(shards: readonly Safetensors[]): ReadonlyMap<string, string> {
  const all = new Map<string, string>();
  for (const shard of shards) for (const [name, text] of shard.metadata) all.set(name, text);
  return new Map(
    [...all].filter(([name, text]) => shards.every(({ metadata }) => (metadata.get(name) ?? text) === text)),
  );
}
