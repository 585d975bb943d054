import { checkTensor, type Operand } from './check';
import { expected } from './errors';
import type { CheckedLrkvModel } from './lrkv-model';
import type { DataType, Tensor } from './tensor';

/**
 * The parts of keys and values as the projections of hidden states give them: keys without rotation and normalisation.
 * All four of one element type, and rows of one number of positions.
 */
export interface LrkvRows {
  /** X·W_s of keys: `[batch, keys, keyBaseDim]`. keyBaseDim 0: no base. */
  readonly keyBase: Tensor;
  /** X·U_h of all heads side by side: `[batch, keys, Σ key ranks]`. */
  readonly keyLatent: Tensor;
  /** `[batch, keys, valueBaseDim]` */
  readonly valueBase: Tensor;
  /** `[batch, keys, Σ value ranks]` */
  readonly valueLatent: Tensor;
}

export const lrkvRowNames = ['keyBase', 'keyLatent', 'valueBase', 'valueLatent'] as const;
export type LrkvRowName = (typeof lrkvRowNames)[number];

export interface CheckedLrkvRows extends Readonly<Record<LrkvRowName, Operand>> {
  readonly count: number;
  readonly type: DataType;
}

/** Checks rows that have been read by `checkOptions` against each other. */
export function checkLrkvRows(given: Partial<LrkvRows>, batch: number): CheckedLrkvRows {
  const rows = {} as Record<LrkvRowName, Operand>;
  for (const name of lrkvRowNames) {
    const each = checkTensor(name, given[name], 3);
    const { dims, type } = rows.keyBase ?? each;
    if (each.dims[0] !== batch || each.dims[1] !== dims[1]) {
      const count = name === 'keyBase' ? 'keys' : dims[1];
      throw expected('ERR_SHAPE', name, `dims [${batch}, ${count}, columns]`, each.dims);
    }
    if (each.type !== type) throw expected('ERR_TYPE', name, `type '${type}' as in \`keyBase\``, each.type);
    rows[name] = each;
  }
  return { ...rows, count: rows.keyBase.dims[1] as number, type: rows.keyBase.type };
}

/** Columns of the four parts. */
export function lrkvColumns({ key, value }: CheckedLrkvModel): Record<LrkvRowName, number> {
  return {
    keyBase: key.baseDim,
    keyLatent: key.latentDim,
    valueBase: value.baseDim,
    valueLatent: value.latentDim,
  };
}

/** Checks that rows have as many columns as a model says. */
export function checkLrkvColumns(rows: CheckedLrkvRows, model: CheckedLrkvModel): void {
  const columns = lrkvColumns(model);
  for (const name of lrkvRowNames) {
    const { dims } = rows[name];
    if (dims[2] !== columns[name])
      throw expected('ERR_SHAPE', name, `dims [${dims[0]}, ${dims[1]}, ${columns[name]}]`, dims);
  }
}

/** The operands of rows, in the order of all native calls that take them. */
export function lrkvRowOperands(rows: CheckedLrkvRows): (Float32Array | Uint16Array)[] {
  return lrkvRowNames.map((name) => rows[name].data);
}
