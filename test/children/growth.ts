/** What calls leave behind in memory. Needs --expose-gc. */
import { setTimeout as sleep } from 'node:timers/promises';

/** Bytes by which a process has grown, as process.memoryUsage() counts them. */
export interface Growth {
  readonly rss: number;
  readonly external: number;
  readonly heapUsed: number;
}

export const collect = (globalThis as { gc?: () => void }).gc as () => void;

/**
 * Memory in use once all that can be collected has been.
 *
 * @param pause milliseconds between collections: V8 frees arrays on threads of its own, late on a busy machine
 */
export async function settled(pause = 5): Promise<Growth> {
  for (let i = 0; i < 4; i++) {
    // Finalizers of one collection free what the next one finds.
    collect();
    await sleep(pause);
  }
  return process.memoryUsage();
}

/** Growth that is looked at twice, in bytes: half of the least that counts as a leak. */
const doubtful = 32 * 2 ** 20;

/**
 * By how much the process grows over `count` rounds, after as many as `warm` of them that are not looked at. An allocator
 * keeps what it once had for later, so growth that may be that is looked at over as many rounds again: a leak goes on.
 */
export async function growthOver(warm: number, count: number, round: () => unknown): Promise<Growth> {
  for (let i = 0; i < warm; i++) await round();
  const first = await growthOf(count, round);
  return first.rss > doubtful ? await growthOf(count, round) : first;
}

async function growthOf(count: number, round: () => unknown): Promise<Growth> {
  const before = await settled();
  for (let i = 0; i < count; i++) {
    await round();
    if (i % 400 === 0) collect();
  }
  const after = await settled();
  return {
    rss: after.rss - before.rss,
    external: after.external - before.external,
    heapUsed: after.heapUsed - before.heapUsed,
  };
}
