/** Files of tensors as other programs write and read them: nothing here knows how the library does it. */
import fs from 'node:fs';
import path from 'node:path';

/** The value of each element of a tensor by its index. */
export interface Content {
  readonly dims: readonly number[];
  readonly value: (index: number) => number;
}

function float32({ dims, value }: Content): Buffer {
  const count = dims.reduce((product, extent) => product * extent, 1);
  return Buffer.from(Float32Array.from({ length: count }, (_, i) => value(i)).buffer);
}

/** A .npy file of version 1. */
export function writeNpy(file: string, content: Content): void {
  const shape = `(${content.dims.join(', ')},)`;
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`.padEnd(117);
  const start = Buffer.from('\x93NUMPY\x01\x00', 'latin1');
  const length = Buffer.from([header.length + 1, 0]);
  fs.writeFileSync(file, Buffer.concat([start, length, Buffer.from(`${header}\n`), float32(content)]));
}

/** A .safetensors file of tensors by name. */
export function writeSafetensors(file: string, contents: Readonly<Record<string, Content>>): void {
  const parts: Buffer[] = [];
  let offset = 0;
  const entries = Object.entries(contents).map(([name, content]) => {
    const data = float32(content);
    parts.push(data);
    const begin = offset;
    offset += data.length;
    return [name, { dtype: 'F32', shape: content.dims, data_offsets: [begin, offset] }];
  });
  const text = JSON.stringify(Object.fromEntries(entries));
  const header = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  fs.writeFileSync(file, Buffer.concat([length, header, ...parts]));
}

/** What a .safetensors file says of a tensor, and its bytes. */
export interface Stored {
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Of the whole file. */
  readonly begin: number;
  readonly bytes: Buffer;
}

/** Takes a .safetensors file apart, and fails where it breaks a rule of the format. */
export function readSafetensors(file: string): {
  readonly tensors: Readonly<Record<string, Stored>>;
  readonly metadata: Readonly<Record<string, string>> | undefined;
} {
  const content = fs.readFileSync(file);
  const dataStart = 8 + Number(content.readBigUInt64LE());
  if (dataStart % 8 !== 0) throw new Error(`data at byte ${dataStart}`);
  const text = content.subarray(8, dataStart).toString('utf8');
  if (!/^\{.*\} *$/s.test(text)) throw new Error(`a header of ${text}`);
  const { __metadata__: metadata, ...entries } = JSON.parse(text);
  const tensors: Record<string, Stored> = {};
  let end = 0;
  const byPlace = Object.entries<{ dtype: string; shape: number[]; data_offsets: [number, number] }>(entries).sort(
    ([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0] || a.data_offsets[1] - b.data_offsets[1],
  );
  for (const [name, { dtype, shape, data_offsets: offsets, ...rest }] of byPlace) {
    if (Object.keys(rest).length > 0 || offsets[0] !== end) throw new Error(`${name} is wrong`);
    end = offsets[1];
    const begin = dataStart + offsets[0];
    tensors[name] = { dtype, shape, begin, bytes: content.subarray(begin, dataStart + end) };
  }
  if (dataStart + end !== content.length) throw new Error(`${content.length - dataStart - end} bytes too many`);
  return { tensors, metadata };
}

/**
 * A model in several files with their index, as Hugging Face writes them: tensors in turn to one file after the other.
 *
 * @returns the index
 */
export function writeShards(folder: string, contents: Readonly<Record<string, Content>>, count: number): string {
  const names = Object.keys(contents);
  const fileOf = (shard: number): string =>
    `model-${String(shard + 1).padStart(5, '0')}-of-${String(count).padStart(5, '0')}.safetensors`;
  const weightMap: Record<string, string> = {};
  for (let shard = 0; shard < count; shard++) {
    const own = names.filter((_, i) => i % count === shard);
    for (const name of own) weightMap[name] = fileOf(shard);
    writeSafetensors(path.join(folder, fileOf(shard)), Object.fromEntries(own.map((name) => [name, contents[name]])));
  }
  const index = path.join(folder, 'model.safetensors.index.json');
  fs.writeFileSync(index, JSON.stringify({ metadata: { total_size: 0 }, weight_map: weightMap }));
  return index;
}
