/** What linear attention refuses, and how it says it. Its maps and its state: `bad-input.linear-state.test.ts`. */
import {
  cosformer,
  elu,
  favor,
  hedgehog,
  identity,
  LinearState,
  linearAttention,
  linearAttentionSync,
  relu,
  taylor,
  zeros,
} from '../lib';
import type { Tensor } from '../lib/tensor';
import { bitsOf } from './full-run';
import { decay, given, k, keyMask, type Loose, notFinite, of, q, type Row, raise, state, v } from './linear-small';
import { Faults, faultOf, type Refusal } from './refusal';
import { detached, primitives, thrown, wrongTensors } from './wrong-tensors';

const functions = [
  { name: 'linearAttention', of: linearAttention as Loose, asynchronous: true },
  { name: 'linearAttentionSync', of: linearAttentionSync as Loose, asynchronous: false },
] as const;

const tensors = { q, k, v };
const beta = of(2, 2, 5);
const outDims = [2, 4, 5, 6];

/** Wrong masks, decays and steps: `right` in every wrong way, but for types of its own. */
function wrongRows(name: 'decay' | 'beta', more: object): Row[] {
  const right = name === 'decay' ? decay : beta;
  return [
    ...wrongTensors(right, undefined)
      .filter(({ way }) => !/zero beside|none of what|larger than any/.test(way))
      .map(({ value, code, received }): Row => [{ ...more, [name]: value }, code, name, received]),
    ...[[2, 2, 6], [2, 5, 2], [1, 2, 5], [2, 4, 5], [2, 5], [20], [], [2, 2, 5, 7], [2, 2, 5, 8, 1]].map(
      (dims): Row => [{ ...more, [name]: of(...dims) }, 'ERR_SHAPE', name, `[${dims.join(', ')}]`],
    ),
    [{ ...more, [name]: zeros([2, 2, 5], 'float16') }, 'ERR_TYPE', name, '"float16"'],
  ];
}

