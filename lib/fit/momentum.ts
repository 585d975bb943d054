/** Extrapolation of an iteration, so that many small steps in much the same direction become few. */

import type { Matrices } from '../linalg';
import { add, matrices } from './algebra';

/**
 * The optimized gradient method (Kim & Fessler 2016, Math. Program. 159), with steps of an iteration x → F(x) in the place of
 * gradient steps: the next x is F(x_k) + (t_k − 1)/t_{k+1}·(F(x_k) − F(x_{k−1})) + t_k/t_{k+1}·(F(x_k) − x_k), t_{k+1} =
 * (1 + √(1 + 4·t_k²))/2. Nothing says that it betters what F betters: where it does not, begin anew from F(x_k) (O'Donoghue &
 * Candès 2015, Found. Comput. Math. 15; for alternating least squares Mitchell, Ye & De Sterck 2020, Numer. Linear Algebra
 * Appl. 27).
 */
export class Momentum {
  private t = 1;
  private before: readonly Matrices[] | null = null;

  /** Begins anew. */
  restart(): void {
    this.t = 1;
    this.before = null;
  }

  /** The next x, from the last and what the iteration made of it. */
  next(from: readonly Matrices[], to: readonly Matrices[]): Matrices[] {
    const { t, before } = this;
    this.t = (1 + Math.sqrt(1 + 4 * t * t)) / 2;
    this.before = to;
    const [along, beyond] = [(t - 1) / this.t, t / this.t];
    return to.map((part, i) => {
      const { data, batch, rows, columns } = part;
      const factor = 1 + beyond + (before === null ? 0 : along);
      const sum = matrices(
        data.map((value) => factor * value),
        batch,
        rows,
        columns,
      );
      add(sum, from[i] as Matrices, -beyond);
      return before === null ? sum : add(sum, before[i] as Matrices, -along);
    });
  }
}
