// `convert` on the command line: what it writes is what the fit gave, bit by bit, and all that cannot be done is refused.
import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import {
  attentionLayer,
  cast,
  type DataType,
  type FitOptions,
  fitLrkv,
  lrkvLayer,
  readAttentionWeights,
  readLrkvWeights,
  tensor,
} from '../lib';
import { contentOf, writeSafetensors as writeContents } from '../lib/files/safetensors-writer';
import type { ModelOptions } from '../lib/model/read';
import { CommandLine, program } from './command-line';
import { normal } from './data';
import { huggingFace, layersOf, type ModelShape, ownNames, smallShape, tensorsOf } from './models';
import { readSafetensors, writeNpy, writeSafetensors, writeShards } from './tensor-files';

jest.setTimeout(120_000);

let work: string;
beforeAll(() => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'convert-'));
});
afterAll(() => fs.rmSync(work, { recursive: true }));

const cli = (line: string) => new CommandLine(work, ['convert']).run(line);
const json = (line: string) => new CommandLine(work, ['convert']).json(line);

/** Has the bar of progress drawn into a pipe. */
const terminal = path.join(__dirname, 'children', 'terminal.js');

const at = (file: string): string => path.join(work, file);
const shape: ModelShape = { ...smallShape, layers: 3, modelDim: 24, heads: 4, kvHeads: 2, headDim: 16, valueDim: 16 };
const tokens = 50;

/** Hidden states of every layer. */
function hidden(layers: number): Float32Array {
  return cast(normal([layers, tokens, shape.modelDim], 77), 'float32').data;
}

interface Case {
  readonly shape: ModelShape;
  readonly naming: typeof huggingFace;
  readonly line: string;
  readonly model: ModelOptions;
  readonly fit: FitOptions;
  readonly calibration?: 'npy' | 'safetensors';
}

const cases: Readonly<Record<string, Case>> = {
  'grouped queries without rotation, by a budget': {
    shape,
    naming: huggingFace,
    line: '--heads 4 --no-rope --budget 60%',
    model: { heads: 4, rope: false },
    fit: { budget: 0.6 },
    calibration: 'npy',
  },
  'its own names, biases, by ranks': {
    shape: { ...shape, layers: 2, biases: true, valueDim: 10 },
    naming: ownNames,
    line: '--heads 4 --kv-heads 2 --no-rope --ranks key:5,value:3 --gauge identity --iterations 7',
    model: { heads: 4, rope: false },
    fit: { rank: { key: 5, value: 3 }, gauge: 'identity', iterations: 7 },
    calibration: 'safetensors',
  },
  'rotated keys, biases, one rank': {
    shape: { ...shape, layers: 2, biases: true, kvHeads: 4 },
    naming: huggingFace,
    line: '--heads 4 --rope-base 1000 --rope-pairing interleaved --ranks 8 --gauge rope-pair',
    model: { heads: 4, rope: { base: 1000, pairing: 'interleaved' } },
    fit: { rank: 8, gauge: { key: 'rope-pair', value: 'auto' } },
    calibration: 'npy',
  },
  'rotated latents, without calibration': {
    shape: { ...shape, layers: 2 },
    naming: ownNames,
    line: '--heads 4 --rope-base 100 --ranks 6 --rope-mode intertwined',
    model: { heads: 4, rope: { base: 100 } },
    fit: { rank: 6, ropeMode: 'intertwined' },
  },
  'one layer, whose hidden states need no axis of layers': {
    shape: { ...shape, layers: 1 },
    naming: huggingFace,
    line: '--heads 4 --no-rope --ranks auto --budget 0.7',
    model: { heads: 4, rope: false },
    fit: { budget: 0.7 },
    calibration: 'npy',
  },
};

