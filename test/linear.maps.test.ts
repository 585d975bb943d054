import {
  attentionSync,
  cosformer,
  elu,
  type FeatureMap,
  favor,
  favorMatrix,
  hedgehog,
  identity,
  LinearState,
  linearAttentionSync,
  relu,
  taylor,
} from '../lib';
import type { Tensor } from '../lib/tensor';
import { filled, type Inputs, normal, normalInputs, types } from './data';
import { expectLinear } from './expectation';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { checkLinear, mapOf, maps, optionsOf, plainMeaning } from './linear-run';
import { isaRows } from './rows';
import { compare } from './tolerance';

const rows = isaRows('linear');

const scaled = (tensor: Tensor, factor: number): Tensor =>
  filled(tensor.dims, tensor.type, (i) => factor * (tensor.data[i] as number));

const withLogits = ({ q, k, v }: Inputs, factor: number): Inputs => ({ q: scaled(q, factor), k: scaled(k, factor), v });

/** φ(qᵢ)·φ(kⱼ), [1, 1, queries, keys]: with the identity as values, nothing else is left. */
function kernelOf(featureMap: FeatureMap, q: Tensor, k: Tensor, isa: string, scale?: number): Tensor {
  const keys = k.dims[2];
  const one = filled([1, 1, keys, keys], 'float32', (i) => Number(Math.floor(i / keys) === i % keys));
  const given = scale === undefined ? {} : { scale };
  return linearAttentionSync(q, k, one, { featureMap, normalize: false, isa, ...given });
}

/** The same by a formula of one query and one key. */
function kernelBy(
  q: Tensor,
  k: Tensor,
  weigh: (query: Float64Array, key: Float64Array, i: number, j: number) => number,
): Float64Array {
  const [queries, keys, dim] = [q.dims[2], k.dims[2], q.dims[3]];
  const [qs, ks] = [toFloat64(q), toFloat64(k)];
  const row = (all: Float64Array, i: number) => all.subarray(i * dim, (i + 1) * dim);
  return Float64Array.from({ length: queries * keys }, (_, at) => {
    const [i, j] = [Math.floor(at / keys), at % keys];
    return weigh(row(qs, i), row(ks, j), i, j);
  });
}

const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
};

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

describe('what a map makes of a query and a key', () => {
  const dim = 7;
  const { q, k } = normalInputs({ queries: 33, keys: 29, headDim: dim }, 1);
  const relu0 = (x: ArrayLike<number>) => Array.from(x, (value) => Math.max(value, 0));
  const weights = normal([5, dim], 3);
  const project = (x: ArrayLike<number>, sign = 1) =>
    Array.from({ length: 5 }, (_, row) => sign * dot(toFloat64(weights).subarray(row * dim, (row + 1) * dim), x));
  const softmax = (logits: readonly number[]) => {
    const sum = logits.reduce((total, logit) => total + Math.exp(logit), 0);
    return logits.map((logit) => Math.exp(logit) / sum);
  };
  const separate = (x: ArrayLike<number>) => [...softmax(project(x)), ...softmax(project(x, -1))];
  const joint = (x: ArrayLike<number>) => softmax([...project(x), ...project(x, -1)]);
  const elu1 = (x: ArrayLike<number>) => Array.from(x, (value) => (value > 0 ? value + 1 : Math.exp(value)));

  const formulas: Readonly<Record<string, readonly [FeatureMap, Parameters<typeof kernelBy>[2], scale?: number]>> = {
    elu: [elu(), (a, b) => dot(elu1(a), elu1(b))],
    relu: [relu(), (a, b) => dot(relu0(a), relu0(b))],
    'relu, weights and offset': [
      relu({ weights, offset: 0.5 }),
      (a, b) =>
        dot(
          relu0(project(a)).map((value) => value + 0.5),
          relu0(project(b)).map((value) => value + 0.5),
        ),
    ],
    identity: [identity(), dot],
    cosformer: [
      cosformer({ maxLength: 40 }),
      (a, b, i, j) => dot(relu0(a), relu0(b)) * Math.cos(((Math.PI / 2) * (i - j)) / 40),
    ],
    hedgehog: [hedgehog({ weights }), (a, b) => dot(separate(a), separate(b))],
    'hedgehog, joint': [hedgehog({ weights, joint: true }), (a, b) => dot(joint(a), joint(b))],
    taylor: [
      taylor(),
      (a, b) => {
        const s = dot(a, b) / Math.sqrt(dim);
        return 1 + s + (s * s) / 2;
      },
    ],
    'taylor, scale': [taylor(), (a, b) => 1 + 0.7 * dot(a, b) + (0.7 * dot(a, b)) ** 2 / 2, 0.7],
  };

  describe.each(Object.entries(formulas))('%s', (_, [map, weigh, scale]) => {
    test.each(rows)('%s', (isa) => {
      // Without a scale of its own the output would be scaled.
      const found = kernelOf(map, q, k, isa, scale ?? (map.kind === 'taylor' ? undefined : 1));
      const values = kernelBy(q, k, weigh);
      // Products of features cancel in some of these sums: rounding is relative to their size.
      const sizes = kernelBy(q, k, (a, b) => Math.max(2, Math.sqrt(dot(a, a) * dot(b, b)) ** 2));
      compare(found, { values, dims: [1, 1, 33, 29], scale: sizes, terms: 4 * dim });
    });
  });

  test('the two forms of hedgehog are different functions', () => {
    const [a, b] = [
      kernelBy(q, k, (x, y) => dot(separate(x), separate(y))),
      kernelBy(q, k, (x, y) => dot(joint(x), joint(y))),
    ];
    const isa = rows[0] as string;
    const wrong = () =>
      compare(kernelOf(hedgehog({ weights }), q, k, isa, 1), { values: b, dims: [1, 1, 33, 29], terms: 28 });
    expect(a).not.toEqual(b);
    expect(wrong).toThrow(/out of tolerance/);
  });
});

