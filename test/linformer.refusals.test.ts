/** What Linformer refuses beside wrong tensors and options, which `bad-input.*.test.ts` tries on all functions alike. */
import { LinformerState, type LinformerStateOptions, linformerAttention, linformerAttentionSync, zeros } from '../lib';
import { filled, normal } from './data';
import { smallState } from './entries';
import { Faults, faultOf, type Refusal } from './refusal';
import { detached, primitives, wrongTensors } from './wrong-tensors';

// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
type Loose = (...args: any[]) => unknown;

const [q, k, v] = [zeros([1, 4, 3, 8]), zeros([1, 2, 5, 8]), zeros([1, 2, 5, 6])];
const keyProjection = zeros([3, 7]);
const query = zeros([1, 4, 2, 8]);

describe('options of exact attention that a projection cannot honour are refused with the reason', () => {
  const mixing = /mixes all positions/;
  const reasons = {
    causal: mixing,
    queryOffset: mixing,
    window: mixing,
    mask: mixing,
    keyLengths: /keyMask/,
    queryLengths: /not defined/,
    softcap: /not defined/,
    sinks: /not defined/,
  };
  const ways: readonly [string, boolean, (options: object) => unknown][] = [
    ['linformerAttention', true, (options) => (linformerAttention as Loose)(q, k, v, { keyProjection, ...options })],
    [
      'linformerAttentionSync',
      false,
      (options) => (linformerAttentionSync as Loose)(q, k, v, { keyProjection, ...options }),
    ],
    ['append', false, (options) => (smallState().append as Loose).call(smallState(), k, v, options)],
    ['attend', true, (options) => (smallState().attend as Loose).call(smallState(), query, options)],
    ['attendSync', false, (options) => (smallState().attendSync as Loose).call(smallState(), query, options)],
  ];
  test.each(ways)('%s', async (_name, asynchronous, call) => {
    const faults = new Faults();
    for (const [option, reason] of Object.entries(reasons)) {
      for (const value of [true, false, 0, null, {}]) {
        const wanted = { code: 'ERR_UNSUPPORTED', argument: option } as const;
        faults.add(option, await faultOf(() => call({ [option]: value }), asynchronous, wanted));
      }
      const message = await Promise.resolve()
        .then(() => call({ [option]: 1 }))
        .catch((error: Error) => error.message);
      expect(message).toMatch(reason);
      // Not given is not asked for.
      await call({ [option]: undefined });
    }
    faults.none();
  });

  test('accessors of a class too', async () => {
    class Options {
      readonly keyProjection = keyProjection;
      get causal() {
        return true;
      }
    }
    const call = () => linformerAttentionSync(q, k, v, new Options());
    expect(await faultOf(call, false, { code: 'ERR_UNSUPPORTED', argument: 'causal' })).toBeUndefined();
  });
});

test('wrong value projections', async () => {
  const faults = new Faults();
  const right = filled([3, 7], 'float32', (i) => i);
  const refused = (valueProjection: unknown, wanted: Omit<Refusal, 'argument'>) =>
    faultOf(() => (linformerAttentionSync as Loose)(q, k, v, { keyProjection, valueProjection }), false, {
      argument: 'valueProjection',
      ...wanted,
    });
  for (const { way, value, ...wanted } of wrongTensors(right, 2)) {
    if (value !== undefined) faults.add(way, await refused(value, wanted));
  }
  for (const dims of [[3, 8], [2, 7], [2, 3, 7], [21]]) {
    faults.add(`[${dims}]`, await refused(zeros(dims), { code: 'ERR_SHAPE', received: `[${dims.join(', ')}]` }));
  }
  faults.add('float16', await refused(zeros([3, 7], 'float16'), { code: 'ERR_TYPE', received: '"float16"' }));
  const perHead = { keyProjection: zeros([2, 3, 7]), valueProjection: zeros([3, 7]) };
  const wanted = { code: 'ERR_SHAPE', argument: 'valueProjection', received: '[3, 7]' } as const;
  faults.add('of all heads', await faultOf(() => linformerAttentionSync(q, k, v, perHead), false, wanted));
  faults.none();
});

test('an output that overlaps a projection or a mask', async () => {
  const faults = new Faults();
  const memory = new Float32Array(200);
  const out = { data: memory.subarray(0, 72), dims: [1, 4, 3, 6], type: 'float32' } as const;
  const over = { data: memory.subarray(60, 81), dims: [3, 7], type: 'float32' } as const;
  const keyMask = { data: new Uint8Array(memory.buffer, 0, 5), dims: [1, 5], type: 'bool' } as const;
  const wanted = { code: 'ERR_ARGUMENT', argument: 'out', received: 'a view that overlaps an input' } as const;
  for (const options of [
    { keyProjection: over },
    { keyProjection, valueProjection: over },
    { keyProjection, keyMask },
  ]) {
    faults.add(
      Object.keys(options).join(),
      await faultOf(() => linformerAttentionSync(q, k, v, { ...options, out }), false, wanted),
    );
  }
  faults.none();
});

test('a workspace that no memory holds', async () => {
  // Little data, but K′ and V′ of 2^44 elements and more.
  const tall = zeros([2 ** 24, 1]);
  const wide = zeros([1, 1, 1, 2 ** 20]);
  const call = () => linformerAttentionSync(wide, wide, wide, { keyProjection: tall });
  const error = await Promise.resolve()
    .then(call)
    .catch((caught: unknown) => caught);
  expect(error).toMatchObject({ code: 'ERR_MEMORY' });
});

