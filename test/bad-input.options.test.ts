import { devices, info, type Tensor } from '../lib';
import { calls, type Entry, entries } from './entries';
import { Faults, faultOf, type Refusal } from './refusal';
import { primitives, thrown, wrongTensors } from './wrong-tensors';

/** A wrong value of an option, and what is said of it. `argument` is left out where it is the option itself. */
type Row = readonly [value: unknown, code: Refusal['code'], received?: string | RegExp, argument?: string];

const other = (...accepted: readonly string[]): Row[] =>
  primitives
    .filter(([value]) => value !== undefined && !accepted.includes(typeof value))
    .map(([value, received]) => [value, 'ERR_ARGUMENT', received]);

const objects: readonly Row[] = [
  [{}, 'ERR_ARGUMENT', 'an object'],
  [[1], 'ERR_ARGUMENT', '[1]'],
  [Promise.resolve(1), 'ERR_ARGUMENT', 'Promise'],
  [new Number(1), 'ERR_ARGUMENT', 'Number'],
  [{ valueOf: () => 1 }, 'ERR_ARGUMENT', 'an object'],
];

const numbers = (...values: readonly number[]): Row[] => values.map((value) => [value, 'ERR_ARGUMENT', String(value)]);
const notFinite = [...other('number'), ...objects, ...numbers(NaN, Infinity, -Infinity, 1e39, -1e39)];
const notBoolean = [...other('boolean'), ...objects];
const notWhole = [...other('number'), ...objects, ...numbers(NaN, Infinity, -Infinity, 1.5, 2 ** 53)];

/** Lists of so many numbers, wrong as such. */
function noLists(count: number): Row[] {
  const right = Array.from({ length: count }, () => 1);
  const wrong = (value: unknown, received?: string | RegExp): Row => [value, 'ERR_SHAPE', received];
  return [
    ...primitives.filter(([value]) => value !== undefined).map(([value, received]) => wrong(value, received)),
    wrong({}, 'an object'),
    wrong(Object.assign({ length: count }, right), 'an object'),
    wrong([], '[]'),
    wrong(right.slice(1), `[${right.slice(1).join(', ')}]`),
    wrong([...right, 1], `[${[...right, 1].join(', ')}]`),
    wrong(new Set(right), 'Set'),
    wrong(Float64Array.from(right), `Float64Array(${count})`),
    wrong(Uint8Array.from(right), `Uint8Array(${count})`),
    wrong(new Array(2 ** 32 - 1)),
    [new Proxy(right, { get: () => raise() }), 'ERR_ARGUMENT', 'an exception'],
  ];
}

const raise = (): never => {
  throw thrown;
};

/** Five and zero may well stand in a list. */
const notNumbers = primitives.filter(([value]) => value !== 5 && value !== 0);

/** A list whose element at 1 is wrong. */
const elements = (count: number, name: string, rows: readonly (readonly [unknown, string])[]): Row[] =>
  rows.map(([item, received]) => [
    Array.from({ length: count }, (_, i) => (i === 1 ? item : 1)),
    'ERR_ARGUMENT',
    received,
    `${name}[1]`,
  ]);

const wrongLengths = (name: string, most: number): Row[] => [
  ...noLists(2),
  ...elements(2, name, notNumbers),
  ...elements(2, name, [
    [-1, '-1'],
    [1.5, '1.5'],
    [Infinity, 'Infinity'],
    [most + 1, `${most + 1}`],
    [2 ** 32, '4294967296'],
    [[1], '[1]'],
  ]),
  [Int32Array.of(1, -1), 'ERR_ARGUMENT', '-1', `${name}[1]`],
  [Int32Array.of(1, most + 1), 'ERR_ARGUMENT', `${most + 1}`, `${name}[1]`],
  [Int32Array.of(1), 'ERR_SHAPE', 'Int32Array(1)'],
];

const unsupported = new Set(info().kernels.flatMap(({ isa, supported }) => (supported ? [] : [isa])));

