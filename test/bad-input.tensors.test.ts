import { cast, randomNormal, type Tensor, tensor, zeros } from '../lib';
import { calls, entries } from './entries';
import { expectSameBits } from './full-run';
import { Faults, faultOf, type Refusal } from './refusal';
import { detached, primitives, rightTensors, wrongTensors } from './wrong-tensors';

const places = entries.flatMap((entry) => Object.keys(entry.tensors).map((name) => ({ entry, name })));

describe.each(places)('$entry.name: $name', ({ entry, name }) => {
  const right = entry.tensors[name];

  test('wrong in every way', async () => {
    const faults = new Faults();
    for (const { way, value, ...wanted } of wrongTensors(right, entry.rank)) {
      const call = () => entry.call({ ...entry.tensors, [name]: value });
      faults.add(way, await faultOf(call, entry.asynchronous, { argument: name, ...wanted }));
    }
    faults.none();
  });

  test('right in every form', async () => {
    const wanted = await entry.call(entry.tensors);
    for (const { value } of rightTensors(right)) {
      const found = await entry.call({ ...entry.tensors, [name]: value });
      expect(found).toEqual(wanted);
    }
  });
});

describe('16-bit tensors', () => {
  test.each(['float16', 'bfloat16'] as const)('%s data in the wrong array', async (type) => {
    const faults = new Faults();
    for (const { entry, name } of places) {
      const { dims, data } = entry.tensors[name];
      const asBits = { dims, type, data: new Uint16Array(data.length) };
      const refused = (value: unknown, wanted: Omit<Refusal, 'argument'>) =>
        faultOf(() => entry.call({ ...entry.tensors, [name]: value }), entry.asynchronous, {
          argument: name,
          ...wanted,
        });
      for (const Kind of [Float32Array, Int16Array, Uint8Array]) {
        const received = `${Kind.name}(${data.length})`;
        faults.add(
          `${entry.name} ${name} ${received}`,
          await refused({ ...asBits, data: new Kind(data.length) }, { code: 'ERR_TYPE', received }),
        );
      }
      const short = { ...asBits, data: asBits.data.subarray(1) };
      faults.add(`${entry.name} ${name}`, await refused(short, { code: 'ERR_SHAPE', received: `${data.length - 1}` }));
      const shared = { ...asBits, data: new Uint16Array(new SharedArrayBuffer(2 * data.length)) };
      faults.add(`${entry.name} ${name}`, await refused(shared, { code: 'ERR_TYPE', received: 'a SharedArrayBuffer' }));
    }
    faults.none();
  });
});

