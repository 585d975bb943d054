/** The layers of a model in files, as a fit takes them: looked through once, then read again when their turn comes. */
import { checkTensors, type LayerSource, type LayerTensors, sourceOf, type UnchangedNumbers } from '../../fit/source';
import type { NamedLayer } from '../../model/names';
import type { Model } from '../../model/read';
import { wait } from '../../steps';
import { checkAttentionWeights } from '../../weights';
import type { Calibration } from './calibration';

/** @throws AttentionError for numbers that are not finite, and all that `readAttentionWeights` refuses */
export async function layersOf(
  model: Model,
  calibration: Calibration | undefined,
  signal: AbortSignal,
): Promise<LayerSource[]> {
  const sources: LayerSource[] = [];
  for (const [place, layer] of model.layers.entries()) {
    signal.throwIfAborted();
    const read = async (): Promise<LayerTensors> => ({
      weights: await model.read(layer),
      hidden: await calibration?.read(place),
    });
    sources.push(await sourceIn(layer, read, calibration?.nameOf(place)));
  }
  return sources;
}

async function sourceIn(
  { prefix }: NamedLayer,
  read: () => Promise<LayerTensors>,
  hiddenName: string | undefined,
): Promise<LayerSource> {
  const name = prefix.slice(0, -1);
  const tensors = await read();
  const { query, output, key, value, queryBias, outputBias, keyBias, valueBias, ...numbers } = tensors.weights;
  const source = sourceOf<UnchangedNumbers>(checkAttentionWeights(name, tensors.weights), {
    name,
    hiddenName: hiddenName ?? '',
    calibrated: hiddenName !== undefined,
    kept: numbers,
    load: () => wait(read),
  });
  checkTensors(source, tensors);
  return source;
}
