// What docs/lrkv.md says of conversion without training: on a trained model and text that the fit has not seen, and on
// layers of known structure. Bounds are loose; the figures that were measured stand there.
import {
  attentionInputs,
  attentionWeights,
  hiddenStates,
  validRows,
  withConverted,
  withLrkv,
} from '../examples/lrkv-conversion/encoder';
import { agreement, cosines, Evaluator, type Quality } from '../examples/lrkv-conversion/quality';
import { type Split, splitBook, spread } from '../examples/lrkv-conversion/split';
import {
  compareGauges,
  type GaugeErrors,
  intertwinedError,
  otherErrors,
  sharedParts,
} from '../examples/lrkv-conversion/structured-table';
import { evenRanks } from '../examples/lrkv-conversion/ways';
import { readParagraphs } from '../examples/sentence-encoder/book';
import { questions } from '../examples/sentence-encoder/questions';
import { type FitOptions, fitLrkv, type LrkvFit } from '../lib';
import { encode } from '../lib/cli/sentence-encoder/encoder';
import { Tokenizer } from '../lib/cli/sentence-encoder/tokenizer';
import {
  type EncoderWeights,
  loadVocabulary,
  loadWeights,
  type Matrix,
  matrix,
} from '../lib/cli/sentence-encoder/weights';

let weights: EncoderWeights;
let split: Split;
let calibration: Matrix[];
let evaluator: Evaluator;

beforeAll(async () => {
  weights = await loadWeights();
  const tokenizer = new Tokenizer(await loadVocabulary());
  split = splitBook(readParagraphs(), tokenizer, questions, {
    ...{ chapters: 40, pieces: 4096, sentences: 60, searched: 4096 },
  });
  calibration = await hiddenStates(weights, split.calibration);
  evaluator = await Evaluator.of(weights, split.evaluation);
});

/** Fewer iterations than by default: the rest betters nothing that is asserted. */
async function fitted(options: FitOptions): Promise<LrkvFit> {
  return await fitLrkv(weights.layers.map(attentionWeights), { iterations: 8, ...options });
}

async function qualityOf(options: FitOptions): Promise<Quality> {
  return await evaluator.quality(withConverted(weights, (await fitted(options)).layers));
}

describe('a trained encoder', () => {
  test('is calibrated and judged on different passages', () => {
    const judged = new Set(split.evaluation.passages.map((ids) => ids.join()));
    expect(judged.size).toBeGreaterThan(30);
    expect(split.calibration.filter((ids) => judged.has(ids.join()))).toEqual([]);
    for (const [layer, { dims }] of calibration.entries()) {
      expect(dims).toEqual([split.calibration.flat().length, [256, 512][layer]]);
    }
  });

  test('that is not converted is found to be itself', async () => {
    const quality = await evaluator.quality(weights);
    for (const layer of quality.layers) expect(layer).toEqual({ keys: 0, values: 0, output: 0 });
    expect(quality.cosine.least).toBeCloseTo(1, 5);
    expect(quality).toMatchObject({ agreementAt1: 1, agreementAt10: 1 });
  });

  test('of the whole rank is itself but for rounding', async () => {
    const { layers, cosine } = await qualityOf({ calibration, gauge: 'none', ranks: evenRanks(weights, 1, false) });
    for (const { keys, values, output } of layers) expect(Math.max(keys, values, output)).toBeLessThan(1e-4);
    expect(cosine.least).toBeGreaterThan(0.999999);
  });

  test('loses less to a base of free gauge than to any other way, at the same memory', async () => {
    for (const share of [0.75, 0.5]) {
      const ranks = evenRanks(weights, share, true);
      const [free, identity] = [
        await fitted({ calibration, ranks }),
        await fitted({ calibration, ranks, gauge: 'identity' }),
      ];
      for (const [index, layer] of free.report.layers.entries()) {
        expect(layer.cacheRatio).toBeCloseTo(share, 12);
        for (const side of ['key', 'value'] as const) {
          const { baseError, noBaseError } = layer[side];
          const { baseError: identityError } = identity.report.layers[index][side];
          expect(layer[side].gauge).toBe('free');
          expect(baseError).toBeLessThan(0.7 * Math.min(Number(noBaseError), Number(identityError)));
        }
      }
    }
  });

  test('at 62.5 % of the cache: a budget before even ranks, these before no base, calibration before none', async () => {
    const ranks = evenRanks(weights, 0.625, true);
    const budget = await qualityOf({ calibration, budget: 0.625 });
    const free = await qualityOf({ calibration, ranks });
    const uncalibrated = await qualityOf({ ranks });
    const none = await qualityOf({ calibration, gauge: 'none', ranks: evenRanks(weights, 0.625, false) });
    const means = [budget, free, none].map(({ cosine }) => cosine.mean);
    expect(means).toEqual([...means].sort((a, b) => b - a));
    expect(free.cosine.mean).toBeGreaterThan(uncalibrated.cosine.mean + 0.02);
    expect(budget.cosine.mean).toBeGreaterThan(0.975);
    expect(free.cosine.mean).toBeGreaterThan(0.955);
    expect(none.cosine.mean).toBeLessThan(0.94);
    expect(budget.agreementAt10).toBeGreaterThan(0.7);
    expect(budget.agreementAt10).toBeLessThan(0.95);
    expect(free.layers[0].output).toBeLessThan(0.6 * uncalibrated.layers[0].output);
    for (const [index, { values }] of free.layers.entries())
      expect(values).toBeLessThan(0.7 * none.layers[index].values);
  });

  test('gives what base and latents give through lrkvAttention', async () => {
    const { layers } = await fitted({ calibration, budget: 0.5 });
    const batch = spread(split.evaluation.passages, (ids) => ids.length, 1024);
    const [expected, received] = [
      await encode(withConverted(weights, layers), batch),
      await encode(withLrkv(weights, layers), batch),
    ];
    expect(received.dims).toEqual([batch.length, 512]);
    expect(cosines(expected, received).least).toBeGreaterThan(0.999999);
    // And that is not what it was.
    expect(cosines(await encode(weights, batch), received).least).toBeLessThan(0.99);
  });
});