/** Calls whose tensors are right one by one and do not fit each other. */
describe('tensors that do not fit', () => {
  const of = (...dims: number[]): Tensor => zeros(dims);
  type Misfits = readonly [Record<string, unknown>, Omit<Refusal, 'received'>][];
  /** Keys and values [1, 2, 5, 8] and [1, 2, 5, 6] to be kept, and queries [1, 4, 2, 8] of what is. */
  const keyValue: Misfits = [
    [{ key: of(2, 2, 5, 8) }, { code: 'ERR_SHAPE', argument: 'key' }],
    [{ key: of(1, 3, 5, 8) }, { code: 'ERR_SHAPE', argument: 'key' }],
    [{ key: of(1, 4, 5, 8) }, { code: 'ERR_SHAPE', argument: 'key' }],
    [{ key: of(1, 2, 5, 6) }, { code: 'ERR_SHAPE', argument: 'key' }],
    [{ key: of(1, 2, 4, 8) }, { code: 'ERR_SHAPE', argument: 'value' }],
    [{ value: of(1, 2, 6, 6) }, { code: 'ERR_SHAPE', argument: 'value' }],
    [{ value: of(1, 2, 5, 8) }, { code: 'ERR_SHAPE', argument: 'value' }],
    [{ value: zeros([1, 2, 5, 6], 'float16') }, { code: 'ERR_TYPE', argument: 'value' }],
  ];
  const query: Misfits = [
    [{ query: of(2, 4, 2, 8) }, { code: 'ERR_SHAPE', argument: 'query' }],
    [{ query: of(1, 3, 2, 8) }, { code: 'ERR_SHAPE', argument: 'query' }],
    [{ query: of(1, 0, 2, 8) }, { code: 'ERR_SHAPE', argument: 'query' }],
    [{ query: of(1, 4, 2, 6) }, { code: 'ERR_SHAPE', argument: 'query' }],
  ];
  const queries: Misfits = [
    [{ 'items[0].query': of(1, 3, 2, 8) }, { code: 'ERR_SHAPE', argument: 'items[0].query' }],
    [{ 'items[1].query': of(1, 2, 2, 8) }, { code: 'ERR_SHAPE', argument: 'items[1].query' }],
    [{ 'items[1].query': zeros([1, 4, 2, 8], 'float16') }, { code: 'ERR_TYPE', argument: 'items[1].query' }],
  ];
  const qkv: Misfits = [
    [{ q: of(3, 4, 3, 8) }, { code: 'ERR_SHAPE', argument: 'k' }],
    [{ q: of(2, 4, 3, 7) }, { code: 'ERR_SHAPE', argument: 'k' }],
    [{ q: of(2, 3, 3, 8) }, { code: 'ERR_SHAPE', argument: 'k' }],
    [{ q: of(2, 0, 3, 8) }, { code: 'ERR_SHAPE', argument: 'q' }],
    [{ q: of(2, 4, 3, 0) }, { code: 'ERR_SHAPE', argument: 'q' }],
    [{ k: of(2, 0, 5, 8) }, { code: 'ERR_SHAPE', argument: 'k' }],
    [{ k: of(2, 8, 5, 8) }, { code: 'ERR_SHAPE', argument: 'k' }],
    [{ k: of(2, 2, 6, 8) }, { code: 'ERR_SHAPE', argument: 'v' }],
    [{ v: of(1, 2, 5, 6) }, { code: 'ERR_SHAPE', argument: 'v' }],
    [{ v: of(2, 1, 5, 6) }, { code: 'ERR_SHAPE', argument: 'v' }],
    [{ v: of(2, 2, 4, 6) }, { code: 'ERR_SHAPE', argument: 'v' }],
    [{ v: of(2, 2, 5, 0) }, { code: 'ERR_SHAPE', argument: 'v' }],
    [{ v: zeros([2, 2, 5, 6], 'float16') }, { code: 'ERR_TYPE', argument: 'v' }],
    [{ k: zeros([2, 2, 5, 8], 'bfloat16') }, { code: 'ERR_TYPE', argument: 'v' }],
  ];
  const misfits: Readonly<Record<string, Misfits>> = {
    attention: qkv,
    nystromAttention: qkv,
    matmul: [
      [{ a: of(2, 3, 5) }, { code: 'ERR_SHAPE', argument: 'b' }],
      [{ b: of(5, 4) }, { code: 'ERR_SHAPE', argument: 'b' }],
      [{ b: of(3, 4, 5) }, { code: 'ERR_SHAPE', argument: 'b' }],
      [{ a: of(4) }, { code: 'ERR_SHAPE', argument: 'a' }],
      [{ b: of(4) }, { code: 'ERR_SHAPE', argument: 'b' }],
      [{ b: of() }, { code: 'ERR_SHAPE', argument: 'b' }],
      [
        { a: of(2 ** 40, 0), b: of(0, 2 ** 40) },
        { code: 'ERR_MEMORY', argument: 'out' },
      ],
      [
        { a: of(2 ** 31, 1, 0), b: of(0, 1) },
        { code: 'ERR_MEMORY', argument: 'out' },
      ],
    ],
    mergeAttention: [
      [{ 'parts[1].output': of(1, 2, 3, 5) }, { code: 'ERR_SHAPE', argument: 'parts[1].output' }],
      [{ 'parts[1].output': of(1, 3, 2, 4) }, { code: 'ERR_SHAPE', argument: 'parts[1].output' }],
      [{ 'parts[1].output': zeros([1, 2, 3, 4], 'float16') }, { code: 'ERR_TYPE', argument: 'parts[1].output' }],
      [{ 'parts[1].lse': of(1, 3, 2) }, { code: 'ERR_SHAPE', argument: 'parts[1].lse' }],
      [{ 'parts[0].lse': zeros([1, 2, 3], 'float16') }, { code: 'ERR_TYPE', argument: 'parts[0].lse' }],
    ],
    attentionFactors: [
      [{ q: of(3, 4, 3, 8) }, { code: 'ERR_SHAPE', argument: 'k' }],
      [{ q: of(2, 3, 3, 8) }, { code: 'ERR_SHAPE', argument: 'k' }],
      [{ q: of(2, 4, 3, 7) }, { code: 'ERR_SHAPE', argument: 'k' }],
      [{ q: of(2, 4, 0, 8) }, { code: 'ERR_SHAPE', argument: 'q' }],
      [{ k: of(2, 2, 0, 8) }, { code: 'ERR_SHAPE', argument: 'k' }],
      [{ k: of(2, 2, 1, 8) }, { code: 'ERR_ARGUMENT', argument: 'rank' }],
    ],
    'KvCache.append': keyValue,
    'KvCache.attend': query,
    linformerAttention: [
      [{ q: of(3, 4, 3, 8) }, { code: 'ERR_SHAPE', argument: 'k' }],
      [{ k: of(2, 2, 6, 8) }, { code: 'ERR_SHAPE', argument: 'v' }],
      [
        { k: of(2, 2, 8, 8), v: of(2, 2, 8, 6) },
        { code: 'ERR_SHAPE', argument: 'k' },
      ],
      [{ keyProjection: of(3, 4) }, { code: 'ERR_SHAPE', argument: 'k' }],
      [{ keyProjection: of(7) }, { code: 'ERR_SHAPE', argument: 'keyProjection' }],
      [{ keyProjection: of(1, 2, 3, 7) }, { code: 'ERR_SHAPE', argument: 'keyProjection' }],
      [{ keyProjection: of(4, 3, 7) }, { code: 'ERR_SHAPE', argument: 'keyProjection' }],
      [{ keyProjection: of(1, 3, 7) }, { code: 'ERR_SHAPE', argument: 'keyProjection' }],
      [{ keyProjection: of(0, 7) }, { code: 'ERR_SHAPE', argument: 'keyProjection' }],
      [{ keyProjection: of(3, 0) }, { code: 'ERR_SHAPE', argument: 'keyProjection' }],
    ],
    linearAttention: qkv,
    'LinearState.append': keyValue,
    'LinearState.attend': query,
    linearCka: [[{ y: of(6, 2) }, { code: 'ERR_SHAPE', argument: 'y' }]],
    principalAngles: [[{ y: of(6, 2) }, { code: 'ERR_SHAPE', argument: 'y' }]],
    approximationError: [[{ exact: of(4, 3) }, { code: 'ERR_SHAPE', argument: 'exact' }]],
    attentionRowKl: [[{ approximation: of(4, 3) }, { code: 'ERR_SHAPE', argument: 'approximation' }]],
    'LinformerState.append': [
      ...keyValue,
      [
        { key: of(1, 2, 6, 8), value: of(1, 2, 6, 6) },
        { code: 'ERR_MEMORY', argument: 'key' },
      ],
    ],
    'LinformerState.attend': query,
    attendBatch: queries,
    attendBatchWithLse: queries,
  };
  const cases = Object.entries(misfits).flatMap(([name, rows]) =>
    entries
      .filter((entry) => entry.name === name || entry.name === `${name}Sync`)
      .map((entry) => ({ name: entry.name, entry, rows })),
  );

  test.each(cases)('$name', async ({ entry, rows }) => {
    const faults = new Faults();
    for (const [given, wanted] of rows) {
      const what = Object.entries(given).map(([name, value]) => `${name} [${(value as Tensor).dims}]`);
      const call = () => entry.call({ ...entry.tensors, ...given });
      faults.add(what.join(), await faultOf(call, entry.asynchronous, wanted));
    }
    faults.none();
  });

  test('every table above has its functions', () => {
    expect(new Set(cases.map((row) => row.name.replace(/Sync$/, '')))).toEqual(new Set(Object.keys(misfits)));
  });
});

