import { type Spectrum, spectralMetrics, spectrum, spectrumSync, type Tensor } from '../lib';
import { hurtful, normal, uniform } from './data';
import { attentionMatrices, jacobiSingularValues, referenceSvd, sumOfSquares } from './reference-lowrank';
import { faultOf } from './refusal';
import { isaRows } from './rows';

const pairOf = (heads: number, queries: number, keys: number, headDim: number, seed: number) => ({
  q: normal([1, heads, queries, headDim], seed),
  k: normal([1, heads, keys, headDim], seed + 1),
});

describe('exact: all singular values', () => {
  const cases = [
    { name: 'square', inputs: pairOf(2, 60, 60, 16, 1), options: {} },
    { name: 'square, causal', inputs: pairOf(2, 60, 60, 16, 2), options: { causal: true } },
    { name: 'wide', inputs: pairOf(1, 31, 77, 16, 3), options: {} },
    { name: 'tall', inputs: pairOf(1, 77, 31, 16, 4), options: { scale: 1.5 } },
    { name: 'tall, causal', inputs: pairOf(1, 50, 31, 16, 5), options: { causal: true } },
    { name: 'huge logit', inputs: hurtful['one huge logit']({ queries: 40, keys: 50, headDim: 8 }, 6), options: {} },
    { name: 'all equal', inputs: hurtful['all equal']({ queries: 40, keys: 50, headDim: 8 }, 7), options: {} },
    { name: 'one by one', inputs: pairOf(1, 1, 1, 4, 8), options: {} },
  ];
  test.each(cases)('$name', ({ inputs: { q, k }, options }) => {
    const wanted = attentionMatrices(q, k, options);
    for (const isa of isaRows('lowrank')) {
      const [found] = spectrumSync(q, k, { ...options, isa });
      expect(found).toHaveLength(wanted.length);
      for (const [head, { values, energy, exact }] of found.entries()) {
        const truth = jacobiSingularValues(wanted[head]);
        const most = Math.min(q.dims[2], k.dims[2]);
        expect([exact, values.length]).toEqual([true, most]);
        for (const [i, value] of values.entries()) expect(Math.abs(value - truth[i])).toBeLessThan(2e-5 * truth[0]);
        expect(Math.abs(energy - sumOfSquares(wanted[head].data))).toBeLessThan(2e-5 * energy);
        expect(energy).toBeCloseTo(sumOfSquares(values), 12);
      }
    }
  });

  test('count cuts the values, not the energy', () => {
    const { q, k } = pairOf(1, 40, 40, 8, 9);
    const [[all]] = spectrumSync(q, k) as [[Spectrum]];
    const [[some]] = spectrumSync(q, k, { count: 5 }) as [[Spectrum]];
    expect(some.values).toEqual(all.values.slice(0, 5));
    expect([some.energy, some.exact]).toEqual([all.energy, true]);
  });

  test('long ones if asked for', () => {
    const { q, k } = pairOf(1, 530, 20, 8, 10);
    const [[rough]] = spectrumSync(q, k) as [[Spectrum]];
    const [[exact]] = spectrumSync(q, k, { exact: true }) as [[Spectrum]];
    expect([rough.exact, exact.exact]).toEqual([false, true]);
    const truth = referenceSvd(attentionMatrices(q, k)[0]).values;
    for (const [i, value] of exact.values.entries()) expect(value).toBeCloseTo(truth[i], 5);
  });
});

describe.each([false, true])('the leading values of long ones, causal: %s', (causal) => {
  test.each([300, 700])('n = %d', (n) => {
    const { q, k } = pairOf(2, n, n, 24, n);
    const found = spectrumSync(q, k, { causal, exact: false, count: 20 })[0] as Spectrum[];
    const better = spectrumSync(q, k, { causal, exact: false, count: 20, powerIterations: 10 })[0] as Spectrum[];
    for (const [head, matrix] of attentionMatrices(q, k, { causal }).entries()) {
      const truth = referenceSvd(matrix).values;
      const energy = sumOfSquares(matrix.data);
      expect(found[head].values).toHaveLength(20);
      expect(Math.abs(found[head].energy - energy)).toBeLessThan(1e-5 * energy);
      for (const [i, value] of found[head].values.entries()) {
        expect(value).toBeLessThan(truth[i] * (1 + 1e-6));
        expect(value).toBeGreaterThan(truth[i] * (i < 10 ? 0.97 : 0.9));
        expect(better[head].values[i]).toBeGreaterThan(truth[i] * 0.995);
      }
      // What is missing is known to be missing.
      const { retainedEnergy, stableRank } = spectralMetrics(found[head]);
      expect(Math.abs(retainedEnergy - sumOfSquares(truth.subarray(0, 20)) / energy)).toBeLessThan(0.02);
      expect(Math.abs(stableRank / (energy / truth[0] ** 2) - 1)).toBeLessThan(0.01);
    }
  });
});