describe('favor', () => {
  const dim = 16;

  /** Relative error (2-norm over all outputs) against exact attention. */
  function errorOf(features: number, seed: number, inputs: Inputs): number {
    const exact = toFloat64(attentionSync(inputs.q, inputs.k, inputs.v));
    const featureMap = favor({ features, seed });
    const found = toFloat64(linearAttentionSync(inputs.q, inputs.k, inputs.v, { featureMap }));
    const difference = exact.map((value, i) => found[i] - value);
    return Math.sqrt(dot(difference, difference) / dot(exact, exact));
  }

  test('its error against softmax falls as 1/√features where logits are small', () => {
    // Logits of standard deviation 0.25.
    const inputs = withLogits(normalInputs({ heads: 2, queries: 100, keys: 100, headDim: dim }, 2), 0.5);
    const sizes = [128, 512, 2048, 8192];
    const means = sizes.map((features) => {
      const seeds = Array.from({ length: 12 }, (_, seed) => seed);
      return Math.exp(seeds.reduce((sum, seed) => sum + Math.log(errorOf(features, seed, inputs)), 0) / seeds.length);
    });
    // Four times the features: half the error, up to the scatter of so many seeds, and over the whole range closer.
    for (let i = 1; i < means.length; i++) {
      expect(means[i - 1] / means[i]).toBeGreaterThan(1.5);
      expect(means[i - 1] / means[i]).toBeLessThan(2.6);
    }
    const factor = (means[0] / (means.at(-1) as number)) ** (1 / (means.length - 1));
    expect(factor).toBeGreaterThan(1.8);
    expect(factor).toBeLessThan(2.2);
    expect(means.at(-1)).toBeLessThan(0.1);
  });

  test('the matrix has orthogonal rows as long as normal vectors', () => {
    const [features, headDim] = [2000, 24];
    const matrix = favorMatrix({ headDim, features, seed: 9 });
    expect(matrix).toMatchObject({ dims: [features, headDim], type: 'float32' });
    const row = (i: number) => Float64Array.from(matrix.data.subarray(i * headDim, (i + 1) * headDim));
    let largest = 0;
    for (let i = 0; i < features; i++) {
      for (let j = 24 * Math.floor(i / 24); j < i; j++) {
        largest = Math.max(
          largest,
          Math.abs(dot(row(i), row(j))) / Math.sqrt(dot(row(i), row(i)) * dot(row(j), row(j))),
        );
      }
    }
    expect(largest).toBeLessThan(1e-6);
    // |w|² is χ² with headDim degrees of freedom: mean headDim, variance 2·headDim. Five standard errors.
    const squares = Array.from({ length: features }, (_, i) => dot(row(i), row(i)));
    const mean = squares.reduce((a, b) => a + b, 0) / features;
    const variance = squares.reduce((sum, square) => sum + (square - mean) ** 2, 0) / features;
    expect(Math.abs(mean - headDim)).toBeLessThan(5 * Math.sqrt((2 * headDim) / features));
    expect(Math.abs(variance / (2 * headDim) - 1)).toBeLessThan(0.25);
    // Every coordinate alike: a rotation without a preferred direction or sign.
    for (let c = 0; c < headDim; c++) {
      const column = Array.from({ length: features }, (_, i) => row(i)[c]);
      expect(Math.abs(column.reduce((a, b) => a + b, 0) / features)).toBeLessThan(5 / Math.sqrt(features));
      expect(Math.abs(dot(column, column) / features - 1)).toBeLessThan(0.25);
    }
  });

  test('the matrix depends on the seed alone', () => {
    const matrix = favorMatrix({ headDim: 12, features: 30, seed: 7 });
    expectSameBits(favorMatrix({ headDim: 12, features: 30, seed: 7 }), matrix);
    expect(favorMatrix({ headDim: 12, features: 30, seed: 8 }).data).not.toEqual(matrix.data);
    expectSameBits(favorMatrix({ headDim: 12, features: 30 }), favorMatrix({ headDim: 12, features: 30, seed: 0 }));
    // headDim · ln headDim of them unless said otherwise.
    expect(favorMatrix({ headDim: 64 }).dims).toEqual([266, 64]);
    expect(favorMatrix({ headDim: 1 }).dims).toEqual([1, 1]);
  });

  test('a seed and the matrix made from it are the same', () => {
    const { q, k, v } = normalInputs({ heads: 2, queries: 20, keys: 20, headDim: dim }, 3);
    for (const [made, saved] of [
      [favor({ seed: 5, features: 40 }), favorMatrix({ headDim: dim, features: 40, seed: 5 })],
      [favor({ seed: 5 }), favorMatrix({ headDim: dim, seed: 5 })],
      [favor(), favorMatrix({ headDim: dim })],
    ] as const) {
      const wanted = linearAttentionSync(q, k, v, { featureMap: favor({ matrix: saved }) });
      for (const _ of [0, 1]) expectSameBits(linearAttentionSync(q, k, v, { featureMap: made }), wanted);
      using state = new LinearState({ heads: 2, headDim: dim, featureMap: made });
      expect(state.features).toBe(saved.dims[0]);
    }
  });

  test.each(rows)('%s: nothing is added to features, whatever the logits', (isa) => {
    const plain = normalInputs({ heads: 2, queries: 50, keys: 50, headDim: 8 }, 4);
    // Logits of standard deviation 4, where 1e-4 on every feature would change the output by half.
    const inputs = withLogits(plain, 2);
    for (const causal of [false, true])
      checkLinear(inputs, { ...plainMeaning('favor', { headDim: 8 }), causal }, { isa });
  });

  test.each(types)('large logits give finite outputs, %s', (type) => {
    for (const factor of [5, 30, 200]) {
      const plain = normalInputs({ heads: 2, queries: 140, keys: 140, headDim: dim }, 5);
      const [q, k] = [plain.q, plain.k].map((tensor) => filled(tensor.dims, type, (i) => factor * tensor.data[i]));
      const v = filled(plain.v.dims, type, (i) => plain.v.data[i]);
      for (const isa of rows) {
        for (const causal of [false, true]) {
          const found = toFloat64(
            linearAttentionSync(q as Tensor, k as Tensor, v, { featureMap: favor(), causal, isa }),
          );
          expect(found.every(Number.isFinite)).toBe(true);
        }
      }
    }
  });
});

