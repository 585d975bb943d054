/** onnxruntime's side of a case. */
import type { Tensor } from '../../tensor';
import { attentionFlops, type Contender, decodeFlops, kvBytes } from '../contender';
import { copy, type Inputs, makeInputs, positionsFirst, rows } from '../inputs';
import type { Copies } from '../ours';
import { fullReference } from '../reference/full';
import type { DecodeCase, DecodeForm, Form, PrefillCase } from '../suite';
import { type Attributes, groupQueryAttention, multiHeadAttention, onnxAttention, plainAttention } from './models';
import type { ElementType } from './onnx-model';
import type { Feeds, Onnxruntime, OnnxTensor } from './onnxruntime';

export const nameOf = (form: string): string => `onnxruntime ${form}`;

/** Why a form cannot take part, or undefined if it can. */
export function obstacle({ shape, type }: PrefillCase, form: Form, freeBytes: number): string | undefined {
  if (type === 'bfloat16') return 'onnxruntime has no bfloat16 attention on the CPU';
  if (type !== 'float32' && form === 'MatMul-Softmax-MatMul') return 'written for float32 only';
  // These hold all n × n scores, some of them twice; running out of memory would end more than this comparison.
  const scores = form === 'GroupQueryAttention' || form === 'MultiHeadAttention' ? 0 : 4 * shape.heads * shape.n ** 2;
  if (3 * scores > freeBytes / 2)
    return `needs about ${(scores / 2 ** 30).toFixed(1)} GiB for its scores, more than once`;
  return undefined;
}

/** A form of onnxruntime's for a prefill case. */
export async function peerPrefill(
  peer: Onnxruntime,
  { shape, causal, window, type }: PrefillCase,
  form: Form,
  threads: number,
): Promise<Contender> {
  const { n, heads, kvHeads, dim } = shape;
  const element = type as ElementType;
  const inputs = makeInputs(shape, type);
  const wrap = ({ data, dims }: Tensor, as: readonly number[] = dims): OnnxTensor =>
    peer.tensor(type, data as Float32Array, as);
  const flat = (of: Tensor): OnnxTensor => wrap(positionsFirst(of), [1, n, (of.dims[1] as number) * dim]);
  const none = (): OnnxTensor =>
    peer.tensor(type, type === 'float32' ? new Float32Array(0) : new Uint16Array(0), [1, kvHeads, 0, dim]);

  let model: Uint8Array;
  let feeds: Feeds;
  if (form === 'MultiHeadAttention') {
    model = multiHeadAttention(heads, dim, causal, element);
    feeds = { q: flat(inputs.q), k: flat(inputs.k), v: flat(inputs.v) };
  } else if (form === 'GroupQueryAttention') {
    const attributes: Attributes = window === undefined ? {} : { local_window_size: { int: window } };
    model = groupQueryAttention(heads, kvHeads, dim, attributes, element);
    const sizes = { lastKey: peer.int32(n - 1), total: peer.int32(n) };
    feeds = { q: flat(inputs.q), k: flat(inputs.k), v: flat(inputs.v), pastK: none(), pastV: none(), ...sizes };
  } else {
    const attributes = { is_causal: { int: causal ? 1 : 0 } };
    model = form === 'Attention' ? onnxAttention({ type: element, attributes }) : plainAttention(dim);
    feeds = { q: wrap(inputs.q), k: wrap(inputs.k), v: wrap(inputs.v) };
  }

  const session = await peer.session(model, threads);
  const name = nameOf(form);
  return {
    name,
    side: 'peer',
    flops: attentionFlops(shape, causal, window),
    bytes: 0,
    call: () => session.run(feeds),
    check: async () => {
      const { o } = await session.run(feeds);
      const reference = fullReference(inputs, { causal, ...(window === undefined ? {} : { window }) });
      return reference.check(name, o as Tensor, form === 'MultiHeadAttention' || form === 'GroupQueryAttention');
    },
    dispose: () => session.release(),
  };
}

/** A form of onnxruntime's for one decode step, always float32. Its keys and values take turns as our caches do. */
export async function peerDecode(
  peer: Onnxruntime,
  { shape }: DecodeCase,
  form: DecodeForm,
  inputs: Inputs,
  copies: Copies,
  threads: number,
): Promise<Contender> {
  const { n, heads, kvHeads, dim } = shape;
  const bytes = kvBytes(shape, 4);
  const wrap = ({ data, dims }: Tensor, as: readonly number[] = dims): OnnxTensor =>
    peer.tensor('float32', data as Float32Array, as);
  const given = form === 'Attention, keys given';
  const shared = form === 'GroupQueryAttention, shared';
  const model = given ? onnxAttention() : groupQueryAttention(heads, kvHeads, dim);
  const last = (of: Tensor): OnnxTensor => wrap(rows(of, n - 1, n), [1, 1, kvHeads * dim]);
  const step = {
    q: wrap(inputs.q, [1, 1, heads * dim]),
    k: last(inputs.k),
    v: last(inputs.v),
    lastKey: peer.int32(n - 1),
    total: peer.int32(n),
  };
  // A cache to be written in place has room for the new position; a past has not.
  const held = given || shared ? inputs : { k: rows(inputs.k, 0, n - 1), v: rows(inputs.v, 0, n - 1) };
  const runs = Array.from({ length: copies(bytes) }, () => {
    const [k, v] = [wrap(copy(held.k)), wrap(copy(held.v))];
    if (given) return { feeds: { q: wrap(inputs.q), k, v } };
    const feeds = { ...step, pastK: k, pastV: v };
    return shared ? { feeds, fetches: { o: null, allK: k, allV: v } } : { feeds };
  });

  const session = await peer.session(model, threads);
  const name = nameOf(form);
  let turn = 0;
  const call = () => {
    const { feeds, fetches } = runs[turn++ % runs.length] as {
      feeds: Feeds;
      fetches?: Record<string, OnnxTensor | null>;
    };
    return fetches === undefined ? session.run(feeds) : session.run(feeds, fetches);
  };
  return {
    name,
    side: 'peer',
    flops: decodeFlops(shape),
    bytes,
    call,
    check: async () => fullReference(inputs, { causal: true }).check(name, (await call()).o as Tensor),
    dispose: () => session.release(),
  };
}
