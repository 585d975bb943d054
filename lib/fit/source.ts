/** Where the layers of a fit come from: memory, or files that are read when a layer's turn comes. */
import { checkMatrix } from '../analysis/matrix';
import { expected } from '../errors';
import type { Matrices } from '../linalg';
import { isArray, readList } from '../read';
import type { Steps } from '../steps';
import type { Tensor } from '../tensor';
import { type AttentionWeights, type CheckedWeights, checkAttentionWeights, type LrkvWeights } from '../weights';
import { checkNumbers } from './projections';

/** Keys or values. */
export type Side = 'key' | 'value';
export const sides: readonly Side[] = ['key', 'value'];

/** What a layer is before and after conversion. */
export type Unchanged = Omit<AttentionWeights, 'key' | 'value' | 'keyBias' | 'valueBias'>;
/** The same without matrices. */
export type UnchangedNumbers = Omit<Unchanged, 'query' | 'output' | 'queryBias' | 'outputBias'>;
/** What conversion makes. */
export type ConvertedParts = Omit<LrkvWeights, keyof Unchanged>;

/** The tensors of a layer. */
export interface LayerTensors {
  readonly weights: AttentionWeights;
  /** Hidden states `[tokens, modelDim]`, if there are any. */
  readonly hidden: Tensor | undefined;
}

/** A layer: what is small of it, and a way to its tensors, which are not kept. */
export interface LayerSource<Kept extends UnchangedNumbers = UnchangedNumbers>
  extends Omit<CheckedWeights<AttentionWeights>, 'weights'> {
  /** As errors call its weights. */
  readonly name: string;
  /** As errors call its hidden states. */
  readonly hiddenName: string;
  readonly calibrated: boolean;
  readonly biased: Readonly<Record<Side, boolean>>;
  /** What the converted layer takes over. */
  readonly kept: Kept;
  readonly load: () => Steps<LayerTensors>;
}

/** The source of a layer's checked weights. */
export function sourceOf<Kept extends UnchangedNumbers>(
  { weights, ...checked }: CheckedWeights<AttentionWeights>,
  more: Pick<LayerSource<Kept>, 'name' | 'hiddenName' | 'calibrated' | 'kept' | 'load'>,
): LayerSource<Kept> {
  const biased = { key: weights.keyBias !== undefined, value: weights.valueBias !== undefined };
  return { ...checked, ...more, biased };
}

/** Refuses numbers that are not finite, and hidden states that do not fit, before anything is computed. */
export function checkTensors({ name, hiddenName, shape }: LayerSource, { weights, hidden }: LayerTensors): void {
  checkNumbers(name, weights);
  checkHidden(hiddenName, hidden, shape.modelDim);
}

export function checkHidden(name: string, hidden: Tensor | undefined, modelDim: number): Matrices | null {
  if (hidden === undefined) return null;
  const found = checkMatrix(name, hidden, 1);
  if (found.columns !== modelDim)
    throw expected('ERR_SHAPE', name, `${modelDim} columns, modelDim`, [found.rows, found.columns]);
  return found;
}

/** Layers in memory: one, or a list. */
export function sourcesOf(given: unknown, calibration: unknown): LayerSource<Unchanged>[] {
  const single = !isArray(given);
  const anyLength = (length: number): boolean => length > 0;
  const entries = single ? [given] : (readList('weights', given, anyLength, (item) => item) ?? []);
  if (entries.length === 0) throw expected('ERR_SHAPE', 'weights', 'at least one layer', given);
  const nameOf = (name: string, layer: number): string => (single ? name : `${name}[${layer}]`);
  const checked = entries.map((entry, layer) =>
    checkAttentionWeights(nameOf('weights', layer), entry as AttentionWeights),
  );
  const hidden = calibrationOf(calibration, single, entries.length);
  return checked.map((layer, index) => {
    const { key: _key, value: _value, keyBias: _keyBias, valueBias: _valueBias, ...kept } = layer.weights;
    return sourceOf(layer, {
      name: nameOf('weights', index),
      hiddenName: nameOf('calibration', index),
      calibrated: hidden !== undefined,
      kept,
      // biome-ignore lint/correctness/useYield: it is there already
      load: function* () {
        return { weights: layer.weights, hidden: hidden?.[index] as Tensor | undefined };
      },
    });
  });
}

function calibrationOf(calibration: unknown, single: boolean, count: number): unknown[] | undefined {
  if (calibration === undefined) return undefined;
  if (isArray(calibration)) return checkLayers('calibration', calibration, count, (item) => item);
  if (!single) throw expected('ERR_SHAPE', 'calibration', `a list of ${count}, one a layer`, calibration);
  return [calibration];
}

/** A list with one item a layer. */
export function checkLayers<Item>(
  name: string,
  value: unknown,
  count: number,
  make: (item: unknown, layer: number) => Item,
): Item[] {
  const items = readList(name, value, (length) => length === count, make);
  if (items === undefined) throw expected('ERR_SHAPE', name, `a list of ${count}, one a layer`, value);
  return items;
}