test('async is sync, seeds are repeatable and differ', async () => {
  const { q, k } = pairOf(2, 200, 230, 16, 30);
  const options = { exact: false, count: 6, seed: 5 };
  const wanted = spectrumSync(q, k, options);
  expect(await spectrum(q, k, options)).toEqual(wanted);
  expect(spectrumSync(q, k, { ...options, threads: 1 })).toEqual(wanted);
  expect(spectrumSync(q, k, { ...options, seed: 6 })).not.toEqual(wanted);
  expect(spectrumSync(q, k, { ...options, seed: 5 + 2 ** 24 })).not.toEqual(wanted);
});

test('a low rank kernel needs many more components when it is causal', () => {
  // Slow waves over the positions: attention to what is near, smooth but for the causal edge.
  const wave = (seed: number): Tensor => {
    const next = uniform(seed);
    const phases = Array.from({ length: 3 }, () => next());
    const data = Float32Array.from({ length: 600 * 6 }, (_, i) => {
      const [position, c] = [Math.floor(i / 6) / 600, i % 6];
      const angle = 2 * Math.PI * ((1 + (c >> 1)) * position + 0.01 * phases[c >> 1]);
      return 2 * (c % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
    });
    return { data, dims: [1, 1, 600, 6], type: 'float32' };
  };
  const [q, k] = [wave(1), wave(2)];
  const needed = (causal: boolean) => {
    const [[found]] = spectrumSync(q, k, { causal, exact: true }) as [[Spectrum]];
    return spectralMetrics(found).componentsFor[0.99] as number;
  };
  expect(needed(true)).toBeGreaterThan(3 * needed(false));
});

test('no sequences have no spectra; NaN has NaN', () => {
  expect(spectrumSync(normal([0, 2, 3, 4], 1), normal([0, 2, 3, 4], 1))).toEqual([]);
  const { q, k } = pairOf(2, 10, 12, 4, 40);
  const clean = spectrumSync(q, k)[0];
  q.data[0] = NaN;
  const found = spectrumSync(q, k)[0];
  expect(found[0].values.every(Number.isNaN)).toBe(true);
  expect(found[0].energy).toBeNaN();
  expect(found[1]).toEqual(clean[1]);
});

test.each([
  ['count', { count: 11 }, '11'],
  ['count', { count: 0 }, '0'],
  ['count', { count: '3' }, '"3"'],
  ['exact', { exact: 1 }, '1'],
  ['oversample', { exact: true, oversample: 4 }, '4'],
  ['powerIterations', { exact: true, powerIterations: 0 }, '0'],
  ['powerIterations', { powerIterations: 101 }, '101'],
  ['rank', { rank: 4 }, '4'],
])('%s of %j is refused', async (argument, options, received) => {
  const { q, k } = pairOf(1, 10, 12, 4, 50);
  const wanted = { code: 'ERR_ARGUMENT', argument, received } as const;
  expect(await faultOf(() => spectrumSync(q, k, options as object), false, wanted)).toBeUndefined();
  expect(await faultOf(() => spectrum(q, k, options as object), true, wanted)).toBeUndefined();
});

test('without rows there is nothing to decompose', async () => {
  const none = { code: 'ERR_SHAPE' } as const;
  const [some, empty] = [normal([1, 2, 5, 4], 1), normal([1, 2, 0, 4], 1)];
  expect(await faultOf(() => spectrumSync(empty, some), false, { ...none, argument: 'q' })).toBeUndefined();
  expect(await faultOf(() => spectrumSync(some, empty), false, { ...none, argument: 'k' })).toBeUndefined();
});
