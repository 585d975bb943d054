/** Options of Nyström attention that do not go together, and those that it cannot have. */
import { type NystromOptions, nystromAttention, nystromAttentionSync } from '../lib';
import { normalInputs } from './data';
import { Faults, faultOf, type Refusal } from './refusal';

const { q, k, v } = normalInputs({ batch: 1, heads: 2, queries: 9, keys: 9, headDim: 4 }, 1);

async function refused(rows: readonly (readonly [options: object, wanted: Refusal])[]): Promise<void> {
  const faults = new Faults();
  for (const [options, wanted] of rows) {
    for (const call of [nystromAttention, nystromAttentionSync]) {
      const fault = await faultOf(() => call(q, k, v, options as NystromOptions), call === nystromAttention, wanted);
      faults.add(`${call.name} ${wanted.argument}`, fault);
    }
  }
  faults.none();
}

test('what would need causality or the whole matrix is refused by name, with the reason', async () => {
  const given: Readonly<Record<string, unknown>> = {
    causal: true,
    window: [1, 1],
    queryOffset: 0,
    mask: { data: new Uint8Array(81), dims: [9, 9], type: 'bool' },
    state: {},
    cache: {},
  };
  await refused(
    Object.entries(given).flatMap(([argument, value]) => {
      const wanted = { code: 'ERR_UNSUPPORTED', argument } as const;
      class Accessor {
        get [argument]() {
          return value;
        }
      }
      return [
        [{ [argument]: value }, wanted],
        [new Accessor(), wanted],
      ] as const;
    }),
  );
  expect(() => nystromAttentionSync(q, k, v, { causal: true } as NystromOptions)).toThrow(/future/);
  nystromAttentionSync(q, k, v, { causal: undefined } as NystromOptions);
});

test('options that exclude each other', async () => {
  const code = 'ERR_ARGUMENT';
  await refused([
    [
      { landmarks: 2, landmarkIndices: [0, 1] },
      { code, argument: 'landmarks', received: '2' },
    ],
    [
      { pinv: 'svd', iterations: 6 },
      { code, argument: 'iterations', received: '6' },
    ],
    [
      { pinv: 'iterative', regularization: 0.1 },
      { code, argument: 'regularization', received: '0.1' },
    ],
    ...[-0.1, NaN, Infinity, '0', null].map(
      (regularization) =>
        [
          { pinv: 'svd', regularization },
          { code, argument: 'regularization' },
        ] as const,
    ),
  ]);
});

test('positions of landmarks where queries and keys are as many', async () => {
  const code = 'ERR_ARGUMENT';
  await refused([
    [{ landmarkIndices: [0, 9] }, { code, argument: 'landmarkIndices[1]', received: '9' }],
    [{ landmarkIndices: [3, 1, 3] }, { code, argument: 'landmarkIndices[2]', received: '3' }],
    [{ landmarkIndices: [] }, { code: 'ERR_SHAPE', argument: 'landmarkIndices', received: '[]' }],
    [{ landmarkIndices: new Array(2 ** 32 - 1) }, { code: 'ERR_SHAPE', argument: 'landmarkIndices' }],
  ]);
  const wanted = nystromAttentionSync(q, k, v, { landmarkIndices: [2, 5] });
  for (const landmarkIndices of [Int32Array.of(2, 5), { query: [2, 5], key: Int32Array.of(2, 5) }]) {
    expect(nystromAttentionSync(q, k, v, { landmarkIndices })).toEqual(wanted);
  }
});

test('out over a mask or a filter', async () => {
  const wanted = { code: 'ERR_ARGUMENT', argument: 'out', received: 'a view that overlaps an input' } as const;
  const out = { data: new Float32Array(72), dims: [1, 2, 9, 4], type: 'float32' };
  const bits = { data: new Uint8Array(out.data.buffer, 20, 9), dims: [1, 9], type: 'bool' };
  await refused([
    [{ out, keyMask: bits }, wanted],
    [{ out, queryMask: bits }, wanted],
    [{ out, convKernel: { data: out.data.subarray(3, 6), dims: [1, 3], type: 'float32' } }, wanted],
  ]);
});
