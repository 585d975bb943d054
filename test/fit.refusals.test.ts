/** What fitLrkv and describeHeads refuse, how they stop, and what they tell on the way. */
import {
  type AttentionError,
  type AttentionErrorCode,
  type AttentionWeights,
  describeHeads,
  describeHeadsSync,
  type FitOptions,
  type FitProgress,
  fitLrkv,
  fitLrkvSync,
  headDiversity,
  headSimilaritySync,
  lrkvLayer,
  type RmsNormOptions,
  ropeFrequencies,
  type Tensor,
} from '../lib';
import { filled, normal } from './data';
import { layerOf, rowsOf } from './fit-data';
import { toFloat64 } from './half';
import { jacobiEigen, times, transposed } from './reference-fit';
import { Faults, faultOf } from './refusal';

const shape = { modelDim: 12, heads: 4, kvHeads: 2, width: 4, shared: 0.5, tokens: 20, biases: true, seed: 1 };
const { weights, hidden } = layerOf(shape);
const rope = { frequencies: ropeFrequencies(4) };

type Case = readonly [options: unknown, code: AttentionErrorCode, argument: string, of?: unknown];

async function expectRefusals(cases: readonly Case[]): Promise<void> {
  const faults = new Faults();
  for (const [options, code, argument, of = weights] of cases) {
    const call = [of as AttentionWeights, options as FitOptions] as const;
    faults.add(`${argument}`, await faultOf(() => fitLrkvSync(...call), false, { code, argument }));
    faults.add(`${argument}, async`, await faultOf(() => fitLrkv(...call), true, { code, argument }));
  }
  faults.none();
}

const spoiled = (source: Tensor): Tensor => filled(source.dims, 'float32', (i) => (i === 5 ? NaN : source.data[i]));

