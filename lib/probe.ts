import { runSync } from './call';
import { addon } from './native';

/** Reads a whole array once on so many threads, as fast as memory gives it; the caller times it. Returns its sum. */
export function measureReadBandwidth(data: Float32Array, threads: number): number {
  const sum = new Float32Array(1);
  return runSync(measureReadBandwidth, () => ({
    op: addon.read,
    operands: [data, sum],
    numbers: Float64Array.of(data.length),
    options: { threads },
    result: sum,
  }))[0] as number;
}
