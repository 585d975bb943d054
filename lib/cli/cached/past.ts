import type { KvCache } from '../../cache';
import type { LrkvCache } from '../../lrkv-cache';
import type { DataType, Tensor } from '../../tensor';
import type { Reference } from '../check';
import type { Span } from '../inputs';

/** A sequence in a cache. */
export interface Sequence {
  readonly cache: KvCache | LrkvCache;
  /** Takes the last position back and appends it anew, so that every step is the one to the same length. */
  readonly renew: () => void;
}

/** The past of decode steps, in the form in which caches hold it. */
export interface Past {
  /** Bytes of one position, all of which a step reads. */
  readonly positionBytes: number;
  /** Arithmetic of one query over so many positions. */
  readonly flops: (positions: number) => number;
  readonly sequence: (span: Span) => Sequence;
  /** What a query gives that stands at a span's end. */
  readonly reference: (query: Tensor, span: Span) => Reference;
}

export const elementBytes: Readonly<Record<DataType, number>> = { float32: 4, float16: 2, bfloat16: 2 };

/** Fills a cache with a span by parts, the last of which is its last position alone. */
export function filled<Rows>(
  cache: Sequence['cache'],
  { start, end }: Span,
  rowsOf: (span: Span) => Rows,
  append: (rows: Rows) => void,
): Sequence {
  const before = end - start - 1;
  if (before > 0) append(rowsOf({ start, end: end - 1 }));
  const token = rowsOf({ start: end - 1, end });
  append(token);
  const renew = () => {
    cache.truncate(before);
    append(token);
  };
  return { cache, renew };
}
