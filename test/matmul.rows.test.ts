import { matmulSync } from '../lib';
import type { DataType, Tensor } from '../lib/tensor';
import { normal, slice, types } from './data';
import { expectSameBits } from './full-run';
import { isaRows } from './rows';

const rows = isaRows('matmul');

/** Products of few rows and of many are computed in different ways, which must agree to the bit. */
const counts = [1, 2, 3, 7, 8, 9, 13, 32, 33, 289];
/** Odd ends of tiles, of blocks of 256 and of units of up to 1024 columns. */
const extents = [
  [1, 1],
  [3, 5],
  [7, 1030],
  [31, 64],
  [40, 47],
  [263, 129],
  [521, 31],
  [1027, 17],
] as const;

interface Sides {
  readonly transposeA: boolean;
  readonly transposeB: boolean;
}

const sides: readonly Sides[] = [false, true].flatMap((transposeA) =>
  [false, true].map((transposeB) => ({ transposeA, transposeB })),
);

/** Rows of the left side, as they lie: the last ones are those of a call of its own. */
function checkCounts(k: number, n: number, typeA: DataType, typeB: DataType, options: Sides, isa: string): void {
  const most = Math.max(...counts);
  const a = normal(options.transposeA ? [k, most] : [most, k], 3 * k + n, typeA);
  const b = normal(options.transposeB ? [n, k] : [k, n], k + 3 * n, typeB);
  const whole = matmulSync(a, b, { ...options, isa });
  const axis = options.transposeA ? 1 : 0;
  for (const count of counts) {
    for (const first of [0, most - count]) {
      const part = matmulSync(slice(a, axis, first, first + count), b, { ...options, isa });
      expectSameBits(part, slice(whole, 0, first, first + count));
    }
  }
}

describe.each(rows)('%s: a row gives the same bits in any number of rows', (isa) => {
  const name = ({ transposeA, transposeB }: Sides) => `${transposeA ? 'aᵀ' : 'a'}·${transposeB ? 'bᵀ' : 'b'}`;
  describe.each(sides.map((side) => [name(side), side] as const))('%s', (_name, side) => {
    test.each(types)('by %s', (typeB) => {
      for (const [k, n] of extents) checkCounts(k, n, 'float32', typeB, side, isa);
    });

    test.each(types)('%s by float32', (typeA) => {
      checkCounts(263, 47, typeA, 'float32', side, isa);
    });
  });

  test.each(sides.map((side) => [name(side), side] as const))('%s on any number of threads', (_name, side) => {
    // As much work as several threads get a share of.
    const [k, n, most] = [515, 2100, 33];
    const a = normal(side.transposeA ? [k, most] : [most, k], 1);
    for (const type of types) {
      const b = normal(side.transposeB ? [n, k] : [k, n], 2, type);
      const whole: Tensor = matmulSync(a, b, { ...side, isa, threads: 1 });
      for (const count of [1, 5, 8, 32]) {
        const some = slice(a, side.transposeA ? 1 : 0, 0, count);
        for (const threads of [1, 2, 3]) {
          expectSameBits(matmulSync(some, b, { ...side, isa, threads }), slice(whole, 0, 0, count));
        }
      }
    }
  });
});
