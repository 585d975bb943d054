import os from 'node:os';

/** Watches how much of the processors other processes use: they take from what is measured. */
export class Load {
  readonly #start = performance.now();
  readonly #all = busyMs();
  readonly #own = process.cpuUsage();

  /** Cores used by others since this was made, on average. Child processes of ours count as others. */
  others(): number {
    const { user, system } = process.cpuUsage(this.#own);
    const others = busyMs() - this.#all - (user + system) / 1000;
    return Math.max(0, others / (performance.now() - this.#start));
  }
}

function busyMs(): number {
  return os.cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys + times.irq, 0);
}
