/**
 * LRKV's native handles and operands, where lib/ would refuse what comes before it gets there: a fault in lib/, or
 * memory that changed hands, must end in a refusal and never in a read beyond what exists.
 */
import { attentionSync } from '../lib';
import { addon, type NativeCache, type Outcome } from '../lib/native';
import { normal } from './data';

const heads = 4;
const kvHeads = 2;
const headDim = 6;
const valueDim = 5;
const keyRanks = Int32Array.of(3, 10);
const valueRanks = Int32Array.of(0, 9);
const keyLatents = 13;
const valueLatents = 9;

const data = (seed: number, ...dims: number[]): Float32Array => normal(dims, seed).data as Float32Array;

const keyUp = data(1, keyLatents, headDim);
const valueUp = data(2, valueLatents, valueDim);
const none = null;
/** Without rotary embedding; bases are as wide as heads, so that no gauge is needed. */
const modelOperands = [keyUp, none, keyRanks, valueUp, none, valueRanks, none, none, none] as const;
const modelNumbers = [kvHeads, headDim, valueDim, headDim, valueDim, 0, 0, 0, 0, 0, 0] as const;
const scores = [1 / Math.sqrt(headDim), 0, -1, 0, 0, 0, 0, NaN] as const;

interface Rows {
  readonly count: number;
  readonly operands: readonly Float32Array[];
}

const rowsOf = (count: number, seed: number): Rows => ({
  count,
  operands: [headDim, keyLatents, valueDim, valueLatents].map((columns, i) => data(seed + i, count, columns)),
});

const newCache = (): NativeCache =>
  new addon.LrkvCache(kvHeads, 0, headDim, valueDim, 0, Int32Array.of(8, 16), Int32Array.of(0, 16));

const append = (
  cache: NativeCache,
  rows: Rows,
  operands: readonly unknown[] = modelOperands,
  numbers: readonly number[] = modelNumbers,
): Outcome => cache.append([...rows.operands, ...operands], Float64Array.of(0, rows.count, ...numbers));

/** Keys or values of all heads: base plus latent·up. */
function materialised(base: Float32Array, latent: Float32Array, up: Float32Array, ranks: Int32Array): Float32Array {
  const columns = ranks.reduce((sum, rank) => sum + rank);
  const dim = up.length / columns;
  const count = latent.length / columns;
  const out = new Float32Array(kvHeads * count * dim);
  let first = 0;
  for (const [head, rank] of ranks.entries()) {
    for (let row = 0; row < count; row++) {
      for (let c = 0; c < dim; c++) {
        let sum = base[row * dim + c];
        for (let r = first; r < first + rank; r++) sum += latent[row * columns + r] * up[r * dim + c];
        out[(head * count + row) * dim + c] = sum;
      }
    }
    first += rank;
  }
  return out;
}

function exact(query: Float32Array, rows: Rows): Float32Array {
  const [keyBase, keyLatent, valueBase, valueLatent] = rows.operands;
  const key = materialised(keyBase, keyLatent, keyUp, keyRanks);
  const value = materialised(valueBase, valueLatent, valueUp, valueRanks);
  const operand = (array: Float32Array, count: number, dim: number) =>
    ({ data: array, dims: [1, count, array.length / count / dim, dim], type: 'float32' }) as const;
  const options = { causal: true };
  return attentionSync(
    operand(query, heads, headDim),
    operand(key, kvHeads, headDim),
    operand(value, kvHeads, valueDim),
    options,
  ).data as Float32Array;
}

function far(left: Float32Array, right: Float32Array): number {
  return left.reduce((most, value, i) => Math.max(most, Math.abs(value - right[i])), 0);
}

function attend(
  caches: readonly unknown[],
  queries: readonly Float32Array[],
  model: readonly unknown[] = modelOperands,
) {
  const counts = queries.map(({ length }) => length / heads / headDim);
  const outputs = counts.map((count) => new Float32Array(heads * count * valueDim).fill(NaN));
  const outcome = addon.lrkvCached(
    [caches, queries, outputs, null, null, null, ...model],
    Float64Array.of(0, 0, heads, 0, ...scores, ...modelNumbers, ...counts),
    1,
    '',
    false,
    null,
  );
  return { outcome, outputs };
}

function stateless(
  rows: Rows,
  query: Float32Array,
  operands: readonly unknown[] = modelOperands,
  numbers: readonly number[] = modelNumbers,
): { outcome: unknown; output: Float32Array } {
  const queries = query.length / heads / headDim;
  const output = new Float32Array(heads * queries * valueDim).fill(NaN);
  const outcome = addon.lrkv(
    [query, output, null, null, null, null, null, ...rows.operands, ...operands],
    Float64Array.of(0, 0, 0, 1, heads, queries, rows.count, 0, ...scores, 0, ...numbers),
    1,
    '',
    false,
    null,
  );
  return { outcome, output };
}

