import { pairwise } from './pairs';

test('every pair of values occurs, in far fewer rows than the product', () => {
  const factors = { a: [0, 1, 2, 3, 4], b: [0, 1, 2, 3], c: [0, 1, 2], d: [0, 1], e: [0, 1], f: [0, 1, 2] };
  const rows = pairwise(factors);
  expect(rows.length).toBeLessThan(40);
  const names = Object.keys(factors) as (keyof typeof factors)[];
  for (const x of names) {
    for (const y of names) {
      const together = new Set(rows.map((row) => `${row[x]} ${row[y]}`));
      expect(together.size).toBe(x === y ? factors[x].length : factors[x].length * factors[y].length);
    }
  }
});
