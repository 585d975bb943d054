/** Reads `.safetensors` files: see safetensors-format.ts. */
import { checkDims } from '../check';
import { expected, Text } from '../errors';
import { allocate, type Tensor } from '../tensor';
import { InputFile } from './input-file';
import { isObject } from './json';
import { elementBytes, headerBytes, metadataName, readable, type SafetensorsEntry } from './safetensors-format';
import type { SafetensorsContent } from './safetensors-writer';

/** Bytes that are copied at a time. */
const chunkBytes = 2 ** 24;

/** An open `.safetensors` file: its header, and tensors read one at a time, as a model may not fit into memory. */
export class Safetensors {
  private constructor(
    private readonly file: InputFile,
    private readonly dataStart: number,
    /** In the order of the header. */
    readonly entries: ReadonlyMap<string, SafetensorsEntry>,
    readonly metadata: ReadonlyMap<string, string>,
  ) {}

  /**
   * Opens a file, hands it to `use`, and closes it.
   *
   * @throws AttentionError ERR_ARGUMENT for what is no such file, ERR_SHAPE; errors of the file system as they are
   */
  static async with<Result>(path: string, use: (tensors: Safetensors) => Promise<Result>): Promise<Result> {
    return await InputFile.with(path, async (file) => {
      const length = (await file.bytes(0, 8)).readBigUInt64LE();
      if (length > headerBytes) throw file.wrong(`a header of at most ${headerBytes} bytes`, length);
      const dataStart = 8 + Number(length);
      const text = decode(file, await file.bytes(8, Number(length)));
      const { entries, metadata } = parseHeader(file, text, file.size - dataStart);
      return await use(new Safetensors(file, dataStart, entries, metadata));
    });
  }

  /**
   * Reads one tensor.
   *
   * @returns float32, float16 (held in a `Uint16Array`) or bfloat16
   * @throws AttentionError ERR_ARGUMENT if there is none of that name, ERR_TYPE for other element types, ERR_MEMORY
   */
  async read(name: string): Promise<Tensor> {
    const found = this.entry(name);
    const type = readable.get(found.dtype);
    if (type === undefined) throw expected('ERR_TYPE', name, 'elements F32, F16 or BF16', new Text(found.dtype));
    const tensor = allocate(name, found.dims, type);
    await this.file.fill(tensor.data as Float32Array | Uint16Array, this.dataStart + found.begin);
    return tensor;
  }

  /**
   * One tensor of whatever type, to be written into another file as it is.
   *
   * @throws AttentionError ERR_ARGUMENT if there is none of that name
   */
  content(name: string): SafetensorsContent {
    const { dtype, dims, begin, end } = this.entry(name);
    const { file, dataStart } = this;
    return {
      name,
      dtype,
      dims,
      bytes: end - begin,
      chunks: async function* () {
        for (let at = begin; at < end; at += chunkBytes) {
          yield await file.bytes(dataStart + at, Math.min(chunkBytes, end - at));
        }
      },
    };
  }

  /** What the header says of a tensor. @throws AttentionError ERR_ARGUMENT if there is none of that name */
  entry(name: string): SafetensorsEntry {
    const found = this.entries.get(name);
    if (found !== undefined) return found;
    const names = [...this.entries.keys()];
    const some = names.slice(0, 8).join(', ') + (names.length > 8 ? `, … (${names.length})` : '');
    throw expected('ERR_ARGUMENT', name, `one of the tensors of ${this.file.path}: ${some}`, name);
  }
}

function decode(file: InputFile, header: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(header);
  } catch (cause) {
    throw file.wrong('a header in UTF-8', new Text('other bytes'), { cause });
  }
}

/** @param dataBytes of all tensors */
function parseHeader(file: InputFile, text: string, dataBytes: number) {
  let header: unknown;
  try {
    header = JSON.parse(text);
  } catch (cause) {
    throw file.wrong('a header in JSON', text, { cause });
  }
  if (!isObject(header) || !text.startsWith('{')) throw file.wrong('a header that is an object', text);
  // JSON.parse keeps the last of two.
  const twice = repeatedKey(text);
  if (twice !== undefined) throw file.wrong('a header of different names', new Text(`${JSON.stringify(twice)} twice`));

  const entries = new Map<string, SafetensorsEntry>();
  let metadata = new Map<string, string>();
  for (const [name, value] of Object.entries(header)) {
    if (name === metadataName) metadata = metadataOf(file, value);
    else entries.set(name, entryOf(file, name, value));
  }
  let end = 0;
  for (const [name, entry] of [...entries].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end)) {
    if (entry.begin !== end) throw file.wrong(`data of ${JSON.stringify(name)} from byte ${end} on`, entry.begin);
    end = entry.end;
  }
  if (end !== dataBytes) throw file.wrong(`${end} bytes of data`, dataBytes);
  return { entries, metadata };
}

function entryOf(file: InputFile, name: string, value: unknown): SafetensorsEntry {
  const shown = JSON.stringify(name);
  const { dtype, shape, data_offsets: offsets, ...rest } = isObject(value) ? value : {};
  if (typeof dtype !== 'string' || !Array.isArray(offsets) || offsets.length !== 2 || Object.keys(rest).length > 0) {
    throw file.wrong(`dtype, shape and data_offsets of ${shown}, and nothing else`, value);
  }
  const dims = checkDims(name, shape);
  const [begin, end] = offsets as [unknown, unknown];
  if (!isOffset(begin) || !isOffset(end) || begin > end) throw file.wrong(`byte offsets of ${shown}`, offsets);
  const size = elementBytes.get(dtype);
  const bytes = dims.reduce((product, extent) => product * extent, size ?? 0);
  if (size !== undefined && end - begin !== bytes) {
    throw file.wrong(`${bytes} bytes for ${shown}, ${dtype} [${dims.join(', ')}]`, end - begin);
  }
  return { dtype, dims, begin, end };
}

function metadataOf(file: InputFile, value: unknown): Map<string, string> {
  const pairs = isObject(value) ? Object.entries(value) : undefined;
  if (pairs === undefined || pairs.some(([, text]) => typeof text !== 'string')) {
    throw file.wrong(`texts in ${metadataName}`, value);
  }
  return new Map(pairs as [string, string][]);
}

function isOffset(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 && !Object.is(value, -0);
}

/** A key that one object of a JSON text has twice, if any does. The text is known to be right. */
function repeatedKey(text: string): string | undefined {
  const open: Set<string>[] = [];
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '{') open.push(new Set());
    else if (character === '}') open.pop();
    else if (character === '"') {
      const start = i++;
      while (text[i] !== '"') i += text[i] === '\\' ? 2 : 1;
      let next = i + 1;
      while (/\s/.test(text[next] as string)) next++;
      if (text[next] !== ':') continue;
      const key = JSON.parse(text.slice(start, i + 1)) as string;
      const keys = open.at(-1) as Set<string>;
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
  return undefined;
}
