import { matmulSync, type Tensor, tensor } from '../../lib';
import type { AttentionWeights, LrkvWeights } from '../../lib/weights';

/**
 * The weights of ordinary attention that converted ones stand for: W_h = W_s·A_h + U_h·B_hᵀ, and biases alike. With them the
 * quality of a conversion can be measured in any program that runs the model, for keys are the same before they are rotated
 * as LRKV's are with `ropeMode: 'exact'`.
 */
export function multipliedOut(weights: LrkvWeights): AttentionWeights {
  const { query, output, queryBias, outputBias, heads, kvHeads = heads, rope, qkNorm, scale } = weights;
  const key = side(kvHeads, {
    base: weights.keyBase,
    down: weights.keyDown,
    up: weights.keyUp,
    gauge: weights.keyGauge,
    ranks: weights.keyRanks,
    baseBias: weights.keyBaseBias,
    downBias: weights.keyDownBias,
  });
  const value = side(kvHeads, {
    base: weights.valueBase,
    down: weights.valueDown,
    up: weights.valueUp,
    gauge: weights.valueGauge,
    ranks: weights.valueRanks,
    baseBias: weights.valueBaseBias,
    downBias: weights.valueDownBias,
  });
  return {
    ...{ query, key: key.kernel, value: value.kernel, output, heads, kvHeads },
    ...{ keyBias: key.bias, valueBias: value.bias },
    ...(queryBias && { queryBias }),
    ...(outputBias && { outputBias }),
    ...(rope && { rope }),
    ...(qkNorm && { qkNorm }),
    ...(scale !== undefined && { scale }),
  };
}

interface Side {
  readonly base: Tensor;
  readonly down: Tensor;
  readonly up: Tensor;
  readonly gauge: Tensor | undefined;
  readonly ranks: readonly number[];
  readonly baseBias: Tensor | undefined;
  readonly downBias: Tensor | undefined;
}

/** [W_s U_1 … U_H]·right, and the same of the biases. */
function side(kvHeads: number, of: Side): { kernel: Tensor; bias: Tensor } {
  const [inputs, baseDim] = of.base.dims;
  const inner = baseDim + of.down.dims[1];
  const left = new Float32Array((inputs + 1) * inner);
  const put = (from: Tensor | undefined, row: number, column: number, rows: number, columns: number) => {
    for (let i = 0; from !== undefined && i < rows; i++) {
      left.set((from.data as Float32Array).subarray(i * columns, (i + 1) * columns), (row + i) * inner + column);
    }
  };
  put(of.base, 0, 0, inputs, baseDim);
  put(of.down, 0, baseDim, inputs, inner - baseDim);
  put(of.baseBias, inputs, 0, 1, baseDim);
  put(of.downBias, inputs, baseDim, 1, inner - baseDim);
  const { data, dims } = matmulSync(tensor(left, [inputs + 1, inner]), rightOf(kvHeads, of));
  const all = data as Float32Array;
  const columns = dims[1];
  return {
    kernel: tensor(all.slice(0, inputs * columns), [inputs, columns]),
    bias: tensor(all.slice(inputs * columns), [columns]),
  };
}

/** [baseDim + Σ ranks, heads · dim]: the gauges side by side, and below them the B_hᵀ along the diagonal. */
function rightOf(kvHeads: number, { base, up, gauge, ranks }: Side): Tensor {
  const baseDim = base.dims[1];
  const dim = up.dims[1];
  const width = kvHeads * dim;
  const right = new Float32Array((baseDim + up.dims[0]) * width);
  let rank = 0;
  for (let head = 0; head < kvHeads; head++) {
    for (let i = 0; i < baseDim; i++) {
      if (gauge === undefined) right[i * width + head * dim + i] = 1;
      else {
        const start = (head * baseDim + i) * dim;
        right.set((gauge.data as Float32Array).subarray(start, start + dim), i * width + head * dim);
      }
    }
    for (let end = rank + ranks[head]; rank < end; rank++) {
      const row = (up.data as Float32Array).subarray(rank * dim, (rank + 1) * dim);
      right.set(row, (baseDim + rank) * width + head * dim);
    }
  }
  return tensor(right, [baseDim + up.dims[0], width]);
}
