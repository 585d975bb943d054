/**
 * The benchmark of the low-rank family: one tiny case of each kind through the whole path, and that wrong answers of
 * either side are never timed.
 *
 * @jest-environment ./test/native-realm-environment.js
 */
import { execFileSync } from 'node:child_process';
import path from 'node:path';

import { approximation } from '../lib/cli/approximate/approximate';
import type { BenchReport, BenchRequest } from '../lib/cli/bench';
import { runBench } from '../lib/cli/bench';
import { WrongAnswer } from '../lib/cli/check';
import type { LinearMethod, Method } from '../lib/cli/method';
import { methodFlops, passes } from '../lib/cli/method';
import { type ApproximateCase, approximate, type Case } from '../lib/cli/suite';
import { allSuites, suites } from '../lib/cli/suites';
import type { Tensor } from '../lib/tensor';
import { root } from './files';

/** Set by a test to spoil the answers of every call of ours. */
let mockSpoil: ((answer: Tensor) => Tensor) | undefined;

/** A module whose functions of these names give spoiled answers when a test says so. */
function mockSpoiled(module: string, ...names: readonly string[]): object {
  const actual = jest.requireActual(module);
  const wrapped = names.map((name) => [
    name,
    (...given: unknown[]) => {
      const answer = actual[name](...given);
      const spoil = (tensor: Tensor) => mockSpoil?.(tensor) ?? tensor;
      return answer instanceof Promise ? answer.then(spoil) : spoil(answer);
    },
  ]);
  return { ...actual, ...Object.fromEntries(wrapped) };
}

jest.mock('../lib/nystrom', () => mockSpoiled('../lib/nystrom', 'nystromAttention'));
jest.mock('../lib/linear', () => mockSpoiled('../lib/linear', 'linearAttention', 'linearAttentionSync'));
jest.mock('../lib/linformer', () => mockSpoiled('../lib/linformer', 'linformerAttention'));

afterEach(() => {
  mockSpoil = undefined;
});

const shape = { n: 128, heads: 2, kvHeads: 2, dim: 32 };
const elu: LinearMethod = { op: 'linear', featureMap: 'elu', causal: false, normalize: true };
const recurrence: LinearMethod = { op: 'linear', featureMap: 'identity', causal: true, normalize: false };

const methods: Readonly<Record<string, Method>> = {
  nystrom: { op: 'nystrom', landmarks: 16, iterations: 6 },
  elu,
  relu: { ...elu, featureMap: 'relu' },
  'causal elu': { ...elu, causal: true },
  recurrence,
  linformer: { op: 'linformer', projected: 24 },
  lowrank: { op: 'lowrank', rank: 30, oversample: 6, powerIterations: 1 },
};

const progress = { start: () => {}, show: () => {}, step: () => {}, stop: () => {} };

function request(cases: readonly Case[], peer = true): BenchRequest {
  return { cases, how: { threads: 2 }, runs: 1, peer, machine: false };
}

/** What `--json` prints. */
async function reportOf(given: Case): Promise<BenchReport['cases'][number]> {
  const report = await runBench(request([given]), progress);
  return JSON.parse(JSON.stringify(report)).cases[0];
}

describe('a call', () => {
  test.each(Object.entries(methods))('%s', async (_, method) => {
    const given = approximate('tiny', method, shape, { variants: [{ name: 'one thread', threads: 1 }] });
    const { suite, name, kind, settings, rows, ratios, bestPeer } = await reportOf(given);
    expect({ suite, name, kind }).toEqual({ suite: 'tiny', name: given.name, kind: 'approximate' });
    expect(settings.method).toEqual(method);
    const theirs = {
      nystrom: ['onnxruntime graph'],
      linformer: ['onnxruntime graph'],
      elu: ['onnxruntime graph'],
      relu: ['onnxruntime graph'],
      recurrence: ['onnxruntime LinearAttention'],
    }[Object.entries(methods).find(([, value]) => value === method)?.[0] as string];
    expect(rows.map((row) => row.name)).toEqual(['ours', 'ours, one thread', ...(theirs ?? [])]);
    for (const row of rows) {
      expect(row.value.median).toBeGreaterThan(0);
      expect(row.error).toBeLessThan(method.op === 'lowrank' ? 5e-4 : 2e-5);
      expect(row.gflops).toBeCloseTo(methodFlops(method, shape) / row.value.median / 1e6, 6);
    }
    expect(ratios.map(({ to }) => to)).toEqual(rows.slice(1).map((row) => row.name));
    expect(bestPeer?.to).toBe(theirs?.[0]);
  });

  test('variants: into `out`, of another method', async () => {
    const variants = [
      { name: 'into `out`', out: true },
      { name: 'not causal', method: elu },
    ];
    const given = approximate('tiny', { ...elu, causal: true }, shape, { variants });
    const { rows } = await reportOf(given);
    expect(rows.map((row) => row.name)).toEqual(['ours', 'ours, into `out`', 'ours, not causal']);
  });

  test('beside exact attention, as many passes as factors take', async () => {
    const method = methods.lowrank as Extract<Method, { op: 'lowrank' }>;
    const { rows } = await reportOf(approximate('tiny', method, shape, { variants: [], exact: true, peer: false }));
    expect(rows.map((row) => row.name)).toEqual(['ours', 'ours, exact attention, 4 times, value size 36']);
    expect(passes(method)).toBe(4);
    // Both count the same work.
    const [factors, exact] = rows.map((row) => (row.gflops as number) * row.value.median);
    expect(factors).toBeCloseTo(exact as number, 6);
  });
});

