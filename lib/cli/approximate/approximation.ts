import type { CallOptions } from '../../call';
import type { Tensor } from '../../tensor';
import type { Reference } from '../check';
import type { Inputs } from '../inputs';

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
  /** What exact attention would have to be preceded by. */
  readonly products?: Products;
}

/** Matrix products that make the whole keys and values which a method does without. */
export interface Products {
  readonly flops: number;
  readonly call: (options: CallOptions) => Promise<void>;
  /** Makes one call and checks its answers, in the name of a contender. */
  readonly check: (name: string, options: CallOptions) => Promise<number>;
}

/** A model that takes tensors by name and gives `o`. */
export interface PeerModel {
  readonly form: string;
  readonly model: () => Uint8Array;
  readonly feeds: Readonly<Record<string, Tensor>>;
  /** Heads stand after positions, in what it takes and gives. */
  readonly positionsFirst: boolean;
}
