import { Message } from './protobuf';

/** Element types of onnx.proto's TensorProto.DataType that the models here use. */
const elementTypes = { float32: 1, int32: 6, int64: 7, bool: 9, float16: 10 } as const;

export type ElementType = keyof typeof elementTypes;

/** An input or output of a graph; a name in `dims` stands for an extent known at run time. */
export interface Value {
  readonly name: string;
  readonly type: ElementType;
  readonly dims: readonly (number | string)[];
}

export const value = (name: string, type: ElementType, dims: readonly (number | string)[]): Value => ({
  name,
  type,
  dims,
});

/** A tensor that is a part of the model. */
export interface Constant {
  readonly type: 'float32' | 'int64';
  readonly dims: readonly number[];
  readonly data: readonly number[];
}

export const scalar = (number: number): Constant => ({ type: 'float32', dims: [], data: [number] });

/** onnx.proto tells types apart by field, JavaScript does not: attributes say which they are. */
export type Attribute =
  | { readonly int: number }
  | { readonly float: number }
  | { readonly text: string }
  | { readonly ints: readonly number[] };

export interface Node {
  readonly op: string;
  /** Default ONNX's own operators. */
  readonly domain?: string;
  /** Names of values, `''` for an optional input left out. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes?: Readonly<Record<string, Attribute>>;
}

export interface Model {
  /** Version of ONNX's own operators. */
  readonly opset: number;
  readonly nodes: readonly Node[];
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  readonly constants?: Readonly<Record<string, Constant>>;
}

/** Domain of onnxruntime's own operators. */
export const microsoft = 'com.microsoft';

/** The bytes of an ONNX file. Numbers are the fields of onnx.proto. */
export function encodeModel({ opset, nodes, inputs, outputs, constants = {} }: Model): Uint8Array {
  const graph = new Message();
  for (const node of nodes) graph.message(1, encodeNode(node));
  graph.text(2, 'graph');
  for (const [name, constant] of Object.entries(constants)) graph.message(5, encodeConstant(name, constant));
  for (const value of inputs) graph.message(11, encodeValue(value));
  for (const value of outputs) graph.message(12, encodeValue(value));
  // The format's version: 11 came with opset 24, 10 with 21.
  return new Message()
    .int(1, opset >= 24 ? 11 : 10)
    .message(7, graph)
    .message(8, new Message().text(1, '').int(2, opset))
    .message(8, new Message().text(1, microsoft).int(2, 1))
    .finish();
}

function encodeNode({ op, domain = '', inputs, outputs, attributes = {} }: Node): Message {
  const message = new Message();
  for (const input of inputs) message.text(1, input);
  for (const output of outputs) message.text(2, output);
  message.text(4, op);
  for (const [name, attribute] of Object.entries(attributes)) message.message(5, encodeAttribute(name, attribute));
  return message.text(7, domain);
}

function encodeAttribute(name: string, attribute: Attribute): Message {
  const message = new Message().text(1, name);
  if ('float' in attribute) return message.float(2, attribute.float).int(20, 1);
  if ('int' in attribute) return message.int(3, attribute.int).int(20, 2);
  if ('text' in attribute) return message.text(4, attribute.text).int(20, 3);
  for (const item of attribute.ints) message.int(8, item);
  return message.int(20, 7);
}

function encodeConstant(name: string, { type, dims, data }: Constant): Message {
  const message = new Message();
  for (const extent of dims) message.int(1, extent);
  message.int(2, elementTypes[type]);
  for (const item of data) type === 'float32' ? message.float(4, item) : message.int(7, item);
  return message.text(8, name);
}

function encodeValue({ name, type, dims }: Value): Message {
  const shape = new Message();
  for (const extent of dims) {
    shape.message(1, typeof extent === 'string' ? new Message().text(2, extent) : new Message().int(1, extent));
  }
  const tensor = new Message().int(1, elementTypes[type]).message(2, shape);
  return new Message().text(1, name).message(2, new Message().message(1, tensor));
}
