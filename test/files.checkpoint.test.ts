// Models in several files: the same as in one, whichever way the path says so; what does not fit its index is refused.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { cast, fitLrkvSync, readAttentionWeights, readLrkvWeights, type Tensor } from '../lib';
import { contentOf, writeSafetensors as writeTyped } from '../lib/files/safetensors-writer';
import { writeLrkvWeights } from '../lib/model/write';
import { huggingFace, layersOf, smallShape } from './models';
import { refusalOf } from './refusal';
import { readSafetensors, writeSafetensors, writeShards } from './tensor-files';

let work: string;
beforeAll(() => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'checkpoint-'));
});
afterAll(() => fs.rmSync(work, { recursive: true }));

const folder = (): string => fs.mkdtempSync(path.join(work, 'in-'));
const contents = huggingFace(layersOf({ ...smallShape, layers: 3, biases: true }));
const options = { heads: 4, rope: false } as const;

function single(): string {
  const file = path.join(folder(), 'one.safetensors');
  writeSafetensors(file, contents);
  return file;
}

describe('read', () => {
  test.each([1, 2, 3, 7])('%d files, by their index and by their folder', async (count) => {
    const index = writeShards(folder(), contents, count);
    const wanted = await readAttentionWeights(single(), options);
    expect(await readAttentionWeights(index, options)).toEqual(wanted);
    expect(await readAttentionWeights(path.dirname(index), options)).toEqual(wanted);
  });

  test('config.json beside the index, and through links, as caches of models lay them', async () => {
    const [store, view] = [folder(), folder()];
    const index = writeShards(store, contents, 3);
    fs.writeFileSync(
      path.join(view, 'config.json'),
      '{"num_attention_heads": 4, "model_type": "llama", "rope_theta": 9}',
    );
    for (const name of fs.readdirSync(store)) {
      fs.renameSync(path.join(store, name), path.join(store, `blob-${name}`));
      fs.symlinkSync(path.join(store, `blob-${name}`), path.join(view, name));
    }
    const [layer] = await readAttentionWeights(path.join(view, path.basename(index)));
    expect(layer).toMatchObject({ heads: 4, kvHeads: 2, rope: { pairing: 'half' } });
    expect(await readAttentionWeights(view)).toHaveLength(3);
  });

  test('of a folder with both, the one file, as others take it', async () => {
    const at = folder();
    writeShards(at, contents, 2);
    writeSafetensors(path.join(at, 'model.safetensors'), huggingFace(layersOf({ ...smallShape, layers: 1 })));
    expect(await readAttentionWeights(at, options)).toHaveLength(1);
  });
});

