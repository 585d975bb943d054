/** Singular values of attention matrices, head by head. */
import { exactLength } from '../../analysis/spectrum';
import { spectralMetrics, spectrum } from '../../index';
import type { Inputs } from '../inputs';
import type { Spectra } from './results';

/** @param count of singular values wanted where there are more; all of them if the length is small enough */
export async function spectraOf({ q, k }: Pick<Inputs, 'q' | 'k'>, count: number, threads: number): Promise<Spectra> {
  const length = q.dims[2] as number;
  const [heads = []] = await spectrum(q, k, {
    threads,
    ...(length <= exactLength ? { exact: true } : { count: Math.min(count, length) }),
  });
  return {
    length,
    count: heads[0]?.values.length ?? 0,
    exact: heads.every(({ exact }) => exact),
    heads: heads.map(({ values, energy }, head) => ({
      head,
      values: [...values],
      energy,
      metrics: spectralMetrics({ values, energy }),
    })),
  };
}
