/** Conversion to LRKV: what is fitted, how well, and what must not change it. */
import {
  type AttentionWeights,
  attentionLayer,
  cast,
  type FitOptions,
  fitLrkv,
  fitLrkvSync,
  type Gauge,
  lrkvLayer,
  ropeFrequencies,
  type Tensor,
} from '../lib';
import type { LrkvSideReport } from '../lib/fit/report';
import type { Rope } from '../lib/rope';
import { filled, normal, uniform } from './data';
import { columnsOf, fittedHeadsOf, headsOf, type Layer, type LayerShape, layerOf, rowsOf } from './fit-data';
import { toFloat64 } from './half';
import {
  combine,
  energyOf,
  type FitProblem,
  identityOf,
  jacobiEigen,
  type Rows,
  referenceFit,
  times,
  transposed,
} from './reference-fit';

type Side = 'key' | 'value';
const sides: readonly Side[] = ['key', 'value'];

const ropeOf = (width: number, pairing?: Rope['pairing']): Rope => ({ frequencies: ropeFrequencies(width), pairing });

function pairsOf(width: number, { pairing }: Rope): [number, number][] {
  return Array.from({ length: width / 2 }, (_, i) =>
    pairing === 'interleaved' ? [2 * i, 2 * i + 1] : [i, i + width / 2],
  );
}

/** What the documentation says is fitted, from the definitions. */
function problemOf({ weights, hidden }: Layer, side: Side, calibrated: boolean, damping = 0.01): FitProblem {
  const { heads, kvHeads = heads, rope } = weights;
  const states = rowsOf(hidden).map((row) => [...row, 1]);
  const inputs = states[0].length;
  let moment = identityOf(inputs);
  if (calibrated) {
    moment = times(transposed(states), states).map((row) => row.map((value) => value / states.length));
    const mean = moment.slice(0, -1).reduce((sum, row, i) => sum + row[i], 0) / (inputs - 1);
    for (let i = 0; i < inputs - 1; i++) moment[i][i] += damping * mean;
  }
  const group = heads / kvHeads;
  const metrics = headsOf(weights, side).map((_, head) => {
    const members = Array.from({ length: group }, (_, i) => head * group + i);
    const parts = members.map((member) => {
      if (side === 'value') {
        const output = rowsOf(weights.output);
        const width = output.length / heads;
        const rows = output.slice(member * width, (member + 1) * width);
        return times(rows, transposed(rows));
      }
      const whole = rowsOf(weights.query, weights.queryBias ?? null);
      const width = whole[0].length / heads;
      const own = columnsOf(whole, member * width, width);
      return times(transposed(own), times(moment, own));
    });
    const sum = parts.reduce((a, b) => combine(a, b, 1));
    if (side === 'value' || rope === undefined) return sum;
    const result = sum.map((row) => row.map(() => 0));
    for (const [a, b] of pairsOf(sum.length, rope)) {
      result[a][a] = (sum[a][a] + sum[b][b]) / 2;
      result[b][b] = result[a][a];
    }
    return result;
  });
  return { heads: headsOf(weights, side), moment, metrics };
}

/**
 * The metric of keys that are normalised and rotated, by its meaning: Σ over the query heads of the mean, over angles a
 * and b of queries and keys, of D·E[q̂·q̂ᵀ]·Dᵀ with D = g_k·R(b)ᵀ·g′_k·g′_q·R(a)·g_q, gains g before and g′ after the rotation.
 */
