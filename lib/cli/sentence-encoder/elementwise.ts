import type { LayerNorm, Matrix } from './weights';

// The parts of the network that are neither products nor attention. All matrices are [rows, width], the last axis
// contiguous; `bias` and `scale` are [width].

/** x ← x + bias, for every row. */
export function addBias(x: Matrix, bias: Float32Array): Matrix {
  const { data } = x;
  const width = bias.length;
  for (let start = 0; start < data.length; start += width) {
    for (let i = 0; i < width; i++) data[start + i] = (data[start + i] as number) + (bias[i] as number);
  }
  return x;
}

/** x ← max(0, x + bias), for every row. */
export function addBiasRelu(x: Matrix, bias: Float32Array): Matrix {
  const { data } = x;
  const width = bias.length;
  for (let start = 0; start < data.length; start += width) {
    for (let i = 0; i < width; i++) data[start + i] = Math.max(0, (data[start + i] as number) + (bias[i] as number));
  }
  return x;
}

/** x ← x + y. */
export function add(x: Matrix, y: Matrix): Matrix {
  const [to, from] = [x.data, y.data];
  for (let i = 0; i < to.length; i++) to[i] = (to[i] as number) + (from[i] as number);
  return x;
}

const epsilon = 1e-6;

/** out ← scale · (x − mean) / √(variance + ε) + bias, with mean and variance of each row. */
export function layerNorm(x: Matrix, { scale, bias }: LayerNorm, out: Matrix): Matrix {
  const [from, to] = [x.data, out.data];
  const width = scale.length;
  for (let start = 0; start < from.length; start += width) {
    // Both sums in one pass: they are float64 over float32 values, so the difference of squares loses nothing that shows.
    let sum = 0;
    let squares = 0;
    for (let i = 0; i < width; i++) {
      const value = from[start + i] as number;
      sum += value;
      squares += value * value;
    }
    const mean = sum / width;
    const factor = 1 / Math.sqrt(Math.max(0, squares / width - mean * mean) + epsilon);
    for (let i = 0; i < width; i++) {
      to[start + i] = ((from[start + i] as number) - mean) * factor * (scale[i] as number) + (bias[i] as number);
    }
  }
  return out;
}

/**
 * out ← the mean over each sequence's own positions: x is [batch · length, width], out [batch, width].
 * A sequence of length 0 gives zeros.
 */
export function meanOverLength(x: Matrix, lengths: readonly number[], out: Matrix): Matrix {
  const [, width] = out.dims;
  const stride = x.data.length / lengths.length;
  const sum = new Float64Array(width);
  for (const [sequence, length] of lengths.entries()) {
    sum.fill(0);
    for (let position = 0; position < length; position++) {
      const start = sequence * stride + position * width;
      for (let i = 0; i < width; i++) sum[i] = (sum[i] as number) + (x.data[start + i] as number);
    }
    for (let i = 0; i < width; i++) {
      out.data[sequence * width + i] = (sum[i] as number) / Math.max(length, 1);
    }
  }
  return out;
}

/** x ← tanh(x), then each row divided by its Euclidean length. */
export function tanhNormalised(x: Matrix): Matrix {
  const { data } = x;
  const [, width] = x.dims;
  for (let start = 0; start < data.length; start += width) {
    let squares = 0;
    for (let i = 0; i < width; i++) {
      const value = Math.tanh(data[start + i] as number);
      data[start + i] = value;
      squares += value ** 2;
    }
    const factor = 1 / Math.sqrt(Math.max(squares, 1e-12));
    for (let i = 0; i < width; i++) data[start + i] = (data[start + i] as number) * factor;
  }
  return x;
}
