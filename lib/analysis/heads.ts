import { runSync } from '../call';
import { expected, guard } from '../errors';
import { eigenOf, float64, type Matrices, productOf } from '../linalg';
import { attempt, isArray, readList } from '../read';
import { runStepsAsync, runStepsSync, type Steps, step } from '../steps';
import type { Tensor } from '../tensor';
import { type AnalysisOptions, checkAnalysisOptions, checkValues, expEntropy } from './matrix';

/**
 * How alike the heads of a layer are: cosines ⟨A_i, A_j⟩_F / (‖A_i‖·‖A_j‖) of their bilinear forms A_h = W_Q,h·W_K,hᵀ (LRKV,
 * arXiv 2601.11471). What leaves attention as it is, an invertible matrix between W_Q and W_K of a head, leaves the
 * form as it is too. Rotary embeddings are not seen, and every direction of the input counts alike: multiply both weights
 * by the square root of the input's covariance to weigh them.
 *
 * @param wq `[heads, modelDim, headDim]`
 * @param wk `[kvHeads, modelDim, headDim]`, heads a multiple of kvHeads; of any element type, as wq
 * @returns heads rows of heads numbers in [−1, 1], symmetric, 1 on the diagonal; computed in float64
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT (a number that is not finite, a head whose
 *   form is zero), ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function headSimilarity(wq: Tensor, wk: Tensor, options?: AnalysisOptions): Promise<number[][]> {
  return await runStepsAsync(headSimilarity, similaritySteps(wq, wk, options));
}

/** {@link headSimilarity} on the calling thread. */
export function headSimilaritySync(wq: Tensor, wk: Tensor, options?: AnalysisOptions): number[][] {
  return runStepsSync(headSimilaritySync, similaritySteps(wq, wk, options));
}

function* similaritySteps(wq: Tensor, wk: Tensor, given: AnalysisOptions | undefined): Steps<number[][]> {
  const options = checkAnalysisOptions(given);
  const query = checkValues('wq', wq, 3);
  const key = checkValues('wk', wk, 3);
  const [heads, modelDim, headDim] = query.dims as [number, number, number];
  const [kvHeads] = key.dims as [number];
  if (heads === 0 || modelDim === 0 || headDim === 0)
    throw expected('ERR_SHAPE', 'wq', 'at least one head, row and column', query.dims);
  if (key.dims[1] !== modelDim || key.dims[2] !== headDim)
    throw expected('ERR_SHAPE', 'wk', `${modelDim} rows and ${headDim} columns as in \`wq\``, key.dims);
  if (heads % kvHeads !== 0)
    throw expected('ERR_SHAPE', 'wk', `a number of heads that divides the ${heads} of \`wq\``, key.dims);

  // ⟨A_i, A_j⟩ = tr(W_K,iᵀ·W_K,j·W_Q,jᵀ·W_Q,i): products of headDim × headDim, never of modelDim × modelDim.
  const queryGram = yield* gramSteps(sideBySide('wq', query.data, heads, modelDim, headDim), options);
  const keyGram = yield* gramSteps(sideBySide('wk', key.data, kvHeads, modelDim, headDim), options);
  return similarityOf(queryGram, keyGram, { heads, kvHeads, headDim });
}

/**
 * Cosines of the forms of heads whose weights lie side by side, of products of these with themselves: W_Qᵀ·W_Q
 * `[heads·headDim]²` and W_Kᵀ·W_K `[kvHeads·headDim]²`.
 */
export function similarityOf(
  queryGram: Float64Array,
  keyGram: Float64Array,
  { heads, kvHeads, headDim }: { readonly heads: number; readonly kvHeads: number; readonly headDim: number },
  name = 'wq',
): number[][] {
  const inner = (i: number, j: number): number => {
    const [keyI, keyJ] = [i, j].map((head) => Math.floor((head * kvHeads) / heads)) as [number, number];
    let sum = 0;
    for (let a = 0; a < headDim; a++) {
      const queryRow = (i * headDim + a) * heads * headDim + j * headDim;
      const keyRow = (keyI * headDim + a) * kvHeads * headDim + keyJ * headDim;
      for (let b = 0; b < headDim; b++) sum += (queryGram[queryRow + b] as number) * (keyGram[keyRow + b] as number);
    }
    return sum;
  };
  const norms = Array.from({ length: heads }, (_, head) => Math.sqrt(inner(head, head)));
  const zero = norms.findIndex((norm) => !(norm > 0));
  if (zero >= 0) throw expected('ERR_ARGUMENT', name, 'heads whose W_Q·W_Kᵀ is not zero', zero);
  const similarity = Array.from({ length: heads }, () => Array<number>(heads).fill(1));
  for (let i = 0; i < heads; i++) {
    for (let j = 0; j < i; j++) {
      const cosine = inner(i, j) / ((norms[i] as number) * (norms[j] as number));
      const bounded = Math.min(1, Math.max(-1, cosine));
      (similarity[i] as number[])[j] = bounded;
      (similarity[j] as number[])[i] = bounded;
    }
  }
  return similarity;
}

