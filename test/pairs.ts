import { uniform } from './data';

/**
 * Rows of a covering array: every pair of values of any two factors occurs together in at least one row. Bugs that need
 * two options at once are found with a few dozen cases where the full product would be millions.
 *
 * Greedy: row by row, the best of some seeded random candidates, each built around a pair that is still missing.
 */
export function pairwise<Factors extends Record<string, readonly unknown[]>>(
  factors: Factors,
  seed = 1,
): { [Name in keyof Factors]: Factors[Name][number] }[] {
  const names = Object.keys(factors);
  const next = uniform(seed);
  const pick = (count: number) => Math.min(Math.floor(next() * count), count - 1);
  const missing = new Set(
    pairsOf(names.length, (x, y, add) => {
      for (const i of factors[names[x]].keys()) for (const j of factors[names[y]].keys()) add(key(x, i, y, j));
    }),
  );

  const rows: number[][] = [];
  while (missing.size > 0) {
    const [x, i, y, j] = ([...missing][pick(missing.size)] as string).split(' ').map(Number);
    let best: number[] = [];
    let gain = -1;
    for (let attempt = 0; attempt < 200; attempt++) {
      const row = names.map((name, factor) => (factor === x ? i : factor === y ? j : pick(factors[name].length)));
      const gained = coveredBy(row).filter((pair) => missing.has(pair)).length;
      if (gained > gain) [best, gain] = [row, gained];
    }
    for (const pair of coveredBy(best)) missing.delete(pair);
    rows.push(best);
  }
  return rows.map(
    (row) =>
      Object.fromEntries(names.map((name, factor) => [name, factors[name][row[factor]]])) as {
        [Name in keyof Factors]: Factors[Name][number];
      },
  );
}

const key = (...parts: number[]) => parts.join(' ');

const coveredBy = (row: number[]) => pairsOf(row.length, (x, y, add) => add(key(x, row[x], y, row[y])));

function pairsOf(count: number, each: (x: number, y: number, add: (pair: string) => void) => void): string[] {
  const pairs: string[] = [];
  for (let x = 0; x < count; x++) for (let y = x + 1; y < count; y++) each(x, y, (pair) => pairs.push(pair));
  return pairs;
}
