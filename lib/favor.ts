import { checkInteger, checkOptions } from './check';
import { expected, guard } from './errors';
import { checkSeed, normals } from './random';
import { allocate, type TensorOf } from './tensor';

/** What {@link favorMatrix} is made from. */
export interface FavorMatrixOptions {
  /** Head size of queries and keys, >= 1. */
  readonly headDim: number;
  /** Rows, >= 1. Default round(headDim · ln headDim), at least 1. */
  readonly features?: number;
  /** Any integer from 0 to 2³² − 1. Default 0. */
  readonly seed?: number;
}

const matrixOptionNames: ReadonlySet<string> = new Set(['headDim', 'features', 'seed']);

/** Above this many operations, tens of seconds of them, the matrix is not made on the calling thread. */
const mostWork = 2 ** 32;

/** Operations that a normal number takes, about. */
const drawing = 16;

/**
 * The random matrix of {@link favor}: blocks of orthogonal rows, each row as long as a normal vector of headDim numbers
 * (Choromanski et al. 2021, arXiv 2009.14794, section 2.4). The same seed gives the same matrix on every machine.
 *
 * A model depends on the matrix it was trained or converted with: save it with the weights, give it as
 * `favor({ matrix })`, and never draw another one. The cost is features · headDim · min(features, headDim)
 * multiplications on the calling thread.
 *
 * @returns float32 `[features, headDim]`
 * @throws AttentionError ERR_ARGUMENT, ERR_MEMORY, ERR_UNSUPPORTED (a matrix that would take far longer than seconds)
 */
export function favorMatrix(options: FavorMatrixOptions): TensorOf<'float32'> {
  return guard(favorMatrix, () => {
    if (options === undefined) throw expected('ERR_ARGUMENT', 'options', '{ headDim, … }', options);
    const given = checkOptions<FavorMatrixOptions>('options', options, matrixOptionNames);
    const headDim = checkInteger('headDim', given.headDim, 1);
    const features = given.features === undefined ? undefined : checkInteger('features', given.features, 1);
    return orthogonalFeatures(headDim, features, given.seed === undefined ? 0 : checkSeed(given.seed));
  });
}

/** As many features as their variance asks for (ibid., theorem 4). */
export function defaultFeatures(headDim: number): number {
  return Math.max(1, Math.round(headDim * Math.log(headDim)));
}

/** {@link favorMatrix} of checked arguments. */
export function orthogonalFeatures(headDim: number, given: number | undefined, seed: number): TensorOf<'float32'> {
  const features = given ?? defaultFeatures(headDim);
  const work = features * headDim * (2 * Math.min(features, headDim) + drawing);
  if (work > mostWork)
    throw expected('ERR_UNSUPPORTED', 'features', 'a matrix that is made within seconds', [features, headDim]);
  const result = allocate('features', [features, headDim], 'float32') as TensorOf<'float32'>;
  const normal = normals(seed);
  for (let start = 0; start < features; start += headDim) {
    const rows = orthonormalRows(headDim, Math.min(headDim, features - start), normal);
    for (const [row, values] of rows.entries()) result.data.set(values, (start + row) * headDim);
  }
  for (let row = 0; row < features; row++) {
    let square = 0;
    for (let i = 0; i < headDim; i++) square += normal() ** 2;
    const norm = Math.sqrt(square);
    for (let i = row * headDim; i < (row + 1) * headDim; i++) result.data[i] = norm * (result.data[i] as number);
  }
  return result;
}

/**
 * The first `count` rows of a random rotation: normal rows made orthogonal by Gram-Schmidt, whose directions keep their
 * signs, so that the rotation is uniformly distributed. Done twice, as once loses digits where rows are nearly parallel.
 */
function orthonormalRows(dim: number, count: number, normal: () => number): Float64Array[] {
  const rows: Float64Array[] = [];
  while (rows.length < count) {
    const row = Float64Array.from({ length: dim }, normal);
    for (const other of [...rows, ...rows]) {
      let dot = 0;
      for (let i = 0; i < dim; i++) dot += (row[i] as number) * (other[i] as number);
      for (let i = 0; i < dim; i++) row[i] = (row[i] as number) - dot * (other[i] as number);
    }
    const norm = Math.sqrt(row.reduce((sum, value) => sum + value * value, 0));
    rows.push(row.map((value) => value / norm));
  }
  return rows;
}