test('options', async () => {
  const rotated = { ...weights, rope };
  await expectRefusals([
    [undefined, 'ERR_ARGUMENT', 'options'],
    [null, 'ERR_ARGUMENT', 'options'],
    [{}, 'ERR_ARGUMENT', 'options'],
    [{ rank: 2, energy: 0.5 }, 'ERR_ARGUMENT', 'options'],
    [{ rank: 2, ratio: 0.5 }, 'ERR_ARGUMENT', 'ratio'],
    ...[-1, 1.5, 5, '2', NaN, null].map((rank) => [{ rank }, 'ERR_ARGUMENT', 'rank'] as const),
    [{ rank: { key: 2 } }, 'ERR_ARGUMENT', 'rank.value'],
    [{ rank: { key: 5, value: 1 } }, 'ERR_ARGUMENT', 'rank.key'],
    [{ rank: { key: 2, value: 1, query: 1 } }, 'ERR_ARGUMENT', 'query'],
    [{ rank: 0, gauge: 'none' }, 'ERR_ARGUMENT', 'rank'],
    [{ rank: { key: 2, value: 0 }, gauge: { value: 'none' } }, 'ERR_ARGUMENT', 'rank.value'],
    [{ ranks: [{ key: [0, 0], value: [1, 0] }], gauge: 'none' }, 'ERR_ARGUMENT', 'ranks[0].key'],
    [{ ranks: 2 }, 'ERR_SHAPE', 'ranks'],
    [{ ranks: [] }, 'ERR_SHAPE', 'ranks'],
    [{ ranks: [{ key: [1, 2] }] }, 'ERR_SHAPE', 'ranks[0].value'],
    [{ ranks: [{ key: [1], value: [1, 1] }] }, 'ERR_SHAPE', 'ranks[0].key'],
    [{ ranks: [{ key: [1, 1], value: [1, 9] }] }, 'ERR_ARGUMENT', 'ranks[0].value[1]'],
    ...[0, 1.01, -1, NaN, '1', null].map((energy) => [{ energy }, 'ERR_ARGUMENT', 'energy'] as const),
    ...[0, 1.01, -1, NaN, '1', null].map((budget) => [{ budget }, 'ERR_ARGUMENT', 'budget'] as const),
    [{ budget: 0.01 }, 'ERR_ARGUMENT', 'budget'],
    [{ budget: {} }, 'ERR_ARGUMENT', 'budget.bytesPerToken'],
    [{ budget: { bytesPerToken: -1 } }, 'ERR_ARGUMENT', 'budget.bytesPerToken'],
    [{ budget: { bytesPerToken: 1 } }, 'ERR_ARGUMENT', 'budget'],
    [{ budget: { bytesPerToken: 100, type: 'int8' } }, 'ERR_TYPE', 'budget.type'],
    [{ rank: 2, calibration: 5 }, 'ERR_TYPE', 'calibration'],
    [{ rank: 2, calibration: normal([3, 11], 1) }, 'ERR_SHAPE', 'calibration'],
    [{ rank: 2, calibration: normal([0, 12], 1) }, 'ERR_SHAPE', 'calibration'],
    [{ rank: 2, calibration: normal([3, 4, 3], 1) }, 'ERR_SHAPE', 'calibration'],
    [{ rank: 2, calibration: [hidden, hidden] }, 'ERR_SHAPE', 'calibration'],
    [{ rank: 2, calibration: spoiled(hidden) }, 'ERR_ARGUMENT', 'calibration'],
    [{ rank: 2, calibration: hidden }, 'ERR_SHAPE', 'calibration', [weights]],
    [{ rank: 2, calibration: [spoiled(hidden)] }, 'ERR_ARGUMENT', 'calibration[0]', [weights]],
    [{ rank: 2, gauge: 'orthogonal' }, 'ERR_ARGUMENT', 'gauge'],
    [{ rank: 2, gauge: { key: 'orthogonal' } }, 'ERR_ARGUMENT', 'gauge.key'],
    [{ rank: 2, gauge: 'rope-pair' }, 'ERR_ARGUMENT', 'gauge'],
    [{ rank: 2, gauge: 'rope-pair' }, 'ERR_ARGUMENT', 'gauge', rotated],
    [{ rank: 2, gauge: { value: 'rope-pair' } }, 'ERR_ARGUMENT', 'gauge.value', rotated],
    [{ rank: 2, gauge: 'free' }, 'ERR_ARGUMENT', 'gauge', rotated],
    [{ rank: 2, gauge: { key: 'free' } }, 'ERR_ARGUMENT', 'gauge.key', rotated],
    [{ rank: 2, ropeMode: 'exact' }, 'ERR_ARGUMENT', 'ropeMode'],
    [{ rank: 2, ropeMode: 'paper' }, 'ERR_ARGUMENT', 'ropeMode', rotated],
    [{ rank: { key: 3, value: 3 }, ropeMode: 'intertwined' }, 'ERR_ARGUMENT', 'rank.key', rotated],
    ...[0, 1.5, 10_001, null].map((iterations) => [{ rank: 2, iterations }, 'ERR_ARGUMENT', 'iterations'] as const),
    ...[-0.1, Infinity, '0'].map((damping) => [{ rank: 2, damping }, 'ERR_ARGUMENT', 'damping'] as const),
    ...[0, 4, 12, 8.5].map((rankStep) => [{ rank: 2, rankStep }, 'ERR_ARGUMENT', 'rankStep'] as const),
    [{ rank: 2, sensitivity: [{ key: 1, value: 1 }] }, 'ERR_ARGUMENT', 'sensitivity'],
    [{ budget: 0.9, sensitivity: [] }, 'ERR_SHAPE', 'sensitivity'],
    [{ budget: 0.9, sensitivity: [{ key: 1, value: -1 }] }, 'ERR_ARGUMENT', 'sensitivity[0].value'],
    [{ rank: 2, onProgress: 5 }, 'ERR_ARGUMENT', 'onProgress'],
    [{ rank: 2, threads: 0 }, 'ERR_ARGUMENT', 'threads'],
    [{ rank: 2, signal: {} }, 'ERR_ARGUMENT', 'signal'],
    [{ rank: 2, device: 'cuda' }, 'ERR_DEVICE', 'device'],
  ]);
});