function normedMetrics({ weights, hidden }: Layer): Rows[] {
  const { heads, kvHeads = heads, rope, qkNorm } = weights;
  const { moment } = problemOf({ weights: { ...weights, rope: undefined }, hidden }, 'key', true);
  const headsIn = (of: Tensor, count: number) => {
    const whole = rowsOf(of, null);
    const width = whole[0].length / count;
    return Array.from({ length: count }, (_, head) => columnsOf(whole, head * width, width));
  };
  const momentIn = (own: Rows): Rows => times(transposed(own), times(moment, own));
  const meanSquare = (of: Rows): number => of.reduce((sum, row, i) => sum + row[i], 0) / of.length;
  const [queries, keys] = [headsIn(weights.query, heads), headsIn(weights.key, kvHeads)].map((all) =>
    all.map(momentIn),
  );
  const width = keys[0].length;
  const gains = (side: 'query' | 'key', order: string): Rows => {
    const { gain = null, gainOrder = 'before-rotation' } = qkNorm?.[side] ?? {};
    return identityOf(width).map((row, i) => row.map((one) => one * (gainOrder === order ? (gain?.[i] ?? 1) : 1)));
  };
  const turn = (angle: number): Rows => {
    const result = identityOf(width);
    // Every pair by another multiple, so that no two of them move together.
    for (const [pair, [a, b]] of pairsOf(width, rope as Rope).entries()) {
      const [cosine, sine] = [Math.cos(angle * 5 ** pair), Math.sin(angle * 5 ** pair)];
      [result[a][a], result[b][b], result[a][b], result[b][a]] = [cosine, cosine, -sine, sine];
    }
    return result;
  };
  const angles = Array.from({ length: 101 }, (_, i) => (2 * Math.PI * i) / 101);
  const mean = (of: Rows, by: (angle: number) => Rows): Rows =>
    angles
      .map((angle) => times(by(angle), times(of, transposed(by(angle)))))
      .reduce((a, b) => combine(a, b, 1))
      .map((row) => row.map((value) => value / angles.length));
  const after = times(gains('query', 'after-rotation'), gains('key', 'after-rotation'));
  return keys.map((key, head) => {
    const members = queries.slice((head * heads) / kvHeads, ((head + 1) * heads) / kvHeads);
    const sum = members
      .map((query) => query.map((row) => row.map((value) => value / meanSquare(query))))
      .reduce((a, b) => combine(a, b, 1));
    const turned = mean(sum, (angle) => times(after, times(turn(angle), gains('query', 'before-rotation'))));
    const back = mean(turned, (angle) => times(gains('key', 'before-rotation'), transposed(turn(angle))));
    return back.map((row) => row.map((value) => value / meanSquare(key)));
  });
}

/** ‖C^{1/2}·(W − Ŵ)·M^{1/2}‖ / ‖C^{1/2}·W·M^{1/2}‖, by traces: no root is taken. */
function errorOf({ heads, moment, metrics }: FitProblem, fitted: readonly Rows[]): number {
  const energy = (of: readonly Rows[]): number =>
    of.reduce((sum, a, h) => {
      const product = times(times(transposed(a), times(moment, a)), metrics[h]);
      return sum + product.reduce((trace, row, i) => trace + row[i], 0);
    }, 0);
  return Math.sqrt(energy(heads.map((head, h) => combine(head, fitted[h], -1))) / energy(heads));
}

const fitOf = ({ weights, hidden }: Layer, options: FitOptions, calibrated = true) => {
  const fit = fitLrkvSync(weights, { ...(calibrated ? { calibration: hidden } : {}), ...options });
  return { weights: fit.layers[0], report: fit.report.layers[0], all: fit.report };
};

const keptError = ({ gauge, baseError, noBaseError }: LrkvSideReport): number =>
  (gauge === 'none' ? noBaseError : baseError) as number;

const small: LayerShape = { modelDim: 20, heads: 4, width: 6, shared: 0.5, tokens: 60, seed: 1 };

