import { expected, guard } from '../errors';
import { attempt, isArray, readList } from '../read';
import { expEntropy } from './matrix';
import type { Spectrum } from './spectrum';

/** Measures of how many components a matrix has, each by its own name. σ are the singular values, E = Σσ². */
export interface SpectralMetrics {
  /**
   * exp(−Σ p ln p) of p = σ/Σσ: the effective rank of Roy & Vetterli (EUSIPCO 2007). A lower bound where values are
   * missing.
   */
  readonly effectiveRankOfValues: number;
  /**
   * The same of p = σ²/E, which papers that take eigenvalues of a Gram matrix call effective rank too; it is far smaller.
   * A lower bound where values are missing.
   */
  readonly effectiveRankOfEnergies: number;
  /** E/σ₁². Exact also where values are missing. */
  readonly stableRank: number;
  /**
   * E²/Σσ⁴. Where values are missing, the lower bound E²/(Σσ⁴ + σₖ²·(E − Σσ²)) with the last value known, σₖ, that no
   * missing one exceeds.
   */
  readonly participationRatio: number;
  /**
   * The fewest components that keep such a share of E. Exact also where values are missing; undefined where those given
   * do not reach it.
   */
  readonly componentsFor: {
    readonly 0.9: number | undefined;
    readonly 0.95: number | undefined;
    readonly 0.99: number | undefined;
  };
  /** Share of E that the values given hold: 1 where none is missing. */
  readonly retainedEnergy: number;
}

/**
 * Measures of a spectrum, in float64.
 *
 * @param spectrum all singular values of a matrix, or the `values` of the largest with the `energy` of all, as `spectrum`
 *   gives them. At least one value; finite, ≥ 0, descending, the first above 0
 * @throws AttentionError ERR_ARGUMENT, ERR_TYPE
 */
export function spectralMetrics(spectrum: ArrayLike<number> | Pick<Spectrum, 'values' | 'energy'>): SpectralMetrics {
  return guard(spectralMetrics, () => {
    const all = isArray(spectrum) || ArrayBuffer.isView(spectrum);
    if (typeof spectrum !== 'object' || spectrum === null)
      throw expected('ERR_TYPE', 'spectrum', 'a list of singular values or { values, energy }', spectrum);
    const name = all ? 'spectrum' : 'spectrum.values';
    const given = all
      ? { values: spectrum as ArrayLike<number>, energy: undefined }
      : attempt('spectrum', () => {
          const { values, energy } = spectrum as Spectrum;
          return { values, energy };
        });
    let last = Infinity;
    const check = (value: unknown, index: number): number => {
      if (typeof value !== 'number' || !(value >= 0 && value <= last) || value === Infinity)
        throw expected('ERR_ARGUMENT', `${name}[${index}]`, `a finite number from 0 to the one before it`, value);
      last = value;
      return value;
    };
    const values = readList(name, given.values, (length) => length > 0, check);
    if (values === undefined) throw expected('ERR_TYPE', name, 'a list of at least one number', given.values);
    const largest = values[0] as number;
    if (largest === 0) throw expected('ERR_ARGUMENT', name, 'a first value above 0', largest);
    const { energy } = given;
    // Everything is relative to the largest value, so that squares neither overflow nor vanish.
    const squares = values.map((value) => (value / largest) ** 2);
    const known = squares.reduce((sum, square) => sum + square, 0);
    if (!all && !(typeof energy === 'number' && Number.isFinite(energy)))
      throw expected('ERR_ARGUMENT', 'spectrum.energy', 'a finite number', energy);
    const told = energy === undefined ? known : energy / largest / largest;
    // What a spectrum measures apart may differ from the sum by float32 rounding.
    if (told < known * (1 - 1e-3))
      throw expected(
        'ERR_ARGUMENT',
        'spectrum.energy',
        `at least ${known * largest ** 2}, the squares of the values`,
        energy,
      );
    const total = Math.max(told, known);

    const componentsFor = (share: number): number | undefined => {
      let kept = 0;
      const last = squares.findIndex((square) => {
        kept += square;
        return kept >= share * total;
      });
      return last < 0 ? undefined : last + 1;
    };
    const fourth = squares.reduce((sum, square) => sum + square * square, 0);
    return {
      effectiveRankOfValues: expEntropy(values.map((value) => value / largest)),
      effectiveRankOfEnergies: expEntropy(squares),
      stableRank: total,
      participationRatio: total ** 2 / (fourth + (squares.at(-1) as number) * (total - known)),
      componentsFor: { 0.9: componentsFor(0.9), 0.95: componentsFor(0.95), 0.99: componentsFor(0.99) },
      retainedEnergy: known / total,
    };
  });
}