describe.each(Object.entries(cases))('%s', (name, { shape: own, naming, line, model, fit, calibration }) => {
  const file = `${Object.keys(cases).indexOf(name)}`;
  const size = tokens * own.modelDim;
  const states = hidden(own.layers);
  const perLayer = Array.from({ length: own.layers }, (_, layer) => ({
    data: states.slice(layer * size, (layer + 1) * size),
    dims: [tokens, own.modelDim],
    type: 'float32' as const,
  }));
  const given = calibration === undefined ? '' : `--calibration ${file}.hidden.${calibration}`;

  beforeAll(() => {
    writeSafetensors(at(`${file}.safetensors`), naming(layersOf(own)));
    const dims = own.layers === 1 ? [tokens, own.modelDim] : [own.layers, tokens, own.modelDim];
    writeNpy(at(`${file}.hidden.npy`), { dims, value: (i) => states[i] });
    const contents = perLayer.map(({ data, dims }, layer) => [
      `layers.${layer}.hidden`,
      { dims, value: (i: number) => data[i] },
    ]);
    writeSafetensors(at(`${file}.hidden.safetensors`), Object.fromEntries(contents));
  });

  test('what is written is the fit, bit by bit, with the rest untouched', async () => {
    const report = json(`${file}.safetensors -o ${file}.out.safetensors ${line} ${given}`);
    const weights = await readAttentionWeights(at(`${file}.safetensors`), model);
    const wanted = await fitLrkv(weights, {
      ...fit,
      ...(calibration === undefined ? {} : { calibration: perLayer }),
    });
    const found = await readLrkvWeights(at(`${file}.out.safetensors`));
    expect(found).toHaveLength(own.layers);
    for (const [index, layer] of found.entries()) {
      const { rope, ...rest } = wanted.layers[index];
      const { rope: foundRope, ...foundRest } = layer;
      expect(foundRest).toEqual(rest);
      expect(foundRope?.pairing).toBe(rope?.pairing);
      expect(Array.from(foundRope?.frequencies ?? [])).toEqual(Array.from(rope?.frequencies ?? []));
    }
    const [before, after] = [`${file}`, `${file}.out`].map((one) => readSafetensors(at(`${one}.safetensors`)).tensors);
    for (const [tensor, { bytes }] of Object.entries(before)) {
      const converted = /\.(k_proj|v_proj)\.|\.(key|value)(Bias)?$/.test(tensor);
      expect(after[tensor]?.bytes.equals(bytes) ?? false).toBe(!converted);
    }
    // What is printed is the fit's own report.
    expect(report).toMatchObject({
      calibrated: calibration !== undefined,
      cacheRatio: wanted.report.cacheRatio,
      factoredRatio: wanted.report.factoredRatio,
      model: { heads: own.heads, kvHeads: own.kvHeads, modelDim: own.modelDim, rotated: model.rope !== false },
    });
    expect(report.tokens).toBe(calibration === undefined ? undefined : tokens);
    for (const [index, layer] of wanted.report.layers.entries()) {
      for (const side of ['key', 'value'] as const) {
        const { heads, gauge, predictedError, measuredError } = layer[side];
        expect(report.layers[index][side]).toMatchObject({ gauge, predictedError, measuredError });
        expect(report.layers[index][side].heads.map(({ rank }: { rank: number }) => rank)).toEqual(
          heads.map(({ rank }) => rank),
        );
      }
    }
  });

  test('more memory never leaves more error', () => {
    const { curves, totals } = json(`${file}.safetensors -o ${file}.curve.safetensors ${line} ${given}`);
    for (const side of ['key', 'value']) {
      const points: { share: number; error: number }[] = curves[side];
      expect(points.length).toBeGreaterThan(1);
      for (const [i, { share, error }] of points.entries()) {
        expect(share).toBeGreaterThanOrEqual(points[i - 1]?.share ?? 0);
        // The first may be above 1: a base fitted with residuals can be farther from the heads than nothing, without them.
        expect(error).toBeLessThanOrEqual(points[i - 1]?.error ?? Number.MAX_VALUE);
      }
      // Where memory is as much as here, error is no more than here.
      const near = points.filter(({ share }) => share >= totals[side].share);
      if (near.length > 0) expect(near.at(-1)?.error).toBeLessThanOrEqual(totals[side].predictedError + 1e-9);
    }
  });
});

