import { KvCache } from '../../cache';
import { cast } from '../../convert';
import type { DataType } from '../../tensor';
import { decodeFlops, kvBytes } from '../contender';
import { type Inputs, rows, type Span } from '../inputs';
import { fullReference } from '../reference/full';
import type { Shape } from '../suite';
import { elementBytes, filled, type Past } from './past';

/** Keys and values whole, in a {@link KvCache}. */
export function wholePast({ k, v }: Inputs, shape: Shape, type: DataType): Past {
  const { n, kvHeads, dim } = shape;
  const cut = ({ start, end }: Span) => [rows(k, start, end), rows(v, start, end)] as const;
  const stored = ({ start, end }: Span) => {
    const [key, value] = end - start === n ? [k, v] : cut({ start, end });
    return type === 'float32' ? { k: key, v: value } : { k: cast(key, type), v: cast(value, type) };
  };
  return {
    positionBytes: kvBytes({ ...shape, n: 1 }, elementBytes[type]),
    flops: (positions) => decodeFlops({ ...shape, n: positions }),
    sequence: (span) => {
      const cache = new KvCache({ heads: kvHeads, headDim: dim, type });
      return filled(cache, span, cut, ([key, value]) => cache.append(key, value));
    },
    reference: (q, span) => fullReference({ q, ...stored(span) }, { causal: true }),
  };
}
