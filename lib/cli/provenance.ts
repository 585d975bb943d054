/** Where and with what something was measured. */
import os from 'node:os';

import { type Info, info } from '../info';

export interface Provenance {
  readonly date: string;
  readonly package: Omit<Info, 'kernels'>;
  readonly node: string;
  readonly machine: MachineFacts;
}

export interface MachineFacts {
  readonly platform: string;
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGiB: number;
  /** Before the measurement. */
  readonly loadAverage: readonly number[];
}

/** @param loadAverage taken before the measurement */
export function provenance(loadAverage: readonly number[]): Provenance {
  const { kernels: _, ...own } = info();
  return {
    date: new Date().toISOString(),
    package: own,
    node: process.version,
    machine: {
      platform: `${process.platform}-${process.arch}`,
      cpu: own.cpu.name,
      cores: own.cpu.cores,
      memoryGiB: os.totalmem() / 2 ** 30,
      loadAverage,
    },
  };
}
