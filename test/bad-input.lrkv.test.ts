import {
  attendBatch,
  attendBatchSync,
  KvCache,
  LrkvCache,
  lrkvAttention,
  lrkvAttentionSync,
  lrkvAttentionWithLse,
  lrkvAttentionWithLseSync,
  lrkvLayer,
  ropeFrequencies,
  type Tensor,
} from '../lib';
import { filled, normal } from './data';
import { smallCache } from './entries';
import { lrkvWeights } from './layer-data';
import { lrkvCacheOf as cacheOf, lrkvModel, lrkvProjections, lrkvRows, smallLrkvCache } from './lrkv-small';
import { Faults, faultOf, type Refusal } from './refusal';
import { primitives } from './wrong-tensors';

// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
type Loose = (...args: any[]) => unknown;

const q = normal([1, 4, 2, 8], 1);
const rope = { frequencies: ropeFrequencies(8) };
const evenRanks = { keyRanks: [2, 4], keyUp: normal([6, 8], 2) };
const argument = (name: string, received?: string | RegExp): Refusal => ({
  code: 'ERR_ARGUMENT',
  argument: name,
  ...(received === undefined ? {} : { received }),
});
const shape = (name: string): Refusal => ({ code: 'ERR_SHAPE', argument: name });
const unsupported: Refusal = { code: 'ERR_UNSUPPORTED', argument: 'keyNorm' };

/** Each head's gauge of one complex number a pair ('half' pairs of a head of 8), then changed. */
function pairGauge(change: (data: Float32Array) => void = () => undefined): Tensor {
  const gauge = filled([2, 8, 8], 'float32', () => 0);
  const data = gauge.data as Float32Array;
  for (let head = 0; head < 2; head++) {
    for (let i = 0; i < 4; i++) {
      const at = (row: number, column: number) => 64 * head + 8 * row + column;
      data[at(i, i)] = data[at(i + 4, i + 4)] = 1 + i;
      data[at(i, i + 4)] = 0.5;
      data[at(i + 4, i)] = -0.5;
    }
  }
  change(data);
  return gauge;
}

/** Two latent pairs in head 1 and one in head 0, each turning as one pair of the head does; then changed. */
function intertwined(change: (data: Float32Array) => void = () => undefined): Tensor {
  const up = filled([6, 8], 'float32', () => 0);
  const data = up.data as Float32Array;
  const couple = (first: number, second: number, pair: number) => {
    [data[8 * first + pair], data[8 * first + pair + 4]] = [2, 3];
    [data[8 * second + pair], data[8 * second + pair + 4]] = [-3, 2];
  };
  couple(0, 1, 2);
  couple(2, 4, 0);
  couple(3, 5, 3);
  change(data);
  return up;
}

const gain = new Float32Array(8).fill(2);
const before = { gain, gainOrder: 'before-rotation' as const };
const after = { gain, gainOrder: 'after-rotation' as const };
const latentFrequencies = [0.1, 0.2, 0.3];
const intertwines = { rope, ropeMode: 'intertwined', keyRanks: [2, 4], keyUp: intertwined() } as const;

