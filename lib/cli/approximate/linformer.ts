import type { CallOptions } from '../../call';
import { randomNormal } from '../../convert';
import { linformerAttention } from '../../linformer';
import { driftingInputs } from '../inputs';
import type { LinformerMethod } from '../method';
import { linformerGraph } from '../peer/approximate-models';
import { linformerReference } from '../reference/linformer';
import type { Shape } from '../suite';
import type { Approximation } from './approximation';

export function linformer(method: LinformerMethod, shape: Shape, inputs = driftingInputs(shape)): Approximation {
  const { q, k, v } = inputs;
  const { n, heads } = shape;
  // Of a variance at which projected keys and values are as large as the rows they are made of.
  const projection = (seed: number) => {
    const result = randomNormal<'float32'>([method.projected, n], { seed });
    for (const [i, x] of result.data.entries()) result.data[i] = x / Math.sqrt(n);
    return result;
  };
  const projections = { keyProjection: projection(7), valueProjection: projection(8) };
  const call = (options: CallOptions) => linformerAttention(q, k, v, { ...options, ...projections });
  return {
    inputs,
    call,
    answer: call,
    reference: () => linformerReference(inputs, projections),
    peer: {
      form: 'graph',
      model: () => linformerGraph(heads, shape.dim, method.projected),
      feeds: { q, k, v, e: projections.keyProjection, f: projections.valueProjection },
      positionsFirst: false,
    },
  };
}
