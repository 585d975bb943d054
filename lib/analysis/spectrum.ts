import { checkFlag } from '../call';
import { checkInteger, checkOptions } from '../check';
import { expected } from '../errors';
import {
  checkMatrices,
  checkOversample,
  checkPowerIterations,
  type SketchOptions,
  sketchCall,
  sketchOptionNames,
  sketchRefused,
} from '../lowrank';
import { runStepsAsync, runStepsSync, type Steps, step } from '../steps';
import type { Tensor } from '../tensor';

/** Options of {@link spectrum}. */
export interface SpectrumOptions extends SketchOptions {
  /** Singular values wanted, from 1 to the smaller of queries and keys. Default all where exact, else at most 64. */
  readonly count?: number;
  /**
   * Decompose the whole matrix: every singular value to float32 rounding, in O(n²) memory and O(n³) time, and without
   * `oversample` and `powerIterations`, which are refused beside it; an abort waits for the decompositions at work. Default
   * where queries and keys are at most 512, whatever those two are.
   */
  readonly exact?: boolean;
}

/** Singular values of one attention matrix. */
export interface Spectrum {
  /** Descending. */
  readonly values: Float64Array;
  /** Σσ² = ‖A‖_F² over all singular values, also those beyond `values`. */
  readonly energy: number;
  /** Whether `values` come from the whole matrix. If not, none of them exceeds the true one. */
  readonly exact: boolean;
}

const optionNames: ReadonlySet<string> = new Set([...sketchOptionNames, 'count', 'exact']);
/** Up to so many queries and keys the whole matrix is decomposed by default. */
export const exactLength = 512;
const usualCount = 64;

/**
 * Singular values of the attention matrices softmax(scale·QKᵀ), on a worker thread.
 *
 * Large matrices are never formed: their leading values come from the passes of `attentionFactors`. Those found are
 * singular values of a projection of A, so lower bounds of the true ones; the leading ones are met best, and more
 * `oversample` and `powerIterations` bring the last ones nearer, which in causal attention fall slowly. `energy` is measured
 * apart, so the share Σσ²/energy is honest whatever is missing. Rounding, as float32 has it, is about 1e-7 of the
 * largest value. A matrix that holds NaN has NaN values.
 *
 * @param q `[batch, heads, queries, headDim]`
 * @param k `[batch, kvHeads, keys, headDim]`, heads a multiple of kvHeads
 * @returns one spectrum for each batch item and head, `[item][head]`
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function spectrum(q: Tensor, k: Tensor, options?: SpectrumOptions): Promise<Spectrum[][]> {
  return await runStepsAsync(spectrum, spectrumSteps(q, k, options));
}

/** {@link spectrum} on the calling thread. */
export function spectrumSync(q: Tensor, k: Tensor, options?: SpectrumOptions): Spectrum[][] {
  return runStepsSync(spectrumSync, spectrumSteps(q, k, options));
}

function* spectrumSteps(q: Tensor, k: Tensor, given: SpectrumOptions | undefined): Steps<Spectrum[][]> {
  const options: SpectrumOptions = checkOptions('options', given, optionNames, sketchRefused);
  const { qk, most } = checkMatrices(q, k, options);
  const exact =
    options.exact === undefined ? Math.max(qk.queries, qk.keys) <= exactLength : checkFlag('exact', options.exact);
  const count =
    options.count === undefined
      ? exact
        ? most
        : Math.min(usualCount, most)
      : checkInteger('count', options.count, 1, most);
  const oversample = checkOversample(options.oversample);
  const powerIterations = checkPowerIterations(options.powerIterations);
  for (const name of ['oversample', 'powerIterations'] as const) {
    if (options.exact === true && options[name] !== undefined)
      throw expected('ERR_ARGUMENT', name, 'nothing beside `exact`', options[name]);
  }
  const { singularValues, energies, rank } = yield* step(
    sketchCall(
      {
        qk,
        // As many columns as the matrix has rows or columns span all of its range: nothing is left to chance.
        rank: exact ? most : count,
        oversample: exact ? 0 : oversample,
        powerIterations: exact ? 0 : powerIterations,
        energy: 0,
        withEnergies: !exact,
        withFactors: false,
      },
      options,
    ),
  );
  const spectrumOf = (matrix: number): Spectrum => {
    const values = singularValues.subarray(matrix * rank, (matrix + 1) * rank);
    const energy =
      energies === null ? values.reduce((sum, value) => sum + value * value, 0) : (energies[matrix] as number);
    return { values: values.slice(0, count), energy, exact };
  };
  return Array.from({ length: qk.batch }, (_, item) =>
    Array.from({ length: qk.heads }, (_, head) => spectrumOf(item * qk.heads + head)),
  );
}