test('weights', async () => {
  const rank = { rank: 2 };
  await expectRefusals([
    [rank, 'ERR_ARGUMENT', 'weights', null],
    [rank, 'ERR_SHAPE', 'weights', []],
    [rank, 'ERR_ARGUMENT', 'weights[0]', [undefined]],
    [rank, 'ERR_ARGUMENT', 'extra', { ...weights, extra: 1 }],
    [rank, 'ERR_ARGUMENT', 'weights.heads', { ...weights, heads: 0 }],
    [rank, 'ERR_ARGUMENT', 'weights.kvHeads', { ...weights, kvHeads: 3 }],
    [rank, 'ERR_TYPE', 'weights.query', { ...weights, query: undefined }],
    [rank, 'ERR_SHAPE', 'weights.query', { ...weights, query: normal([12, 15], 1) }],
    [rank, 'ERR_SHAPE', 'weights.key', { ...weights, key: normal([12, 12], 1) }],
    [rank, 'ERR_SHAPE', 'weights.value', { ...weights, value: normal([11, 8], 1) }],
    [rank, 'ERR_SHAPE', 'weights.output', { ...weights, output: normal([15, 12], 1) }],
    [rank, 'ERR_SHAPE', 'weights.keyBias', { ...weights, keyBias: normal([7], 1) }],
    ...(['query', 'key', 'value', 'output', 'queryBias', 'keyBias', 'valueBias'] as const).flatMap((name): Case[] => {
      const wrong = { ...weights, [name]: spoiled(weights[name] as Tensor) };
      return [
        [rank, 'ERR_ARGUMENT', `weights.${name}`, wrong],
        [{ ...rank, calibration: [hidden, hidden] }, 'ERR_ARGUMENT', `weights[1].${name}`, [weights, wrong]],
      ];
    }),
    [rank, 'ERR_SHAPE', 'weights.rope.frequencies', { ...weights, rope: { frequencies: [1] } }],
    [rank, 'ERR_SHAPE', 'weights.qkNorm.key.gain', { ...weights, qkNorm: { key: { gain: [1] } } }],
    [rank, 'ERR_ARGUMENT', 'weights.scale', { ...weights, scale: NaN }],
  ]);
});

describe('gains of QK-norm: a fit takes what a layer of its weights takes, and refuses the rest as that does', () => {
  const gain = [1, 2, 1, 0.5];
  const norms = [undefined, {}, { gain }, { gain, gainOrder: 'after-rotation' as const }];
  const shown = (norm?: RmsNormOptions): string =>
    norm === undefined
      ? 'no norm'
      : norm.gain === undefined
        ? 'no gain'
        : `a gain ${norm.gainOrder ?? 'before-rotation'}`;
  const pairs = norms.flatMap((query) => norms.map((key) => ({ query, key })));
  const modes = [undefined, 'exact', 'intertwined'] as const;
  const cases = pairs.flatMap((qkNorm) => modes.map((ropeMode) => ({ qkNorm, ropeMode })));
  const wholeFit = { rank: 4, gauge: 'none', iterations: 1 } as const;
  const plain = modes.map((ropeMode) => {
    const own = ropeMode === undefined ? weights : { ...weights, rope };
    return [ropeMode, own, fitLrkvSync(own, { ...wholeFit, ...(ropeMode && { ropeMode }) }).layers[0]] as const;
  });

  test.each(cases)('queries $qkNorm.query, keys $qkNorm.key, ropeMode $ropeMode', ({ qkNorm, ropeMode }) => {
    const [, own, fitted] = plain.find(([mode]) => mode === ropeMode) as (typeof plain)[number];
    const given = Object.fromEntries(Object.entries(qkNorm).filter(([, norm]) => norm !== undefined));
    const caught = (call: () => unknown): unknown => {
      try {
        call();
      } catch (error) {
        const { code, argument, message } = error as AttentionError;
        return { code, argument, message };
      }
      return undefined;
    };
    let iterations = 0;
    const onProgress = () => iterations++;
    const options = { ...wholeFit, ...(ropeMode && { ropeMode }), onProgress };
    const ofLayer = caught(() => lrkvLayer({ ...fitted, qkNorm: given }));
    const ofFit = caught(() => lrkvLayer(fitLrkvSync({ ...own, qkNorm: given }, options).layers[0]));
    expect(ofFit).toEqual(ofLayer);
    expect(iterations > 0).toBe(ofLayer === undefined);
    const [ofQueries, ofKeys] = [shown(qkNorm.query), shown(qkNorm.key)];
    const late = ofQueries === 'a gain after-rotation' && /^no norm|before/.test(ofKeys);
    const early = ropeMode === 'intertwined' && ofKeys === 'a gain before-rotation';
    const argument = `weights.qkNorm.${late ? 'query' : 'key'}`;
    if (ropeMode === undefined || !(late || early)) expect(ofLayer).toBeUndefined();
    else expect(ofLayer).toMatchObject({ code: 'ERR_UNSUPPORTED', argument });
  });

  test('gains too large together, and more heads than a layer may have', async () => {
    const huge = { gain: [1e30, 1, 1, 1], gainOrder: 'after-rotation' } as const;
    const heads = 2 ** 16 + 1;
    const one = (rows: number, columns: number) => normal([rows, columns], 1);
    const many = { query: one(1, heads), key: one(1, heads), value: one(1, heads), output: one(heads, 1), heads };
    await expectRefusals([
      [
        wholeFit,
        'ERR_ARGUMENT',
        'weights.qkNorm.query.gain[0]',
        { ...weights, rope, qkNorm: { query: huge, key: huge } },
      ],
      [{ rank: 1 }, 'ERR_ARGUMENT', 'weights.kvHeads', many],
      [{ rank: 1 }, 'ERR_ARGUMENT', 'weights[1].kvHeads', [weights, many]],
    ]);
  });
});