describe('refused', () => {
  /** Three files whose index was changed before they are read. */
  async function read(change: (map: Record<string, unknown>, at: string) => object | string | undefined) {
    const index = writeShards(folder(), contents, 3);
    const all = JSON.parse(fs.readFileSync(index, 'utf8'));
    const changed = change(all.weight_map, path.dirname(index)) ?? all;
    fs.writeFileSync(index, typeof changed === 'string' ? changed : JSON.stringify(changed));
    return await refusalOf(readAttentionWeights(index, options));
  }
  const query = 'model.layers.1.self_attn.q_proj.weight';
  const put = (map: Record<string, unknown>, name: string, file: unknown): undefined => {
    map[name] = file;
  };

  test('an index that is none', async () => {
    expect(await read(() => '{')).toMatch(/^ERR_ARGUMENT model.safetensors.index.json: expected JSON/);
    for (const wrong of [[], {}, { weight_map: [] }, { weight_map: {} }, { weight_map: 3 }]) {
      expect(await read(() => wrong)).toMatch(/^ERR_ARGUMENT model.safetensors.index.json: .*'weight_map'/);
    }
    const config = path.join(folder(), 'config.json');
    fs.writeFileSync(config, '{}');
    expect(await refusalOf(readAttentionWeights(config))).toMatch(/^ERR_ARGUMENT config.json: /);
    expect(await refusalOf(readAttentionWeights(path.dirname(config)))).toMatch(
      /model.safetensors or .*index.json in the folder .*received config.json$/,
    );
  });

  test('files that are not in the folder', async () => {
    const outside = path.join(work, 'outside.safetensors');
    writeSafetensors(outside, contents);
    const names = [
      '../outside.safetensors',
      outside,
      'sub/x.safetensors',
      '..\\outside.safetensors',
      'C:x.safetensors',
    ];
    for (const name of [...names, '', '.', '..', '../.safetensors', 'x.bin', 5, null, {}, 'a\0.safetensors']) {
      const found = await read((map) => put(map, query, name));
      expect(found).toMatch(
        /^ERR_ARGUMENT model.layers.1.self_attn.q_proj.weight: .*name of a .safetensors file beside/,
      );
    }
  });

  test('files that are not there', async () => {
    const message = await read((_, at) => void fs.rmSync(path.join(at, 'model-00002-of-00003.safetensors')));
    expect(message).toMatch(
      /^ERR_ARGUMENT model.safetensors.index.json: .*model-00002-of-00003.safetensors.*received none$/,
    );
    expect(await read((map) => put(map, 'more', 'more.safetensors'))).toMatch(/more.safetensors among them/);
  });

  test('an index that does not say what is in the files', async () => {
    const other = (map: Record<string, unknown>) => Object.values(map).find((name) => name !== map[query]);
    expect(await read((map) => put(map, query, other(map)))).toMatch(/q_proj.weight: .*a tensor in model-0000\d-of/);
    expect(await read((map) => void delete map[query])).toMatch(/q_proj.weight: .*a file for it in .*received none$/);
    expect(await read((map) => put(map, 'more', map[query]))).toMatch(/^ERR_ARGUMENT more: .*received none$/);
    const twice = (_: unknown, at: string) => {
      writeSafetensors(path.join(at, 'model-00003-of-00003.safetensors'), contents);
    };
    expect(await read((map, at) => void twice(map, at))).toMatch(/one file that holds it.*received two$/);
  });

  test('a file that is cut off', async () => {
    const cut = (at: string) => fs.truncateSync(path.join(at, 'model-00002-of-00003.safetensors'), 700);
    expect(await read((_, at) => void cut(at))).toMatch(/^ERR_ARGUMENT model-00002-of-00003.safetensors: /);
  });

  test('projections of several element types, and gains of another are none of them', async () => {
    const layers = layersOf({ ...smallShape, gains: true });
    const write = async (at: string, types: (name: string) => 'float32' | 'bfloat16') => {
      const all = Object.entries(huggingFace(layers)).map(([name, { dims, value }]) => {
        const count = dims.reduce((product, extent) => product * extent, 1);
        const whole: Tensor = {
          data: Float32Array.from({ length: count }, (_, i) => value(i)),
          dims: [...dims],
          type: 'float32',
        };
        return contentOf(name, cast(whole, types(name)));
      });
      const half = Math.floor(all.length / 2);
      await writeTyped(path.join(at, 'a.safetensors'), all.slice(0, half));
      await writeTyped(path.join(at, 'b.safetensors'), all.slice(half));
      const map = all.map(({ name }, i) => [name, i < half ? 'a.safetensors' : 'b.safetensors']);
      const index = path.join(at, 'model.safetensors.index.json');
      fs.writeFileSync(index, JSON.stringify({ weight_map: Object.fromEntries(map) }));
      return readAttentionWeights(index, { ...options, normEpsilon: 0 });
    };
    const [{ query: matrix }] = await write(folder(), (name) => (name.includes('norm') ? 'float32' : 'bfloat16'));
    expect(matrix.type).toBe('bfloat16');
    const mixed = write(folder(), (name) => (name.includes('layers.1') ? 'float32' : 'bfloat16'));
    expect(await refusalOf(mixed)).toMatch(
      /^ERR_TYPE model.layers.1.self_attn.q_proj.weight: .*BF16, as of .*received F32$/,
    );
  });
});

describe('written', () => {
  const fitted = async () => fitLrkvSync(await readAttentionWeights(single(), options), { rank: 2 }).layers;

  test('one file of several, with all that is not converted as it was', async () => {
    const index = writeShards(folder(), contents, 4);
    const layers = await fitted();
    const target = path.join(path.dirname(index), 'lrkv.safetensors');
    await writeLrkvWeights(target, layers, { source: path.dirname(index) });
    expect(await readLrkvWeights(target)).toEqual(layers);
    const after = readSafetensors(target).tensors;
    const wanted = path.join(folder(), 'wanted.safetensors');
    await writeLrkvWeights(wanted, layers, { source: single() });
    const before = readSafetensors(wanted).tensors;
    expect(Object.keys(after).sort()).toEqual(Object.keys(before).sort());
    for (const [name, { dtype, shape, bytes }] of Object.entries(before)) {
      expect(after[name]).toMatchObject({ dtype, shape });
      expect(after[name].bytes.equals(bytes)).toBe(true);
    }
  });

  test('over no part of its source', async () => {
    const index = writeShards(folder(), contents, 2);
    const at = path.dirname(index);
    const before = fs.readdirSync(at).map((name) => fs.readFileSync(path.join(at, name)));
    fs.symlinkSync(path.join(at, 'model-00001-of-00002.safetensors'), path.join(at, 'link.safetensors'));
    for (const name of ['model-00001-of-00002.safetensors', 'model.safetensors.index.json', 'link.safetensors']) {
      const run = writeLrkvWeights(path.join(at, name), await fitted(), { source: at });
      expect(await refusalOf(run)).toMatch(/^ERR_ARGUMENT path: expected a file that is no part of the source/);
    }
    fs.rmSync(path.join(at, 'link.safetensors'));
    expect(fs.readdirSync(at).map((name) => fs.readFileSync(path.join(at, name)))).toEqual(before);
  });
});
