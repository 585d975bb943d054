/** Momentum of a fit: errors never rise, and fewer iterations lead as far as plain alternation does. */
import { type FitProgress, fitLrkvSync, type Gauge, ropeFrequencies } from '../lib';
import { headsOf, type LayerShape, layerOf, rowsOf } from './fit-data';
import { type FitProblem, identityOf, referenceFit, times, transposed } from './reference-fit';

/** Heads that have a part in common, turned, and much of their own: plain alternation creeps. */
const hard: LayerShape = { modelDim: 40, heads: 6, width: 12, shared: 0.3, tokens: 1, seed: 900 };

const gauges: readonly Gauge[] = ['free', 'identity', 'rope-pair'];

/** A fit of values, or of rotated keys, that is not calibrated, and the errors it tells of. */
function historyOf(gauge: Gauge, seed: number, iterations: number): number[] {
  const { weights } = layerOf({ ...hard, seed });
  const [side, own] =
    gauge === 'rope-pair'
      ? (['key', { ...weights, rope: { frequencies: ropeFrequencies(hard.width) } }] as const)
      : (['value', weights] as const);
  const told: FitProgress[] = [];
  const { report } = fitLrkvSync(own, {
    ...{ rank: 3, gauge: { [side]: gauge }, iterations },
    onProgress: (progress) => {
      if (progress.side === side) told.push(progress);
    },
  });
  const { history, baseError, noBaseError } = report.layers[0][side];
  expect(told.map(({ iteration }) => iteration)).toEqual(told.map((_, i) => i + 1));
  expect(told.at(-1)?.error).toBe(baseError);
  if ((baseError as number) < (noBaseError as number)) expect(history).toEqual(told.map(({ error }) => error));
  return told.map(({ error }) => error);
}

const seeds = [900, 920, 940, 960];

test.each(gauges)('%s: no error is above the one before, and all are counted', (gauge) => {
  for (const seed of seeds) {
    const found = historyOf(gauge, seed, 400);
    for (let i = 1; i < found.length; i++) expect(found[i]).toBeLessThanOrEqual(found[i - 1] * (1 + 1e-12));
    // So many are the first of those and no others.
    expect(historyOf(gauge, seed, 7)).toEqual(found.slice(0, 7));
  }
});

test.each(gauges)('%s: as good as 200 plain iterations after far fewer', (gauge) => {
  let [extrapolated, plain] = [0, 0];
  for (const seed of seeds.slice(0, 2)) {
    const { weights } = layerOf({ ...hard, seed });
    const pairs = Array.from({ length: hard.width / 2 }, (_, i) => [i, i + hard.width / 2] as const);
    const rotated = gauge === 'rope-pair';
    const heads = headsOf(weights, rotated ? 'key' : 'value');
    const parts = rotated
      ? headsOf({ ...weights, value: weights.query }, 'value').map((query) => times(transposed(query), query))
      : heads.map((_, head) => {
          const rows = rowsOf(weights.output).slice(head * hard.width, (head + 1) * hard.width);
          return times(rows, transposed(rows));
        });
    const metrics = rotated
      ? parts.map((part) =>
          part.map((row, i) => row.map((_, j) => (i === j ? (part[i][i] + part[(i + 6) % 12][(i + 6) % 12]) / 2 : 0))),
        )
      : parts;
    const problem: FitProblem = { heads, moment: identityOf(hard.modelDim + 1), metrics };
    const wanted = referenceFit(problem, new Array(hard.heads).fill(3), gauge as 'free', 200, pairs);
    const found = historyOf(gauge, seed, 200);
    // The same problem.
    expect(Math.abs(found[0] / wanted[0] - 1)).toBeLessThan(gauge === 'free' ? 0.01 : 1e-6);
    const enough = 1.005 * (wanted.at(-1) as number);
    const after = (history: readonly number[]): number => history.findIndex((error) => error <= enough) + 1;
    expect(after(found)).toBeGreaterThan(0);
    extrapolated += after(found);
    plain += after(wanted);
  }
  expect(extrapolated).toBeLessThan(0.5 * plain);
});
