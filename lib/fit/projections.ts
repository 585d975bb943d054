/** Projections of a layer as float64 matrices. */
import { checkValues } from '../analysis/matrix';
import { float64, type Matrices } from '../linalg';
import type { Tensor } from '../tensor';
import type { AttentionWeights } from '../weights';
import { matrices } from './algebra';

const tensorNames = ['query', 'key', 'value', 'output', 'queryBias', 'keyBias', 'valueBias', 'outputBias'] as const;

/** Refuses numbers that are not finite before anything is computed. */
export function checkNumbers(name: string, weights: AttentionWeights): void {
  for (const of of tensorNames) {
    const tensor = weights[of];
    if (tensor !== undefined) checkValues(`${name}.${of}`, tensor);
  }
}

/** A projection `[modelDim + 1, columns]` with its bias, or zeros, as the last row. */
export function withBias(name: string, matrix: Tensor, bias: Tensor | undefined): Matrices {
  const { data, dims } = checkValues(name, matrix);
  const [rows, columns] = dims as [number, number];
  const whole = float64(name, data.length + columns);
  whole.set(data);
  if (bias !== undefined) whole.set(checkValues(`${name}Bias`, bias).data, data.length);
  return matrices(whole, 1, rows + 1, columns);
}