const general: Readonly<Record<string, readonly Row[]>> = {
  threads: [...notWhole, ...numbers(0, -1, -Infinity)],
  device: [
    ...other(),
    ...objects,
    ...['', 'CPU', 'gpu', 'cuda:', 'cuda:-1', 'cuda:1.5', 'cuda:x', ' cpu'].map(
      (name): Row => [name, 'ERR_ARGUMENT', `"${name}"`],
    ),
    ...(devices().some(({ name, available }) => name === 'cuda' && available)
      ? []
      : ['cuda', 'cuda:0', 'cuda:17'].map((name): Row => [name, 'ERR_DEVICE', /^"cuda.*": \S.* no CUDA/])),
  ],
  isa: [
    ...other(),
    ...objects,
    ['abacus', 'ERR_ARGUMENT', '"abacus"'],
    ['', 'ERR_ARGUMENT', '""'],
    ['AVX2', 'ERR_ARGUMENT', '"AVX2"'],
    ...Array.from(unsupported, (name): Row => [name, 'ERR_DEVICE', `"${name}"`]),
  ],
  signal: [
    ...other(),
    ...objects,
    [new EventTarget(), 'ERR_ARGUMENT', 'EventTarget'],
    [new AbortController(), 'ERR_ARGUMENT', 'AbortController'],
    [{ aborted: false }, 'ERR_ARGUMENT', 'an object'],
    [{ aborted: 0, addEventListener() {}, removeEventListener() {} }, 'ERR_ARGUMENT', 'an object'],
    [Object.defineProperty({}, 'aborted', { get: raise }), 'ERR_ARGUMENT', 'an exception'],
  ],
};

const layout: readonly Row[] = [
  ...other(),
  ...objects,
  ...['', 'BHLD', 'bhdl', 'blhd '].map((name): Row => [name, 'ERR_ARGUMENT', `"${name}"`]),
];

const score: Readonly<Record<string, readonly Row[]>> = {
  layout,
  scale: notFinite,
  causal: notBoolean,
  softcap: [...notFinite, ...numbers(-1, -1e-30, 1e-46, 1e-40)],
  queryOffset: [...notWhole, ...numbers(2 ** 47 + 1, -(2 ** 47) - 1)],
  window: [
    ...other(),
    ...[[], [1], [1, 1, 1]].map((value): Row => [value, 'ERR_ARGUMENT', `[${value.join(', ')}]`]),
    [{ 0: 1, 1: 1, length: 2 }, 'ERR_ARGUMENT', 'an object'],
    [Int32Array.of(1, 1), 'ERR_ARGUMENT', 'Int32Array(2)'],
    ...elements(2, 'window', notNumbers),
    ...elements(2, 'window', [
      [-1, '-1'],
      [-Infinity, '-Infinity'],
      [1.5, '1.5'],
      [2 ** 53, '9007199254740992'],
    ]),
  ],
  sinks: [
    ...noLists(4),
    ...elements(
      4,
      'sinks',
      primitives.filter(([value]) => value !== 5 && !Object.is(value, -0)),
    ),
    ...elements(4, 'sinks', [
      [Infinity, 'Infinity'],
      [1e39, '1e+39'],
      [[1], '[1]'],
    ]),
    [Float32Array.of(0, NaN, 0, 0), 'ERR_ARGUMENT', 'NaN', 'sinks[1]'],
    [Float32Array.of(0, Infinity, 0, 0), 'ERR_ARGUMENT', 'Infinity', 'sinks[1]'],
    [new Float32Array(3), 'ERR_SHAPE', 'Float32Array(3)'],
  ],
};

