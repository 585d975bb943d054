import { SingleBar } from 'cli-progress';
import { Command, InvalidArgumentError } from 'commander';

import { devices, info } from '../../lib';
import { maxPieces, type Times } from '../../lib/cli/sentence-encoder/encoder';
import { Tokenizer } from '../../lib/cli/sentence-encoder/tokenizer';
import { type EncoderWeights, loadVocabulary, loadWeights, type Matrix } from '../../lib/cli/sentence-encoder/weights';
import { encodeAll } from './batches';
import { type Passage, readParagraphs, toPassages } from './book';
import { compare, tolerance } from './comparison';
import { askConverted, type Book } from './converted';
import { compareMethods } from './methods';
import { Peer } from './peer';
import { bold, plural, print, seconds, table, whole, wrapped } from './print';
import { questions } from './questions';
import { search } from './search';

/** Paragraphs that tfjs gets; it is too slow for the whole book. */
const sampleSize = 32;

interface Options {
  readonly query?: string[];
  readonly top: number;
  readonly limit?: number;
  readonly threads?: number;
  readonly peer: boolean;
  readonly methods: boolean;
  readonly lrkv: boolean;
  readonly page: string;
}

async function main(): Promise<void> {
  const options = parseArguments();
  const threads = Math.min(options.threads ?? info().threads, info().threads);

  const weights = await loadWeights();
  const tokenizer = new Tokenizer(await loadVocabulary());
  const paragraphs = readParagraphs().slice(0, options.limit);
  const passages = toPassages(paragraphs, tokenizer, maxPieces);
  print(
    `Model:  Universal Sentence Encoder lite, ${plural(weights.layers.length, 'layer')}, embeddings of ${weights.head.bias.length}`,
  );
  print(
    `Text:   Moby-Dick, ${plural(paragraphs.length, 'paragraph')} as ${plural(passages.length, 'passage')} of at most ${maxPieces} pieces`,
  );
  print(`Device: ${deviceUsed(threads)}`);

  const times: Times = { attention: 0, products: 0 };
  const start = performance.now();
  const embeddings = await embedWithProgress(weights, passages, threads, times);
  const total = performance.now() - start;

  const queries = options.query ?? questions;
  await answer(queries, options.top, { weights, tokenizer, passages, embeddings, threads });

  printTimes(passages, paragraphs.length, total, times);
  if (options.peer) await compareWithPeer(weights, passages, threads);
  if (options.methods) await compareMethods(paragraphs, options.page, threads);
  if (options.lrkv) await askConverted(queries, options.top, { weights, tokenizer, passages, embeddings, threads });
}

function parseArguments(): Options {
  return new Command('sentence-encoder')
    .description('Embeds Moby-Dick paragraph by paragraph, and finds the passages nearest in meaning to a query.')
    .option('-q, --query <text>', 'what to look for; may be given more than once (default: four questions)', collect)
    .option('-t, --top <n>', 'passages to show for a query', positive, 3)
    .option('-l, --limit <n>', 'embed the first n paragraphs only', positive)
    .option('--threads <n>', 'most threads to use (default: all cores)', positive)
    .option('--no-peer', 'do not compare with tfjs')
    .option('--no-methods', 'do not compare exact attention with other methods')
    .option('--no-lrkv', 'do not ask the model converted to LRKV as well')
    .option('--page <file>', 'where that comparison writes its page', 'compare.html')
    .helpOption('-h, --help', 'show this help')
    .allowExcessArguments(false)
    .parse()
    .opts<Options>();
}

function collect(text: string, before: string[] = []): string[] {
  if (text.trim() === '') throw new InvalidArgumentError('Expected some text.');
  return [...before, text];
}

function positive(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1)
    throw new InvalidArgumentError('Expected a whole number of at least 1.');
  return value;
}

/** What `device: 'auto'`, which is the default, comes to on this machine. */
function deviceUsed(threads: number): string {
  const gpus = devices().filter((device) => device.name !== 'cpu');
  const gpu = gpus.find((device) => device.available);
  if (gpu !== undefined) return `${gpu.name}${gpu.description === undefined ? '' : `, ${gpu.description}`}`;
  const isa = info().kernels.find((row) => row.op === 'full' && row.device === 'cpu' && row.supported)?.isa;
  const reason = gpus[0]?.reason;
  return `CPU, ${info().cpu.name}, ${isa}, ${plural(threads, 'thread')}${reason === undefined ? '' : ` (no GPU: ${reason})`}`;
}

