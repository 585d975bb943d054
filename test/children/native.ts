/**
 * Calls the addon with operands and numbers that lib would never pass. Whatever they are, a call gives undefined, a
 * failure's text, a promise of either, or throws; the process lives, and no memory beside an operand is written.
 */
import { addon } from '../../lib/native';
import { uniform } from '../data';
import { journal } from './journal';

// biome-ignore lint/suspicious/noExplicitAny: nothing here has a type
type Any = any;

const next = uniform(20240607);
const pick = <T>(list: readonly T[]): T => list[Math.min(Math.floor(next() * list.length), list.length - 1)];

const sentinel = 0xa5;
const margin = 64;

/** Memory handed out, with what lies around it. */
const rooms: { readonly bytes: Uint8Array; readonly size: number }[] = [];

/** A typed array between two margins that must stay as they are. */
function placed(Kind: Any, length: number): Any {
  const size = Kind.BYTES_PER_ELEMENT * length;
  const bytes = new Uint8Array(2 * margin + Math.ceil(size / 8) * 8).fill(sentinel);
  bytes.fill(0, margin, margin + size);
  rooms.push({ bytes, size });
  return new Kind(bytes.buffer, margin, length);
}

function checkRooms(what: string): void {
  for (const { bytes, size } of rooms) {
    const written = bytes.some((byte, i) => (i < margin || i >= margin + size) && byte !== sentinel);
    // A detached one has no bytes left to look at.
    if (bytes.length > 0 && written) throw new Error(`memory beside an operand was written by ${what}`);
  }
  rooms.length = 0;
}

const detached = (): Float32Array => {
  const array = new Float32Array(600);
  structuredClone(array.buffer, { transfer: [array.buffer] });
  return array;
};

const throwing = (): Any => {
  throw new Error('thrown by an accessor');
};

/** An array whose element at 1 does something when it is read. */
const trapped = (list: readonly unknown[], act: () => unknown): unknown =>
  Object.defineProperty([...list], Math.min(1, list.length), { get: act, enumerable: true, configurable: true });

const wrongOperands: readonly ((right: Any) => unknown)[] = [
  () => null,
  () => undefined,
  () => 5,
  () => 'text',
  () => ({}),
  () => [],
  () => [null],
  () => Symbol('operand'),
  () => 10n,
  () => new DataView(new ArrayBuffer(8)),
  () => new ArrayBuffer(4096),
  () => new Proxy(new Float32Array(600), {}),
  () => detached(),
  () => placed(Float32Array, 0),
  () => placed(Float32Array, 1),
  () => placed(Float32Array, 600),
  () => placed(Uint16Array, 600),
  () => placed(Uint8Array, 600),
  () => placed(Int32Array, 1),
  () => placed(Int32Array, 2).fill(-1),
  () => placed(Int32Array, 2).fill(0x7fffffff),
  () => placed(Float64Array, 600).fill(NaN),
  () => placed(Float64Array, 600).fill(2 ** 53),
  () => new BigInt64Array(600),
  // Not of one that an earlier change detached.
  (right) =>
    ArrayBuffer.isView(right) && 'subarray' in right && right.byteLength > 0 ? (right as Any).subarray(1) : right,
  (right) => (Array.isArray(right) ? right.slice(1) : right),
  (right) => (Array.isArray(right) ? [...right, ...right] : right),
  (right) => (Array.isArray(right) ? trapped(right, throwing) : right),
  (right) => (Array.isArray(right) ? trapped(right, detached) : right),
  (right) => (Array.isArray(right) ? new Array(2 ** 32 - 1) : right),
];

const wrongNumbers = [
  NaN,
  Infinity,
  -Infinity,
  -1,
  -0.5,
  0,
  0.5,
  1,
  2,
  3,
  4,
  5,
  64,
  1000,
  2 ** 31,
  2 ** 32,
  2 ** 48,
  2 ** 53,
  -(2 ** 53),
  1e300,
  -1e300,
  5e-324,
];

const wrongRest: readonly (readonly unknown[])[] = [
  [
    1,
    2,
    0,
    -1,
    NaN,
    Infinity,
    2 ** 53,
    -(2 ** 53),
    'x',
    null,
    undefined,
    {},
    { valueOf: throwing },
    Symbol('threads'),
    1n,
  ],
  ['', 'scalar', 'avx2', 'abacus', 'x'.repeat(100_000), 5, null, undefined, { toString: throwing }, Symbol('isa')],
  [true, false, false, undefined, 'yes', {}, { valueOf: throwing }],
  [null, undefined, new Int32Array(1), new Int32Array(0), new Float32Array(1), {}, [], Int32Array.of(1), 7],
];

const cache = (...shape: number[]): Any => {
  const [heads, headDim, valueDim] = shape;
  const made = new addon.KvCache(heads, headDim, valueDim, 0);
  made.append(
    [new Float32Array(heads * 5 * headDim), new Float32Array(heads * 5 * valueDim)],
    Float64Array.of(0, 5, 0),
  );
  return made;
};
const disposed = (() => {
  const made = cache(2, 4, 3);
  made.dispose();
  return made;
})();
const caches = [
  cache(2, 4, 3),
  cache(2, 4, 3),
  cache(2, 4, 3),
  cache(1, 4, 3),
  disposed,
  Object.create(addon.KvCache.prototype),
  Object.setPrototypeOf(new Map(), addon.KvCache.prototype),
  new Proxy(cache(2, 4, 3), {}),
];

