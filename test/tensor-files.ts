/** Files of tensors as other programs write them, for tests that only read them. */
import fs from 'node:fs';

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
  const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  fs.writeFileSync(file, Buffer.concat([length, header, ...parts]));
}
