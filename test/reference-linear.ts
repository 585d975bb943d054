import type { BoolTensor, Tensor } from '../lib/tensor';
import { toFloat64 } from './half';
import { type Layout, problemOf } from './problem';
import type { Answer } from './reference';

/** A feature map by its definition. Weights are [outputs, headDim], or [heads, outputs, headDim] of their side. */
export interface MapMeaning {
  readonly kind: 'identity' | 'elu' | 'relu' | 'favor' | 'cosformer' | 'hedgehog' | 'taylor';
  readonly queryWeights?: Tensor;
  readonly keyWeights?: Tensor;
  readonly offset?: number;
  readonly matrix?: Tensor;
  readonly maxLength?: number;
  readonly joint?: boolean;
}

export interface LinearMeaning {
  readonly map: MapMeaning;
  readonly layout?: Layout;
  readonly causal?: boolean;
  readonly updateRule?: 'linear' | 'gated' | 'delta' | 'gatedDelta';
  readonly decay?: Tensor;
  readonly beta?: Tensor;
  readonly normalize?: boolean;
  readonly epsilon?: number;
  readonly scale?: number;
  readonly keyMask?: BoolTensor;
}

/** How every step is rounded. */
type Rounding = (value: number) => number;

const exact: Rounding = (value) => value;
const f32: Rounding = Math.fround;

/** Linear attention in float64, one token after the other. */
export function referenceLinear(q: Tensor, k: Tensor, v: Tensor, meaning: LinearMeaning): Answer {
  return run(q, k, v, meaning, exact);
}

/** The same with every step rounded to float32. */
export function naiveLinear(q: Tensor, k: Tensor, v: Tensor, meaning: LinearMeaning): Float64Array {
  return run(q, k, v, meaning, f32).values;
}

const { abs, exp, max, sqrt } = Math;

function run(q: Tensor, k: Tensor, v: Tensor, meaning: LinearMeaning, round: Rounding): Answer {
  const { map, layout = 'bhld', causal = false, updateRule = 'linear', decay, beta, keyMask } = meaning;
  const p = problemOf(q, k, v, { layout });
  const [qs, ks, vs] = [toFloat64(q), toFloat64(k), toFloat64(v)];
  const kvHeads = p.heads / p.group;
  const scale = meaning.scale ?? 1 / sqrt(p.headDim);
  const values = new Float64Array(p.dims.reduce((a, b) => a * b, 1));
  const answer: Answer = { values, scale: new Float64Array(values.length), dims: p.dims };
  const phi = featureMap(map, scale, round);
  /** Where the numbers of key j of a head start, if there are `width` of them. */
  const rowAt = (b: number, h: number, j: number, width: number) =>
    (layout === 'bhld' ? (b * kvHeads + h) * p.keys + j : (b * p.keys + j) * kvHeads + h) * width;

  for (let b = 0; b < p.batch; b++) {
    for (let g = 0; g < kvHeads; g++) {
      const state = new State(meaning, scale, p.valueDim, round);
      const read = (i: number) => {
        for (let h = g * p.group; h < (g + 1) * p.group; h++) {
          const row = p.row(q, b, h, i);
          const features = phi(qs.subarray(row, row + p.headDim), map.queryWeights ?? map.matrix, h, i);
          state.read(features, answer, p.row(p, b, h, i));
        }
      };
      for (let j = 0; j < p.keys; j++) {
        if (keyMask === undefined || keyMask.data[b * p.keys + j] !== 0) {
          const [keyRow, valueRow] = [p.row(k, b, g, j), p.row(v, b, g, j)];
          const features = phi(ks.subarray(keyRow, keyRow + p.headDim), map.keyWeights ?? map.matrix, g, j);
          const width = decay?.dims[3] ?? 1;
          const start = rowAt(b, g, j, width);
          state.update(
            updateRule,
            features,
            vs.subarray(valueRow, valueRow + p.valueDim),
            (f) => decay?.data[start + (width === 1 ? 0 : f)] as number,
            beta?.data[rowAt(b, g, j, 1)] as number,
          );
        }
        if (causal) read(j);
      }
      if (!causal) for (let i = 0; i < p.queries; i++) read(i);
    }
  }
  return answer;
}

