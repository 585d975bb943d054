/** Singular values of attention matrices, head by head. */
import { spectralMetrics, spectrum } from '../../index';
import type { Inputs } from '../inputs';
import type { Spectra } from './results';

/** @param count of singular values wanted; all of them where the length is small enough to decompose whole matrices */
export async function spectraOf({ q, k }: Pick<Inputs, 'q' | 'k'>, count: number, threads: number): Promise<Spectra> {
  const length = q.dims[2] as number;
  const whole = length <= count;
  const [heads = []] = await spectrum(q, k, { threads, ...(whole ? {} : { count }) });
  return {
    length,
    count: heads[0]?.values.length ?? 0,
    exact: heads.every(({ exact }) => exact),
    heads: heads.map(({ values, energy }, head) => ({
      head,
      values: [...values],
      energy,
      metrics: spectralMetrics(values, { energy }),
    })),
  };
}
