import type { MaskTensor } from '../lib/tensor';

/**
 * The bias of a key that may not be seen. A name of its own because the global Infinity is looked up anew at every use in
 * Jest's sandbox, which dwarfs the arithmetic of the inner loops.
 */
export const hidden = -Infinity;

export type Layout = 'bhld' | 'blhd';

/** The options of exact attention that change its result. */
export interface AttentionMeaning {
  readonly scale?: number;
  readonly layout?: Layout;
  readonly causal?: boolean;
  readonly queryOffset?: number;
  readonly window?: readonly [number, number];
  readonly mask?: MaskTensor;
  readonly softcap?: number;
  readonly sinks?: Float32Array;
  readonly keyLengths?: readonly number[] | Int32Array;
  readonly queryLengths?: readonly number[] | Int32Array;
}

/** Whatever has the axes of a tensor. */
export interface Shaped {
  readonly dims: readonly number[];
}

/** One exact-attention call with every default filled in. */
export interface Problem {
  readonly batch: number;
  readonly heads: number;
  /** Query heads that share one key/value head. */
  readonly group: number;
  readonly queries: number;
  readonly keys: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly scale: number;
  readonly softcap: number | undefined;
  /** Dims of the output, in the layout of the inputs. */
  readonly dims: readonly number[];
  /** Where row (sequence, head, position) of a tensor in this layout starts. */
  readonly row: (tensor: Shaped, sequence: number, head: number, position: number) => number;
  /** Whether a query row belongs to its sequence, rather than to the padding after it. */
  readonly valid: (sequence: number, query: number) => boolean;
  /** Key position at which query 0 of a sequence stands. */
  readonly offset: (sequence: number) => number;
  /** What is added to a score: −Infinity where the key may not be seen. */
  readonly bias: (sequence: number, head: number, query: number, key: number) => number;
  /** The logit that stands in the denominator only; −Infinity is none. */
  readonly sink: (head: number) => number;
}

/** Reads the shapes and options of a call. Trusts them: refusing bad calls is not the reference's business. */
export function problemOf(q: Shaped, k: Shaped, v: Shaped, options: AttentionMeaning): Problem {
  const { layout = 'bhld', causal = false, window = [Infinity, Infinity], mask, sinks, queryOffset } = options;
  const [headAxis, lengthAxis] = layout === 'bhld' ? [1, 2] : [2, 1];
  const batch = q.dims[0];
  const heads = q.dims[headAxis];
  const queries = q.dims[lengthAxis];
  const keys = k.dims[lengthAxis];
  const headDim = q.dims[3];
  const valueDim = v.dims[3];

  const keyLength = (sequence: number) => options.keyLengths?.[sequence] ?? keys;
  const queryLength = (sequence: number) => options.queryLengths?.[sequence] ?? queries;
  const offset = (sequence: number) => queryOffset ?? keyLength(sequence) - queryLength(sequence);
  const fromMask = mask === undefined ? () => 0 : maskReader(mask);

  return {
    batch,
    heads,
    group: heads / k.dims[headAxis],
    queries,
    keys,
    headDim,
    valueDim,
    scale: options.scale ?? 1 / Math.sqrt(headDim),
    softcap: options.softcap || undefined,
    dims: layout === 'bhld' ? [batch, heads, queries, valueDim] : [batch, queries, heads, valueDim],
    row: ({ dims }, sequence, head, position) => {
      const [middle, inner] = layout === 'bhld' ? [head, position] : [position, head];
      return ((sequence * dims[1] + middle) * dims[2] + inner) * dims[3];
    },
    valid: (sequence, query) => query < queryLength(sequence),
    offset,
    bias: (sequence, head, query, key) => {
      if (key >= keyLength(sequence)) return hidden;
      const own = query + offset(sequence);
      if (causal && key > own) return hidden;
      if (key < own - window[0] || key > own + window[1]) return hidden;
      return fromMask(sequence, head, query, key);
    },
    sink: (head) => sinks?.[head] ?? -Infinity,
  };
}

/** Right-aligned broadcasting over [batch, heads, queries, keys]: a missing axis and an extent of 1 repeat. */
function maskReader({ data, dims, type }: MaskTensor): Problem['bias'] {
  const extents = [1, 1, 1, ...dims].slice(-4);
  return (...at) => {
    const index = at.reduce((sum, position, axis) => sum * extents[axis] + (extents[axis] === 1 ? 0 : position), 0);
    if (type === 'bool') return data[index] ? 0 : hidden;
    return data[index];
  };
}
