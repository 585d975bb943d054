/**
 * Ways and ranks of all sides within a budget. What directions take off the error is known for the ranks that a base was
 * fitted at; at others it serves as it is, and one that is fitted there does better, so that by spectra alone all ranks seem
 * best where they are. Hence every fit stays a way to choose, with errors that can be had; what is chosen is fitted where it
 * is chosen; and bases are fitted a block a head above and below that too, until such exchanges gain nothing.
 */
import type { Steps } from '../steps';
import type { Run } from './algebra';
import { alternate, type Factors, type FitPlan, tailOf } from './als';
import type { Objective } from './moments';
import { allocateRanks, type Choice, dealOut, leastComponents, storedComponents, type Way } from './ranks';
import { rounds, sameRanks, type Ways } from './ways';

/** A side whose ranks a budget decides. */
export interface Sharer {
  readonly objective: Objective;
  readonly plan: FitPlan;
  /** What a unit of its error counts beside those of other sides. */
  readonly weight: number;
  readonly baseless: Factors;
  /** All that were made with a base. */
  readonly fits: Fit[];
}

interface Fit {
  /** What it was fitted at. */
  readonly ranks: readonly number[];
  readonly spectra: Float64Array;
  /** Null where they are not at hand. */
  factors: Factors | null;
}

/**
 * The best that was found within so many components, at least as good as any uniform ranks: of each side what is kept. It
 * takes five fits a side or so, at most four and then three a round, and keeps the factors of four at most.
 */
export function* shareOut(sharers: readonly Sharer[], components: number, step: number, run: Run): Steps<Ways[]> {
  let best: Choice[] = [];
  let least = Infinity;
  /** Whether choices are better than all before, each fitted at its ranks. */
  const tried = function* (choices: readonly Choice[]): Steps<boolean> {
    const fitted: Choice[] = [];
    for (const [index, sharer] of sharers.entries()) {
      const { way, ranks } = choices[index] as Choice;
      const own = way === 0 ? 0 : yield* fitAt(sharer, ranks, run);
      fitted.push(bestOf(sharer, { way: own, ranks }, step));
    }
    const error = sharers.reduce((sum, sharer, at) => sum + sharer.weight * errorOf(sharer, fitted[at] as Choice), 0);
    if (!(error < least)) return false;
    [best, least] = [fitted, error];
    return true;
  };
  /** Factors of every fit would be more than the objectives. */
  const forget = (): void => {
    for (const [index, { fits }] of sharers.entries())
      for (const [place, fit] of fits.entries()) if (best[index]?.way !== place + 1) fit.factors = null;
  };
  const ways = (): Way[][] => sharers.map((sharer) => waysOf(sharer, step));

  for (const based of [true, false]) {
    const uniform = uniformChoices(sharers, based, components, step);
    if (uniform === undefined) continue;
    yield* tried(uniform.choices);
    yield* tried(dealOut(ways(), uniform.choices, uniform.left, step));
  }
  const withBase = sharers.filter(({ plan }) => plan.gauge !== 'none');
  // Without residuals no directions are told from others by what is kept.
  for (const sharer of withBase) yield* fitAt(sharer, Array<number>(sharer.objective.heads).fill(0), run);
  yield* tried(allocateRanks(ways(), components, step));
  for (let round = 1; round <= rounds; round++) {
    forget();
    for (const sharer of withBase) yield* fitAround(sharer, best[sharers.indexOf(sharer)] as Choice, step, run);
    if (!(yield* tried(allocateRanks(ways(), components, step)))) break;
  }
  const found: Ways[] = [];
  for (const [index, sharer] of sharers.entries())
    found.push(yield* waysOfChoice(sharer, best[index] as Choice, step, run));
  return found;
}

/** The way that was fitted at these ranks: now, if it was not before. */
function* fitAt({ objective, plan, fits }: Sharer, ranks: readonly number[], run: Run): Steps<number> {
  const before = fits.findIndex((fit) => sameRanks(fit.ranks, ranks));
  if (before >= 0) return before + 1;
  const factors = yield* alternate(objective, ranks, plan, run);
  return fits.push({ ranks, spectra: factors.spectra, factors });
}

