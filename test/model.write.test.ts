// Converted layers over a model's files: which do not fit there, and in which element type they are written.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import {
  type AttentionWeights,
  cast,
  type DataType,
  fitLrkvSync,
  type LrkvWeights,
  readAttentionWeights,
  readLrkvWeights,
  type Tensor,
  writeLrkvWeights,
} from '../lib';
import { filled, normal } from './data';
import { expectSameBits } from './full-run';
import { huggingFace, layersOf, type ModelShape, ownNames, smallShape } from './models';
import { refusalOf } from './refusal';
import { readSafetensors, writeSafetensors } from './tensor-files';

let work: string;
beforeAll(() => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'write-'));
});
afterAll(() => fs.rmSync(work, { recursive: true }));

const at = (file: string): string => path.join(work, file);
const target = () => at('out.safetensors');
const shape: ModelShape = { ...smallShape, modelDim: 12, headDim: 8, valueDim: 6, biases: true, gains: true };

/** A model in a file, converted. */
async function modelOf(own: ModelShape, naming: typeof huggingFace = huggingFace) {
  const source = path.join(fs.mkdtempSync(path.join(work, 'in-')), 'model.safetensors');
  writeSafetensors(source, naming(layersOf(own)));
  const weights = await readAttentionWeights(source, { heads: own.heads, rope: false, normEpsilon: 1e-5 });
  return { source, weights, layers: fitLrkvSync(weights, { rank: 3, iterations: 2 }).layers };
}

const others: readonly [string, Partial<ModelShape>, RegExp][] = [
  [
    'another modelDim',
    { modelDim: 14 },
    /^ERR_SHAPE layers\[0\]: .*query is \[12, 32\].*q_proj.* received one of \[14, 32\]$/,
  ],
  ['more heads', { heads: 8 }, /^ERR_SHAPE layers\[0\]: .*query is \[12, 32\].* received one of \[12, 64\]$/],
  ['larger heads', { headDim: 10 }, /^ERR_SHAPE layers\[0\]: .*query is .* received one of \[12, 40\]$/],
  [
    'more key/value heads',
    { kvHeads: 4 },
    /^ERR_SHAPE layers\[0\]: .*key is \[12, 16\].*k_proj.* received one of \[12, 32\]$/,
  ],
  [
    'larger values',
    { valueDim: 8 },
    /^ERR_SHAPE layers\[0\]: .*value is \[12, 12\].*v_proj.* received one of \[12, 16\]$/,
  ],
  [
    'half as many heads, twice as large',
    { heads: 2, kvHeads: 1, headDim: 16, valueDim: 12 },
    /^ERR_SHAPE layers\[0\]: .*queryNorm is \[8\].*q_norm.* received one of \[16\]$/,
  ],
  [
    'no gains',
    { gains: false },
    /^ERR_ARGUMENT layers\[0\]\.qkNorm\.query: .*a gain, as the source has .*q_norm\.weight/,
  ],
];

describe('layers of a model with', () => {
  test.each(others)('%s are refused', async (_, other, message) => {
    const [{ source, layers: own }, { layers }] = [await modelOf(shape), await modelOf({ ...shape, ...other })];
    expect(await refusalOf(writeLrkvWeights(target(), layers, { source }))).toMatch(message);
    // The place is told.
    const mixed = [own[0], layers[1]];
    expect(await refusalOf(writeLrkvWeights(target(), mixed, { source }))).toMatch(/layers\[1\]/);
    expect(fs.existsSync(target())).toBe(false);
    await writeLrkvWeights(at('own.safetensors'), own, { source });
  });

  test('gains that the source has not', async () => {
    const { source } = await modelOf({ ...shape, gains: false }, ownNames);
    const { layers } = await modelOf(shape);
    const message = /^ERR_ARGUMENT layers\[0\]\.qkNorm\.query: .*no gain, as the source has none/;
    expect(await refusalOf(writeLrkvWeights(target(), layers, { source }))).toMatch(message);
    expect(fs.existsSync(target())).toBe(false);
  });
});