type Call = { readonly operands: unknown[]; readonly numbers: number[] };

/** Calls that are right, or nearly so. */
const calls: Readonly<Record<string, () => Call>> = {
  convert: () => ({ operands: [placed(Float32Array, 30), placed(Uint16Array, 30)], numbers: [0, pick([1, 2]), 30] }),
  read: () => ({ operands: [placed(Float32Array, 50), placed(Float32Array, 1)], numbers: [50] }),
  matmul: () => ({
    operands: [
      placed(Float32Array, 24),
      placed(Float32Array, 20),
      placed(Float32Array, 30),
      Float64Array.of(0, 0, 12, 0),
    ],
    numbers: [0, 0, 0, 2, 3, 5, 4, pick([0, 1]), pick([0, 1])],
  }),
  linalg: () => ({
    operands: [
      placed(Float64Array, 32),
      placed(Float64Array, 40),
      pick([null, placed(Float64Array, 32)]),
      pick([null, placed(Float64Array, 32)]),
      placed(Float64Array, 40),
    ],
    numbers: [pick([0, 1, 2, 3]), 2, 4, 4, pick([4, 5]), pick([0, 1]), pick([0, 1])],
  }),
  lowrank: () => ({
    operands: [
      placed(Float32Array, 96),
      placed(Float32Array, 80),
      placed(Float64Array, 16),
      placed(Float64Array, 8),
      placed(Int32Array, 8),
      ...pick([
        [null, null],
        [placed(Float32Array, 48), placed(Float32Array, 80)],
      ]),
    ],
    numbers: [0, 0, 2, 4, 2, 3, 5, 4, pick([0, 1]), 0.5, pick([0, 1]), 2, pick([2, 3]), 1, 7, pick([0, 0.5])],
  }),
  merge: () => ({
    operands: Array.from({ length: 6 }, (_, i) => placed(Float32Array, i % 2 === 0 ? 24 : 6)),
    numbers: [0, 2, 1, 2, 3, 4, pick([0, 1])],
  }),
  full: () => ({
    operands: [
      placed(Float32Array, 96),
      placed(Float32Array, 80),
      placed(Float32Array, 60),
      placed(Float32Array, 72),
      pick([null, placed(Float32Array, 24)]),
      pick([null, placed(Float32Array, 120), placed(Uint8Array, 120)]),
      pick([null, placed(Float32Array, 4)]),
      pick([null, Int32Array.of(3, 1)]),
      pick([null, Int32Array.of(5, 0)]),
    ],
    numbers: [
      0,
      0,
      4,
      0.5,
      pick([0, 30]),
      -1,
      pick([-1, 0]),
      pick([0, 0, 1, 2]),
      15,
      5,
      0,
      2,
      2,
      3,
      5,
      4,
      3,
      pick([0, 1]),
      pick([NaN, 2]),
      60,
    ],
  }),
  cached: () => ({
    operands: [
      [caches[0], caches[1]],
      [placed(Float32Array, 32), placed(Float32Array, 16)],
      [placed(Float32Array, 24), placed(Float32Array, 12)],
      pick([null, [placed(Float32Array, 8), placed(Float32Array, 4)]]),
      pick([null, [placed(Float32Array, 40), placed(Float32Array, 40)]]),
      pick([null, placed(Float32Array, 4)]),
    ],
    numbers: [0, 0, 4, 0.5, 0, -1, 0, pick([0, 2]), 10, 5, 0, NaN, 2, 1],
  }),
};

function spoil(call: Call): Call {
  const { operands, numbers } = call;
  for (let changes = Math.floor(next() * 4); changes > 0; changes--) {
    const at = Math.floor(next() * (operands.length + numbers.length));
    if (at >= operands.length) {
      numbers[at - operands.length] = pick(wrongNumbers);
    } else if (Array.isArray(operands[at]) && next() < 0.7) {
      const list = [...(operands[at] as unknown[])];
      const item = Math.floor(next() * list.length);
      list[item] = at === 0 ? pick(caches) : pick(wrongOperands)(list[item]);
      operands[at] = list;
    } else {
      operands[at] = pick(wrongOperands)(operands[at]);
    }
  }
  if (next() < 0.05) operands.length = Math.floor(next() * operands.length);
  if (next() < 0.05) numbers.length = Math.floor(next() * numbers.length);
  return call;
}

const show = (value: unknown): string => {
  if (ArrayBuffer.isView(value)) return `${value.constructor.name}(${value.byteLength})`;
  // Not by reading elements that throw.
  if (Array.isArray(value))
    return `[${Object.values(Object.getOwnPropertyDescriptors(value))
      .slice(0, 12)
      .map((each) => show(each.value))
      .join(' ')}]`;
  return typeof value === 'object' && value !== null ? 'object' : String(value).slice(0, 40);
};

