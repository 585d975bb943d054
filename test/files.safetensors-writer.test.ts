// Written safetensors files: what another parser of the format finds in them is what was given, bit by bit.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import fc from 'fast-check';

import { type Tensor, tensor } from '../lib';
import { Safetensors } from '../lib/files/safetensors';
import { contentOf, type SafetensorsContent, writeSafetensors } from '../lib/files/safetensors-writer';
import { refusalOf } from './refusal';
import { readSafetensors } from './tensor-files';

let work: string;
beforeAll(() => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'safetensors-writer-'));
});
afterAll(() => fs.rmSync(work, { recursive: true }));

let count = 0;
const fresh = (): string => path.join(fs.mkdtempSync(path.join(work, 'in-')), `${count++}.safetensors`);

const floats = Float32Array.of(1, -2.5, 1e-45, Number.NaN, Number.NEGATIVE_INFINITY, -0);
const halves = Uint16Array.of(0x3c00, 0xbc01, 0x7e00);
const tensors: Readonly<Record<string, Tensor>> = {
  half: tensor(halves, [3, 1], 'float16'),
  brain: tensor(halves.slice(0, 2), [2], 'bfloat16'),
  float: tensor(floats, [2, 3]),
  scalar: tensor(Float32Array.of(7), []),
  empty: tensor(new Float32Array(0), [0, 5]),
};

/** A tensor of any type, whose bytes come in pieces. */
function raw(name: string, dtype: string, dims: readonly number[], ...pieces: readonly Uint8Array[]) {
  const bytes = pieces.reduce((sum, { length }) => sum + length, 0);
  return {
    name,
    dtype,
    dims,
    bytes,
    chunks: async function* () {
      yield* pieces;
    },
  } satisfies SafetensorsContent;
}

test('another parser finds every tensor at a multiple of its element size', async () => {
  const file = fresh();
  const contents = Object.entries(tensors).map(([name, of]) => contentOf(name, of));
  await writeSafetensors(file, contents, { by: 'us', text: '"\\é鯨' });
  const { tensors: found, metadata } = readSafetensors(file);
  expect(metadata).toEqual({ by: 'us', text: '"\\é鯨' });
  expect(Object.keys(found).sort()).toEqual(Object.keys(tensors).sort());
  const names = { float32: ['F32', 4], float16: ['F16', 2], bfloat16: ['BF16', 2] } as const;
  for (const [name, { data, dims, type }] of Object.entries(tensors)) {
    const { dtype, shape, begin, bytes } = found[name];
    const [wanted, size] = names[type];
    expect([dtype, shape, begin % size]).toEqual([wanted, dims, 0]);
    const { buffer, byteOffset, byteLength } = data as Float32Array;
    expect(bytes.equals(Buffer.from(buffer, byteOffset, byteLength))).toBe(true);
  }
});

test('the reader gives back what was written', async () => {
  const file = fresh();
  await writeSafetensors(
    file,
    Object.entries(tensors).map(([name, of]) => contentOf(name, of)),
  );
  await Safetensors.with(file, async (read) => {
    expect(read.metadata.size).toBe(0);
    for (const [name, of] of Object.entries(tensors)) expect(await read.read(name)).toEqual(of);
  });
});

test('a file without tensors, and one whose names are anything', async () => {
  const file = fresh();
  await writeSafetensors(file, []);
  expect(readSafetensors(file)).toEqual({ tensors: {}, metadata: undefined });
  const one = tensor(Float32Array.of(1), [1]);
  const names = ['', '1', '0', 'constructor', 'a.b/c"d\\é鯨\n', '😀'];
  await writeSafetensors(
    file,
    names.map((name, index) => contentOf(name, tensor(Float32Array.of(index), [1]))),
  );
  const { tensors: found } = readSafetensors(file);
  for (const [index, name] of names.entries()) expect(found[name].bytes.readFloatLE()).toBe(index);
  // As a property of a header that was built as an object it would be lost.
  await writeSafetensors(file, [contentOf('__proto__', one)]);
  await Safetensors.with(file, async (read) => expect(await read.read('__proto__')).toEqual(one));
});

