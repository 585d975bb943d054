import type { Tensor } from '../lib/tensor';
import { from } from './data';
import { type Oracle, oracles, shifted } from './lrkv-oracles';
import { type LrkvInputs, lrkvInputs } from './lrkv-run';
import { type AttentionAnswer, referenceAttention } from './reference';
import { expectLrkv, type LrkvGiven, referenceLrkv } from './reference-lrkv';

// The reference by its algebra, and by figures of another language.

const answer = (call: Oracle['other']): AttentionAnswer =>
  'given' in call
    ? referenceLrkv(call.q, call.given, call.options)
    : referenceAttention(call.q, call.k, call.v, call.options);

/** Root mean square of the difference, relative to that of `b`. */
function difference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let [error, size] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    error += (a[i] - b[i]) ** 2;
    size += b[i] ** 2;
  }
  return Math.sqrt(error / size);
}

test.each(oracles.map((oracle) => [oracle.name, oracle] as const))('%s', (_name, { one, other, after }) => {
  const [found, wanted] = [answer(one), answer(other)];
  const output = after ? (after(from(wanted.output, wanted.dims)).data as Float32Array) : wanted.output;
  // Both are float64 throughout; only the data of one was rounded to float32 on its way to the other.
  expect(difference(found.output, output)).toBeLessThan(1e-6);
  expect(difference(found.lse, wanted.lse)).toBeLessThan(1e-6);
});

test.each(['exact', 'latent', 'none', 'intertwined'] as const)('%s sees distances only', (mode) => {
  const [here, there] = shifted(mode).map(answer);
  expect(difference(there.output, here.output)).toBeLessThan(1e-12);
});

test('paper sees positions: its formula is relative only where B intertwines', () => {
  const [here, there] = shifted('paper').map(answer);
  expect(difference(there.output, here.output)).toBeGreaterThan(0.1);
});

describe('the same in NumPy', () => {
  // Two heads of size 4, rank 2, six keys; the query stands at the last one. Figures by NumPy 2.4 in float64 from the
  // factored form, in which the absorbed query meets cached latents; the data are sines of their index.
  const sines = (dims: readonly number[], step: number, shift = 0): Tensor =>
    from(
      Float64Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, i) => Math.sin(step * i + shift)),
      dims,
    );
  /** [heads, keys, rank] as [1, keys, heads·rank]. */
  const besides = ({ data }: Tensor): Tensor =>
    from(
      Float64Array.from({ length: 24 }, (_, i) => data[(Math.floor(i / 2) % 2) * 12 + Math.floor(i / 4) * 2 + (i % 2)]),
      [1, 6, 4],
    );
  const q = sines([1, 2, 1, 4], 1.7, 6);
  const plain: LrkvGiven = {
    keyBase: sines([1, 6, 4], 0.7),
    keyLatent: besides(sines([2, 6, 2], 1.3, 1)),
    valueBase: sines([1, 6, 4], 0.9, 2),
    valueLatent: besides(sines([2, 6, 2], 1.1, 3)),
    keyUp: sines([4, 4], 0.8, 4),
    valueUp: sines([4, 4], 0.6, 5),
  };
  const rope = { frequencies: [1, 0.1] };
  const latentFrequencies = [0.5, 0.5];
  const figures: readonly (readonly [string, LrkvGiven, readonly number[]])[] = [
    [
      'without rope',
      plain,
      [
        0.13620069369586155, 0.10097269684282559, -0.015414696166381775, -0.10769836545822616, 0.3724068345346001,
        0.6760386014855516, 0.5068963288817183, -0.049329409942642205,
      ],
    ],
    [
      'exact',
      { ...plain, rope },
      [
        0.12009692144256628, -0.01922016760455522, -0.18698667280001618, -0.21282176845556738, 0.5836293328063695,
        0.6882274181280219, 0.2940633868543274, -0.3824870321854758,
      ],
    ],
    [
      'latent',
      { ...plain, rope, latentFrequencies, ropeMode: 'latent' },
      [
        0.11614216964346376, 0.2262727701431888, 0.16136340785864703, -0.04934989924347917, 0.628547848401331,
        0.3056289518226336, -0.3026544915569129, -0.8242682574339658,
      ],
    ],
    [
      'none',
      { ...plain, rope, ropeMode: 'none' },
      [
        0.10991916026930112, 0.014233259631921735, -0.14759593035524668, -0.21736652930305472, 0.5053463742092049,
        0.5618851137260621, 0.192852238112471, -0.3880373447138188,
      ],
    ],
    [
      'paper',
      { ...plain, rope, latentFrequencies, ropeMode: 'paper' },
      [
        0.1683489649697411, 0.24125819018920455, 0.043457613042199826, -0.1689240491654992, 0.2934934955940012,
        0.35164300277204036, 0.16634645717542113, -0.1486523302678338,
      ],
    ],
    [
      'latent with QK-norm',
      { ...plain, rope, latentFrequencies, ropeMode: 'latent', keyNorm: { epsilon: 1e-3 } },
      [
        0.13887528716883019, 0.2861992001229139, 0.2159642572909779, -0.03141842679308626, 0.6595518883530637,
        0.24428498058708611, -0.4145463302714669, -0.9075139526683483,
      ],
    ],
  ];

  test.each(figures)('%s', (_name, given, wanted) => {
    expect(difference(referenceLrkv(q, given).output, wanted)).toBeLessThan(1e-7);
  });
});

test('a gain before the rotation is one of base and factors', () => {
  for (const mode of ['latent', 'none'] as const) {
    const { q, given, options } = lrkvInputs({ heads: 2, queries: 3, keys: 9, headDim: 6, keyRank: 4 }, 21, {
      mode,
      norm: 'before-rotation',
    });
    const gain = Array.from(given.keyNorm?.gain ?? []);
    const times = ({ data, dims }: Tensor) =>
      from(
        Float64Array.from(data, (value, i) => value * gain[i % 6]),
        dims,
      );
    // Without a norm, whose scale would change with the gain: with epsilon so large, all scales are alike.
    const epsilon = 1e12;
    const gained = { ...given, keyNorm: { ...given.keyNorm, epsilon } };
    const by = { ...given, keyBase: times(given.keyBase), keyUp: times(given.keyUp), keyNorm: { epsilon } };
    const scale = 0.4 * Math.sqrt(epsilon);
    const [found, wanted] = [gained, by].map((each) => referenceLrkv(q, each, { ...options, scale }).output);
    expect(difference(found, wanted)).toBeLessThan(1e-6);
  }
});

test('16-bit storage costs what it rounds away, and only where it does', () => {
  const inputs: LrkvInputs = lrkvInputs({ heads: 2, queries: 3, keys: 30, headDim: 8 }, 22, {}, 'bfloat16');
  const errors = (mode: 'exact' | undefined) => {
    const { q, given, options } = {
      ...inputs,
      given: { ...inputs.given, ...(mode && { rope: { frequencies: [1, 0.1, 0.01, 0.001] } }) },
    };
    const { lse } = expectLrkv(q, given, options, 'bfloat16');
    return difference(lse.naive as Float32Array, lse.values);
  };
  expect(errors(undefined)).toBeLessThan(1e-6);
  expect(errors('exact')).toBeGreaterThan(1e-5);
  expect(errors('exact')).toBeLessThan(1e-2);
});
