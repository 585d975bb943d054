import { writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';

import { runCompare, usualLengths } from '../../lib/cli/compare/compare';
import { methods } from '../../lib/cli/compare/methods';
import { comparePage } from '../../lib/cli/compare/page/page';
import { encoderInputs, factsOf } from '../../lib/cli/compare/sources';
import { runsTable } from '../../lib/cli/compare/text';
import { progressBar } from '../../lib/cli/progress';
import type { Paragraph } from './book';
import { bold, print, whole, wrapped } from './print';

/** Positions: enough that exact attention's square shows, few enough to be done in half a minute. */
const longest = 3072;

const rounds = 3;

/** The layer that attends to text as it is, not to what another layer made of it. */
const layer = 0;

/**
 * Runs every method of attention on the queries, keys and values that the encoder has for the longest chapter, prints
 * what each gives for what it costs, and writes the page with charts.
 */
export async function compareMethods(paragraphs: readonly Paragraph[], file: string, threads: number): Promise<void> {
  const { place, text } = longestChapter(paragraphs);
  const { notes, ...inputs } = await encoderInputs(text, { layer, n: longest, threads });
  const facts = factsOf(inputs, `layer ${layer} of the sentence encoder over ${place}`, notes);
  print();
  print(bold(`What other methods make of attention, on ${whole(facts.length)} pieces of ${place}`));
  for (const note of notes) print(wrapped(note, 2, 9));
  const { report, maps } = await runCompare(
    { inputs, facts, methods, lengths: usualLengths(facts.length), rounds, threads },
    progressBar(),
  );
  print();
  print(runsTable(report).replace(/^/gm, '  '));
  print('  speed: against exact attention; error: of the output, Frobenius norm; memory: beside inputs and output;');
  print('  *: best for its time. Linear maps and Linformer stand in for softmax only after training.');
  const page = resolve(file);
  await writeFile(page, await comparePage(report, maps));
  print();
  print(`  The page with charts: ${page}`);
}

function longestChapter(paragraphs: readonly Paragraph[]): { place: string; text: string } {
  const chapters = new Map<string, string>();
  for (const { place, text } of paragraphs) chapters.set(place, `${chapters.get(place) ?? ''} ${text}`);
  return [...chapters]
    .map(([place, text]) => ({ place, text }))
    .reduce((longest, chapter) => (chapter.text.length > longest.text.length ? chapter : longest));
}
