// NumPy files: what the format allows is read to the last bit, and everything else is refused by name.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { AttentionError } from '../lib';
import { readNpy } from '../lib/files/npy';

let work: string;
beforeAll(() => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'npy-'));
});
afterAll(() => fs.rmSync(work, { recursive: true }));

const bytesOf = (values: ArrayBufferView) => Buffer.from(values.buffer, values.byteOffset, values.byteLength);
const floats = (count: number) => Float32Array.from({ length: count }, (_, i) => i / 8 - 1);

/** A file as NumPy writes it: the header padded to a multiple of 64 and ended by a line feed. */
function npy(header: string, data: Uint8Array, version = 1): Buffer {
  const lengthBytes = version === 1 ? 2 : 4;
  const length = Math.ceil((8 + lengthBytes + header.length + 1) / 64) * 64 - 8 - lengthBytes;
  const start = Buffer.alloc(8 + lengthBytes);
  start.write('\x93NUMPY', 'latin1');
  start.writeUInt8(version, 6);
  start.writeUIntLE(length, 8, lengthBytes);
  return Buffer.concat([start, Buffer.from(`${header.padEnd(length - 1)}\n`), data]);
}

const headerOf = (descr: string, shape: string, order = 'False') =>
  `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': ${shape}, }`;

let count = 0;
async function reading(content: Uint8Array) {
  const file = path.join(work, `${count++}.npy`);
  fs.writeFileSync(file, content);
  return await readNpy(file);
}

async function refusal(content: Uint8Array): Promise<string> {
  const error = await reading(content).then(
    () => 'was read',
    (reason) => reason,
  );
  if (!(error instanceof AttentionError)) throw new Error(`no AttentionError: ${error}`);
  expect(error.message).toMatch(/^expected .* for `.*\.npy`, received /);
  return `${error.code}: ${error.message.replace(/ for `.*`/, '')}`;
}

test('a file written by NumPy 1.24: np.save("x.npy", np.array([[1, -2.5, 3e-45]], np.float32))', async () => {
  const hex =
    '934e554d50590100' +
    `7600${Buffer.from("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }").toString('hex')}` +
    `${'20'.repeat(58)}0a0000803f000020c002000000`;
  const { data, dims, type } = await reading(Buffer.from(hex, 'hex'));
  expect([dims, type]).toEqual([[1, 3], 'float32']);
  expect(data).toEqual(Float32Array.of(1, -2.5, 2 ** -148));
});

test.each([
  ['<f4', 'float32', floats(24)],
  ['<f2', 'float16', Uint16Array.from({ length: 24 }, (_, i) => 0x3c00 + i)],
  ['<V2', 'bfloat16', Uint16Array.from({ length: 24 }, (_, i) => 0x3f80 + i)],
  ['|V2', 'bfloat16', Uint16Array.from({ length: 24 }, (_, i) => 0x3f80 + i)],
] as const)('%s is %s, in every version', async (descr, type, values) => {
  for (const version of [1, 2, 3]) {
    const read = await reading(npy(headerOf(descr, '(2, 3, 4)'), bytesOf(values), version));
    expect(read).toEqual({ data: values, dims: [2, 3, 4], type });
  }
});

test.each([
  ['()', [], 1],
  ['(5,)', [5], 5],
  ['(0, 7)', [0, 7], 0],
  ['( 1 , 2 )', [1, 2], 2],
])('shape %s', async (shape, dims, size) => {
  expect(await reading(npy(headerOf('<f4', shape), bytesOf(floats(size))))).toMatchObject({ dims, data: floats(size) });
});

test('entries come in any order, with either quote, with or without the last comma', async () => {
  const header = `{"shape": (2,), 'descr': "<f4", 'fortran_order': False}`;
  expect((await reading(npy(header, bytesOf(floats(2))))).dims).toEqual([2]);
});

test.each([
  ['>f4', 'ERR_TYPE'],
  ['<f8', 'ERR_TYPE'],
  ['<i4', 'ERR_TYPE'],
  ['|b1', 'ERR_TYPE'],
  ['|O', 'ERR_TYPE'],
  ['constructor', 'ERR_TYPE'],
])('elements %s are refused by name', async (descr, code) => {
  const told = await refusal(npy(headerOf(descr, '(2,)'), Buffer.alloc(8)));
  expect(told).toBe(`${code}: expected elements '<f4', '<f2' or, for bfloat16, '<V2', received "${descr}"`);
});

