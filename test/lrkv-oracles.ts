import type { Tensor } from '../lib/tensor';
import { from, type Inputs, normal } from './data';
import { toFloat64 } from './half';
import { type LrkvInputs, type LrkvShape, lrkvInputs, lrkvShape } from './lrkv-run';
import type { AttentionMeaning } from './problem';

/** Exact attention that a call of LRKV must equal. */
export interface Ordinary extends Inputs {
  readonly options: AttentionMeaning;
}

/** Two calls with the same answer, by algebra. */
export interface Oracle {
  readonly name: string;
  readonly one: LrkvInputs;
  readonly other: LrkvInputs | Ordinary;
  /** Makes of the other's output that of the one. */
  readonly after?: (output: Tensor) => Tensor;
}

const shape = {
  ...{ batch: 2, heads: 6, kvHeads: 3, queries: 5, keys: 140, headDim: 24, valueDim: 16 },
  ...{ keyRank: [6, 10, 2], valueRank: [3, 8, 5] },
} satisfies LrkvShape;
const few = lrkvShape(shape);

/** A tensor from what stands at each place. */
function place(dims: readonly number[], value: (...at: number[]) => number): Tensor {
  const data = Float64Array.from({ length: dims.reduce((a, b) => a * b, 1) }, (_, index) => {
    const at: number[] = [];
    let rest = index;
    for (const extent of dims.toReversed()) {
      at.unshift(rest % extent);
      rest = Math.floor(rest / extent);
    }
    return value(...at);
  });
  return from(data, dims);
}

/** What stands at a place of a tensor. */
function reader(tensor: Tensor): (...at: number[]) => number {
  const values = toFloat64(tensor);
  return (...at) => values[at.reduce((index, position, axis) => index * tensor.dims[axis] + position, 0)];
}

const total = (count: number, term: (i: number) => number) => {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += term(i);
  return sum;
};
const before = (ranks: readonly number[], head: number) => total(head, (i) => ranks[i]);

type Side = 'key' | 'value';

/** All heads' keys or values, written out: [batch, kvHeads, keys, dim]. */
function written({ given }: LrkvInputs, side: Side): Tensor {
  const [base, latent, up] = [given[`${side}Base`], given[`${side}Latent`], given[`${side}Up`]];
  const gauge = given[`${side}Gauge`];
  const ranks = given[`${side}Ranks`] as readonly number[];
  const [baseOf, latentOf, upOf] = [reader(base), reader(latent), reader(up)];
  const gaugeOf = gauge === undefined ? (_h: number, r: number, c: number) => Number(r === c) : reader(gauge);
  const [batch, keys, baseDim] = base.dims;
  return place([batch, ranks.length, keys, up.dims[1]], (b, h, j, c) => {
    const start = before(ranks, h);
    const shared = total(baseDim, (i) => baseOf(b, j, i) * gaugeOf(h, i, c));
    return shared + total(ranks[h], (r) => latentOf(b, j, start + r) * upOf(start + r, c));
  });
}

/** Each row of [batch, heads, rows, dim] times exp(i·position·frequency), its pairs taken as complex numbers. */
function turned(tensor: Tensor, { given }: LrkvInputs, first: number): Tensor {
  const read = reader(tensor);
  const dim = tensor.dims[3];
  const { frequencies, pairing = 'half', firstPosition = 0 } = given.rope ?? { frequencies: [] };
  return place(tensor.dims, (b, h, i, c) => {
    const pair = pairing === 'half' ? c % (dim / 2) : c >> 1;
    const isReal = pairing === 'half' ? c < dim / 2 : c % 2 === 0;
    const [x, y] = pairing === 'half' ? [pair, pair + dim / 2] : [2 * pair, 2 * pair + 1];
    const [real, imaginary] = [read(b, h, i, x), read(b, h, i, y)];
    const size = Math.hypot(real, imaginary);
    const angle = Math.atan2(imaginary, real) + (firstPosition + first + i) * frequencies[pair];
    return size * (isReal ? Math.cos(angle) : Math.sin(angle));
  });
}

const ordinary = (inputs: LrkvInputs, changes: Partial<Inputs> = {}): Ordinary => ({
  q: inputs.q,
  k: written(inputs, 'key'),
  v: written(inputs, 'value'),
  options: {},
  ...changes,
});

/** The same call with another model or other rows. */
const changed = (inputs: LrkvInputs, changes: Partial<LrkvInputs['given']>): LrkvInputs => ({
  ...inputs,
  given: { ...inputs.given, ...changes },
});

function withoutRope(): Oracle[] {
  const plain = lrkvInputs(shape, 1);
  const gauged = lrkvInputs({ ...shape, keyBaseDim: 30, valueBaseDim: 7 }, 2);
  const baseless = lrkvInputs({ ...shape, keyBaseDim: 0, valueBaseDim: 0 }, 3);
  return [
    { name: 'without rope: attention over written-out keys and values', one: plain, other: ordinary(plain) },
    { name: 'with gauges: attention over written-out keys and values', one: gauged, other: ordinary(gauged) },
    { name: 'without bases: attention over written-out keys and values', one: baseless, other: ordinary(baseless) },
  ];
}

