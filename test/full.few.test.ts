/**
 * Attention of many rows over few keys has a loop of its own (cpu/few.h), which takes over from 24 rows a key/value head
 * up to 256 keys: both sides of these borders, of whole vectors and of whole panels.
 */
import { KvCache, type TensorOf } from '../lib';
import { filled, type Inputs, normalInputs, types } from './data';
import { expectAttention } from './expectation';
import { checkAttention } from './full-run';
import { toFloat64 } from './half';
import { isaRows } from './rows';
import { compare } from './tolerance';

const rows = isaRows('full');

function checkRows(inputs: Inputs, options: Parameters<typeof checkAttention>[1] = {}) {
  const expected = expectAttention(inputs.q, inputs.k, inputs.v, options);
  for (const isa of rows) checkAttention(inputs, options, { isa, threads: 2 }, expected);
}

describe.each([1, 15, 16, 17, 31, 33, 64, 255, 256, 257])('%d keys', (keys) => {
  test.each([23, 24, 25, 49, 130])('%d queries', (queries) => {
    checkRows(normalInputs({ queries, keys, headDim: 20, valueDim: 36 }, keys + queries));
  });
});

describe.each(types)('%s', (type) => {
  test.each([
    [64, 64],
    [1, 1],
    [7, 33],
    [130, 256],
  ])('head sizes %d and %d', (headDim, valueDim) => {
    checkRows(normalInputs({ batch: 2, queries: 60, keys: 77, headDim, valueDim }, headDim, type));
  });

  test('shared heads, in either layout', () => {
    for (const layout of ['bhld', 'blhd'] as const) {
      const shape = { batch: 2, heads: 6, kvHeads: 2, queries: 17, keys: 50, headDim: 24, valueDim: 40, layout };
      checkRows(normalInputs(shape, 5, type), { layout });
    }
  });

  test('lengths of padded sequences, on both sides of the border', () => {
    const inputs = normalInputs({ batch: 3, heads: 2, queries: 70, keys: 300, headDim: 32 }, 6, type);
    checkRows(inputs, { keyLengths: [256, 300, 0], queryLengths: [70, 24, 40] });
  });
});

test('NaN and infinities stay in their rows', () => {
  const { q, k, v } = normalInputs({ heads: 1, queries: 40, keys: 30, headDim: 16 }, 7);
  const data = toFloat64(q);
  data.fill(NaN, 3 * 16, 4 * 16);
  data.fill(Infinity, 9 * 16, 9 * 16 + 1);
  checkRows({ q: filled(q.dims, 'float32', (i) => data[i]), k, v });
});

test.each(types)('%s keys spread over pages of a cache', (type) => {
  const { q, k, v } = normalInputs({ heads: 2, queries: 40, keys: 200, headDim: 24 }, 9, type);
  using cache = new KvCache({ heads: 2, headDim: 24, type });
  cache.append(k, v);
  const expected = expectAttention(q, k, v, {});
  for (const isa of rows) {
    const { output, lse } = cache.attendWithLseSync(q, { causal: false, isa });
    compare(output, expected.output, `output (${isa})`);
    compare(lse as TensorOf<'float32'>, expected.lse, `lse (${isa})`);
  }
});
