// Models in safetensors files: both namings give the same weights, converted layers come back bit by bit with all else
// untouched, and what is missing or does not fit is refused by name.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { cast, type Tensor } from '../lib';
import { contentOf, writeSafetensors as writeContents } from '../lib/files/safetensors-writer';
import { type ModelOptions, readAttentionWeights, readLrkvWeights } from '../lib/model/read';
import { writeLrkvWeights } from '../lib/model/write';
import type { LrkvWeights } from '../lib/weights';
import { normal } from './data';
import { huggingFace, layersOf, type ModelShape, ownNames, smallShape, tensorsOf } from './models';
import { refusalOf } from './refusal';
import { type Content, readSafetensors, writeSafetensors } from './tensor-files';

let work: string;
beforeAll(() => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'model-'));
});
afterAll(() => fs.rmSync(work, { recursive: true }));

/** A model in a folder of its own, with or without config.json. */
function written(contents: Readonly<Record<string, Content>>, config?: object | string): string {
  const folder = fs.mkdtempSync(path.join(work, 'in-'));
  const file = path.join(folder, 'model.safetensors');
  writeSafetensors(file, contents);
  if (config !== undefined) {
    fs.writeFileSync(path.join(folder, 'config.json'), typeof config === 'string' ? config : JSON.stringify(config));
  }
  return file;
}

const config = {
  model_type: 'qwen3',
  num_attention_heads: smallShape.heads,
  num_key_value_heads: smallShape.kvHeads,
  head_dim: smallShape.headDim,
  rope_theta: 500,
  rms_norm_eps: 1e-5,
  rope_scaling: null,
};

const frequencies = (headDim: number, base: number) =>
  Float64Array.from({ length: headDim / 2 }, (_, i) => 1 / base ** ((2 * i) / headDim));

/** Numbers within a few roundings of float64. */
function close(found: ArrayLike<number>, wanted: ArrayLike<number>): void {
  expect(found).toHaveLength(wanted.length);
  for (let i = 0; i < wanted.length; i++) expect(Math.abs(found[i] / wanted[i] - 1)).toBeLessThan(1e-14);
}

const shapes: Readonly<Record<string, ModelShape>> = {
  'heads of their own keys': { ...smallShape, kvHeads: 4 },
  'grouped queries': smallShape,
  'one key head, biases': { ...smallShape, kvHeads: 1, biases: true },
  'values of another size': { ...smallShape, headDim: 8, valueDim: 5, biases: true },
  'three layers with QK-norm': { ...smallShape, layers: 3, gains: true },
  'more layers than have one digit': { ...smallShape, layers: 12 },
};

describe.each(Object.entries(shapes))('%s', (_, shape) => {
  const layers = layersOf(shape);
  const { heads, kvHeads, headDim } = shape;

  test('in the naming of Hugging Face, with config.json', async () => {
    const file = written(huggingFace(layers), { ...config, num_key_value_heads: kvHeads, head_dim: headDim });
    const found = await readAttentionWeights(file);
    expect(found).toHaveLength(layers.length);
    for (const [index, { rope, qkNorm, ...weights }] of found.entries()) {
      expect(weights).toEqual({ ...tensorsOf(layers[index]), heads, kvHeads });
      expect(rope?.pairing).toBe('half');
      close(rope?.frequencies ?? [], frequencies(headDim, 500));
      const { queryNorm, keyNorm } = layers[index];
      expect(qkNorm).toEqual(
        queryNorm && {
          query: { epsilon: 1e-5, gain: queryNorm.data },
          key: { epsilon: 1e-5, gain: keyNorm.data },
        },
      );
    }
  });

  test('in its own naming, with options', async () => {
    const options = { heads, rope: { base: 100, pairing: 'interleaved' }, normEpsilon: 0 } as const;
    const found = await readAttentionWeights(written(ownNames(layers)), options);
    for (const [index, { rope, qkNorm, ...weights }] of found.entries()) {
      expect(weights).toEqual({ ...tensorsOf(layers[index]), heads, kvHeads });
      expect(rope?.pairing).toBe('interleaved');
      close(rope?.frequencies ?? [], frequencies(headDim, 100));
      expect(qkNorm?.key?.epsilon).toBe(shape.gains ? 0 : undefined);
    }
    expect(
      (await readAttentionWeights(written(ownNames(layers)), { ...options, rope: false }))[0].rope,
    ).toBeUndefined();
  });
});

