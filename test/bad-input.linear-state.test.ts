/** What feature maps and states of linear attention refuse, and how they say it. */
import {
  cosformer,
  elu,
  favor,
  favorMatrix,
  hedgehog,
  LinearState,
  linearAttentionSync,
  relu,
  taylor,
  zeros,
} from '../lib';
import { types } from './data';
import { decay, given, k, keyMask, type Loose, notFinite, of, q, type Row, raise, state, v } from './linear-small';
import { Faults, faultOf, type Refusal } from './refusal';
import { primitives, thrown, wrongTensors } from './wrong-tensors';

// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
type LooseClass = new (...args: any[]) => LinearState;

describe('making maps', () => {
  const refused = (make: unknown, options: unknown, wanted: Refusal) =>
    faultOf(() => (make as Loose)(options), false, wanted);
  const weights = of(3, 8);

  test.each([
    ['relu', relu, {}],
    ['favor', favor, {}],
    ['cosformer', cosformer, { maxLength: 3 }],
    ['hedgehog', hedgehog, { weights }],
    ['favorMatrix', favorMatrix, { headDim: 4 }],
  ])('%s: options that are none, unknown or unreadable', async (_, make, right) => {
    const faults = new Faults();
    for (const [value, received] of primitives) {
      if (value === undefined && Object.keys(right).length === 0) continue;
      faults.add(received, await refused(make, value, { code: 'ERR_ARGUMENT', argument: 'options', received }));
    }
    faults.add('length', await refused(make, { ...right, length: 1 }, { code: 'ERR_ARGUMENT', argument: 'length' }));
    const trap = Object.defineProperty({}, 'seed', { get: raise, enumerable: true });
    faults.add('trap', await refused(make, trap, { code: 'ERR_ARGUMENT', argument: 'seed', cause: thrown }));
    faults.none();
  });

  test('weights wrong in every way', async () => {
    const faults = new Faults();
    const beside: Readonly<Record<string, object>> = {
      weights: {},
      queryWeights: { keyWeights: weights },
      keyWeights: { queryWeights: weights },
    };
    for (const make of [relu, hedgehog]) {
      for (const [name, more] of Object.entries(beside)) {
        for (const { way, value, ...wanted } of wrongTensors(weights, undefined)) {
          if (value === undefined && name === 'weights') continue;
          faults.add(`${name} ${way}`, await refused(make, { ...more, [name]: value }, { argument: name, ...wanted }));
        }
        for (const dims of [[], [24], [1, 1, 3, 8], [0, 8], [3, 0], [0, 3, 8]]) {
          const wanted = { code: 'ERR_SHAPE', argument: name, received: `[${dims.join(', ')}]` } as const;
          faults.add(`${name} [${dims}]`, await refused(make, { ...more, [name]: of(...dims) }, wanted));
        }
        for (const type of types.filter((each) => each !== 'float32')) {
          const wanted = { code: 'ERR_TYPE', argument: name, received: `"${type}"` } as const;
          faults.add(`${name} ${type}`, await refused(make, { ...more, [name]: zeros([3, 8], type) }, wanted));
        }
      }
      const both = { weights, queryWeights: weights, keyWeights: weights };
      faults.add('both', await refused(make, both, { code: 'ERR_ARGUMENT', argument: 'queryWeights' }));
      const unlike = { queryWeights: weights, keyWeights: of(4, 8) };
      faults.add('unlike', await refused(make, unlike, { code: 'ERR_SHAPE', argument: 'keyWeights' }));
      const dims = { queryWeights: weights, keyWeights: of(3, 9) };
      faults.add('dims', await refused(make, dims, { code: 'ERR_SHAPE', argument: 'keyWeights' }));
    }
    faults.add('none', await refused(hedgehog, {}, { code: 'ERR_TYPE', argument: 'weights' }));
    for (const { way, value, ...wanted } of wrongTensors(weights, 2)) {
      if (value === undefined) continue;
      const unread = /one too (few|many)|^dims empty/.test(way) ? { code: wanted.code } : wanted;
      faults.add(`matrix ${way}`, await refused(favor, { matrix: value }, { argument: 'matrix', ...unread }));
    }
    faults.none();
  });

  test('numbers', async () => {
    const faults = new Faults();
    const check = async (make: unknown, name: string, values: readonly (readonly [unknown, string])[], more = {}) => {
      for (const [value, received] of values) {
        const wanted = { code: 'ERR_ARGUMENT', argument: name, received } as const;
        faults.add(`${name} ${received}`, await refused(make, { ...more, [name]: value }, wanted));
      }
    };
    const notWhole: readonly (readonly [unknown, string])[] = [
      ...notFinite,
      [1.5, '1.5'],
      [-1, '-1'],
      [2 ** 53, '9007199254740992'],
    ];
    await check(relu, 'offset', [...notFinite, [-1, '-1']]);
    await check(favor, 'features', [...notWhole, [0, '0'], [2 ** 31, '2147483648']]);
    await check(favor, 'seed', [...notWhole, [2 ** 32, '4294967296']]);
    await check(favor, 'seed', [[0, '0']], { matrix: weights });
    await check(favor, 'features', [[3, '3']], { matrix: weights });
    await check(cosformer, 'maxLength', [...notWhole, [0, '0'], [2 ** 31, '2147483648'], [undefined, 'undefined']]);
    await check(favorMatrix, 'headDim', [...notWhole, [0, '0'], [undefined, 'undefined']]);
    await check(favorMatrix, 'features', [...notWhole, [0, '0']], { headDim: 4 });
    await check(favorMatrix, 'seed', [...notWhole, [2 ** 32, '4294967296']], { headDim: 4 });
    await check(
      hedgehog,
      'joint',
      given.filter(([value]) => typeof value !== 'boolean'),
      { weights },
    );
    const far = { code: 'ERR_UNSUPPORTED', argument: 'features', received: '[100000, 100000]' } as const;
    faults.add('too far', await refused(favorMatrix, { headDim: 1e5, features: 1e5 }, far));
    faults.none();
  });
});

