import type { LayerNorm } from './weights';

// The parts of the network that are neither products nor attention. All work on rows, [rows, width] with the last axis
// contiguous, and in place unless they say otherwise: at these sizes an allocation costs more than the arithmetic.

/** x + bias, for every row. `bias` is [width]. */
export function addBias(x: Float32Array, bias: Float32Array): Float32Array {
  const width = bias.length;
  for (let start = 0; start < x.length; start += width) {
    for (let i = 0; i < width; i++) x[start + i]! += bias[i]!;
  }
  return x;
}

/** max(0, x + bias), for every row. `bias` is [width]. */
export function addBiasRelu(x: Float32Array, bias: Float32Array): Float32Array {
  const width = bias.length;
  for (let start = 0; start < x.length; start += width) {
    for (let i = 0; i < width; i++) {
      const sum = x[start + i]! + bias[i]!;
      x[start + i] = sum > 0 ? sum : 0;
    }
  }
  return x;
}

/** x + y, of equal shapes. */
export function add(x: Float32Array, y: Float32Array): Float32Array {
  for (let i = 0; i < x.length; i++) x[i]! += y[i]!;
  return x;
}

const epsilon = 1e-6;

/** scale · (x − mean) / √(variance + ε) + bias over each row, into a new array: the residual still needs x. */
export function layerNorm(x: Float32Array, { scale, bias }: LayerNorm): Float32Array {
  const width = scale.length;
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += width) {
    let sum = 0;
    for (let i = 0; i < width; i++) sum += x[start + i]!;
    const mean = sum / width;
    let squares = 0;
    for (let i = 0; i < width; i++) squares += (x[start + i]! - mean) ** 2;
    const factor = 1 / Math.sqrt(squares / width + epsilon);
    for (let i = 0; i < width; i++) y[start + i] = (x[start + i]! - mean) * factor * scale[i]! + bias[i]!;
  }
  return y;
}

/**
 * The mean over each sequence's own positions: x is [batch, length, width], the result [batch, width].
 * A sequence of length 0 gives zeros.
 */
export function meanOverLength(x: Float32Array, lengths: readonly number[], width: number): Float32Array {
  const stride = x.length / lengths.length;
  const mean = new Float32Array(lengths.length * width);
  const sum = new Float64Array(width);
  for (const [sequence, length] of lengths.entries()) {
    sum.fill(0);
    for (let position = 0; position < length; position++) {
      const start = sequence * stride + position * width;
      for (let i = 0; i < width; i++) sum[i]! += x[start + i]!;
    }
    for (let i = 0; i < width; i++) mean[sequence * width + i] = sum[i]! / Math.max(length, 1);
  }
  return mean;
}

/** tanh(x), then each row divided by its Euclidean length. */
export function tanhNormalised(x: Float32Array, width: number): Float32Array {
  for (let start = 0; start < x.length; start += width) {
    let squares = 0;
    for (let i = 0; i < width; i++) {
      const value = Math.tanh(x[start + i]!);
      x[start + i] = value;
      squares += value * value;
    }
    const factor = 1 / Math.sqrt(Math.max(squares, 1e-12));
    for (let i = 0; i < width; i++) x[start + i]! *= factor;
  }
  return x;
}
