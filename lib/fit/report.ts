/** What a fit says of itself. */
import { paddedRank } from '../lrkv-model';
import type { DataType } from '../tensor';
import type { Gauge } from './als';
import type { FittedSide } from './finish';
import type { FitLayer } from './options';
import { storedComponents } from './ranks';
import { type Side, sides } from './source';

/** One key/value head. */
export interface LrkvHeadReport {
  readonly rank: number;
  /** What a cache keeps for it: the rank, padded to a multiple of 8. */
  readonly allocatedRank: number;
  /** Relative error in the fitted norm, in float64: ‖C^{1/2}·(W − Ŵ)·M^{1/2}‖ / ‖C^{1/2}·W·M^{1/2}‖. */
  readonly predictedError: number;
  /** The same on the calibration rows themselves, without damping, through the weights as rounded to their type. */
  readonly measuredError: number;
  /** ‖C^{1/2}·W·M^{1/2}‖², what the squares of `spectrum` are shares of. */
  readonly energy: number;
  /** Singular values of the head less its base in the fitted norm, descending: those from `rank` on are left out. */
  readonly spectrum: Float64Array;
}

/** The keys or the values of a layer. */
export interface LrkvSideReport {
  /** Gauge that was kept: `'none'` also where a base was tried and was no better than none at the same memory. */
  readonly gauge: Gauge;
  /**
   * Relative errors with a base and without one, undefined what was not tried: both within the same memory, or with `energy`
   * both at the ranks that keep it. Known to 1e-8.
   */
  readonly baseError: number | undefined;
  readonly noBaseError: number | undefined;
  /** Of all heads together, as of each. */
  readonly predictedError: number;
  readonly measuredError: number;
  /** Relative error after each iteration of the fit that was kept, under the ranks it was made with; known to 1e-8. */
  readonly history: readonly number[];
  readonly heads: readonly LrkvHeadReport[];
}

/** Memory of a token, as a share of what a `KvCache` of the same type takes. */
export interface LrkvRatios {
  /** As `LrkvCache` stores it: ranks padded, keys whole with `ropeMode` `'exact'`, scales where there is QK-norm. */
  readonly cacheRatio: number;
  /** Bases and padded latents alone, whatever is stored: also where keys are stored whole. */
  readonly factoredRatio: number;
}

export interface LrkvLayerReport extends LrkvRatios {
  readonly key: LrkvSideReport;
  readonly value: LrkvSideReport;
  /** What the numbers do not say of themselves: what was asked for to no avail. */
  readonly notes: readonly string[];
}

/** Report of `fitLrkv`. */
export interface LrkvReport extends LrkvRatios {
  readonly layers: readonly LrkvLayerReport[];
  /** Whether hidden states were given; else errors are of weights, not of keys and values. */
  readonly calibrated: boolean;
  /** Element type that ratios were counted for. */
  readonly type: DataType;
  /** Element type of the weights that were made. */
  readonly weightType: DataType;
}

/** A side that is finished. */
export interface FinishedSide {
  readonly fitted: FittedSide;
  readonly gauge: Gauge;
  readonly ranks: readonly number[];
  readonly history: readonly number[];
  readonly baseError: number | undefined;
  readonly noBaseError: number | undefined;
}

/** √(error / energy), 0 of what is zero itself. */
export function relative(error: number, energy: number): number {
  return energy > 0 ? Math.sqrt(Math.max(0, error) / energy) : 0;
}

export function total(values: ArrayLike<number>): number {
  return Array.from(values).reduce((sum, value) => sum + value, 0);
}

export function reportOf({ fitted, gauge, ranks, history, baseError, noBaseError }: FinishedSide): LrkvSideReport {
  const { predicted, energies, measured, measuredEnergies, spectra } = fitted;
  const width = spectra.length / ranks.length;
  const at = (values: Float64Array, head: number): number => values[head] as number;
  return {
    gauge,
    baseError,
    noBaseError,
    predictedError: relative(total(predicted), total(energies)),
    measuredError: relative(total(measured), total(measuredEnergies)),
    history,
    heads: ranks.map((rank, head) => ({
      rank,
      allocatedRank: paddedRank(rank),
      predictedError: relative(at(predicted, head), at(energies, head)),
      measuredError: relative(at(measured, head), at(measuredEnergies, head)),
      energy: at(energies, head),
      spectrum: spectra.slice(head * width, (head + 1) * width).map((energy) => Math.sqrt(Math.max(0, energy))),
    })),
  };
}

/** Bytes of an element. */
export function bytesOf(type: DataType): number {
  return type === 'float32' ? 4 : 2;
}

/** Whether a cache stores a side whole, rotated, whatever its rank. */
export function storedWhole({ rope }: FitLayer, side: Side, ropeMode: string): boolean {
  return side === 'key' && rope !== null && ropeMode === 'exact';
}

/** What there is to say of a layer's ranks. */
export function notesOf(layer: FitLayer, key: FinishedSide, ropeMode: string): string[] {
  const width = layer.shape.headDim;
  if (!storedWhole(layer, 'key', ropeMode) || key.ranks.every((rank) => rank === width)) return [];
  return [
    "Keys were cut to lower ranks to no avail: with ropeMode 'exact' a cache stores rotated keys whole whatever their rank, " +
      `so that their error saves no memory. Give keys the rank ${width}, or take ropeMode 'intertwined'.`,
  ];
}

/** Bytes of a token that no rank changes: keys that are stored whole, scales of keys that are not. */
export function fixedBytes(layer: FitLayer, ropeMode: string, type: DataType): number {
  const { kvHeads, headDim } = layer.shape;
  if (storedWhole(layer, 'key', ropeMode)) return kvHeads * paddedRank(headDim) * bytesOf(type);
  return layer.keyNorm === null ? 0 : 4 * kvHeads;
}

/** Bytes of a token in a `KvCache`. */
export function fullBytes({ shape: { kvHeads, headDim, valueDim } }: FitLayer, type: DataType): number {
  return kvHeads * (headDim + valueDim) * bytesOf(type);
}

/** Columns of a side's base and ranks of its heads. */
export type SideRanks = Readonly<Record<Side, { readonly baseDim: number; readonly ranks: readonly number[] }>>;

/** Bytes of a token as LRKV, as stored and as factored. */
export function lrkvBytes(layer: FitLayer, of: SideRanks, ropeMode: string, type: DataType) {
  const components = (side: Side): number => storedComponents(of[side].baseDim, of[side].ranks);
  const stored = sides
    .filter((side) => !storedWhole(layer, side, ropeMode))
    .reduce((sum, side) => sum + components(side), 0);
  return {
    stored: fixedBytes(layer, ropeMode, type) + stored * bytesOf(type),
    factored: (components('key') + components('value')) * bytesOf(type),
  };
}
