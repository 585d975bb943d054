/** Fits whose weights are rounded to another element type: by how much, and that reports say so. */
import {
  type AttentionWeights,
  cast,
  type DataType,
  type FitOptions,
  fitLrkvSync,
  type LrkvWeights,
  lrkvLayer,
  ropeFrequencies,
  type Tensor,
} from '../lib';
import { filled, normal } from './data';
import { fittedHeadsOf, headsOf, type LayerShape, layerOf, rowsOf } from './fit-data';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { combine, energyOf, type Rows, times } from './reference-fit';
import { faultOf } from './refusal';

const shape: LayerShape = {
  modelDim: 24,
  heads: 4,
  kvHeads: 2,
  width: 8,
  shared: 0.6,
  tokens: 70,
  biases: true,
  seed: 900,
};
const { weights, hidden } = layerOf(shape);
const rotated: AttentionWeights = { ...weights, rope: { frequencies: ropeFrequencies(8) } };

/** Largest relative error of a rounding: half a unit in the last place of 11 and 8 bits. */
const halves = { float16: 2 ** -11, bfloat16: 2 ** -8 } as const;
const types = Object.entries(halves) as [keyof typeof halves, number][];

const cases: Readonly<Record<string, readonly [AttentionWeights, FitOptions]>> = {
  'free gauges': [weights, { rank: 3, gauge: 'free' }],
  'the base as it is': [weights, { rank: 3, gauge: 'identity' }],
  'no base': [weights, { rank: 3, gauge: 'none' }],
  'by a budget': [weights, { budget: 0.75 }],
  'rotated latents': [rotated, { rank: 4, ropeMode: 'intertwined' }],
};

const fitOf = ([of, options]: readonly [AttentionWeights, FitOptions], type?: DataType) => {
  const { layers, report } = fitLrkvSync(of, { ...options, calibration: hidden, ...(type && { type }) });
  return { layer: layers[0], report };
};

const tensorsOf = (layer: LrkvWeights): [string, Tensor][] =>
  Object.entries(layer).filter(([name, part]) => /^(key|value)/.test(name) && !Array.isArray(part));

const absolute = (layer: LrkvWeights): LrkvWeights => {
  const parts = tensorsOf(layer).map(([name, part]) => {
    const values = toFloat64(part).map(Math.abs);
    return [name, filled(part.dims, 'float32', (i) => values[i])] as const;
  });
  return { ...layer, ...Object.fromEntries(parts) };
};

describe.each(Object.entries(cases))('%s', (_name, given) => {
  const plain = fitOf(given);

  test('float32 unless said otherwise', () => {
    expect(plain.report.weightType).toBe('float32');
    for (const [, part] of tensorsOf(plain.layer)) expect(part.type).toBe('float32');
  });

  test.each(types)('%s: each part is rounded by itself, once', (type, unit) => {
    const { layer, report } = fitOf(given, type);
    expect(report.weightType).toBe(type);
    const parts = tensorsOf(layer);
    expect(parts.map(([name]) => name)).toEqual(tensorsOf(plain.layer).map(([name]) => name));
    for (const [name, part] of parts) expectSameBits(part, cast(plain.layer[name as 'keyUp'], type));
    // Of a product of two rounded factors: |ab − âb̂| ≤ (2u + u²)·|ab|, and below float16's normal numbers 2^−25 each.
    for (const side of ['key', 'value'] as const) {
      const [found, wanted] = [fittedHeadsOf(layer, side), fittedHeadsOf(plain.layer, side)];
      const sizes = fittedHeadsOf(absolute(plain.layer), side);
      let largest = 0;
      for (const [h, head] of found.entries()) {
        for (const [i, row] of head.entries()) {
          for (const [j, value] of row.entries()) {
            const bound = (2 * unit + unit ** 2) * sizes[h][i][j] + 2 ** -20;
            const share = Math.abs(value - wanted[h][i][j]) / bound;
            largest = Math.max(largest, share);
          }
        }
      }
      expect(largest).toBeLessThanOrEqual(1);
      // No bound that anything would keep.
      expect(largest).toBeGreaterThan(0.1);
    }
  });

  test.each(types)('%s: the measured error of values is that of outputs through the rounded weights', (type) => {
    const { layer, report } = fitOf(given, type);
    const states = rowsOf(hidden).map((row) => [...row, 1]);
    const outputs = (heads: readonly Rows[]): Rows[] =>
      Array.from({ length: shape.heads }, (_, head) => {
        const output = rowsOf(weights.output).slice(head * shape.width, (head + 1) * shape.width);
        return times(times(states, heads[Math.floor(head / 2)]), output);
      });
    const [truth, found] = [outputs(headsOf(weights, 'value')), outputs(fittedHeadsOf(layer, 'value'))];
    const energy = (of: readonly Rows[]) => of.reduce((sum, head) => sum + energyOf(head), 0);
    const error = Math.sqrt(energy(truth.map((head, h) => combine(head, found[h], -1))) / energy(truth));
    expect(Math.abs(report.layers[0].value.measuredError - error)).toBeLessThan(1e-7);
  });

  test.each(types)('%s: a layer is made of them', (type) => {
    const x = normal([1, 5, shape.modelDim], 3);
    const out = toFloat64(lrkvLayer(fitOf(given, type).layer).forwardSync(x));
    const wanted = toFloat64(lrkvLayer(plain.layer).forwardSync(x));
    const size = Math.max(...wanted.map(Math.abs));
    for (const [i, value] of wanted.entries()) expect(Math.abs(out[i] - value)).toBeLessThan(20 * halves[type] * size);
  });
});

test('what float16 has no numbers for is refused, and what is no type', async () => {
  const large = {
    ...weights,
    value: filled(weights.value.dims, 'float32', (i) => 1e6 * Number(weights.value.data[i])),
  };
  const call = (type: unknown) => () => fitLrkvSync(large, { rank: 2, type: type as DataType });
  expect(call('bfloat16')).not.toThrow();
  expect(await faultOf(call('float16'), false, { code: 'ERR_ARGUMENT', argument: 'type' })).toBeUndefined();
  expect(await faultOf(call('int8'), false, { code: 'ERR_TYPE', argument: 'type' })).toBeUndefined();
});