/** What a model may not be, whoever takes it. */
const models: readonly [what: string, change: object, wanted: Refusal][] = [
  ['keyUp of other columns', { keyUp: normal([8, 7], 1) }, shape('keyUp')],
  ['keyUp of one axis', { keyUp: normal([8], 1) }, shape('keyUp')],
  ['no keyUp', { keyUp: undefined }, { code: 'ERR_TYPE', argument: 'keyUp', received: 'undefined' }],
  ['no valueUp', { valueUp: undefined }, { code: 'ERR_TYPE', argument: 'valueUp', received: 'undefined' }],
  ['valueUp without columns', { valueUp: normal([4, 0], 1) }, shape('valueUp')],
  ['rows that heads do not divide', { keyRanks: undefined, keyUp: normal([7, 8], 1) }, shape('keyUp')],
  ['rows of values that heads do not divide', { valueRanks: undefined, valueUp: normal([3, 6], 1) }, shape('valueUp')],
  ['too few ranks', { keyRanks: [8] }, shape('keyRanks')],
  ['ranks of another sum', { keyRanks: [3, 4] }, shape('keyRanks')],
  ['ranks of values of another sum', { valueRanks: [3, 4] }, shape('valueRanks')],
  ['a rank below 0', { keyRanks: [-1, 9] }, argument('keyRanks[0]', '-1')],
  ['half a rank', { valueRanks: [1.5, 2.5] }, argument('valueRanks[0]', '1.5')],
  ['ranks that are no list', { keyRanks: 4 }, shape('keyRanks')],
  ['a gauge of other dims', { keyGauge: normal([2, 8, 7], 1) }, shape('keyGauge')],
  ['a gauge of fewer heads', { valueGauge: normal([1, 6, 6], 1) }, shape('valueGauge')],
  ['a gauge of two axes', { keyGauge: normal([8, 8], 1) }, shape('keyGauge')],
  ['rope that is none', { rope: 7 }, argument('rope', '7')],
  ['rope of too few frequencies', { rope: { frequencies: [1] } }, shape('rope.frequencies')],
  ['rope of no such pairing', { rope: { ...rope, pairing: 'both' } }, argument('rope.pairing')],
  ['a position that is none', { rope: { ...rope, firstPosition: -1 } }, argument('rope.firstPosition', '-1')],
  ['no such mode', { rope, ropeMode: 'full' }, argument('ropeMode', '"full"')],
  ['a mode without rope', { ropeMode: 'exact' }, argument('ropeMode', '"exact"')],
  ['frequencies without rope', { latentFrequencies }, argument('latentFrequencies')],
  ...(['exact', 'none'] as const).map((ropeMode): [string, object, Refusal] => [
    `frequencies of latents that ${ropeMode} does not turn`,
    { rope, ropeMode, latentFrequencies },
    argument('latentFrequencies'),
  ]),
  ['frequencies that are read off', { ...intertwines, latentFrequencies }, argument('latentFrequencies')],
  ...(['latent', 'paper'] as const).flatMap((ropeMode): [string, object, Refusal][] => [
    [`no frequencies with ${ropeMode}`, { ...evenRanks, rope, ropeMode }, shape('latentFrequencies')],
    [
      `too few frequencies with ${ropeMode}`,
      { ...evenRanks, rope, ropeMode, latentFrequencies: [1, 2] },
      shape('latentFrequencies'),
    ],
    [
      `a frequency that is none with ${ropeMode}`,
      { ...evenRanks, rope, ropeMode, latentFrequencies: [1, NaN, 2] },
      argument('latentFrequencies[1]', 'NaN'),
    ],
  ]),
  ...(['latent', 'paper', 'intertwined'] as const).map((ropeMode): [string, object, Refusal] => [
    `odd ranks with ${ropeMode}`,
    { rope, ropeMode, ...(ropeMode === 'intertwined' ? {} : { latentFrequencies: [1, 2, 3, 4] }) },
    argument('keyRanks', '3 (head 0)'),
  ]),
  ...(['latent', 'paper', 'none', 'intertwined'] as const).flatMap((ropeMode): [string, object, Refusal][] => {
    const latent = ropeMode === 'latent' || ropeMode === 'paper' ? { latentFrequencies } : {};
    const right = { ...intertwines, ropeMode, ...latent };
    const set = (at: number, value: number) => pairGauge((data) => data.fill(value, at, at + 1));
    return [
      [`a gauge between pairs with ${ropeMode}`, { ...right, keyGauge: set(1, 1e-30) }, argument('keyGauge')],
      [`a gauge that reflects with ${ropeMode}`, { ...right, keyGauge: set(64 + 36, 7) }, argument('keyGauge')],
      [`a gauge of NaN with ${ropeMode}`, { ...right, keyGauge: set(0, NaN) }, argument('keyGauge')],
    ];
  }),
  ...(
    [
      ['an element of another pair', 1, 1],
      ['a pair that is no complex number', 2, 2.5],
      ['a row alone', 8 * 5 + 3, 0],
      ['NaN', 2, NaN],
    ] as const
  ).map(([what, at, value]): [string, object, Refusal] => [
    `intertwined: ${what}`,
    { ...intertwines, keyUp: intertwined((data) => data.fill(value, at, at + 1)) },
    argument('keyUp', /head [01] at latent pair [01]$/),
  ]),
  [
    'intertwined: one complex number in each of two frequencies',
    {
      ...intertwines,
      keyUp: intertwined((data) => {
        data[1] = data[8 + 5] = 4;
      }),
    },
    argument('keyUp', /head 0 at latent pair 0$/),
  ],
  [
    'a gauge that takes one pair for another',
    {
      ...intertwines,
      keyGauge: pairGauge((data) => {
        data.fill(0, 0, 8).fill(0, 32, 40);
        data[1] = data[32 + 5] = 1;
      }),
    },
    argument('keyGauge', 'one that does not in head 0 at pair 0'),
  ],
  [
    'a gain before rotation with paper',
    { ...evenRanks, rope, ropeMode: 'paper', latentFrequencies, keyNorm: before },
    unsupported,
  ],
  ['a gain before rotation with intertwined', { ...intertwines, keyNorm: before }, unsupported],
  [
    'a gain after rotation with latent',
    { ...evenRanks, rope, ropeMode: 'latent', latentFrequencies, keyNorm: after },
    unsupported,
  ],
  ['a gain after rotation with none', { rope, ropeMode: 'none', keyNorm: after }, unsupported],
  ['a gain and a gauge with none', { rope, ropeMode: 'none', keyNorm: before, keyGauge: pairGauge() }, unsupported],
  [
    'a gain and a gauge with latent',
    { ...evenRanks, rope, ropeMode: 'latent', latentFrequencies, keyNorm: before, keyGauge: pairGauge() },
    unsupported,
  ],
  ['a norm that is none', { keyNorm: true }, argument('keyNorm', 'true')],
  ['a gain of another length', { keyNorm: { gain: [1] } }, shape('keyNorm.gain')],
  ['an epsilon below 0', { keyNorm: { epsilon: -1 } }, argument('keyNorm.epsilon', '-1')],
  ['a name that is none', { keyDown: q }, argument('keyDown')],
];

