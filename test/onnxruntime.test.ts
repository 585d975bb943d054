/**
 * An independent answer: onnxruntime computes the same on the same inputs, in the same run (`peer.ts`).
 *
 * @jest-environment ./test/native-realm-environment.js
 */

import {
  groupQueryAttention,
  multiHeadAttention,
  type OnnxAttentionParts,
  onnxAttention,
} from '../lib/cli/peer/models';
import type { Attribute } from '../lib/cli/peer/onnx-model';
import type { OnnxTensor } from '../lib/cli/peer/onnxruntime';
import { attentionSync, KvCache } from '../lib/index';
import type { MaskTensor, Tensor } from '../lib/tensor';
import { additiveMask, boolMask, normal, normalInputs, type Shape, slice } from './data';
import { expectSame, feed, peer, run } from './peer';
import type { AttentionMeaning } from './problem';

interface OnnxCase {
  readonly shape: Shape;
  readonly parts?: OnnxAttentionParts;
  readonly mask?: MaskTensor;
  /** How many of the keys onnxruntime gets as the past. */
  readonly past?: number;
  readonly meaning?: AttentionMeaning;
}

const plain: Shape = { batch: 2, heads: 3, queries: 37, keys: 37, headDim: 64 };
const cross: Shape = { batch: 2, heads: 4, kvHeads: 2, queries: 29, keys: 67, headDim: 48, valueDim: 80 };
const causal = { is_causal: { int: 1 } };

/** ONNX aligns causality at the first key, or behind the past; we do at the last. */
const onnxCases: Readonly<Record<string, OnnxCase>> = {
  'every key': { shape: plain },
  causal: { shape: plain, parts: { attributes: causal }, meaning: { causal: true } },
  'shared key heads': { shape: { ...plain, heads: 6, kvHeads: 2 } },
  'one key head': { shape: { ...plain, heads: 5, kvHeads: 1 } },
  'different head sizes': { shape: cross },
  'causal from the first key': {
    shape: cross,
    parts: { attributes: causal },
    meaning: { causal: true, queryOffset: 0 },
  },
  scale: { shape: plain, parts: { attributes: { scale: { float: 0.25 } } }, meaning: { scale: 0.25 } },
  softcap: { shape: plain, parts: { attributes: { softcap: { float: 2 } } }, meaning: { softcap: 2 } },
  'bool mask for all': { shape: cross, mask: boolMask([29, 67], 11) },
  'bool mask a head': { shape: cross, mask: boolMask([2, 4, 29, 67], 12) },
  'bool mask a sequence': { shape: cross, mask: boolMask([2, 1, 29, 67], 13) },
  'float mask for all': { shape: cross, mask: additiveMask([29, 67], 14) },
  'float mask a head': { shape: cross, mask: additiveMask([2, 4, 29, 67], 15) },
  'bool mask and causal': {
    shape: plain,
    mask: boolMask([37, 37], 16),
    parts: { attributes: causal },
    meaning: { causal: true },
  },
  'float mask and softcap': {
    shape: plain,
    mask: additiveMask([37, 37], 17),
    parts: { attributes: { softcap: { float: 3 } } },
    meaning: { softcap: 3 },
  },
  past: { shape: cross, past: 51 },
  'past and causal': {
    shape: { ...cross, queries: 16 },
    past: 51,
    parts: { attributes: causal },
    meaning: { causal: true },
  },
  'one query after a past': { shape: { ...cross, queries: 1 }, past: 66 },
};

describe.each([23, 24] as const)('Attention of ONNX operator set %i', (opset) => {
  test.each(Object.entries(onnxCases))('%s', async (_, { shape, parts, mask, past, meaning = {} }) => {
    const { q, k, v } = normalInputs(shape, 1);
    const keys = shape.keys;
    const given = past === undefined ? { k, v } : { k: slice(k, 2, past, keys), v: slice(v, 2, past, keys) };
    const { o, allK, allV } = await run(
      onnxAttention({
        opset,
        ...parts,
        past: past !== undefined,
        ...(mask === undefined ? {} : { mask: { type: mask.type, dims: mask.dims } }),
      }),
      {
        q: feed(q),
        k: feed(given.k),
        v: feed(given.v),
        ...(mask === undefined ? {} : { mask: feed(mask) }),
        ...(past === undefined ? {} : { pastK: feed(slice(k, 2, 0, past)), pastV: feed(slice(v, 2, 0, past)) }),
      },
    );
    const options = { ...meaning, ...(mask === undefined ? {} : { mask }) };
    expectSame(attentionSync(q, k, v, options), o as OnnxTensor, q, k, v, options);
    if (past !== undefined) {
      expect(allK?.data).toEqual((k.data as Float32Array).slice());
      expect(allV?.data).toEqual((v.data as Float32Array).slice());
    }
  });
});