describe('native LRKV', () => {
  test.each([
    [1, 1],
    [300, 1],
    [300, 150],
    [5, 5],
  ])('%i rows of a call, %i queries', (count, queries) => {
    const rows = rowsOf(count, 10);
    const query = data(20, heads, queries, headDim);
    const { outcome, output } = stateless(rows, query);
    expect(outcome).toBeUndefined();
    expect(far(output, exact(query, rows))).toBeLessThan(2e-5);
  });

  test('a cache, its fork and another in one call', () => {
    const rows = rowsOf(200, 30);
    const more = rowsOf(70, 40);
    const other = rowsOf(3, 50);
    const joined = {
      count: 270,
      operands: rows.operands.map((part, i) => Float32Array.of(...part, ...more.operands[i])),
    };
    const cache = newCache();
    expect(append(cache, rows)).toBeUndefined();
    const fork = cache.fork();
    expect(fork.sharedBytes()).toBe(cache.bytes());
    expect(append(fork, more)).toBeUndefined();
    const short = newCache();
    expect(append(short, other)).toBeUndefined();
    const queries = [data(60, heads, 1, headDim), data(61, heads, 9, headDim), data(62, heads, 3, headDim)];
    const { outcome, outputs } = attend([cache, fork, short], queries);
    expect(outcome).toBeUndefined();
    for (const [i, held] of [rows, joined, other].entries())
      expect(far(outputs[i], exact(queries[i], held))).toBeLessThan(2e-5);
    // Alone and after its fork has grown: the same bits.
    expect(attend([cache], [queries[0]]).outputs[0]).toEqual(outputs[0]);
    // 200 rows are two pages, of which the fork shares the first only: it has written into a copy of the other.
    expect(cache.sharedBytes()).toBe(cache.bytes() / 2);
    cache.truncate(0);
    expect(cache.bytes()).toBe(0);
  });

  test('the layout is the memory a page takes', () => {
    const cache = newCache();
    expect(append(cache, rowsOf(1, 70))).toBeUndefined();
    expect(cache.bytes()).toBe(128 * 4 * (headDim + 24 + valueDim + 16));
    const scaled = new addon.LrkvCache(2, 1, 0, 0, 1, Int32Array.of(8, 0), Int32Array.of(0, 8));
    const numbers = [2, headDim, valueDim, 0, 0, 0, 0, 0, 1, 1e-6, 0];
    const ranks = [Int32Array.of(1, 0), Int32Array.of(0, 1)];
    const operands = [data(71, 1, headDim), none, ranks[0], data(72, 1, valueDim), none, ranks[1], none, none, none];
    const empty = new Float32Array(0);
    const rows = { count: 1, operands: [empty, data(73, 1), empty, data(74, 1)] };
    expect(append(scaled, rows, operands, numbers)).toBeUndefined();
    expect(scaled.bytes()).toBe(128 * (2 * 16 + 4 * 2));
  });
});

