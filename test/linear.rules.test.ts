import { linearAttentionSync } from '../lib';
import type { BoolTensor, Tensor } from '../lib/tensor';
import { filled, guarded, type Inputs, normalInputs, type Shape, swapLayout, types, uniform } from './data';
import { expectLinear } from './expectation';
import { expectSameBits } from './full-run';
import { toFloat64 } from './half';
import { checkLinear, maps, optionsOf, plainMeaning } from './linear-run';
import type { LinearMeaning } from './reference-linear';
import { isaRows, testRows } from './rows';

const rows = isaRows('linear');
type Rule = NonNullable<LinearMeaning['updateRule']>;
const gatedRules = ['gated', 'gatedDelta'] as const;
const deltaRules = ['delta', 'gatedDelta'] as const;

interface Case {
  readonly inputs: () => Inputs;
  readonly meaning: () => LinearMeaning;
}

const table = (cases: Readonly<Record<string, Case>>) =>
  testRows(rows, cases, (given) => {
    const [data, meaning] = [given.inputs(), given.meaning()];
    const expected = expectLinear(data.q, data.k, data.v, meaning);
    return (isa) => checkLinear(data, meaning, { isa }, expected);
  });

/** Keys of length 1, as the delta rule wants them: steps of β ≤ 1 then never overshoot. */
function unitKeys({ q, k, v }: Inputs): Inputs {
  const plain = toFloat64(k);
  const dim = k.dims[3];
  const norms = Array.from({ length: plain.length / dim }, (_, row) =>
    Math.hypot(...plain.subarray(row * dim, (row + 1) * dim)),
  );
  return { q, k: filled(k.dims, k.type, (i) => plain[i] / norms[Math.floor(i / dim)]), v };
}

/** Decays of `dims`, −strength to 0. */
const decays = (dims: readonly number[], seed: number, strength: number): Tensor => {
  const next = uniform(seed);
  return filled(dims, 'float32', () => -strength * (1 - next()));
};

/** Step sizes in (0, 1]. */
const betas = (dims: readonly number[], seed: number): Tensor => filled(dims, 'float32', uniform(seed));

/** A rule with what it needs, for identity features. */
function ruleMeaning(rule: Rule, shape: Shape, features: number | undefined, strength = 0.2): LinearMeaning {
  const { batch = 1, heads = 1, kvHeads = heads, keys, layout = 'bhld' } = shape;
  const dims = layout === 'bhld' ? [batch, kvHeads, keys] : [batch, keys, kvHeads];
  const isGated = rule === 'gated' || rule === 'gatedDelta';
  const isDelta = rule === 'delta' || rule === 'gatedDelta';
  return {
    map: { kind: 'identity' },
    updateRule: rule,
    causal: true,
    layout,
    ...(isGated ? { decay: decays(features === undefined ? dims : [...dims, features], 81, strength) } : {}),
    ...(isDelta ? { beta: betas(dims, 82) } : {}),
    ...(rule === 'linear' ? { normalize: false } : {}),
  };
}

const ways = (['linear', 'gated', 'delta', 'gatedDelta'] as const).flatMap((rule) =>
  (rule === 'gated' || rule === 'gatedDelta' ? [false, true] : [false]).map((perFeature) => ({ rule, perFeature })),
);

const waysOver = (shape: Shape, seed: number, strength?: number): Record<string, Case> =>
  Object.fromEntries(
    ways.map(({ rule, perFeature }) => [
      `${rule}${perFeature ? ', decay per feature' : ''}`,
      {
        inputs: () => unitKeys(normalInputs(shape, seed)),
        meaning: () => ruleMeaning(rule, shape, perFeature ? shape.headDim : undefined, strength),
      },
    ]),
  );

test('this machine runs at least one kernel row', () => {
  expect(rows.length).toBeGreaterThan(0);
});

describe('shared key heads, odd sizes', () => {
  table(waysOver({ batch: 2, heads: 4, kvHeads: 2, queries: 75, keys: 75, headDim: 11, valueDim: 19 }, 1));
});

describe('rows before heads', () => {
  table(waysOver({ batch: 2, heads: 3, queries: 40, keys: 40, headDim: 8, valueDim: 5, layout: 'blhd' }, 2));
});

describe('lengths', () => {
  const boundaries = [16, 32, 64, 128].flatMap((chunk) => [chunk - 1, chunk, chunk + 1]);
  for (const length of [1, 2, 3, ...boundaries, 203, 1023, 1025]) {
    describe(`${length}`, () => {
      table(waysOver({ heads: 2, kvHeads: 1, queries: length, keys: length, headDim: 12, valueDim: 10 }, length));
    });
  }
});