describe('the definitions, alternated on whole matrices', () => {
  const cases: Record<string, { shape: LayerShape; rope?: Rope; calibrated?: boolean }> = {
    MHA: { shape: small },
    'without calibration': { shape: small, calibrated: false },
    biases: { shape: { ...small, biases: true, seed: 20 } },
    'GQA, biases': { shape: { ...small, heads: 6, kvHeads: 3, biases: true, seed: 40 } },
    MQA: { shape: { ...small, heads: 4, kvHeads: 1, seed: 60 } },
    'fewer inputs than outputs': { shape: { ...small, modelDim: 9, seed: 80 } },
    'rotary, half': { shape: { ...small, width: 8, seed: 100 }, rope: ropeOf(8) },
    'rotary, interleaved, GQA, biases': {
      shape: { ...small, width: 8, heads: 6, kvHeads: 3, biases: true, seed: 120 },
      rope: ropeOf(8, 'interleaved'),
    },
  };
  test.each(Object.entries(cases))('%s', (_name, { shape, rope, calibrated = true }) => {
    const layer = layerOf(shape);
    const own: Layer = rope === undefined ? layer : { ...layer, weights: { ...layer.weights, rope } };
    const heads = shape.kvHeads ?? shape.heads;
    for (const side of sides) {
      const rotated = rope !== undefined && side === 'key';
      const problem = problemOf(own, side, calibrated);
      const gauges: Gauge[] = [rotated ? 'rope-pair' : 'free', 'identity', 'none'];
      for (const gauge of gauges) {
        const fitAt = (iterations?: number) =>
          fitOf(own, { rank: 2, gauge: { [side]: gauge }, ...(iterations && { iterations }) }, calibrated);
        const foundBy = ({ report }: ReturnType<typeof fitAt>): number =>
          (gauge === 'none' ? report[side].noBaseError : report[side].baseError) as number;
        const pairs = rope === undefined ? [] : pairsOf(shape.width, rope);
        const wanted = referenceFit(problem, new Array(heads).fill(2), gauge, 300, pairs);
        // The start of a free gauge is found by iteration itself; what is 0 is known to 1e-7 only, as squares are.
        const slack = gauge === 'free' ? 0.01 : 1e-6;
        expect(Math.abs(foundBy(fitAt(1)) - wanted[0])).toBeLessThan(slack * wanted[0] + 1e-7);
        // Later iterations are extrapolated and go ways of their own, to where many plain ones lead, or to something better.
        const fit = fitAt();
        const { report, weights } = fit;
        expect(foundBy(fit)).toBeLessThan(1.01 * (wanted.at(-1) as number) + 1e-7);
        // What is reported is what the weights do.
        const truth = errorOf(problem, fittedHeadsOf(weights, side));
        expect(Math.abs(report[side].predictedError - truth)).toBeLessThan(1e-6);
        expect(Math.abs(keptError(report[side]) - truth)).toBeLessThan(1e-6);
        const undamped = problemOf(own, side, calibrated, 0);
        const measured = errorOf({ ...undamped, metrics: problem.metrics }, fittedHeadsOf(weights, side));
        expect(Math.abs(report[side].measuredError - measured)).toBeLessThan(1e-8);
      }
    }
  });
});

