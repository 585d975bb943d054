import { type Call, type CallOptions, callOptionNames, checkFlag, naming, nothing, runAsync, runSync } from './call';
import { checkOptions, checkOut, checkTensor, type Operand } from './check';
import { expected } from './errors';
import { addon, typeNumbers } from './native';
import { view } from './read';
import { allocate, type Tensor } from './tensor';

/** Options of {@link matmul}. */
export interface MatmulOptions extends CallOptions {
  /** Read `a` as `[…, k, m]` and multiply by its transpose. Default false. */
  readonly transposeA?: boolean;
  /** Read `b` as `[…, n, k]` and multiply by its transpose. Default false. */
  readonly transposeB?: boolean;
}

const optionNames: ReadonlySet<string> = new Set([...callOptionNames, 'transposeA', 'transposeB']);

/**
 * Matrix product of the last two axes, on a worker thread. Leading axes broadcast against each other as in numpy.
 *
 * @param a `[…, m, k]`, or `[…, k, m]` with `transposeA`, rank 2 or more
 * @param b `[…, k, n]`, or `[…, n, k]` with `transposeB`; its type may differ from a's
 * @returns `[…, m, n]` of a's type; sums are accumulated in float32
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT, ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function matmul(a: Tensor, b: Tensor, options?: MatmulOptions): Promise<Tensor> {
  return await runAsync(matmul, () => prepare(a, b, options));
}

/** {@link matmul} on the calling thread. */
export function matmulSync(a: Tensor, b: Tensor, options?: MatmulOptions): Tensor {
  return runSync(matmulSync, () => prepare(a, b, options));
}

function prepare(givenA: Tensor, givenB: Tensor, given: MatmulOptions | undefined): Call<Tensor> {
  const a = checkTensor('a', givenA);
  const b = checkTensor('b', givenB);
  const options: MatmulOptions = checkOptions('options', given, optionNames);
  const transposeA = checkFlag('transposeA', options.transposeA);
  const transposeB = checkFlag('transposeB', options.transposeB);
  const [rowsA, columnsA] = a.dims.slice(-2) as [number, number];
  const [m, k] = transposeA ? [columnsA, rowsA] : [rowsA, columnsA];
  const [rowsB, columnsB] = b.dims.slice(-2) as [number, number];
  const n = transposeB ? rowsB : columnsB;
  if ((transposeB ? columnsB : rowsB) !== k) {
    throw expected('ERR_SHAPE', 'b', `inner extent ${k} as in \`a\` (dims [${a.dims.join(', ')}])`, b.dims);
  }
  const batchDims = broadcast(a.dims.slice(0, -2), b.dims.slice(0, -2), b.dims);
  const batch = batchDims.reduce((product, extent) => product * extent, 1);
  const dims = [...batchDims, m, n];
  const output =
    options.out === undefined
      ? (allocate('out', dims, a.type) as Operand)
      : checkOut(options.out, dims, [a.data, b.data]);
  const starts = view.length(output.data) === 0 ? new Float64Array() : offsets(batchDims, a, b);
  const call = productCall({ a, b, output, starts, batch, m, n, k, transposeA, transposeB }, options);
  return { ...call, result: options.out ?? (output as Tensor) };
}

/** A batch of products `[m, k]` by `[k, n]` whose extents fit the memory. */
export interface Product {
  readonly a: Operand;
  readonly b: Operand;
  readonly output: Operand;
  /** First elements of the matrices of each batch item, as pairs (a, b). */
  readonly starts: Float64Array;
  readonly batch: number;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  /** What errors call a and b. Default so. */
  readonly names?: { readonly a: string; readonly b: string };
}

/** The native call of such products. */
export function productCall(product: Product, options: CallOptions): Call<Operand> {
  const { a, b, output, starts, batch, m, n, k, transposeA, transposeB, names = {} } = product;
  return {
    op: view.length(output.data) === 0 ? nothing : naming(addon.matmul, names),
    operands: [a.data, b.data, output.data, starts],
    numbers: Float64Array.of(
      typeNumbers[a.type],
      typeNumbers[b.type],
      typeNumbers[output.type],
      batch,
      m,
      n,
      k,
      transposeA ? 1 : 0,
      transposeB ? 1 : 0,
    ),
    options,
    result: output,
  };
}

function broadcast(a: readonly number[], b: readonly number[], received: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis) => {
    const [x, y] = [extentAt(a, axis, rank), extentAt(b, axis, rank)];
    if (x !== y && x !== 1 && y !== 1) {
      throw expected('ERR_SHAPE', 'b', `leading dims that broadcast against [${a.join(', ')}]`, received);
    }
    return x === 1 ? y : x;
  });
}

/** Extent of an axis of the broadcast dims in a tensor of fewer dims, aligned at the end. */
function extentAt(dims: readonly number[], axis: number, rank: number): number {
  return dims[axis - rank + dims.length] ?? 1;
}

/** First elements of each batch item's matrices, as pairs (a, b). */
function offsets(batchDims: readonly number[], a: Operand, b: Operand): Float64Array {
  const batch = batchDims.reduce((product, extent) => product * extent, 1);
  let result: Float64Array;
  try {
    result = new Float64Array(2 * batch);
  } catch (cause) {
    throw expected('ERR_MEMORY', 'out', 'a number of matrices that can be listed', batch, { cause });
  }
  for (const [column, { dims }] of [a, b].entries()) {
    const lead = dims.slice(0, -2);
    const size = (dims[lead.length] as number) * (dims[lead.length + 1] as number);
    for (let item = 0; item < batch; item++) {
      let rest = item;
      let stride = size;
      let offset = 0;
      for (let axis = batchDims.length - 1; axis >= 0; axis--) {
        const extent = batchDims[axis] as number;
        const own = extentAt(lead, axis, batchDims.length);
        offset += own === 1 ? 0 : (rest % extent) * stride;
        stride *= own;
        rest = Math.floor(rest / extent);
      }
      result[2 * item + column] = offset;
    }
  }
  return result;
}