/** Heads `[heads, rows, columns]` as one matrix `[rows, heads·columns]`. */
function sideBySide(name: string, source: Float64Array, heads: number, rows: number, columns: number): Matrices {
  const data = float64(name, source.length);
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < rows; row++) {
      const from = (head * rows + row) * columns;
      data.set(source.subarray(from, from + columns), (row * heads + head) * columns);
    }
  }
  return { data, batch: 1, rows, columns: heads * columns };
}

function* gramSteps(matrix: Matrices, options: AnalysisOptions): Steps<Float64Array> {
  return yield* step(productOf(matrix, matrix, options));
}

/** How many different heads a layer has in effect, as shares. */
export interface HeadDiversity {
  /** exp-entropy of the eigenvalues of S, divided by the number of heads H. 1: mutually orthogonal forms. */
  readonly uncentred: number;
  /**
   * The same of the centred (I − 1/H)·S·(I − 1/H), as kernel PCA has it, divided by H. That matrix has at most H − 1
   * eigenvalues above 0, so this never exceeds (H − 1)/H.
   */
  readonly centredOfHeads: number;
  /** The same divided by H − 1, which it can reach. 0 where all heads are the same. */
  readonly centredOfCeiling: number;
}

/**
 * Diversity of heads from their similarities (LRKV, arXiv 2601.11471, which reports the first two). Computed in float64.
 *
 * @param similarity what {@link headSimilarity} gives: at least 2 rows, symmetric
 * @throws AttentionError ERR_SHAPE, ERR_ARGUMENT, ERR_TYPE, ERR_MEMORY
 */
export function headDiversity(similarity: readonly ArrayLike<number>[]): HeadDiversity {
  return guard(headDiversity, () => {
    const data = checkSimilarity(similarity);
    const heads = Math.sqrt(data.length);
    const matrix = { data, batch: 1, rows: heads, columns: heads };
    const centred = { ...matrix, data: doubleCentred(data, heads) };
    const effective = (of: Matrices): number => {
      const { values } = runSync(headDiversity, () => eigenOf(of, false));
      // Of identical heads the centred matrix is rounding alone, which must not be taken for heads.
      return expEntropy(values.map((value) => (value > 1e-12 * heads ? value : 0)));
    };
    const ofCentred = effective(centred);
    return {
      uncentred: effective(matrix) / heads,
      centredOfHeads: ofCentred / heads,
      centredOfCeiling: ofCentred / (heads - 1),
    };
  });
}

function checkSimilarity(similarity: unknown): Float64Array {
  const name = 'similarity';
  if (!isArray(similarity)) throw expected('ERR_TYPE', name, 'a list of rows', similarity);
  const heads = attempt(name, () => similarity.length);
  if (heads < 2) throw expected('ERR_SHAPE', name, 'at least 2 rows', heads);
  const data = float64(name, heads * heads);
  readList(
    name,
    similarity,
    (length) => length === heads,
    (row, i) => {
      const check = (value: unknown, j: number): void => {
        if (typeof value !== 'number' || !Number.isFinite(value))
          throw expected('ERR_ARGUMENT', `${name}[${i}][${j}]`, 'a finite number', value);
        data[i * heads + j] = value;
      };
      if (readList(`${name}[${i}]`, row, (length) => length === heads, check) === undefined)
        throw expected('ERR_SHAPE', `${name}[${i}]`, `${heads} numbers, as many as there are rows`, row);
    },
  );
  for (let i = 0; i < heads; i++) {
    for (let j = 0; j < i; j++) {
      const [value, mirrored] = [data[i * heads + j] as number, data[j * heads + i] as number];
      if (Math.abs(value - mirrored) > 1e-6)
        throw expected('ERR_ARGUMENT', `${name}[${i}][${j}]`, `a symmetric matrix (${mirrored} here)`, value);
    }
  }
  return data;
}

/** (I − 1/n)·S·(I − 1/n). */
function doubleCentred(data: Float64Array, n: number): Float64Array {
  const means = Float64Array.from({ length: n }, (_, i) => {
    return data.subarray(i * n, (i + 1) * n).reduce((sum, value) => sum + value, 0) / n;
  });
  const mean = means.reduce((sum, value) => sum + value, 0) / n;
  return data.map((value, index) => {
    return value - (means[Math.floor(index / n)] as number) - (means[index % n] as number) + mean;
  });
}