test('weights that no layer can be made of are refused, with a source and without', async () => {
  const { source, layers } = await modelOf(shape);
  const [first, second] = layers;
  const wrong: readonly [unknown, RegExp][] = [
    [undefined, /^ERR_ARGUMENT layers: .*received undefined$/],
    [[], /^ERR_ARGUMENT layers: .*at least one layer/],
    [first, /^ERR_ARGUMENT layers: .*received an object$/],
    [[first, {}], /^ERR_ARGUMENT layers\[1\]\.heads: /],
    [[first, { ...second, keyBase: normal([11, 8], 1) }], /^ERR_SHAPE layers\[1\]\.keyBase: .*12 rows/],
    [[first, { ...second, keyRanks: [1, 2] }], /^ERR_SHAPE layers\[1\]\.keyRanks: .*sum/],
    [[first, { ...second, valueUp: normal([6, 5], 1) }], /^ERR_SHAPE layers\[1\]/],
    [[first, { ...second, ropeMode: 'exact' }], /^ERR_ARGUMENT layers\[1\]\.ropeMode: /],
  ];
  for (const [given, message] of wrong) {
    for (const options of [{ source }, {}])
      expect(await refusalOf(writeLrkvWeights(target(), given as LrkvWeights[], options))).toMatch(message);
  }
  expect(fs.existsSync(target())).toBe(false);
});

describe('the element type of new parts', () => {
  const dtypes = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' } as const;
  const isNew = (name: string): boolean => /^(key|value)(Base|Down|Up|Gauge)/.test(name);
  const partsOf = (layer: LrkvWeights): [string, Tensor][] => Object.entries(layer).filter(([name]) => isNew(name));

  test.each(['float32', 'float16', 'bfloat16'] as const)('%s: rounded once, all else as it is', async (type) => {
    const { source, layers } = await modelOf(shape);
    for (const options of [{ source }, {}]) {
      const [plain, rounded] = [at('plain.safetensors'), at(`${type}.safetensors`)];
      await writeLrkvWeights(plain, layers, options);
      await writeLrkvWeights(rounded, layers, { ...options, type });
      const found = await readLrkvWeights(rounded);
      for (const [index, layer] of layers.entries()) {
        expect(partsOf(found[index]).map(([name]) => name)).toEqual(partsOf(layer).map(([name]) => name));
        for (const [name, part] of partsOf(layer))
          expectSameBits(found[index][name as 'keyUp'] as Tensor, cast(part, type));
        expectSameBits(found[index].query, layer.query);
      }
      const [before, after] = [plain, rounded].map((file) => readSafetensors(file));
      expect(after.metadata).toEqual(before.metadata);
      for (const [name, { bytes, dtype }] of Object.entries(before.tensors)) {
        if (isNew(name.split('.').at(-1) as string)) expect(after.tensors[name].dtype).toBe(dtypes[type]);
        else expect([after.tensors[name].dtype, after.tensors[name].bytes.equals(bytes)]).toEqual([dtype, true]);
      }
    }
  });

  test('what is none, and numbers that it has not', async () => {
    const { source, layers } = await modelOf(shape);
    const write = (type: unknown, given = layers) =>
      writeLrkvWeights(target(), given, { source, type: type as DataType });
    expect(await refusalOf(write('int8'))).toMatch(/^ERR_TYPE type: /);
    expect(await refusalOf(write(null))).toMatch(/^ERR_TYPE type: /);
    const { valueUp } = layers[1];
    const large = filled(valueUp.dims, 'float32', (i) => (i === 3 ? 65520 : Number(valueUp.data[i])));
    const beyond = [layers[0], { ...layers[1], valueUp: large }];
    expect(await refusalOf(write('float16', beyond))).toMatch(/^ERR_ARGUMENT type: .*not too large.*"float16"$/);
    expect(fs.existsSync(target())).toBe(false);
    await write('bfloat16', beyond);
  });
});

test('tensors of a fit keep the type they were made in', async () => {
  const { source, weights } = await modelOf(shape);
  const halved = weights.map((layer): AttentionWeights => ({ ...layer, key: cast(layer.key, 'bfloat16') }));
  const { layers } = fitLrkvSync(halved, { rank: 3, iterations: 2, type: 'bfloat16' });
  await writeLrkvWeights(at('fit.safetensors'), layers, { source });
  expect(await readLrkvWeights(at('fit.safetensors'))).toMatchObject(
    layers.map(({ keyUp, valueBase }) => ({ keyUp, valueBase })),
  );
});
