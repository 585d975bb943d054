// The book in two parts: chapters that conversion looks at, and all others, on which it is judged.
import { maxPieces } from '../../lib/cli/sentence-encoder/encoder';
import type { Tokenizer } from '../../lib/cli/sentence-encoder/tokenizer';
import { type Paragraph, type Passage, sentencesOf, toPassages } from '../sentence-encoder/book';
import type { Evaluation } from './quality';

export interface Split {
  /** Ids of pieces of passages of the first chapters. */
  readonly calibration: readonly (readonly number[])[];
  /** Of the others. */
  readonly evaluation: Evaluation;
}

export interface SplitSizes {
  /** Chapters to calibrate on, from the first on. */
  readonly chapters: number;
  /** About so many pieces of them. */
  readonly pieces: number;
  /** Sentences of the other chapters that are looked for, beside the questions. */
  readonly sentences: number;
  /** About so many pieces of the other chapters are searched. Default: all. */
  readonly searched?: number;
}

/** @param questions that are looked for as well */
export function splitBook(
  paragraphs: readonly Paragraph[],
  tokenizer: Tokenizer,
  questions: readonly string[],
  { chapters, pieces, sentences, searched = Number.POSITIVE_INFINITY }: SplitSizes,
): Split {
  const passages = toPassages(paragraphs, tokenizer, maxPieces);
  const isCalibration = ({ paragraph }: Passage) => {
    const number = /^Chapter (\d+),/.exec(paragraph.place)?.[1];
    return number !== undefined && Number(number) <= chapters;
  };
  const length = ({ ids }: Passage) => ids.length;
  const others = spread(
    passages.filter((passage) => !isCalibration(passage)),
    length,
    searched,
  );
  // A passage that is one sentence would be asked for by itself.
  const candidates = others.flatMap(({ text }, own) => {
    const parts = sentencesOf(text);
    return parts.length === 1 ? [] : parts.map((part) => ({ ids: tokenizer.encode(part.trim()), own }));
  });
  const step = Math.max(1, Math.floor(candidates.length / sentences));
  const chosen = candidates.filter((_, index) => index % step === 0).slice(0, sentences);
  return {
    calibration: spread(passages.filter(isCalibration), length, pieces).map(({ ids }) => ids),
    evaluation: {
      passages: others.map(({ ids }) => ids),
      queries: [...questions.map((text) => tokenizer.encode(text)), ...chosen.map(({ ids }) => ids)],
      own: [...questions.map(() => -1), ...chosen.map(({ own }) => own)],
    },
  };
}

/** Some of a list, from all over it, of at most about so many pieces together. */
export function spread<Item>(list: readonly Item[], length: (item: Item) => number, pieces: number): readonly Item[] {
  const all = list.reduce((sum, item) => sum + length(item), 0);
  const step = Math.max(1, Math.ceil(all / pieces));
  return list.filter((_, index) => index % step === 0);
}
