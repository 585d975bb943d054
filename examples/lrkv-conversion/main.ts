import { Command, InvalidArgumentError } from 'commander';

import { type FitOptions, fitLrkv, info, type LrkvReport } from '../../lib';
import { Tokenizer } from '../../lib/cli/sentence-encoder/tokenizer';
import { loadVocabulary, loadWeights } from '../../lib/cli/sentence-encoder/weights';
import { readParagraphs } from '../sentence-encoder/book';
import { bold, plural, print, table, whole } from '../sentence-encoder/print';
import { questions } from '../sentence-encoder/questions';
import { attentionWeights, hiddenStates, withConverted } from './encoder';
import { Evaluator, type Quality } from './quality';
import { splitBook } from './split';
import { compareGauges, intertwinedError, type OtherErrors, otherErrors, sharedParts } from './structured-table';
import { evenRanks, sensitivities } from './ways';

/** Shares of the cache that exact attention has. The last is that of one head for all four. */
const shares = [0.75, 0.625, 0.5, 0.375, 0.25];

const calibrationChapters = 40;
const sentencesAsked = 400;

interface Options {
  readonly calibration: number;
  readonly searched: number;
  readonly threads?: number;
}

async function main(): Promise<void> {
  const { calibration: pieces, searched, threads = info().threads } = parseArguments();
  const options = { threads };
  const weights = await loadWeights();
  const tokenizer = new Tokenizer(await loadVocabulary());
  const split = splitBook(readParagraphs(), tokenizer, questions, {
    ...{ chapters: calibrationChapters, pieces, sentences: sentencesAsked, searched },
  });
  const calibration = await hiddenStates(weights, split.calibration, options);
  print('Model:      Universal Sentence Encoder lite, keys and values of both layers as LRKV, nothing trained');
  print(
    `Calibrated: on ${plural(calibration[0].dims[0], 'piece')} of chapters 1 to ${calibrationChapters} of Moby-Dick`,
  );
  const { passages, queries } = split.evaluation;
  print(`Judged:     on ${plural(passages.length, 'passage')} of the others, ${whole(queries.length)} queries`);

  const probed = await sensitivities(weights, calibration, split.calibration.slice(0, 100), options);
  const evaluator = await Evaluator.of(weights, split.evaluation, options);
  const errors: string[][] = [];
  for (const share of shares) {
    const withBase = evenRanks(weights, share, true);
    const ways: readonly (readonly [name: string, fit: FitOptions])[] = [
      ['no base', { calibration, gauge: 'none', ranks: evenRanks(weights, share, false) }],
      ['gauge 1, as in the paper', { calibration, gauge: 'identity', ranks: withBase }],
      ['free gauge', { calibration, ranks: withBase }],
      ['free gauge, not calibrated', { ranks: withBase }],
      ['ranks by budget', { calibration, budget: share }],
      ['ranks by budget and probes', { calibration, budget: share, sensitivity: probed }],
    ];
    const rows: string[][] = [];
    const reports: LrkvReport[] = [];
    for (const [name, fit] of ways) {
      const { layers, report } = await fitLrkv(weights.layers.map(attentionWeights), { ...fit, threads });
      rows.push([name + fellBack(report, fit), ...cells(await evaluator.quality(withConverted(weights, layers)))]);
      reports.push(report);
    }
    printQuality(share, rows);
    errors.push([percent(share), ...fittedErrors(reports[1], reports[2])]);
  }
  print('  keys, values: relative error in layer 0 and 1; output: of what attention adds to the residual;');
  print(
    '  cosine: of embeddings to the original ones; same best: of what a search finds; *: no base was better somewhere',
  );

  print();
  print(bold('Error in the fitted norm, on the calibration rows, at the same memory: no base, gauge 1, free gauge'));
  const three = (name: string) => [`${name}: none`, 'gauge 1', 'free'];
  print(table([['cache', ...['keys 0', 'values 0', 'keys 1', 'values 1'].flatMap(three)], ...errors]));

  print();
  print(bold('Keys of random structured layers, 8 heads of 32, rank 8: error in the fitted norm, at the same memory'));
  print(
    table([
      [
        'common to heads',
        'no base',
        'gauge 1',
        'fitted gauge',
        'logits',
        'with RoPE: no base',
        'gauge 1',
        'a pair',
        'logits',
        'intertwined',
      ],
      ...sharedParts.map((shared) => [
        percent(shared),
        ...[false, true].flatMap((rope) => {
          const { none, identity, fitted, logits } = compareGauges({ shared, rope, seed: 100 });
          return [none, identity, fitted, logits].map(percent);
        }),
        percent(intertwinedError(shared)),
      ]),
    ]),
  );
  print('  logits: of what fitLrkv keeps, on rows that it has not seen; intertwined: residuals rotate by themselves');
  const others = sharedParts.map(otherErrors);
  const all = (of: (other: OtherErrors) => number) => others.map((other) => percent(of(other))).join(', ');
  print(`  with RoPE, no base, rank 12 for every head: ${all(({ evenly }) => evenly)}`);
  print(`  with RoPE, a pair, 400 iterations: ${all(({ longer }) => longer)}`);
}

function printQuality(share: number, rows: readonly (readonly string[])[]): void {
  const header = ['way', 'keys', 'values', 'output', 'cosine', '5th percentile', 'least', 'same best', 'of best ten'];
  print();
  print(bold(`At ${percent(share)} of the cache, on chapters that were not looked at`));
  print(table([header, ...rows]));
}

/** Of each layer's keys and values: with no base, with one of gauge 1, with one of free gauge. */
function fittedErrors(identity: LrkvReport, free: LrkvReport): string[] {
  return free.layers.flatMap((layer, index) =>
    (['key', 'value'] as const).flatMap((side) =>
      [layer[side].noBaseError, identity.layers[index][side].baseError, layer[side].baseError].map((error) =>
        percent(error ?? Number.NaN),
      ),
    ),
  );
}

function parseArguments(): Options {
  return new Command('lrkv-conversion')
    .description('Converts the sentence encoder to LRKV in several ways, and tells how much of it is left.')
    .option('--calibration <n>', 'about so many pieces of text to calibrate on', positive, 32_768)
    .option('--searched <n>', 'about so many pieces of text to judge by', positive, 24_576)
    .option('--threads <n>', 'most threads to use (default: all cores)', positive)
    .helpOption('-h, --help', 'show this help')
    .allowExcessArguments(false)
    .parse()
    .opts<Options>();
}

function positive(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1)
    throw new InvalidArgumentError('Expected a whole number of at least 1.');
  return value;
}

/** Marks a fit that was to have a base and has none somewhere. */
function fellBack({ layers }: LrkvReport, { gauge }: FitOptions): string {
  if (gauge === 'none') return '';
  return layers.some(({ key, value }) => key.gauge === 'none' || value.gauge === 'none') ? ' *' : '';
}

function cells({ layers, cosine, agreementAt1, agreementAt10 }: Quality): string[] {
  const both = (of: 'keys' | 'values' | 'output') => layers.map((layer) => percent(layer[of])).join(' / ');
  const { mean, fifthPercentile, least } = cosine;
  return [
    ...[both('keys'), both('values'), both('output')],
    ...[mean, fifthPercentile, least].map((value) => value.toFixed(4)),
    ...[agreementAt1, agreementAt10].map(percent),
  ];
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