const counts = { done: 0, refused: 0, thrown: 0 };

async function attempt(what: string, run: () => unknown): Promise<void> {
  journal(what);
  let outcome: unknown;
  try {
    outcome = await run();
  } catch (error) {
    if (!(error instanceof Error)) throw new Error(`${what} threw ${String(error)}`);
    counts.thrown++;
    return checkRooms(what);
  }
  if (outcome !== undefined && !(typeof outcome === 'string' && /^ERR_[A-Z]+:\w*:/.test(outcome)))
    throw new Error(`${what} gave ${String(outcome)}`);
  if (outcome === undefined) counts.done++;
  else counts.refused++;
  checkRooms(what);
}

/** Every single position, with every wrong thing. */
async function oneByOne(name: string): Promise<void> {
  const op = (addon as Any)[name] as (...args: unknown[]) => unknown;
  const { operands, numbers } = calls[name]();
  const rest = [1, '', false, null];
  const run = (o: unknown, n: unknown, r: readonly unknown[] = rest) =>
    attempt(`${name} ${show(o)} ${show(n)} ${show(r)}`, () => op(o, n, ...r));
  for (let i = 0; i < operands.length; i++) {
    for (const wrong of wrongOperands) await run(operands.with(i, wrong(operands[i])), Float64Array.from(numbers));
  }
  for (let i = 0; i < numbers.length; i++) {
    for (const wrong of wrongNumbers) await run(operands, Float64Array.from(numbers.with(i, wrong)));
  }
  for (let i = 0; i < rest.length; i++) {
    for (const wrong of wrongRest[i])
      await run(operands, Float64Array.from(numbers), (rest as unknown[]).with(i, wrong));
  }
  for (const wrong of wrongOperands) {
    await run(wrong(operands), Float64Array.from(numbers));
    await run(operands, wrong(Float64Array.from(numbers)));
  }
  for (let count = 0; count < 6; count++) {
    await attempt(`${name} of ${count} arguments`, () =>
      op(...[operands, Float64Array.from(numbers), ...rest].slice(0, count)),
    );
  }
}

async function methods(): Promise<void> {
  const Kv = addon.KvCache as Any;
  await attempt('KvCache()', () => void Kv(1, 2, 3, 0));
  const values = [...wrongNumbers, undefined, null, '2', {}, { valueOf: throwing }, 2n, Symbol('n'), disposed];
  for (let i = 0; i < 4; i++) {
    for (const value of values) {
      await attempt(`new KvCache ${i} ${show(value)}`, () => {
        const made = new Kv(...[2, 4, 3, 0].with(i, value as Any));
        made.fork();
        made.truncate(3);
        made.bytes();
        made.sharedBytes();
        // Extents that were accepted must serve: an empty append of none, an attend of one row.
        made.append([new Float32Array(0), new Float32Array(0)], Float64Array.of(0, 0, 0));
        const rows = [[made], [new Float32Array(16)], [new Float32Array(12)], null, null, null];
        return addon.cached(rows, Float64Array.of(0, 0, 4, 1, 0, -1, -1, 0, 0, 0, 0, NaN, 1), 1, '', false, null);
      });
    }
  }
  for (const pretender of caches) {
    await attempt('fork', () => void new Kv(pretender));
    for (const name of ['append', 'truncate', 'fork', 'dispose', 'bytes', 'sharedBytes']) {
      if (caches.indexOf(pretender) < 4) continue;
      await attempt(
        `${name} of a pretender`,
        () => void (Kv.prototype[name] as Any).call(pretender, [], new Float64Array(3)),
      );
    }
  }
  for (const value of values) {
    const made = cache(2, 4, 3);
    await attempt(`truncate ${show(value)}`, () => void made.truncate(value));
    for (let i = 0; i < 3; i++) {
      await attempt(`append ${i} ${show(value)}`, () => {
        const numbers = [0, 2, 0].with(i, value as Any);
        if (typeof value === 'number' || value === undefined)
          return made.append([placed(Float32Array, 16), placed(Float32Array, 12)], Float64Array.from(numbers));
        return made.append([placed(Float32Array, 16), placed(Float32Array, 12)], numbers);
      });
    }
    for (const wrong of wrongOperands)
      await attempt(`append`, () => made.append([wrong([]), placed(Float32Array, 12)], Float64Array.of(0, 2, 0)));
  }
}

async function main(): Promise<void> {
  for (const name of Object.keys(calls)) await oneByOne(name);
  await methods();
  const names = Object.keys(calls);
  for (let i = 0; i < 30_000; i++) {
    const name = pick(names);
    const { operands, numbers } = spoil(calls[name]());
    const rest = [1, '', false, null].map((right, at) => (next() < 0.1 ? pick(wrongRest[at]) : right));
    if (next() < 0.2) rest[2] = true;
    await attempt(`${i}: ${name} ${show(operands)} ${show(numbers)} ${show(rest)}`, () =>
      (addon as Any)[name](operands, Float64Array.from(numbers), ...rest),
    );
  }
  console.log(JSON.stringify(counts));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
