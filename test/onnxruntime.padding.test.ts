/**
 * Padded batches, biases and pasts in the forms onnxruntime has for them, computed by both in the same run.
 *
 * @jest-environment ./test/native-realm-environment.js
 */

import { groupQueryAttention } from '../lib/cli/peer/models';
import { encodeModel, microsoft, type Value, value } from '../lib/cli/peer/onnx-model';
import type { OnnxTensor } from '../lib/cli/peer/onnxruntime';
import { attendBatchSync, attentionSync, KvCache } from '../lib/index';
import type { MaskTensor, Tensor } from '../lib/tensor';
import { additiveMask, normalInputs, slice } from './data';
import { expectSame, feed, peer, run } from './peer';

describe('MultiHeadAttention', () => {
  const [batch, heads, dim, queries, keys] = [3, 4, 24, 21, 50];
  const rows = (name: string, length: string) => value(name, 'float32', ['b', length, heads * dim]);
  const inputs = { q: rows('q', 's'), k: rows('k', 't'), v: rows('v', 't') };
  const model = (names: readonly string[], more: readonly Value[]) =>
    encodeModel({
      opset: 21,
      nodes: [
        {
          op: 'MultiHeadAttention',
          domain: microsoft,
          inputs: names,
          outputs: ['o'],
          attributes: { num_heads: { int: heads } },
        },
      ],
      inputs: [...Object.values(inputs), ...more],
      outputs: [rows('o', 's')],
    });
  const { q, k, v } = normalInputs({ batch, heads, queries, keys, headDim: dim, layout: 'blhd' }, 21);
  const flat = { q: feed(q, [batch, queries, heads * dim]), k: feed(k, [batch, keys, heads * dim]) };
  const feeds = { ...flat, v: feed(v, [batch, keys, heads * dim]) };

  test('key lengths of a padded batch', async () => {
    const keyLengths = [50, 17, 1];
    const padded = model(['q', 'k', 'v', '', 'lengths'], [value('lengths', 'int32', ['b'])]);
    const { o } = await run(padded, { ...feeds, lengths: peer.int32(...keyLengths) });
    const options = { layout: 'blhd', keyLengths } as const;
    expectSame(attentionSync(q, k, v, options), o as OnnxTensor, q, k, v, options);
  });

  test.each([
    [batch, heads],
    [1, heads],
    [1, 1],
  ])('attention bias of %i sequences and %i heads', async (ownBatch, ownHeads) => {
    const finite = additiveMask([ownBatch, ownHeads, queries, keys], 22, 1.01);
    // Every seventh row of the generator hides all; onnxruntime's softmax of only −∞ is not ours.
    const mask = { ...finite, data: Float32Array.from(finite.data, (x) => (x === -Infinity ? -1 : x)) } as MaskTensor;
    const biased = model(['q', 'k', 'v', '', '', 'bias'], [value('bias', 'float32', mask.dims)]);
    const { o } = await run(biased, { ...feeds, bias: feed(mask) });
    const options = { layout: 'blhd', mask } as const;
    expectSame(attentionSync(q, k, v, options), o as OnnxTensor, q, k, v, options);
  });
});

describe('Attention of ONNX operator set 24', () => {
  test('key lengths of a padded batch', async () => {
    const shape = { batch: 3, heads: 4, kvHeads: 2, queries: 9, keys: 40, headDim: 16, valueDim: 24 };
    const { q, k, v } = normalInputs(shape, 23);
    const keyLengths = [40, 9, 23];
    const rows = (name: string, h: string, length: string, size: string) =>
      value(name, 'float32', ['b', h, length, size]);
    const model = encodeModel({
      opset: 24,
      nodes: [{ op: 'Attention', inputs: ['q', 'k', 'v', '', '', '', 'lengths'], outputs: ['o'] }],
      inputs: [
        rows('q', 'h', 's', 'd'),
        rows('k', 'g', 't', 'd'),
        rows('v', 'g', 't', 'e'),
        value('lengths', 'int64', ['b']),
      ],
      outputs: [rows('o', 'h', 's', 'e')],
    });
    const lengths = peer.tensor('int64', BigInt64Array.from(keyLengths, BigInt), [3]);
    const { o } = await run(model, { q: feed(q), k: feed(k), v: feed(v), lengths });
    expectSame(attentionSync(q, k, v, { keyLengths }), o as OnnxTensor, q, k, v, { keyLengths });
  });
});

describe('GroupQueryAttention on a batch of caches of different lengths, against attendBatch', () => {
  test.each([
    ['plain', {}, {}],
    ['window', { local_window_size: { int: 40 } }, { window: [39, 0] as const }],
  ])('%s', async (_, attributes, meaning) => {
    const [heads, kvHeads, dim] = [8, 2, 32];
    const lengths = [130, 7, 61];
    const [batch, longest] = [lengths.length, Math.max(...lengths)];
    const { k, v } = normalInputs({ batch, heads, kvHeads, queries: 1, keys: longest, headDim: dim }, 24);
    const { q } = normalInputs({ batch, heads, queries: 1, keys: 1, headDim: dim }, 25);
    const one = (tensor: Tensor, b: number) => slice(tensor, 0, b, b + 1);
    // The newest key of each sequence comes with the call, the others as its past.
    const newest = (tensor: Tensor): OnnxTensor => {
      const parts = lengths.map((length, b) => slice(one(tensor, b), 2, length - 1, length).data as Float32Array);
      return peer.tensor('float32', Float32Array.from(parts.flatMap((part) => [...part])), [batch, 1, kvHeads * dim]);
    };
    const { o } = await run(groupQueryAttention(heads, kvHeads, dim, attributes), {
      q: feed(q, [batch, 1, heads * dim]),
      k: newest(k),
      v: newest(v),
      pastK: feed(slice(k, 2, 0, longest - 1)),
      pastV: feed(slice(v, 2, 0, longest - 1)),
      lastKey: peer.int32(...lengths.map((length) => length - 1)),
      total: peer.int32(longest),
    });
    const items = lengths.map((length, b) => {
      const cache = new KvCache({ heads: kvHeads, headDim: dim });
      cache.append(slice(one(k, b), 2, 0, length), slice(one(v, b), 2, 0, length));
      return { cache, query: one(q, b) };
    });
    const ours = attendBatchSync(items, meaning);
    for (const [b, length] of lengths.entries()) {
      const theirs = (o as OnnxTensor).data.slice(b * heads * dim, (b + 1) * heads * dim) as Float32Array;
      const inputs = [one(q, b), slice(one(k, b), 2, 0, length), slice(one(v, b), 2, 0, length)] as const;
      const answer = peer.tensor('float32', theirs, [1, heads, 1, dim]);
      expectSame(ours[b], answer, ...inputs, { causal: true, ...meaning });
      items[b].cache.dispose();
    }
  });
});