describe('layers whose heads share little or much, as numpy has them (seed 100, 8 heads × 32, rank 8 of 37.5 % of the cache)', () => {
  // Relative errors after 1 and after 300 plain iterations by another program: whole matrices and their singular values, in
  // numpy 2.4. Without a base the rank is 12, which takes as much memory.
  const facts: Record<string, Record<string, readonly [first: number, last: number]>> = {
    0: {
      'value free': [0.0527646, 0.0228676],
      'value identity': [0.276717, 0.133454],
      'value none': [0.0630325, 0.0630325],
      'key free': [0.04588, 0.0190968],
      'key identity': [0.274341, 0.110205],
      'key none': [0.0522231, 0.0522231],
      'rotated rope-pair': [0.268329, 0.130428],
      'rotated identity': [0.276053, 0.14493],
      'rotated none': [0.0674212, 0.0674212],
    },
    0.2: {
      'value free': [0.0748863, 0.0336126],
      'value identity': [0.439321, 0.353001],
      'value none': [0.305193, 0.305193],
      'key free': [0.0666352, 0.0274826],
      'key identity': [0.3828, 0.272526],
      'key none': [0.242387, 0.242387],
      'rotated rope-pair': [0.444931, 0.319752],
      'rotated identity': [0.45835, 0.380266],
      'rotated none': [0.333089, 0.333089],
    },
    0.5: {
      'value free': [0.0455438, 0.0195736],
      'value identity': [0.433759, 0.344536],
      'value none': [0.304283, 0.304283],
      'key free': [0.0407038, 0.0156639],
      'key identity': [0.371635, 0.265382],
      'key none': [0.23969, 0.23969],
      'rotated rope-pair': [0.432734, 0.306811],
      'rotated identity': [0.454245, 0.37228],
      'rotated none': [0.329364, 0.329364],
    },
    0.8: {
      'value free': [0.0220871, 0.0102345],
      'value identity': [0.424211, 0.332286],
      'value none': [0.294539, 0.294539],
      'key free': [0.021004, 0.00815181],
      'key identity': [0.362602, 0.254504],
      'key none': [0.231253, 0.231253],
      'rotated rope-pair': [0.420616, 0.296732],
      'rotated identity': [0.444577, 0.359296],
      'rotated none': [0.318435, 0.318435],
    },
  };
  test.each(Object.entries(facts))('shared %s', (shared, wanted) => {
    const layer = layerOf({ modelDim: 128, heads: 8, width: 32, shared: Number(shared), tokens: 512, seed: 100 });
    const rotated = { ...layer, weights: { ...layer.weights, rope: ropeOf(32) } };
    const errorsAfter = (iterations: number): Record<string, number> => {
      const found: Record<string, number> = {};
      for (const gauge of ['free', 'identity', 'none'] as const) {
        const { report } = fitOf(layer, { rank: gauge === 'none' ? 12 : 8, gauge, iterations });
        for (const side of sides) {
          const of = gauge === 'none' ? report[side].noBaseError : report[side].baseError;
          found[`${side} ${gauge}`] = of as number;
        }
      }
      for (const gauge of ['rope-pair', 'identity', 'none'] as const) {
        const options = { rank: gauge === 'none' ? 12 : 8, gauge: { key: gauge, value: 'none' as const }, iterations };
        const { key } = fitOf(rotated, options).report;
        found[`rotated ${gauge}`] = (gauge === 'none' ? key.noBaseError : key.baseError) as number;
      }
      return found;
    };
    const [once, found] = [errorsAfter(1), errorsAfter(100)];
    expect(Object.keys(found).sort()).toEqual(Object.keys(wanted).sort());
    for (const [name, [first, last]] of Object.entries(wanted)) {
      expect(Math.abs(once[name] / first - 1)).toBeLessThan(0.001);
      // What is extrapolated may find better than plain iterations do, and must not end in worse.
      expect(found[name] / last).toBeLessThan(1.01);
      if (name.endsWith('none')) expect(Math.abs(found[name] / last - 1)).toBeLessThan(0.001);
    }
    for (const side of sides) {
      expect(found[`${side} free`]).toBeLessThan(found[`${side} none`]);
      expect(found[`${side} free`]).toBeLessThan(found[`${side} identity`]);
    }
    expect(found['rotated rope-pair']).toBeLessThan(found['rotated identity']);
  });
});