test('a layer of whole ranks gives what attention gave', async () => {
  writeSafetensors(at('whole.safetensors'), huggingFace(layersOf(shape)));
  const states = { data: hidden(3), dims: [3, tokens, shape.modelDim] };
  writeNpy(at('whole.npy'), { dims: states.dims, value: (i) => states.data[i] });
  cli('whole.safetensors -o whole.out.safetensors --heads 4 --rope-base 100 --ranks 16 --calibration whole.npy');
  const [layer] = await readAttentionWeights(at('whole.safetensors'), { heads: 4, rope: { base: 100 } });
  const [converted] = await readLrkvWeights(at('whole.out.safetensors'));
  const x = normal([1, 9, shape.modelDim], 5);
  const wanted = cast(await attentionLayer(layer).forward(x), 'float32').data;
  const found = cast(await lrkvLayer(converted).forward(x), 'float32').data;
  const largest = Math.max(...wanted.map(Math.abs));
  for (const [i, value] of wanted.entries()) expect(Math.abs(found[i] - value)).toBeLessThan(1e-4 * largest);
});

test('tables for people', () => {
  const { status, stdout, stderr } = cli(
    '0.safetensors -o table.safetensors --heads 4 --no-rope --calibration 0.hidden.npy',
  );
  expect([status, stderr]).toEqual([0, '']);
  expect(stdout).toMatch(
    /^0.safetensors: 3 layers of 4 heads over 2 key\/value heads; the cache takes \d+ % of a KvCache$/m,
  );
  expect(stdout).toMatch(/^ranks by a budget of 50 % of the cache; calibrated on 50 tokens a layer$/m);
  expect(stdout).toMatch(/^layer +key ranks +key gauge +predicted +measured +value ranks .*cache$/m);
  for (const layer of [0, 1, 2]) {
    expect(stdout).toMatch(new RegExp(`^${layer} +[\\d–]+ +(free|no base.*) +[\\d.]+ % +[\\d.]+ % +[\\d–]+ `, 'm'));
  }
  expect(stdout).toMatch(/^Written: table.safetensors$/m);
});

describe('a model in several files', () => {
  const line = '--heads 4 --rope-base 100 --budget 80% --calibration sharded.npy';
  beforeAll(() => {
    const states = hidden(shape.layers);
    writeNpy(at('sharded.npy'), { dims: [shape.layers, tokens, shape.modelDim], value: (i) => states[i] });
    writeSafetensors(at('merged.safetensors'), huggingFace(layersOf(shape)));
    fs.mkdirSync(at('sharded'));
    writeShards(at('sharded'), huggingFace(layersOf(shape)), 3);
  });

  test.each(['sharded', 'sharded/model.safetensors.index.json'])('%s: one file, as of the merged model', (source) => {
    const wanted = json(`merged.safetensors -o merged.out.safetensors --force ${line}`);
    const found = json(`${source} -o sharded.out.safetensors --force ${line}`);
    expect(found.layers).toEqual(wanted.layers);
    const [one, other] = ['merged', 'sharded'].map((name) => readSafetensors(at(`${name}.out.safetensors`)));
    expect(other.metadata).toEqual(one.metadata);
    expect(Object.keys(other.tensors).sort()).toEqual(Object.keys(one.tensors).sort());
    for (const [name, { bytes }] of Object.entries(one.tensors))
      expect(other.tensors[name].bytes.equals(bytes)).toBe(true);
  });

  test('no file of it is replaced', () => {
    for (const name of ['model-00002-of-00003.safetensors', 'model.safetensors.index.json']) {
      const { status, stderr } = cli(`sharded -o sharded/${name} --force ${line}`);
      expect([status, stderr]).toEqual([1, expect.stringContaining('no part of the source')]);
    }
    expect(fs.readdirSync(at('sharded'))).toHaveLength(4);
  });
});

