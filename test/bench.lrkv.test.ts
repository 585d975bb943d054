/**
 * The benchmark of LRKV: tiny cases of each kind through the whole path, and that wrong answers are never timed.
 *
 * @jest-environment ./test/native-realm-environment.js
 */
import type { BenchReport } from '../lib/cli/bench';
import { runBench } from '../lib/cli/bench';
import { WrongAnswer } from '../lib/cli/check';
import { unlikeSpans } from '../lib/cli/inputs';
import { makeLrkv } from '../lib/cli/lrkv-inputs';
import { type LrkvMethod, lrkvDecodeFlops, lrkvElements, methodFlops } from '../lib/cli/method';
import { lrkvReference } from '../lib/cli/reference/lrkv';
import { benchText } from '../lib/cli/report';
import { approximate, type Case, type DecodeCase, decode } from '../lib/cli/suite';
import { allSuites, suites } from '../lib/cli/suites';
import { lrkvAttentionSync } from '../lib/lrkv';
import type { Tensor } from '../lib/tensor';
import { normal } from './data';

/** Set by a test to spoil the answers of every call of ours. */
let mockSpoil: ((answer: Tensor) => Tensor) | undefined;

jest.mock('../lib/lrkv', () => {
  const actual = jest.requireActual('../lib/lrkv');
  return {
    ...actual,
    lrkvAttention: async (...given: unknown[]) => {
      const answer = await actual.lrkvAttention(...given);
      return mockSpoil?.(answer) ?? answer;
    },
  };
});
jest.mock('../lib/cache-batch', () => {
  const actual = jest.requireActual('../lib/cache-batch');
  return {
    ...actual,
    attendBatchSync: (...given: unknown[]) => {
      const answers: Tensor[] = actual.attendBatchSync(...given);
      return answers.map((answer, i) => (i === answers.length - 1 ? (mockSpoil?.(answer) ?? answer) : answer));
    },
  };
});
jest.mock('../lib/cli/machine', () => ({
  ...jest.requireActual('../lib/cli/machine'),
  // Caches of tiny cases would be 128 by their size.
  coldCopies: () => 2,
}));

afterEach(() => {
  mockSpoil = undefined;
  jest.restoreAllMocks();
});

const shape = { n: 300, heads: 4, kvHeads: 4, dim: 32 };
const none: LrkvMethod = { op: 'lrkv', rank: 8, ropeMode: 'none', gauge: false };
const methods: Readonly<Record<string, LrkvMethod>> = {
  none,
  latent: { ...none, ropeMode: 'latent' },
  exact: { ...none, ropeMode: 'exact' },
  gauges: { ...none, gauge: true },
};

const progress = { start: () => {}, show: () => {}, step: () => {}, stop: () => {} };

async function reportOf(...cases: readonly Case[]): Promise<BenchReport> {
  return await runBench({ cases, how: { threads: 2 }, runs: 1, peer: false, machine: false }, progress);
}

async function rowsOf(given: Case) {
  const { cases } = await reportOf(given);
  return (cases[0] as BenchReport['cases'][number]).rows;
}

const lrkvDecode = (more: Partial<DecodeCase> = {}) =>
  decode('tiny', shape, { cache: none, variants: [], forms: [], ...more });

/** A thousandth more in the last head. */
function lastHeadOff({ data, dims, type }: Tensor): Tensor {
  const from = data.length - data.length / (dims[1] as number);
  return { data: (data as Float32Array).map((x, i) => (i < from ? x : x * 1.001)), dims, type };
}

describe('a decode step', () => {
  test.each(Object.entries(methods))('%s, each type', async (_, cache) => {
    const variants = (['float16', 'bfloat16'] as const).map((type) => ({ name: type, type }));
    const rows = (await rowsOf(lrkvDecode({ cache, variants }))).filter(({ side }) => side === 'ours');
    expect(rows.map(({ name }) => name)).toEqual(['ours', 'ours, float16', 'ours, bfloat16']);
    for (const [index, row] of rows.entries()) {
      const { median } = row.value;
      expect(row.error).toBeLessThan(2e-5);
      expect(row.gflops).toBeCloseTo(lrkvDecodeFlops(cache, shape) / median / 1e6, 6);
      const elements = lrkvElements(cache, shape);
      expect(row.gbs).toBeCloseTo((shape.n * elements * (index === 0 ? 4 : 2)) / median / 1e6, 6);
      // Three pages of 128 positions.
      expect(row.cacheMib).toBe((384 * elements * (index === 0 ? 4 : 2)) / 2 ** 20);
      expect(row.timePerByte).toBeUndefined();
    }
  });

  test('beside whole caches of fewer heads, byte for byte', async () => {
    const variants: DecodeCase['variants'] = [
      { name: 'MHA', cache: 'whole', yardstick: true },
      { name: 'MQA', cache: 'whole', kvHeads: 1 },
    ];
    const report = await reportOf(lrkvDecode({ variants }));
    const [ours, mha, mqa, reader] = (report.cases[0] as BenchReport['cases'][number]).rows;
    expect(mha?.timePerByte).toBe(1);
    for (const row of [ours, mqa]) {
      const [time, bytes] = [
        (row?.value.median as number) / (mha?.value.median as number),
        ((row?.gbs as number) * (row?.value.median as number)) / ((mha?.gbs as number) * (mha?.value.median as number)),
      ];
      expect(row?.timePerByte).toBeCloseTo(time / bytes, 9);
    }
    expect(mha?.cacheMib).toBe((384 * 4 * 64 * 4) / 2 ** 20);
    expect(mqa?.cacheMib).toBe((384 * 64 * 4) / 2 ** 20);
    expect([reader?.name, reader?.timePerByte, reader?.cacheMib]).toEqual(['memory read', undefined, undefined]);
    const { cache, sequences } = JSON.parse(JSON.stringify(report)).cases[0].settings;
    expect([cache, sequences]).toEqual([none, 1]);
    expect(benchText(report)).toMatch(/cache MiB +time\/byte[\s\S]*^time\/byte: /m);
    expect(benchText(await reportOf(lrkvDecode()))).not.toContain('time/byte');
  });

  test('of grouped heads', async () => {
    const [ours] = await rowsOf(lrkvDecode({ shape: { ...shape, kvHeads: 2 } }));
    expect(ours?.error).toBeLessThan(2e-5);
  });

  test.each(['whole', none, methods.latent] as const)('a batch and one sequence', async (cache) => {
    const variants = [{ name: 'one sequence', sequences: 1 }];
    const [batch, one] = await rowsOf(lrkvDecode({ cache: cache as DecodeCase['cache'], sequences: 8, variants }));
    expect([batch?.name, one?.name]).toEqual(['ours', 'ours, one sequence']);
    const bytes = (row: typeof batch) => (row?.gbs as number) * (row?.value.median as number);
    expect(bytes(batch)).toBeCloseTo(bytes(one), 6);
  });

  test('a wrong sequence of a batch is not timed', async () => {
    mockSpoil = lastHeadOff;
    await expect(reportOf(lrkvDecode({ sequences: 8 }))).rejects.toThrow(WrongAnswer);
  });
});