/** What rounding errors keep of their size from one step of a delta rule to the next, at least. */
const slowest = 63 / 64;

/** S [F][valueDim] and z [F] of one head, and the sums of the absolute values of their terms. */
class State {
  readonly #normalize: boolean;
  readonly #epsilon: number;
  readonly #outputScale: number;
  readonly #logarithmic: boolean;
  #s = new Float64Array(0);
  #sizes = new Float64Array(0);
  #z = new Float64Array(0);
  #zSizes = new Float64Array(0);
  /** Largest logarithm of a feature of a key so far, which the state is divided by. */
  #largest = -1 / 0;

  constructor(
    { map, normalize, updateRule = 'linear', epsilon }: LinearMeaning,
    scale: number,
    readonly valueDim: number,
    readonly round: Rounding,
  ) {
    this.#normalize = normalize ?? updateRule === 'linear';
    this.#logarithmic = map.kind === 'favor';
    this.#epsilon = round(epsilon ?? (this.#logarithmic ? 0 : 1e-6));
    this.#outputScale = map.kind === 'taylor' ? 1 : round(scale);
  }

  update(
    rule: NonNullable<LinearMeaning['updateRule']>,
    given: Float64Array,
    value: Float64Array,
    decay: (feature: number) => number,
    beta: number,
  ): void {
    const { valueDim, round } = this;
    const features = Float64Array.from(given);
    const count = features.length;
    if (this.#z.length === 0) {
      [this.#s, this.#sizes] = [new Float64Array(count * valueDim), new Float64Array(count * valueDim)];
      [this.#z, this.#zSizes] = [new Float64Array(count), new Float64Array(count)];
    }
    const [s, sizes, z, zSizes] = [this.#s, this.#sizes, this.#z, this.#zSizes];
    const shrink = (f: number, factor: number) => {
      z[f] = round(z[f] * factor);
      zSizes[f] *= factor;
      for (let at = f * valueDim; at < (f + 1) * valueDim; at++) {
        s[at] = round(s[at] * factor);
        sizes[at] *= factor;
      }
    };
    if (this.#logarithmic) {
      const before = this.#largest;
      for (let f = 0; f < count; f++) this.#largest = max(this.#largest, features[f]);
      if (this.#largest !== before) {
        for (let f = 0; f < count; f++) shrink(f, round(exp(round(before - this.#largest))));
      }
      for (let f = 0; f < count; f++) features[f] = round(exp(round(features[f] - this.#largest)));
    }
    if (rule === 'gated' || rule === 'gatedDelta') {
      for (let f = 0; f < count; f++) shrink(f, round(exp(decay(f))));
    }
    const step = rule === 'delta' || rule === 'gatedDelta' ? beta : 1;
    for (let c = 0; c < valueDim; c++) {
      let known = 0;
      let knownSize = 0;
      if (rule === 'delta' || rule === 'gatedDelta') {
        for (let f = 0; f < count; f++) {
          known = round(known + round(features[f] * s[f * valueDim + c]));
          knownSize += abs(features[f] * s[f * valueDim + c]);
        }
        // What is replaced takes its rounding errors along, but not within a chunk of steps that are summed up together.
        for (let f = 0; f < count; f++)
          sizes[f * valueDim + c] *= max(abs(1 - step * features[f] * features[f]), slowest);
      }
      const added = round(step * round(value[c] - known));
      const addedSize = abs(step) * (abs(value[c]) + knownSize);
      for (let f = 0; f < count; f++) {
        const at = f * valueDim + c;
        s[at] = round(s[at] + round(features[f] * added));
        sizes[at] += abs(features[f]) * addedSize;
      }
    }
    for (let f = 0; f < count; f++) {
      z[f] = round(z[f] + features[f]);
      zSizes[f] += abs(features[f]);
    }
  }

  read(given: Float64Array, { values, scale }: Answer, at: number): void {
    const { valueDim, round } = this;
    // No key yet.
    if (this.#z.length === 0) return;
    const features = Float64Array.from(given);
    if (this.#logarithmic) {
      const largest = features.reduce((a, b) => max(a, b));
      for (let f = 0; f < features.length; f++) features[f] = round(exp(round(features[f] - largest)));
    }
    let denominator = 0;
    let denominatorSize = 0;
    for (let f = 0; f < features.length; f++) {
      denominator = round(denominator + round(features[f] * this.#z[f]));
      denominatorSize += abs(features[f]) * this.#zSizes[f];
    }
    denominator = round(denominator + this.#epsilon);
    for (let c = 0; c < valueDim; c++) {
      let sum = 0;
      let size = 0;
      for (let f = 0; f < features.length; f++) {
        sum = round(sum + round(features[f] * this.#s[f * valueDim + c]));
        size += abs(features[f]) * this.#sizes[f * valueDim + c];
      }
      if (!this.#normalize) {
        values[at + c] = round(this.#outputScale * sum);
        scale[at + c] = abs(this.#outputScale) * size;
      } else if (denominator !== 0) {
        values[at + c] = round(sum / denominator);
        scale[at + c] = (size + abs(values[at + c]) * denominatorSize) / abs(denominator);
      }
    }
  }
}

type Features = (x: Float64Array, weights: Tensor | undefined, head: number, position: number) => Float64Array;

/** φ of one row; for 'favor' its logarithm. */
function featureMap(map: MapMeaning, scale: number, round: Rounding): Features {
  switch (map.kind) {
    case 'identity':
      return (x) => x;
    case 'elu':
      return (x) => x.map((value) => (value > 0 ? round(value + 1) : round(exp(value))));
    case 'relu':
      return (x, weights, head) => {
        const projected = weights === undefined ? x : product(weights, head, x, round);
        return projected.map((value) => round(max(value, 0) + round(map.offset ?? 0)));
      };
    case 'favor':
      return (given, weights, head) => {
        const x = scaled(given, sqrt(scale), round);
        let square = 0;
        for (const value of x) square = round(square + round(value * value));
        return product(weights as Tensor, head, x, round).map((value) => round(value - round(square / 2)));
      };
    case 'cosformer':
      return (x, _weights, _head, position) => {
        const angle = round((Math.PI / 2) * ((position + 1) / (map.maxLength as number)));
        const half = (factor: number) => Array.from(x, (value) => round(max(value, 0) * factor));
        return Float64Array.from([...half(round(Math.sin(angle))), ...half(round(Math.cos(angle)))]);
      };
    case 'hedgehog':
      return (x, weights, head) => {
        const projected = Array.from(product(weights as Tensor, head, x, round));
        const negative = projected.map((value) => -value);
        if (map.joint === true) return softmax([...projected, ...negative], round);
        return Float64Array.from([...softmax(projected, round), ...softmax(negative, round)]);
      };
    case 'taylor':
      return (given) => {
        const x = scaled(given, sqrt(scale), round);
        const pairs: number[] = [];
        for (let i = 0; i < x.length; i++) {
          pairs.push(round(round(x[i] * x[i]) / Math.SQRT2));
          for (let j = i + 1; j < x.length; j++) pairs.push(round(x[i] * x[j]));
        }
        return Float64Array.from([1, ...x, ...pairs]);
      };
  }
}

function scaled(x: Float64Array, factor: number, round: Rounding): Float64Array {
  const rounded = round(factor);
  return x.map((value) => round(rounded * value));
}

function product({ data, dims }: Tensor, head: number, x: Float64Array, round: Rounding): Float64Array {
  const rows = dims.at(-2) as number;
  const start = dims.length === 3 ? head * rows * x.length : 0;
  return Float64Array.from({ length: rows }, (_, row) => {
    let sum = 0;
    for (let i = 0; i < x.length; i++) sum = round(sum + round((data[start + row * x.length + i] as number) * x[i]));
    return sum;
  });
}

function softmax(logits: readonly number[], round: Rounding): Float64Array {
  const largest = logits.reduce((a, b) => max(a, b));
  const weights = logits.map((logit) => round(exp(round(logit - largest))));
  const sum = weights.reduce((a, b) => round(a + b));
  return Float64Array.from(weights, (weight) => round(weight / sum));
}