describe('planted structure', () => {
  const [d, heads, w, r] = [64, 8, 16, 2];
  const whole = (count: number, seed: number, most = 3): number[] => {
    const next = uniform(seed);
    return Array.from({ length: count }, () => Math.round((2 * next() - 1) * most));
  };
  /** base·G_h + U_h·B_hᵀ of small whole numbers, which float32 holds exactly. */
  function planted(gauge: Gauge, seed: number, rope: Rope): AttentionWeights {
    const [base, down, up] = [whole(d * w, seed), whole(heads * d * r, seed + 1), whole(heads * r * w, seed + 2)];
    const numbers = whole(heads * w * w, seed + 3, 2);
    const gauges = Array.from({ length: heads }, (_, h) => {
      const own = numbers.slice(h * w * w, (h + 1) * w * w);
      if (gauge === 'free') return own;
      if (gauge === 'none') return own.map(() => 0);
      if (gauge === 'identity') return own.map((_, i) => Number(i % (w + 1) === 0));
      const result = own.map(() => 0);
      for (const [i, [a, b]] of pairsOf(w, rope).entries()) {
        const [real, imaginary] = [own[2 * i] || 1, own[2 * i + 1]];
        for (const [row, column, value] of [
          [a, a, real],
          [b, b, real],
          [a, b, imaginary],
          [b, a, -imaginary],
        ])
          result[row * w + column] = value;
      }
      return result;
    });
    const key = filled([d, heads * w], 'float32', (i) => {
      const [row, h, column] = [Math.floor(i / (heads * w)), Math.floor(i / w) % heads, i % w];
      let sum = 0;
      for (let k = 0; k < w; k++) sum += base[row * w + k] * gauges[h][k * w + column];
      for (let k = 0; k < r; k++) sum += down[(h * d + row) * r + k] * up[(h * r + k) * w + column];
      return sum;
    });
    const query = normal([d, heads * w], seed + 4);
    return { query, key, value: key, output: normal([heads * w, d], seed + 5), heads };
  }
  const cases = (['free', 'identity', 'rope-pair', 'none'] as const).flatMap((gauge) =>
    [true, false].map((calibrated) => [gauge, calibrated] as const),
  );
  test.each(cases)('%s, calibrated: %s', (gauge, calibrated) => {
    for (const pairing of ['half', 'interleaved'] as const) {
      const rope = ropeOf(w, pairing);
      const rotated = gauge === 'rope-pair';
      const weights = { ...planted(gauge, 7, rope), ...(rotated ? { rope } : {}) };
      const options = { rank: r, iterations: 200, gauge: rotated ? { key: gauge } : gauge };
      const { report } = fitOf({ weights, hidden: normal([300, d], 9) }, options, calibrated);
      for (const side of rotated ? (['key'] as const) : sides) {
        expect(report[side].gauge).toBe(gauge);
        expect(report[side].predictedError).toBeLessThan(1e-12);
        expect(report[side].measuredError).toBeLessThan(1e-7);
      }
      if (!rotated) return;
    }
  });
});

