/** The named cases of the benchmark. */
import type { LinearMethod, LinformerMethod, LowrankMethod, LrkvMethod, Method, NystromMethod } from './method';
import { methodName } from './method';
import {
  approximate,
  type Case,
  decode,
  type ProcessCase,
  prefill,
  type Shape,
  shapeName,
  type Variant,
} from './suite';

const shape = (n: number, heads: number, dim: number, kvHeads = heads): Shape => ({ n, heads, kvHeads, dim });

const prefillShapes = [
  [8, 64],
  [32, 64],
  [8, 128],
].flatMap(([heads, dim]) => [1024, 2048, 4096].map((n) => shape(n, heads as number, dim as number)));

const decodeShapes = [4096, 16384].flatMap((n) => [32, 8, 1].map((kvHeads) => shape(n, 32, 64, kvHeads)));

const oneThread: Variant = { name: 'one thread', threads: 1 };
const mha: Variant = { name: '32 key/value heads', kvHeads: 32 };

const landmarks64: NystromMethod = { op: 'nystrom', landmarks: 64, iterations: 6 };
const elu: LinearMethod = { op: 'linear', featureMap: 'elu', causal: false, normalize: true };
const relu: LinearMethod = { ...elu, featureMap: 'relu' };
const causalElu: LinearMethod = { ...elu, causal: true };
/** What onnxruntime's operator for linear recurrence computes. */
const recurrence: LinearMethod = { op: 'linear', featureMap: 'identity', causal: true, normalize: false };
const projected256: LinformerMethod = { op: 'linformer', projected: 256 };
const rank32: LowrankMethod = { op: 'lowrank', rank: 32, oversample: 8, powerIterations: 2 };

const lrkv = (rank: number, more: Partial<LrkvMethod> = {}): LrkvMethod => ({
  op: 'lrkv',
  rank,
  ropeMode: 'none',
  gauge: false,
  ...more,
});

/** LRKV of other ranks and with other ways of rotary embedding, and exact attention of the same model. */
const besideLrkv32: readonly Variant[] = [
  ...[
    lrkv(16),
    lrkv(64),
    ...[16, 32, 64].map((rank) => lrkv(rank, { ropeMode: 'latent' })),
    lrkv(32, { gauge: true }),
    lrkv(32, { ropeMode: 'exact' }),
  ].map((cache) => ({ name: methodName(cache), cache })),
  { name: 'MHA', cache: 'whole', yardstick: true },
  { name: 'GQA of 8', cache: 'whole', kvHeads: 8 },
  { name: 'MQA', cache: 'whole', kvHeads: 1 },
];

const usual = (n: number): Shape => shape(n, 8, 64);
const lengths = [4096, 16384];

/** A call's memory beyond its inputs, of a method or of exact attention. */
function memory(suite: string, of: Shape, method?: Method): ProcessCase {
  const name = ['peak memory', shapeName(of), ...(method === undefined ? [] : [methodName(method)])].join(' ');
  return { kind: 'memory', suite, name, shape: of, ...(method === undefined ? {} : { method }) };
}

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
  nystrom: [
    ...[...lengths, 65536].map((n) => approximate('nystrom', landmarks64, usual(n))),
    approximate('nystrom', landmarks64, usual(16384), {
      name: 'n16384 H8 d64 m64 beside exact attention',
      variants: [],
      exact: true,
      peer: false,
    }),
    memory('nystrom', usual(65536), landmarks64),
  ],
  linear: [
    ...[elu, relu].flatMap((method) => lengths.map((n) => approximate('linear', method, usual(n)))),
    ...lengths.map((n) => approximate('linear', recurrence, usual(n))),
    ...lengths.map((n) =>
      approximate('linear', causalElu, usual(n), {
        variants: [
          { name: 'into `out`', out: true },
          { name: 'not causal', method: elu },
        ],
      }),
    ),
    approximate('linear', recurrence, shape(65, 32, 64), {
      step: true,
      variants: [
        { name: 'elu, normalised', method: causalElu },
        { name: 'one state only', warm: true },
      ],
    }),
    memory('linear', usual(16384), elu),
    memory('linear', usual(16384), recurrence),
  ],
  linformer: [
    ...lengths.map((n) => approximate('linformer', projected256, usual(n))),
    memory('linformer', usual(16384), projected256),
  ],
  lowrank: [
    approximate('lowrank', rank32, usual(4096), { variants: [], exact: true }),
    memory('lowrank', usual(4096), rank32),
  ],
  lrkv: [
    ...lengths.flatMap((n) =>
      (['float32', 'float16'] as const).map((type) =>
        decode('lrkv', shape(n, 32, 128), { cache: lrkv(32), type, variants: besideLrkv32, forms: [] }),
      ),
    ),
    // Time against the first row is the throughput of a batch against that of one sequence of as many bytes.
    decode('lrkv', shape(32768, 32, 128), {
      cache: lrkv(32),
      sequences: 64,
      variants: [{ name: 'one sequence', sequences: 1 }],
      forms: [],
    }),
    approximate('lrkv', lrkv(32), shape(2048, 32, 128), {
      variants: [
        { name: 'into `out`', out: true },
        ...[lrkv(32, { ropeMode: 'exact' }), lrkv(32, { gauge: true })].map((method) => ({
          name: methodName(method),
          method,
        })),
      ],
      exact: true,
      peer: false,
    }),
    memory('lrkv', shape(8192, 32, 128), lrkv(32)),
  ],
  memory: [memory('memory', shape(8192, 8, 64))],
  latency: [
    { kind: 'latency', suite: 'latency', name: 'timer during a long call', shape: shape(8192, 8, 64) },
    { kind: 'load', suite: 'latency', name: 'loading', shape: shape(16, 1, 64) },
  ],
};

/** Suites in the order `all` runs them; the first look is a part of the others. */
export const allSuites: readonly string[] = Object.keys(suites).filter((name) => name !== 'quick');