test('options go before config.json, and other models’ stacks can be chosen', async () => {
  const layers = layersOf(smallShape);
  const file = written({ ...huggingFace(layers, 'text.'), ...huggingFace(layers.slice(1), 'vision.') }, config);
  const [layer, ...more] = await readAttentionWeights(file, { stack: 'vision.', rope: { base: 7 } });
  expect(more).toEqual([]);
  expect(layer.key).toEqual(tensorsOf(layers[1]).key);
  close(layer.rope?.frequencies ?? [], frequencies(6, 7));
  expect(await refusalOf(readAttentionWeights(file))).toMatch(/^ERR_ARGUMENT stack: .*none of 'text.', 'vision.'$/);
  expect(await refusalOf(readAttentionWeights(file, { stack: 'audio.' }))).toMatch(
    /attention layers .* after 'audio.'/,
  );
});

describe('rotary embedding of config.json', () => {
  const shape = { ...smallShape, headDim: 16, valueDim: 4, heads: 2 };
  const layers = layersOf(shape);
  const plain = { ...config, num_attention_heads: 2, head_dim: 16, rope_theta: 1e4 };
  const read = async (more: object) => {
    const [{ rope }] = await readAttentionWeights(written(huggingFace(layers), { ...plain, ...more }));
    return Array.from(rope?.frequencies ?? []);
  };

  test('scaled as named, wherever it is said', async () => {
    const unscaled = frequencies(16, 1e4);
    close(await read({ rope_scaling: { rope_type: 'default' } }), unscaled);
    close(await read({ rope_theta: undefined, rope_parameters: { rope_type: 'default', rope_theta: 1e4 } }), unscaled);
    close(
      await read({ rope_scaling: { type: 'linear', factor: 4 } }),
      unscaled.map((value) => value / 4),
    );
  });

  test('llama3: as transformers computes it, by wavelengths', async () => {
    const scaling = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 512 };
    const wanted = frequencies(16, 1e4).map((frequency) => {
      const wavelength = (2 * Math.PI) / frequency;
      if (wavelength > 512 / 1) return frequency / 8;
      if (wavelength < 512 / 4) return frequency;
      const smooth = (512 / wavelength - 1) / (4 - 1);
      return ((1 - smooth) * frequency) / 8 + smooth * frequency;
    });
    const found = await read({ rope_scaling: { rope_type: 'llama3', ...scaling } });
    close(found, wanted);
    // All three kinds are there.
    const ratios = frequencies(16, 1e4).map((value, i) => value / found[i]);
    expect(ratios[0]).toBeCloseTo(1, 10);
    expect(ratios[7]).toBeCloseTo(8, 10);
    expect(ratios.some((ratio) => ratio > 1.01 && ratio < 7.9)).toBe(true);
  });

  test.each<[string, object, RegExp]>([
    ['another scaling', { rope_scaling: { rope_type: 'yarn', factor: 4 } }, /^ERR_UNSUPPORTED rope_scaling: .*'yarn'$/],
    ['scaling of no name', { rope_scaling: {} }, /^ERR_UNSUPPORTED rope_scaling: /],
    ['scaling without its factor', { rope_scaling: { type: 'linear' } }, /^ERR_ARGUMENT rope_scaling.factor: /],
    ['a model of another rotation', { model_type: 'cohere' }, /^ERR_UNSUPPORTED model_type: .*"cohere"$/],
    ['a part of each head', { partial_rotary_factor: 0.5 }, /^ERR_UNSUPPORTED partial_rotary_factor: .*whole.*0.5$/],
    [
      'such a part, nested',
      { rope_parameters: { rope_theta: 5, partial_rotary_factor: 0.5 } },
      /^ERR_UNSUPPORTED partial/,
    ],
    ['no base', { rope_theta: undefined }, /^ERR_ARGUMENT rope_theta: .*undefined$/],
    ['a base that is none', { rope_theta: '1e4' }, /^ERR_ARGUMENT rope_theta: .*"1e4"$/],
  ])('%s is refused', async (_, more, message) => {
    expect(await refusalOf(read(more))).toMatch(message);
  });
});