function exact(pairing: 'half' | 'interleaved', keyGauge?: 'free'): Oracle {
  const one = lrkvInputs(shape, 4, { mode: 'exact', pairing, firstPosition: 17, keyGauge });
  const q = turned(one.q, one, few.keys - few.queries);
  return {
    name: `exact, ${pairing}${keyGauge ? ' with a gauge' : ''}: attention over rotated keys`,
    one,
    other: ordinary(one, { q, k: turned(written(one, 'key'), one, 0) }),
  };
}

/** Rank 0: one key/value head for all (MQA; Shazeer 2019, arXiv 1911.02150). */
function rankZero(): Oracle {
  const one = lrkvInputs({ ...shape, keyRank: 0, valueRank: 0 }, 5);
  const [k, v] = [one.given.keyBase, one.given.valueBase].map(({ data, dims: [batch, keys, dim] }) =>
    from(data as Float32Array, [batch, 1, keys, dim]),
  ) as [Tensor, Tensor];
  return { name: 'rank 0: one key/value head', one, other: { q: one.q, k, v, options: {} } };
}

/** Free rank, without a base or with: any heads at all. */
function freeRank(base: boolean): Oracle {
  const { batch, kvHeads, keys, headDim, valueDim } = few;
  const free = { ...shape, keyRank: headDim, valueRank: valueDim };
  const inputs = lrkvInputs(base ? free : { ...free, keyBaseDim: 0, valueBaseDim: 0 }, 6);
  const [k, v] = [normal([batch, kvHeads, keys, headDim], 61), normal([batch, kvHeads, keys, valueDim], 62)];
  const rest = (whole: Tensor, shared: Tensor, dim: number) => {
    const [wholeOf, sharedOf] = [reader(whole), reader(shared)];
    return place([batch, keys, kvHeads * dim], (b, j, c) => {
      const at = c % dim;
      return wholeOf(b, Math.floor(c / dim), j, at) - (base ? sharedOf(b, j, at) : 0);
    });
  };
  const identities = (dim: number) => place([kvHeads * dim, dim], (r, c) => Number(r % dim === c));
  const one = changed(inputs, {
    ...{ keyUp: identities(headDim), valueUp: identities(valueDim) },
    keyLatent: rest(k, inputs.given.keyBase, headDim),
    valueLatent: rest(v, inputs.given.valueBase, valueDim),
  });
  return {
    name: `free rank ${base ? 'beside a base' : 'alone'}: any heads`,
    one,
    other: { q: inputs.q, k, v, options: {} },
  };
}

/** QK-norm by one scale a key. */
function normalised(norm: 'plain' | 'before-rotation' | 'after-rotation', isTurned: boolean): Oracle {
  const one = lrkvInputs(shape, 7, { norm, ...(isTurned && { mode: 'exact' as const }) });
  const gain = one.given.keyNorm?.gain ?? new Array<number>(few.headDim).fill(1);
  const plain = written(one, 'key');
  const gained = (tensor: Tensor) => {
    const read = reader(tensor);
    return place(tensor.dims, (...at) => read(...at) * gain[at[3]]);
  };
  const read = reader(plain);
  const unit = place(plain.dims, (b, h, j, c) => {
    const mean = total(few.headDim, (i) => read(b, h, j, i) ** 2) / few.headDim;
    return read(b, h, j, c) / Math.sqrt(mean + (one.given.keyNorm?.epsilon ?? NaN));
  });
  const rotate = (tensor: Tensor, first: number) => (isTurned ? turned(tensor, one, first) : tensor);
  const k = norm === 'before-rotation' ? rotate(gained(unit), 0) : gained(rotate(unit, 0));
  const other = ordinary(one, { k, q: rotate(one.q, few.keys - few.queries) });
  return { name: `QK-norm, ${norm}${isTurned ? ', rotated' : ''}: attention over normalised keys`, one, other };
}

/** Zero rows of B and whatever stands in their latents: the heads' ranks become alike. */
function padded(): Oracle {
  const inputs = lrkvInputs(shape, 8);
  const rank = 11;
  const pad = (side: Side) => {
    const ranks = side === 'key' ? few.keyRanks : few.valueRanks;
    const [up, latent] = [reader(inputs.given[`${side}Up`]), reader(inputs.given[`${side}Latent`])];
    const within = (row: number) => row % rank < ranks[Math.floor(row / rank)];
    const at = (row: number) => before(ranks, Math.floor(row / rank)) + (row % rank);
    const rows = few.kvHeads * rank;
    return {
      [`${side}Up`]: place([rows, inputs.given[`${side}Up`].dims[1]], (r, c) => (within(r) ? up(at(r), c) : 0)),
      [`${side}Latent`]: place([few.batch, few.keys, rows], (b, j, r) => (within(r) ? latent(b, j, at(r)) : 3)),
      [`${side}Ranks`]: undefined,
    };
  };
  return {
    name: 'ragged ranks: alike ones with zero rows',
    one: inputs,
    other: changed(inputs, { ...pad('key'), ...pad('value') }),
  };
}

