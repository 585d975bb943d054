/**
 * The methods of the low-rank family as a user of onnxruntime writes them: graphs of plain operators, inputs q, k, v
 * `[1, heads, length, dim]` and output o.
 */
import type { FeatureName, NystromMethod } from '../method';
import type { Shape } from '../suite';
import { type Constant, encodeModel, type Node, scalar, type Value, value } from './onnx-model';

const rows = ({ heads, dim }: Pick<Shape, 'heads' | 'dim'>, names: readonly string[]): Value[] =>
  names.map((name) => value(name, 'float32', [1, heads, 'n', dim]));

const integers = (...integers: number[]): Constant => ({ type: 'int64', dims: [integers.length], data: integers });

/** `factor` times the identity. */
function diagonal(size: number, factor: number): Constant {
  const data = Array.from({ length: size * size }, (_, i) => (i % (size + 1) === 0 ? factor : 0));
  return { type: 'float32', dims: [size, size], data };
}

/** Writes a graph node by node: each call names the operator, its inputs and its output, and gives the output's name. */
class Graph {
  readonly nodes: Node[] = [];

  add(op: string, inputs: readonly string[], output: string, attributes: Node['attributes'] = {}): string {
    this.nodes.push({ op, inputs, outputs: [output], attributes });
    return output;
  }

  transpose(input: string, output: string): string {
    return this.add('Transpose', [input], output, { perm: { ints: [0, 1, 3, 2] } });
  }

  /** softmax(a bᵀ · scale), of a constant `scale`. */
  weights(a: string, b: string, output: string): string {
    const dots = this.add('MatMul', [a, this.transpose(b, `${output}Keys`)], `${output}Dots`);
    const scores = this.add('Mul', [dots, 'scale'], `${output}Scores`);
    return this.add('Softmax', [scores], output, { axis: { int: -1 } });
  }

  encode(shape: Pick<Shape, 'heads' | 'dim'>, constants: Readonly<Record<string, Constant>>, more: Value[] = []) {
    const inputs = [...rows(shape, ['q', 'k', 'v']), ...more];
    return encodeModel({ opset: 21, nodes: this.nodes, inputs, outputs: rows(shape, ['o']), constants });
  }
}

const scaleOf = (dim: number): Constant => scalar(1 / Math.sqrt(dim));

/** Nyström attention for lengths that the number of landmarks divides. */
export function nystromGraph({ n, heads, dim }: Shape, { landmarks, iterations }: NystromMethod): Uint8Array {
  const graph = new Graph();
  const means = (of: string): string => {
    const segments = graph.add('Reshape', [of, 'segments'], `${of}Segments`);
    return graph.add('ReduceMean', [segments, 'withinSegment'], `${of}Means`, { keepdims: { int: 0 } });
  };
  const [queryMeans, keyMeans] = [means('q'), means('k')];
  graph.weights('q', keyMeans, 'left');
  graph.weights(queryMeans, keyMeans, 'middle');
  graph.weights(queryMeans, 'k', 'right');

  // Rows of the middle sum to 1, so that a matrix's largest sum of a column is the whole of Z's first denominator.
  graph.add('ReduceSum', ['middle', 'overRows'], 'columnSums');
  graph.add('ReduceMax', ['columnSums', 'overColumns'], 'largest');
  let z = graph.add('Div', [graph.transpose('middle', 'middleTransposed'), 'largest'], 'z');
  for (let i = 0; i < iterations; i++) {
    const az = graph.add('MatMul', ['middle', z], `az${i}`);
    let inner = az;
    for (const factor of [7, 15]) {
      const rest = graph.add('Sub', [`identity${factor}`, inner], `minus${factor}of${i}`);
      inner = graph.add('MatMul', [az, rest], `times${factor}of${i}`);
    }
    const rest = graph.add('Sub', ['identity13', inner], `minus13of${i}`);
    z = graph.add('Mul', [graph.add('MatMul', [z, rest], `times13of${i}`), 'quarter'], `z${i}`);
  }
  const seen = graph.add('MatMul', ['right', 'v'], 'seen');
  graph.add('MatMul', ['left', graph.add('MatMul', [z, seen], 'middleSeen')], 'o');

  return graph.encode(
    { heads, dim },
    {
      scale: scaleOf(dim),
      quarter: scalar(0.25),
      segments: integers(1, heads, landmarks, n / landmarks, dim),
      withinSegment: integers(3),
      overRows: integers(2),
      overColumns: integers(3),
      identity7: diagonal(landmarks, 7),
      identity15: diagonal(landmarks, 15),
      identity13: diagonal(landmarks, 13),
    },
  );
}

/** Linear attention over all keys, normalised. */
export function linearGraph(shape: Shape, featureMap: Exclude<FeatureName, 'identity'>): Uint8Array {
  const graph = new Graph();
  const features = (of: string): string => {
    if (featureMap === 'relu') return graph.add('Relu', [of], `${of}Features`);
    return graph.add('Add', [graph.add('Elu', [of], `${of}Elu`), 'one'], `${of}Features`);
  };
  const [query, key] = [features('q'), features('k')];
  graph.add('MatMul', [graph.transpose(key, 'kTransposed'), 'v'], 'state');
  graph.transpose(graph.add('ReduceSum', [key, 'overRows'], 'keySum', { keepdims: { int: 1 } }), 'keySumColumn');
  const numerator = graph.add('MatMul', [query, 'state'], 'numerator');
  graph.add('Div', [numerator, graph.add('MatMul', [query, 'keySumColumn'], 'denominator')], 'o');
  return graph.encode(shape, { overRows: integers(2), ...(featureMap === 'elu' ? { one: scalar(1) } : {}) });
}

/** Linformer; further inputs e and f `[projected, length]` project keys and values. */
export function linformerGraph(heads: number, dim: number, projected: number): Uint8Array {
  const graph = new Graph();
  const keys = graph.add('MatMul', ['e', 'k'], 'keys');
  const values = graph.add('MatMul', ['f', 'v'], 'values');
  graph.add('MatMul', [graph.weights('q', keys, 'weights'), values], 'o');
  const projections = ['e', 'f'].map((name) => value(name, 'float32', [projected, 'n']));
  return graph.encode({ heads, dim }, { scale: scaleOf(dim) }, projections);
}
