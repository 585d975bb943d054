/** The process that `processes.ts` starts to measure the memory of one call: nothing else has run in it. */
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { approximation } from './approximate/approximate';
import { oursApproximate, peerApproximate } from './approximate/contenders';
import { WrongAnswer } from './check';
import type { Contender } from './contender';
import { oursPrefill } from './ours';
import { peerPrefill } from './peer/contenders';
import { Onnxruntime } from './peer/onnxruntime';
import { type MemoryAnswer, type MemoryRequest, memoryForm } from './processes';
import type { Shape } from './suite';

process.once('message', async (request: MemoryRequest) => {
  const answer = await measure(request).catch(
    (error: Error): MemoryAnswer => ({ failure: error.message, wrong: error instanceof WrongAnswer }),
  );
  process.send?.(answer, () => process.disconnect());
});

async function measure(request: MemoryRequest): Promise<MemoryAnswer> {
  const { shape } = request.subject;
  const small = await make(request, { ...shape, n: smallLength[request.subject.kind] });
  const subject = await make(request, shape);
  if (small === undefined || subject === undefined) return { missing: true };
  // Threads, code and the allocator's first pages are not this call's.
  await small.call();
  await small.dispose?.();
  // What was thrown away is given back to the system some time after it was collected, and must not be meanwhile.
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await sleep(100);
  }
  const before = process.memoryUsage.rss();
  const readPeak = startPeak();
  await subject.call();
  const growthMiB = (readPeak() - before) / 2 ** 20;
  const error = (await subject.check?.()) ?? 0;
  await subject.dispose?.();
  return { name: subject.name, growthMiB, error };
}

/** Calls of another length, as short as the methods of the benchmark can be. */
const smallLength = { prefill: 16, approximate: 256 } as const;

async function make({ side, subject, how }: MemoryRequest, shape: Shape): Promise<Contender | undefined> {
  if (subject.kind === 'prefill') {
    const given = { ...subject, shape };
    if (side === 'ours') return oursPrefill(given, how);
    return await peerPrefill(Onnxruntime.load(), given, memoryForm(given.causal), how.threads);
  }
  const given = { ...subject, shape };
  const form = approximation(given.method, shape);
  if (side === 'ours') return oursApproximate(given, form, how);
  return await peerApproximate(Onnxruntime.load(), given, form, how.threads);
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
