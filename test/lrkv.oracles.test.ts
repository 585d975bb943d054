import { attentionWithLseSync, lrkvAttentionSync, lrkvAttentionWithLseSync } from '../lib';
import { guarded } from './data';
import { type Oracle, oracles, shifted } from './lrkv-oracles';
import { lrkvRows } from './lrkv-run';
import { expectLrkv } from './reference-lrkv';
import { isaRows, once } from './rows';
import { compare } from './tolerance';

// What LRKV must equal by algebra, through the public API on both sides: the call and what it equals are held against
// one float64 answer, with one budget.

test('every kernel row has exact attention to be compared with', () => {
  expect(isaRows('full')).toEqual(expect.arrayContaining(lrkvRows));
});

function run({ q, ...call }: Oracle['other'], isa: string) {
  if ('given' in call) return lrkvAttentionWithLseSync(q, call.given, { ...call.options, isa });
  return attentionWithLseSync(q, call.k, call.v, { ...call.options, isa });
}

describe.each(oracles.map((oracle) => [oracle.name, oracle] as const))('%s', (_name, { one, other, after }) => {
  const expected = once(() => expectLrkv(one.q, one.given, one.options));

  test.each(lrkvRows)('%s', (isa) => {
    const [found, wanted] = [run(one, isa), run(other, isa)];
    compare(found.output, expected().output, 'output');
    compare(found.lse, expected().lse, 'lse');
    compare(after ? after(wanted.output) : wanted.output, expected().output, 'output of what it equals');
    compare(wanted.lse, expected().lse, 'lse of what it equals');
  });
});

describe.each(lrkvRows)('positions, %s', (isa) => {
  test.each(['exact', 'latent', 'none', 'intertwined'] as const)('%s sees distances only', (mode) => {
    const [here, there] = shifted(mode);
    const expected = expectLrkv(here.q, here.given, here.options);
    for (const { q, given, options } of [here, there]) {
      const out = guarded(expected.output.dims);
      compare(lrkvAttentionSync(q, given, { ...options, isa, out: out.tensor }), expected.output, 'output');
      out.check();
    }
  });

  test('paper sees positions: its formula is relative only where B intertwines', () => {
    const [here, there] = shifted('paper');
    const [a, b] = [here, there].map(({ q, given, options }) => lrkvAttentionSync(q, given, { ...options, isa }));
    const expected = expectLrkv(there.q, there.given, there.options);
    compare(b, expected.output, 'output');
    expect(() => compare(a, expected.output)).toThrow('out of tolerance');
    const size = (of: (i: number) => number) => Math.hypot(...Array.from({ length: a.data.length }, (_, i) => of(i)));
    expect(size((i) => b.data[i] - a.data[i])).toBeGreaterThan(0.1 * size((i) => a.data[i]));
  });
});
