/** From hidden states to the parts of keys and values: what `appendHidden` of an LRKV cache computes. */
import { type CallOptions, outlessOptionNames } from './call';
import { checkAnyTensor, checkOptions, checkTensor, type Operand } from './check';
import { expected } from './errors';
import type { CheckedLrkvModel } from './lrkv-model';
import { type CheckedLrkvRows, type LrkvRowName, lrkvColumns, lrkvRowNames } from './lrkv-rows';
import { applyInto, type OperandMap, operandMap } from './projection';
import type { Steps } from './steps';
import { allocate, type Tensor } from './tensor';

/**
 * The matrices `[modelDim, columns]` that make the parts of keys and values out of hidden states, y = x·W + b. Of any
 * element types.
 */
export interface LrkvProjections {
  /** W_s of keys: `[modelDim, keyBaseDim]`. */
  readonly keyBase: Tensor;
  /** U_h of all heads side by side: `[modelDim, Σ key ranks]`. */
  readonly keyDown: Tensor;
  /** `[modelDim, valueBaseDim]` */
  readonly valueBase: Tensor;
  /** `[modelDim, Σ value ranks]` */
  readonly valueDown: Tensor;
  /** `[keyBaseDim]`. Default none. */
  readonly keyBaseBias?: Tensor;
  /** `[Σ key ranks]`. Default none. */
  readonly keyDownBias?: Tensor;
  /** `[valueBaseDim]`. Default none. */
  readonly valueBaseBias?: Tensor;
  /** `[Σ value ranks]`. Default none. */
  readonly valueDownBias?: Tensor;
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

const projectionNames: ReadonlySet<string> = new Set(
  Object.values(projectionOf).flatMap((name) => [name, `${name}Bias`]),
);
const optionNames: ReadonlySet<string> = new Set(outlessOptionNames);

export interface CheckedHidden {
  readonly hidden: Operand;
  /** Positions. */
  readonly count: number;
  readonly projections: Readonly<Record<LrkvRowName, OperandMap>>;
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
  const check = (name: keyof LrkvProjections, dims: readonly number[]): Tensor => {
    const tensor = checkAnyTensor(name, read[name], dims.length);
    if (tensor.dims.some((extent, axis) => extent !== dims[axis]))
      throw expected('ERR_SHAPE', name, `dims [${dims.join(', ')}]`, tensor.dims);
    return tensor;
  };
  const projections = {} as Record<LrkvRowName, OperandMap>;
  for (const part of lrkvRowNames) {
    const name = projectionOf[part];
    const weight = check(name, [modelDim, columns[part]]);
    const bias = read[`${name}Bias`] === undefined ? undefined : check(`${name}Bias`, [columns[part]]);
    projections[part] = operandMap({ weight, bias }, name);
  }
  return { hidden, count, projections, options: checkOptions('options', givenOptions, optionNames) };
}

/** The four products, in float32, which the cache rounds to its type once. */
export function* projectHidden({ hidden, count, projections, options }: CheckedHidden): Steps<CheckedLrkvRows> {
  const rows = {} as Record<LrkvRowName, Operand>;
  for (const part of lrkvRowNames) {
    const map = projections[part];
    const output = allocate('hidden', [1, count, map.weight.dims[1] as number], 'float32') as Operand;
    yield* applyInto(hidden, map, output, () => true, options);
    rows[part] = output;
  }
  return { ...rows, count, type: 'float32' };
}
