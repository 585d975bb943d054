// The sentence encoder's attention layers, as the conversion takes and gives them.
import { type Tensor, tensor } from '../../lib';
import { type Batch, type EncodeOptions, selfAttention } from '../../lib/cli/sentence-encoder/encoder';
import {
  type EncoderWeights,
  type Layer,
  type Linear,
  type Matrix,
  matrix,
} from '../../lib/cli/sentence-encoder/weights';
import { Workspace } from '../../lib/cli/sentence-encoder/workspace';
import type { AttentionWeights, LrkvWeights } from '../../lib/weights';
import { encodeAll } from '../sentence-encoder/batches';
import { multipliedOut } from './multiplied';

type Sentences = readonly (readonly number[])[];

export function attentionWeights({ heads, query, key, value, output }: Layer): AttentionWeights {
  const bias = ({ bias }: Linear) => tensor(bias, [bias.length]);
  return {
    ...{ heads, query: query.kernel, key: key.kernel, value: value.kernel, output: output.kernel },
    ...{ queryBias: bias(query), keyBias: bias(key), valueBias: bias(value), outputBias: bias(output) },
  };
}

/** The encoder with keys and values as the converted layers have them, multiplied out. */
export function withConverted(weights: EncoderWeights, converted: readonly LrkvWeights[]): EncoderWeights {
  const linear = (kernel: Tensor, bias: Tensor | undefined): Linear => ({
    kernel: kernel as Matrix,
    bias: (bias as Tensor).data as Float32Array,
  });
  const layers = weights.layers.map((layer, index) => {
    const { key, keyBias, value, valueBias } = multipliedOut(converted[index]);
    return { ...layer, key: linear(key, keyBias), value: linear(value, valueBias) };
  });
  return { ...weights, layers };
}

/** The encoder with attention over base and latents, as the converted layers have them. */
export function withLrkv(weights: EncoderWeights, converted: readonly LrkvWeights[]): EncoderWeights {
  const linear = (kernel: Tensor, bias: Tensor | undefined): Linear => ({
    kernel: kernel as Matrix,
    bias: bias === undefined ? new Float32Array(kernel.dims[1]) : (bias.data as Float32Array),
  });
  const layers = weights.layers.map((layer, index) => {
    const of = converted[index];
    const { keyUp, keyRanks, keyGauge, valueUp, valueRanks, valueGauge } = of;
    const lrkv = {
      keyBase: linear(of.keyBase, of.keyBaseBias),
      keyLatent: linear(of.keyDown, of.keyDownBias),
      valueBase: linear(of.valueBase, of.valueBaseBias),
      valueLatent: linear(of.valueDown, of.valueDownBias),
      model: {
        ...{ keyUp, keyRanks, valueUp, valueRanks },
        ...(keyGauge && { keyGauge }),
        ...(valueGauge && { valueGauge }),
      },
    };
    return { ...layer, lrkv };
  });
  return { ...weights, layers };
}

/** What enters the attention of a layer for one padded batch. */
export interface AttentionInput {
  readonly x: Matrix;
  readonly batch: Batch;
}

/** What enters the attention of each layer, batch after batch. */
export async function attentionInputs(
  weights: EncoderWeights,
  sentences: Sentences,
  options: EncodeOptions = {},
): Promise<AttentionInput[][]> {
  const inputs = weights.layers.map((): AttentionInput[] => []);
  await encodeAll(weights, sentences, {
    ...options,
    onAttention: (layer, { data, dims }, { lengths, length }) => {
      const batch = { lengths, length, options, workspace: new Workspace() };
      inputs[layer].push({ x: matrix(data.slice(), ...dims), batch });
    },
  });
  return inputs;
}

/** The rows of `x` that are no padding: [pieces, inner]. */
export function validRows(inputs: readonly AttentionInput[]): Matrix {
  const [, width] = inputs[0].x.dims;
  const pieces = inputs.reduce((sum, { batch }) => batch.lengths.reduce((all, length) => all + length, sum), 0);
  const rows = new Float32Array(pieces * width);
  let end = 0;
  for (const { x, batch } of inputs) {
    for (const [sequence, length] of batch.lengths.entries()) {
      const start = sequence * batch.length * width;
      rows.set(x.data.subarray(start, start + length * width), end);
      end += length * width;
    }
  }
  return matrix(rows, pieces, width);
}

/** Hidden states that enter the projections of each layer, as `fitLrkv` takes them: `[pieces, inner]` a layer. */
export async function hiddenStates(
  weights: EncoderWeights,
  sentences: Sentences,
  options?: EncodeOptions,
): Promise<Matrix[]> {
  return (await attentionInputs(weights, sentences, options)).map(validRows);
}

/** What a layer's attention adds to the residual, less the bias of its output: [pieces, 512]. */
export async function attentionOutputs(layer: Layer, inputs: readonly AttentionInput[]): Promise<Matrix> {
  const unbiased = { ...layer, output: { ...layer.output, bias: new Float32Array(layer.output.bias.length) } };
  const outputs: AttentionInput[] = [];
  for (const { x, batch } of inputs) {
    const { data, dims } = await selfAttention(unbiased, x, batch);
    outputs.push({ x: matrix(data.slice(), ...dims), batch });
  }
  return validRows(outputs);
}
