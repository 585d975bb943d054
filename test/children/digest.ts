import { createHash } from 'node:crypto';

import { info, type Tensor } from '../../lib';
import { bitsOf } from '../full-run';
import { mixedCalls } from '../mixed-calls';

// A sanitizer makes everything ten times slower.
const rounds = info().build.sanitizers === '' ? 3 : 1;

function digest(results: readonly (readonly Tensor[])[]): string {
  const hash = createHash('sha256');
  for (const tensor of results.flat()) hash.update(bitsOf(tensor));
  return hash.digest('hex');
}

/** The bits of all mixed calls, one after the other. */
export const digestSync = (): string => digest(mixedCalls().map(({ sync }) => sync()));

/** The same from asynchronous calls, all at once, over and over. */
export async function digestAsync(): Promise<string> {
  const found = new Set<string>();
  for (let round = 0; round < rounds; round++) {
    const running = mixedCalls().map(({ async }, i) => async({ threads: 1 + ((i + round) % 3) }));
    found.add(digest(await Promise.all(running)));
  }
  return [...found].join(' and ');
}