test('sequences are unlike and leave nothing out', () => {
  const spans = unlikeSpans(32768, 64);
  expect(spans[0]?.start).toBe(0);
  expect(spans.at(-1)?.end).toBe(32768);
  for (const [i, { start }] of spans.entries()) if (i > 0) expect(start).toBe(spans[i - 1]?.end);
  const lengths = spans.map(({ start, end }) => end - start);
  expect(new Set(lengths).size).toBe(64);
  expect(Math.min(...lengths)).toBeGreaterThan(0);
  expect(unlikeSpans(9, 8).map(({ start, end }) => end - start)).toContain(2);
});

describe('a call', () => {
  const prefillShape = { ...shape, n: 70 };

  test.each(Object.entries(methods))('%s, beside exact attention and the products it needs', async (_, method) => {
    const variants = [{ name: 'into `out`', out: true }];
    const given = approximate('tiny', method, prefillShape, { variants, exact: true, peer: false });
    const [ours, out, exact, products, both] = await rowsOf(given);
    expect([ours, out, exact, products, both].map((row) => row?.name)).toEqual([
      'ours',
      'ours, into `out`',
      'ours, exact attention',
      'ours, products that make keys and values',
      'ours, these products, then exact attention',
    ]);
    for (const row of [ours, out, exact, products, both]) expect(row?.error).toBeLessThan(2e-5);
    const flops = (row: typeof ours) => (row?.gflops as number) * (row?.value.median as number) * 1e6;
    expect(flops(ours)).toBeCloseTo(methodFlops(method, prefillShape), 3);
    expect(flops(both)).toBeCloseTo(flops(ours), 3);
    expect(flops(exact) + flops(products)).toBeCloseTo(flops(both), 3);
  });

  test.each(Object.entries(methods))('a wrong answer of %s is not timed', async (_, method) => {
    const given = approximate('tiny', method, prefillShape, { variants: [], peer: false });
    mockSpoil = lastHeadOff;
    await expect(reportOf(given)).rejects.toThrow(WrongAnswer);
    mockSpoil = ({ data, dims, type }) => ({ data: (data as Float32Array).map(() => Number.NaN), dims, type });
    await expect(reportOf(given)).rejects.toThrow(/wrong answer, not timed/);
  });

  // Of what the reference is made of: a mistake in any of it is seen in the few rows that are looked at.
  test.each([
    ['another mode', { ropeMode: 'exact' }],
    ['no rotation', { rope: undefined, ropeMode: undefined }],
    ['other keys', { keyUp: normal([32, 32], 3) }],
    ['other values', { valueUp: normal([32, 32], 3) }],
  ] as const)('the reference tells %s', (_, change) => {
    const made = makeLrkv(none, prefillShape);
    const q = normal([1, 4, 70, 32], 1);
    const right = { ...made.rows, ...made.model };
    const reference = lrkvReference(q, made);
    expect(reference.check('right', lrkvAttentionSync(q, right, { causal: true }))).toBeLessThan(2e-5);
    const wrong = { ...right, ...change } as typeof right;
    expect(() => reference.check('wrong', lrkvAttentionSync(q, wrong, { causal: true }))).toThrow(WrongAnswer);
  });
});

test('`all` has the suite, whose decode cases have a yardstick or are batches', () => {
  expect(allSuites).toContain('lrkv');
  for (const given of suites.lrkv ?? []) {
    expect(given.suite).toBe('lrkv');
    if (given.kind !== 'decode') continue;
    const yardsticks = given.variants.filter(({ yardstick }) => yardstick);
    expect(yardsticks.length).toBe(given.sequences === 1 ? 1 : 0);
  }
});