describe('a fit', () => {
  test('tells every iteration', () => {
    const seen: FitProgress[] = [];
    const options = { rank: 1, calibration: hidden, iterations: 5, onProgress: (at: FitProgress) => seen.push(at) };
    const { report } = fitLrkvSync(weights, options);
    for (const side of ['key', 'value'] as const) {
      const own = seen.filter((at) => at.side === side);
      expect(own.map(({ iteration }) => iteration)).toEqual([1, 2, 3, 4, 5]);
      for (const at of own) expect(at).toMatchObject({ layer: 0, layers: 1, iterations: 5 });
      const { baseError } = report.layers[0][side];
      expect(own.at(-1)?.error).toBe(baseError);
    }
  });

  test('hands on what a callback throws', async () => {
    const cause = new Error('enough');
    const onProgress = () => {
      throw cause;
    };
    const wanted = { code: 'ERR_ARGUMENT', argument: 'onProgress', cause } as const;
    expect(await faultOf(() => fitLrkvSync(weights, { rank: 1, onProgress }), false, wanted)).toBe(undefined);
    expect(await faultOf(() => fitLrkv(weights, { rank: 1, onProgress }), true, wanted)).toBe(undefined);
  });

  test('stops within an iteration of an abort', async () => {
    const { weights: larger } = layerOf({ ...shape, modelDim: 48, kvHeads: 4, width: 16 });
    for (const gauge of ['free', 'identity'] as const) {
      for (const budget of [undefined, 0.9]) {
        const seen: number[] = [];
        const controller = new AbortController();
        const reason = new Error('no more');
        const options: FitOptions = {
          ...(budget === undefined ? { rank: 1 } : { budget }),
          gauge,
          iterations: 1000,
          signal: controller.signal,
          onProgress: ({ iteration }) => {
            seen.push(iteration);
            if (iteration === 3) controller.abort(reason);
          },
        };
        const wanted = { code: 'ERR_ABORTED', argument: 'signal', cause: reason } as const;
        expect(await faultOf(() => fitLrkv(larger, options), true, wanted)).toBe(undefined);
        expect(seen).toEqual([1, 2, 3]);
      }
    }
    const signal = AbortSignal.abort();
    const wanted = { code: 'ERR_ABORTED', argument: 'signal' } as const;
    expect(await faultOf(() => fitLrkvSync(weights, { rank: 1, signal }), false, wanted)).toBe(undefined);
  });
});

test('layers of nothing: zero weights, heads that nothing reads', async () => {
  const zero = (source: Tensor) => filled(source.dims, 'float32', () => 0);
  for (const name of ['query', 'key', 'value', 'output'] as const) {
    const { queryBias: _q, keyBias: _k, valueBias: _v, ...plain } = weights;
    const rules: FitOptions[] = [{ rank: 1 }, { energy: 0.9 }, { budget: 0.9 }, { rank: 0, gauge: 'identity' }];
    for (const options of [...rules, { energy: 0.9, gauge: 'none' } satisfies FitOptions]) {
      const { layers, report } = fitLrkvSync(
        { ...plain, [name]: zero(weights[name]) },
        { calibration: hidden, ...options },
      );
      for (const side of ['key', 'value'] as const) {
        for (const part of ['Base', 'Down', 'Up'] as const)
          expect(toFloat64(layers[0][`${side}${part}`]).every(Number.isFinite)).toBe(true);
        expect(report.layers[0][side].measuredError).toBeLessThan(1);
      }
      if (name === 'key' || name === 'value') expect(report.layers[0][name].measuredError).toBe(0);
      // A layer that cannot be run would be no result.
      const { data } = await lrkvLayer(layers[0]).forward(normal([1, 3, shape.modelDim], 1));
      expect(Array.from(data as Float32Array).every(Number.isFinite)).toBe(true);
    }
  }
});

