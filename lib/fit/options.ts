/** What `fitLrkv` is told, checked. */
import { type CallOptions, checkDevice } from '../call';
import { checkChoice, checkFinite, checkInteger, checkOptions, checkType } from '../check';
import { expected } from '../errors';
import { storedStep } from '../lrkv-model';
import { checkConvertible } from '../lrkv-norms';
import { attempt, readList } from '../read';
import type { DataType, Tensor } from '../tensor';
import type { Gauge } from './als';
import { checkLayers, type LayerSource, type Side, sides } from './source';

/** Where a fit is. */
export interface FitProgress {
  readonly layer: number;
  readonly layers: number;
  readonly side: Side;
  /** From 1 on; begins anew where a side is fitted again under other ranks. */
  readonly iteration: number;
  readonly iterations: number;
  /** Relative error of the side in the fitted norm, after this iteration. */
  readonly error: number;
}

/** Options of `fitLrkv`. Exactly one of `rank`, `ranks`, `energy` and `budget` is given. */
export interface FitOptions extends Pick<CallOptions, 'threads' | 'signal' | 'device'> {
  /** Rank of every head's residual, from 0 (where there is a base) to its head size; or one for keys and one for values. */
  readonly rank?: number | { readonly key: number; readonly value: number };
  /** Ranks of every key/value head, one entry a layer. */
  readonly ranks?: readonly { readonly key: readonly number[]; readonly value: readonly number[] }[];
  /** Share of every head's energy that base and residual keep, in (0, 1]: each head gets the smallest rank that does. */
  readonly energy?: number;
  /**
   * Memory of the caches of all layers: a share of what KvCaches of the same type take, in (0, 1], or bytes a token. Counted
   * as `LrkvCache` stores it: ranks padded to multiples of 8, bases, scales; with `ropeMode` `'exact'` it stores keys
   * whole, so that all of a budget's savings come from the values. What is allocated is at or below the budget, and what
   * is left of the energies no more than at uniform ranks; without a base every head keeps `rankStep` at least.
   */
  readonly budget?: number | { readonly bytesPerToken: number; readonly type?: DataType };
  /**
   * Hidden states as they enter the projections, `[tokens, modelDim]`, one tensor a layer. Default none: every direction of
   * the input counts alike, which fits far worse (the report says so).
   */
  readonly calibration?: Tensor | readonly Tensor[];
  /**
   * What lies between the shared base and each head. `'free'`: any matrix; `'rope-pair'`: a complex number a rotary pair, for
   * keys that are rotated, as nothing else commutes with the rotation; `'identity'`: nothing, as in the paper; `'none'`: no
   * base. `'free'` is refused for keys that are rotated: their base could not be rotated by itself. Default `'auto'`:
   * `'rope-pair'` for these, else `'free'`.
   */
  readonly gauge?: GaugeOption | { readonly key?: GaugeOption; readonly value?: GaugeOption };
  /**
   * What residuals of rotated keys are: `'exact'` any of their rank, for keys that are made whole before they are rotated;
   * `'intertwined'` whole rotary pairs of their head, which rotate as latents and are stored as such; refused for keys with
   * a gain before the rotation, which has no place among latents. Only where there is rotary embedding. Default `'exact'`.
   */
  readonly ropeMode?: 'exact' | 'intertwined';
  /**
   * Most iterations of a fit; it ends before where ten of them together better the squared error by less than 3 in 10,000. An
   * iteration that tried to go too far at once and had to be done again counts once. A whole number from 1 to 10000. Default 100.
   */
  readonly iterations?: number;
  /** Added to the diagonal of E[x·xᵀ], in its mean. Finite, ≥ 0. Default 0.01. */
  readonly damping?: number;
  /** Ranks that `budget` deals out are multiples of it, or the head size. A multiple of 8. Default 8. */
  readonly rankStep?: number;
  /**
   * With `budget`: what the squared relative error of a layer's keys and values weighs beside those of others. One entry a
   * layer, finite, ≥ 0. Default 1 for all.
   */
  readonly sensitivity?: readonly { readonly key: number; readonly value: number }[];
  /**
   * Element type of the weights that are made, each rounded to nearest with ties to even; numbers beyond it are refused.
   * Measured errors are of the rounded weights. Default `'float32'`.
   */
  readonly type?: DataType;
  /** Called after every iteration. */
  readonly onProgress?: (progress: FitProgress) => void;
}

/** Of `iterations`: with 32 heads of 128 they take some 13 processor seconds a side, where all are needed. */
export const defaultIterations = 100;

export type GaugeOption = 'auto' | Gauge;

const gauges = ['auto', 'free', 'rope-pair', 'identity', 'none'] as const;

const optionNames: ReadonlySet<string> = new Set([
  ...(['rank', 'ranks', 'energy', 'budget', 'calibration', 'gauge', 'ropeMode', 'type', 'iterations'] as const),
  ...(['damping', 'rankStep', 'sensitivity', 'onProgress', 'threads', 'signal', 'device'] as const),
]);