/** Masks wrong for scores [batch, 4, queries, 5]. */
function wrongMasks(batch: number, queries: number): Row[] {
  const additive = (...dims: number[]) => ({
    data: new Float32Array(dims.reduce((a, b) => a * b, 1)),
    dims,
    type: 'float32' as const,
  });
  const bits = (dims: readonly number[], data: unknown) => ({ data, dims, type: 'bool' });
  const right = additive(batch, 4, queries, 5);
  const dims = (...list: number[]): Row => [additive(...list), 'ERR_SHAPE', `[${list.join(', ')}]`];
  return [
    ...wrongTensors(right, undefined)
      // A mask may be of other types, which are below.
      .filter(({ way, value }) => value !== undefined && !way.startsWith('type ') && way !== 'data Uint8Array')
      // Dims are first held against the scores, then against the data.
      .map(({ way, value, code, received }): Row => [value, code, way.startsWith('dims ') ? undefined : received]),
    ...['float16', 'bfloat16', 'int8', '', 'Bool', undefined, null, 1].map(
      (type): Row => [{ ...right, type }, 'ERR_TYPE'],
    ),
    dims(),
    dims(5),
    dims(1, batch, 4, queries, 5),
    dims(4, 1),
    dims(queries, 4),
    dims(queries, 6),
    dims(queries + 1, 5),
    dims(2, queries, 5),
    dims(5, 4, queries, 5),
    dims(batch, 3, queries, 5),
    dims(batch, 4, 0, 5),
    dims(0, 5),
    dims(1, 0),
    dims(1, 1),
    [bits([1, 5], new Float32Array(5)), 'ERR_TYPE', 'Float32Array(5)'],
    [bits([1, 5], new Int8Array(5)), 'ERR_TYPE', 'Int8Array(5)'],
    [bits([1, 5], new Uint8ClampedArray(5)), 'ERR_TYPE', 'Uint8ClampedArray(5)'],
    [bits([1, 5], [true, true, true, true, true]), 'ERR_TYPE', '[true, true, true, true, true]'],
    [bits([1, 5], new Uint8Array(4)), 'ERR_SHAPE', '4'],
    [bits([1, 5], new Uint8Array(6)), 'ERR_SHAPE', '6'],
    [bits([1, 5], new Uint8Array(new SharedArrayBuffer(5))), 'ERR_TYPE', 'a SharedArrayBuffer'],
    [{ ...right, data: new Uint8Array(right.data.length) }, 'ERR_TYPE'],
  ];
}

/** What is no mask of `'bool'` with these dims. */
function wrongBools(...right: number[]): Row[] {
  const size = right.reduce((a, b) => a * b, 1);
  const bits = (dims: readonly number[], data: unknown = new Uint8Array(size)) => ({ data, dims, type: 'bool' });
  return [
    ...primitives
      .filter(([value]) => value !== undefined)
      .map(([value, received]): Row => [value, 'ERR_TYPE', received]),
    [new Uint8Array(size), 'ERR_TYPE', `Uint8Array(${size})`],
    ...['float32', 'bfloat16', 'Bool', undefined, null].map((type): Row => [{ ...bits(right), type }, 'ERR_TYPE']),
    [bits(right, new Float32Array(size)), 'ERR_TYPE', `Float32Array(${size})`],
    [bits(right, new Int8Array(size)), 'ERR_TYPE', `Int8Array(${size})`],
    [
      bits(
        right,
        Array.from({ length: size }, () => 1),
      ),
      'ERR_TYPE',
    ],
    [bits(right, new Uint8Array(size - 1)), 'ERR_SHAPE', `${size - 1}`],
    [bits(right, new Uint8Array(size + 1)), 'ERR_SHAPE', `${size + 1}`],
    [bits(right, new Uint8Array(new SharedArrayBuffer(size))), 'ERR_TYPE', 'a SharedArrayBuffer'],
    ...[[], [size], right.toReversed(), [1, ...right], [(right[0] as number) + 1, right[1] as number]].map(
      (dims): Row => [bits(dims), 'ERR_SHAPE', `[${dims.join(', ')}]`],
    ),
    [Object.defineProperty({}, 'data', { get: raise }), 'ERR_ARGUMENT', 'an exception'],
  ];
}