describe('describeHeads', () => {
  test('without calibration and biases, forms are those of headSimilarity', async () => {
    const { queryBias: _q, keyBias: _k, valueBias: _v, ...plain } = weights;
    const found = describeHeadsSync(plain);
    expect(await describeHeads(plain)).toEqual(found);
    const heads = (of: Tensor, count: number) => {
      const width = of.dims[1] / count;
      return filled([count, of.dims[0], width], 'float32', (i) => {
        const [head, row, column] = [
          Math.floor(i / (of.dims[0] * width)),
          Math.floor(i / width) % of.dims[0],
          i % width,
        ];
        return of.data[row * of.dims[1] + head * width + column];
      });
    };
    const wanted = headSimilaritySync(heads(plain.query, 4), heads(plain.key, 2));
    for (const [i, row] of wanted.entries())
      for (const [j, value] of row.entries()) expect(found.similarity[i][j]).toBeCloseTo(value, 12);
    expect(found.diversity).toEqual(headDiversity(found.similarity));
    expect(found.ceiling).toBe(3 / 4);
    expect(found.key.meanShare).toBe(0);
  });

  test('components are those of the keys and values of the calibration rows', () => {
    const found = describeHeadsSync(weights, { calibration: hidden });
    for (const side of ['key', 'value'] as const) {
      const states = rowsOf(hidden).map((row) => [...row, 1]);
      const outputs = times(states, rowsOf(weights[side], weights[`${side}Bias`]));
      const n = outputs.length;
      const mean = outputs[0].map((_, j) => outputs.reduce((sum, row) => sum + row[j], 0) / n);
      const energy = outputs.reduce((sum, row) => sum + row.reduce((part, value) => part + value ** 2, 0), 0) / n;
      expect(found[side].meanShare).toBeCloseTo(mean.reduce((sum, value) => sum + value ** 2, 0) / energy, 12);
      const centred = outputs.map((row) => row.map((value, j) => value - mean[j]));
      const deviationsOf = (first: number, count: number) => {
        const part = centred.map((row) => row.slice(first, first + count));
        return jacobiEigen(times(transposed(part), part)).values.map((value) => Math.sqrt(Math.max(0, value) / n));
      };
      const compare = (of: { standardDeviations: Float64Array }, wanted: readonly number[]) => {
        expect(of.standardDeviations).toHaveLength(wanted.length);
        for (const [i, value] of wanted.entries()) expect(of.standardDeviations[i]).toBeCloseTo(value, 6);
      };
      compare(found[side].joint, deviationsOf(0, 8));
      for (const [head, own] of found[side].heads.entries()) compare(own, deviationsOf(4 * head, 4));
    }
  });

  test('of heads that do not vary, and of one head', () => {
    const flat = { ...weights, value: filled(weights.value.dims, 'float32', () => 0) };
    const { value } = describeHeadsSync(flat, { calibration: hidden });
    expect(value.meanShare).toBeCloseTo(1, 12);
    expect(value.joint.metrics?.stableRank ?? 0).toBeLessThan(9);
    const { weights: single } = layerOf({ ...shape, heads: 1, kvHeads: 1 });
    expect(describeHeadsSync(single)).toMatchObject({ similarity: [[1]], diversity: undefined, ceiling: 0 });
  });

  test('wrong arguments', async () => {
    const faults = new Faults();
    const zero = filled(weights.key.dims, 'float32', () => 0);
    const { keyBias: _, ...plain } = weights;
    const cases: readonly (readonly [unknown, unknown, AttentionErrorCode, string])[] = [
      [undefined, undefined, 'ERR_ARGUMENT', 'weights'],
      [weights, { rank: 2 }, 'ERR_ARGUMENT', 'rank'],
      [weights, { calibration: normal([3, 11], 1) }, 'ERR_SHAPE', 'calibration'],
      [weights, { calibration: spoiled(hidden) }, 'ERR_ARGUMENT', 'calibration'],
      [weights, { device: 'cuda' }, 'ERR_DEVICE', 'device'],
      [{ ...weights, value: spoiled(weights.value) }, undefined, 'ERR_ARGUMENT', 'weights.value'],
      [{ ...plain, key: zero }, undefined, 'ERR_ARGUMENT', 'weights.query'],
    ];
    for (const [of, options, code, argument] of cases) {
      const call = [of as AttentionWeights, options as object] as const;
      faults.add(argument, await faultOf(() => describeHeadsSync(...call), false, { code, argument }));
      faults.add(`${argument}, async`, await faultOf(() => describeHeads(...call), true, { code, argument }));
    }
    faults.none();
  });
});
