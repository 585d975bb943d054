/**
 * Hidden states for calibration. They are what enters a layer's projections of queries, keys and values (after the layer's
 * normalisation), not token ids: a file of weights is no program that could make one of the other.
 */
import path from 'node:path';

import { type Npy, withNpy } from '../../files/npy';
import { Safetensors } from '../../files/safetensors';
import type { Tensor } from '../../index';
import type { NamedLayer } from '../../model/names';
import { Usage } from '../arguments';

/** What the tensor of a layer is called in a .safetensors file. */
export const hiddenName = ({ index }: NamedLayer): string => `layers.${index}.hidden`;

/** Hidden states of all layers, which are read one layer at a time. */
export interface Calibration {
  /** Of the layer that has the fewest. */
  readonly tokens: number;
  /** As errors call those of a layer. */
  readonly nameOf: (layer: number) => string;
  /** `[tokens, modelDim]` of the layer at that place in the list. */
  readonly read: (layer: number) => Promise<Tensor>;
}

/**
 * Looks into a file of hidden states.
 *
 * @throws Usage, AttentionError, errors of the file system
 */
export async function openCalibration(file: string, layers: readonly NamedLayer[]): Promise<Calibration> {
  const kind = path.extname(file);
  if (kind === '.npy') {
    const { dims } = await withNpy(file, async (array) => checkAxes(file, array, layers.length));
    return {
      tokens: dims.at(-2) as number,
      nameOf: (layer) => `${file}[${layer}]`,
      read: (layer) =>
        withNpy(file, (array) =>
          checkAxes(file, array, layers.length).read(array.dims.length === 2 ? undefined : layer),
        ),
    };
  }
  if (kind !== '.safetensors') throw new Usage(`--calibration is a .npy or .safetensors file, not ${file}`);
  const names = layers.map(hiddenName);
  const tokens = await Safetensors.with(file, async (open) =>
    names.map((name) => {
      const { dims } = open.entry(name);
      if (dims.length !== 2) throw wrong(`[tokens, modelDim] for ${name}`, dims);
      return dims[0] as number;
    }),
  );
  return {
    tokens: Math.min(...tokens),
    nameOf: (layer) => names[layer] as string,
    read: (layer) => Safetensors.with(file, (open) => open.read(names[layer] as string)),
  };
}

function checkAxes(file: string, array: Npy, count: number): Npy {
  const { dims } = array;
  if ((dims.length === 2 && count === 1) || (dims.length === 3 && dims[0] === count)) return array;
  const one = count === 1 ? '[tokens, modelDim] or ' : '';
  throw wrong(`${one}[${count} layers, tokens, modelDim] for ${file}`, dims);
}

function wrong(what: string, dims: readonly number[]): Usage {
  return new Usage(`expected hidden states ${what}, received [${dims.join(', ')}]`);
}
