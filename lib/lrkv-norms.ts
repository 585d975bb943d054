/**
 * QK-norm of layers in LRKV's form: which gains can stand where. Asked of converted weights when a layer is made of them,
 * and of trained ones before they are converted, so that no fit ends in weights that no layer takes.
 */
import { checkInteger } from './check';
import { expected, renaming } from './errors';
import { checkKeyNorm, mostKvHeads, type RopeMode } from './lrkv-model';
import type { CheckedRmsNorm, RmsNormOptions } from './rope';
import type { CheckedWeights, CommonWeights } from './weights';

/** The norm that queries get before attention, and that of the keys with the option that it comes from. */
export interface LrkvNorms {
  readonly queryNorm: CheckedRmsNorm | null;
  readonly keyNorm: RmsNormOptions | undefined;
  readonly keyNormName: 'qkNorm.key' | 'qkNorm.query';
}

type NormedLayer = Pick<CheckedWeights<unknown>, 'shape' | 'rope' | 'queryNorm' | 'keyNorm'>;

/**
 * The norms of a layer. Attention rotates queries itself, so that a gain after the rotation comes too late for them:
 * Σ (g·R q̂)(g′·R k̂) = Σ (R q̂)(g·g′·R k̂) moves it over to the keys.
 *
 * @param name of its weights
 * @throws AttentionError ERR_UNSUPPORTED where keys cannot take it over; ERR_ARGUMENT for more heads than a model may have
 */
export function lrkvNormsOf(
  name: string,
  { shape, rope, queryNorm, keyNorm }: NormedLayer,
  qkNorm: CommonWeights['qkNorm'],
): LrkvNorms {
  checkInteger(`${name}.kvHeads`, shape.kvHeads, 1, mostKvHeads);
  const gain = queryNorm?.gain;
  if (!gain || rope === null || queryNorm.gainOrder === 0)
    return { queryNorm, keyNorm: qkNorm?.key, keyNormName: 'qkNorm.key' };
  if (keyNorm === null || (keyNorm.gain !== null && keyNorm.gainOrder === 0)) {
    const what = "no gain 'after-rotation' unless keys are normalised so";
    throw expected('ERR_UNSUPPORTED', `${name}.qkNorm.query`, what, qkNorm?.query);
  }
  const product = gain.map((factor, i) => factor * (keyNorm.gain?.[i] ?? 1));
  return {
    queryNorm: { ...queryNorm, gain: null },
    keyNorm: { epsilon: keyNorm.epsilon, gain: product, gainOrder: 'after-rotation' },
    keyNormName: 'qkNorm.query',
  };
}

/** Runs a check of a model of these norms; errors about `keyNorm` name the option of the weights that it comes from. */
export function namingNorms<Result>(name: string, { keyNormName }: LrkvNorms, check: () => Result): Result {
  return renaming((argument) => `${name}.${argument.replace(/^keyNorm/, keyNormName)}`, check);
}

/** Refuses the norms that no layer of converted weights can have, whatever a fit makes of the rest. */
export function checkConvertible(
  name: string,
  layer: NormedLayer,
  qkNorm: CommonWeights['qkNorm'],
  ropeMode: RopeMode,
): void {
  const norms = lrkvNormsOf(name, layer, qkNorm);
  const mode = layer.rope === null ? undefined : ropeMode;
  // A gauge hinders gains in modes that no fit makes.
  namingNorms(name, norms, () => checkKeyNorm(norms.keyNorm, layer.shape.headDim, mode, false));
}
