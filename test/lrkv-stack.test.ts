// What docs/lrkv.md says of decoders with rotary embedding whose layers are all converted: which way is better than which.
// Bounds are loose, and the decoder is smaller than the one whose figures stand there.
import { Decoder } from '../examples/lrkv-conversion/decoder';
import { best, type Conversion, Stack, type StackError, softmax, type Way } from '../examples/lrkv-conversion/stack';
import { sharedParts } from '../examples/lrkv-conversion/structured-table';
import { TokenSource, vocabulary } from '../examples/lrkv-conversion/tokens';
import { approximationError, info, tensor } from '../lib';

const ways = ['none', 'mean', 'fitted', 'intertwined'] as const satisfies readonly Way[];

interface Judged {
  readonly shared: number;
  readonly stack: Stack;
  readonly conversions: Record<(typeof ways)[number], Conversion>;
  readonly errors: Record<'key' | 'value', Record<(typeof ways)[number], StackError>>;
}

let judged: Judged[];

// Against hanging only; a sanitizer makes everything ten times slower.
const hang = info().build.sanitizers === '' ? 240_000 : 3_600_000;

async function judge(shared: number): Promise<Judged> {
  const stack = await Stack.of(shared, { layers: 3, sequences: 4, length: 128 });
  const conversions: Partial<Record<Way, Conversion>> = {};
  const errors: Record<'key' | 'value', Partial<Record<Way, StackError>>> = { key: {}, value: {} };
  for (const way of ways) {
    const found = await stack.convert(way);
    conversions[way] = found;
    for (const side of ['key', 'value'] as const)
      errors[side][way] = await stack.errorOf(stack.only(side, found.layers));
  }
  return { shared, stack, conversions, errors } as Judged;
}

beforeAll(async () => {
  judged = [];
  for (const shared of sharedParts) judged.push(await judge(shared));
}, hang);

/** Errors of two conversions, the better first, with so much between them in each measure. */
function expectBetter(better: StackError, worse: StackError, factor: number): void {
  expect(better.logits).toBeLessThan(factor * worse.logits);
  expect(better.kl).toBeLessThan(factor * worse.kl);
  expect(better.sameBest).toBeGreaterThan(worse.sameBest);
  for (const [layer, error] of better.states.entries()) expect(error).toBeLessThan(factor * worse.states[layer]);
}

