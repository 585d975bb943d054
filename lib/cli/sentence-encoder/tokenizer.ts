import type { Vocabulary } from './weights';

/** Stands for a space inside pieces. */
const separator = '\u2581';

/** Ids below this are not text: unknown, beginning and end of a sentence, and three unused ones. */
const reserved = 6;

/** The id of whatever the vocabulary cannot spell. */
const unknown = 0;

interface Piece {
  readonly id: number;
  /** Log probability. */
  readonly score: number;
}

/** All pieces, sharing their beginnings: one edge a character. */
class Node {
  readonly next = new Map<string, Node>();
  piece?: Piece;
}

/**
 * The unigram tokenizer of the model: of all ways to spell a text as pieces, the one of highest summed log probability,
 * found by dynamic programming over the ends of pieces (Viterbi).
 *
 * Three habits of the tokenizer the model is published with are kept, because ids have to be the same:
 * - some pieces (those with a colon) have no score in the vocabulary, which counts as 0, more than any other piece;
 * - a best score of exactly 0 reads as "nothing ends here yet", so the next piece to end there replaces it;
 * - a place where no piece ends counts as reached by an unknown character, at no cost.
 */
export class Tokenizer {
  private readonly root = new Node();

  constructor(vocabulary: Vocabulary) {
    for (const [id, [text, score]] of vocabulary.entries()) {
      if (id >= reserved) this.insert(text, { id, score: score ?? 0 });
    }
  }

  /** The ids of a text's pieces; a run of unknown characters is one id. */
  encode(text: string): number[] {
    const normal = text.normalize('NFKC');
    if (normal === '') return [];
    const characters = Array.from(separator + normal.replaceAll(' ', separator));

    // Over the end of a piece: the best score so far, and the last piece of the spelling that has it.
    const best = new Float64Array(characters.length + 1);
    const last = new Int32Array(characters.length + 1).fill(unknown);
    const length = new Int32Array(characters.length + 1).fill(1);
    const arrive = (start: number, end: number, piece: Piece) => {
      const score = piece.score + (best[start] as number);
      if (best[end] !== 0 && score < (best[end] as number)) return;
      best[end] = score;
      last[end] = piece.id;
      length[end] = end - start;
    };

    for (let start = 0; start < characters.length; start++) {
      let matched = false;
      let node = this.root.next.get(characters[start] as string);
      for (let end = start + 1; node !== undefined; end++) {
        if (node.piece !== undefined) {
          arrive(start, end, node.piece);
          matched = true;
        }
        node = node.next.get(characters[end] as string);
      }
      if (!matched) arrive(start, start + 1, { id: unknown, score: 0 });
    }

    const ids: number[] = [];
    for (let end = characters.length; end > 0; end -= length[end] as number) {
      const id = last[end] as number;
      if (id !== unknown || ids.at(-1) !== unknown) ids.push(id);
    }
    return ids.reverse();
  }

  private insert(text: string, piece: Piece): void {
    let node = this.root;
    for (const character of text) {
      let next = node.next.get(character);
      if (next === undefined) {
        next = new Node();
        node.next.set(character, next);
      }
      node = next;
    }
    node.piece = piece;
  }
}
