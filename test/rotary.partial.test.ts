// Models that rotate a part of each head: with the elements in another order, as docs/converting.md says, they are the rope
// of whole heads whose other pairs stand still.
import {
  type AttentionWeights,
  attentionLayer,
  fitLrkvSync,
  lrkvLayer,
  type Pairing,
  type Rope,
  ropeFrequencies,
  type Tensor,
} from '../lib';
import { normal } from './data';
import { toFloat64 } from './half';
import { layerWeights } from './layer-data';
import { faultOf } from './refusal';

const [headDim, rotaryDim, heads, kvHeads, modelDim] = [16, 6, 4, 2, 24];
const turning = rotaryDim / 2;
const [queryBias, keyBias] = [normal([heads * headDim], 8), normal([kvHeads * headDim], 9)];
const weights: AttentionWeights = {
  ...layerWeights({ modelDim, heads, kvHeads, headDim, valueDim: headDim }),
  ...{ queryBias, keyBias },
};
const hidden = normal([1, 9, modelDim], 5);

/** From the definition, in float64: pairs of the first `rotaryDim` elements of queries and keys are turned. */
function partially(pairing: Pairing): Float64Array {
  const x = toFloat64(hidden);
  const n = hidden.dims[1];
  const project = (matrix: Tensor, bias: Tensor | undefined, rows: Float64Array, inputs: number): Float64Array => {
    const columns = matrix.dims[1];
    const [w, b] = [toFloat64(matrix), bias === undefined ? undefined : toFloat64(bias)];
    return Float64Array.from({ length: n * columns }, (_, at) => {
      const [row, column] = [Math.floor(at / columns), at % columns];
      let sum = b?.[column] ?? 0;
      for (let i = 0; i < inputs; i++) sum += rows[row * inputs + i] * w[i * columns + column];
      return sum;
    });
  };
  const turned = (matrix: Tensor, bias: Tensor | undefined, count: number): Float64Array => {
    const rows = project(matrix, bias, x, modelDim);
    for (let at = 0; at < n * count; at++) {
      for (let i = 0; i < turning; i++) {
        const angle = Math.floor(at / count) * 10000 ** ((-2 * i) / rotaryDim);
        const [a, b] = pairing === 'half' ? [i, i + turning] : [2 * i, 2 * i + 1];
        const [p, q] = [rows[at * headDim + a], rows[at * headDim + b]];
        rows[at * headDim + a] = p * Math.cos(angle) - q * Math.sin(angle);
        rows[at * headDim + b] = p * Math.sin(angle) + q * Math.cos(angle);
      }
    }
    return rows;
  };
  const [q, k] = [turned(weights.query, weights.queryBias, heads), turned(weights.key, weights.keyBias, kvHeads)];
  const v = project(weights.value, weights.valueBias, x, modelDim);
  const mixed = new Float64Array(n * heads * headDim);
  for (let i = 0; i < n; i++) {
    for (let head = 0; head < heads; head++) {
      const kept = Math.floor((head * kvHeads) / heads);
      const scores = Array.from({ length: i + 1 }, (_, j) => {
        let sum = 0;
        for (let c = 0; c < headDim; c++)
          sum += q[(i * heads + head) * headDim + c] * k[(j * kvHeads + kept) * headDim + c];
        return Math.exp(sum / Math.sqrt(headDim));
      });
      const all = scores.reduce((sum, score) => sum + score, 0);
      for (const [j, score] of scores.entries()) {
        for (let c = 0; c < headDim; c++)
          mixed[(i * heads + head) * headDim + c] += (score / all) * v[(j * kvHeads + kept) * headDim + c];
      }
    }
  }
  return project(weights.output, weights.outputBias, mixed, heads * headDim);
}

/** Where element c of a head comes from, so that pairs (i, i + rotaryDim / 2) are half a head apart. */
const order = Array.from({ length: headDim }, (_, c) => {
  const [half, place] = [Math.floor(c / (headDim / 2)), c % (headDim / 2)];
  return place < turning ? half * turning + place : rotaryDim + half * (headDim / 2 - turning) + place - turning;
});

/** Columns of all heads in that order. */
function reordered(of: Tensor): Tensor {
  const columns = of.dims.at(-1) as number;
  const data = (of.data as Float32Array).map((_, at) => {
    const column = at % columns;
    return Number(of.data[at - (column % headDim) + order[column % headDim]]);
  });
  return { data, dims: of.dims, type: 'float32' };
}

const rope: Rope = {
  frequencies: [...ropeFrequencies(rotaryDim), ...new Array<number>(headDim / 2 - turning).fill(0)],
};
const ofHalves: AttentionWeights = {
  ...{ ...weights, rope, query: reordered(weights.query), key: reordered(weights.key) },
  ...{ queryBias: reordered(queryBias), keyBias: reordered(keyBias) },
};
const ofNeighbours: AttentionWeights = { ...weights, rope: { ...rope, pairing: 'interleaved' } };
const cases = [
  ['half', ofHalves],
  ['interleaved', ofNeighbours],
] as const;

test('every element of a head has a place', () => {
  expect(order.toSorted((a, b) => a - b)).toEqual(Array.from({ length: headDim }, (_, c) => c));
  expect(order.slice(0, turning)).toEqual([0, 1, 2]);
  expect(order.slice(headDim / 2, headDim / 2 + turning)).toEqual([3, 4, 5]);
});

test.each(cases)('%s: the layer, and what it is converted to', (pairing, own) => {
  const wanted = partially(pairing);
  const size = Math.max(...wanted.map(Math.abs));
  const off = (found: Tensor): number =>
    Math.max(...toFloat64(found).map((value, i) => Math.abs(value - wanted[i]))) / size;
  expect(off(attentionLayer(own).forwardSync(hidden))).toBeLessThan(1e-5);
  for (const ropeMode of ['exact', 'intertwined'] as const) {
    const { layers } = fitLrkvSync(own, { rank: headDim, ropeMode, iterations: 2 });
    expect(off(lrkvLayer(layers[0]).forwardSync(hidden))).toBeLessThan(1e-4);
  }
  // Nothing of this is so with heads that turn as they are.
  if (pairing === 'half') expect(off(attentionLayer({ ...weights, rope }).forwardSync(hidden))).toBeGreaterThan(0.01);
});

test('frequencies of a part alone are refused', async () => {
  const part = () => attentionLayer({ ...weights, rope: { frequencies: ropeFrequencies(rotaryDim) } });
  const wanted = { code: 'ERR_SHAPE', argument: 'weights.rope.frequencies' } as const;
  expect(await faultOf(part, false, wanted)).toBeUndefined();
});