/** [passages, 512] */
async function embedWithProgress(
  weights: EncoderWeights,
  passages: readonly Passage[],
  threads: number,
  times: Times,
): Promise<Matrix> {
  const bar = new SingleBar({
    format: 'Embedding {bar} {percentage} % of the text, {done} passages, {eta_formatted} left',
    barCompleteChar: '█',
    barIncompleteChar: '░',
    barsize: 24,
    etaBuffer: 50,
    clearOnComplete: true,
  });
  // The bar counts pieces, for passages differ too much in length to tell the time left from their number.
  bar.start(piecesOf(passages), 0, { done: 0 });
  // Without this the terminal would be left as the bar needs it.
  const interrupted = () => {
    bar.stop();
    process.exit(130);
  };
  process.once('SIGINT', interrupted);
  try {
    let done = 0;
    return await encodeAll(
      weights,
      passages.map((passage) => passage.ids),
      { threads, times },
      (batch) => {
        done += batch.length;
        bar.increment(piecesOf(batch.map((index) => passages[index])), { done });
      },
    );
  } finally {
    process.removeListener('SIGINT', interrupted);
    bar.stop();
  }
}

function piecesOf(passages: readonly Passage[]): number {
  return passages.reduce((sum, passage) => sum + passage.ids.length, 0);
}

async function answer(queries: readonly string[], top: number, book: Book): Promise<void> {
  const { weights, tokenizer, passages, embeddings, threads } = book;
  const asked = await encodeAll(
    weights,
    queries.map((query) => tokenizer.encode(query)),
    { threads },
  );
  const answers = await search(asked, embeddings, top);
  for (const [index, query] of queries.entries()) {
    print();
    print(bold(`“${query}”`));
    for (const { index: row, score } of answers[index]) {
      const passage = passages[row];
      print();
      print(`  ${bold(score.toFixed(3))}  ${passage.paragraph.place}`);
      print(wrapped(passage.text, 9, 4));
    }
  }
}

function printTimes(passages: readonly Passage[], paragraphs: number, total: number, times: Times): void {
  const share = (part: number) => [seconds(part), `${((100 * part) / total).toFixed(1)} %`];
  const rate = paragraphs / (total / 1000);
  print();
  print(
    bold(
      `Embedded ${whole(piecesOf(passages))} pieces in ${seconds(total)}, ${rate.toFixed(rate < 10 ? 1 : 0)} paragraphs a second`,
    ),
  );
  print(
    table([
      ['attention', ...share(times.attention)],
      ['matrix products', ...share(times.products)],
      ['all else, in TypeScript', ...share(total - times.attention - times.products)],
    ]),
  );
}

async function compareWithPeer(weights: EncoderWeights, passages: readonly Passage[], threads: number): Promise<void> {
  const peer = await Peer.load();
  const step = Math.max(1, passages.length / sampleSize);
  const sample = Array.from(
    { length: Math.min(sampleSize, passages.length) },
    (_, i) => passages[Math.floor(i * step)],
  );
  const sentences = sample.map((passage) => passage.ids);
  const { contenders, difference, pieces } = await compare(weights, peer, sentences, threads);
  const slowest = contenders[0].rate;
  print();
  print(
    bold(
      `The same model in tfjs, on ${plural(sentences.length, 'passage')} (${plural(pieces, 'piece')}) from all over the text`,
    ),
  );
  print(
    table(
      contenders.map(({ name, rate }) => [name, `${rate.toFixed(1)} passages/s`, `${(rate / slowest).toFixed(1)} ×`]),
    ),
  );
  const agrees = difference <= tolerance;
  print(
    `  largest difference of the embeddings: ${difference.toExponential(1)} (${agrees ? 'at most' : 'MORE THAN'} ${tolerance})`,
  );
  if (!agrees) process.exitCode = 1;
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // The reader, `head` for example, has seen enough.
  process.exit(error.code === 'EPIPE' ? 0 : 1);
});

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
