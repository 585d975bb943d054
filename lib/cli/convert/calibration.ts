/**
 * Hidden states for calibration. They are what enters a layer's projections of queries, keys and values (after the layer's
 * normalisation), not token ids: a file of weights is no program that could make one of the other.
 */
import path from 'node:path';

import { readNpy } from '../../files/npy';
import { Safetensors } from '../../files/safetensors';
import { type Tensor, tensor } from '../../index';
import type { NamedLayer } from '../../model/names';
import { Usage } from '../arguments';

/** What the tensor of a layer is called in a .safetensors file. */
export const hiddenName = ({ index }: NamedLayer): string => `layers.${index}.hidden`;

/**
 * @returns `[tokens, modelDim]`, one a layer
 * @throws Usage, AttentionError, errors of the file system
 */
export async function readCalibration(file: string, layers: readonly NamedLayer[]): Promise<Tensor[]> {
  const kind = path.extname(file);
  if (kind === '.npy') return perLayer(file, await readNpy(file), layers.length);
  if (kind !== '.safetensors') throw new Usage(`--calibration is a .npy or .safetensors file, not ${file}`);
  return await Safetensors.with(file, async (open) => {
    const tensors: Tensor[] = [];
    for (const layer of layers) {
      const found = await open.read(hiddenName(layer));
      if (found.dims.length !== 2) throw wrong(`[tokens, modelDim] for ${hiddenName(layer)}`, found);
      tensors.push(found);
    }
    return tensors;
  });
}

function perLayer(file: string, all: Tensor, count: number): Tensor[] {
  const { data, dims, type } = all;
  if (dims.length === 2 && count === 1) return [all];
  const [layers, tokens, modelDim] = dims as [number, number, number];
  if (dims.length !== 3 || layers !== count) {
    const one = count === 1 ? '[tokens, modelDim] or ' : '';
    throw wrong(`${one}[${count} layers, tokens, modelDim] for ${file}`, all);
  }
  const size = tokens * modelDim;
  const elements = data as Float32Array | Uint16Array;
  return Array.from({ length: count }, (_, layer) =>
    tensor(elements.subarray(layer * size, (layer + 1) * size), [tokens, modelDim], type),
  );
}

function wrong(what: string, { dims }: Tensor): Usage {
  return new Usage(`expected hidden states ${what}, received [${dims.join(', ')}]`);
}