test('a base that is given does not make a part of a head the whole', async () => {
  const weights = huggingFace(layersOf(smallShape));
  const read = (more: object) =>
    readAttentionWeights(written(weights, { ...config, model_type: 'phi', ...more }), { rope: { base: 500 } });
  const parts = { partial_rotary_factor: 0.5, rotary_pct: 0.25, rotary_dim: 4 };
  for (const [name, part] of Object.entries(parts))
    expect(await refusalOf(read({ [name]: part }))).toMatch(
      new RegExp(`^ERR_UNSUPPORTED ${name}: .*received ${part}$`),
    );
  for (const whole of [{}, { partial_rotary_factor: 1 }, { rotary_pct: 1 }, { rotary_dim: 6 }, { rotary_dim: null }])
    expect(await read(whole)).toHaveLength(smallShape.layers);
});

describe('refused', () => {
  const layers = layersOf(smallShape);
  const contents = huggingFace(layers);
  const without = (name: string) => Object.fromEntries(Object.entries(contents).filter(([key]) => key !== name));
  const read = (of: Readonly<Record<string, Content>>, options: ModelOptions = {}, beside: object | string = config) =>
    refusalOf(readAttentionWeights(written(of, beside), options));

  test('files without attention layers, and layers without a part', async () => {
    const none = { 'encoder.weight': { dims: [1], value: () => 1 } };
    expect(await read(none)).toMatch(/^ERR_ARGUMENT model.safetensors: .*\{q,k,v,o\}_proj.*received encoder.weight$/);
    expect(await read({})).toMatch(/received no tensors$/);
    for (const name of ['q', 'k', 'v', 'o']) {
      const message = await read(without(`model.layers.1.self_attn.${name}_proj.weight`));
      expect(message).toMatch(/^ERR_ARGUMENT model.layers.1.self_attn.: /);
      expect(message).toContain(`${name}_proj.weight`);
    }
    const both = { ...contents, 'model.layers.0.self_attn.key': { dims: [12, 12], value: () => 0 } };
    expect(await read(both)).toMatch(/^ERR_ARGUMENT model.layers.0.self_attn.key: .*received both$/);
  });

  test('queries, keys and values in one matrix, but not where other layers have it', async () => {
    const fused = Object.fromEntries(
      Object.entries(contents).flatMap(([name, content]) => {
        if (/[kv]_proj/.test(name)) return [];
        return [[name.replace('q_proj', 'qkv_proj'), content]];
      }),
    );
    const message = /^ERR_UNSUPPORTED model.layers.0.self_attn.qkv_proj.weight: .*by themselves.*one of all three$/;
    expect(await read(fused)).toMatch(message);
    const neox = { 'gpt_neox.layers.3.attention.query_key_value.weight': { dims: [36, 12], value: () => 0 } };
    expect(await read(neox)).toMatch(/^ERR_UNSUPPORTED gpt_neox.layers.3.attention.query_key_value.weight: /);
    const tower = { ...contents, 'vision.layers.0.self_attn.qkv_proj.weight': { dims: [36, 12], value: () => 0 } };
    expect(await readAttentionWeights(written(tower, config))).toHaveLength(smallShape.layers);
  });

  test('numbers that nobody says, or that do not fit', async () => {
    const bare = written(contents);
    expect(await refusalOf(readAttentionWeights(bare))).toMatch(/^ERR_ARGUMENT heads: /);
    expect(await refusalOf(readAttentionWeights(bare, { heads: 4 }))).toMatch(/^ERR_ARGUMENT rope: /);
    expect(await read(contents, { heads: 5 }, '{}')).toMatch(/^ERR_SHAPE model.layers.0.self_attn.q_proj.weight: /);
    expect(await read(contents, { kvHeads: 4 })).toMatch(/^ERR_SHAPE model.layers.0.self_attn.key: /);
    expect(await read(contents, { kvHeads: 3 })).toMatch(/^ERR_ARGUMENT model.layers.0.self_attn.kvHeads: /);
    expect(await read(contents, {}, { ...config, head_dim: 8 })).toMatch(/q_proj.weight: .*32 columns .*received 24$/);
    expect(await read(contents, { heads: 0 })).toMatch(/^ERR_ARGUMENT heads: /);
    expect(await read(contents, { rope: { base: -1 } })).toMatch(/^ERR_ARGUMENT rope.base: /);
    expect(await read(contents, { rope: { base: 1, pairing: 'odd' as never } })).toMatch(
      /^ERR_ARGUMENT rope.pairing: /,
    );
    expect(await read(contents, { head: 4 } as never)).toMatch(/^ERR_ARGUMENT head: /);
    expect(await read(contents, {}, 'no JSON')).toMatch(/^ERR_ARGUMENT config.json: /);
    expect(await read(contents, {}, '[]')).toMatch(/^ERR_ARGUMENT config.json: /);
    expect(await read(contents, {}, { ...config, num_attention_heads: 'four' })).toMatch(
      /^ERR_ARGUMENT num_attention_heads: /,
    );
  });

  test('gains without an epsilon, or over all heads at once', async () => {
    const gained = layersOf({ ...smallShape, gains: true });
    const { rms_norm_eps: _, ...silent } = config;
    expect(await read(huggingFace(gained), {}, silent)).toMatch(/^ERR_ARGUMENT normEpsilon: /);
    const wide = { ...huggingFace(gained), 'model.layers.0.self_attn.q_norm.weight': { dims: [24], value: () => 1 } };
    expect(await read(wide)).toMatch(/model.layers.0.self_attn.qkNorm.query/);
  });

  test('matrices of other axes', async () => {
    const name = 'model.layers.0.self_attn.k_proj.weight';
    expect(await read({ ...contents, [name]: { dims: [144], value: () => 0 } })).toMatch(/^ERR_SHAPE model.*2 axes/);
  });

  test('a file that is not there', async () => {
    await expect(readAttentionWeights(path.join(work, 'none.safetensors'))).rejects.toMatchObject({ code: 'ENOENT' });
  });
});

