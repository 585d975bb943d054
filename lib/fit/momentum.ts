/** Extrapolation of an alternation, so that many small steps in much the same direction become few. */
import type { Matrices } from '../linalg';

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
 * (1 + √(1 + 4·t_k²))/2. It begins anew, at t = 1, where bases turn back, ⟨F(x_k) − x_k, F(x_k) − F(x_{k−1})⟩ < 0, and is to be
 * told to where the error does not fall (Kim & Fessler 2018, J. Optim. Theory Appl. 178, after O'Donoghue & Candès 2015, Found.
 * Comput. Math. 15). All of this is of convex functions, and what is fitted is none; that momentum with restarts speeds up
 * alternating least squares too is what Mitchell, Ye & De Sterck 2020 (Numer. Linear Algebra Appl. 27) found, with Nesterov's.
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
    const { t } = this;
    // At t = 1 there is no point before, and it does not count.
    const before = this.before ?? to;
    this.t = (1 + Math.sqrt(1 + 4 * t * t)) / 2;
    this.before = to;
    const [along, beyond] = [(t - 1) / this.t, t / this.t];
    const extrapolate = (of: Matrices, { data: source }: Matrices, { data: earlier }: Matrices): Matrices => ({
      ...of,
      data: of.data.map(
        (value, i) => value + along * (value - (earlier[i] as number)) + beyond * (value - (source[i] as number)),
      ),
    });
    return {
      base: extrapolate(to.base, from.base, before.base),
      cross: extrapolate(to.cross, from.cross, before.cross),
      gauges: to.gauges && extrapolate(to.gauges, from.gauges as Matrices, before.gauges as Matrices),
    };
  }
}

/** The inner product is that of bases S, whatever the scale of Y is. */
function turnsBack(from: Point, to: Point, before: Point): boolean {
  let sum = 0;
  for (let i = 0; i < to.base.data.length; i++) {
    const step = (to.base.data[i] as number) - (from.base.data[i] as number);
    sum += step * ((to.cross.data[i] as number) - (before.cross.data[i] as number));
  }
  return sum < 0;
}
