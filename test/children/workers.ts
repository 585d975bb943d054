/** Worker threads that each load the package: argument 3 says what becomes of them. */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';

import { attention, zeros } from '../../lib';
import { digestAsync, digestSync } from './digest';
import { journal } from './journal';

interface Started {
  readonly worker: Worker;
  readonly messages: unknown[];
  /** Of what nobody caught in it. */
  readonly errors: string[];
  /** Its exit code. */
  readonly ended: Promise<number>;
}

function start(task: string): Started {
  const worker = new Worker(path.join(__dirname, 'worker.ts'), { workerData: { task } });
  const [messages, errors]: [unknown[], string[]] = [[], []];
  worker.on('message', (message) => messages.push(message));
  worker.on('error', (error) => errors.push(error.message));
  return { worker, messages, errors, ended: new Promise((resolve) => worker.on('exit', resolve)) };
}

/** Threads of this process, of whatever kind. */
const threads = (): number => fs.readdirSync('/proc/self/task').length;

/** Begins workers, in twos and threes, and has each end in the middle of what it does. */
async function terminated(task: string, count: number): Promise<unknown> {
  const before = digestSync();
  const codes = new Set<number>();
  let most = 0;
  // Those of one worker are kept by the process for the next.
  await (await start('nothing')).ended;
  const first = threads();
  for (let begun = 0; begun < count; ) {
    const together = Array.from({ length: Math.min(count - begun, 2 + (begun % 2)) }, () => start(task));
    await Promise.all(
      together.map(async ({ worker, errors, ended }, i) => {
        journal(`${task}, worker ${begun + i}`);
        await new Promise((resolve) => worker.once('message', resolve));
        await sleep((begun + i) % 7);
        most = Math.max(most, threads());
        worker.terminate();
        codes.add(await ended);
        if (errors.length > 0) throw new Error(errors.join());
      }),
    );
    begun += together.length;
  }
  const left = threads() - first;
  return { codes: [...codes], left, grew: most > first, same: digestSync() === before };
}

const programs: Readonly<Record<string, (count: number) => Promise<unknown>>> = {
  async digests(count) {
    const workers = Array.from({ length: count }, () => start('digest'));
    // This thread computes all the while they load and run.
    const found = new Set<unknown>([digestSync()]);
    let open = true;
    const ended = Promise.all(workers.map((each) => each.ended)).then((codes) => {
      open = false;
      return codes;
    });
    while (open) found.add(await digestAsync());
    for (const { messages } of workers) for (const digest of messages.flat()) found.add(digest);
    return {
      codes: await ended,
      digests: workers.flatMap(({ messages }) => messages.flat()).length,
      found: [...found],
    };
  },
  async alone(count) {
    const tasks = [
      'exit in calls',
      'exit in the turn of the calls',
      'throw in calls',
      'end with calls nobody waits for',
    ];
    const outcomes: Record<string, unknown[]> = {};
    for (const task of tasks) {
      outcomes[task] = [];
      for (let i = 0; i < count; i++) {
        journal(`${task}, worker ${i}`);
        const { messages, errors, ended } = start(task);
        const code = await ended;
        outcomes[task].push({ code, done: messages.filter((message) => message === 'done').length, errors });
      }
    }
    return { outcomes, digest: digestSync() === (await digestAsync()) };
  },
  'terminated in asynchronous calls': (count) => terminated('begin and wait to be terminated', count),
  'terminated in synchronous calls': (count) => terminated('sync calls until terminated', count),
  'terminated in short synchronous calls': (count) => terminated('short sync calls until terminated', count),
  async 'terminated at any time'(count) {
    for (let i = 0; i < count; i++) {
      const { worker } = start('begin and wait to be terminated');
      // Before it has loaded the addon, while it does, and after.
      await sleep((i * 250) / count);
      journal(`terminated at any time, worker ${i}`);
      await worker.terminate();
    }
    return { digest: digestSync() === (await digestAsync()) };
  },
  async 'left running at the exit'(count) {
    const workers = Array.from({ length: count }, () => start('begin and wait to be terminated'));
    await Promise.all(workers.map(({ worker }) => new Promise((resolve) => worker.once('message', resolve))));
    const rows = zeros([1, 8, 3000, 64]);
    attention(rows, rows, rows);
    process.exit(3);
  },
};

programs[process.argv[3]](Number(process.argv[4])).then((answer) => console.log(JSON.stringify(answer)));