describe('the element type of new tensors', () => {
  const dtypes = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' } as const;
  const line = '--heads 4 --rope-base 100 --budget 80%';

  /** The model with its attention in other element types, layer by layer. */
  async function write(file: string, types: readonly DataType[]): Promise<void> {
    const contents = layersOf(shape).flatMap((layer, index) =>
      Object.entries(tensorsOf(layer)).map(([part, own]) =>
        contentOf(`layers.${index}.attention.${part}`, cast(own, types[index % types.length])),
      ),
    );
    await writeContents(at(file), contents);
  }
  const found = (file: string) => {
    const { tensors } = readSafetensors(at(file));
    const fresh = Object.entries(tensors).filter(([name]) => /\.(key|value)(Base|Down|Up|Gauge)/.test(name));
    expect(fresh.length).toBeGreaterThanOrEqual(3 * 6);
    return [...new Set(fresh.map(([, { dtype }]) => dtype))];
  };

  test.each(['float32', 'float16', 'bfloat16'] as const)('%s: that of the model', async (type) => {
    await write(`${type}.safetensors`, [type]);
    const { stdout } = cli(`${type}.safetensors -o ${type}.out.safetensors ${line}`);
    expect(stdout).toMatch(new RegExp(`through the ${type} weights`));
    expect(found(`${type}.out.safetensors`)).toEqual([dtypes[type]]);
    // As `fitLrkv` rounds them.
    const weights = await readAttentionWeights(at(`${type}.safetensors`), { heads: 4, rope: { base: 100 } });
    const wanted = await fitLrkv(weights, { budget: 0.8, type });
    expect(await readLrkvWeights(at(`${type}.out.safetensors`))).toMatchObject(
      wanted.layers.map(({ keyUp, keyDown, valueUp, valueGauge }) => ({
        ...{ keyUp, keyDown, valueUp },
        ...(valueGauge && { valueGauge }),
      })),
    );
  });

  test('--type, and float32 where layers differ', async () => {
    await write('mixed.safetensors', ['float16', 'bfloat16']);
    const report = json(`mixed.safetensors -o mixed.out.safetensors ${line}`);
    expect([report.weightType, found('mixed.out.safetensors')]).toEqual(['float32', ['F32']]);
    const chosen = json(`mixed.safetensors -o mixed.out.safetensors --force ${line} --type bfloat16`);
    expect([chosen.weightType, found('mixed.out.safetensors')]).toEqual(['bfloat16', ['BF16']]);
    const { status, stderr } = cli(`mixed.safetensors -o none.out.safetensors ${line} --type int8`);
    expect([status, stderr]).toEqual([2, expect.stringContaining('float16')]);
  });
});

test('keys of low rank that are stored whole are told of', () => {
  const line = '0.safetensors -o notes.safetensors --force --heads 4 --rope-base 100 --gauge none';
  const note = /^Keys were cut to lower ranks to no avail: .*$/gm;
  expect(cli(`${line} --ranks key:8,value:8`).stdout.match(note)).toHaveLength(1);
  expect(cli(`${line} --ranks key:16,value:8`).stdout.match(note)).toBeNull();
  expect(json(`${line} --ranks key:8,value:8`).layers[1].notes[0]).toMatch(note);
});

