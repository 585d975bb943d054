// Layers of a fit that come from elsewhere: read when their turn comes, with the result that they would have in memory.
import { type FitOptions, fitLrkvSync } from '../lib';
import { fitLayers } from '../lib/fit/fit';
import { checkFit, readFitOptions } from '../lib/fit/options';
import { type LayerSource, sourceOf, type UnchangedNumbers } from '../lib/fit/source';
import { runStepsAsync, wait } from '../lib/steps';
import { checkAttentionWeights } from '../lib/weights';
import { layerOf } from './fit-data';

const shape = { modelDim: 24, heads: 4, width: 8, shared: 0.5, tokens: 60, biases: true, seed: 1 };
const layers = [0, 1, 2].map((i) => layerOf({ ...shape, seed: 30 * i }));

/** Sources that tell when they are read, and fail from some read on. */
function sources(seen: string[], failAt = Infinity): LayerSource[] {
  return layers.map(({ weights, hidden }, index) => {
    const { query, key, value, output, queryBias, keyBias, valueBias, ...kept } = weights;
    return sourceOf<UnchangedNumbers>(checkAttentionWeights('weights', weights), {
      ...{ name: `weights[${index}]`, hiddenName: `calibration[${index}]`, calibrated: true, kept },
      load: () =>
        wait(async () => {
          seen.push(`read ${index}`);
          if (seen.filter((what) => what.startsWith('read')).length > failAt) throw new Error('the disk is gone');
          await new Promise((resolve) => setTimeout(resolve, 1));
          return { weights, hidden };
        }),
    });
  });
}

async function fitted(given: FitOptions, seen: string[], failAt?: number) {
  const of = sources(seen, failAt);
  const onProgress: FitOptions['onProgress'] = ({ layer }) => {
    if (seen.at(-1) !== `fit ${layer}`) seen.push(`fit ${layer}`);
  };
  return await runStepsAsync(fitted, fitLayers(of, checkFit(of, readFitOptions({ ...given, onProgress }))));
}

const rules: Readonly<Record<string, readonly [FitOptions, readonly string[]]>> = {
  ranks: [{ rank: 3 }, [0, 1, 2].flatMap((i) => [`read ${i}`, `fit ${i}`])],
  energy: [{ energy: 0.95 }, [0, 1, 2].flatMap((i) => [`read ${i}`, `fit ${i}`])],
  // All are looked at before ranks are dealt out, and once more to be finished.
  budget: [{ budget: 0.7 }, ['read 0', 'read 1', 'read 2', 'fit 0', 'fit 1', 'fit 2']],
};

test.each(Object.entries(rules))('by %s', async (_, [options, order]) => {
  const seen: string[] = [];
  const found = await fitted(options, seen);
  expect(seen.slice(0, order.length)).toEqual(order);
  if (options.budget !== undefined) {
    const last = (what: string) => seen.lastIndexOf(what);
    expect([last('read 0'), last('read 1'), last('read 2')].every((at) => at > order.length)).toBe(true);
    expect(last('read 1')).toBeGreaterThan(last('fit 0'));
    expect(last('read 2')).toBeGreaterThan(last('fit 1'));
    expect(seen.filter((what) => what.startsWith('read'))).toHaveLength(6);
  }
  const wanted = fitLrkvSync(
    layers.map(({ weights }) => weights),
    { ...options, calibration: layers.map(({ hidden }) => hidden) },
  );
  expect(found.report).toEqual(wanted.report);
  for (const [index, { query, output, queryBias, ...rest }] of wanted.layers.entries()) {
    expect(found.layers[index]).toEqual(rest);
  }
});

test('what fails while it is read is what the fit fails with', async () => {
  for (const failAt of [0, 1, 4]) {
    await expect(fitted({ budget: 0.7 }, [], failAt)).rejects.toThrow('the disk is gone');
  }
});
