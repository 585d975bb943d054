// safetensors files: what the format allows is read to the last bit, and everything else is refused by name.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import fc from 'fast-check';

import { AttentionError } from '../lib';
import { Safetensors } from '../lib/files/safetensors';

let work: string;
beforeAll(() => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'safetensors-'));
});
afterAll(() => fs.rmSync(work, { recursive: true }));

/** A file of a header, as text or as a value, and the bytes of its tensors. */
function file(header: unknown, data: Uint8Array = Buffer.alloc(0), length?: bigint): Buffer {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(length ?? BigInt(text.length));
  return Buffer.concat([start, text, data]);
}

let count = 0;
async function using<Result>(content: Uint8Array, use: (tensors: Safetensors) => Promise<Result>): Promise<Result> {
  const name = path.join(work, `${count++}.safetensors`);
  fs.writeFileSync(name, content);
  return await Safetensors.with(name, use);
}

async function refusal(content: Uint8Array, name?: string): Promise<string> {
  const use = async (tensors: Safetensors) => (name === undefined ? undefined : await tensors.read(name));
  const error = await using(content, use).then(
    () => 'was read',
    (reason) => reason,
  );
  if (!(error instanceof AttentionError)) throw new Error(`no AttentionError: ${error}`);
  expect(error.message).toMatch(/^expected .* for `.*`, received /);
  return `${error.code} ${error.argument.replace(/.*\//, '')}: ${error.message}`;
}

const entry = (dtype: string, shape: readonly number[], begin: number, end: number) => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

const floats = Float32Array.of(1, -2.5, 1e-45, Number.POSITIVE_INFINITY);
const halves = Uint16Array.of(0x3c00, 0xbc01);
const data = Buffer.concat([Buffer.from(floats.buffer), Buffer.from(halves.buffer), Buffer.from(halves.buffer)]);
const header = {
  __metadata__: { format: 'pt', by: 'somebody' },
  // Not in the order of the data, as the header may be.
  late: entry('BF16', [1, 2], 20, 24),
  q: entry('F32', [2, 2], 0, 16),
  half: entry('F16', [2], 16, 20),
};

test('tensors of all types that can be read, in any order of the header', async () => {
  await using(file(header, data), async (tensors) => {
    expect([...tensors.entries.keys()]).toEqual(['late', 'q', 'half']);
    expect(tensors.entries.get('late')).toEqual({ dtype: 'BF16', dims: [1, 2], begin: 20, end: 24 });
    expect(Object.fromEntries(tensors.metadata)).toEqual(header.__metadata__);
    expect(await tensors.read('q')).toEqual({ data: floats, dims: [2, 2], type: 'float32' });
    expect(await tensors.read('half')).toEqual({ data: halves, dims: [2], type: 'float16' });
    expect(await tensors.read('late')).toEqual({ data: halves, dims: [1, 2], type: 'bfloat16' });
  });
});

test('a padded header, tensors of no elements and of no dims, names of any kind', async () => {
  const odd = {
    '': entry('F32', [], 0, 4),
    __proto__x: entry('F32', [0, 5], 4, 4),
    'a.b/c"d\\é鯨': entry('F32', [1], 4, 8),
  };
  await using(file(`${JSON.stringify(odd)}   `, Buffer.from(floats.buffer).subarray(0, 8)), async (tensors) => {
    expect((await tensors.read('')).dims).toEqual([]);
    expect((await tensors.read('__proto__x')).data).toHaveLength(0);
    expect((await tensors.read('a.b/c"d\\é鯨')).data).toEqual(Float32Array.of(-2.5));
  });
  await using(file('{}'), async ({ entries }) => expect(entries.size).toBe(0));
  const proto = `{"__proto__": ${JSON.stringify(entry('F32', [1], 0, 4))}}`;
  await using(file(proto, Buffer.alloc(4)), async (tensors) =>
    expect((await tensors.read('__proto__')).dims).toEqual([1]),
  );
});

test('other types are listed, and refused by name when read', async () => {
  const content = file({ ids: entry('I64', [2], 0, 16), tiny: entry('F4', [3], 16, 18) }, Buffer.alloc(18));
  await using(content, async ({ entries }) => expect([...entries.keys()]).toEqual(['ids', 'tiny']));
  expect(await refusal(content, 'ids')).toBe(
    'ERR_TYPE ids: expected elements F32, F16 or BF16 for `ids`, received I64',
  );
  expect(await refusal(content, 'tiny')).toMatch(/^ERR_TYPE tiny: .*received F4$/);
});

test('a name that is not there is refused with those that are', async () => {
  expect(await refusal(file(header, data), 'k')).toMatch(/^ERR_ARGUMENT k: .*: late, q, half for `k`, received "k"$/);
  expect(await refusal(file(header, data), '__metadata__')).toMatch(/^ERR_ARGUMENT __metadata__: /);
  expect(await refusal(file(header, data), 'constructor')).toMatch(/^ERR_ARGUMENT constructor: /);
});