describe('head sizes', () => {
  for (const headDim of [1, 3, 16, 33, 64, 100]) {
    const shape = { queries: 50, keys: 50, headDim, valueDim: 68 - (headDim % 64) };
    describe(`${headDim}, values of ${shape.valueDim}`, () => {
      table(waysOver(shape, headDim));
    });
  }
});

describe.each(types)('%s', (type) => {
  const shape = { heads: 2, kvHeads: 1, queries: 90, keys: 90, headDim: 16 };
  table(
    Object.fromEntries(
      ways.map(({ rule, perFeature }) => [
        `${rule}${perFeature ? ', decay per feature' : ''}`,
        {
          inputs: () => unitKeys(normalInputs(shape, 3, type)),
          meaning: () => ruleMeaning(rule, shape, perFeature ? 16 : undefined),
        },
      ]),
    ),
  );
});

describe('decay', () => {
  const shape = { heads: 2, queries: 150, keys: 150, headDim: 12, valueDim: 9 };

  // A state that is gone after one token: e^−30 a token, over a chunk far below what float32 holds.
  describe('of e^−30 a token', () => {
    table(waysOver(shape, 4, 60));
  });

  describe('of e^−30 each token, then none', () => {
    const strong = (dims: readonly number[]): Tensor => {
      const width = dims[3] ?? 1;
      return filled(dims, 'float32', (i) => (Math.floor(i / width) % 150 < 75 ? -30 : 0));
    };
    const meanings: Record<string, Case> = {};
    for (const rule of gatedRules) {
      for (const dims of [
        [1, 2, 150],
        [1, 2, 150, 12],
      ]) {
        meanings[`${rule}, [${dims}]`] = {
          inputs: () => unitKeys(normalInputs(shape, 5)),
          meaning: () => ({ ...ruleMeaning(rule, shape, undefined), decay: strong(dims) }),
        };
      }
    }
    table(meanings);
  });

  describe('that empties the state at once', () => {
    const dims = [1, 2, 150];
    const cases: Record<string, Case> = {};
    for (const rule of gatedRules) {
      cases[rule] = {
        inputs: () => unitKeys(normalInputs(shape, 6)),
        meaning: () => ({
          ...ruleMeaning(rule, shape, undefined),
          decay: filled(dims, 'float32', (i) => (i % 40 === 17 ? -1e4 : -0.01)),
        }),
      };
    }
    table(cases);
  });

  test.each(rows)('%s: of 0 is none', (isa) => {
    const { q, k, v } = unitKeys(normalInputs(shape, 7));
    for (const dims of [
      [1, 2, 150],
      [1, 2, 150, 12],
    ]) {
      const decay = filled(dims, 'float32', () => 0);
      for (const [rule, plain] of [
        ['gated', 'linear'],
        ['gatedDelta', 'delta'],
      ] as const) {
        // Held against the reference of the rule without decay.
        const meaning = ruleMeaning(plain, shape, undefined);
        const options = { ...optionsOf(meaning), updateRule: rule, decay, isa };
        const out = guarded([1, 2, 150, 9]);
        const gated = linearAttentionSync(q, k, v, { ...options, out: out.tensor });
        out.check();
        checkLinear({ q, k, v }, { ...meaning, updateRule: rule, decay }, { isa }, expectLinear(q, k, v, meaning));
        expect(toFloat64(gated).some((value) => value !== 0)).toBe(true);
      }
    }
  });
});

describe('beta', () => {
  const shape = { heads: 2, queries: 100, keys: 100, headDim: 10 };
  const constant = (value: number) => filled([1, 2, 100], 'float32', () => value);

  test.each(rows)('%s: of 0 leaves the state as it is', (isa) => {
    const { q, k, v } = normalInputs(shape, 8);
    const options = { ...optionsOf(ruleMeaning('delta', shape, undefined)), beta: constant(0), isa };
    expect(toFloat64(linearAttentionSync(q, k, v, options)).every((value) => value === 0)).toBe(true);
  });

  // The delta rule's point: what was stored under a key is replaced, not added to.
  test.each(rows)('%s: of 1 reads back the last value of a key', (isa) => {
    const { k, v } = unitKeys(normalInputs({ ...shape, queries: 100, keys: 100 }, 9));
    const one = filled(k.dims, 'float32', (i) => k.data[(Math.floor(i / 1000) * 100 + 0) * 10 + (i % 10)]);
    const meaning = { ...ruleMeaning('delta', shape, undefined), beta: constant(1), scale: 1 };
    checkLinear({ q: one, k: one, v }, meaning, { isa }, { values: toFloat64(v), dims: v.dims, terms: 100 * 10 });
  });

  describe('between 1 and 2', () => {
    table(
      Object.fromEntries(
        deltaRules.map((rule) => [
          rule,
          {
            inputs: () => unitKeys(normalInputs(shape, 10)),
            meaning: () => {
              const next = uniform(11);
              const beta = filled([1, 2, 100], 'float32', () => 1 + next());
              return { ...ruleMeaning(rule, shape, undefined), beta };
            },
          },
        ]),
      ),
    );
  });
});

