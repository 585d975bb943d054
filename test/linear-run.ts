import {
  cosformer,
  elu,
  type FeatureMap,
  favor,
  hedgehog,
  identity,
  type LinearAttentionOptions,
  LinearState,
  linearAttentionSync,
  relu,
  taylor,
} from '../lib';
import type { Tensor } from '../lib/tensor';
import { filled, guarded, type Inputs, normal, type Shape } from './data';
import { expectLinear } from './expectation';
import type { Run } from './full-run';
import type { LinearMeaning, MapMeaning } from './reference-linear';
import { compare, type Expected } from './tolerance';

/** The library's map for a meaning. */
export function mapOf({ kind, queryWeights, keyWeights, offset, matrix, maxLength, joint }: MapMeaning): FeatureMap {
  const weights =
    queryWeights === keyWeights
      ? { ...(queryWeights === undefined ? {} : { weights: queryWeights }) }
      : { queryWeights: queryWeights as Tensor, keyWeights: keyWeights as Tensor };
  switch (kind) {
    case 'identity':
      return identity();
    case 'elu':
      return elu();
    case 'relu':
      return relu({ ...weights, ...(offset === undefined ? {} : { offset }) });
    case 'favor':
      return favor({ matrix: matrix as Tensor });
    case 'cosformer':
      return cosformer({ maxLength: maxLength as number });
    case 'hedgehog':
      return hedgehog({ ...weights, ...(joint === undefined ? {} : { joint }) });
    case 'taylor':
      return taylor();
  }
}

/** The options of a call that mean the same. */
export function optionsOf({ map, ...rest }: LinearMeaning): LinearAttentionOptions {
  return { ...rest, featureMap: mapOf(map) };
}

/** A state for such calls. */
export function stateFor({ map, updateRule, normalize, epsilon, scale }: LinearMeaning, shape: Shape): LinearState {
  const { batch = 1, heads = 1, kvHeads = heads, headDim, valueDim = headDim } = shape;
  const given = { updateRule, normalize, epsilon, scale };
  const method = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  return new LinearState({ batch, heads: kvHeads, headDim, valueDim, featureMap: mapOf(map), ...method });
}

/**
 * One call into a guarded output, held against the reference.
 *
 * @returns the output, which passed
 */
export function checkLinear(
  { q, k, v }: Inputs,
  meaning: LinearMeaning,
  run: Run = {},
  expected: Expected = expectLinear(q, k, v, meaning),
): Tensor {
  const out = guarded(expected.dims, q.type);
  const output = linearAttentionSync(q, k, v, { ...optionsOf(meaning), ...run, out: out.tensor });
  out.check();
  expect(output.data).toBe(out.tensor.data);
  compare(output, expected, `output (${run.isa ?? 'auto'})`);
  return output;
}

/** What a map is made for. */
export type MapShape = Pick<Shape, 'heads' | 'kvHeads' | 'headDim'>;

const weightsOf = (dims: readonly number[], seed: number): Tensor => {
  const plain = normal(dims, seed);
  const unit = 1.5 / Math.sqrt(dims.at(-1) as number);
  return filled(dims, 'float32', (i) => unit * plain.data[i]);
};

function perHead(outputs: number, { heads = 1, kvHeads = heads, headDim }: MapShape) {
  return {
    queryWeights: weightsOf([heads, outputs, headDim], 71),
    keyWeights: weightsOf([kvHeads, outputs, headDim], 72),
  };
}

function shared(outputs: number, { headDim }: MapShape) {
  const weights = weightsOf([outputs, headDim], 73);
  return { queryWeights: weights, keyWeights: weights };
}

/** Every map in every form, for a shape. Numbers of outputs are odd. `identity` is for calls that do not normalize. */
export const maps: Readonly<Record<string, (shape: MapShape) => MapMeaning>> = {
  elu: () => ({ kind: 'elu' }),
  relu: () => ({ kind: 'relu' }),
  'relu, weights': (shape) => ({ kind: 'relu', ...shared(21, shape) }),
  'relu, weights a head, offset': (shape) => ({ kind: 'relu', ...perHead(13, shape), offset: 1e-3 }),
  identity: () => ({ kind: 'identity' }),
  favor: ({ headDim }) => ({ kind: 'favor', matrix: normal([27, headDim], 74) }),
  cosformer: () => ({ kind: 'cosformer', maxLength: 4096 }),
  hedgehog: (shape) => ({ kind: 'hedgehog', ...shared(11, shape) }),
  'hedgehog, weights a head': (shape) => ({ kind: 'hedgehog', ...perHead(19, shape) }),
  'hedgehog, joint': (shape) => ({ kind: 'hedgehog', ...shared(17, shape), joint: true }),
  taylor: () => ({ kind: 'taylor' }),
};

/** Calls of a map without more: normalized unless products may be negative. */
export function plainMeaning(name: string, shape: MapShape): LinearMeaning {
  const map = (maps[name] as (shape: MapShape) => MapMeaning)(shape);
  return name === 'identity' ? { map, normalize: false } : { map };
}