describe('what comes later does not change what came before, bit by bit', () => {
  const length = 150;
  const shape = { heads: 2, kvHeads: 1, queries: length, keys: length, headDim: 9, valueDim: 6 };
  const plain = normalInputs(shape, 6);

  const cases = Object.keys(maps).flatMap((name) =>
    [{}, { epsilon: 0.5 }].flatMap((more) => (name === 'identity' && 'epsilon' in more ? [] : [{ name, more }])),
  );
  test.each(cases)('$name $more', ({ name, more }) => {
    for (const isa of rows) {
      const options = { ...optionsOf({ ...plainMeaning(name, shape), ...more, causal: true }), isa };
      const wanted = linearAttentionSync(plain.q, plain.k, plain.v, options);
      // Inside of a chunk and at its ends; a key a little different, and one far larger than all others.
      for (const position of [1, 5, 15, 16, 31, 32, 40, 63, 64, 100, 127, 128, 149]) {
        for (const factor of [-1, 40]) {
          const change = ({ data, dims }: Tensor, by: number) =>
            filled(dims, 'float32', (i) => (Math.floor(i / dims[3]) >= position ? by * data[i] : data[i]));
          const found = linearAttentionSync(plain.q, change(plain.k, factor), change(plain.v, 3), options);
          for (let h = 0; h < 2; h++) {
            const rowsBefore = (of: Tensor) =>
              (of.data as Float32Array).slice(h * length * 6, (h * length + position) * 6);
            const [a, b] = [rowsBefore(found), rowsBefore(wanted)];
            if (Buffer.compare(Buffer.from(a.buffer), Buffer.from(b.buffer)) !== 0) {
              const at = a.findIndex((value, i) => !Object.is(value, b[i]));
              throw new Error(`key ${position} changed row ${Math.floor(at / 6)} of head ${h} (${isa}, ${factor})`);
            }
          }
          expect(found.data).not.toEqual(wanted.data);
        }
      }
    }
  });
});