describe('memory that goes away after it was checked, while the rest is read', () => {
  test.each(calls)('$name', async ({ name, call, tensors, outDims, asynchronous }) => {
    const [first, right] = Object.entries(tensors)[0];
    const data = Float32Array.from(right.data);
    const out = zeros(outDims as number[]);
    const trap = {
      ...out,
      get data() {
        detached(data);
        return out.data;
      },
    };
    const refused = () => call({ ...tensors, [first]: { ...right, data } }, { out: trap });
    const argument = name.startsWith('merge') ? 'parts' : first;
    const received = 'an array that changed meanwhile';
    expect(await faultOf(refused, asynchronous, { code: 'ERR_ARGUMENT', argument, received })).toBeUndefined();
  });
});

describe('making tensors', () => {
  // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
  type Loose = (...args: any[]) => unknown;
  const makers = {
    tensor: (dims: unknown) => (tensor as Loose)(new Float32Array(6), dims),
    zeros: zeros as Loose,
    randomNormal: randomNormal as Loose,
  };

  test.each(Object.entries(makers))('%s: wrong dims', async (_name, make) => {
    const faults = new Faults();
    const wrong = wrongTensors({ data: new Float32Array(6), dims: [2, 3], type: 'float32' }, undefined);
    for (const { way, value, code } of wrong.filter(({ way }) => way.startsWith('dims '))) {
      const { dims } = value as Tensor;
      // Right by themselves; only the data says otherwise.
      if (/none of what|zero beside|larger than/.test(way)) continue;
      const unread = way === 'dims a revoked proxy' || code === 'ERR_SHAPE';
      faults.add(way, await faultOf(() => make(dims), false, { code: unread ? 'ERR_SHAPE' : code, argument: 'dims' }));
    }
    faults.none();
  });

  test.each([2 ** 52, 2 ** 46, 2 ** 40])('%d elements are more than there is memory', async (count) => {
    for (const make of [zeros, randomNormal] as Loose[]) {
      expect(await faultOf(() => make([count]), false, { code: 'ERR_MEMORY', argument: 'dims' })).toBeUndefined();
    }
  });

  test('tensor: wrong data', async () => {
    const faults = new Faults();
    const refused = (data: unknown, dims: unknown, type: unknown, wanted: Refusal) =>
      faultOf(() => (tensor as Loose)(data, dims, type), false, wanted);
    const right = { data: new Float32Array(6), dims: [2, 3], type: 'float32' as const };
    for (const { way, value, ...wanted } of wrongTensors(right, undefined)) {
      if (!way.startsWith('data ')) continue;
      const { data, dims, type } = value as Tensor;
      faults.add(way, await refused(data, dims, type, { argument: 'data', ...wanted }));
    }
    const bits = new Uint16Array(6);
    const type = { code: 'ERR_TYPE', argument: 'type' } as const;
    faults.add('no type', await refused(bits, [6], undefined, { ...type, received: 'undefined' }));
    for (const [value, received] of primitives) {
      if (value !== undefined) faults.add(received, await refused(bits, [6], value, { ...type, received }));
      if (value !== undefined) faults.add(received, await refused(right.data, [6], value, { ...type, received }));
    }
    faults.add('float32 bits', await refused(bits, [6], 'float32', { code: 'ERR_TYPE', argument: 'data' }));
    faults.add('half floats', await refused(right.data, [6], 'float16', { code: 'ERR_TYPE', argument: 'data' }));
    faults.none();
  });

  test('zeros, randomNormal, cast: wrong types and options', async () => {
    const faults = new Faults();
    const source = zeros([2]);
    for (const [value, received] of primitives) {
      const wanted = { code: 'ERR_TYPE', argument: 'type', received } as const;
      faults.add(`cast ${received}`, await faultOf(() => (cast as Loose)(source, value), false, wanted));
      if (value === undefined) continue;
      faults.add(`zeros ${received}`, await faultOf(() => (zeros as Loose)([2], value), false, wanted));
      const typed = () => (randomNormal as Loose)([2], { type: value });
      faults.add(`randomNormal ${received}`, await faultOf(typed, false, wanted));
      if (value === 5 || Object.is(value, -0)) continue;
      const seeded = () => (randomNormal as Loose)([2], { seed: value });
      faults.add(
        `seed ${received}`,
        await faultOf(seeded, false, { code: 'ERR_ARGUMENT', argument: 'seed', received }),
      );
    }
    for (const seed of [-1, 1.5, 2 ** 32, Infinity]) {
      const seeded = () => (randomNormal as Loose)([2], { seed });
      faults.add(
        `seed ${seed}`,
        await faultOf(seeded, false, { code: 'ERR_ARGUMENT', argument: 'seed', received: `${seed}` }),
      );
    }
    const named = () => (randomNormal as Loose)([2], { sed: 1 });
    faults.add('sed', await faultOf(named, false, { code: 'ERR_ARGUMENT', argument: 'sed', received: '1' }));
    faults.none();
  });

  test('dims are copied', () => {
    const dims = [2, 3];
    const made = [tensor(new Float32Array(6), dims), zeros(dims), randomNormal(dims)];
    dims[0] = 9;
    for (const each of made) expect(each.dims).toEqual([2, 3]);
    expectSameBits(made[2] as Tensor, randomNormal([2, 3]));
  });
});