/** How ranks are found. */
export type RankRule =
  | { readonly kind: 'ranks'; readonly of: (layer: number, side: Side) => readonly number[] }
  | { readonly kind: 'energy'; readonly energy: number }
  | { readonly kind: 'budget'; readonly share: number | undefined; readonly bytes: number; readonly type: DataType };

/** One layer, and how it is fitted. */
export interface FitLayer extends LayerSource {
  readonly gauges: Readonly<Record<Side, Gauge>>;
  readonly sensitivity: Readonly<Record<Side, number>>;
}

/** All that a fit is told, checked. */
export interface FitRequest {
  readonly layers: readonly FitLayer[];
  readonly rule: RankRule;
  readonly ropeMode: 'exact' | 'intertwined';
  /** Of the weights that are made. */
  readonly type: DataType;
  readonly iterations: number;
  readonly damping: number;
  readonly rankStep: number;
  readonly onProgress: ((progress: FitProgress) => void) | undefined;
  readonly run: Pick<CallOptions, 'threads' | 'signal' | 'device'>;
}

const sideNames: ReadonlySet<string> = new Set(sides);

/** `{ key, value }`, each of which `check` makes something of. */
function checkSides<Result>(
  name: string,
  value: unknown,
  check: (name: string, value: unknown) => Result,
): Record<Side, Result> {
  const given = checkOptions(name, value === undefined ? fail(name, value) : (value as object), sideNames) as Partial<
    Record<Side, unknown>
  >;
  return { key: check(`${name}.key`, given.key), value: check(`${name}.value`, given.value) };
}

function fail(name: string, value: unknown): never {
  throw expected('ERR_ARGUMENT', name, '{ key, value }', value);
}

/** A copy of the options, each of which is read once. */
export function readFitOptions(options: FitOptions): FitOptions {
  if (options === undefined)
    throw expected('ERR_ARGUMENT', 'options', "an object with 'rank', 'ranks', 'energy' or 'budget'", options);
  return checkOptions('options', options, optionNames);
}

/** @param copy options that were read; `calibration` is the sources' own */
export function checkFit(sources: readonly LayerSource[], copy: FitOptions): FitRequest {
  checkDevice(copy.device);
  const count = sources.length;

  const ropeMode =
    copy.ropeMode === undefined ? 'exact' : checkChoice('ropeMode', copy.ropeMode, ['exact', 'intertwined'] as const);
  if (copy.ropeMode !== undefined && sources.every(({ rope }) => rope === null))
    throw expected('ERR_ARGUMENT', 'ropeMode', 'nothing without `rope`', copy.ropeMode);
  for (const source of sources) checkConvertible(source.name, source, source.kept.qkNorm, ropeMode);
  const gaugesOf = checkGauges(copy.gauge);
  const sensitivity =
    copy.sensitivity === undefined
      ? undefined
      : checkLayers('sensitivity', copy.sensitivity, count, (item, layer) =>
          checkSides(`sensitivity[${layer}]`, item, (name, value) => checkFinite(name, value, 0)),
        );
  if (sensitivity !== undefined && copy.budget === undefined)
    throw expected('ERR_ARGUMENT', 'sensitivity', 'nothing without `budget`', copy.sensitivity);

  const layers = sources.map((source, layer): FitLayer => {
    const gauges = gaugesOf(source.rope !== null);
    return { ...source, gauges, sensitivity: sensitivity?.[layer] ?? { key: 1, value: 1 } };
  });

  const { onProgress } = copy;
  if (onProgress !== undefined && typeof onProgress !== 'function')
    throw expected('ERR_ARGUMENT', 'onProgress', 'a function', onProgress);
  const rankStep = copy.rankStep === undefined ? storedStep : checkInteger('rankStep', copy.rankStep, storedStep);
  if (rankStep % storedStep !== 0) throw expected('ERR_ARGUMENT', 'rankStep', `a multiple of ${storedStep}`, rankStep);
  return {
    layers,
    rule: checkRule(copy, layers, ropeMode),
    ropeMode,
    iterations:
      copy.iterations === undefined ? defaultIterations : checkInteger('iterations', copy.iterations, 1, 10_000),
    damping: copy.damping === undefined ? 0.01 : checkFinite('damping', copy.damping, 0),
    rankStep,
    type: checkType('type', copy.type === undefined ? 'float32' : copy.type),
    onProgress,
    run: { threads: copy.threads, signal: copy.signal, device: copy.device },
  };
}

