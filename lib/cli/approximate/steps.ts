/** One token of linear attention against the state that its past was reduced to. */
import { linearAttentionSync } from '../../linear';
import { LinearState } from '../../linear-state';
import type { Tensor } from '../../tensor';
import type { Contender } from '../contender';
import { driftingInputs, headsOf, type Inputs, rows } from '../inputs';
import { type LinearMethod, type MethodVariant, methodFlops } from '../method';
import { type Copies, type How, label } from '../ours';
import { nameOf } from '../peer/contenders';
import type { Onnxruntime } from '../peer/onnxruntime';
import { linearReference } from '../reference/linear';
import { product, transposed } from '../reference/matrix';
import type { ApproximateCase, Shape } from '../suite';
import { linearOptions, linearRecurrence } from './linear';

const stepName = 'LinearAttention';

/** The last query of a sequence, and all its keys and values. */
export function stepInputs(shape: Shape): Inputs {
  const { q, k, v } = driftingInputs(shape);
  return { q: rows(q, shape.n - 1, shape.n), k, v };
}

/** Arithmetic of one token. */
const stepFlops = ({ shape, method }: ApproximateCase): number => methodFlops(method, { ...shape, n: 1 });

/** What the last token's query sees. */
const referenceOf = (inputs: Inputs, method: LinearMethod) => linearReference(inputs, { ...method, causal: true });

/**
 * As many states take turns as are needed for none to stay in the processor's cache. Every call adds the token to its
 * state once more: only the first one of each state has the answer of a sequence of n.
 */
export function oursSteps(
  given: ApproximateCase,
  inputs: Inputs,
  copies: Copies,
  how: How,
  variant?: MethodVariant,
): Contender {
  const { n, heads, dim } = given.shape;
  const method = (variant?.method ?? given.method) as LinearMethod;
  const past = [rows(inputs.k, 0, n - 1), rows(inputs.v, 0, n - 1)] as const;
  const token = [inputs.q, rows(inputs.k, n - 1, n), rows(inputs.v, n - 1, n)] as const;
  const make = () => {
    const state = new LinearState({ heads, headDim: dim, ...linearOptions(method) });
    state.append(...past);
    return state;
  };
  const first = make();
  const { byteLength } = first;
  const states = [first, ...Array.from({ length: variant?.warm ? 0 : copies(byteLength) - 1 }, make)];
  let turn = 0;
  const call = (): Tensor => {
    const state = states[turn++ % states.length] as LinearState;
    return linearAttentionSync(...token, { ...how, state });
  };
  return {
    name: label(variant),
    side: 'ours',
    flops: stepFlops(given),
    // A step reads the state and writes it back.
    bytes: variant?.warm ? 0 : 2 * byteLength,
    call,
    check: async () => {
      const reference = referenceOf(inputs, method);
      return Math.max(...states.map(() => reference.check(label(variant), call())));
    },
    dispose: () => {
      for (const state of states) state.dispose();
    },
  };
}

/** onnxruntime's recurrence. Each of its states is read, and written to a tensor of its own. */
export async function peerSteps(
  peer: Onnxruntime,
  given: ApproximateCase,
  inputs: Inputs,
  copies: Copies,
  threads: number,
): Promise<Contender> {
  const { shape } = given;
  const { n, heads, dim } = shape;
  const [keys, values] = [headsOf(inputs.k), headsOf(inputs.v)];
  const state = new Float32Array(heads * dim * dim);
  for (let head = 0; head < heads; head++) {
    const past = (of: Float32Array) => of.subarray(0, (n - 1) * dim);
    state.set(product(transposed(past(keys(head)), dim), past(values(head)), n - 1), head * dim * dim);
  }
  const wide = ({ data }: Tensor) => peer.tensor('float32', data as Float32Array, [1, 1, heads * dim]);
  const token = { q: wide(inputs.q), k: wide(rows(inputs.k, n - 1, n)), v: wide(rows(inputs.v, n - 1, n)) };
  const bytes = 2 * state.byteLength;
  const own = () => peer.tensor('float32', state.slice(), [1, heads, dim, dim]);
  const runs = Array.from({ length: copies(bytes) }, () => ({
    feeds: { ...token, pastState: own() },
    fetches: { o: null, state: own() },
  }));

  const session = await peer.session(linearRecurrence(shape, true), threads);
  const name = nameOf(stepName);
  let turn = 0;
  const call = () => {
    const { feeds, fetches } = runs[turn++ % runs.length] as (typeof runs)[number];
    return session.run(feeds, fetches);
  };
  return {
    name,
    side: 'peer',
    flops: stepFlops(given),
    bytes,
    call,
    check: async () => referenceOf(inputs, given.method as LinearMethod).check(name, (await call()).o as Tensor),
    dispose: () => session.release(),
  };
}