/** Nyström attention of 3 queries over 5 keys, 4 heads. */
const nystrom: Readonly<Record<string, readonly Row[]>> = {
  layout,
  scale: notFinite,
  landmarks: [...notWhole, ...numbers(0, -1, 4, 2 ** 40)],
  landmarkIndices: [
    ...other('object').filter(([value]) => value !== null),
    [null, 'ERR_ARGUMENT', 'null'],
    // A list for both, which are not as many.
    [[0, 1], 'ERR_ARGUMENT', '[0, 1]'],
    [Int32Array.of(0), 'ERR_ARGUMENT', 'Int32Array(1)'],
    [{}, 'ERR_ARGUMENT', 'an object'],
    [{ query: [0] }, 'ERR_ARGUMENT', 'an object'],
    [{ query: [0, 1], key: [4] }, 'ERR_SHAPE', '[4]', 'landmarkIndices.key'],
    [{ query: [], key: [] }, 'ERR_SHAPE', '[]', 'landmarkIndices.query'],
    [{ query: [0, 1, 2, 3], key: [0, 1, 2, 3] }, 'ERR_SHAPE', '[0, 1, 2, 3]', 'landmarkIndices.query'],
    [{ query: 1, key: [1] }, 'ERR_SHAPE', '1', 'landmarkIndices.query'],
    [{ query: [1], key: Float64Array.of(1) }, 'ERR_SHAPE', 'Float64Array(1)', 'landmarkIndices.key'],
    [{ query: [0, 3], key: [0, 1] }, 'ERR_ARGUMENT', '3', 'landmarkIndices.query[1]'],
    [{ query: [0, 1], key: [5, 1] }, 'ERR_ARGUMENT', '5', 'landmarkIndices.key[0]'],
    [{ query: [0, 1], key: [4, 4] }, 'ERR_ARGUMENT', '4', 'landmarkIndices.key[1]'],
    [{ query: [-1], key: [1] }, 'ERR_ARGUMENT', '-1', 'landmarkIndices.query[0]'],
    [{ query: [0.5], key: [1] }, 'ERR_ARGUMENT', '0.5', 'landmarkIndices.query[0]'],
    [Object.defineProperty({}, 'query', { get: raise }), 'ERR_ARGUMENT', 'an exception'],
  ],
  pinv: [...other(), ...objects, ...['', 'SVD', 'exact'].map((name): Row => [name, 'ERR_ARGUMENT', `"${name}"`])],
  iterations: [...notWhole, ...numbers(0, -1, 101)],
  // Refused whatever it is, without singular values.
  regularization: [...notFinite, ...numbers(0, 0.1)],
  convKernel: [
    ...wrongTensors({ data: new Float32Array(12), dims: [4, 3], type: 'float32' }, 2)
      .filter(({ value }) => value !== undefined)
      .map(({ value, code, received }): Row => [value, code, received]),
    ...[
      [4, 2],
      [4, 0],
      [2, 3],
    ].map((dims): Row => {
      const data = new Float32Array(dims.reduce((a, b) => a * b, 1));
      return [{ data, dims, type: 'float32' }, 'ERR_SHAPE', `[${dims.join(', ')}]`];
    }),
    [{ data: Float32Array.of(1, NaN, 1), dims: [1, 3], type: 'float32' }, 'ERR_ARGUMENT', 'NaN'],
    [{ data: Float32Array.of(1, 1, -Infinity), dims: [1, 3], type: 'float32' }, 'ERR_ARGUMENT', '-Infinity'],
    [{ data: new Uint16Array(3), dims: [1, 3], type: 'float16' }, 'ERR_TYPE', '"float16"'],
    [{ data: new Float32Array(3), dims: [1, 3], type: 'float32' }, 'ERR_SHAPE', /3 queries and 5 keys/],
  ],
  keyMask: wrongBools(2, 5),
  queryMask: wrongBools(2, 3),
};

