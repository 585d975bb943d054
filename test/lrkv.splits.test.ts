import { guarded } from './data';
import { emptyCache, queryRows, rowsOf, settings, shape, sliced } from './lrkv-caches';
import { lrkvInputs, lrkvRows } from './lrkv-run';
import { expectLrkv } from './reference-lrkv';
import { once } from './rows';
import { compare } from './tolerance';

describe.each(settings)('%s', (_name, model) => {
  const inputs = once(() => lrkvInputs(shape, 71, model));
  const expected = once(() => {
    const { q, given, options } = inputs();
    return expectLrkv(q, given, { ...options, causal: true });
  });

  // Every split on one kernel row, those around pages and blocks of latents on all of them.
  const around = (split: number) => split % 32 === 0 || split % 32 === 31;
  test.each(lrkvRows)('prefill, then decode, split anywhere, equals one pass (%s)', (isa) => {
    for (let split = 0; split <= 300; split++) {
      if (!around(split) && split % lrkvRows.length !== lrkvRows.indexOf(isa)) continue;
      using cache = emptyCache(inputs());
      for (const [start, end] of [
        [0, split],
        [split, Math.min(split + 1, 300)],
        [Math.min(split + 1, 300), 300],
      ] as const) {
        cache.append(rowsOf(inputs().given, start, end));
        expect(cache.length).toBe(end);
        const out = guarded([1, 4, end - start, 40]);
        const { lse } = cache.attendWithLseSync(queryRows(inputs(), start, end), { isa, out: out.tensor });
        out.check();
        if (start === end) continue;
        compare(out.tensor, sliced(expected().output, start, end), `output ${start} to ${end}`);
        compare(lse, sliced(expected().lse, start, end), `lse ${start} to ${end}`);
      }
    }
  });
});
