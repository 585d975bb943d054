import type { Tensor } from '../lib';
import { from, guarded } from './data';
import { emptyCache, queryRows, rowsOf, settings, shape } from './lrkv-caches';
import { lrkvInputs, lrkvRows } from './lrkv-run';
import { expectLrkv } from './reference-lrkv';
import { once } from './rows';
import { compare } from './tolerance';

/** A page and more than half of another. */
const length = 200;

/** Parts `[1, heads, rows, …]` of one sequence as a whole. */
function joined(parts: readonly Tensor[], dims: readonly number[]): Tensor {
  const [, heads = 1] = dims;
  const values: number[] = [];
  for (let head = 0; head < heads; head++) {
    for (const { data } of parts) {
      const size = data.length / heads;
      for (let i = head * size; i < (head + 1) * size; i++) values.push(data[i] as number);
    }
  }
  return from(values, dims);
}

describe.each(settings)('%s', (_name, model) => {
  const inputs = once(() => lrkvInputs({ ...shape, queries: length, keys: length }, 71, model));
  const expected = once(() => {
    const { q, given, options } = inputs();
    return expectLrkv(q, given, { ...options, causal: true });
  });

  // Every split on one kernel row, those around pages and blocks of latents on all of them.
  const around = (split: number) => split % 32 === 0 || split % 32 === 31;
  test.each(lrkvRows)('prefill, then decode, split anywhere, equals one pass (%s)', (isa) => {
    for (let split = 0; split <= length; split++) {
      if (!around(split) && split % lrkvRows.length !== lrkvRows.indexOf(isa)) continue;
      using cache = emptyCache(inputs());
      const [outputs, lses]: Tensor[][] = [[], []];
      for (const [start, end] of [
        [0, split],
        [split, Math.min(split + 1, length)],
        [Math.min(split + 1, length), length],
      ] as const) {
        cache.append(rowsOf(inputs().given, start, end));
        expect(cache.length).toBe(end);
        const out = guarded([1, 4, end - start, 40]);
        const { lse } = cache.attendWithLseSync(queryRows(inputs(), start, end), { isa, out: out.tensor });
        out.check();
        outputs.push(out.tensor);
        lses.push(lse);
      }
      const { output, lse } = expected();
      compare(joined(outputs, output.dims), output, `output, split at ${split}`);
      compare(joined(lses, lse.dims), lse, `lse, split at ${split}`);
    }
  });
});