const one = (change: object, bytes = 4) => file({ x: { ...entry('F32', [1], 0, 4), ...change } }, Buffer.alloc(bytes));

test.each<[string, Buffer, RegExp]>([
  ['an empty file', Buffer.alloc(0), /at least 8 bytes .*received a file of 0/],
  ['seven bytes', Buffer.alloc(7), /at least 8 bytes/],
  ['a header of length 0', file(''), /a header in JSON/],
  ['a header longer than the file', file('{}', Buffer.alloc(0), 3n), /at least 11 bytes/],
  ['a header longer than any', file('{}', Buffer.alloc(0), 100_000_001n), /at most 100000000 bytes/],
  ['a length that overflows', file('{}', Buffer.alloc(0), 2n ** 64n - 1n), /received 18446744073709551615n/],
  ['a length beyond 2^53', file('{}', Buffer.alloc(0), 2n ** 53n + 1n), /at most/],
  ['no UTF-8', Buffer.concat([file('{"\xff": 1}').subarray(0, 10), Buffer.from([0xff, 0xff])]), /bytes|UTF-8/],
  ['no JSON', file('{x: 1}'), /a header in JSON/],
  ['a byte order mark', file('\ufeff{}'), /a header in JSON/],
  ['leading space', file(' {}'), /a header that is an object/],
  ['a list', file('[]'), /a header that is an object/],
  ['null', file('null'), /a header that is an object/],
  ['the same name twice', file(`{"x": ${JSON.stringify(entry('F32', [1], 0, 4))}, "\\u0078": 1}`), /"x" twice/],
  [
    'the same key twice within a tensor',
    file('{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "shape": [1]}}', Buffer.alloc(4)),
    /"shape" twice/,
  ],
  ['a tensor that is no object', file({ x: 3 }), /dtype, shape and data_offsets of "x"/],
  ['a tensor that is nested deeply', file(`{"x": ${'['.repeat(1e5)}${']'.repeat(1e5)}}`), /dtype, shape/],
  ['a tensor with more to it', one({ stride: 3 }), /and nothing else/],
  ['no type', one({ dtype: 3 }), /dtype, shape/],
  ['no offsets', one({ data_offsets: null }), /dtype, shape/],
  ['one offset', one({ data_offsets: [4] }), /dtype, shape/],
  ['offsets that are no numbers', one({ data_offsets: ['0', '4'] }), /byte offsets of "x"/],
  ['offsets below zero', one({ data_offsets: [-4, 0] }), /byte offsets of "x"/],
  ['offsets between bytes', one({ data_offsets: [0.5, 4.5] }), /byte offsets of "x"/],
  ['offsets beyond 2^53', one({ data_offsets: [0, 2 ** 60] }), /byte offsets of "x"/],
  ['offsets that go back', one({ data_offsets: [4, 0] }), /byte offsets of "x"/],
  ['more bytes than the shape has', one({ shape: [2] }), /8 bytes for "x", F32 \[2\] .*received 4/],
  ['a shape that overflows', one({ shape: [2 ** 40, 2 ** 40] }), /^ERR_SHAPE x/],
  ['a shape below zero', one({ shape: [-1] }), /^ERR_SHAPE x/],
  ['a shape that is no list', one({ shape: '1' }), /^ERR_SHAPE x/],
  ['data beyond the file', file({ x: entry('F32', [2], 0, 8) }, Buffer.alloc(4)), /8 bytes of data .*received 4/],
  ['data that nobody owns at the end', one({}, 5), /4 bytes of data .*received 5/],
  ['a gap', file({ x: entry('F32', [1], 4, 8) }, Buffer.alloc(8)), /from byte 0 on/],
  [
    'tensors that overlap',
    file({ x: entry('F32', [2], 0, 8), y: entry('F32', [2], 4, 12) }, Buffer.alloc(12)),
    /"y" from byte 8 on/,
  ],
  ['metadata that is no object', file({ __metadata__: 'pt' }), /texts in __metadata__/],
  ['metadata that is no text', file({ __metadata__: { a: 1 } }), /texts in __metadata__/],
])('%s is refused', async (_, content, message) => {
  expect(await refusal(content)).toMatch(message);
});

test('cut anywhere, a file is refused', async () => {
  const whole = file(header, data);
  for (let end = 0; end < whole.length; end++) expect(await refusal(whole.subarray(0, end))).toMatch(/^ERR_ARGUMENT/);
});

test('whatever byte is changed, it is read or refused in order', async () => {
  const whole = file(header, data);
  const change = fc.tuple(fc.nat(whole.length - 1), fc.nat(255));
  await fc.assert(
    fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 3 }), async (changes) => {
      const content = Buffer.from(whole);
      for (const [index, value] of changes) content[index] = value;
      const readAll = async (tensors: Safetensors) => {
        for (const name of tensors.entries.keys()) await tensors.read(name);
      };
      const error = await using(content, readAll).catch((reason) => reason);
      return error === undefined || error instanceof AttentionError;
    }),
    { seed: 1, numRuns: 500 },
  );
});