describe('native LRKV refuses', () => {
  const rows = rowsOf(4, 80);
  const with_ = (index: number, value: unknown): unknown[] =>
    modelOperands.map((given, i) => (i === index ? value : given));
  const number = (index: number, value: number): number[] =>
    modelNumbers.map((given, i) => (i === index ? value : given));
  const shortened = (array: Float32Array): Float32Array => array.subarray(1);

  // Of a model: operands, numbers, the argument blamed.
  test.each<[string, readonly unknown[], readonly number[], string]>([
    ['a short keyUp', with_(0, shortened(keyUp)), modelNumbers, 'keyUp'],
    ['no keyUp', with_(0, null), modelNumbers, 'keyUp'],
    ['a short valueUp', with_(3, shortened(valueUp)), modelNumbers, 'valueUp'],
    ['a rank below 0', with_(2, Int32Array.of(14, -1)), modelNumbers, 'keyRanks'],
    ['too few ranks', with_(5, Int32Array.of(9)), modelNumbers, 'valueRanks'],
    ['ranks beyond what is there', with_(2, Int32Array.of(2 ** 31 - 1, 2 ** 31 - 1)), modelNumbers, 'keyUp'],
    ['ranks of another kind', with_(2, Float32Array.of(3, 10)), modelNumbers, 'keyRanks'],
    ['a short gauge', with_(1, new Float32Array(kvHeads * headDim * headDim - 1)), modelNumbers, 'keyGauge'],
    ['a base without a gauge', modelOperands, number(4, valueDim - 1), 'valueBase'],
    ['a gain that is short', with_(8, new Float32Array(headDim - 1)), modelNumbers, 'keyNorm'],
    ['an unknown mode', modelOperands, number(5, 5), 'rope'],
    ['an unknown pairing', modelOperands, number(6, 2), 'rope'],
    ['a position below 0', modelOperands, number(7, -1), 'rope'],
    ['rotary embedding without frequencies', modelOperands, number(5, 1), 'rope'],
    ['odd ranks of rotated latents', with_(6, new Float64Array(headDim / 2)), number(5, 2), 'keyRanks'],
    ['a head of no size', modelOperands, number(1, 0), 'keyUp'],
    ['a head beyond reason', modelOperands, number(2, 2 ** 40), 'valueUp'],
    ['no heads', modelOperands, number(0, 0), 'kvHeads'],
    ['heads that are not there', modelOperands, number(0, 2 ** 52), 'keyRanks'],
  ])('%s', (_, operands, numbers, argument) => {
    const refusal = expect.stringMatching(`^ERR_ARGUMENT:${argument}:`);
    expect(stateless(rows, data(90, heads, 1, headDim), operands, numbers).outcome).toEqual(refusal);
    const cache = newCache();
    expect(append(cache, rows, operands, numbers)).toEqual(refusal);
    expect(cache.bytes()).toBe(0);
  });

  test.each([0, 1, 2, 3])('rows whose part %i is short', (part) => {
    const short = { ...rows, operands: rows.operands.map((given, i) => (i === part ? shortened(given) : given)) };
    const refusal = expect.stringMatching(/^ERR_ARGUMENT:(key|value)(Base|Latent):/);
    expect(stateless(short, data(90, heads, 1, headDim)).outcome).toEqual(refusal);
    expect(append(newCache(), short)).toEqual(refusal);
  });

  test('rows without elements, which nothing counts', () => {
    const ranks = Int32Array.of(0, 0);
    const empty = new Float32Array(0);
    const operands = [empty, none, ranks, empty, none, ranks, none, none, none];
    const numbers = [kvHeads, headDim, valueDim, 0, 0, 0, 0, 0, 0, 0, 0];
    const endless = { count: 2 ** 50, operands: [empty, empty, empty, empty] };
    const { outcome } = stateless(endless, data(90, heads, 1, headDim), operands, numbers);
    expect(outcome).toEqual(expect.stringMatching('^ERR_ARGUMENT:keyBase:'));
  });

  test('a cache of another layout, of another kind, and none', () => {
    const query = [data(91, heads, 1, headDim)];
    const refusal = expect.stringMatching('^ERR_ARGUMENT:cache:');
    const widths = [Int32Array.of(8, 16), Int32Array.of(0, 16)] as const;
    const [narrow] = [Int32Array.of(8, 8)];
    for (const cache of [
      new addon.LrkvCache(kvHeads, 0, headDim, valueDim, 0, narrow, widths[1]),
      new addon.LrkvCache(kvHeads, 0, 0, valueDim, 0, ...widths),
      new addon.LrkvCache(kvHeads, 0, headDim, 0, 0, ...widths),
      new addon.LrkvCache(kvHeads, 0, headDim, valueDim, 1, ...widths),
    ]) {
      expect(append(cache, rows)).toEqual(refusal);
      expect(attend([cache], query).outcome).toEqual(refusal);
    }
    const half = new addon.LrkvCache(kvHeads, 1, headDim, valueDim, 0, ...widths);
    expect(attend([newCache(), half], [query[0], query[0]]).outcome).toEqual(refusal);
    for (const value of [new addon.KvCache(kvHeads, headDim, valueDim, 0), {}, null, 1, addon.LrkvCache])
      expect(attend([value], query).outcome).toEqual(refusal);
    const disposed = newCache();
    disposed.dispose();
    expect(attend([disposed], query).outcome).toEqual(expect.stringMatching('^ERR_CLOSED:cache:'));
    expect(append(disposed.fork(), rows)).toEqual(expect.stringMatching('^ERR_CLOSED:cache:'));
  });

  test('a layout that cannot be: the handle is a disposed one', () => {
    const widths = [Int32Array.of(8, 16), Int32Array.of(0, 16)];
    const zero = Int32Array.of(0, 0);
    const huge = Int32Array.of(2 ** 31 - 8, 2 ** 31 - 8);
    for (const given of [
      [],
      [0, 0, 1, 1, 0, ...widths],
      [3, 0, 1, 1, 0, ...widths],
      [NaN, 0, 1, 1, 0, ...widths],
      [2, 3, 1, 1, 0, ...widths],
      [2, 0, -1, 1, 0, ...widths],
      [2, 0, 2 ** 40, 1, 0, ...widths],
      [2, 0, 1, 1, 0, Int32Array.of(8, 12), widths[1]],
      [2, 0, 1, 1, 0, Int32Array.of(8, -8), widths[1]],
      [2, 0, 1, 1, 0, huge, widths[1]],
      [2, 0, 0, 0, 0, zero, zero],
      [2, 0, 1, 1, 0, Float32Array.of(8, 16), widths[1]],
      [new addon.KvCache(1, 1, 1, 0)],
    ]) {
      const cache = new addon.LrkvCache(...(given as ConstructorParameters<typeof addon.LrkvCache>));
      expect(append(cache, rows)).toEqual(expect.stringMatching('^ERR_CLOSED:cache:'));
      expect(cache.bytes()).toBe(0);
    }
  });
});