describe('layers of known structure', () => {
  let errors: Record<'plain' | 'rotated', GaugeErrors[]>;

  beforeAll(() => {
    const of = (rope: boolean) => sharedParts.map((shared) => compareGauges({ shared, rope, seed: 100 }));
    errors = { plain: of(false), rotated: of(true) };
  });

  test('without rotary embedding a free gauge wins however little is common, and gauge 1 hardly ever', () => {
    for (const { none, identity, fitted: free } of errors.plain) {
      expect(free).toBeLessThan(0.6 * Math.min(none, identity));
      // At 80 % it is at 0.87, as fits that converge make more of it.
      expect(identity).toBeGreaterThan(0.85 * none);
    }
  });

  test('with rotary embedding the base pays where much is common to the heads, and no base where nothing is', () => {
    const [nothing, little, half, most] = errors.rotated;
    expect(nothing.none).toBeLessThan(0.9 * nothing.fitted);
    expect(little.fitted).toBeLessThan(little.none);
    expect(half.fitted).toBeLessThan(0.4 * half.none);
    expect(most.fitted).toBeLessThan(0.2 * most.none);
    for (const { none, identity } of errors.rotated) expect(identity).toBeGreaterThan(0.85 * none);
  });

  test('keys without a base would err less if caches stored any rank, and bases do after more iterations', () => {
    for (const [index, shared] of sharedParts.entries()) {
      const { evenly, longer } = otherErrors(shared);
      expect(evenly).toBeLessThan(0.92 * errors.rotated[index].none);
      expect(longer).toBeLessThan(1.0001 * errors.rotated[index].fitted);
    }
  });

  test('residuals that rotate by themselves cost many times the error of keys that are rotated whole', () => {
    const [nothing, , , most] = sharedParts.map(intertwinedError);
    expect(nothing).toBeGreaterThan(4 * errors.rotated[0].none);
    expect(most).toBeGreaterThan(4 * errors.rotated[3].fitted);
    expect(most).toBeLessThan(0.4 * nothing);
  });

  test('errors of logits on rows not seen are those the fit foretells', () => {
    for (const { none, fitted: base, logits } of [...errors.plain, ...errors.rotated]) {
      expect(logits / Math.min(none, base)).toBeGreaterThan(0.95);
      expect(logits / Math.min(none, base)).toBeLessThan(1.05);
    }
  });
});

describe('measures of quality', () => {
  test('agreement counts the first and the share of the best', () => {
    expect(agreement([[1, 2, 3, 4]], [[1, 4, 5, 6]])).toEqual({ agreementAt1: 1, agreementAt10: 0.5 });
    expect(agreement([[1, 2], [3]], [[2, 1], [4]])).toEqual({ agreementAt1: 0, agreementAt10: 0.5 });
  });

  test('cosines are of rows, and their fifth percentile is low', () => {
    const rows = 40;
    const expected = matrix(
      Float32Array.from({ length: 2 * rows }, (_, i) => 1 - (i % 2)),
      rows,
      2,
    );
    const received = matrix(
      Float32Array.from({ length: 2 * rows }, (_, i) => (i % 2 === 0 ? i / 100 : 0.5)),
      rows,
      2,
    );
    const { mean, fifthPercentile, least } = cosines(expected, received);
    expect(mean).toBeCloseTo(0.39, 6);
    expect(fifthPercentile).toBeCloseTo(0.04, 6);
    expect(least).toBe(0);
  });

  test('rows of padding count for nothing', async () => {
    const [inputs] = await attentionInputs(weights, [[10, 11, 12], [20], []]);
    expect(inputs).toHaveLength(1);
    expect(inputs[0].x.dims).toEqual([9, 256]);
    const { dims, data } = validRows(inputs);
    expect(dims).toEqual([4, 256]);
    expect(data.slice(3 * 256)).toEqual(inputs[0].x.data.slice(3 * 256, 4 * 256));
  });
});