describe('what must hold of any layer', () => {
  const shapes: LayerShape[] = [0, 0.3, 0.9].flatMap((shared, i) =>
    [1, 2].map((group) => ({
      ...small,
      modelDim: 32,
      heads: 4 * group,
      kvHeads: 4,
      width: 16,
      shared,
      seed: 300 + 20 * i,
    })),
  );
  test.each(shapes)('%j: no error grows, none is above that without a base, which takes no more memory', (shape) => {
    const layer = layerOf(shape);
    for (const rope of [undefined, ropeOf(16)]) {
      for (const gauge of ['auto', 'identity', 'none'] as const) {
        // Rank 0 without a base would be nothing, and is refused.
        for (const rank of gauge === 'none' ? [5, 8, 16] : [0, 5, 8, 16]) {
          const own = { ...layer, weights: { ...layer.weights, rope } };
          const { report, weights } = fitOf(own, { rank, gauge });
          for (const side of sides) {
            const { history, baseError, noBaseError, heads } = report[side];
            for (let i = 1; i < history.length; i++)
              expect(history[i]).toBeLessThanOrEqual(history[i - 1] * (1 + 1e-9) + 1e-7);
            expect(history.at(-1)).toBeCloseTo(report[side].predictedError, 7);
            expect(keptError(report[side])).toBeLessThanOrEqual(Math.min(baseError ?? Infinity, noBaseError as number));
            const allowed = (gauge === 'none' ? 0 : 16) + 4 * Math.ceil(rank / 8) * 8;
            const base = weights[`${side}Base`].dims[1];
            expect(base + heads.reduce((sum, head) => sum + head.allocatedRank, 0)).toBeLessThanOrEqual(allowed);
            expect(weights[`${side}Ranks`]).toEqual(heads.map((head) => head.rank));
            if (rank === 16) expect(report[side].predictedError).toBeLessThan(1e-12);
          }
        }
      }
    }
  });

  test('an invertible matrix between a head and what reads it changes no error', () => {
    const { weights, hidden } = layerOf({ ...small, modelDim: 32, width: 16, seed: 400 });
    const [d, heads, w] = [32, 4, 16];
    // Upper triangular with powers of two on the diagonal, another for each head.
    const turns = Array.from({ length: heads }, (_, h) =>
      identityOf(w).map((row, i) => row.map((value, j) => (j === i + 1 ? 0.5 : value * 2 ** ((i + h) % 3)))),
    );
    const inverses = turns.map((turn) => {
      const result = identityOf(w);
      for (let column = 0; column < w; column++) {
        for (let i = w - 1; i >= 0; i--) {
          let value = Number(i === column);
          for (let k = i + 1; k < w; k++) value -= turn[i][k] * result[k][column];
          result[i][column] = value / turn[i][i];
        }
      }
      return result;
    });
    const onColumns = (matrix: Tensor, by: readonly Rows[]) => {
      const parts = by.map((each, h) => times(columnsOf(rowsOf(matrix), h * w, w), each));
      return filled(
        [d, heads * w],
        'float32',
        (i) => parts[Math.floor(i / w) % heads][Math.floor(i / (heads * w))][i % w],
      );
    };
    const onRows = (matrix: Tensor, by: readonly Rows[]) => {
      const parts = by.map((each, h) => times(each, rowsOf(matrix).slice(h * w, (h + 1) * w)));
      return filled([heads * w, d], 'float32', (i) => parts[Math.floor(i / (w * d))][Math.floor(i / d) % w][i % d]);
    };
    const turned: AttentionWeights = {
      ...weights,
      key: onColumns(weights.key, turns),
      query: onColumns(weights.query, inverses.map(transposed)),
      value: onColumns(weights.value, turns),
      output: onRows(weights.output, inverses),
    };
    const before = fitOf({ weights, hidden }, { rank: 3 }).report;
    const after = fitOf({ weights: turned, hidden }, { rank: 3 }).report;
    const plain = fitOf({ weights: turned, hidden }, { rank: 3, gauge: 'identity' }).report;
    for (const side of sides) {
      expect(before[side].predictedError).toBeGreaterThan(0.001);
      expect(Math.abs(after[side].predictedError / before[side].predictedError - 1)).toBeLessThan(1e-4);
      expect(Math.abs((after[side].noBaseError as number) / (before[side].noBaseError as number) - 1)).toBeLessThan(
        1e-5,
      );
    }
    // It would, had the base no gauge.
    const identity = fitOf({ weights, hidden }, { rank: 3, gauge: 'identity' }).report;
    expect(Math.abs((plain.key.baseError as number) / (identity.key.baseError as number) - 1)).toBeGreaterThan(0.001);
  });

  test('sync, async and any number of threads give the same bits', async () => {
    const { weights, hidden } = layerOf(small);
    const wanted = fitLrkvSync(weights, { rank: 2, calibration: hidden, threads: 1 });
    const found = await fitLrkv([weights], { rank: 2, calibration: [hidden] });
    expect(found).toEqual(wanted);
  });

  test.each(['float16', 'bfloat16'] as const)('%s is read as what it is', (type) => {
    const { weights, hidden } = layerOf(small);
    const narrow = (source: Tensor): Tensor => cast(source, type);
    const wide = (source: Tensor): Tensor => cast(narrow(source), 'float32');
    const of = (by: (source: Tensor) => Tensor) => {
      const { query, key, value, output } = weights;
      const tensors = { query: by(query), key: by(key), value: by(value), output: by(output) };
      const { layers, report } = fitLrkvSync({ ...weights, ...tensors }, { rank: 2, calibration: by(hidden) });
      const { query: _query, output: _output, ...fitted } = layers[0];
      return { fitted, report };
    };
    expect(of(narrow)).toEqual(of(wide));
    expect(of(narrow)).not.toEqual(of((source) => source));
  });

  test('layers do not see each other', () => {
    const [one, other] = [layerOf(small), layerOf({ ...small, seed: 77, kvHeads: 2 })];
    const both = fitLrkvSync([one.weights, other.weights], { rank: 2, calibration: [one.hidden, other.hidden] });
    for (const [i, { weights, hidden }] of [one, other].entries())
      expect(both.layers[i]).toEqual(fitLrkvSync(weights, { rank: 2, calibration: hidden }).layers[0]);
  });
});

