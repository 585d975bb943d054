/** Runs in worker threads: what `workerData.task` says. */
import { parentPort, workerData } from 'node:worker_threads';

import {
  attendBatch,
  attendBatchSync,
  attention,
  attentionSync,
  KvCache,
  matmulSync,
  randomNormal,
  type Tensor,
  zeros,
} from '../../lib';
import type * as Digest from './digest';

const say = (message: unknown): void => parentPort?.postMessage(message);

const huge = (): Tensor => zeros([1, 8, 2000, 64]);
const large = (): Tensor => zeros([1, 8, 700, 64]);
const small = zeros([2, 2]);
const query = randomNormal([1, 8, 20, 64]);

/** Begins calls of all kinds that run for seconds, on a cache that stays alive. */
function begin(): void {
  const rows = huge();
  const cache = new KvCache({ heads: 8, headDim: 64 });
  cache.append(rows, rows);
  const fork = cache.fork();
  Object.assign(globalThis, { cache, fork });
  for (let i = 0; i < 3; i++) {
    attention(rows, rows, rows, { threads: 1 + (i % 2) });
    cache.attend(rows);
    attendBatch([cache, fork, cache].map((each) => ({ cache: each, query: rows })));
    // Short ones, done at about the time when the end comes.
    for (let j = 0; j < 5; j++) cache.attend(query).then(() => say('short'));
  }
  fork.append(query, query);
}

const tasks: Readonly<Record<string, () => unknown>> = {
  nothing: () => {},
  digest: async () => {
    // Only now: the other tasks begin sooner without.
    const { digestAsync, digestSync } = require('./digest') as typeof Digest;
    say([digestSync(), ...(await Promise.all([digestAsync(), digestAsync()]))]);
  },
  'begin and wait to be terminated': () => {
    begin();
    say('begun');
  },
  'sync calls until terminated': () => {
    say('begun');
    for (const rows = large(); ; ) attentionSync(rows, rows, rows);
  },
  'short sync calls until terminated': () => {
    say('begun');
    // Termination may come between any two steps of the binding.
    const cache = new KvCache({ heads: 8, headDim: 64 });
    for (;;) {
      cache.append(query, query);
      cache.attendSync(query);
      using fork = cache.fork();
      attendBatchSync([cache, fork].map((each) => ({ cache: each, query })));
      new KvCache({ heads: 1, headDim: 1 });
      cache.truncate(0);
      matmulSync(small, small);
    }
  },
  'exit in calls': () => {
    begin();
    setTimeout(() => process.exit(5), 5);
  },
  'exit in the turn of the calls': () => {
    begin();
    process.exit(5);
  },
  'throw in calls': () => {
    begin();
    setTimeout(() => {
      throw new Error('nobody catches this');
    }, 5);
  },
  'end with calls nobody waits for': () => {
    const rows = large();
    for (let i = 0; i < 6; i++) attention(rows, rows, rows, { threads: 1 + (i % 2) }).then(() => say('done'));
  },
};

tasks[workerData.task]();