const functions = {
  lrkvAttention,
  lrkvAttentionSync,
  lrkvAttentionWithLse,
  lrkvAttentionWithLseSync,
} as Readonly<Record<string, Loose>>;

describe('a model', () => {
  test.each(models)('%s', async (_what, change, wanted) => {
    const faults = new Faults();
    for (const [name, of] of Object.entries(functions)) {
      const call = () => of(q, { ...lrkvRows(3), ...lrkvModel, ...change }, { kvHeads: 2 });
      faults.add(name, await faultOf(call, !name.endsWith('Sync'), wanted));
    }
    faults.add('LrkvCache', await faultOf(() => cacheOf(change), false, wanted));
    faults.none();
  });

  test.each([
    ['a gauge that commutes', { rope, ropeMode: 'none', keyGauge: pairGauge() }],
    ['any gauge where keys are rotated whole', { rope, keyGauge: normal([2, 5, 8], 1) }],
    ['odd ranks where latents are not turned', { rope, ropeMode: 'none' }],
    ['factors that intertwine', intertwines],
    ['factors of zeros', { ...intertwines, keyUp: filled([6, 8], 'float32', () => 0) }],
    ['interleaved pairs', { rope: { ...rope, pairing: 'interleaved' }, ropeMode: 'none' }],
    [
      'a pair that does not turn, mixed as it likes',
      { ...intertwines, rope: { frequencies: [0, 0, 1, 2] }, keyUp: intertwined((data) => data.fill(9, 16, 18)) },
    ],
    ['ranks of 0', { keyRanks: [0, 8], valueRanks: [4, 0] }],
    ['no base', { keyBaseDim: 0, valueBaseDim: 0 }],
    ['normalised keys', { keyNorm: { gain, gainOrder: 'after-rotation' } }],
    ['a gain after rotation with paper', { ...intertwines, keyNorm: after }],
  ])('%s is right', (_what, change) => {
    using cache = cacheOf(change);
    expect(cache.length).toBe(0);
  });
});