/** Converted layers of made-up numbers: nothing here is meant to be near the source. */
function converted(shape: ModelShape, layers: ReturnType<typeof layersOf>): LrkvWeights[] {
  const { modelDim, heads, kvHeads, headDim, valueDim } = shape;
  let seed = 100;
  const of = (...dims: number[]): Tensor => cast(normal(dims, seed++), 'float32');
  return layers.map((layer, index) => {
    const { query, output, ...rest } = tensorsOf(layer) as never as Record<string, Tensor>;
    const { queryBias, outputBias } = rest;
    const keyRanks = Array.from({ length: kvHeads }, (_, head) => (head + index) % 3);
    const valueRanks = Array.from({ length: kvHeads }, (_, head) => head + 1);
    const [keys, values] = [keyRanks, valueRanks].map((ranks) => ranks.reduce((sum, rank) => sum + rank, 0));
    const { queryNorm, keyNorm } = layer;
    return {
      query,
      output,
      ...(queryBias === undefined ? {} : { queryBias, outputBias }),
      heads,
      kvHeads,
      rope: { frequencies: Array.from(frequencies(headDim, 500)), pairing: 'half', firstPosition: index },
      ...(queryNorm && {
        qkNorm: {
          query: { epsilon: 1e-5, gain: queryNorm.data },
          key: { gain: keyNorm.data, gainOrder: 'before-rotation' },
        },
      }),
      scale: 1 / 3,
      keyBase: of(modelDim, index === 0 ? headDim : 0),
      keyDown: of(modelDim, keys),
      keyUp: of(keys, headDim),
      keyRanks,
      ...(index === 0
        ? { keyGauge: of(kvHeads, headDim, headDim), keyBaseBias: of(headDim) }
        : { keyDownBias: of(keys) }),
      valueBase: cast(of(modelDim, valueDim), 'bfloat16'),
      valueDown: of(modelDim, values),
      valueUp: cast(of(values, valueDim), 'float16'),
      valueRanks,
      ...(index === 0 ? {} : { ropeMode: 'exact' }),
    } satisfies LrkvWeights;
  });
}