describe('whole rotary pairs', () => {
  test.each(['half', 'interleaved'] as const)('%s: residuals intertwine with the rotation, exactly', (pairing) => {
    const layer = layerOf({ ...small, modelDim: 40, width: 16, seed: 500 });
    const own = { ...layer, weights: { ...layer.weights, rope: ropeOf(16, pairing) } };
    const exact = fitOf(own, { rank: 6 });
    const { weights, report } = fitOf(own, { rank: 6, ropeMode: 'intertwined' });
    expect(weights.ropeMode).toBe('intertwined');
    expect(report.key.predictedError).toBeGreaterThanOrEqual(exact.report.key.predictedError);
    const up = rowsOf(weights.keyUp);
    let first = 0;
    for (const rank of weights.keyRanks) {
      expect(rank % 2).toBe(0);
      for (const [a, b] of pairsOf(rank, { frequencies: [], pairing })) {
        const [one, two] = [up[first + a], up[first + b]];
        const members = one.flatMap((value, i) => (value === 0 ? [] : [i]));
        const pair = pairsOf(16, { frequencies: [], pairing }).find(([i]) => i === members[0]) as [number, number];
        expect(members).toEqual([pair[0]]);
        expect(two.flatMap((value, i) => (value === 0 ? [] : [i]))).toEqual([pair[1]]);
        expect(one[pair[0]]).toBe(two[pair[1]]);
      }
      first += rank;
    }
    const gauge = toFloat64(weights.keyGauge ?? filled([0], 'float32', () => 0));
    for (let h = 0; h * 256 < gauge.length; h++) {
      for (const [a, b] of pairsOf(16, { frequencies: [], pairing })) {
        const at = (i: number, j: number) => gauge[h * 256 + i * 16 + j];
        expect(at(a, a)).toBe(at(b, b));
        expect(at(a, b)).toBe(-at(b, a) + 0);
      }
    }
  });

  test('a base of complex gauges is exactly that in every mode', () => {
    const layer = layerOf({ ...small, modelDim: 40, width: 16, shared: 1, seed: 520 });
    const twist = { ...layer.weights, rope: ropeOf(16) };
    const { weights } = fitOf({ ...layer, weights: twist }, { rank: 0, gauge: { key: 'rope-pair' } });
    expect(weights.keyBase.dims[1]).toBe(16);
    expect(weights.keyGauge?.dims).toEqual([4, 16, 16]);
  });
});

test('QK-norm: a gain that hides an element takes it out of what is fitted', () => {
  const { weights, hidden } = layerOf({ ...small, width: 8, seed: 600 });
  const gain = [1, 1, 1, 1, 0, 0, 0, 0];
  const { report } = fitOf(
    { weights: { ...weights, qkNorm: { query: {}, key: { gain } } }, hidden },
    { rank: 4, gauge: 'none' },
  );
  const plain = fitOf({ weights: { ...weights, qkNorm: { query: {}, key: {} } }, hidden }, { rank: 4, gauge: 'none' });
  expect(report.key.predictedError).toBeLessThan(1e-4);
  expect(plain.report.key.predictedError).toBeGreaterThan(0.01);
});

