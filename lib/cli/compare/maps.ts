/** Attention matrices of one head: what a method makes of the identity as values is its matrix. */
import { float32Of } from '../../convert';
import { AttentionError, approximationError, attention, type Tensor, tensor } from '../../index';
import { type Inputs, rows } from '../inputs';
import { type Method, shapeOf, standardOf } from './methods';
import type { AttentionMaps } from './results';

/** Small enough that single weights can be seen. */
const mapLength = 192;

export async function mapsOf(
  inputs: Inputs,
  head: number,
  methods: readonly Method[],
  threads: number,
): Promise<AttentionMaps> {
  const { heads, kvHeads } = shapeOf(inputs);
  const length = Math.min(mapLength, shapeOf(inputs).length);
  const kvHead = Math.floor((head * kvHeads) / heads);
  const identity = new Float32Array(length * length);
  for (let i = 0; i < length; i++) identity[i * (length + 1)] = 1;
  const one: Inputs = {
    q: oneHead(inputs.q, head, length),
    k: oneHead(inputs.k, kvHead, length),
    v: tensor(identity, [1, 1, length, length]),
  };

  const wanted = await attention(one.q, one.k, one.v, { threads });
  const maps: AttentionMaps['maps'][number][] = [{ name: 'exact', weights: wanted.data as Float32Array }];
  for (const method of methods) {
    const setting = standardOf(method, length);
    try {
      const call = await method.prepare(one, setting?.value ?? 0, { threads });
      const matrix = await call({ threads });
      maps.push({
        name: method.name,
        ...(setting === undefined ? {} : { setting }),
        weights: matrix.data as Float32Array,
        error: approximationError(matrix, wanted).relativeFrobenius,
      });
    } catch (error) {
      // It was told already what a method cannot do; a picture less says no more.
      if (!(error instanceof AttentionError)) throw error;
    }
  }
  return { head, length, maps };
}

/** The first rows of one head, `[1, 1, length, dim]`, as float32: so are the matrices then. */
function oneHead(of: Tensor, head: number, length: number): Tensor {
  const dim = of.dims[3] as number;
  const size = length * dim;
  const data = float32Of(rows(of, 0, length)).subarray(head * size, (head + 1) * size);
  return tensor(data, [1, 1, length, dim]);
}
