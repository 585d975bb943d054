/** Where labels go: beside their points, and on top of nothing. */
import { type Markup, tag } from './markup';

interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

export interface Label {
  readonly x: number;
  readonly y: number;
  readonly text: string;
  readonly class: string;
}

/** Of a digit or letter in the labels' size, in pixels; the height is that of a line. */
const letter = { width: 6.1, height: 11 };

/** Between a point and its label. */
const gap = 7;

const overlap = (a: Box, b: Box): boolean =>
  a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

/**
 * Puts each label at the first free place around its point: right, above, below, left, and the corners. One that finds
 * none is left out: the tooltip and the table have it.
 *
 * @param points centres that no label may cover
 * @param within the box that all must lie in
 */
export function placed(labels: readonly Label[], points: readonly { x: number; y: number }[], within: Box): Markup[] {
  const taken: Box[] = points.map(({ x, y }) => ({ x: x - 4, y: y - 4, width: 8, height: 8 }));
  const result: Markup[] = [];
  for (const { x, y, text, class: name } of labels) {
    const width = text.length * letter.width;
    const { height } = letter;
    const [right, left, center] = [x + gap, x - gap - width, x - width / 2];
    const [above, below, middle] = [y - gap - height, y + gap, y - height / 2];
    const box = [
      { x: right, y: middle },
      { x: center, y: above },
      { x: center, y: below },
      { x: left, y: middle },
      { x: right, y: above },
      { x: right, y: below },
      { x: left, y: above },
      { x: left, y: below },
    ]
      .map((corner) => ({ ...corner, width, height }))
      .find(
        (candidate) =>
          candidate.x >= within.x &&
          candidate.x + width <= within.x + within.width &&
          candidate.y >= within.y &&
          candidate.y + height <= within.y + within.height &&
          taken.every((other) => !overlap(candidate, other)),
      );
    if (box === undefined) continue;
    taken.push({ ...box, x: box.x - 2, width: width + 4 });
    result.push(tag('text', { class: name, x: box.x, y: box.y + height - 2 }, text));
  }
  return result;
}
