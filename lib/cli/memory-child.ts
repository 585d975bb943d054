/** The process that `processes.ts` starts to measure the memory of one call: nothing else has run in it. */
import fs from 'node:fs';

import { WrongAnswer } from './check';
import type { Contender } from './contender';
import { oursPrefill } from './ours';
import { peerPrefill } from './peer/contenders';
import { Onnxruntime } from './peer/onnxruntime';
import { type MemoryAnswer, type MemoryRequest, memoryForm } from './processes';
import { prefill, type Shape } from './suite';

process.once('message', async (request: MemoryRequest) => {
  const answer = await measure(request).catch(
    (error: Error): MemoryAnswer => ({ failure: error.message, wrong: error instanceof WrongAnswer }),
  );
  process.send?.(answer, () => process.disconnect());
});

async function measure({ side, shape, causal, how }: MemoryRequest): Promise<MemoryAnswer> {
  const make = async (of: Shape): Promise<Contender> => {
    const given = prefill('memory', of, causal);
    if (side === 'ours') return oursPrefill(given, how);
    return await peerPrefill(Onnxruntime.load(), given, memoryForm(causal), how.threads);
  };
  const small = await make({ ...shape, n: 16 });
  const subject = await make(shape);
  // Threads, code and the allocator's first pages are not this call's.
  await small.call();
  await small.dispose?.();
  globalThis.gc?.();
  const before = process.memoryUsage.rss();
  const readPeak = startPeak();
  await subject.call();
  const growthMiB = (readPeak() - before) / 2 ** 20;
  const error = (await subject.check?.()) ?? 0;
  await subject.dispose?.();
  return { growthMiB, error };
}

/** Starts to watch the process's largest resident size, in bytes. */
function startPeak(): () => number {
  try {
    // Linux forgets the peak so far when told 5 here; without that, making the inputs might hide the call.
    fs.writeFileSync('/proc/self/clear_refs', '5');
    return () => {
      const kib = /VmHWM:\s*(\d+) kB/.exec(fs.readFileSync('/proc/self/status', 'utf8'))?.[1];
      return Number(kib) * 1024;
    };
  } catch {
    return () => process.resourceUsage().maxRSS * 1024;
  }
}
