/** Error against memory by the spectra of one fit: bases and directions stay, and only ranks follow the memory. */
import { allocateRanks, leastComponents, storedComponents, type Way } from '../../fit/ranks';
import { storedStep } from '../../lrkv-model';
import type { SideResult } from './results';

export interface CurvePoint {
  /** Components of bases and padded latents, as a share of those of whole heads. */
  readonly share: number;
  /** Root mean square of the layers' relative errors. */
  readonly error: number;
}

/** Shares that are looked at, as far as they can be had. */
const shares = Array.from({ length: 40 }, (_, i) => (i + 1) / 40);

/** Components that a side's base takes. */
export function baseOf({ gauge, width }: Pick<SideResult, 'gauge' | 'width'>): number {
  return gauge === 'none' ? 0 : width;
}

/** @param sides the keys, or the values, of all layers */
export function curveOf(sides: readonly SideResult[]): CurvePoint[] {
  const ways = sides.map((side): Way => {
    const energy = side.heads.reduce((sum, head) => sum + head.energy, 0) || 1;
    return {
      fixed: baseOf(side),
      least: 0,
      spectra: Float64Array.from(side.heads.flatMap(({ spectrum }) => spectrum.map((value) => value ** 2 / energy))),
      heads: side.heads.length,
    };
  });
  const whole = sides.reduce((sum, { heads, width }) => sum + heads.length * width, 0);
  const least = ways.reduce((sum, way) => sum + leastComponents(way), 0);
  // The smallest memory is that of the bases alone, or of one step where there are none.
  const budgets = [least, ...shares.map((share) => Math.floor(share * whole)).filter((budget) => budget > least)];
  const points = new Map<number, CurvePoint>();
  for (const budget of budgets) {
    const choices = allocateRanks(
      ways.map((way) => [way]),
      budget,
      storedStep,
    );
    let [taken, left] = [0, 0];
    for (const [index, { ranks }] of choices.entries()) {
      const { fixed, spectra, heads } = ways[index] as Way;
      const width = spectra.length / heads;
      taken += storedComponents(fixed, ranks);
      for (const [head, rank] of ranks.entries()) {
        for (let i = rank; i < width; i++) left += spectra[head * width + i] as number;
      }
    }
    points.set(taken, { share: taken / whole, error: Math.sqrt(left / sides.length) });
  }
  return [...points.values()].sort((a, b) => a.share - b.share);
}
