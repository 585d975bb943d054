/** What the benchmark can measure, as data: a table of named cases. How a case is run stands in `case.ts`. */
import type { DataType } from '../tensor';

/** Extents of an attention call: n queries over n keys, or in decode one query over n cached keys. */
export interface Shape {
  readonly n: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
}

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
}

/** How onnxruntime is asked for attention over tensors: see `peer/models.ts`. */
export type Form = 'MultiHeadAttention' | 'Attention' | 'MatMul-Softmax-MatMul' | 'GroupQueryAttention';

/** And for a decode step: all keys handed over, or a cache that it copies, or one that it may write in place. */
export type DecodeForm = 'Attention, keys given' | 'GroupQueryAttention, past' | 'GroupQueryAttention, shared';

interface Named {
  readonly suite: string;
  readonly name: string;
}

/** One call of attention over tensors. */
export interface PrefillCase extends Named {
  readonly kind: 'prefill';
  readonly shape: Shape;
  readonly causal: boolean;
  /** Keys a query sees, its own included; causal only. */
  readonly window?: number;
  readonly type: DataType;
  /** Time the synchronous call. */
  readonly sync: boolean;
  readonly variants: readonly Variant[];
  readonly forms: readonly Form[];
}

/** One token: append its key and value to a cache of n − 1, and attend with its query. */
export interface DecodeCase extends Named {
  readonly kind: 'decode';
  readonly shape: Shape;
  /** Of the cache. */
  readonly type: DataType;
  readonly variants: readonly Variant[];
  readonly forms: readonly DecodeForm[];
}

/** Memory, the event loop, and loading: not the time of a call. */
export interface ProcessCase extends Named {
  readonly kind: 'memory' | 'latency' | 'load';
  readonly shape: Shape;
}

export type Case = PrefillCase | DecodeCase | ProcessCase;

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

const shape = (n: number, heads: number, dim: number, kvHeads = heads): Shape => ({ n, heads, kvHeads, dim });

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
  return {
    kind: 'decode',
    suite,
    name: [shapeName(of), 'decode', typeWord(more.type)].filter((word) => word !== '').join(' '),
    shape: of,
    type: 'float32',
    variants: [{ name: 'float16 cache', type: 'float16' }],
    forms: decodeForms,
    ...more,
  };
}

const prefillShapes = [
  [8, 64],
  [32, 64],
  [8, 128],
].flatMap(([heads, dim]) => [1024, 2048, 4096].map((n) => shape(n, heads as number, dim as number)));

const decodeShapes = [4096, 16384].flatMap((n) => [32, 8, 1].map((kvHeads) => shape(n, 32, 64, kvHeads)));

const oneThread: Variant = { name: 'one thread', threads: 1 };
const mha: Variant = { name: '32 key/value heads', kvHeads: 32 };

/** Cases by suite. */
export const suites: Readonly<Record<string, readonly Case[]>> = {
  /** A first look in under a minute. */
  quick: [
    prefill('quick', shape(1024, 8, 64), false),
    prefill('quick', shape(1024, 8, 64), true, { forms: ['GroupQueryAttention'] }),
    decode('quick', shape(4096, 32, 64, 8)),
    prefill('quick', shape(128, 8, 64), false),
  ],
  prefill: prefillShapes.map((of) => prefill('prefill', of, false)),
  causal: prefillShapes.map((of) => prefill('causal', of, true, { forms: ['GroupQueryAttention'] })),
  window: [
    prefill('window', shape(8192, 8, 64), true, {
      window: 256,
      variants: [{ name: 'without window', unwindowed: true }],
    }),
  ],
  gqa: [
    prefill('gqa', shape(2048, 32, 64, 8), false, { variants: [mha] }),
    prefill('gqa', shape(2048, 32, 64, 8), true, { variants: [mha], forms: ['GroupQueryAttention'] }),
  ],
  decode: decodeShapes.map((of) => decode('decode', of)),
  small: [
    prefill('small', shape(128, 8, 64), false, { variants: [{ name: 'sync', sync: true }] }),
    prefill('small', shape(128, 8, 64), true, { variants: [{ name: 'sync', sync: true }] }),
    prefill('small', shape(16, 1, 64), false, { sync: true, variants: [{ name: 'into `out`', out: true }] }),
  ],
  threads: [
    prefill('threads', shape(128, 8, 64), false, { variants: [oneThread], forms: [] }),
    prefill('threads', shape(2048, 8, 64), false, { variants: [oneThread], forms: [] }),
    prefill('threads', shape(2048, 8, 64), true, { variants: [oneThread], forms: [] }),
    prefill('threads', shape(8192, 1, 64), true, { variants: [oneThread], forms: [] }),
    ...decodeShapes
      .filter(({ n }) => n === 16384)
      .map((of) => decode('threads', of, { variants: [oneThread], forms: [] })),
  ],
  memory: [{ kind: 'memory', suite: 'memory', name: 'peak memory n8192 H8 d64', shape: shape(8192, 8, 64) }],
  latency: [
    { kind: 'latency', suite: 'latency', name: 'timer during a long call', shape: shape(8192, 8, 64) },
    { kind: 'load', suite: 'latency', name: 'loading', shape: shape(16, 1, 64) },
  ],
};

/** Suites in the order `all` runs them; the first look is a part of the others. */
export const allSuites: readonly string[] = Object.keys(suites).filter((name) => name !== 'quick');