describe.each(Object.entries(shapes))('converted: %s', (_, shape) => {
  const layers = layersOf(shape);
  const weights = converted(shape, layers);

  test('over either naming, all else stays as it is, and the layers come back', async () => {
    for (const contents of [huggingFace(layers), ownNames(layers)]) {
      const source = written(contents, config);
      const target = path.join(path.dirname(source), 'converted.safetensors');
      await writeLrkvWeights(target, weights, { source });
      const [before, after] = [readSafetensors(source).tensors, readSafetensors(target).tensors];
      const gone = Object.keys(before).filter((name) => after[name] === undefined);
      expect(gone).toHaveLength(shape.layers * (shape.biases ? 4 : 2));
      expect(gone.every((name) => /\.(k_proj|v_proj)\.|\.(key|value)(Bias)?$/.test(name))).toBe(true);
      for (const [name, { dtype, shape, bytes }] of Object.entries(before)) {
        if (gone.includes(name)) continue;
        expect(after[name]).toMatchObject({ dtype, shape });
        expect(after[name].bytes.equals(bytes)).toBe(true);
      }
      expect(await readLrkvWeights(target)).toEqual(weights);
      expect(await refusalOf(readAttentionWeights(target))).toMatch(/not converted .*received LRKV$/);
      // In place, and once more.
      await writeLrkvWeights(target, weights.toReversed(), { source: target });
      expect(await readLrkvWeights(target)).toMatchObject(weights.toReversed().map(({ keyUp }) => ({ keyUp })));
    }
  });

  test('by themselves', async () => {
    const target = path.join(fs.mkdtempSync(path.join(work, 'in-')), 'alone.safetensors');
    await writeLrkvWeights(target, weights);
    expect(await readLrkvWeights(target)).toEqual(weights);
  });
});

test('what is no conversion is refused', async () => {
  const layers = layersOf(smallShape);
  const weights = converted(smallShape, layers);
  const source = written(huggingFace(layers), config);
  const target = path.join(path.dirname(source), 'out.safetensors');
  expect(await refusalOf(readLrkvWeights(source))).toMatch(/^ERR_ARGUMENT model.layers.0.self_attn.: .*received none$/);
  expect(await refusalOf(writeLrkvWeights(target, weights.slice(1), { source }))).toMatch(/^ERR_SHAPE layers: /);
  expect(await refusalOf(writeLrkvWeights(target, weights, { sauce: source } as never))).toMatch(
    /^ERR_ARGUMENT sauce: /,
  );
  expect(fs.existsSync(target)).toBe(false);
});

test.each<[string, string, RegExp]>([
  ['is no JSON', '{', /metadata in JSON/],
  ['is of another version', '{"version": 2, "layers": {}}', /version 1/],
  ['has no layers', '{"version": 1}', /layers by prefix/],
  ['has layers that are none', '{"version": 1, "layers": {"model.layers.0.self_attn.": 3}}', /numbers of model/],
  ['has no heads', '{"version": 1, "layers": {"model.layers.0.self_attn.": {}}}', /for `heads`/],
])('metadata that %s is refused', async (_, text, message) => {
  const file = path.join(fs.mkdtempSync(path.join(work, 'in-')), 'model.safetensors');
  const name = 'model.layers.0.self_attn.q_proj.weight';
  await writeContents(file, [contentOf(name, normal([2, 2], 1))], { lowrank_attention: text });
  expect(await refusalOf(readLrkvWeights(file))).toMatch(message);
});