/** The wrong values of every option of a function. */
function tableOf({ name }: Entry): Readonly<Record<string, readonly Row[]>> {
  if (/^(attention|lrkvAttention)/.test(name)) {
    return {
      ...general,
      ...score,
      mask: wrongMasks(2, 3),
      keyLengths: wrongLengths('keyLengths', 5),
      queryLengths: wrongLengths('queryLengths', 3),
    };
  }
  if (/^(Kv|Lrkv)Cache\.attend/.test(name)) return { ...general, ...score, mask: wrongMasks(1, 2) };
  if (name.startsWith('attendBatch')) {
    return {
      ...general,
      ...score,
      out: [
        [null, 'ERR_UNSUPPORTED', 'null'],
        [{}, 'ERR_UNSUPPORTED', 'an object'],
      ],
      mask: [
        [null, 'ERR_UNSUPPORTED', 'null'],
        [{}, 'ERR_UNSUPPORTED', 'an object'],
      ],
    };
  }
  if (name.startsWith('linformerAttention')) return { ...general, layout, scale: notFinite, keyMask: wrongBools(2, 5) };
  if (name.startsWith('LinformerState.attend')) return { ...general, layout, scale: notFinite };
  if (name.startsWith('LinformerState.append')) {
    const { device, isa, threads } = general;
    return { device, isa, threads, layout, keyMask: wrongBools(1, 5) };
  }
  if (name.startsWith('linearAttention')) {
    return {
      ...general,
      layout,
      causal: notBoolean,
      normalize: notBoolean,
      epsilon: [...notFinite, ...numbers(-1)],
      scale: notFinite,
      updateRule: [...other(), ...objects, ...['', 'Linear'].map((name): Row => [name, 'ERR_ARGUMENT', `"${name}"`])],
      state: [
        ...other().map(([value, , received]): Row => [value, 'ERR_TYPE', received]),
        [{}, 'ERR_TYPE', 'an object'],
      ],
      keyMask: wrongBools(2, 5),
    };
  }
  if (name.startsWith('LrkvCache.append')) {
    const { device, isa, threads } = general;
    return { device, isa, threads };
  }
  if (name.startsWith('LinearState.attend')) return { ...general, layout };
  if (name.startsWith('LinearState.append')) return { ...general, layout, keyMask: wrongBools(1, 5) };
  if (name.startsWith('nystrom')) return { ...general, ...nystrom };
  if (name.startsWith('rotary')) {
    return {
      ...general,
      layout,
      positions: [
        ...noLists(2),
        ...elements(2, 'positions', notNumbers),
        ...elements(2, 'positions', [
          [-1, '-1'],
          [2 ** 47 + 1, `${2 ** 47 + 1}`],
        ]),
      ],
    };
  }
  if (name.startsWith('matmul')) return { ...general, transposeA: notBoolean, transposeB: notBoolean };
  if (name.startsWith('AttentionLayer')) return { ...general, keyLengths: wrongLengths('keyLengths', 3) };
  if (name.startsWith('mergeAttention')) return { ...general, layout };
  if (name.startsWith('lowRankAttention')) return general;
  if (/^(headSimilarity|linearCka|principalAngles)/.test(name)) return general;
  if (name.startsWith('pca')) return { ...general, components: [...notWhole, ...numbers(0, 4)] };
  if (name.startsWith('spectrum')) {
    return {
      ...general,
      layout,
      scale: notFinite,
      causal: notBoolean,
      oversample: [...notWhole, ...numbers(-1)],
      powerIterations: [...notWhole, ...numbers(-1, 101)],
      seed: [...notWhole, ...numbers(-1, 2 ** 32)],
      count: [...notWhole, ...numbers(0, 4)],
      exact: notBoolean,
    };
  }
  return { layout };
}

// What attentionFactors must be given stands in lowrank.calls.test.ts; the rest of its options are those of spectrum.
const optioned = entries.filter(({ name, optionless }) => optionless !== true && !name.startsWith('attentionFactors'));

