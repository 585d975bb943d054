/** Files of tensors, written one tensor at a time: none but the one in hand need be in memory. */
import { asBits, checkAnyTensor } from '../check';
import { expected, Text } from '../errors';
import { view } from '../read';
import type { Tensor } from '../tensor';
import { type Append, writeWhole } from './output-file';
import { dtypes, elementBytes, headerBytes, metadataName, type SafetensorsEntry } from './safetensors-format';

/** A tensor that is to be written; its size is known before its bytes are there. */
export interface SafetensorsContent extends Pick<SafetensorsEntry, 'dtype' | 'dims'> {
  readonly name: string;
  readonly bytes: number;
  /** The bytes, asked for once, when it is this tensor's turn; little-endian, as the format has them. */
  readonly chunks: () => AsyncIterable<Uint8Array>;
}

/** A tensor in memory as content of a file. @throws AttentionError ERR_TYPE, ERR_SHAPE */
export function contentOf(name: string, tensor: Tensor): SafetensorsContent {
  const { data, dims, type } = checkAnyTensor(name, tensor);
  const bits = asBits(data);
  const bytes = new Uint8Array(view.buffer(bits), view.byteOffset(bits), view.byteLength(bits));
  return {
    name,
    dtype: dtypes[type],
    dims,
    bytes: bytes.length,
    chunks: async function* () {
      yield bytes;
    },
  };
}

/**
 * Writes a `.safetensors` file, whole or not at all; one that is there is replaced.
 *
 * Tensors of large elements come first, so that all lie at multiples of their elements' size and the file can be used
 * where it is mapped; those of one size come in the order given.
 *
 * @param metadata texts by name
 * @param signal as of `writeWhole`
 * @throws AttentionError ERR_ARGUMENT for names that cannot be written or come twice; errors of the file system as they
 *   are, and what `chunks` throws
 */
export async function writeSafetensors(
  file: string,
  contents: readonly SafetensorsContent[],
  metadata: Readonly<Record<string, string>> = {},
  signal?: AbortSignal,
): Promise<void> {
  const ordered = contents.toSorted((a, b) => sizeOf(b) - sizeOf(a));
  const header = headerOf(file, ordered, metadata);
  const write = async (append: Append): Promise<void> => {
    await append(header);
    for (const { name, bytes, chunks } of ordered) {
      let written = 0;
      for await (const chunk of chunks()) {
        written += chunk.length;
        // More than announced would shift all that follows.
        if (written > bytes) break;
        await append(chunk);
      }
      if (written !== bytes) throw expected('ERR_ARGUMENT', name, `${bytes} bytes of data`, written);
    }
  };
  await writeWhole(file, write, signal);
}

/** Bytes of an element; those of less than one or of an unknown size can stand anywhere. */
function sizeOf({ dtype }: SafetensorsContent): number {
  return elementBytes.get(dtype) ?? 0;
}

/** The header with its length before it, filled up with spaces to a multiple of eight bytes. */
function headerOf(
  file: string,
  contents: readonly SafetensorsContent[],
  metadata: Readonly<Record<string, string>>,
): Buffer {
  const parts: string[] = [];
  if (Object.keys(metadata).length > 0) parts.push(`${JSON.stringify(metadataName)}:${JSON.stringify(metadata)}`);
  const names = new Set<string>();
  let begin = 0;
  for (const { name, dtype, dims, bytes } of contents) {
    if (name === metadataName) throw expected('ERR_ARGUMENT', name, "a tensor's name, which this is not", name);
    // Halves of surrogate pairs are not in UTF-8, and other readers refuse them as escapes too.
    if (/\p{Surrogate}/u.test(name)) throw expected('ERR_ARGUMENT', 'name', 'a name that UTF-8 can write', name);
    if (names.has(name)) throw expected('ERR_ARGUMENT', name, 'one tensor of this name', new Text('two'));
    names.add(name);
    const entry = { dtype, shape: dims, data_offsets: [begin, begin + bytes] };
    // One by one: an object would have names that are numbers first, and lose others to its prototype.
    parts.push(`${JSON.stringify(name)}:${JSON.stringify(entry)}`);
    begin += bytes;
  }
  const text = Buffer.from(`{${parts.join(',')}}`);
  const length = Math.ceil(text.length / 8) * 8;
  if (length > headerBytes) throw expected('ERR_ARGUMENT', file, `a header of at most ${headerBytes} bytes`, length);
  const header = Buffer.alloc(8 + length, ' ');
  header.writeBigUInt64LE(BigInt(length));
  text.copy(header, 8);
  return header;
}