test('Fortran order is refused by name', async () => {
  const told = await refusal(npy(headerOf('<f4', '(2, 1)', 'True'), Buffer.alloc(8)));
  expect(told).toBe('ERR_UNSUPPORTED: expected elements in C order, received Fortran order');
});

const good = npy(headerOf('<f4', '(2, 3)'), bytesOf(floats(6)));
const withByte = (index: number, value: number) => {
  const copy = Buffer.from(good);
  copy[index] = value;
  return copy;
};

test.each([
  ['an empty file', Buffer.alloc(0), /which begins with/],
  ['another kind of file', Buffer.from('PK\x03\x04 and so on, a zip'), /which begins with/],
  ['a text', Buffer.from('1.0 2.0\n'), /which begins with/],
  ['version 0.0', withByte(6, 0), /received version 0.0/],
  ['version 4.0', withByte(6, 4), /received version 4.0/],
  ['version 1.1', withByte(7, 1), /received version 1.1/],
  ['a header longer than the file', withByte(9, 0xff), /at least \d+ bytes, received a file of \d+/],
  ['a header of 4 GiB', Buffer.concat([withByte(6, 2).subarray(0, 8), Buffer.alloc(4, 0xff)]), /at least 4294967307/],
  ['no header', Buffer.concat([good.subarray(0, 8), Buffer.alloc(2), Buffer.alloc(9)]), /a header/],
  ['one element too few', good.subarray(0, -4), /24 bytes of elements for \[2, 3\], received 20/],
  ['one byte too few', good.subarray(0, -1), /received 23/],
  ['one byte too many', Buffer.concat([good, Buffer.alloc(1)]), /received 25/],
  ['two arrays', Buffer.concat([good, good]), /received \d+/],
])('%s is refused', async (_, content, message) => {
  expect(await refusal(content)).toMatch(message);
});

test('cut anywhere, a file is refused', async () => {
  for (let end = 0; end < good.length; end++) expect(await refusal(good.subarray(0, end))).toMatch(/^ERR_ARGUMENT/);
});

test.each([
  `{'descr': '<f4', 'fortran_order': False, }`,
  `{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'shape': (2,), }`,
  `{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': True, }`,
  `{'descr': '<f4', 'fortran_order': False, 'shape': (2)(2), }`,
  `{'descr': '<f4', 'fortran_order': False, 'shape': (2,,), }`,
  `{'descr': '<f4', 'fortran_order': False, 'shape': (02,), }`,
  `{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }`,
  `{'descr': '<f4', 'fortran_order': False, 'shape': [2], }`,
  `{'descr': '<f4', 'fortran_order': 0, 'shape': (2,), }`,
  `{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2,), }`,
  `{'descr': True, 'fortran_order': False, 'shape': (2,), }`,
  `{'descr': '<f4', 'fortran_order': '<f4', 'shape': (2,), }`,
  `{'descr': '<f4' 'fortran_order': False, 'shape': (2,), }`,
  `{'descr': '<f4', 'fortran_order': False, 'shape': (2,), } or so`,
  `__import__('os')`,
  '{',
  '}',
  '{}',
  '',
])('header %s is refused', async (header) => {
  expect(await refusal(npy(header, bytesOf(floats(2))))).toMatch(/^ERR_ARGUMENT: expected (a header|one 'shape')/);
});

test.each(['(99999999999999999999,)', '(4294967296, 4294967296)'])('shape %s overflows', async (shape) => {
  expect(await refusal(npy(headerOf('<f4', shape), Buffer.alloc(8)))).toMatch(/^ERR_SHAPE/);
});

test('a shape of petabytes is refused before anything is allocated', async () => {
  expect(await refusal(npy(headerOf('<f4', '(1125899906842624,)'), Buffer.alloc(8)))).toMatch(
    /^ERR_ARGUMENT.*bytes of/,
  );
});

test('what is not there, or is a folder, is the system’s error', async () => {
  await expect(readNpy(path.join(work, 'absent.npy'))).rejects.toMatchObject({ code: 'ENOENT' });
  await expect(readNpy(work)).rejects.toMatchObject({ code: 'EISDIR' });
});