describe('a step', () => {
  const step = (more: Partial<ApproximateCase>) =>
    approximate('tiny', recurrence, { ...shape, n: 9 }, { step: true, ...more });

  test('reads and writes states in turn, or one', async () => {
    const variants = [
      { name: 'elu', method: { ...elu, causal: true } },
      { name: 'one state only', warm: true },
    ];
    const { rows } = await reportOf(step({ variants }));
    const [ours, variant, warm, peer, reader] = rows;
    expect([ours, variant, warm, peer, reader].map((row) => row?.name)).toEqual([
      'ours',
      'ours, elu',
      'ours, one state only',
      'onnxruntime LinearAttention',
      'memory read',
    ]);
    // S, z and a logarithm a head in float64, read and written; onnxruntime has S in float32.
    const bytes = (row: typeof ours) => Math.round((row?.gbs as number) * (row?.value.median as number) * 1e6);
    expect(bytes(ours)).toBe(2 * shape.heads * (shape.dim * (shape.dim + 1) + 1) * 8);
    expect(bytes(variant)).toBe(bytes(ours));
    expect(bytes(peer)).toBe(2 * shape.heads * shape.dim * shape.dim * 4);
    expect(warm?.gbs).toBeUndefined();
    for (const row of [ours, variant, peer]) expect(row?.readShare).toBeGreaterThan(0);
  });

  test('a wrong state is not timed', async () => {
    mockSpoil = halfOff;
    await expect(runBench(request([step({ variants: [] })], false), progress)).rejects.toThrow(WrongAnswer);
  });
});

/** A thousandth more in the last head. */
function halfOff({ data, dims, type }: Tensor): Tensor {
  const from = data.length / 2;
  return { data: (data as Float32Array).map((x, i) => (i < from ? x : x * 1.001)), dims, type };
}

describe('a wrong answer', () => {
  test.each(Object.entries(methods).filter(([, { op }]) => op !== 'lowrank'))(
    'of %s is not timed',
    async (_, method) => {
      const given = approximate('tiny', method, shape, { variants: [] });
      mockSpoil = halfOff;
      await expect(runBench(request([given], false), progress)).rejects.toThrow(WrongAnswer);
      mockSpoil = ({ data, dims, type }) => ({ data: (data as Float32Array).map(() => Number.NaN), dims, type });
      await expect(runBench(request([given], false), progress)).rejects.toThrow(/wrong answer, not timed/);
    },
  );

  test('of fewer factors than the matrix has', async () => {
    const given = approximate('tiny', { ...methods.lowrank, rank: 20 } as Method, shape, { variants: [] });
    await expect(runBench(request([given], false), progress)).rejects.toThrow(WrongAnswer);
  });

  // Of what each method is made of: a mistake in any of it is seen in the few rows that are looked at.
  test.each([
    ['a landmark', methods.nystrom, { ...methods.nystrom, landmarks: 15 }],
    ['an iteration', methods.nystrom, { ...methods.nystrom, iterations: 5 }],
    ['negative features', elu, methods.relu],
    ['causality', { ...elu, causal: true }, elu],
    ['a denominator', { ...elu, causal: true }, { ...elu, causal: true, normalize: false }],
  ] as const)('for want of %s', async (_, method, other) => {
    const right = approximation(method as Method, shape);
    const wrong = approximation(other as Method, shape, right.inputs);
    const answer = await wrong.answer({ threads: 1 });
    expect(() => right.reference().check('other', answer)).toThrow(WrongAnswer);
    expect(right.reference().check('right', await right.answer({ threads: 1 }))).toBeLessThan(2e-5);
  });
});

test('memory: in a process of its own, beside n·(m + d)', () => {
  // Compiled, as the process that measures is.
  const script = `const { runBench } = require(${JSON.stringify(path.join(root, 'dist/cli/bench.js'))});
    const done = () => {};
    runBench(JSON.parse(process.argv[1]), { start: done, show: done, step: done, stop: done })
      .then((report) => console.log(JSON.stringify(report)));`;
  const method = methods.elu as Method;
  const given: Case = { kind: 'memory', suite: 'tiny', name: 'memory', shape: { ...shape, n: 4096 }, method };
  const printed = execFileSync(process.execPath, ['-e', script, JSON.stringify(request([given]))], {
    encoding: 'utf8',
  });
  const { rows } = (JSON.parse(printed) as BenchReport).cases[0] as BenchReport['cases'][number];
  expect(rows.map(({ name, unit }) => [name, unit])).toEqual([
    ['ours', 'MiB'],
    ['onnxruntime graph', 'MiB'],
    ['n·(m + d) of all heads', 'MiB'],
  ]);
  expect(rows[2]?.value.median).toBe((4 * 2 * 4096 * (32 + 32)) / 2 ** 20);
});

test('`all` has the suites of the family', () => {
  for (const name of ['nystrom', 'linear', 'linformer', 'lowrank']) {
    expect(allSuites).toContain(name);
    expect(suites[name]?.some(({ kind }) => kind === 'memory')).toBe(true);
    expect(suites[name]?.every(({ suite }) => suite === name)).toBe(true);
  }
});
