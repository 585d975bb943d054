/**
 * The methods that are compared with exact attention, as a table: one entry each, with the knob that trades time for
 * error. Whatever is added here is run, timed, drawn and listed without another word.
 */
import {
  attentionFactors,
  type CallOptions,
  cosformer,
  elu,
  type FeatureMap,
  favor,
  linearAttention,
  linformerAttention,
  lowRankAttention,
  nystromAttention,
  relu,
  type Tensor,
  taylor,
  tensor,
} from '../../index';
import type { Inputs } from '../inputs';
import type { Setting } from './results';

/** Extents of queries, keys and values. */
export interface Shape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly length: number;
  readonly headDim: number;
  readonly valueDim: number;
}

export function shapeOf({ q, k, v }: Inputs): Shape {
  const [, heads, length, headDim] = q.dims as [number, number, number, number];
  return { heads, kvHeads: k.dims[1] as number, length, headDim, valueDim: v.dims[3] as number };
}

/** What a method's knob sets. */
export interface Knob {
  readonly name: string;
  readonly text: (value: number) => string;
  /** Swept, those that the length allows. */
  readonly values: readonly number[];
  /** Where one value has to do. */
  readonly standard: number;
  /** Whether a value cannot be more than the length. */
  readonly withinLength: boolean;
}

/** A method at one setting, ready to be called again and again. */
export type Call = (options: CallOptions) => Promise<Tensor>;

export interface Method {
  readonly id: string;
  readonly name: string;
  /** What must be known to judge its results. */
  readonly note?: string;
  readonly knob?: Knob;
  /**
   * Makes what a call works with. If it depends on q and k, its time belongs to every new input; if not, it is what a
   * model would have as weights.
   */
  readonly prepare: (inputs: Inputs, value: number, options: CallOptions) => Promise<Call>;
  readonly preparesInputs: boolean;
  /** What is held beside inputs and output, by the method's definition, in float32. */
  readonly extraBytes: (shape: Shape, value: number) => number;
}

const untrained = 'Needs training: a model has to be trained with it, and is not matched as it stands.';

const sizes = [16, 32, 64, 128, 256];

function linear(
  id: string,
  name: string,
  map: (shape: Shape, value: number) => FeatureMap,
  features: (shape: Shape, value: number) => number,
  more: Partial<Method> = {},
): Method {
  return {
    id,
    name,
    note: untrained,
    prepare: async (inputs, value) => {
      const featureMap = map(shapeOf(inputs), value);
      return (options) => linearAttention(inputs.q, inputs.k, inputs.v, { ...options, featureMap });
    },
    preparesInputs: false,
    // The state: a sum of features times values, and one of features.
    extraBytes: (shape, value) => 4 * shape.kvHeads * features(shape, value) * (shape.valueDim + 1),
    ...more,
  };
}

export const methods: readonly Method[] = [
  {
    id: 'nystrom',
    name: 'Nyström',
    knob: {
      name: 'landmarks',
      text: (value) => `${value} landmarks`,
      values: sizes,
      standard: 64,
      withinLength: true,
    },
    prepare:
      async ({ q, k, v }, landmarks) =>
      (options) =>
        nystromAttention(q, k, v, { ...options, landmarks }),
    preparesInputs: false,
    // Landmarks of queries and keys, their matrix and its inverse, and two products with values.
    extraBytes: ({ heads, headDim, valueDim }, m) => 4 * heads * 2 * (m * headDim + m * m + m * valueDim),
  },
  {
    id: 'linformer',
    name: 'Linformer',
    note: `${untrained} The projection here is untrained: means of segments.`,
    knob: {
      name: 'projected length',
      text: (value) => `projected to ${value}`,
      values: sizes,
      standard: 64,
      withinLength: true,
    },
    prepare: async ({ q, k, v }, projected) => {
      const keyProjection = segmentMeans(projected, k.dims[2] as number);
      return (options) => linformerAttention(q, k, v, { ...options, keyProjection });
    },
    preparesInputs: false,
    // Projected keys and values, and the projection.
    extraBytes: ({ kvHeads, length, headDim, valueDim }, p) => 4 * p * (kvHeads * (headDim + valueDim) + length),
  },
  linear(
    'favor',
    'FAVOR+',
    (_, features) => favor({ features, seed: 0 }),
    (_, features) => features,
    {
      note: 'Random features of the softmax kernel: the error grows exponentially with the size of logits.',
      knob: {
        name: 'features',
        text: (value) => `${value} features`,
        values: [64, 128, 256, 512],
        standard: 256,
        withinLength: false,
      },
    },
  ),
  linear('elu', 'linear (elu)', elu, ({ headDim }) => headDim),
  linear(
    'relu',
    'linear (relu)',
    () => relu(),
    ({ headDim }) => headDim,
  ),
  linear(
    'cosformer',
    'linear (cosFormer)',
    ({ length }) => cosformer({ maxLength: length }),
    ({ headDim }) => 2 * headDim,
  ),
  linear('taylor', 'linear (Taylor)', taylor, ({ headDim: d }) => 1 + d + (d * (d + 1)) / 2, {
    note: `${untrained} Meant for heads of about 16.`,
  }),
  {
    id: 'lowrank',
    name: 'low rank',
    note:
      'The best approximation of its rank, nearly. Its factors take several passes of exact attention, so it pays only ' +
      'where the same queries and keys meet many values.',
    knob: { name: 'rank', text: (value) => `rank ${value}`, values: sizes, standard: 64, withinLength: true },
    prepare: async ({ q, k, v }, rank, options) => {
      const factors = await attentionFactors(q, k, { ...options, rank });
      return (more) => lowRankAttention(factors, v, more);
    },
    preparesInputs: true,
    // The factors, and the product of one with values.
    extraBytes: ({ heads, length, valueDim }, rank) => 4 * heads * rank * (2 * length + valueDim),
  },
];

/** Values of a method's knob for a length; a method without a knob has one. */
export function settingsOf({ knob }: Method, length: number): (Setting | undefined)[] {
  if (knob === undefined) return [undefined];
  const { values, withinLength } = knob;
  return values.filter((value) => !withinLength || value <= length).map((value) => settingOf(knob, value));
}

/** The one value that stands for all; at several lengths, the same: that for the least of them. */
export function standardOf({ knob }: Method, length: number): Setting | undefined {
  if (knob === undefined) return undefined;
  return settingOf(knob, knob.withinLength ? Math.min(knob.standard, length) : knob.standard);
}

function settingOf({ name, text }: Knob, value: number): Setting {
  return { knob: name, value, text: text(value) };
}

/** [projected, length]: row i averages the i-th of as many segments, of sizes as equal as can be. */
function segmentMeans(projected: number, length: number): Tensor {
  const data = new Float32Array(projected * length);
  for (let row = 0; row < projected; row++) {
    const start = Math.floor((row * length) / projected);
    const end = Math.floor(((row + 1) * length) / projected);
    data.fill(1 / (end - start), row * length + start, row * length + end);
  }
  return tensor(data, [projected, length]);
}
