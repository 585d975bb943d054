import { LrkvCache } from '../../lrkv-cache';
import type { DataType } from '../../tensor';
import { lrkvSpan, makeLrkv } from '../lrkv-inputs';
import { type LrkvMethod, lrkvDecodeFlops, lrkvElements } from '../method';
import { lrkvReference } from '../reference/lrkv';
import type { Shape } from '../suite';
import { elementBytes, filled, type Past } from './past';

/** Keys and values in LRKV's form, in an {@link LrkvCache}. */
export function lrkvPast(method: LrkvMethod, shape: Shape, type: DataType): Past {
  const { kvHeads, dim } = shape;
  const { rows, model } = makeLrkv(method, shape);
  const empty = new LrkvCache({ heads: kvHeads, headDim: dim, type, ...model });
  return {
    positionBytes: elementBytes[type] * lrkvElements(method, shape),
    flops: (positions) => lrkvDecodeFlops(method, { ...shape, n: positions }),
    sequence: (span) => {
      // Forks share the checked model, as the caches of a layer do.
      const cache = empty.fork();
      return filled(
        cache,
        span,
        (part) => lrkvSpan(rows, part),
        (part) => cache.append(part),
      );
    },
    reference: (q, span) => lrkvReference(q, { kvHeads, rows: lrkvSpan(rows, span), model }, type),
  };
}