/** Fits a block a head below and above what a base has, or would have in the memory that no base is chosen for. */
function* fitAround(sharer: Sharer, choice: Choice, step: number, run: Run): Steps<void> {
  const { ranks } =
    choice.way > 0 ? choice : (leastOf(sharer, rivalsOf(sharer, choice, step).filter(hasBase)) ?? choice);
  const { width } = sharer.objective;
  for (const more of [-step, step])
    yield* fitAt(
      sharer,
      ranks.map((rank) => Math.min(width, Math.max(0, rank + more))),
      run,
    );
}

const hasBase = ({ way }: Choice): boolean => way > 0;

/** What is left of a side's energy. */
const errorOf = ({ baseless, fits }: Sharer, { way, ranks }: Choice): number =>
  tailOf((way > 0 ? (fits[way - 1] as Fit) : baseless).spectra, ranks);

/** The first that errs least. */
const leastOf = (sharer: Sharer, choices: readonly Choice[]): Choice | undefined =>
  choices.reduce<Choice | undefined>(
    (a, b) => (a !== undefined && errorOf(sharer, a) <= errorOf(sharer, b) ? a : b),
    undefined,
  );

/** The best choice of a side in the memory of one; without a base decoding does less. */
function bestOf(sharer: Sharer, choice: Choice, step: number): Choice {
  const all = [choice, ...rivalsOf(sharer, choice, step)];
  return leastOf(sharer, [...all.filter((each) => !hasBase(each)), ...all.filter(hasBase)]) as Choice;
}

/** Of every way its best ranks in the memory of a choice, where it has any. */
function rivalsOf(sharer: Sharer, { way, ranks }: Choice, step: number): Choice[] {
  const room = storedComponents(way > 0 ? sharer.objective.width : 0, ranks);
  return waysOf(sharer, step).flatMap((other, index) =>
    leastComponents(other) > room
      ? []
      : allocateRanks([[other]], room, step).map(({ ranks: found }) => ({ way: index, ranks: found })),
  );
}

/** The largest rank that all heads can have, with bases or without; undefined where not even the least fits. */
function uniformChoices(
  sharers: readonly Sharer[],
  based: boolean,
  components: number,
  step: number,
): { readonly choices: Choice[]; readonly left: number } | undefined {
  const widest = Math.max(...sharers.map(({ objective }) => objective.width));
  for (let rank = Math.ceil(widest / step) * step; rank >= 0; rank -= step) {
    let left = components;
    const choices = sharers.map(({ objective: { heads, width }, plan }) => {
      const way = based && plan.gauge !== 'none' ? 1 : 0;
      const ranks = Array<number>(heads).fill(Math.min(width, Math.max(rank, way > 0 ? 0 : step)));
      left -= storedComponents(way > 0 ? width : 0, ranks);
      return { way, ranks };
    });
    if (left >= 0) return { choices, left };
  }
  return undefined;
}

/** What was chosen of a side, and the best of the other kind, with a base or without, in its memory. */
function* waysOfChoice(sharer: Sharer, choice: Choice, step: number, run: Run): Steps<Ways> {
  const { objective, plan, baseless, fits } = sharer;
  const { way, ranks } = choice;
  const other = leastOf(
    sharer,
    rivalsOf(sharer, choice, step).filter((rival) => hasBase(rival) !== hasBase(choice)),
  );
  const [own, others] = [errorOf(sharer, choice), other && errorOf(sharer, other)];
  if (way === 0) return { kept: { factors: baseless, ranks }, baseError: others, noBaseError: own };
  const fit = fits[way - 1] as Fit;
  // A fit whose factors were forgotten is made again, to the same bits.
  const factors = fit.factors ?? (yield* alternate(objective, fit.ranks, plan, run));
  return { kept: { factors, ranks }, baseError: own, noBaseError: others };
}

/** No base, and each that was fitted. Without one every head keeps a block at least: a head of nothing attends to nothing. */
function waysOf({ objective, weight, baseless, fits }: Sharer, step: number): Way[] {
  const { heads, width } = objective;
  const wayOf = ({ spectra }: Pick<Factors, 'spectra'>, fixed: number, least: number): Way => {
    return { fixed, least, spectra: spectra.map((energy) => energy * weight), heads };
  };
  return [wayOf(baseless, 0, step), ...fits.map((fit) => wayOf(fit, width, 0))];
}
