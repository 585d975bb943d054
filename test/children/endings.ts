/** Ways for a process to end while calls run: argument 3 says which. What it prints is for the test to judge. */
import { writeSync } from 'node:fs';

import { attention, attentionSync, type CallOptions, info, KvCache, matmul, type Tensor, zeros } from '../../lib';
import { journal } from './journal';

/** Unlike console.log, also on its way when the process exits. */
const say = (text: string): void => {
  writeSync(1, `${text}\n`);
};

const ones = (dims: readonly number[]): Tensor => {
  const made = zeros(dims);
  (made.data as Float32Array).fill(1);
  return made;
};
const [small, large, huge] = [64, 2000, 6000].map((rows) => ones([1, 8, rows, 64]));
const run = (of: Tensor, options?: CallOptions): Promise<Tensor> => attention(of, of, of, options);
/** Takes seconds: whoever waits for it is found out by time. */
const long = (options?: CallOptions): Promise<unknown> => run(huge, options).then(() => say('long'));
const soon = (then: () => void): unknown => setTimeout(then, 5);
const all = Array.from({ length: 4 * info().threads }, (_, i) => i);

const endings: Readonly<Record<string, () => unknown>> = {
  'exit in a long call': () => {
    long();
    soon(() => process.exit(3));
  },
  'exit in the turn of the call': () => {
    long();
    process.exit(3);
  },
  'exit with a queue': () => {
    for (const i of all) long({ threads: 1 + (i % 2) });
    soon(() => process.exit(3));
  },
  'exit in the callback of a call, others running': () => {
    const controller = new AbortController();
    long({ signal: controller.signal, threads: 1 }).catch(() => process.exit(3));
    for (const i of all) long({ threads: 1 + (i % 2) });
    soon(() => controller.abort());
  },
  'exit in the callback of a call, many done': () => {
    for (const _ of all) run(small).then(() => process.exit(3));
  },
  'exit with caches and calls on them': () => {
    const cache = new KvCache({ heads: 8, headDim: 64 });
    cache.append(huge, huge);
    for (const _ of all) cache.attend(huge);
    soon(() => {
      cache.dispose();
      process.exit(3);
    });
  },
  'exit in a beforeExit handler': () => {
    run(small);
    process.on('beforeExit', () => {
      long();
      process.exit(3);
    });
  },
  'calls in an exit handler': () => {
    process.on('exit', () => {
      // Nobody will hear of this one.
      long();
      say(`sync ${attentionSync(small, small, small).data[0]}`);
    });
    soon(() => process.exit(3));
  },
  'killed by a signal in calls': () => {
    for (const _ of all) long();
    soon(() => process.kill(process.pid, 'SIGTERM'));
  },
  'uncaught exception in a long call': () => {
    long();
    soon(() => {
      throw new Error('nobody catches this');
    });
  },
  'rejection that nobody handles, others running': () => {
    for (const i of all) long({ threads: 1 + (i % 2) });
    run(small, { signal: AbortSignal.abort(new Error('nobody catches this')) });
  },
  'exception in the callback of a call': () => {
    run(small).then(() => {
      for (const _ of all) long();
      throw new Error('nobody catches this');
    });
  },

  'end with a call nobody waits for': () => {
    const out = zeros(large.dims);
    run(large, { out });
    process.on('exit', () => say(`written ${out.data.every((value) => Math.abs(Number(value) - 1) < 1e-4)}`));
  },
  'end with many calls nobody waits for': () => {
    let done = 0;
    for (const i of all) {
      run(small, { threads: 1 + (i % 2) }).then(() => done++);
      matmul(large, small, { transposeB: true }).then(() => done++);
    }
    process.on('exit', () => say(`all ${done === 2 * all.length}`));
  },
  'end with a call begun in the callback of another': () => {
    run(small)
      .then(() => run(large))
      .then(() => say('second'));
  },
  'end without a call': () => {},
  'end after sync calls': () => {
    attentionSync(large, large, large);
  },
  'end after async calls, with a cache': async () => {
    const cache = new KvCache({ heads: 8, headDim: 64 });
    cache.append(large, large);
    Object.assign(globalThis, { cache });
    await Promise.all([cache.attend(small), run(large), run(small)]);
    say('done');
  },
  'end after calls that failed': async () => {
    const aborted = run(large, { signal: AbortSignal.timeout(1) });
    const refused = run({ ...small, dims: [1, 8, 1, 1] });
    for (const outcome of await Promise.allSettled([aborted, refused])) say(outcome.status);
  },
};

const ending = process.argv[3];
journal(ending);
// The threads are there, and have been idle, as in any process that has run for a while.
run(small).then(() => endings[ending]());
