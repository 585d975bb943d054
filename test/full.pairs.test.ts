import { attentionWithLse } from '../lib';
import {
  additiveMask,
  boolMask,
  guarded,
  hurtful,
  type Inputs,
  inputDims,
  normalInputs,
  poisonPast,
  swapLayout,
  types,
} from './data';
import { expectAttention } from './expectation';
import { checkAttention, expectSameBits } from './full-run';
import { pairwise } from './pairs';
import type { AttentionMeaning } from './problem';
import { isaRows, once } from './rows';

// Every value of every option with every value of every other, in about as many cases as the two largest lists need.

const extents = {
  'several blocks': { queries: 75, keys: 141, headDim: 24, valueDim: 40 },
  'more queries than keys': { queries: 70, keys: 9, headDim: 3, valueDim: 65 },
  'one query': { queries: 1, keys: 300, headDim: 128, valueDim: 128 },
  'split keys': { queries: 3, keys: 1300, headDim: 17, valueDim: 8 },
} as const;

const rows = pairwise({
  extents: Object.keys(extents) as (keyof typeof extents)[],
  type: types,
  layout: ['bhld', 'blhd'] as const,
  heads: [
    [2, 2],
    [4, 2],
    [3, 1],
  ] as const,
  data: ['normal', 'one huge logit', 'rising logits'],
  causal: ['no', 'default offset', 'given offset'],
  window: ['no', 'left', 'right', 'both'],
  mask: ['no', 'bool over keys', 'bool over all', 'additive over rows', 'additive over all'],
  softcap: [undefined, 3],
  sinks: ['no', 'some'],
  lengths: ['no', 'keys', 'queries', 'both'],
  scale: [undefined, 0.2],
  threads: [1, 2],
});

type Row = (typeof rows)[number];

function build(row: Row): { inputs: Inputs; options: AttentionMeaning } {
  const { queries, keys } = extents[row.extents];
  const [heads, kvHeads] = row.heads;
  const batch = 2;
  const shape = { ...extents[row.extents], batch, heads, kvHeads };
  const { q, k, v } =
    row.data === 'normal' ? normalInputs(shape, 71, row.type) : hurtful[row.data](shape, 71, row.type);

  const keyLengths = row.lengths === 'keys' || row.lengths === 'both' ? [keys - 2, Math.ceil(keys / 3)] : undefined;
  const queryLengths =
    row.lengths === 'queries' || row.lengths === 'both' ? [Math.ceil(queries / 2), queries] : undefined;
  const [wide, near] = [Math.ceil(keys / 2), 2];
  const options: AttentionMeaning = {
    layout: row.layout,
    causal: row.causal !== 'no',
    ...(row.causal === 'given offset' && { queryOffset: Math.floor(keys / 3) }),
    ...(row.window === 'left' && { window: [near, Infinity] as const }),
    ...(row.window === 'right' && { window: [Infinity, near] as const }),
    ...(row.window === 'both' && { window: [wide, near] as const }),
    ...(row.mask === 'bool over keys' && { mask: boolMask([batch, 1, 1, keys], 72, 0.8) }),
    ...(row.mask === 'bool over all' && { mask: boolMask([batch, heads, queries, keys], 73) }),
    ...(row.mask === 'additive over rows' && { mask: additiveMask([queries, keys], 74) }),
    ...(row.mask === 'additive over all' && { mask: additiveMask([batch, heads, queries, keys], 75) }),
    ...(row.softcap !== undefined && { softcap: row.softcap }),
    ...(row.sinks === 'some' && { sinks: Float32Array.of(2, -3, 9, 0).subarray(0, heads) }),
    ...(row.scale !== undefined && { scale: row.scale }),
    ...(keyLengths && { keyLengths }),
    ...(queryLengths && { queryLengths }),
  };
  const padded = {
    q: queryLengths ? poisonPast(q, queryLengths) : q,
    k: keyLengths ? poisonPast(k, keyLengths) : k,
    v: keyLengths ? poisonPast(v, keyLengths) : v,
  };
  const inputs =
    row.layout === 'bhld' ? padded : { q: swapLayout(padded.q), k: swapLayout(padded.k), v: swapLayout(padded.v) };
  expect(inputs.k.dims).toEqual(inputDims({ ...shape, layout: row.layout }).k);
  return { inputs, options };
}

describe.each(rows.map((row) => [JSON.stringify(row), row] as const))('%s', (_name, row) => {
  const prepared = once(() => {
    const { inputs, options } = build(row);
    return { inputs, options, expected: expectAttention(inputs.q, inputs.k, inputs.v, options) };
  });
  test.each(isaRows('full'))('%s', async (isa) => {
    const { inputs, options, expected } = prepared();
    const wanted = checkAttention(inputs, options, { isa, threads: row.threads }, expected);
    const { q, k, v } = inputs;
    const out = guarded(expected.output.dims, q.type);
    const found = await attentionWithLse(q, k, v, { ...options, isa, threads: row.threads, out: out.tensor });
    out.check();
    expectSameBits(found.output, wanted.output);
    expectSameBits(found.lse, wanted.lse);
  });
});
