import { randomNormal } from '../convert';
import type { LrkvModel } from '../lrkv-model';
import { type LrkvRowName, lrkvRowNames } from '../lrkv-rows';
import { ropeFrequencies } from '../rope';
import { type Tensor, type TensorOf, tensor, zeros } from '../tensor';
import type { Span } from './inputs';
import type { LrkvMethod } from './method';
import type { Shape } from './suite';

type Float32 = TensorOf<'float32'>;

/** Keys and values in LRKV's form, with what is the same for all positions. */
export interface LrkvInputs {
  readonly kvHeads: number;
  /** `[1, n, columns]` */
  readonly rows: Readonly<Record<LrkvRowName, Float32>>;
  readonly model: LrkvModel & {
    readonly keyUp: Float32;
    readonly valueUp: Float32;
    readonly valueGauge?: Float32;
    readonly latentFrequencies?: Float64Array;
  };
}

/**
 * Drawing every number of long sequences would take longer than all else. No row is like another: rows are much shorter
 * than this, and their lengths share no factor with it (it is prime).
 */
const period = 2 ** 20 + 7;

/** Seeded normal numbers of which whole keys and values have a variance of 1, half of it from the base. */
export function makeLrkv({ rank, ropeMode, gauge }: LrkvMethod, { n, kvHeads, dim }: Shape): LrkvInputs {
  const latents = kvHeads * rank;
  const make = (dims: readonly number[], seed: number, variance: number): Float32 => {
    const result = zeros<'float32'>(dims);
    const { data } = result;
    const drawn = randomNormal<'float32'>([Math.min(data.length, period)], { seed }).data.map(
      (x) => x * Math.sqrt(variance),
    );
    for (let at = 0; at < data.length; at += drawn.length) data.set(drawn.subarray(0, data.length - at), at);
    return result;
  };
  const perHead = Array.from(ropeFrequencies(rank));
  return {
    kvHeads,
    rows: {
      keyBase: make([1, n, dim], 2, 1 / 2),
      keyLatent: make([1, n, latents], 3, 1),
      valueBase: make([1, n, dim], 4, 1 / 2),
      valueLatent: make([1, n, latents], 5, 1),
    },
    model: {
      keyUp: make([latents, dim], 6, 1 / (2 * rank)),
      valueUp: make([latents, dim], 7, 1 / (2 * rank)),
      ...(gauge ? { valueGauge: make([kvHeads, dim, dim], 8, 1 / dim) } : {}),
      rope: { frequencies: ropeFrequencies(dim) },
      ropeMode,
      ...(ropeMode === 'latent'
        ? { latentFrequencies: Float64Array.from({ length: latents / 2 }, (_, i) => perHead[i % (rank / 2)] as number) }
        : {}),
    },
  };
}

/** The positions of a span. */
export function lrkvSpan(rows: LrkvInputs['rows'], { start, end }: Span): LrkvInputs['rows'] {
  const cut = ({ data, dims }: Float32): Tensor => {
    const columns = dims[2] as number;
    return tensor(data.subarray(start * columns, end * columns), [1, end - start, columns]);
  };
  return Object.fromEntries(lrkvRowNames.map((name) => [name, cut(rows[name])])) as unknown as LrkvInputs['rows'];
}