describe('what does not come to its end leaves nothing', () => {
  const many: ModelShape = { ...shape, layers: 40, modelDim: 96, heads: 8, kvHeads: 8, headDim: 32, valueDim: 32 };
  beforeAll(() => writeSafetensors(at('many.safetensors'), huggingFace(layersOf(many))));

  test.each(['SIGINT', 'SIGTERM'] as const)('%s', async (signal) => {
    const args = ['convert', 'many.safetensors', '-o', 'stopped.safetensors', '--heads', '8', '--no-rope'];
    const child = spawn(process.execPath, ['--require', terminal, program, ...args], { cwd: work });
    const ended = new Promise<NodeJS.Signals | number | null>((resolve) =>
      child.on('exit', (code, by) => resolve(by ?? code)),
    );
    let shown = '';
    const fitting = new Promise<'fitting'>((resolve) =>
      child.stderr.on('data', (text) => {
        shown += text;
        if (/layer \d+, (keys|values), iteration/.test(shown)) resolve('fitting');
      }),
    );
    expect([await Promise.race([fitting, ended]), shown]).toEqual(['fitting', expect.any(String)]);
    child.kill(signal);
    expect(await ended).toBe(signal);
    expect(fs.readdirSync(work).filter((name) => name.includes('stopped'))).toEqual([]);
  });

  test('a disk that is full', () => {
    fs.writeFileSync(at('full.safetensors'), 'before');
    // Blocks of 512 bytes; the signal would end the process where the error is to.
    const run = `trap '' XFSZ; ulimit -f 100; exec "${process.execPath}" "${program}" "$@"`;
    const args = ['convert', 'many.safetensors', '-o', 'full.safetensors', '--force', '--heads', '8', '--no-rope'];
    const more = ['--ranks', '8', '--gauge', 'none', '--iterations', '1'];
    const { status, stderr } = spawnSync('sh', ['-c', run, 'sh', ...args, ...more], { cwd: work, encoding: 'utf8' });
    expect([status, stderr]).toEqual([1, expect.stringMatching(/^error: EFBIG/)]);
    expect(fs.readdirSync(work).filter((name) => name.includes('full'))).toEqual(['full.safetensors']);
    expect(fs.readFileSync(at('full.safetensors'), 'utf8')).toBe('before');
  });
});

