import { spectralMetrics } from '../lib';
import { uniform } from './data';
import { Faults, faultOf, type Refusal } from './refusal';

/** Straight from the definitions. */
function naive(values: readonly number[]) {
  const sum = (list: readonly number[]) => list.reduce((a, b) => a + b, 0);
  const entropy = (list: readonly number[]) =>
    Math.exp(-sum(list.map((x) => x / sum(list)).map((p) => (p === 0 ? 0 : p * Math.log(p)))));
  const squares = values.map((value) => value ** 2);
  const components = (share: number) =>
    values.findIndex((_, i) => sum(squares.slice(0, i + 1)) / sum(squares) >= share - 1e-15) + 1;
  return {
    effectiveRankOfValues: entropy(values),
    effectiveRankOfEnergies: entropy(squares),
    stableRank: sum(squares) / squares[0],
    participationRatio: sum(squares) ** 2 / sum(squares.map((x) => x ** 2)),
    componentsFor: { 0.9: components(0.9), 0.95: components(0.95), 0.99: components(0.99) },
  };
}

const random = (count: number, decay: number): number[] => {
  const next = uniform(count);
  return Array.from({ length: count }, (_, i) => next() * Math.exp(-decay * i)).sort((a, b) => b - a);
};

test.each([
  [1, 0],
  [2, 1],
  [30, 0],
  [30, 0.1],
  [200, 0.05],
  [500, 0],
])('%d values, decay %d', (count, decay) => {
  const values = random(count, decay);
  const found = spectralMetrics(values);
  const { componentsFor, ...wanted } = naive(values);
  for (const [name, value] of Object.entries(wanted)) {
    expect(Math.abs((found[name as 'stableRank'] as number) / value - 1)).toBeLessThan(1e-12);
  }
  expect(found.componentsFor).toEqual(componentsFor);
  expect(found.retainedEnergy).toBe(1);
});

test('equal values: every measure is their number; one value: 1', () => {
  for (const count of [1, 7, 64]) {
    const { componentsFor, retainedEnergy, ...measures } = spectralMetrics(Array<number>(count).fill(3));
    for (const value of Object.values(measures)) expect(value).toBeCloseTo(count, 10);
    expect(componentsFor[0.9]).toBe(Math.ceil(0.9 * count));
    expect(retainedEnergy).toBe(1);
  }
  expect(spectralMetrics([2, 0, 0]).effectiveRankOfValues).toBe(1);
});

test('scale does not matter, down to subnormal and up to the largest numbers', () => {
  const values = random(20, 0.2);
  const wanted = spectralMetrics(values);
  for (const scale of [1e-200, 1e-310, 1e300]) {
    const found = spectralMetrics(values.map((value) => value * scale));
    expect(found.participationRatio).toBeCloseTo(wanted.participationRatio, 6);
    expect(found.componentsFor).toEqual(wanted.componentsFor);
  }
});

test('of typed arrays too', () => {
  const values = Float64Array.from(random(9, 0.3));
  expect(spectralMetrics(values)).toEqual(spectralMetrics([...values]));
});

test('where values are missing: what is exact, and what is a lower bound', () => {
  for (const [count, decay] of [
    [60, 0],
    [60, 0.05],
    [300, 0.02],
  ] as const) {
    const values = random(count, decay);
    const whole = naive(values);
    const energy = values.reduce((sum, value) => sum + value ** 2, 0);
    for (let known = 1; known <= count; known += 7) {
      const found = spectralMetrics({ values: Float64Array.from(values.slice(0, known)), energy });
      const kept = values.slice(0, known).reduce((sum, value) => sum + value ** 2, 0) / energy;
      expect(found.retainedEnergy).toBeCloseTo(kept, 12);
      expect(found.stableRank).toBeCloseTo(whole.stableRank, 9);
      for (const name of ['effectiveRankOfValues', 'effectiveRankOfEnergies', 'participationRatio'] as const) {
        expect(found[name]).toBeLessThan(whole[name] * (1 + 1e-12));
      }
      for (const share of [0.9, 0.95, 0.99] as const) {
        expect(found.componentsFor[share]).toBe(kept >= share ? whole.componentsFor[share] : undefined);
      }
    }
  }
});

test('wrong spectra', async () => {
  const faults = new Faults();
  // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may do
  const refused = (value: any, wanted: Refusal) => faultOf(() => spectralMetrics(value), false, wanted);
  const wrong: readonly (readonly [unknown, Refusal['code'], string, string?])[] = [
    [undefined, 'ERR_TYPE', 'spectrum', 'undefined'],
    [5, 'ERR_TYPE', 'spectrum', '5'],
    ['321', 'ERR_TYPE', 'spectrum', '"321"'],
    [[], 'ERR_TYPE', 'spectrum', '[]'],
    [{}, 'ERR_TYPE', 'spectrum.values', 'undefined'],
    [{ values: 3, energy: 1 }, 'ERR_TYPE', 'spectrum.values', '3'],
    [{ values: [1] }, 'ERR_ARGUMENT', 'spectrum.energy', 'undefined'],
    [{ values: [1], energy: NaN }, 'ERR_ARGUMENT', 'spectrum.energy', 'NaN'],
    [{ values: [1], energy: Infinity }, 'ERR_ARGUMENT', 'spectrum.energy', 'Infinity'],
    [{ values: [2, 1], energy: 4 }, 'ERR_ARGUMENT', 'spectrum.energy', '4'],
    [[0, 0], 'ERR_ARGUMENT', 'spectrum', '0'],
    [[1, 2], 'ERR_ARGUMENT', 'spectrum[1]', '2'],
    [[1, -1], 'ERR_ARGUMENT', 'spectrum[1]', '-1'],
    [[NaN], 'ERR_ARGUMENT', 'spectrum[0]', 'NaN'],
    [[Infinity], 'ERR_ARGUMENT', 'spectrum[0]', 'Infinity'],
    [[1, '0.5'], 'ERR_ARGUMENT', 'spectrum[1]', '"0.5"'],
    [BigInt64Array.of(2n, 1n), 'ERR_ARGUMENT', 'spectrum[0]', '2n'],
  ];
  for (const [value, code, argument, received] of wrong)
    faults.add(`${argument} ${received}`, await refused(value, { code, argument, received }));
  faults.none();
});