describe('LinformerState', () => {
  const right = { keyProjection, heads: 2, headDim: 8 };
  const refused = (options: unknown, wanted: Refusal) =>
    faultOf(() => new LinformerState(options as LinformerStateOptions), false, wanted);

  test('wrong options', async () => {
    const faults = new Faults();
    for (const [value, received] of primitives) {
      faults.add(received, await refused(value, { code: 'ERR_ARGUMENT', argument: 'options', received }));
      for (const name of ['heads', 'headDim', 'valueDim', 'batch']) {
        if (value === 5 || (value === undefined && !['heads', 'headDim'].includes(name))) continue;
        const wanted = { code: 'ERR_ARGUMENT', argument: name, received } as const;
        faults.add(`${name} ${received}`, await refused({ ...right, [name]: value }, wanted));
      }
      const wanted = { code: 'ERR_TYPE', argument: 'keyProjection', received } as const;
      faults.add(`keyProjection ${received}`, await refused({ ...right, keyProjection: value }, wanted));
      if (value === undefined) continue;
      const other = { ...wanted, argument: 'valueProjection' };
      faults.add(`valueProjection ${received}`, await refused({ ...right, valueProjection: value }, other));
    }
    for (const name of ['heads', 'headDim', 'valueDim', 'batch']) {
      for (const value of [0, -1, 1.5, Infinity, 2 ** 31]) {
        const wanted = { code: 'ERR_ARGUMENT', argument: name, received: `${value}` } as const;
        faults.add(`${name} ${value}`, await refused({ ...right, [name]: value }, wanted));
      }
    }
    const shape = (argument: string) => ({ code: 'ERR_SHAPE', argument }) as const;
    for (const dims of [[7], [3, 0], [0, 7], [3, 3, 7], [1, 2, 3, 7]]) {
      faults.add(`[${dims}]`, await refused({ ...right, keyProjection: zeros(dims) }, shape('keyProjection')));
    }
    faults.add('F', await refused({ ...right, valueProjection: zeros([3, 8]) }, shape('valueProjection')));
    faults.add(
      'cap',
      await refused({ ...right, capacity: 3 }, { code: 'ERR_ARGUMENT', argument: 'capacity', received: '3' }),
    );
    faults.none();
  });

  test('a size that no memory holds', async () => {
    const huge = { ...right, headDim: 2 ** 30, batch: 2 ** 20 };
    expect(await refused(huge, { code: 'ERR_MEMORY', argument: 'state' })).toBeUndefined();
  });

  test('once disposed', async () => {
    const faults = new Faults();
    const state = smallState();
    state.dispose();
    state.dispose();
    expect(state.byteLength).toBe(0);
    expect(state.length).toBe(0);
    const closed = { code: 'ERR_CLOSED', argument: 'state', received: 'a disposed one' } as const;
    faults.add('append', await faultOf(() => state.append(k, v), false, closed));
    faults.add('attend', await faultOf(() => state.attend(query), true, closed));
    faults.add('attendSync', await faultOf(() => state.attendSync(query), false, closed));
    faults.add('fork', await faultOf(() => state.fork(), false, closed));
    faults.none();
  });

  test('disposed while its arguments are read', async () => {
    const faults = new Faults();
    const closed = { code: 'ERR_CLOSED', argument: 'state', received: 'a disposed one' } as const;
    for (const way of ['append', 'attendSync'] as const) {
      const state = smallState();
      const trap = {
        get layout() {
          state.dispose();
          return undefined;
        },
      };
      const call = () => (way === 'append' ? state.append(k, v, trap) : state.attendSync(query, trap));
      faults.add(way, await faultOf(call, false, closed));
    }
    faults.none();
  });

  test('keys whose memory goes while values are read', async () => {
    const key = normal(k.dims, 1);
    const trap = {
      ...v,
      get data() {
        detached(key.data as Float32Array);
        return v.data;
      },
    };
    const wanted = { code: 'ERR_ARGUMENT', argument: 'key', received: 'an array that changed meanwhile' } as const;
    expect(await faultOf(() => smallState().append(key, trap), false, wanted)).toBeUndefined();
  });

  test('methods of something else', async () => {
    const faults = new Faults();
    const { append, attend, attendSync, fork, dispose } = LinformerState.prototype;
    for (const other of [
      {},
      null,
      undefined,
      5,
      Object.create(LinformerState.prototype),
      new Proxy(smallState(), {}),
    ]) {
      const wanted = { code: 'ERR_TYPE', argument: 'state' } as const;
      faults.add('append', await faultOf(() => append.call(other, k, v), false, wanted));
      faults.add('attend', await faultOf(() => attend.call(other, query), true, wanted));
      faults.add('attendSync', await faultOf(() => attendSync.call(other, query), false, wanted));
      faults.add('fork', await faultOf(() => fork.call(other), false, wanted));
      faults.add('dispose', await faultOf(() => dispose.call(other), false, wanted));
    }
    faults.none();
  });

  test('projections whose memory went elsewhere', async () => {
    const faults = new Faults();
    const gone = zeros([3, 7]);
    const state = new LinformerState({ ...right, keyProjection: gone, valueDim: 6 });
    state.append(k, v);
    structuredClone(gone.data, { transfer: [gone.data.buffer as ArrayBuffer] });
    const wanted = {
      code: 'ERR_ARGUMENT',
      argument: 'keyProjection',
      received: 'an array that changed meanwhile',
    } as const;
    faults.add('append', await faultOf(() => state.append(zeros([1, 2, 1, 8]), zeros([1, 2, 1, 6])), false, wanted));
    faults.add('attend', await faultOf(() => state.attend(query), true, wanted));
    faults.none();
    expect(state.length).toBe(5);
  });
});