describe('LinearState', () => {
  const shape = { heads: 2, headDim: 8, valueDim: 6, batch: 2, featureMap: elu() };

  test('made of wrong options', async () => {
    const faults = new Faults();
    const make = (options: unknown) => () => new (LinearState as LooseClass)(options);
    const refused = (options: unknown, wanted: Refusal) => faultOf(make(options), false, wanted);
    for (const [value, received] of primitives) {
      faults.add(received, await refused(value, { code: 'ERR_ARGUMENT', argument: 'options', received }));
    }
    for (const name of ['heads', 'headDim', 'valueDim', 'batch'] as const) {
      for (const value of ['1', null, NaN, Infinity, 0, -1, 1.5, 2 ** 31]) {
        const wanted = { code: 'ERR_ARGUMENT', argument: name } as const;
        faults.add(`${name} ${value}`, await refused({ ...shape, [name]: value }, wanted));
      }
    }
    for (const name of ['heads', 'headDim'] as const) {
      const wanted = { code: 'ERR_ARGUMENT', argument: name, received: 'undefined' } as const;
      faults.add(name, await refused({ ...shape, [name]: undefined }, wanted));
    }
    const wrong: readonly Row[] = [
      [{ featureMap: undefined }, 'ERR_TYPE', 'featureMap', 'undefined'],
      [{ featureMap: { kind: 'elu' } }, 'ERR_TYPE', 'featureMap'],
      [{ featureMap: relu({ weights: of(3, 2, 8) }) }, 'ERR_SHAPE', 'featureMap'],
      [{ featureMap: hedgehog({ weights: of(3, 7) }) }, 'ERR_SHAPE', 'featureMap'],
      [{ featureMap: taylor(), headDim: 2 ** 20 }, 'ERR_SHAPE', 'featureMap'],
      [{ headDim: 2 ** 30, valueDim: 2 ** 30 }, 'ERR_SHAPE', 'featureMap'],
      [{ headDim: 2 ** 15, valueDim: 2 ** 15, heads: 2 ** 20, batch: 2 ** 10 }, 'ERR_MEMORY', 'state'],
      [{ updateRule: 'gate' }, 'ERR_ARGUMENT', 'updateRule', '"gate"'],
      [{ updateRule: 'delta', normalize: true }, 'ERR_UNSUPPORTED', 'normalize', 'true'],
      [{ featureMap: favor(), updateRule: 'gatedDelta' }, 'ERR_UNSUPPORTED', 'updateRule'],
      [{ featureMap: favor(), normalize: false }, 'ERR_UNSUPPORTED', 'normalize'],
      [{ scale: 2 }, 'ERR_UNSUPPORTED', 'scale', '2'],
      [{ epsilon: -1 }, 'ERR_ARGUMENT', 'epsilon', '-1'],
      [{ normalize: false, epsilon: 0 }, 'ERR_UNSUPPORTED', 'epsilon', '0'],
      [{ capacity: 3 }, 'ERR_ARGUMENT', 'capacity', '3'],
    ];
    for (const [options, code, argument, received] of wrong) {
      const what = `${Object.keys(options).join()}: ${argument}`;
      faults.add(what, await refused({ ...shape, ...options }, { code, argument, received }));
    }
    faults.none();
  });

  const methods = [
    [
      'append',
      (of: LinearState, key: unknown, options?: unknown) => (of.append as Loose)(key, v, options),
      'key',
      false,
    ],
    [
      'attend',
      (of: LinearState, query: unknown, options?: unknown) => (of.attend as Loose)(query, options),
      'query',
      true,
    ],
    [
      'attendSync',
      (of: LinearState, query: unknown, options?: unknown) => (of.attendSync as Loose)(query, options),
      'query',
      false,
    ],
  ] as const;

  test.each(methods)('%s: wrong tensors and options', async (name, call, argument, asynchronous) => {
    const faults = new Faults();
    using used = state();
    used.append(k, v);
    const right = argument === 'key' ? k : q;
    const refused = (tensor: unknown, options: unknown, wanted: Refusal) =>
      faultOf(() => call(used, tensor, options), asynchronous, wanted);
    for (const { way, value, ...wanted } of wrongTensors(right, 4)) {
      faults.add(way, await refused(value, {}, { argument, ...wanted }));
    }
    for (const dims of [
      [1, 2, 5, 8],
      [2, 3, 5, 8],
      [2, 0, 5, 8],
      [2, 2, 5, 7],
    ]) {
      const wanted = { code: 'ERR_SHAPE', argument, received: `[${dims.join(', ')}]` } as const;
      faults.add(`[${dims}]`, await refused(of(...dims), {}, wanted));
    }
    for (const [value, received] of given) {
      faults.add(received, await refused(right, value, { code: 'ERR_ARGUMENT', argument: 'options', received }));
    }
    const unknown = { code: 'ERR_ARGUMENT', received: '1' } as const;
    for (const option of ['causal', 'featureMap', 'state', 'normalize', ...(name === 'append' ? ['out'] : ['decay'])]) {
      faults.add(option, await refused(right, { [option]: 1 }, { ...unknown, argument: option }));
    }
    faults.add('layout', await refused(right, { layout: 1 }, { ...unknown, argument: 'layout' }));
    faults.add('threads', await refused(right, { threads: 0 }, { code: 'ERR_ARGUMENT', argument: 'threads' }));
    if (name === 'append') {
      const decayed = { code: 'ERR_UNSUPPORTED', argument: 'decay' } as const;
      faults.add('decay', await refused(right, { decay }, decayed));
      const masked = { code: 'ERR_SHAPE', argument: 'keyMask', received: '[5, 2]' } as const;
      faults.add('keyMask', await refused(right, { keyMask: { ...keyMask, dims: [5, 2] } }, masked));
    } else {
      const shaped = { code: 'ERR_SHAPE', argument: 'out', received: '[2, 4, 5, 7]' } as const;
      faults.add('out', await refused(right, { out: of(2, 4, 5, 7) }, shaped));
    }
    faults.none();
    expect(used.length).toBe(5);
  });

  test('append: values that do not fit', async () => {
    const faults = new Faults();
    using used = state();
    const refused = (value: unknown, wanted: Refusal) => faultOf(() => (used.append as Loose)(k, value), false, wanted);
    for (const { way, value, ...wanted } of wrongTensors(v, 4)) {
      faults.add(way, await refused(value, { argument: 'value', ...wanted }));
    }
    for (const dims of [
      [2, 2, 4, 6],
      [2, 2, 5, 8],
      [2, 1, 5, 6],
    ]) {
      faults.add(`[${dims}]`, await refused(of(...dims), { code: 'ERR_SHAPE', argument: 'value' }));
    }
    const halves = zeros([2, 2, 5, 6], 'float16');
    faults.add('type', await refused(halves, { code: 'ERR_TYPE', argument: 'value', received: '"float16"' }));
    faults.none();
    expect(used.length).toBe(0);
  });

  test('positions past the last one of cosformer', async () => {
    using used = new LinearState({ ...shape, featureMap: cosformer({ maxLength: 12 }) });
    used.append(k, v);
    used.append(k, v);
    const wanted = { code: 'ERR_SHAPE', argument: 'key', received: '15' } as const;
    expect(await faultOf(() => used.append(k, v), false, wanted)).toBeUndefined();
    const call = () => linearAttentionSync(q, k, v, { state: used });
    expect(await faultOf(call, false, { ...wanted, argument: 'k' })).toBeUndefined();
    expect(used.length).toBe(10);
  });

  test('methods of something else', async () => {
    const faults = new Faults();
    const prototype = LinearState.prototype as unknown as Record<string, Loose>;
    for (const [name, args, asynchronous] of [
      ['append', [k, v], false],
      ['attend', [q], true],
      ['attendSync', [q], false],
      ['fork', [], false],
      ['dispose', [], false],
    ] as const) {
      for (const other of [{}, new Proxy(state(), {})]) {
        const wanted = { code: 'ERR_TYPE', argument: 'state' } as const;
        faults.add(name, await faultOf(() => prototype[name].call(other, ...args), asynchronous, wanted));
      }
    }
    faults.none();
  });
});
