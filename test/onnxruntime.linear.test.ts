/**
 * An independent answer to the recurrences of linear attention: onnxruntime's LinearAttention computes the same on the
 * same inputs, in the same run (`peer.ts`).
 *
 * @jest-environment ./test/native-realm-environment.js
 */
import { linearAttention } from '../lib/cli/peer/models';
import type { OnnxTensor } from '../lib/cli/peer/onnxruntime';
import { identity, LinearState, linearAttentionSync, type UpdateRule } from '../lib/index';
import type { Tensor } from '../lib/tensor';
import { filled, normalInputs, type Shape, uniform } from './data';
import { expectLinear } from './expectation';
import { feed, run } from './peer';
import type { LinearMeaning } from './reference-linear';
import { compare } from './tolerance';

const ruleNames = { linear: 'linear', gated: 'gated', delta: 'delta', gatedDelta: 'gated_delta' } as const;

interface Case {
  readonly rule: UpdateRule;
  readonly perFeature?: boolean;
  readonly shape?: Partial<Shape>;
  readonly scale?: number;
}

const plain: Shape = { batch: 2, heads: 3, queries: 70, keys: 70, headDim: 16, layout: 'blhd' };
const cases: Readonly<Record<string, Case>> = {
  linear: { rule: 'linear' },
  'linear, scale': { rule: 'linear', scale: 0.7 },
  'linear, shared key heads': { rule: 'linear', shape: { heads: 6, kvHeads: 2 } },
  'linear, values of another size': { rule: 'linear', shape: { valueDim: 24 } },
  'gated a head': { rule: 'gated' },
  'gated a feature': { rule: 'gated', perFeature: true },
  delta: { rule: 'delta' },
  'gated delta, a head': { rule: 'gatedDelta' },
  'gated delta, a feature': { rule: 'gatedDelta', perFeature: true },
  'gated delta, shared key heads': { rule: 'gatedDelta', shape: { heads: 6, kvHeads: 2 } },
  'gated delta, one token': { rule: 'gatedDelta', shape: { queries: 1, keys: 1 } },
};

/** What both sides are given. */
function setUp({ rule, perFeature = false, shape: own = {}, scale }: Case) {
  const shape = { ...plain, ...own };
  const { batch = 1, heads = 1, kvHeads = heads, keys, headDim, valueDim = headDim } = shape;
  const { q, k: anyKeys, v } = normalInputs(shape, 1);
  const next = uniform(2);
  // Keys of about length 1, so that delta steps converge.
  const k = filled(anyKeys.dims, 'float32', (i) => (anyKeys.data[i] as number) / Math.sqrt(headDim));
  const width = perFeature ? headDim : 1;
  const dims = [batch, keys, kvHeads];
  const gated = rule === 'gated' || rule === 'gatedDelta';
  const delta = rule === 'delta' || rule === 'gatedDelta';
  const decay = gated ? filled(perFeature ? [...dims, width] : dims, 'float32', () => -0.3 * next()) : undefined;
  const beta = delta ? filled(dims, 'float32', () => next()) : undefined;
  const meaning: LinearMeaning = {
    map: { kind: 'identity' },
    causal: true,
    normalize: false,
    layout: 'blhd',
    updateRule: rule,
    ...(decay === undefined ? {} : { decay }),
    ...(beta === undefined ? {} : { beta }),
    ...(scale === undefined ? {} : { scale }),
  };
  const flat = (tensor: Tensor) => feed(tensor, [batch, keys, tensor.data.length / (batch * keys)]);
  const model = linearAttention(heads, kvHeads, headDim, valueDim, {
    rule: ruleNames[rule],
    ...(gated ? { decayWidth: width } : {}),
    ...(scale === undefined ? {} : { scale }),
  });
  const feeds = {
    ...{ q: flat(q), k: flat(k), v: flat(v) },
    ...(decay === undefined ? {} : { decay: flat(decay) }),
    ...(beta === undefined ? {} : { beta: flat(beta) }),
  };
  return { q, k, v, meaning, model, feeds, shape: { batch, heads, kvHeads, headDim, valueDim } };
}

const theirsAs = ({ data }: OnnxTensor): Float64Array => Float64Array.from(data as Float32Array);

test.each(Object.entries(cases))('%s', async (_, given) => {
  const { q, k, v, meaning, model, feeds } = setUp(given);
  const { o } = await run(model, feeds);
  const { map: _map, ...options } = meaning;
  const ours = linearAttentionSync(q, k, v, { ...options, featureMap: identity() });
  // As far apart as float32 may be from float64, with their answer in the reference's place.
  compare(ours, { ...expectLinear(q, k, v, meaning), values: theirsAs(o as OnnxTensor) });
});

test.each(Object.entries(cases))('its state holds what ours reads: %s', async (_, given) => {
  const { k, v, meaning, model, feeds, shape } = setUp(given);
  const { state: theirs } = await run(model, feeds);
  const { batch, kvHeads, headDim, valueDim } = shape;
  using state = new LinearState({
    ...{ batch, heads: kvHeads, headDim, valueDim, featureMap: identity(), normalize: false, scale: 1 },
    updateRule: given.rule,
  });
  const { decay, beta } = meaning;
  const more = { ...(decay === undefined ? {} : { decay }), ...(beta === undefined ? {} : { beta }) };
  state.append(k, v, { layout: 'blhd', ...more });
  // Unit vectors read S row by row.
  const units = filled([batch, kvHeads, headDim, headDim], 'float32', (i) =>
    Number(Math.floor(i / headDim) % headDim === i % headDim),
  );
  const values = theirsAs(theirs as OnnxTensor);
  compare(state.attendSync(units), { values, dims: [batch, kvHeads, headDim, valueDim], terms: 70 });
});

test('the comparison notices another rule', async () => {
  const { model, feeds } = setUp({ rule: 'gated' });
  const { q, k, v, meaning } = setUp({ rule: 'linear' });
  const { o } = await run(model, feeds);
  const ours = linearAttentionSync(q, k, v, { featureMap: identity(), causal: true, normalize: false, layout: 'blhd' });
  const expected = { ...expectLinear(q, k, v, meaning), values: theirsAs(o as OnnxTensor) };
  expect(() => compare(ours, expected)).toThrow(/out of tolerance|unfit data/);
});