describe('QK-norm with rotary embedding: what is least is the error of logits, wherever gains stand', () => {
  const orders = ['before-rotation', 'after-rotation'] as const;
  // What no layer could take is refused before it is fitted: fit.refusals.test.ts.
  const cases = [
    ['before-rotation', 'before-rotation'],
    ['before-rotation', 'after-rotation'],
    ['after-rotation', 'after-rotation'],
  ] as const;
  test.each(cases)('query gains %s, key gains %s', (query, key) => {
    const { weights, hidden } = layerOf({ ...small, heads: 8, kvHeads: 4, width: 16, seed: 620 });
    const gain = (factor: number) => Array.from({ length: 16 }, (_, i) => 2 ** (((factor * i) % 5) - 2));
    for (const pairing of ['half', 'interleaved'] as const) {
      const qkNorm = { query: { gain: gain(2), gainOrder: query }, key: { gain: gain(3), gainOrder: key } };
      const layer: Layer = { hidden, weights: { ...weights, rope: ropeOf(16, pairing), qkNorm } };
      const problem = { ...problemOf(layer, 'key', true), metrics: normedMetrics(layer) };
      for (const gauge of ['rope-pair', 'identity', 'none'] as const) {
        const { report, weights: fitted } = fitOf(layer, { rank: 2, gauge: { key: gauge } });
        const truth = errorOf(problem, fittedHeadsOf(fitted, 'key'));
        expect(truth).toBeGreaterThan(0.01);
        expect(Math.abs(report.key.predictedError - truth)).toBeLessThan(1e-6);
      }
    }
  });

  test('a layer of whole ranks attends as before, whatever the gauge', async () => {
    const { weights, hidden } = layerOf({ ...small, width: 6, seed: 640 });
    const gains = { query: [1, 3, 0.5, 2, 1, 0.25], key: [4, 0.5, 1, 0.25, 2, 1] };
    for (const gainOrder of orders) {
      const qkNorm = { query: { gain: gains.query, gainOrder }, key: { gain: gains.key, gainOrder } };
      const own: AttentionWeights = { ...weights, rope: ropeOf(6), qkNorm };
      const x = normal([1, 17, small.modelDim], 641);
      const wanted = toFloat64(await attentionLayer(own).forward(x));
      const largest = Math.max(...wanted.map(Math.abs));
      const modes = gainOrder === 'after-rotation' ? (['exact', 'intertwined'] as const) : (['exact'] as const);
      for (const ropeMode of modes) {
        for (const gauge of ['rope-pair', 'identity'] as const) {
          const { weights: fitted } = fitOf({ weights: own, hidden }, { rank: 6, gauge: { key: gauge }, ropeMode });
          const found = toFloat64(await lrkvLayer(fitted).forward(x));
          for (const [i, value] of wanted.entries()) expect(Math.abs(found[i] - value)).toBeLessThan(1e-4 * largest);
        }
      }
    }
  });
});

test('ranks of keys that save nothing are told of', () => {
  const { weights, hidden } = layerOf({ ...small, width: 16, seed: 660 });
  const rotated = { weights: { ...weights, rope: ropeOf(16) }, hidden };
  const notes = (layer: Layer, options: FitOptions) => fitOf(layer, options).report.notes;
  const found = notes(rotated, { rank: 4 });
  expect(found).toHaveLength(1);
  expect(found[0]).toMatch(/^Keys .* 'exact' .* saves no memory.* rank 16,/);
  expect(notes(rotated, { ranks: [{ key: [8, 8, 6, 8], value: [0, 0, 0, 0] }] })).toEqual(found);
  for (const options of [
    { rank: { key: 16, value: 2 } },
    { rank: 4, ropeMode: 'intertwined' as const },
    { budget: 0.8 },
  ])
    expect(notes(rotated, options)).toEqual([]);
  expect(notes({ weights, hidden }, { rank: 4 })).toEqual([]);
});

test('the reference finds eigenvalues', () => {
  const a = [
    [2, 1, 0],
    [1, 2, 0],
    [0, 0, 5],
  ];
  const { values, vectors } = jacobiEigen(a);
  for (const [i, value] of [5, 3, 1].entries()) expect(values[i]).toBeCloseTo(value, 12);
  const back = times(
    vectors.map((row) => row.map((value, j) => value * values[j])),
    transposed(vectors),
  );
  expect(energyOf(combine(back, a, -1))).toBeLessThan(1e-24);
});