const rows: readonly Row[] = [
  ...given.map(([featureMap, received]): Row => [{ featureMap }, 'ERR_TYPE', 'featureMap', received]),
  [{}, 'ERR_TYPE', 'featureMap', 'undefined'],
  [{ featureMap: {} }, 'ERR_TYPE', 'featureMap', 'an object'],
  [{ featureMap: { kind: 'elu' } }, 'ERR_TYPE', 'featureMap', 'an object'],
  [{ featureMap: { ...elu() } }, 'ERR_TYPE', 'featureMap', 'an object'],
  [{ featureMap: elu }, 'ERR_TYPE', 'featureMap', 'a function'],
  [{ featureMap: new Proxy(elu(), {}) }, 'ERR_TYPE', 'featureMap', 'an object'],

  // Weights that do not fit the call.
  [{ featureMap: relu({ weights: of(3, 7) }) }, 'ERR_SHAPE', 'featureMap', '[3, 7]'],
  [{ featureMap: relu({ weights: of(4, 3, 8) }) }, 'ERR_SHAPE', 'featureMap', '[4, 3, 8]'],
  [{ featureMap: relu({ queryWeights: of(2, 3, 8), keyWeights: of(2, 3, 8) }) }, 'ERR_SHAPE', 'featureMap'],
  [{ featureMap: relu({ queryWeights: of(4, 3, 8), keyWeights: of(4, 3, 8) }) }, 'ERR_SHAPE', 'featureMap'],
  [{ featureMap: hedgehog({ weights: of(3, 9) }) }, 'ERR_SHAPE', 'featureMap', '[3, 9]'],
  [{ featureMap: favor({ matrix: of(30, 7) }) }, 'ERR_SHAPE', 'featureMap', '[30, 7]'],
  [{ featureMap: favor({ features: 2 ** 31 - 1 }) }, 'ERR_SHAPE', 'featureMap', '2147483647 · 7'],
  [{ featureMap: favor({ features: 3e8 }) }, 'ERR_UNSUPPORTED', 'features', '[300000000, 8]'],
  [{ featureMap: cosformer({ maxLength: 4 }) }, 'ERR_SHAPE', 'k', '5'],

  ...given
    .filter(([value]) => typeof value !== 'boolean')
    .flatMap(([value, received]): Row[] => [
      [{ featureMap: elu(), causal: value }, 'ERR_ARGUMENT', 'causal', received],
      [{ featureMap: elu(), normalize: value }, 'ERR_ARGUMENT', 'normalize', received],
    ]),
  ...notFinite.flatMap(([value, received]): Row[] => [
    [{ featureMap: elu(), epsilon: value }, 'ERR_ARGUMENT', 'epsilon', received],
    [{ featureMap: taylor(), scale: value }, 'ERR_ARGUMENT', 'scale', received],
  ]),
  [{ featureMap: elu(), epsilon: -1e-9 }, 'ERR_ARGUMENT', 'epsilon', '-1e-9'],
  ...[0, -0, -1, 1e-60].flatMap((scale): Row[] => [
    [{ featureMap: taylor(), scale }, 'ERR_ARGUMENT', 'scale'],
    [{ featureMap: favor(), scale }, 'ERR_ARGUMENT', 'scale'],
  ]),
  ...[elu(), relu(), identity(), cosformer({ maxLength: 9 }), hedgehog({ weights: of(3, 8) })].map(
    (featureMap): Row => [{ featureMap, scale: 1 }, 'ERR_UNSUPPORTED', 'scale', '1'],
  ),
  [{ featureMap: elu(), normalize: false, epsilon: 0 }, 'ERR_UNSUPPORTED', 'epsilon', '0'],
  [{ featureMap: favor(), normalize: false }, 'ERR_UNSUPPORTED', 'normalize', 'false'],

  ...[...given, ['Gated', '"Gated"'], ['gated_delta', '"gated_delta"']].map(
    ([updateRule, received]): Row => [
      { featureMap: elu(), causal: true, updateRule },
      'ERR_ARGUMENT',
      'updateRule',
      received as string,
    ],
  ),
  [{ featureMap: elu(), updateRule: 'gated', decay }, 'ERR_UNSUPPORTED', 'updateRule', '"gated"'],
  [{ featureMap: elu(), updateRule: 'delta', beta, causal: false }, 'ERR_UNSUPPORTED', 'updateRule', '"delta"'],
  [{ featureMap: favor(), updateRule: 'delta', beta, causal: true }, 'ERR_UNSUPPORTED', 'updateRule', '"delta"'],
  [{ featureMap: favor(), updateRule: 'gated', decay, causal: true }, 'ERR_UNSUPPORTED', 'normalize', 'false'],
  [{ featureMap: elu(), updateRule: 'delta', beta, causal: true, normalize: true }, 'ERR_UNSUPPORTED', 'normalize'],
  [{ featureMap: elu(), updateRule: 'gatedDelta', decay, causal: true }, 'ERR_TYPE', 'beta', 'undefined'],
  [{ featureMap: elu(), updateRule: 'gatedDelta', beta, causal: true }, 'ERR_TYPE', 'decay', 'undefined'],
  [{ featureMap: elu(), decay, causal: true }, 'ERR_UNSUPPORTED', 'decay', 'an object'],
  [{ featureMap: elu(), beta, causal: true }, 'ERR_UNSUPPORTED', 'beta', 'an object'],
  [{ featureMap: elu(), updateRule: 'gated', decay, beta, causal: true }, 'ERR_UNSUPPORTED', 'beta'],
  [{ featureMap: elu(), updateRule: 'delta', decay, beta, causal: true }, 'ERR_UNSUPPORTED', 'decay'],
  ...wrongRows('decay', { featureMap: elu(), updateRule: 'gated', causal: true }),
  ...wrongRows('beta', { featureMap: elu(), updateRule: 'delta', causal: true }),
  // As many as a row has features is right for a decay alone.
  [{ featureMap: elu(), updateRule: 'delta', causal: true, beta: of(2, 2, 5, 8) }, 'ERR_SHAPE', 'beta', '[2, 2, 5, 8]'],

  ...wrongTensors({ data: new Float32Array(10), dims: [2, 5], type: 'float32' }, 2)
    .filter(({ value, way }) => value !== undefined && /^dims /.test(way))
    .filter(({ way }) => !/zero beside|none of what|larger than any/.test(way))
    .map(({ value, code, received }): Row => {
      const { dims } = value as Tensor;
      return [{ featureMap: elu(), keyMask: { ...keyMask, dims } }, code, 'keyMask', received];
    }),
  ...given.map(([mask, received]): Row => [{ featureMap: elu(), keyMask: mask }, 'ERR_TYPE', 'keyMask', received]),
  ...['float32', '', undefined, null, 1].map(
    (type): Row => [{ featureMap: elu(), keyMask: { ...keyMask, type } }, 'ERR_TYPE', 'keyMask'],
  ),
  ...[new Float32Array(10), new Int8Array(10), Array(10).fill(true), null].map(
    (data): Row => [{ featureMap: elu(), keyMask: { ...keyMask, data } }, 'ERR_TYPE', 'keyMask'],
  ),
  ...[9, 11].map(
    (count): Row => [
      { featureMap: elu(), keyMask: { ...keyMask, data: new Uint8Array(count) } },
      'ERR_SHAPE',
      'keyMask',
      `${count}`,
    ],
  ),
  [{ featureMap: elu(), keyMask: { ...keyMask, dims: [5, 2] } }, 'ERR_SHAPE', 'keyMask', '[5, 2]'],
  [{ featureMap: elu(), keyMask: { ...keyMask, dims: [1, 5] } }, 'ERR_SHAPE', 'keyMask', '[1, 5]'],
  [
    { featureMap: elu(), keyMask: { ...keyMask, data: new Uint8Array(new SharedArrayBuffer(10)) } },
    'ERR_TYPE',
    'keyMask',
    'a SharedArrayBuffer',
  ],

  ...given.map(([value, received]): Row => [{ state: value }, 'ERR_TYPE', 'state', received]),
  [{ state: {} }, 'ERR_TYPE', 'state', 'an object'],
  [{ state: Object.create(LinearState.prototype) }, 'ERR_TYPE', 'state'],
  [{ state: new Proxy(state(), {}) }, 'ERR_TYPE', 'state'],
  [{ state: state(), causal: false }, 'ERR_UNSUPPORTED', 'causal', 'false'],
  [{ state: state(), featureMap: elu() }, 'ERR_ARGUMENT', 'featureMap', 'an object'],
  [{ state: state(), updateRule: 'gated', decay }, 'ERR_ARGUMENT', 'updateRule', '"gated"'],
  [{ state: state(), normalize: false }, 'ERR_ARGUMENT', 'normalize', 'false'],
  [{ state: state(), epsilon: 0 }, 'ERR_ARGUMENT', 'epsilon', '0'],
  [{ state: state(), scale: 1 }, 'ERR_ARGUMENT', 'scale', '1'],
  [{ state: state(), decay }, 'ERR_UNSUPPORTED', 'decay'],
  ...[
    { batch: 1, heads: 2, headDim: 8, valueDim: 6 },
    { batch: 2, heads: 4, headDim: 8, valueDim: 6 },
    { batch: 2, heads: 2, headDim: 9, valueDim: 6 },
    { batch: 2, heads: 2, headDim: 8 },
  ].map(
    (shape): Row => [{ state: new LinearState({ ...shape, featureMap: elu() }) }, 'ERR_SHAPE', 'state', /^one of \[/],
  ),

  ...(['mask', 'window', 'queryOffset', 'softcap', 'sinks', 'keyLengths', 'queryLengths'] as const).flatMap(
    (name): Row[] => [
      [{ featureMap: elu(), [name]: 0 }, 'ERR_UNSUPPORTED', name, '0'],
      [{ featureMap: elu(), [name]: null }, 'ERR_UNSUPPORTED', name, 'null'],
      [{ featureMap: elu(), [name]: {} }, 'ERR_UNSUPPORTED', name, 'an object'],
    ],
  ),
  ...['casual', 'Causal', 'featuremap', 'iterations', '0', 'toString'].map(
    (name): Row => [{ featureMap: elu(), [name]: 1 }, 'ERR_ARGUMENT', name, '1'],
  ),
  ...['BHLD', '', 1, null].map((layout): Row => [{ featureMap: elu(), layout }, 'ERR_ARGUMENT', 'layout']),
  ...[0, -1, 1.5, '1'].map((threads): Row => [{ featureMap: elu(), threads }, 'ERR_ARGUMENT', 'threads']),
  [{ featureMap: elu(), device: 'gpu' }, 'ERR_ARGUMENT', 'device', '"gpu"'],
  [{ featureMap: elu(), isa: 'abacus' }, 'ERR_ARGUMENT', 'isa', '"abacus"'],
  [{ featureMap: elu(), signal: {} }, 'ERR_ARGUMENT', 'signal', 'an object'],
  [{ featureMap: elu(), out: of(2, 4, 5, 7) }, 'ERR_SHAPE', 'out', '[2, 4, 5, 7]'],
];

describe.each(functions)('$name', ({ of: call, asynchronous }) => {
  const attend = (options: unknown, over: Record<string, unknown> = {}) => {
    const t = { ...tensors, ...over };
    return call(t.q, t.k, t.v, options);
  };
  const refused = (options: unknown, wanted: Refusal, over?: Record<string, unknown>) =>
    faultOf(() => attend(options, over), asynchronous, wanted);

  test('right in what the tables below change', async () => {
    for (const options of [
      { featureMap: elu(), keyMask },
      { state: state() },
      { featureMap: elu(), updateRule: 'gatedDelta', decay, beta, causal: true },
      { featureMap: elu(), updateRule: 'gated', decay: of(2, 2, 5, 8), causal: true },
    ]) {
      expect(((await attend(options)) as Tensor).dims).toEqual(outDims);
    }
  });

  test('with wrong options', async () => {
    const faults = new Faults();
    for (const [options, code, argument, received] of rows) {
      const what = `${Object.keys(options).join()}: ${received}`;
      faults.add(what, await refused(options, { code, argument, received }));
    }
    faults.none();
  });

  test('with none', async () => {
    const faults = new Faults();
    for (const [value, received] of primitives) {
      faults.add(received, await refused(value, { code: 'ERR_ARGUMENT', argument: 'options', received }));
    }
    faults.none();
  });

  test('with options that cannot be read', async () => {
    const faults = new Faults();
    for (const name of ['featureMap', 'state', 'decay', 'keyMask', 'mask', 'normalize', 'out']) {
      const options = Object.defineProperty({}, name, { get: raise, enumerable: true });
      const wanted = { code: 'ERR_ARGUMENT', argument: name, received: 'an exception', cause: thrown } as const;
      faults.add(name, await refused(options, wanted));
    }
    faults.none();
  });

  test.each(['q', 'k', 'v'] as const)('%s wrong in every way', async (name) => {
    const faults = new Faults();
    for (const { way, value, ...wanted } of wrongTensors(tensors[name], 4)) {
      faults.add(way, await refused({ featureMap: elu() }, { argument: name, ...wanted }, { [name]: value }));
    }
    faults.none();
  });

  test('tensors that do not fit', async () => {
    const faults = new Faults();
    const misfits: readonly (readonly [Record<string, unknown>, Refusal['code'], string])[] = [
      [{ q: of(3, 4, 5, 8) }, 'ERR_SHAPE', 'k'],
      [{ q: of(2, 3, 5, 8) }, 'ERR_SHAPE', 'k'],
      [{ q: of(2, 4, 5, 7) }, 'ERR_SHAPE', 'k'],
      [{ q: of(2, 0, 5, 8) }, 'ERR_SHAPE', 'q'],
      [{ q: of(2, 4, 6, 8) }, 'ERR_SHAPE', 'q'],
      [{ q: of(2, 4, 4, 8) }, 'ERR_SHAPE', 'q'],
      [{ v: of(2, 2, 4, 6) }, 'ERR_SHAPE', 'v'],
      [{ v: of(2, 2, 5, 0) }, 'ERR_SHAPE', 'v'],
      [{ v: zeros([2, 2, 5, 6], 'float16') }, 'ERR_TYPE', 'v'],
    ];
    for (const [over, code, argument] of misfits) {
      const [[name, tensor]] = Object.entries(over) as [[string, Tensor]];
      faults.add(
        `${name} [${tensor.dims}]`,
        await refused({ featureMap: elu(), causal: true }, { code, argument }, over),
      );
    }
    faults.none();
  });

  test('decays and steps in the other layout', async () => {
    const faults = new Faults();
    const swapped = { q: of(2, 5, 4, 8), k: of(2, 5, 2, 8), v: of(2, 5, 2, 6) };
    const rule = { featureMap: elu(), causal: true, layout: 'blhd', updateRule: 'gatedDelta' };
    const right = of(2, 5, 2);
    const wanted = { code: 'ERR_SHAPE', received: '[2, 2, 5]' } as const;
    faults.add('decay', await refused({ ...rule, decay, beta: right }, { ...wanted, argument: 'decay' }, swapped));
    faults.add('beta', await refused({ ...rule, decay: right, beta }, { ...wanted, argument: 'beta' }, swapped));
    faults.none();
    await attend({ ...rule, decay: right, beta: right }, swapped);
  });

  test('out over an input, weights, a decay or a mask', async () => {
    const faults = new Faults();
    const wanted = { code: 'ERR_ARGUMENT', argument: 'out', received: 'a view that overlaps an input' } as const;
    const size = outDims.reduce((a, b) => a * b, 1);
    const room = new ArrayBuffer(4 * (size + 200));
    const out = { data: new Float32Array(room, 0, size), dims: outDims, type: 'float32' };
    const inside = (dims: number[]) => ({
      data: new Float32Array(
        room,
        4 * (size - 1),
        dims.reduce((a, b) => a * b, 1),
      ),
      dims,
      type: 'float32' as const,
    });
    const rule = { featureMap: elu(), causal: true, out };
    const cases = {
      weights: { featureMap: relu({ weights: inside([3, 8]) }), out },
      decay: { ...rule, updateRule: 'gated', decay: inside([2, 2, 5]) },
      beta: { ...rule, updateRule: 'delta', beta: inside([2, 2, 5]) },
      keyMask: { ...rule, keyMask: { ...keyMask, data: new Uint8Array(room, 4 * size - 1, 10) } },
    };
    for (const [what, options] of Object.entries(cases)) faults.add(what, await refused(options, wanted));
    faults.add('v', await refused(rule, wanted, { v: inside([2, 2, 5, 6]) }));
    faults.none();
  });

  test('memory that goes away after it was checked', async () => {
    const faults = new Faults();
    const received = 'an array that changed meanwhile';
    const check = async (
      argument: string,
      make: (data: Float32Array) => { options: object; over?: object },
      count: number,
    ) => {
      const data = new Float32Array(count);
      const trap = {
        ...zeros(outDims),
        get data() {
          detached(data);
          return new Float32Array(240);
        },
      };
      const { options, over } = make(data);
      const wanted = { code: 'ERR_ARGUMENT', argument, received } as const;
      faults.add(argument, await refused({ ...options, out: trap }, wanted, { ...over }));
    };
    const ruled = (updateRule: string, more: object) => ({
      options: { featureMap: elu(), causal: true, updateRule, ...more },
    });
    const f32 = (data: Float32Array, dims: readonly number[]) => ({ data, dims, type: 'float32' as const });
    await check('q', (data) => ({ options: { featureMap: elu() }, over: { q: f32(data, q.dims) } }), 320);
    await check('v', (data) => ({ options: { featureMap: elu() }, over: { v: f32(data, v.dims) } }), 120);
    await check('decay', (data) => ruled('gated', { decay: f32(data, [2, 2, 5]) }), 20);
    await check('decay', (data) => ruled('gated', { decay: f32(data, [2, 2, 5, 8]) }), 160);
    await check('beta', (data) => ruled('delta', { beta: f32(data, [2, 2, 5]) }), 20);
    await check(
      'keyMask',
      (data) => ({
        options: { featureMap: elu(), keyMask: { ...keyMask, data: new Uint8Array(data.buffer, 0, 10) } },
      }),
      20,
    );
    for (const make of [relu, hedgehog] as Loose[]) {
      await check('featureMap', (data) => ({ options: { featureMap: make({ weights: f32(data, [3, 8]) }) } }), 24);
    }
    await check('featureMap', (data) => ({ options: { featureMap: favor({ matrix: f32(data, [3, 8]) }) } }), 24);
    faults.none();
  });

  test('a state that a refused call was about is as it was', async () => {
    using used = state();
    used.append(k, v);
    const before = Uint8Array.from(bitsOf(used.attendSync(q)));
    for (const options of [{ threads: 0 }, { out: of(1) }, { epsilon: 3 }, { isa: 'abacus' }]) {
      const fault = await Promise.resolve()
        .then(() => attend({ state: used, ...options }))
        .catch((error: Error) => error);
      expect(fault).toBeInstanceOf(Error);
    }
    expect(used.length).toBe(5);
    expect(Uint8Array.from(bitsOf(used.attendSync(q)))).toEqual(before);
  });
});
