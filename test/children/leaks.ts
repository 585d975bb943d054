/** Thousands of calls that fail, each in its own way: what they leave behind. Needs --expose-gc. */
import { getEventListeners } from 'node:events';

import { AttentionError, attendBatch, attention, KvCache, matmul, randomNormal, type Tensor, zeros } from '../../lib';
import { entries, smallCache } from '../entries';
import { type Growth, growthOver } from './growth';
import { journal } from './journal';

const { signal } = new AbortController();

// Large enough that one kept a call would be seen: 256 KiB of input, as much output.
const large = randomNormal([1, 1, 1024, 64]);
const cache = new KvCache({ heads: 1, headDim: 64 });
cache.append(large, large);
const shortSinks = { signal, sinks: [1, 2] };

/** An input that loses its memory after it has been checked. */
function losing(run: (tensor: Tensor, out: Tensor) => unknown): unknown {
  const data = new Float32Array(large.data.length);
  const out = zeros([1, 1, 1024, 64]);
  const trap = Object.defineProperty({ ...out }, 'data', {
    get() {
      structuredClone(data.buffer, { transfer: [data.buffer] });
      return out.data;
    },
  });
  return run({ ...large, data }, trap);
}

async function abortedSoon(run: (options: { signal: AbortSignal }) => unknown): Promise<unknown> {
  const controller = new AbortController();
  const running = run({ signal: controller.signal });
  controller.abort();
  try {
    return await running;
  } finally {
    if (getEventListeners(controller.signal, 'abort').length > 0) console.error('a listener was left');
  }
}

const failures: Readonly<Record<string, () => unknown>> = {
  // Refused at the last, when the output has been allocated.
  'attention, late': () => attention(large, large, large, shortSinks as never),
  'attend, late': () => cache.attend(large, shortSinks as never),
  'attendBatch, late': () => attendBatch([{ cache, query: large }], shortSinks as never),
  'attention, by the binding': () => losing((q, out) => attention(q, large, large, { signal, out })),
  'attend, by the binding': () => losing((q, out) => cache.attend(q, { signal, out })),
  'attention, aborted': () => abortedSoon((options) => attention(large, large, large, options)),
  'attend, aborted': () => abortedSoon((options) => cache.attend(large, options)),
  'attendBatch, aborted': () => abortedSoon((options) => attendBatch([{ cache, query: large }], options)),
  'matmul, aborted': () => abortedSoon((options) => matmul(large, large, { ...options, transposeB: true })),
  'new KvCache': () => new KvCache({ heads: 1, headDim: 64, capacity: -1 }),
  'append beyond capacity': () => {
    using full = new KvCache({ heads: 1, headDim: 64, capacity: 1024 });
    full.append(large, large);
    full.append(large, large);
  },
  'append, wrong': () => cache.append(large, zeros([1, 1, 1023, 64])),
  'a disposed cache': () => {
    const closed = smallCache();
    closed.dispose();
    return closed.attend(large);
  },
  ...Object.fromEntries(
    entries.map((entry) => {
      const [name] = Object.keys(entry.tensors);
      return [`${entry.name} ${name}`, () => entry.call({ ...entry.tensors, [name]: { ...zeros([7]), type: 'none' } })];
    }),
  ),
};

/** Whether the call failed, as it should. An aborted one may have been done before, on a busy machine. */
async function fails(name: string, call: () => unknown): Promise<boolean> {
  try {
    await call();
  } catch (error) {
    if (error instanceof AttentionError) return true;
    throw error;
  }
  if (!name.endsWith('aborted')) throw new Error(`${name} did not fail`);
  return false;
}

async function main(): Promise<void> {
  const growth: Record<string, Growth & { failed: number }> = {};
  for (const [name, call] of Object.entries(failures)) {
    journal(name);
    let failed = 0;
    const grown = await growthOver(100, 2000, async () => {
      if (await fails(name, call)) failed++;
    });
    growth[name] = { failed, ...grown };
  }
  console.log(JSON.stringify({ growth, listeners: getEventListeners(signal, 'abort').length }));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