test('tensors of every type are passed through byte by byte', async () => {
  const sizes = { 1: ['BOOL', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3'], 2: ['U16', 'I16', 'F16', 'BF16'] };
  const wide = { 4: ['U32', 'I32', 'F32'], 8: ['U64', 'I64', 'F64', 'C64'] };
  const all = Object.entries({ ...sizes, ...wide }).flatMap(([size, types]) => types.map((type) => [type, +size]));
  const contents = (all as [string, number][]).map(([type, size], index) => {
    const bytes = Uint8Array.from({ length: 3 * size }, (_, i) => (i * 37 + index) % 256);
    return raw(`of ${type}`, type, [3, 1], bytes.subarray(0, 1), bytes.subarray(1));
  });
  // Of four bits, and of a type to come: known by the bytes alone.
  contents.push(raw('of F4', 'F4', [3, 2], Uint8Array.of(1, 2, 3)), raw('of X7', 'X7', [9], Uint8Array.of(9, 8)));
  const [first, second] = [fresh(), fresh()];
  await writeSafetensors(first, contents);
  await Safetensors.with(first, async (read) => {
    const copies = [...read.entries.keys()].reverse().map((name) => read.content(name));
    await writeSafetensors(second, copies, { copied: 'yes' });
  });
  const [before, after] = [readSafetensors(first).tensors, readSafetensors(second).tensors];
  expect(Object.keys(before)).toHaveLength(contents.length);
  for (const [name, { dtype, shape, bytes }] of Object.entries(before)) {
    expect(after[name]).toMatchObject({ dtype, shape });
    expect(after[name].bytes.equals(bytes)).toBe(true);
  }
});

test('a copy of more than one chunk is whole', async () => {
  const [first, second] = [fresh(), fresh()];
  const data = Uint16Array.from({ length: 2 ** 23 + 5 }, (_, i) => (i * 40503) % 65536);
  await writeSafetensors(first, [contentOf('large', tensor(data, [data.length], 'bfloat16'))]);
  await Safetensors.with(first, async (read) => writeSafetensors(second, [read.content('large')]));
  expect(fs.readFileSync(second).equals(fs.readFileSync(first))).toBe(true);
});

test('whatever is written is read back', async () => {
  const any = fc.uniqueArray(
    fc.record({
      name: fc.string({ unit: 'grapheme', maxLength: 12 }).filter((name) => name !== '__metadata__'),
      type: fc.constantFrom('float16' as const, 'bfloat16' as const),
      dims: fc.array(fc.nat(4), { maxLength: 3 }),
    }),
    { selector: ({ name }) => name, maxLength: 6 },
  );
  const file = fresh();
  await fc.assert(
    fc.asyncProperty(any, fc.dictionary(fc.string(), fc.string({ unit: 'grapheme' })), async (given, metadata) => {
      const made = given.map(({ name, type, dims }, index) => {
        const length = dims.reduce((product, extent) => product * extent, 1);
        const data = Uint16Array.from({ length }, (_, i) => i * 257 + index);
        return { name, of: tensor(data, dims, type) };
      });
      await writeSafetensors(
        file,
        made.map(({ name, of }) => contentOf(name, of)),
        metadata,
      );
      await Safetensors.with(file, async (read) => {
        expect([...read.entries.keys()].sort()).toEqual(given.map(({ name }) => name).sort());
        expect(Object.fromEntries(read.metadata)).toEqual({ ...metadata });
        for (const { name, of } of made) expect(await read.read(name)).toEqual(of);
      });
    }),
    { seed: 1, numRuns: 100 },
  );
});

describe('refused', () => {
  const one = contentOf('x', tensor(Float32Array.of(1), [1]));
  const named = (name: string) => ({ ...one, name });

  test('names that come twice, that are no tensor’s, that UTF-8 does not have', async () => {
    const file = fresh();
    expect(await refusalOf(writeSafetensors(file, [one, named('y'), one]))).toMatch(/^ERR_ARGUMENT x: .*received two$/);
    expect(await refusalOf(writeSafetensors(file, [named('__metadata__')]))).toMatch(/^ERR_ARGUMENT __metadata__: /);
    expect(await refusalOf(writeSafetensors(file, [named('a\ud800b')]))).toMatch(/^ERR_ARGUMENT name: /);
    expect(fs.readdirSync(path.dirname(file))).toEqual([]);
  });

  test('what is no tensor', () => {
    const wrong = { data: new Float32Array(3), dims: [2], type: 'float32' } as const;
    expect(() => contentOf('w', wrong)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE', argument: 'w' }));
  });

  test.each([
    ['fewer', [Uint8Array.of(1, 2, 3)], 3],
    ['more', [Uint8Array.of(1, 2, 3), Uint8Array.of(4, 5)], 5],
  ])('%s bytes than announced, without a trace on the disk', async (_, pieces, received) => {
    const file = fresh();
    const content = { ...raw('x', 'F32', [1], ...pieces), bytes: 4 };
    expect(await refusalOf(writeSafetensors(file, [named('a'), content]))).toBe(
      `ERR_ARGUMENT x: expected 4 bytes of data for \`x\`, received ${received}`,
    );
    expect(fs.readdirSync(path.dirname(file))).toEqual([]);
  });
});

test('what fails half-way leaves the file of that name as it was, and nothing beside it', async () => {
  const file = fresh();
  fs.writeFileSync(file, 'before');
  const failing = {
    ...raw('x', 'U8', [2 ** 20], new Uint8Array(2 ** 20)),
    chunks: async function* () {
      yield new Uint8Array(2 ** 19);
      throw new Error('the source is gone');
    },
  };
  await expect(writeSafetensors(file, [failing])).rejects.toThrow('the source is gone');
  expect(fs.readdirSync(path.dirname(file))).toEqual([path.basename(file)]);
  expect(fs.readFileSync(file, 'utf8')).toBe('before');
  await writeSafetensors(file, []);
  expect(readSafetensors(file).tensors).toEqual({});
});

test('an abort between two pieces leaves nothing', async () => {
  const file = fresh();
  const controller = new AbortController();
  const stopped = new Error('enough');
  const pieces = {
    ...raw('x', 'U8', [30], new Uint8Array(30)),
    chunks: async function* () {
      yield new Uint8Array(10);
      controller.abort(stopped);
      yield new Uint8Array(20);
    },
  };
  await expect(writeSafetensors(file, [pieces], {}, controller.signal)).rejects.toBe(stopped);
  expect(fs.readdirSync(path.dirname(file))).toEqual([]);
});

test('a path where nothing can be written is told by the file system', async () => {
  const nowhere = path.join(work, 'no', 'such', 'folder.safetensors');
  await expect(writeSafetensors(nowhere, [])).rejects.toMatchObject({ code: 'ENOENT', syscall: 'open' });
  // A folder of that name cannot be replaced by a file.
  const folder = path.join(fs.mkdtempSync(path.join(work, 'in-')), 'taken');
  fs.mkdirSync(path.join(folder, 'full'), { recursive: true });
  await expect(writeSafetensors(folder, [])).rejects.toMatchObject({ syscall: 'rename' });
  expect(fs.readdirSync(path.dirname(folder))).toEqual(['taken']);
});

test('a file can be replaced while it is the source of its own copy', async () => {
  const file = fresh();
  await writeSafetensors(file, [contentOf('a', tensors.float), contentOf('b', tensors.half)]);
  const before = readSafetensors(file).tensors;
  await Safetensors.with(file, async (read) => writeSafetensors(file, [read.content('b')]));
  const { tensors: after } = readSafetensors(file);
  expect(Object.keys(after)).toEqual(['b']);
  expect(after.b.bytes.equals(before.b.bytes)).toBe(true);
});