/** c·(I − 2uuᵀ)(I − 2wwᵀ) of each head, whose inverse is its transpose over c². */
function gauges(dim: number, seed: number): Tensor {
  const reflection = (at: number) => {
    const vector = toFloat64(normal([dim], at));
    const square = total(dim, (i) => vector[i] ** 2);
    return (r: number, c: number) => Number(r === c) - (2 * vector[r] * vector[c]) / square;
  };
  const pairs = Array.from({ length: few.kvHeads }, (_, h) => [reflection(seed + h), reflection(seed + 50 + h)]);
  return place([few.kvHeads, dim, dim], (h, r, c) => 2 * total(dim, (i) => pairs[h][0](r, i) * pairs[h][1](i, c)));
}

/**
 * A gauge is absorbed by what stands around it: q·A_hᵀ for queries, B_hᵀ·A_h⁻¹ for factors of both sides, and outputs
 * times A_h.
 */
function absorbed(): Oracle {
  const inputs = lrkvInputs(shape, 9);
  const [keyGauge, valueGauge] = [gauges(few.headDim, 91), gauges(few.valueDim, 92)];
  const headOf = (ranks: readonly number[], row: number) =>
    ranks.findIndex((rank, head) => row < before(ranks, head) + rank);
  const [q, a] = [reader(inputs.q), reader(keyGauge)];
  const { headDim, valueDim } = few;
  const group = few.heads / few.kvHeads;
  const inverted = (up: Tensor, gauge: Tensor, ranks: readonly number[]) => {
    const [upOf, gaugeOf] = [reader(up), reader(gauge)];
    return place(up.dims, (r, c) => {
      const head = headOf(ranks, r);
      return total(up.dims[1], (i) => upOf(r, i) * gaugeOf(head, c, i)) / 4;
    });
  };
  return {
    name: 'a gauge: its absorbed form',
    one: changed(inputs, { keyGauge, valueGauge }),
    other: {
      ...changed(inputs, {
        keyUp: inverted(inputs.given.keyUp, keyGauge, few.keyRanks),
        valueUp: inverted(inputs.given.valueUp, valueGauge, few.valueRanks),
      }),
      q: place(inputs.q.dims, (b, h, i, c) => total(headDim, (e) => q(b, h, i, e) * a(Math.floor(h / group), c, e))),
    },
    after: (output) => {
      const [read, gaugeOf] = [reader(output), reader(valueGauge)];
      return place(output.dims, (b, h, i, c) =>
        total(valueDim, (e) => read(b, h, i, e) * gaugeOf(Math.floor(h / group), e, c)),
      );
    },
  };
}

/** The printed formula of the paper with the frequencies that B couples is the exact one (intertwining). */
function intertwined(pairing: 'half' | 'interleaved'): Oracle {
  const one = lrkvInputs(shape, 10, { mode: 'intertwined', pairing, keyGauge: 'pairs' });
  const { rope, keyGauge, ...rest } = one.given;
  return {
    name: `intertwined, ${pairing}: exact`,
    one,
    other: { ...one, given: { ...rest, keyGauge, rope, ropeMode: 'exact' } },
  };
}

function still(mode: 'exact' | 'latent' | 'none' | 'paper'): Oracle {
  const inputs = lrkvInputs(shape, 11, { mode });
  const zeros = (count: number) => new Array<number>(count).fill(0);
  const { rope, ropeMode, latentFrequencies, ...other } = inputs.given;
  const latents = latentFrequencies && { latentFrequencies: zeros(latentFrequencies.length) };
  return {
    name: `${mode} with all frequencies 0: no rope`,
    one: changed(inputs, { rope: { frequencies: zeros(few.headDim / 2) }, ...latents }),
    other: { ...inputs, given: other },
  };
}

function latentsStill(): Oracle {
  const inputs = lrkvInputs(shape, 12, { mode: 'latent' });
  const { latentFrequencies, ...given } = inputs.given;
  return {
    name: 'latent with latent frequencies 0: none',
    one: changed(inputs, { latentFrequencies: new Array<number>(latentFrequencies?.length ?? 0).fill(0) }),
    other: { ...inputs, given: { ...given, ropeMode: 'none' } },
  };
}

export const oracles: readonly Oracle[] = [
  ...withoutRope(),
  exact('half'),
  exact('interleaved'),
  exact('half', 'free'),
  rankZero(),
  freeRank(false),
  freeRank(true),
  normalised('plain', false),
  normalised('before-rotation', false),
  normalised('after-rotation', false),
  normalised('plain', true),
  normalised('before-rotation', true),
  normalised('after-rotation', true),
  padded(),
  absorbed(),
  intertwined('half'),
  intertwined('interleaved'),
  ...(['exact', 'latent', 'none', 'paper'] as const).map(still),
  latentsStill(),
];

/** A call and the same a thousand positions later. */
export function shifted(
  mode: 'exact' | 'latent' | 'none' | 'paper' | 'intertwined',
): readonly [LrkvInputs, LrkvInputs] {
  return [lrkvInputs(shape, 13, { mode }), lrkvInputs(shape, 13, { mode, firstPosition: 1000 })];
}
