/** How a cache's memory is shared out among layers, keys and values, and heads. */

import { paddedRank } from '../lrkv-model';

/** Components of one token that a base and latents take. */
export function storedComponents(baseDim: number, ranks: readonly number[]): number {
  return ranks.reduce((sum, rank) => sum + paddedRank(rank), baseDim);
}

/** One way to represent keys or values: with or without a base. */
export interface Way {
  /** Components a token takes whatever the ranks are. */
  readonly fixed: number;
  /** The rank that every head has at least. */
  readonly least: number;
  /** `[heads, width]`: what a direction more takes off the error, descending, in units that all sides share. */
  readonly spectra: Float64Array;
  readonly heads: number;
}

/** A way of a side that was chosen, and its ranks. */
export interface Choice {
  /** Index of the way. */
  readonly way: number;
  readonly ranks: readonly number[];
}

interface Block {
  readonly head: number;
  readonly from: number;
  readonly to: number;
  readonly cost: number;
  readonly gain: number;
}

/** Directions beyond the least, `step` at a time: gains of a head fall, so the best blocks are always its first. */
function blocksOf({ spectra, heads, least }: Way, step: number): Block[] {
  const width = spectra.length / heads;
  const blocks: Block[] = [];
  for (let head = 0; head < heads; head++) {
    for (let from = Math.min(least, width); from < width; from += step) {
      const to = Math.min(width, from + step);
      const gain = spectra.subarray(head * width + from, head * width + to).reduce((sum, value) => sum + value, 0);
      blocks.push({ head, from, to, cost: paddedRank(to) - paddedRank(from), gain });
    }
  }
  return blocks;
}

const priceOf = ({ gain, cost }: Block): number => gain / cost;

/** Components that a way takes at least. */
export function leastComponents({ fixed, least, spectra, heads }: Way): number {
  return fixed + heads * paddedRank(Math.min(least, spectra.length / heads));
}

/**
 * The ways and ranks of all sides that leave the least error within so many components a token, as far as blocks at one
 * common price find them (Lagrange multipliers: Shoham & Gersho 1988, IEEE TASSP 36(9)); what the price leaves over goes to
 * the best blocks that still fit. `budget` is at least the least of all sides together.
 */
export function allocateRanks(sides: readonly (readonly Way[])[], budget: number, step: number): Choice[] {
  const ways = sides.map((side) =>
    side.map((way) => {
      const width = way.spectra.length / way.heads;
      const blocks = blocksOf(way, step).sort((a, b) => priceOf(b) - priceOf(a) || a.head - b.head || a.from - b.from);
      const leastRank = Math.min(way.least, width);
      const error = way.spectra.reduce((sum, value, i) => (i % width < leastRank ? sum : sum + value), 0);
      return { heads: way.heads, leastRank, blocks, error, components: leastComponents(way) };
    }),
  );
  type Ranked = (typeof ways)[number][number];
  /** What a way takes and leaves where only blocks worth the price are bought. */
  const at = ({ blocks, error, components }: Ranked, price: number) => {
    let [left, taken] = [error, components];
    for (const block of blocks) {
      if (priceOf(block) <= price) break;
      left -= block.gain;
      taken += block.cost;
    }
    return { left, taken };
  };
  const best = (side: readonly Ranked[], price: number): { way: number; taken: number } =>
    side
      .map((way, index) => ({ way: index, ...at(way, price) }))
      .reduce((a, b) => {
        const difference = b.left - a.left + price * (b.taken - a.taken);
        return difference < 0 ? b : a;
      });
  const leastOf = (side: readonly Ranked[]): { way: number; taken: number } =>
    side.map(({ components }, way) => ({ way, taken: components })).reduce((a, b) => (b.taken < a.taken ? b : a));
  const spent = (chosen: readonly { taken: number }[]): number => chosen.reduce((sum, { taken }) => sum + taken, 0);

  let high = Math.max(1e-300, ...ways.flat(1).map(({ error }) => error));
  let price = high;
  let chosen = ways.map((side) => best(side, high));
  if (spent(chosen) > budget) {
    chosen = ways.map(leastOf);
    price = Infinity;
  }
  const all = ways.map((side) => best(side, 0));
  if (spent(all) <= budget) {
    chosen = all;
    price = 0;
  } else {
    // In ratios first, as prices range over many powers of ten; what is halved 200 times is exact.
    let low = high * 1e-30;
    for (let turn = 0; turn < 200; turn++) {
      const middle = Math.sqrt(low) * Math.sqrt(high);
      const found = ways.map((side) => best(side, middle));
      if (spent(found) <= budget) {
        [chosen, price, high] = [found, middle, middle];
      } else low = middle;
    }
  }

  const found = ways.map((side, index) => {
    const { way } = chosen[index] as { way: number };
    const { heads, leastRank, blocks } = side[way] as Ranked;
    const ranks = Array<number>(heads).fill(leastRank);
    for (const block of blocks) {
      if (priceOf(block) <= price) break;
      ranks[block.head] = block.to;
    }
    return { way, ranks };
  });
  return dealOut(sides, found, budget - spent(chosen), step);
}

/** So many components more than choices take, to the best blocks that still fit; ranks are where blocks end. */
export function dealOut(
  sides: readonly (readonly Way[])[],
  choices: readonly Choice[],
  components: number,
  step: number,
): Choice[] {
  const blocks = choices
    .flatMap(({ way }, index) => blocksOf((sides[index] as Way[])[way] as Way, step).map((block) => ({ index, block })))
    .sort((a, b) => priceOf(b.block) - priceOf(a.block));
  const dealt = choices.map(({ way, ranks }) => ({ way, ranks: [...ranks] }));
  let left = components;
  for (const { index, block } of blocks) {
    const { ranks } = dealt[index] as { ranks: number[] };
    if (ranks[block.head] !== block.from || block.cost > left || !(block.gain > 0)) continue;
    ranks[block.head] = block.to;
    left -= block.cost;
  }
  return dealt;
}

/** The smallest rank of each head that leaves at most a share of its energy. */
export function ranksFor(spectra: Float64Array, energies: Float64Array, share: number): number[] {
  const width = spectra.length / energies.length;
  return Array.from(energies, (energy, head) => {
    let left = 0;
    let rank = width;
    for (; rank > 0; rank--) {
      left += spectra[head * width + rank - 1] as number;
      if (left > share * energy) break;
    }
    return rank;
  });
}