describe('lrkvAttention', () => {
  const right = { ...lrkvRows(3), ...lrkvModel };
  const cases: readonly [what: string, args: readonly unknown[], wanted: Refusal][] = [
    ['no second argument', [q], argument('lrkv', 'undefined')],
    ['kvHeads that do not divide', [q, right, { kvHeads: 3 }], argument('kvHeads', '3')],
    ['kvHeads of 0', [q, right, { kvHeads: 0 }], argument('kvHeads', '0')],
    ['more heads than any layer has', [filled([0, 2 ** 40, 2, 8], 'float32', () => 0), right], argument('kvHeads')],
    ['heads of no size', [filled([1, 4, 2, 0], 'float32', () => 0), right], shape('q')],
    ['another batch', [q, { ...right, keyBase: normal([2, 3, 8], 1) }, { kvHeads: 2 }], shape('keyBase')],
    ['another number of rows', [q, { ...right, keyLatent: normal([1, 4, 8], 1) }, { kvHeads: 2 }], shape('keyLatent')],
    ['other columns', [q, { ...right, valueLatent: normal([1, 3, 5], 1) }, { kvHeads: 2 }], shape('valueLatent')],
    [
      'a base without a gauge to it',
      [q, { ...right, keyBase: normal([1, 3, 7], 1) }, { kvHeads: 2 }],
      argument('keyGauge'),
    ],
    [
      'two types',
      [q, { ...right, valueBase: normal([1, 3, 6], 1, 'float16') }, { kvHeads: 2 }],
      { code: 'ERR_TYPE', argument: 'valueBase', received: '"float16"' },
    ],
    ['an option that is none', [q, right, { kvHeads: 2, rank: 3 }], argument('rank')],
  ];
  test.each(cases)('%s', async (_what, args, wanted) => {
    const faults = new Faults();
    for (const [name, of] of Object.entries(functions))
      faults.add(name, await faultOf(() => of(...args), !name.endsWith('Sync'), wanted));
    faults.none();
  });
});

describe('new LrkvCache', () => {
  test('sizes and options', async () => {
    const faults = new Faults();
    const refused = (change: object, wanted: Refusal) => faultOf(() => cacheOf(change), false, wanted);
    for (const name of ['heads', 'headDim', 'valueDim', 'keyBaseDim', 'valueBaseDim', 'capacity']) {
      for (const wrong of [-1, 1.5, Infinity, '8', null])
        faults.add(`${name} ${wrong}`, await refused({ [name]: wrong }, argument(name)));
    }
    faults.add('heads', await refused({ heads: 2 ** 16 + 1 }, argument('heads', '65537')));
    faults.add('keyBaseDim', await refused({ keyBaseDim: 5 }, argument('keyGauge', 'undefined')));
    faults.add('valueBaseDim', await refused({ valueBaseDim: 7 }, argument('valueGauge', 'undefined')));
    faults.add('type', await refused({ type: 'float64' }, { code: 'ERR_TYPE', argument: 'type' }));
    faults.add('device', await refused({ device: 'cuda' }, { code: 'ERR_DEVICE', argument: 'device' }));
    for (const [wrong, received] of primitives) {
      const make = () => new (LrkvCache as unknown as new (o: unknown) => LrkvCache)(wrong);
      faults.add(received, await faultOf(make, false, argument('options', received)));
    }
    const nothing = { keyUp: normal([0, 8], 1), keyRanks: [0, 0], keyBaseDim: 0 };
    const all = { ...nothing, valueUp: normal([0, 6], 1), valueRanks: [0, 0], valueBaseDim: 0 };
    faults.add('no elements at all', await refused(all, shape('keyUp')));
    faults.none();
  });

  test('takes defaults from the gauges', () => {
    using cache = cacheOf({ keyGauge: normal([2, 5, 8], 1), valueGauge: normal([2, 0, 6], 1) });
    expect([cache.keyBaseDim, cache.valueBaseDim]).toEqual([5, 0]);
  });
});

