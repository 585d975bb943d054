import { lrkvAttentionWithLse, lrkvAttentionWithLseSync } from '../lib';
import type { Tensor } from '../lib/tensor';
import { boolMask, slice, swapLayout } from './data';
import { expectSameBits } from './full-run';
import { type LrkvFeatures, lrkvInputs, lrkvRows, ropeModes } from './lrkv-run';
import type { LrkvGiven } from './reference-lrkv';

// What the docstring of lrkvAttention promises bit by bit: batch, threads, layout, sync and async. Caches have the same of
// their own in lrkv.cache.test.ts.

const shape = {
  ...{ batch: 3, heads: 6, kvHeads: 3, keys: 700, headDim: 24, valueDim: 40 },
  ...{ keyRank: [6, 0, 14], valueRank: [9, 17, 0] },
};
const features: Readonly<Record<string, LrkvFeatures>> = {
  'no rope, gauges and QK-norm': { keyGauge: 'free', valueGauge: 'free', norm: 'plain' },
  ...Object.fromEntries(ropeModes.map((mode) => [mode, { mode, firstPosition: 3 }])),
};

/** One item of a batch: its rows, and the model of all. */
function item(given: LrkvGiven, index: number): LrkvGiven {
  const { keyBase, keyLatent, valueBase, valueLatent, ...model } = given;
  const own = (tensor: Tensor) => slice(tensor, 0, index, index + 1);
  return {
    ...model,
    ...{ keyBase: own(keyBase), keyLatent: own(keyLatent) },
    ...{ valueBase: own(valueBase), valueLatent: own(valueLatent) },
  };
}

describe.each(lrkvRows)('%s', (isa) => {
  // Whichever form is cheaper is taken, a sequence at a time: few queries meet base and latents, many whole keys.
  test.each(Object.entries(features).flatMap(([name, model]) => [1, 4, 90].map((n) => [name, n, model] as const)))(
    '%s, %i queries: the same bits in any batch, layout and number of threads',
    async (_name, queries, model) => {
      const { q, given, options } = lrkvInputs({ ...shape, queries }, 31, model);
      const mask = boolMask([queries, shape.keys], 32, 0.9);
      const keyLengths = [700, 65, 391];
      const all = { ...options, causal: true, mask, keyLengths, isa };
      const wanted = lrkvAttentionWithLseSync(q, given, { ...all, threads: 1 });
      for (const threads of [2, 3, 7]) {
        for (const found of [
          lrkvAttentionWithLseSync(q, given, { ...all, threads }),
          await lrkvAttentionWithLse(q, given, { ...all, threads }),
        ]) {
          expectSameBits(found.output, wanted.output);
          expectSameBits(found.lse, wanted.lse);
        }
      }
      const turned = lrkvAttentionWithLseSync(swapLayout(q), given, { ...all, layout: 'blhd' });
      expectSameBits(swapLayout(turned.output), wanted.output);
      expectSameBits(turned.lse, wanted.lse);
      for (const [index, keys] of keyLengths.entries()) {
        const own = { ...all, keyLengths: [keys] };
        const found = lrkvAttentionWithLseSync(slice(q, 0, index, index + 1), item(given, index), own);
        expectSameBits(found.output, slice(wanted.output, 0, index, index + 1));
        expectSameBits(found.lse, slice(wanted.lse, 0, index, index + 1));
      }
    },
  );
});
