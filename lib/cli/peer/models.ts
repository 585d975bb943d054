/**
 * The forms in which onnxruntime offers attention, as models of one or a few nodes. Rows of queries, keys and values
 * are `[batch, length, heads · dim]` in onnxruntime's own operators and `[batch, heads, length, dim]` in ONNX's.
 */
import { type Attribute, type ElementType, encodeModel, microsoft, type Node, scalar, value } from './onnx-model';

/** A node's attributes by name. */
export type Attributes = Readonly<Record<string, Attribute>>;

/** Optional inputs and outputs of {@link onnxAttention}. */
export interface OnnxAttentionParts {
  /** Operator set, 23 or 24. Default 24. */
  readonly opset?: 23 | 24;
  readonly type?: ElementType;
  readonly mask?: { readonly type: ElementType; readonly dims: readonly (number | string)[] };
  /** Take past keys and values, and give all of them back. */
  readonly past?: boolean;
  /** is_causal, scale, softcap… as the operator names them. */
  readonly attributes?: Attributes;
}

/** ONNX's Attention: inputs q, k, v, mask, pastK, pastV; outputs o, allK, allV. Head counts and sizes are free. */
export function onnxAttention(parts: OnnxAttentionParts = {}): Uint8Array {
  const { opset = 24, type = 'float32', mask, past = false, attributes = {} } = parts;
  const inputs = [
    value('q', type, ['b', 'h', 's', 'd']),
    value('k', type, ['b', 'g', 't', 'd']),
    value('v', type, ['b', 'g', 't', 'e']),
  ];
  const outputs = [value('o', type, ['b', 'h', 's', 'e'])];
  const names = ['q', 'k', 'v'];
  if (mask !== undefined) inputs.push(value('mask', mask.type, mask.dims));
  if (mask !== undefined || past) names.push(mask === undefined ? '' : 'mask');
  if (past) {
    inputs.push(value('pastK', type, ['b', 'g', 'p', 'd']), value('pastV', type, ['b', 'g', 'p', 'e']));
    outputs.push(value('allK', type, ['b', 'g', 'u', 'd']), value('allV', type, ['b', 'g', 'u', 'e']));
    names.push('pastK', 'pastV');
  }
  const node = { op: 'Attention', inputs: names, outputs: outputs.map(({ name }) => name), attributes };
  return encodeModel({ opset, nodes: [node], inputs, outputs });
}

/** MultiHeadAttention: inputs q, k, v; output o. As many key/value heads as query heads. */
export function multiHeadAttention(
  heads: number,
  dim: number,
  causal = false,
  type: ElementType = 'float32',
): Uint8Array {
  const inputs = [
    value('q', type, ['b', 's', heads * dim]),
    value('k', type, ['b', 't', heads * dim]),
    value('v', type, ['b', 't', heads * dim]),
  ];
  const attributes = { num_heads: { int: heads }, unidirectional: { int: causal ? 1 : 0 } };
  const node = { op: 'MultiHeadAttention', domain: microsoft, inputs: ['q', 'k', 'v'], outputs: ['o'], attributes };
  return encodeModel({ opset: 21, nodes: [node], inputs, outputs: [value('o', type, ['b', 's', heads * dim])] });
}

/**
 * GroupQueryAttention, always causal: inputs q, k, v, pastK, pastV, lastKey (index of each sequence's last key),
 * total (positions in all); outputs o, allK, allV.
 */
export function groupQueryAttention(
  heads: number,
  kvHeads: number,
  dim: number,
  attributes: Attributes = {},
  type: ElementType = 'float32',
): Uint8Array {
  const inputs = [
    value('q', type, ['b', 's', heads * dim]),
    value('k', type, ['b', 's', kvHeads * dim]),
    value('v', type, ['b', 's', kvHeads * dim]),
    value('pastK', type, ['b', kvHeads, 'p', dim]),
    value('pastV', type, ['b', kvHeads, 'p', dim]),
    value('lastKey', 'int32', ['b']),
    value('total', 'int32', [1]),
  ];
  const outputs = [
    value('o', type, ['b', 's', heads * dim]),
    value('allK', type, ['b', kvHeads, 't', dim]),
    value('allV', type, ['b', kvHeads, 't', dim]),
  ];
  const node = {
    op: 'GroupQueryAttention',
    domain: microsoft,
    inputs: inputs.map(({ name }) => name),
    outputs: outputs.map(({ name }) => name),
    attributes: { num_heads: { int: heads }, kv_num_heads: { int: kvHeads }, ...attributes },
  };
  return encodeModel({ opset: 21, nodes: [node], inputs, outputs });
}

