import type { Reference } from '../check';
import type { Inputs } from '../inputs';
import type { Method } from '../method';
import type { Shape } from '../suite';
import type { Approximation } from './approximation';
import { linear } from './linear';
import { linformer } from './linformer';
import { lowrank } from './lowrank';
import { lrkv } from './lrkv';
import { nystrom } from './nystrom';

/** @param inputs default those of this shape that suit the method */
export function approximation(method: Method, shape: Shape, inputs?: Inputs): Approximation {
  const made = make(method, shape, inputs);
  let reference: Reference | undefined;
  // All who are checked share it.
  return { ...made, reference: () => (reference ??= made.reference()) };
}

function make(method: Method, shape: Shape, inputs?: Inputs): Approximation {
  switch (method.op) {
    case 'nystrom':
      return nystrom(method, shape, inputs);
    case 'linear':
      return linear(method, shape, inputs);
    case 'linformer':
      return linformer(method, shape, inputs);
    case 'lowrank':
      return lowrank(method, shape, inputs);
    case 'lrkv':
      return lrkv(method, shape, inputs);
  }
}
