import {
  approximationError,
  attentionFactorsSync,
  attentionRowKl,
  attentionSync,
  lowRankAttentionSync,
  matmulSync,
  type Tensor,
} from '../lib';
import { filled, from, normal, types } from './data';
import { toFloat64 } from './half';
import { attentionMatrices, distance, sumOfSquares } from './reference-lowrank';
import { Faults, faultOf } from './refusal';

describe('error of an approximation', () => {
  test.each(types)('%s: straight from the definition', (type) => {
    const [a, b] = [normal([2, 3, 5], 1, type), normal([2, 3, 5], 2, type)];
    const [x, y] = [toFloat64(a), toFloat64(b)];
    const { relativeFrobenius, maxAbs } = approximationError(a, b);
    expect(relativeFrobenius).toBeCloseTo(distance(x, y) / Math.sqrt(sumOfSquares(y)), 12);
    expect(maxAbs).toBe(Math.max(...x.map((value, i) => Math.abs(value - y[i]))));
    expect(approximationError(a, a)).toEqual({ relativeFrobenius: 0, maxAbs: 0 });
  });

  test('of nothing, and of zeros', () => {
    const [zero, one] = [from([0, 0], [2]), from([0, 1], [2])];
    expect(approximationError(zero, zero)).toEqual({ relativeFrobenius: 0, maxAbs: 0 });
    expect(approximationError(one, zero)).toEqual({ relativeFrobenius: Infinity, maxAbs: 1 });
    expect(approximationError(from([], [0, 3]), from([], [0, 3]))).toEqual({ relativeFrobenius: 0, maxAbs: 0 });
  });

  test('outputs of a low rank stay within σₖ₊₁·‖V‖ of attention', () => {
    const [q, k, v] = [normal([1, 1, 90, 16], 1), normal([1, 1, 90, 16], 2), normal([1, 1, 90, 8], 3)];
    const exact = attentionSync(q, k, v);
    const all = attentionFactorsSync(q, k, { rank: 90 }).singularValues.data;
    for (const rank of [1, 10, 50, 90]) {
      const found = lowRankAttentionSync(attentionFactorsSync(q, k, { rank, powerIterations: 8 }), v);
      const { relativeFrobenius } = approximationError(found, exact);
      const bound = (all[rank] ?? 0) * Math.sqrt(sumOfSquares(v.data));
      // The best of this rank has the bound; power iterations come near it.
      expect(relativeFrobenius * Math.sqrt(sumOfSquares(exact.data))).toBeLessThan(1.05 * bound + 1e-4);
    }
  });
});

describe('divergence of rows', () => {
  const identity = (n: number) => filled([1, 1, n, n], 'float32', (i) => Number(i % (n + 1) === 0));

  test('straight from the definition', () => {
    const [q, k] = [normal([1, 2, 20, 8], 1), normal([1, 2, 30, 8], 2)];
    const p = attentionMatrices(q, k);
    const r = attentionMatrices(q, k, { scale: 0.2 });
    const tensorOf = (list: typeof p): Tensor =>
      from(
        list.flatMap(({ data }) => [...data]),
        [1, 2, 20, 30],
      );
    const [exact, other] = [tensorOf(p), tensorOf(r)];
    const [x, y] = [toFloat64(exact), toFloat64(other)];
    const rows = Array.from({ length: 40 }, (_, row) => {
      let sum = 0;
      for (let j = row * 30; j < (row + 1) * 30; j++) sum += x[j] * Math.log(x[j] / y[j]);
      return sum;
    });
    const found = attentionRowKl(exact, other);
    expect(found.mean).toBeCloseTo(rows.reduce((a, b) => a + b, 0) / 40, 6);
    expect(found.max).toBeCloseTo(Math.max(...rows), 6);
    expect(found.infiniteRows).toBe(0);
    expect(found.smallestWeight).toBe(Math.min(...y));
    expect(found.maxRowSumError).toBeLessThan(1e-6);
    const same = attentionRowKl(exact, exact);
    expect([same.mean, same.max, same.maxRowSumError]).toEqual([0, 0, 0]);
  });

  test('of a truncated matrix: negative weights, rows that do not sum to 1, and never below 0', () => {
    const [q, k] = [normal([1, 1, 60, 16], 3), normal([1, 1, 60, 16], 4)];
    for (let i = 0; i < q.data.length; i++) q.data[i] *= 2;
    const exact = attentionSync(q, k, identity(60));
    const errors = [2, 20, 60].map((rank) => {
      const { u, v } = attentionFactorsSync(q, k, { rank });
      return attentionRowKl(exact, matmulSync(u, v, { transposeB: true }));
    });
    expect(errors[0].smallestWeight).toBeLessThan(-0.01);
    expect(errors[0].maxRowSumError).toBeGreaterThan(0.1);
    expect(errors[0].infiniteRows).toBeGreaterThan(10);
    expect(errors[2].maxRowSumError).toBeLessThan(1e-5);
    for (const { mean, max, infiniteRows } of errors) {
      if (infiniteRows === 60) expect([mean, max]).toEqual([NaN, NaN]);
      else expect(mean).toBeGreaterThanOrEqual(0);
    }
  });

  test('weights of 0 cost nothing where they are met, and everything where they are not', () => {
    const exact = from([0, 1, 0.5, 0.5, 0, 1], [3, 2]);
    const found = attentionRowKl(exact, from([0, 1, 0, 1, 0.5, 0.5], [3, 2]));
    expect(found).toEqual({
      mean: Math.log(2) / 2,
      max: Math.log(2),
      infiniteRows: 1,
      smallestWeight: 0,
      maxRowSumError: 0,
    });
  });
});

test('wrong tensors', async () => {
  const faults = new Faults();
  const right = from([0.25, 0.75, 0.5, 0.5], [2, 2]);
  const wrong = [
    [right, from([1, 2, 3, 4], [4]), 'ERR_SHAPE'],
    [right, from([1, 2, 3, NaN], [2, 2]), 'ERR_ARGUMENT', 'NaN'],
    [right, from([1, 2, 3, -Infinity], [2, 2]), 'ERR_ARGUMENT', '-Infinity'],
  ] as const;
  for (const [first, second, code, received] of wrong) {
    const error = () => approximationError(first, second);
    faults.add('error', await faultOf(error, false, { code, argument: 'exact', received }));
    const kl = () => attentionRowKl(first, second);
    faults.add('kl', await faultOf(kl, false, { code, argument: 'approximation', received }));
  }
  const negative = () => attentionRowKl(from([0.5, -0.5], [1, 2]), from([0.5, 0.5], [1, 2]));
  faults.add('negative', await faultOf(negative, false, { code: 'ERR_ARGUMENT', argument: 'exact', received: '-0.5' }));
  const flat = () => attentionRowKl(from([1], [1]), from([1], [1]));
  faults.add('flat', await faultOf(flat, false, { code: 'ERR_SHAPE', argument: 'exact' }));
  faults.none();
});