describe('a decoder with rotary embedding, all layers converted', () => {
  test('of the whole rank is itself but for rounding', async () => {
    for (const { stack } of judged) {
      const { states, logits, kl, sameBest } = await stack.errorOf(stack.whole);
      expect(Math.max(logits, ...states)).toBeLessThan(1e-5);
      expect(kl).toBeLessThan(1e-6);
      expect(sameBest).toBeGreaterThan(0.99);
      expect(await stack.errorOf(stack.whole.map(() => undefined))).toMatchObject({ logits: 0, sameBest: 1 });
    }
  });

  test('values: a free gauge before no base before the mean of the heads, however much is common', () => {
    for (const { errors, conversions } of judged) {
      const { none, mean, fitted } = errors.value;
      expectBetter(fitted, none, 0.6);
      expectBetter(none, mean, 0.95);
      for (const { value } of conversions.fitted.report?.layers ?? []) expect(value.gauge).toBe('free');
    }
  });

  test('keys: a number a pair where much is common, no base where nothing is, the mean of the heads never', () => {
    const [nothing, little, half, most] = judged;
    for (const { errors } of judged) expectBetter(errors.key.none, errors.key.mean, 0.95);
    for (const { errors } of [half, most]) expectBetter(errors.key.fitted, errors.key.none, 0.5);
    expect(little.errors.key.fitted.logits).toBeLessThan(little.errors.key.none.logits);
    const gauges = ({ conversions }: Judged) => conversions.fitted.report?.layers.map(({ key }) => key.gauge);
    expect(gauges(nothing)).toEqual(['none', 'none', 'none']);
    expect(gauges(most)).toEqual(['rope-pair', 'rope-pair', 'rope-pair']);
  });

  test('keys whose residuals rotate by themselves lose many times as much', () => {
    for (const { errors } of judged) expectBetter(errors.key.fitted, errors.key.intertwined, 0.5);
    const [nothing, , , most] = judged;
    expectBetter(most.errors.key.intertwined, nothing.errors.key.intertwined, 0.6);
  });

  test('a budget of both keeps such keys whole as long as it can', async () => {
    const [, { stack }] = judged;
    const layers = await stack.within(0.6875, 'intertwined');
    for (const { keyBase, keyRanks, keyUp } of layers) {
      expect(keyBase.dims[1]).toBe(0);
      expect(keyRanks).toEqual(keyRanks.map(() => keyUp.dims[1]));
    }
  });

  test('errors of layers add up as independent ones do, and grow on the way', async () => {
    for (const { stack, conversions, errors } of judged) {
      const converted = stack.only('value', conversions.fitted.layers);
      const alone: number[] = [];
      for (const only of converted) {
        const layers = converted.map((layer) => (layer === only ? layer : undefined));
        alone.push((await stack.errorOf(layers)).states[2]);
      }
      const [first, second, last] = errors.value.fitted.states;
      const noise = (await stack.errorOfNoise()).states;
      expect(noise[0]).toBeGreaterThan(0.02);
      expect(noise[2]).toBeGreaterThan(noise[0]);
      expect(last / Math.hypot(...alone)).toBeGreaterThan(0.85);
      expect(last / Math.hypot(...alone)).toBeLessThan(1.15);
      expect(first).toBeLessThan(second);
      expect(second).toBeLessThan(last);
    }
  });

  test('decodes from caches what it gives for all tokens at once, and the original does', async () => {
    const [, { stack, conversions }] = judged;
    const cases = [
      { layers: stack.whole.map(() => undefined), share: 1 },
      { layers: stack.only('key', conversions.fitted.layers), share: 1 },
      { layers: stack.only('value', conversions.fitted.layers), share: 0.6875 },
      { layers: stack.only('key', conversions.intertwined.layers), share: 0.6875 },
      { layers: conversions.intertwined.layers, share: 0.375 },
      { layers: await stack.within(0.5625, 'exact'), share: 0.5625 },
    ];
    const [tokens] = stack.judged;
    const { bytes: full } = await stack.with(cases[0].layers).decode(tokens, 100);
    for (const { layers, share } of cases) {
      const decoder = stack.with(layers);
      expect(decoder).toBeInstanceOf(Decoder);
      const { logits: atOnce } = await decoder.run([tokens]);
      const { logits, bytes } = await decoder.decode(tokens, 100);
      expect(approximationError(logits, atOnce).relativeFrobenius).toBeLessThan(1e-5);
      expect(bytes / full).toBe(share);
    }
  });
});

describe('tokens', () => {
  const source = new TokenSource(1);

  test('are the same for the same seed, and others for another', () => {
    const stream = source.stream(500, 2000);
    expect(new TokenSource(1).stream(500, 2000)).toEqual(stream);
    expect(new TokenSource(2).stream(500, 2000)).not.toEqual(stream);
    expect(source.stream(500, 2001)).not.toEqual(stream);
    for (const token of stream) expect(token >= 0 && token < vocabulary && Number.isInteger(token)).toBe(true);
  });

  test('are as frequent as words, and some follow others', () => {
    const stream = source.stream(20_000, 5);
    const count = (of: (token: number, i: number) => boolean) => stream.filter(of).length;
    expect(count((token) => token < 8)).toBeGreaterThan(0.2 * stream.length);
    expect(count((token) => token >= 256)).toBeLessThan(0.3 * stream.length);
    // After a token the likeliest four are seven times in ten those of its own.
    const most = [0, 1, 2].reduce((a, b) => (count((token) => token === b) > count((token) => token === a) ? b : a));
    const after = new Map<number, number>();
    for (const [i, token] of stream.entries())
      if (i > 0 && stream[i - 1] === most) after.set(token, (after.get(token) ?? 0) + 1);
    const counts = [...after.values()].sort((a, b) => b - a);
    const all = counts.reduce((a, b) => a + b);
    const four = counts.slice(0, 4).reduce((a, b) => a + b);
    expect(four / all).toBeGreaterThan(0.65);
    expect(four / all).toBeLessThan(0.95);
  });
});

test('probabilities and the likeliest of each row', () => {
  const logits = tensor(Float32Array.of(0, Math.log(3), 1000, 1000 + Math.log(4)), [2, 2]);
  const { data } = softmax(logits);
  for (const [i, expected] of [0.25, 0.75, 0.2, 0.8].entries()) expect(data[i]).toBeCloseTo(expected, 4);
  expect(best(logits)).toEqual([1, 1]);
  expect(best(tensor(Float32Array.of(5, 2, 1, 2, 9, 3), [2, 3]))).toEqual([0, 1]);
});