describe.each(optioned.map((entry) => ({ entry, places: Object.keys(entry.tensors)[0] })))(
  'options of $entry.name ($places)',
  ({ entry }) => {
    const table = tableOf(entry);
    const refused = (options: unknown, wanted: Refusal) =>
      faultOf(() => entry.call(entry.tensors, options), entry.asynchronous, wanted);

    test('with wrong values', async () => {
      const faults = new Faults();
      for (const [option, rows] of Object.entries(table)) {
        for (const [value, code, received, argument = option] of rows) {
          const what = `${option} ${typeof value === 'object' ? JSON.stringify(received?.toString()) : String(received)}`;
          faults.add(what, await refused({ [option]: value }, { code, argument, received }));
        }
      }
      faults.none();
    });

    test('that are none', async () => {
      const faults = new Faults();
      const none = { code: 'ERR_ARGUMENT', argument: 'options' } as const;
      for (const [value, received] of primitives) {
        if (value !== undefined) faults.add(received, await refused(value, { ...none, received }));
      }
      faults.add('an array', await refused([], { ...none, received: '[]' }));
      faults.add('a map', await refused(new Map([['threads', 1]]), { ...none, received: 'Map' }));
      faults.add('a promise', await refused(Promise.resolve({}), { ...none, received: 'Promise' }));
      faults.add('a mask', await refused(new Float32Array(5), { ...none, received: 'Float32Array(5)' }));
      faults.add('a proxy', await refused(revoked(), { ...none, received: /./ }));
      faults.none();
    });

    test('of unknown names', async () => {
      const faults = new Faults();
      for (const name of ['casual', 'Causal', 'thread', '', '0', 'toString', 'layouts']) {
        const wanted = { code: 'ERR_ARGUMENT', argument: name, received: '1' } as const;
        // The grammar's pattern wants a name.
        if (name !== '') faults.add(name, await refused({ [name]: 1 }, wanted));
        if (name !== '') faults.add(`inherited ${name}`, await refused(Object.create({ [name]: 1 }), wanted));
      }
      const known = await Promise.resolve()
        .then(() => entry.call(entry.tensors, { casual: true }))
        .catch((error: Error) => error.message);
      for (const option of Object.keys(table)) expect(known).toContain(option);
      faults.none();
    });

    test('that cannot be read', async () => {
      const faults = new Faults();
      for (const option of Object.keys(table)) {
        const wanted = { code: 'ERR_ARGUMENT', argument: option, received: 'an exception', cause: thrown } as const;
        faults.add(option, await refused(Object.defineProperty({}, option, { get: raise, enumerable: true }), wanted));
        const inherited = Object.create({}, { [option]: { get: raise } });
        faults.add(`${option} inherited`, await refused(Object.create(inherited), wanted));
      }
      const names = new Proxy({}, { ownKeys: raise });
      faults.add('names', await refused(names, { code: 'ERR_ARGUMENT', argument: 'options', cause: thrown }));
      faults.none();
    });

    test('that are undefined are not given', async () => {
      const undefinedOptions = Object.fromEntries(Object.keys(table).map((option) => [option, undefined]));
      const wanted = await entry.call(entry.tensors);
      expect(await entry.call(entry.tensors, undefinedOptions)).toEqual(wanted);
      expect(await entry.call(entry.tensors, Object.create(null))).toEqual(wanted);
    });

    test('may be accessors, read once', async () => {
      const option = Object.keys(table).includes('threads') ? 'threads' : 'layout';
      let reads = 0;
      class Accessors {
        get [option]() {
          reads++;
          return option === 'threads' ? 1 : 'bhld';
        }
      }
      const wanted = await entry.call(entry.tensors);
      expect(await entry.call(entry.tensors, new Accessors())).toEqual(wanted);
      expect(reads).toBe(1);
    });
  },
);