describe('append', () => {
  test('what is no row of the cache', async () => {
    using cache = smallLrkvCache();
    const faults = new Faults();
    const refused = (rows: unknown, wanted: Refusal) =>
      faultOf(() => (cache.append as Loose).call(cache, rows), false, wanted);
    faults.add('none', await refused(undefined, argument('rows', 'undefined')));
    faults.add('a tensor', await refused(q, argument('data')));
    for (const name of ['keyBase', 'keyLatent', 'valueBase', 'valueLatent'] as const) {
      const rows = lrkvRows(2);
      const [, , columns] = rows[name].dims as [number, number, number];
      faults.add(name, await refused({ ...rows, [name]: undefined }, { code: 'ERR_TYPE', argument: name }));
      faults.add(name, await refused({ ...rows, [name]: normal([1, 2, columns + 1], 1) }, shape(name)));
      faults.add(name, await refused({ ...rows, [name]: normal([2, 2, columns], 1) }, shape(name)));
      faults.add(name, await refused({ ...rows, [name]: normal([2, columns], 1) }, shape(name)));
    }
    expect(cache.length).toBe(5);
    faults.none();
  });

  test('past the capacity', async () => {
    using cache = cacheOf({ capacity: 4 });
    cache.append(lrkvRows(3));
    const wanted = { code: 'ERR_MEMORY', argument: 'keyBase', received: '2' } as const;
    expect(await faultOf(() => cache.append(lrkvRows(2)), false, wanted)).toBeUndefined();
    expect(cache.length).toBe(3);
  });
});

test('an output over the factors that a cache or a layer reads in place', async () => {
  const faults = new Faults();
  const wanted = argument('out', 'a view that overlaps an input');
  const over = (tensor: Tensor, dims: readonly number[]): Tensor => {
    const { buffer } = tensor.data as Float32Array;
    return { data: new Float32Array(buffer, buffer.byteLength - 4 * 48, 48), dims, type: 'float32' };
  };
  const own = (dims: readonly number[]): Tensor => {
    const size = dims.reduce((a, b) => a * b, 1);
    // At the end of memory that has room for an output, over which the tensor reaches by one element.
    const data = new Float32Array(size + 47);
    return { data: data.subarray(0, size), dims, type: 'float32' };
  };
  const change = { keyUp: own([8, 8]), keyGauge: own([2, 8, 8]), valueUp: own([4, 6]), valueGauge: own([2, 6, 6]) };
  using cache = cacheOf(change);
  cache.append(lrkvRows(5));
  const shape = { heads: 4, kvHeads: 2, modelDim: 10, outDim: 12, keyRank: [3, 5], valueRank: [1, 3], valueDim: 6 };
  const layer = lrkvLayer({ ...lrkvWeights(shape), ...change });
  for (const [name, tensor] of Object.entries(change)) {
    const attend = () => cache.attend(q, { out: over(tensor, [1, 4, 2, 6]) });
    faults.add(`a cache, ${name}`, await faultOf(attend, true, wanted));
    const forward = () => layer.forward(normal([1, 4, 10], 1), { out: over(tensor, [1, 4, 12]) });
    faults.add(`a layer, ${name}`, await faultOf(forward, true, wanted));
  }
  faults.none();
});