describe('MultiHeadAttention', () => {
  const [batch, heads, dim] = [2, 3, 40];
  test.each([
    ['every key', 33, 33, false],
    ['other lengths', 19, 58, false],
    ['causal', 33, 33, true],
  ] as const)('%s', async (_, queries, keys, isCausal) => {
    const { q, k, v } = normalInputs({ batch, heads, queries, keys, headDim: dim, layout: 'blhd' }, 2);
    const { o } = await run(multiHeadAttention(heads, dim, isCausal), {
      q: feed(q, [batch, queries, heads * dim]),
      k: feed(k, [batch, keys, heads * dim]),
      v: feed(v, [batch, keys, heads * dim]),
    });
    const options = { layout: 'blhd', causal: isCausal } as const;
    expectSame(attentionSync(q, k, v, options), o as OnnxTensor, q, k, v, options);
  });
});

interface GroupCase {
  readonly heads: number;
  readonly kvHeads: number;
  readonly attributes?: Readonly<Record<string, Attribute>>;
  readonly meaning?: AttentionMeaning;
}

const groupCases: Readonly<Record<string, GroupCase>> = {
  'a key head for each query head': { heads: 3, kvHeads: 3 },
  'shared key heads': { heads: 8, kvHeads: 2 },
  'one key head': { heads: 4, kvHeads: 1 },
  // Its window counts the query's own key.
  window: { heads: 4, kvHeads: 2, attributes: { local_window_size: { int: 9 } }, meaning: { window: [8, 0] } },
  softcap: { heads: 4, kvHeads: 2, attributes: { softcap: { float: 2 } }, meaning: { softcap: 2 } },
  scale: { heads: 4, kvHeads: 2, attributes: { scale: { float: 0.3 } }, meaning: { scale: 0.3 } },
  // A one in the denominator: a sink whose logit is 0.
  'smooth softmax': {
    heads: 4,
    kvHeads: 2,
    attributes: { smooth_softmax: { int: 1 } },
    meaning: { sinks: new Float32Array(4) },
  },
};

describe('GroupQueryAttention with its cache, against KvCache', () => {
  const dim = 32;
  // A prompt, single tokens across a page's end of ours, and a few tokens at once.
  const steps = [126, 1, 1, 1, 5, 1];
  const total = steps.reduce((a, b) => a + b, 0);

  test.each(Object.entries(groupCases))('%s', async (_, { heads, kvHeads, attributes, meaning = {} }) => {
    const shape = { heads, kvHeads, queries: total, keys: total, headDim: dim };
    const { q, k, v } = normalInputs({ ...shape, layout: 'blhd' }, 3);
    const session = await peer.session(groupQueryAttention(heads, kvHeads, dim, attributes), 2, false);
    using cache = new KvCache({ heads: kvHeads, headDim: dim });
    let pastK = peer.tensor('float32', new Float32Array(0), [1, kvHeads, 0, dim]);
    let pastV = pastK;
    let length = 0;
    try {
      for (const count of steps) {
        const start = length;
        length += count;
        const part = (of: Tensor) => slice(of, 1, start, length);
        const flat = (of: Tensor) => feed(part(of), [1, count, (of.dims[2] as number) * dim]);
        const sizes = { lastKey: peer.int32(length - 1), total: peer.int32(length) };
        const result = await session.run({ q: flat(q), k: flat(k), v: flat(v), pastK, pastV, ...sizes });
        ({ allK: pastK, allV: pastV } = result as { allK: OnnxTensor; allV: OnnxTensor });

        const options = { ...meaning, layout: 'blhd' } as const;
        cache.append(part(k), part(v), { layout: 'blhd' });
        const ours = cache.attendSync(part(q), options);
        const [keys, values] = [slice(k, 1, 0, length), slice(v, 1, 0, length)];
        expectSame(ours, result.o as OnnxTensor, part(q), keys, values, { ...options, causal: true });
      }
    } finally {
      await session.release();
    }
  });

  test('a whole prompt at once, against attention', async () => {
    const [heads, kvHeads] = [4, 2];
    const { q, k, v } = normalInputs({ heads, kvHeads, queries: total, keys: total, headDim: dim, layout: 'blhd' }, 4);
    const none = peer.tensor('float32', new Float32Array(0), [1, kvHeads, 0, dim]);
    const flat = (of: Tensor) => feed(of, [1, total, (of.dims[2] as number) * dim]);
    const sizes = { lastKey: peer.int32(total - 1), total: peer.int32(total) };
    const feeds = { q: flat(q), k: flat(k), v: flat(v), pastK: none, pastV: none, ...sizes };
    const { o } = await run(groupQueryAttention(heads, kvHeads, dim), feeds);
    const options = { layout: 'blhd', causal: true } as const;
    expectSame(attentionSync(q, k, v, options), o as OnnxTensor, q, k, v, options);
  });
});

test('the comparison notices the answer to other inputs', async () => {
  const { q, k, v } = normalInputs(plain, 5);
  const { o } = await run(onnxAttention(), { q: feed(q), k: feed(k), v: feed(normal(v.dims, 99)) });
  expect(() => expectSame(attentionSync(q, k, v), o as OnnxTensor, q, k, v, {})).toThrow(/out of tolerance|unfit data/);
});