describe.each(calls)('out of $name', (entry) => {
  const { tensors, outDims = [], asynchronous, call } = entry;
  const size = outDims.reduce((a, b) => a * b, 1);
  const out = (data: Float32Array, dims: readonly number[] = outDims): Tensor => ({ data, dims, type: 'float32' });

  test('wrong as a tensor', async () => {
    const faults = new Faults();
    const right = out(new Float32Array(size));
    for (const { way, value, ...wanted } of wrongTensors(right, outDims.length)) {
      if (value === undefined) continue;
      faults.add(way, await faultOf(() => call(tensors, { out: value }), asynchronous, { argument: 'out', ...wanted }));
    }
    faults.none();
  });

  test('of other dims', async () => {
    const faults = new Faults();
    const wrong = [
      ...outDims.map((_, axis) => outDims.map((extent, i) => (i === axis ? extent + 1 : extent))),
      outDims.toReversed(),
      outDims.map(() => 0),
    ];
    for (const dims of wrong) {
      const data = new Float32Array(dims.reduce((a, b) => a * b, 1));
      const wanted = { code: 'ERR_SHAPE', argument: 'out', received: `[${dims.join(', ')}]` } as const;
      faults.add(wanted.received, await faultOf(() => call(tensors, { out: out(data, dims) }), asynchronous, wanted));
    }
    faults.none();
  });

  test('over an input is refused, beside it is not', async () => {
    const faults = new Faults();
    const wanted = { code: 'ERR_ARGUMENT', argument: 'out', received: 'a view that overlaps an input' } as const;
    const result = (await call(tensors)) as Tensor | { output: Tensor };
    const expected = 'output' in result ? result.output.data : result.data;
    for (const [name, right] of Object.entries(tensors)) {
      const { length } = right.data;
      const room = new Float32Array(2 * size + length);
      const input = room.subarray(size, size + length);
      input.set(right.data);
      const run = (start: number) =>
        call({ ...tensors, [name]: { ...right, data: input } }, { out: out(room.subarray(start, start + size)) });
      for (const start of [1, size - 1, size, size + 1, size + length - 1]) {
        faults.add(`${name} at ${start}`, await faultOf(() => run(start), asynchronous, wanted));
      }
      for (const start of [0, size + length]) {
        await run(start);
        expect(room.subarray(start, start + size)).toEqual(expected);
        expect(input).toEqual(right.data);
      }
    }
    faults.none();
  });
});

describe('out over a mask', () => {
  const masked = calls.filter(({ name }) => /^(attention|KvCache)/.test(name));
  test.each(masked)('$name', async ({ call, tensors, outDims = [], asynchronous }) => {
    const size = outDims.reduce((a, b) => a * b, 1);
    const data = new Float32Array(size + 5);
    const options = {
      mask: { data: data.subarray(size - 1, size + 4), dims: [1, 5], type: 'float32' },
      out: { data: data.subarray(0, size), dims: outDims, type: 'float32' },
    };
    const wanted = { code: 'ERR_ARGUMENT', argument: 'out' } as const;
    expect(await faultOf(() => call(tensors, options), asynchronous, wanted)).toBeUndefined();
    const beside = { ...options, mask: { ...options.mask, data: data.subarray(size) } };
    await call(tensors, beside);
  });
});

test('out of another type is refused where parts are merged', async () => {
  for (const { call, tensors, outDims = [], asynchronous } of calls.filter(({ name }) => name.startsWith('merge'))) {
    const out = { data: new Uint16Array(24), dims: outDims, type: 'float16' };
    const wanted = { code: 'ERR_TYPE', argument: 'out', received: '"float16"' } as const;
    expect(await faultOf(() => call(tensors, { out }), asynchronous, wanted)).toBeUndefined();
  }
});

test('what info() gives cannot be changed', () => {
  expect(() => (info().kernels as unknown[]).push(1)).toThrow(TypeError);
  expect(() => Object.assign(info().kernels[0], { isa: 'abacus' })).toThrow(TypeError);
});

function revoked(): object {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
}