describe('refused', () => {
  const model = '0.safetensors --heads 4 --no-rope';
  beforeAll(() => {
    writeSafetensors(at('none.safetensors'), { weight: { dims: [1], value: () => 0 } });
    writeNpy(at('flat.npy'), { dims: [50, 24], value: (i) => i });
    writeNpy(at('narrow.npy'), { dims: [3, 50, 23], value: (i) => Math.sin(i) });
    fs.writeFileSync(at('there.safetensors'), 'before');
    fs.mkdirSync(at('folder'));
  });

  test.each<[string, string, 1 | 2, RegExp]>([
    ['no output', '0.safetensors', 2, /--output/],
    ['no model', '-o out.safetensors', 2, /'model'/],
    ['a model that is not there', 'gone.safetensors -o out.safetensors', 1, /ENOENT.*gone.safetensors/],
    [
      'a file without attention',
      'none.safetensors -o out.safetensors',
      1,
      /attention layers .*q,k,v,o.*received weight/,
    ],
    ['heads that nobody says', '0.safetensors -o out.safetensors', 1, /for `heads`, received undefined/],
    [
      'heads that do not fit',
      '0.safetensors --heads 7 --no-rope -o out.safetensors',
      1,
      /columns for 7 heads .*q_proj/,
    ],
    ['key heads that do not fit', `${model} --kv-heads 4 -o out.safetensors`, 1, /self_attn.key/],
    ['rotation that nobody says', '0.safetensors --heads 4 -o out.safetensors', 1, /for `rope`/],
    ['rotation that is said twice', `${model} --rope-base 5 -o out.safetensors`, 2, /--no-rope goes with neither/],
    ['a pairing without a base', '0.safetensors --heads 4 --rope-pairing half -o out.safetensors', 2, /--rope-base/],
    ['a budget of nothing', `${model} --budget 0% -o out.safetensors`, 2, /share above 0 %/],
    ['a budget beyond all', `${model} --budget 101% -o out.safetensors`, 2, /share above 0 %/],
    ['a budget that is none', `${model} --budget half -o out.safetensors`, 2, /share above 0 %/],
    ['a budget below the bases', `${model} --budget 1% -o out.safetensors`, 1, /expected at least .* for `budget`/],
    ['ranks and a budget', `${model} --ranks 8 --budget 50% -o out.safetensors`, 2, /leave out --ranks/],
    ['ranks that are none', `${model} --ranks key:8 -o out.safetensors`, 2, /key:N,value:N/],
    ['ranks beyond a head', `${model} --ranks 17 -o out.safetensors`, 1, /for `rank`, received 17/],
    [
      'a free gauge of rotated keys',
      '0.safetensors --heads 4 --rope-base 9 --gauge free -o out.safetensors',
      1,
      /`gauge`/,
    ],
    ['an output that is there', `${model} -o there.safetensors`, 2, /there.safetensors is there already: --force/],
    ['an output that is a folder', `${model} --force -o folder`, 2, /folder is a folder/],
    ['a folder that is not there', `${model} -o no/out.safetensors`, 1, /ENOENT/],
    ['calibration of another kind', `${model} --calibration x.txt -o out.safetensors`, 2, /.npy or .safetensors/],
    [
      'calibration of one layer for three',
      `${model} --calibration flat.npy -o out.safetensors`,
      2,
      /\[3 layers, tokens/,
    ],
    ['calibration of another width', `${model} --calibration narrow.npy -o out.safetensors`, 1, /24 columns/],
    [
      'calibration without its names',
      `${model} --calibration none.safetensors -o out.safetensors`,
      1,
      /layers.0.hidden/,
    ],
  ])('%s', (_, line, code, message) => {
    const { status, stdout, stderr } = cli(line);
    expect([status, stdout]).toEqual([code, '']);
    expect(stderr).toMatch(message);
    expect(stderr).not.toMatch(/^ +at /m);
    expect(fs.existsSync(at('out.safetensors'))).toBe(false);
    expect(fs.readFileSync(at('there.safetensors'), 'utf8')).toBe('before');
  });

  test('gains of QK-norm that no layer of the result could take', async () => {
    const [layer] = layersOf({ ...shape, gains: true });
    const prefix = 'layers.0.attention.';
    const contents = Object.entries(layer).map(([part, { data, dims }]) =>
      contentOf(prefix + part, tensor(data, dims)),
    );
    const write = async (file: string, query: object, key: object) => {
      const rope = { frequencies: new Array(8).fill(0.5) };
      const numbers = { heads: 4, kvHeads: 2, rope, queryNorm: query, keyNorm: key };
      const metadata = { version: 1, layers: { [prefix]: numbers } };
      await writeContents(at(file), contents, { lowrank_attention: JSON.stringify(metadata) });
    };
    const after = { epsilon: 0, gainOrder: 'after-rotation' };
    await write('late.safetensors', after, { epsilon: 0 });
    await write('early.safetensors', { epsilon: 0 }, { epsilon: 0 });
    for (const [line, message] of [
      ['late.safetensors', /unless keys are normalised so for `layers.0.attention.qkNorm.query`/],
      ['early.safetensors --rope-mode intertwined', /'intertwined' for `layers.0.attention.qkNorm.key`/],
    ] as const) {
      const { status, stderr } = cli(`${line} -o gains.safetensors --ranks 16`);
      expect([status, stderr]).toEqual([1, expect.stringMatching(message)]);
      expect(fs.existsSync(at('gains.safetensors'))).toBe(false);
    }
    await write('right.safetensors', after, after);
    expect(cli('right.safetensors -o gains.safetensors --ranks 16 --rope-mode intertwined').status).toBe(0);
    const [converted] = await readLrkvWeights(at('gains.safetensors'));
    expect(lrkvLayer(converted).forwardSync(normal([1, 3, shape.modelDim], 1)).dims).toEqual([1, 3, shape.modelDim]);
  });

  test('but --force replaces', () => {
    fs.copyFileSync(at('0.safetensors'), at('same.safetensors'));
    const line = 'same.safetensors --heads 4 --no-rope --ranks 8 -o same.safetensors';
    expect(cli(line).status).toBe(2);
    expect(cli(`${line} --force`).status).toBe(0);
    expect(cli(`${line} --force`)).toMatchObject({ status: 1, stderr: expect.stringContaining('received LRKV') });
  });
});
