/** Keys or values with a base and without one, at ranks that are given or that keep a share of the energy. */
import { storedStep } from '../lrkv-model';
import type { Steps } from '../steps';
import type { Run } from './algebra';
import { alternate, type Factors, type FitPlan, tailOf } from './als';
import { finish } from './finish';
import type { Objective, Projection } from './moments';
import { allocateRanks, type Choice, ranksFor, storedComponents, type Way } from './ranks';
import { type FinishedSide, relative, total } from './report';

/** Factors and the ranks that are kept of them. */
export interface Kept {
  readonly factors: Factors;
  readonly ranks: readonly number[];
}

/** What is to be kept, and the errors of both ways, Σ_h ‖Y_h − S·G_h − R_h‖², as far as they were tried. */
export interface Ways {
  readonly kept: Kept;
  readonly baseError: number | undefined;
  readonly noBaseError: number | undefined;
}

export const sameRanks = (a: readonly number[], b: readonly number[]): boolean =>
  a.every((rank, head) => rank === b[head]);

/** Neither base nor ranks would be no keys or values at all, which no cache holds. */
const isSomething = ({ factors, ranks }: Kept): boolean => factors.base !== null || ranks.some((rank) => rank > 0);

const errorOf = ({ factors, ranks }: Kept): number => tailOf(factors.spectra, ranks);

const waysOf = (kept: Kept, based: Kept | undefined, baseless: Kept): Ways => ({
  kept,
  baseError: based && errorOf(based),
  noBaseError: errorOf(baseless),
});

/** Of two ways within the same memory the one that errs less; without a base decoding does less. */
export function lesserError(based: Kept | undefined, baseless: Kept): Ways {
  const better = based === undefined || (isSomething(baseless) && errorOf(baseless) <= errorOf(based));
  return waysOf(better ? baseless : based, based, baseless);
}

/** Heads without a base: the spectra of all ranks at once. */
export function* baselessFactors(objective: Objective, plan: FitPlan, run: Run): Steps<Factors> {
  const ranks = Array<number>(objective.heads).fill(0);
  return yield* alternate(objective, ranks, { ...plan, gauge: 'none', onIteration: undefined }, run);
}

/** Ranks without a base, within so many components. */
function spread({ heads }: Objective, factors: Factors, components: number): Kept {
  const way: Way = { fixed: 0, least: 0, spectra: factors.spectra, heads };
  const [choice] = allocateRanks([[way]], components, storedStep);
  return { factors, ranks: (choice as Choice).ranks };
}

export function* fitRanks(objective: Objective, plan: FitPlan, ranks: readonly number[], run: Run): Steps<Ways> {
  if (plan.gauge === 'none')
    return lesserError(undefined, { factors: yield* alternate(objective, ranks, plan, run), ranks });
  const based = { factors: yield* alternate(objective, ranks, plan, run), ranks };
  const factors = yield* baselessFactors(objective, plan, run);
  return lesserError(based, spread(objective, factors, storedComponents(objective.width, ranks)));
}

/** Most rounds of fits, each under ranks that follow from those before. */
export const rounds = 3;

export function* fitEnergy(objective: Objective, plan: FitPlan, energy: number, run: Run): Steps<Ways> {
  const { energies, width } = objective;
  const enough = (factors: Factors): Kept => {
    const ranks = ranksFor(factors.spectra, energies, 1 - energy);
    const kept = { factors, ranks: plan.pairs ? ranks.map((rank) => rank + (rank % 2)) : ranks };
    return isSomething(kept) ? kept : { factors, ranks: ranks.map((_, head) => (head > 0 ? 0 : plan.pairs ? 2 : 1)) };
  };
  const baseless = enough(yield* baselessFactors(objective, plan, run));
  if (plan.gauge === 'none') return lesserError(undefined, baseless);
  const none = baseless.ranks.map(() => 0);
  const tried: (readonly number[])[] = [none];
  let based = enough(yield* alternate(objective, none, plan, run));
  const better = function* (ranks: readonly number[]): Steps<boolean> {
    if (tried.some((before) => sameRanks(before, ranks))) return false;
    tried.push(ranks);
    const found = enough(yield* alternate(objective, ranks, plan, run));
    if (memoryOf(found, width) >= memoryOf(based, width)) return false;
    based = found;
    return true;
  };
  yield* better(baseless.ranks.map((rank) => Math.floor(rank / 4) * 2));
  for (let round = 1; round <= rounds; round++) {
    // A base leaves to residuals what they were fitted to take, so fewer directions may do of one that was fitted with fewer.
    const { ranks } = based;
    const [same, fewer] = [yield* better(ranks), yield* better(ranks.map((rank) => Math.max(0, rank - storedStep)))];
    if (!same && !fewer) break;
  }
  // Both keep enough.
  const [memory, without] = [memoryOf(based, width), memoryOf(baseless, width)];
  if (memory === without) return lesserError(based, baseless);
  return waysOf(memory < without ? based : baseless, based, baseless);
}

const memoryOf = ({ factors, ranks }: Kept, width: number): number =>
  storedComponents(factors.base === null ? 0 : width, ranks);

export function* finishSide(
  objective: Objective,
  projection: Projection,
  plan: FitPlan,
  ways: Ways,
  run: Run,
): Steps<FinishedSide> {
  const { factors, ranks } = ways.kept;
  const energy = total(objective.energies);
  const errorIn = (error: number | undefined): number | undefined => error && relative(error, energy);
  return {
    fitted: yield* finish(objective, projection, factors, ranks, plan, run),
    gauge: factors.gauge,
    ranks,
    // Without a base there is nothing to iterate, and the factors serve all ranks.
    history: (factors.base === null ? [errorOf(ways.kept)] : factors.history).map((error) => relative(error, energy)),
    baseError: errorIn(ways.baseError),
    noBaseError: errorIn(ways.noBaseError),
  };
}
