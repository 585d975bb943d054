import { fitLrkv } from '../../lib';
import { maxPieces } from '../../lib/cli/sentence-encoder/encoder';
import type { Tokenizer } from '../../lib/cli/sentence-encoder/tokenizer';
import type { EncoderWeights, Matrix } from '../../lib/cli/sentence-encoder/weights';
import { attentionWeights, hiddenStates, withLrkv } from '../lrkv-conversion/encoder';
import { agreement, cosines } from '../lrkv-conversion/quality';
import { spread } from '../lrkv-conversion/split';
import { encodeAll } from './batches';
import type { Passage } from './book';
import { bold, print, seconds, whole, wrapped } from './print';
import { search } from './search';

export interface Book {
  readonly weights: EncoderWeights;
  readonly tokenizer: Tokenizer;
  readonly passages: readonly Passage[];
  /** Of the passages: [passages, 512]. */
  readonly embeddings: Matrix;
  readonly threads: number;
}

/** Of the cache that exact attention has. */
const share = 0.625;

/** Pieces to calibrate on: some for each of the 512 directions that an input has. */
const calibrationPieces = 8192;

/** The others that there would be by default better no figure that is shown. */
const iterations = 10;

/** The best so many passages are compared. */
const compared = 10;

/**
 * Converts the model to LRKV, nothing trained, embeds the text with it by `lrkvAttention`, and prints what it answers beside
 * what the original does.
 */
export async function askConverted(queries: readonly string[], top: number, book: Book): Promise<void> {
  const { weights, tokenizer, passages, embeddings, threads } = book;
  const piecesOf = ({ ids }: Passage) => Math.min(ids.length, maxPieces);
  const sample = spread(passages, piecesOf, calibrationPieces).map(({ ids }) => ids);
  const start = performance.now();
  const calibration = await hiddenStates(weights, sample, { threads });
  const { layers, report } = await fitLrkv(weights.layers.map(attentionWeights), {
    budget: share,
    iterations,
    calibration,
    threads,
  });
  const fitted = performance.now();
  const converted = withLrkv(weights, layers);
  const sentences = passages.map(({ ids }) => ids);
  const received = await encodeAll(converted, sentences, { threads });
  const end = performance.now();

  const asked = queries.map((query) => tokenizer.encode(query));
  const wanted = await search(await encodeAll(weights, asked, { threads }), embeddings, Math.max(top, compared));
  const found = await search(await encodeAll(converted, asked, { threads }), received, Math.max(top, compared));
  const { mean, least } = cosines(embeddings, received);

  print();
  print(bold('The same model converted to LRKV, nothing trained'));
  const pieces = whole(calibration[0].dims[0]);
  print(`  cache: ${percent(report.cacheRatio)} of the original's; calibrated on ${pieces} pieces of the text`);
  print(`  fitted in ${seconds(fitted - start)}, text embedded by lrkvAttention in ${seconds(end - fitted)}`);
  print(
    `  cosine of the passages' embeddings to the original ones: ${mean.toFixed(3)} on average, at least ${least.toFixed(3)}`,
  );
  for (const [index, query] of queries.entries()) {
    const best = (hits: (typeof wanted)[number]) => hits.slice(0, compared).map((hit) => hit.index);
    const { agreementAt10 } = agreement([best(wanted[index])], [best(found[index])]);
    print();
    print(
      `${wrapped(`“${query}”`, 2, 1)}: ${percent(agreementAt10)} of the best ${best(wanted[index]).length} are the same`,
    );
    const cell = ({ index: row, score }: (typeof wanted)[number][number]) =>
      `${score.toFixed(3)}  ${passages[row].paragraph.place}`;
    const rows = wanted[index].slice(0, top).map((hit, rank) => [cell(hit), cell(found[index][rank])]);
    print(sideBySide([['original', 'converted'], ...rows]));
  }
}

/** Two columns of text. */
function sideBySide(rows: readonly (readonly string[])[]): string {
  const width = Math.max(...rows.map(([left]) => left.length));
  return rows.map(([left, right]) => `    ${left.padEnd(width)}   ${right}`).join('\n');
}

function percent(part: number): string {
  return `${(100 * part).toFixed(1)} %`;
}
