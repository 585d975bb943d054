import type { CallOptions } from '../../call';
import { nystromAttention } from '../../nystrom';
import { driftingInputs } from '../inputs';
import type { NystromMethod } from '../method';
import { nystromGraph } from '../peer/approximate-models';
import { nystromReference } from '../reference/nystrom';
import type { Shape } from '../suite';
import type { Approximation } from './approximation';

export function nystrom(method: NystromMethod, shape: Shape, inputs = driftingInputs(shape)): Approximation {
  const { q, k, v } = inputs;
  const { landmarks, iterations } = method;
  const call = (options: CallOptions) => nystromAttention(q, k, v, { ...options, landmarks, iterations });
  return {
    inputs,
    call,
    answer: call,
    reference: () => nystromReference(inputs, method),
    peer: { form: 'graph', model: () => nystromGraph(shape, method), feeds: { q, k, v }, positionsFirst: false },
  };
}