describe('taylor', () => {
  test.each(rows)('%s: stands for softmax where logits are small', (isa) => {
    const { q, k, v } = withLogits(normalInputs({ heads: 2, queries: 40, keys: 40, headDim: 8 }, 7), 0.3);
    const exact = attentionSync(q, k, v);
    const found = linearAttentionSync(q, k, v, { featureMap: taylor(), epsilon: 0, isa });
    // The next term of the series is s³/6, and |s| < 0.6 here.
    const most = Math.max(...toFloat64(exact).map((value, i) => Math.abs(found.data[i] - value)));
    expect(most).toBeLessThan(0.02);
    expect(most).toBeGreaterThan(1e-6);
  });
});

test('weights of queries and keys are their own, and heads have theirs', () => {
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 12, keys: 12, headDim: 5 };
  const { q, k, v } = normalInputs(shape, 8);
  const queryWeights = normal([4, 6, 5], 9);
  const keyWeights = normal([2, 6, 5], 10);
  for (const kind of ['relu', 'hedgehog'] as const) {
    for (const weights of [
      { queryWeights, keyWeights },
      { queryWeights: normal([6, 5], 11), keyWeights },
      { queryWeights, keyWeights: normal([6, 5], 12) },
    ]) {
      for (const isa of rows) checkLinear({ q, k, v }, { map: { kind, ...weights }, causal: true }, { isa });
    }
  }
});

describe('maps', () => {
  test('are frozen and say what they are', () => {
    for (const name of Object.keys(maps)) {
      const map = mapOf(plainMeaning(name, { heads: 2, headDim: 4 }).map);
      expect(Object.isFrozen(map)).toBe(true);
      expect(name.startsWith(map.kind)).toBe(true);
    }
    expect(cosformer({ maxLength: 9 })).toEqual({ kind: 'cosformer', maxLength: 9 });
    expect(relu()).toEqual({ kind: 'relu', offset: 0 });
    expect(favor({ seed: 3 })).toEqual({ kind: 'favor', seed: 3 });
  });

  test('keep the dims they were made with', () => {
    const dims = [3, 4];
    const weights = { data: normal(dims, 1).data as Float32Array, dims, type: 'float32' as const };
    const map = hedgehog({ weights });
    dims[0] = 99;
    expect(map.queryWeights?.dims).toEqual([3, 4]);
    const { q, k, v } = normalInputs({ queries: 3, keys: 3, headDim: 4 }, 2);
    const meaning = { map: { kind: 'hedgehog', queryWeights: map.queryWeights, keyWeights: map.keyWeights } } as const;
    compare(linearAttentionSync(q, k, v, { featureMap: map }), expectLinear(q, k, v, meaning as never));
  });
});
