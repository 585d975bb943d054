/** What the benchmark can measure, as data. The named cases stand in `suites.ts`, how a case is run in `case.ts`. */
import type { DataType } from '../tensor';
import { type LrkvMethod, type Method, type MethodVariant, methodName } from './method';

/** Extents of an attention call: n queries over n keys, or in decode one query over n cached keys. */
export interface Shape {
  readonly n: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
}

/** What a cache holds: keys and values whole, or factored. */
export type CacheForm = 'whole' | LrkvMethod;

/** A change of our own call, to compare with: what a thread, a head ratio or a type brings. */
export interface Variant {
  readonly name: string;
  readonly threads?: number;
  readonly kvHeads?: number;
  readonly type?: DataType;
  /** See every key that causality allows. */
  readonly unwindowed?: boolean;
  readonly sync?: boolean;
  /** Write into a tensor given by the caller. */
  readonly out?: boolean;
  readonly cache?: CacheForm;
  readonly sequences?: number;
  /** Times of the other rows are set against this one's, byte for byte. */
  readonly yardstick?: boolean;
}

/** How onnxruntime is asked for attention over tensors: see `peer/models.ts`. */
export type Form = 'MultiHeadAttention' | 'Attention' | 'MatMul-Softmax-MatMul' | 'GroupQueryAttention';

/** And for a decode step: all keys handed over, or a cache that it copies, or one that it may write in place. */
export type DecodeForm = 'Attention, keys given' | 'GroupQueryAttention, past' | 'GroupQueryAttention, shared';

interface Named {
  readonly suite: string;
  readonly name: string;
}

/** Attention of tensors or caches of one shape and type. */
interface Attending extends Named {
  readonly shape: Shape;
  /** Of the tensors, or of the cache. */
  readonly type: DataType;
  readonly variants: readonly Variant[];
}

/** One call of attention over tensors. */
export interface PrefillCase extends Attending {
  readonly kind: 'prefill';
  readonly causal: boolean;
  /** Keys a query sees, its own included; causal only. */
  readonly window?: number;
  /** Time the synchronous call. */
  readonly sync: boolean;
  readonly forms: readonly Form[];
}

/** One token for each sequence: append its key and value to a cache, and attend with its query over n positions in all. */
export interface DecodeCase extends Attending {
  readonly kind: 'decode';
  readonly cache: CacheForm;
  /** Sequences of unlike lengths, n positions together, in one call. 1: no batch. */
  readonly sequences: number;
  readonly forms: readonly DecodeForm[];
}

/** One call of a method of the low-rank family, float32. */
export interface ApproximateCase extends Named {
  readonly kind: 'approximate';
  readonly shape: Shape;
  readonly method: Method;
  /** Linear attention only: one token against the state of n − 1 before it. */
  readonly step: boolean;
  readonly variants: readonly MethodVariant[];
  /** Time exact attention beside it. */
  readonly exact: boolean;
  /** Ask onnxruntime for the same method, where it can be had there. */
  readonly peer: boolean;
}

/** Memory, the event loop, and loading: not the time of a call. */
export interface ProcessCase extends Named {
  readonly kind: 'memory' | 'latency' | 'load';
  readonly shape: Shape;
  /** Of memory: what is called. Default exact attention. */
  readonly method?: Method;
}

export type Case = PrefillCase | DecodeCase | ApproximateCase | ProcessCase;

/** `n1024 H8 d64`, or `n4096 H32/8 d64` where heads share keys. */
export function shapeName({ n, heads, kvHeads, dim }: Shape): string {
  return `n${n} H${heads}${kvHeads === heads ? '' : `/${kvHeads}`} d${dim}`;
}

const typeWord = (type?: DataType): string => (type === undefined || type === 'float32' ? '' : type);

/** The forms that can answer a call at all. Only GroupQueryAttention skips what causality hides. */
export function formsFor({ heads, kvHeads }: Shape, causal: boolean, window?: number): Form[] {
  if (window !== undefined) return ['GroupQueryAttention'];
  const full: Form[] = heads === kvHeads ? ['MultiHeadAttention', 'Attention'] : ['Attention'];
  if (causal) return ['GroupQueryAttention', ...full];
  return heads === kvHeads ? [...full, 'MatMul-Softmax-MatMul'] : full;
}

export const decodeForms: readonly DecodeForm[] = [
  'Attention, keys given',
  'GroupQueryAttention, past',
  'GroupQueryAttention, shared',
];

/** A prefill case with the usual choices filled in. */
export function prefill(suite: string, of: Shape, causal: boolean, more: Partial<PrefillCase> = {}): PrefillCase {
  const words = [typeWord(more.type), causal ? 'causal' : '', more.window ? `window ${more.window}` : ''];
  return {
    kind: 'prefill',
    suite,
    name: [shapeName(of), ...words, more.sync ? 'sync' : ''].filter((word) => word !== '').join(' '),
    shape: of,
    causal,
    type: 'float32',
    sync: false,
    variants: [],
    forms: formsFor(of, causal, more.window),
    ...more,
  };
}

/** A decode case with the usual choices filled in. */
export function decode(suite: string, of: Shape, more: Partial<DecodeCase> = {}): DecodeCase {
  const { cache = 'whole', sequences = 1 } = more;
  const words = [
    typeWord(more.type),
    cache === 'whole' ? '' : methodName(cache),
    sequences === 1 ? '' : `${sequences} sequences`,
  ];
  return {
    kind: 'decode',
    suite,
    name: [shapeName(of), 'decode', ...words].filter((word) => word !== '').join(' '),
    shape: of,
    type: 'float32',
    cache,
    sequences,
    variants: [{ name: 'float16 cache', type: 'float16' }],
    forms: decodeForms,
    ...more,
  };
}

/** A case of the low-rank family with the usual choices filled in. */
export function approximate(
  suite: string,
  method: Method,
  of: Shape,
  more: Partial<ApproximateCase> = {},
): ApproximateCase {
  return {
    kind: 'approximate',
    suite,
    name: [shapeName(of), methodName(method), ...(more.step ? ['step'] : [])].join(' '),
    shape: of,
    method,
    step: false,
    variants: [
      { name: 'into `out`', out: true },
      { name: 'one thread', threads: 1 },
    ],
    exact: false,
    peer: true,
    ...more,
  };
}
