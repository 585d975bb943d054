/** From hidden states to the parts of keys and values: what `appendHidden` of an LRKV cache computes. */
import { type CallOptions, outlessOptionNames } from './call';
import { checkOptions, checkTensor, type Operand } from './check';
import { expected } from './errors';
import type { CheckedLrkvModel } from './lrkv-model';
import { type CheckedLrkvRows, type LrkvRowName, lrkvColumns, lrkvRowNames } from './lrkv-rows';
import { productCall } from './matmul';
import { type Steps, step } from './steps';
import { allocate, type Tensor } from './tensor';

/** The matrices `[modelDim, columns]` that make the parts of keys and values out of hidden states. Of any element types. */
export interface LrkvProjections {
  /** W_s of keys: `[modelDim, keyBaseDim]`. */
  readonly keyBase: Tensor;
  /** U_h of all heads side by side: `[modelDim, Σ key ranks]`. */
  readonly keyDown: Tensor;
  /** `[modelDim, valueBaseDim]` */
  readonly valueBase: Tensor;
  /** `[modelDim, Σ value ranks]` */
  readonly valueDown: Tensor;
}

/** Options of `appendHidden`. */
export interface LrkvAppendOptions extends Omit<CallOptions, 'out'> {}

/** The projection that makes each part. */
const projectionOf = {
  keyBase: 'keyBase',
  keyLatent: 'keyDown',
  valueBase: 'valueBase',
  valueLatent: 'valueDown',
} as const satisfies Record<LrkvRowName, keyof LrkvProjections>;

const projectionNames: ReadonlySet<string> = new Set(Object.values(projectionOf));
const optionNames: ReadonlySet<string> = new Set(outlessOptionNames);

export interface CheckedHidden {
  readonly hidden: Operand;
  /** Positions. */
  readonly count: number;
  readonly projections: Readonly<Record<LrkvRowName, Operand>>;
  readonly options: CallOptions;
}

export function checkHidden(
  hiddenStates: Tensor,
  given: LrkvProjections,
  givenOptions: LrkvAppendOptions | undefined,
  model: CheckedLrkvModel,
): CheckedHidden {
  const hidden = checkTensor('hidden', hiddenStates, 3);
  const [one, count, modelDim] = hidden.dims as [number, number, number];
  if (one !== 1) throw expected('ERR_SHAPE', 'hidden', 'dims [1, n, modelDim]', hidden.dims);
  if (given === undefined) throw expected('ERR_ARGUMENT', 'projections', '{ keyBase, keyDown, … }', given);
  const read = checkOptions<LrkvProjections>('projections', given, projectionNames);
  const columns = lrkvColumns(model);
  const projections = {} as Record<LrkvRowName, Operand>;
  for (const part of lrkvRowNames) {
    const name = projectionOf[part];
    const projection = checkTensor(name, read[name], 2);
    if (projection.dims[0] !== modelDim || projection.dims[1] !== columns[part])
      throw expected('ERR_SHAPE', name, `dims [${modelDim}, ${columns[part]}]`, projection.dims);
    projections[part] = projection;
  }
  return { hidden, count, projections, options: checkOptions('options', givenOptions, optionNames) };
}

/** The four products, in float32, which the cache rounds to its type once. */
export function* projectHidden({ hidden, count, projections, options }: CheckedHidden): Steps<CheckedLrkvRows> {
  const starts = Float64Array.of(0, 0);
  const rows = {} as Record<LrkvRowName, Operand>;
  for (const part of lrkvRowNames) {
    const b = projections[part];
    const [k, n] = b.dims as [number, number];
    const output = allocate('hidden', [1, count, n], 'float32') as Operand;
    const product = { a: hidden, b, output, starts, batch: 1, m: count, n, k, transposeA: false, transposeB: false };
    rows[part] = yield* step(productCall({ ...product, names: { a: 'hidden', b: projectionOf[part] } }, options));
  }
  return { ...rows, count, type: 'float32' };
}