function checkGauges(given: FitOptions['gauge']): (rotated: boolean) => Record<Side, Gauge> {
  const check = (name: string, value: unknown): GaugeOption =>
    value === undefined ? 'auto' : checkChoice(name, value, gauges);
  const each = typeof given === 'object' && given !== null;
  const of = each ? checkSides('gauge', given, check) : { key: check('gauge', given), value: check('gauge', given) };
  const nameOf = (side: Side): string => (each ? `gauge.${side}` : 'gauge');
  return (rotated) => {
    if (rotated && of.key === 'free')
      throw expected(
        'ERR_ARGUMENT',
        nameOf('key'),
        "'rope-pair', 'identity' or 'none' for keys that are rotated",
        of.key,
      );
    for (const side of sides) {
      if (of[side] === 'rope-pair' && !(rotated && side === 'key'))
        throw expected('ERR_ARGUMENT', nameOf(side), `no 'rope-pair' for ${side}s that are not rotated`, of[side]);
    }
    return {
      key: of.key === 'auto' ? (rotated ? 'rope-pair' : 'free') : of.key,
      value: of.value === 'auto' ? 'free' : of.value,
    };
  };
}

function checkRule(
  { rank, ranks, energy, budget }: FitOptions,
  layers: readonly FitLayer[],
  ropeMode: 'exact' | 'intertwined',
): RankRule {
  const given = Object.entries({ rank, ranks, energy, budget }).filter(([, value]) => value !== undefined);
  if (given.length !== 1) {
    const what = "exactly one of 'rank', 'ranks', 'energy' and 'budget'";
    throw expected(
      'ERR_ARGUMENT',
      'options',
      what,
      given.map(([name]) => name),
    );
  }
  if (energy !== undefined) {
    if (typeof energy !== 'number' || !(energy > 0 && energy <= 1))
      throw expected('ERR_ARGUMENT', 'energy', 'a number in (0, 1]', energy);
    return { kind: 'energy', energy };
  }
  if (budget !== undefined) return checkBudget(budget);

  const dims = (layer: number) => {
    const { shape, rope } = layers[layer] as FitLayer;
    return {
      key: shape.headDim,
      value: shape.valueDim,
      even: rope !== null && ropeMode === 'intertwined',
    };
  };
  const checkRank = (name: string, value: unknown, layer: number, side: Side): number => {
    const most = dims(layer);
    const found = checkInteger(name, value, 0, most[side]);
    if (side === 'key' && most.even && found % 2 !== 0)
      throw expected('ERR_ARGUMENT', name, 'an even rank, of whole rotary pairs', found);
    return found;
  };
  const checkSide = (name: string, found: number[], layer: number, side: Side): number[] => {
    if ((layers[layer] as FitLayer).gauges[side] === 'none' && found.every((rank) => rank === 0))
      throw expected('ERR_ARGUMENT', name, `a rank > 0 of ${side}s without a base`, 0);
    return found;
  };
  if (ranks !== undefined) {
    const all = checkLayers('ranks', ranks, layers.length, (item, layer) => {
      const { kvHeads } = (layers[layer] as FitLayer).shape;
      const list = (side: Side, name: string, value: unknown): number[] => {
        const fits = (length: number): boolean => length === kvHeads;
        const found = readList(name, value, fits, (one, head) => checkRank(`${name}[${head}]`, one, layer, side));
        if (found === undefined) throw expected('ERR_SHAPE', name, `${kvHeads} ranks, one a key/value head`, value);
        return checkSide(name, found, layer, side);
      };
      return checkSides(`ranks[${layer}]`, item, (name, value) =>
        list(name.endsWith('key') ? 'key' : 'value', name, value),
      );
    });
    return { kind: 'ranks', of: (layer, side) => (all[layer] as Record<Side, number[]>)[side] };
  }
  const each = typeof rank === 'object' && rank !== null;
  const one = each
    ? checkSides('rank', rank, (_name, value) => value)
    : { key: rank as unknown, value: rank as unknown };
  const all = layers.map(({ shape }, layer) => {
    const of = (side: Side): number[] => {
      const name = each ? `rank.${side}` : 'rank';
      const found = Array<number>(shape.kvHeads).fill(checkRank(name, one[side], layer, side));
      return checkSide(name, found, layer, side);
    };
    return { key: of('key'), value: of('value') };
  });
  return { kind: 'ranks', of: (layer, side) => (all[layer] as Record<Side, number[]>)[side] };
}

const budgetNames: ReadonlySet<string> = new Set(['bytesPerToken', 'type']);

function checkBudget(budget: NonNullable<FitOptions['budget']>): RankRule {
  if (typeof budget !== 'object') {
    if (typeof budget !== 'number' || !(budget > 0 && budget <= 1))
      throw expected('ERR_ARGUMENT', 'budget', 'a share in (0, 1] or { bytesPerToken }', budget);
    return { kind: 'budget', share: budget, bytes: 0, type: 'float32' };
  }
  const { bytesPerToken, type } = checkOptions('budget', budget, budgetNames);
  return {
    kind: 'budget',
    share: undefined,
    bytes: checkFinite('budget.bytesPerToken', bytesPerToken, 0),
    type: attempt('budget', () => checkType('budget.type', type === undefined ? 'float32' : type)),
  };
}