describe('kinds of caches', () => {
  test('are not taken for each other', async () => {
    using cache = smallLrkvCache();
    using keyValue = smallCache();
    const faults = new Faults();
    const type = { code: 'ERR_TYPE', argument: 'cache' } as const;
    const borrowed = { append: KvCache.prototype.append as Loose, fork: KvCache.prototype.fork as Loose };
    for (const [name, method] of Object.entries(borrowed))
      faults.add(name, await faultOf(() => method.call(cache, q, q), false, type));
    for (const name of ['append', 'appendHiddenSync', 'fork'] as const)
      faults.add(name, await faultOf(() => (LrkvCache.prototype[name] as Loose).call(keyValue, q, q), false, type));
    const hidden = () => LrkvCache.prototype.appendHidden.call(keyValue as never, q, lrkvProjections);
    faults.add('appendHidden', await faultOf(hidden, true, type));
    faults.none();
  });

  test('nor read in one call, nor caches of two models', async () => {
    using cache = smallLrkvCache();
    using keyValue = smallCache();
    using other = cacheOf({ valueUp: normal([4, 6], 99) });
    using wide = cacheOf({ valueDim: 5, valueUp: normal([4, 5], 99) });
    using half = cacheOf({ type: 'float16' });
    const faults = new Faults();
    for (const [wrong, code] of [
      [keyValue, 'ERR_ARGUMENT'],
      [other, 'ERR_ARGUMENT'],
      [wide, 'ERR_SHAPE'],
      [half, 'ERR_SHAPE'],
    ] as const) {
      const items = [
        { cache, query: q },
        { cache: wrong, query: q },
      ];
      const wanted = { code, argument: 'items[1].cache' };
      faults.add(code, await faultOf(() => attendBatch(items), true, wanted));
      faults.add(`${code}, sync`, await faultOf(() => attendBatchSync(items), false, wanted));
    }
    faults.none();
  });

  test('equal models that are not one object are one model', () => {
    using cache = smallLrkvCache();
    using twin = cacheOf({ keyUp: { ...lrkvModel.keyUp, data: (lrkvModel.keyUp.data as Float32Array).slice() } });
    twin.append(lrkvRows(4));
    using fork = cache.fork();
    const outputs = attendBatchSync([cache, twin, fork].map((each) => ({ cache: each, query: q })));
    expect(outputs).toEqual([cache, twin, fork].map((each) => each.attendSync(q)));
  });
});

describe('ratio and bytes', () => {
  // Of 2 heads of 8 and 6 a KvCache holds 28 elements a position.
  test.each([
    ['ranks of 3, 5 and 1, 3, padded to 8', {}, (8 + 16 + 6 + 16) / 28],
    ['a base of keys less', { keyBaseDim: 0 }, (16 + 6 + 16) / 28],
    ['a head without a residual', { keyRanks: [0, 8] }, (8 + 8 + 6 + 16) / 28],
    ['scales of normalised keys', { keyNorm: {} }, (8 + 16 + 6 + 16 + 2) / 28],
    ['scales beside 16-bit elements', { keyNorm: {}, type: 'bfloat16' }, (8 + 16 + 6 + 16 + 4) / 28],
    ['whole keys', { rope }, (16 + 6 + 16) / 28],
    ['whole keys, normalised', { rope, keyNorm: {} }, (16 + 6 + 16) / 28],
    ['latents that are turned', intertwines, (8 + 16 + 6 + 16) / 28],
  ] as const)('%s', (_what, change, ratio) => {
    using cache = cacheOf(change);
    using keyValue = new KvCache({ heads: 2, headDim: 8, valueDim: 6, type: cache.type });
    expect(cache.ratio).toBe(ratio);
    expect(cache.byteLength).toBe(0);
    cache.append(lrkvRows(130, { keyLatents: 'keyUp' in change ? 6 : 8, keyBaseDim: 'keyBaseDim' in change ? 0 : 8 }));
    keyValue.append(normal([1, 2, 130, 8], 1), normal([1, 2, 130, 6], 2));
    // Two pages of 128 positions.
    expect(cache.byteLength).toBeCloseTo(keyValue.byteLength * ratio, 6);
  });
});
