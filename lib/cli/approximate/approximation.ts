import type { CallOptions } from '../../call';
import type { Tensor } from '../../tensor';
import type { Reference } from '../check';
import type { Inputs } from '../inputs';
import type { Method } from '../method';
import type { Shape } from '../suite';
import { linear } from './linear';
import { linformer } from './linformer';
import { lowrank } from './lowrank';
import { nystrom } from './nystrom';

/** A method on given inputs: our call of it, the peer's model of it, and the right answer. */
export interface Approximation {
  readonly inputs: Inputs;
  /** What is timed. */
  readonly call: (options: CallOptions) => Promise<unknown>;
  /** The same call's answer as an output of attention. */
  readonly answer: (options: CallOptions) => Promise<Tensor>;
  /** Takes seconds where sequences are long. */
  readonly reference: () => Reference;
  /** The same method in onnxruntime, if it can be had there. */
  readonly peer?: PeerModel;
}

/** A model that takes tensors by name and gives `o`. */
export interface PeerModel {
  readonly form: string;
  readonly model: () => Uint8Array;
  readonly feeds: Readonly<Record<string, Tensor>>;
  /** Heads stand after positions, in what it takes and gives. */
  readonly positionsFirst: boolean;
}

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
  }
}
