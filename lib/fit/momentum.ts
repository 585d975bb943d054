/** Extrapolation of an alternation, so that many small steps in much the same direction become few. */
import type { Matrices } from '../linalg';
import { add, matrices } from './algebra';

/** What an iteration begins with, all of it linear in the base and the gauges. */
export interface Point {
  /** c `[heads·width, width]` of the base S = Y·c. */
  readonly base: Matrices;
  /** Yᵀ·S, of the same extents. */
  readonly cross: Matrices;
  /** G_h `[heads, width, width]` of 'rope-pair', the only ones that the base alone does not determine. */
  readonly gauges: Matrices | null;
}

/**
 * The optimized gradient method (Kim & Fessler 2016, Math. Program. 159), with an iteration x → F(x) in the place of a gradient
 * step: the next x is F(x_k) + (t_k − 1)/t_{k+1}·(F(x_k) − F(x_{k−1})) + t_k/t_{k+1}·(F(x_k) − x_k), t_{k+1} =
 * (1 + √(1 + 4·t_k²))/2. It begins anew, at t = 1, where bases turn back, ⟨F(x_k) − x_k, F(x_k) − F(x_{k−1})⟩ < 0; and is to be
 * told to where the error does not fall (O'Donoghue & Candès 2015, Found. Comput. Math. 15; for alternating least squares
 * Mitchell, Ye & De Sterck 2020, Numer. Linear Algebra Appl. 27).
 */
export class Momentum {
  private t = 1;
  private before: Point | null = null;

  /** Begins anew. */
  restart(): void {
    this.t = 1;
    this.before = null;
  }

  /** The next x, from the last and what the iteration made of it. */
  next(from: Point, to: Point): Point {
    if (this.before !== null && turnsBack(from, to, this.before)) this.restart();
    const { t, before } = this;
    this.t = (1 + Math.sqrt(1 + 4 * t * t)) / 2;
    this.before = to;
    const [along, beyond] = [(t - 1) / this.t, t / this.t];
    const beyondOf = (part: keyof Point): Matrices | null => {
      const [source, target, earlier] = [from[part], to[part], before?.[part] ?? null];
      if (source === null || target === null) return null;
      const { data, batch, rows, columns } = target;
      const sum = matrices(data.slice(), batch, rows, columns);
      add(add(sum, target, beyond), source, -beyond);
      return earlier === null ? sum : add(add(sum, target, along), earlier, -along);
    };
    return {
      base: beyondOf('base') as Matrices,
      cross: beyondOf('cross') as Matrices,
      gauges: beyondOf('gauges'),
    };
  }
}

/** The inner product is that of bases S, whatever the scale of Y is. */
function turnsBack(from: Point, to: Point, before: Point): boolean {
  let sum = 0;
  const ofBase = [to.base, from.base].map(({ data }) => data) as [Float64Array, Float64Array];
  const ofCross = [to.cross, before.cross].map(({ data }) => data) as [Float64Array, Float64Array];
  for (let i = 0; i < ofBase[0].length; i++) {
    const step = (ofBase[0][i] as number) - (ofBase[1][i] as number);
    sum += step * ((ofCross[0][i] as number) - (ofCross[1][i] as number));
  }
  return sum < 0;
}