describe('every map under every rule', () => {
  const shape = { heads: 4, kvHeads: 2, queries: 70, keys: 70, headDim: 6, valueDim: 9 };
  const cases: Record<string, Case> = {};
  for (const name of Object.keys(maps)) {
    for (const { rule } of ways.filter(({ perFeature }) => !perFeature)) {
      if (rule === 'linear' || (name === 'favor' && rule !== 'gated')) continue;
      const { map } = plainMeaning(name, shape);
      cases[`${name}, ${rule}`] = {
        inputs: () => normalInputs(shape, 12),
        meaning: () => {
          const plain = ruleMeaning(rule, shape, undefined);
          // Features are longer than 1: smaller steps keep the recurrence stable.
          const beta = plain.beta && filled(plain.beta.dims, 'float32', (i) => 0.02 * (plain.beta as Tensor).data[i]);
          return {
            ...plain,
            map,
            ...(beta === undefined ? {} : { beta }),
            ...(name === 'favor' ? { normalize: true } : {}),
          };
        },
      };
      if (rule === 'gated' && name !== 'identity') {
        cases[`${name}, ${rule}, normalized`] = {
          inputs: () => normalInputs(shape, 13),
          meaning: () => ({ ...ruleMeaning(rule, shape, undefined), map, normalize: true }),
        };
      }
    }
  }
  table(cases);
});

describe('a key mask skips the position: neither key, value nor decay counts', () => {
  const shape = { batch: 2, heads: 2, queries: 80, keys: 80, headDim: 8 };
  const keyMask: BoolTensor = {
    data: Uint8Array.from({ length: 160 }, (_, i) => Number(i % 80 > 9 && i % 3 !== 0)),
    dims: [2, 80],
    type: 'bool',
  };
  const cases: Record<string, Case> = {};
  for (const { rule, perFeature } of ways) {
    cases[`${rule}${perFeature ? ', decay per feature' : ''}`] = {
      inputs: () => {
        const { q, k, v } = unitKeys(normalInputs(shape, 14));
        const hidden = (i: number) => keyMask.data[Math.floor(i / (2 * 80 * 8)) * 80 + (Math.floor(i / 8) % 80)] === 0;
        const ruin = (tensor: Tensor) => filled(tensor.dims, 'float32', (i) => (hidden(i) ? NaN : tensor.data[i]));
        return { q, k: ruin(k), v: ruin(v) };
      },
      meaning: () => ({ ...ruleMeaning(rule, shape, perFeature ? 8 : undefined), keyMask }),
    };
  }
  table(cases);
});

test.each(rows)('%s: both layouts give the same bits', (isa) => {
  const shape = { batch: 2, heads: 4, kvHeads: 2, queries: 130, keys: 130, headDim: 9, valueDim: 14 };
  const { q, k, v } = unitKeys(normalInputs(shape, 15));
  for (const { rule, perFeature } of ways) {
    const meaning = ruleMeaning(rule, shape, perFeature ? 9 : undefined);
    const options = { ...optionsOf(meaning), isa };
    const wanted = linearAttentionSync(q, k, v, options);
    /** [batch, heads, length, …] with the two exchanged, by way of a last axis. */
    const exchanged = (given: Tensor) => {
      const width = given.dims[3] ?? 1;
      const { data, dims } = swapLayout({ ...given, dims: [...given.dims.slice(0, 3), width] });
      return { data, dims: given.dims.length === 3 ? dims.slice(0, 3) : dims, type: given.type };
    };
    const swapped = linearAttentionSync(swapLayout(q), swapLayout(k), swapLayout(v), {
      ...options,
      layout: 'blhd',
      ...(meaning.decay === undefined ? {} : { decay: exchanged(meaning.decay) }),
      ...(meaning.beta === undefined ? {} : { beta: exchanged(meaning.beta) }),
    });
    expectSameBits(swapLayout(swapped), wanted);
  }
});