/** softmax(q kᵀ · scale) v spelled out: inputs q, k, v; output o. As many key/value heads as query heads. */
export function plainAttention(dim: number, type: ElementType = 'float32'): Uint8Array {
  const [rows, keys] = [
    ['b', 'h', 's', dim],
    ['b', 'h', 't', dim],
  ];
  const nodes: Node[] = [
    { op: 'Transpose', inputs: ['k'], outputs: ['kt'], attributes: { perm: { ints: [0, 1, 3, 2] } } },
    { op: 'Mul', inputs: ['q', 'scale'], outputs: ['scaled'] },
    { op: 'MatMul', inputs: ['scaled', 'kt'], outputs: ['scores'] },
    { op: 'Softmax', inputs: ['scores'], outputs: ['weights'], attributes: { axis: { int: -1 } } },
    { op: 'MatMul', inputs: ['weights', 'v'], outputs: ['o'] },
  ];
  return encodeModel({
    opset: 21,
    nodes,
    inputs: [value('q', type, rows), value('k', type, keys), value('v', type, keys)],
    outputs: [value('o', type, rows)],
    constants: { scale: scalar(1 / Math.sqrt(dim)) },
  });
}

/** A matrix product a · b of any leading dims. */
export function matrixProduct(): Uint8Array {
  return encodeModel({
    opset: 21,
    nodes: [{ op: 'MatMul', inputs: ['a', 'b'], outputs: ['o'] }],
    inputs: [value('a', 'float32', ['x', 'm', 'k']), value('b', 'float32', ['x', 'k', 'n'])],
    outputs: [value('o', 'float32', ['x', 'm', 'n'])],
  });
}

/** Optional inputs of {@link linearAttention}. */
export interface OnnxLinearParts {
  readonly rule: 'linear' | 'gated' | 'delta' | 'gated_delta';
  /** 1 a head, or one for each of its keys' elements. */
  readonly decayWidth?: number;
  /** Multiplies what is read. Default 1/√dim. */
  readonly scale?: number;
  /** Take a state to go on from. */
  readonly past?: boolean;
}

/**
 * LinearAttention, a recurrence without features or denominators: inputs q, k, v, pastState and what the rule needs of
 * decay and beta; outputs o and state `[batch, kvHeads, dim, valueDim]`.
 */
export function linearAttention(
  heads: number,
  kvHeads: number,
  dim: number,
  valueDim: number,
  { rule, decayWidth, scale, past = false }: OnnxLinearParts,
): Uint8Array {
  const inputs = [
    value('q', 'float32', ['b', 's', heads * dim]),
    value('k', 'float32', ['b', 's', kvHeads * dim]),
    value('v', 'float32', ['b', 's', kvHeads * valueDim]),
  ];
  const state = (name: string) => value(name, 'float32', ['b', kvHeads, dim, valueDim]);
  const names = ['q', 'k', 'v', '', '', ''];
  if (past) {
    inputs.push(state('pastState'));
    names[3] = 'pastState';
  }
  if (decayWidth !== undefined) {
    inputs.push(value('decay', 'float32', ['b', 's', kvHeads * decayWidth]));
    names[4] = 'decay';
  }
  if (rule === 'delta' || rule === 'gated_delta') {
    inputs.push(value('beta', 'float32', ['b', 's', kvHeads]));
    names[5] = 'beta';
  }
  const outputs = [value('o', 'float32', ['b', 's', heads * valueDim]), state('state')];
  const attributes: Attributes = {
    q_num_heads: { int: heads },
    kv_num_heads: { int: kvHeads },
    update_rule: { text: rule },
    ...(scale === undefined ? {} : { scale: { float: scale } }),
  };
  const used = names.slice(0, names.findLastIndex((name) => name !== '') + 1);
  const node = { op: 'LinearAttention', domain: microsoft, inputs: used, outputs: ['o', 'state'], attributes };
  return encodeModel({ opset: 21, nodes: [node], inputs, outputs });
}
