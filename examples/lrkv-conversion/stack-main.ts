import { approximationError, type LrkvReport, type LrkvWeights } from '../../lib';
import { bold, print, table } from '../sentence-encoder/print';
import { type Conversion, Stack, type StackOptions, type Way, ways } from './stack';
import { sharedParts } from './structured-table';

const options: StackOptions = { layers: 4, sequences: 8, length: 256 };

const names: Record<Way, readonly [key: string, value: string]> = {
  none: ['no base', 'no base'],
  mean: ['mean of heads', 'mean of heads'],
  identity: ['gauge 1', 'gauge 1'],
  fitted: ['a pair', 'free gauge'],
  intertwined: ['intertwined', ''],
};

/** Budgets that conversions of both sides get. The first is the least there is in mode 'exact'. */
const budgets = [
  [0.5625, 'exact'],
  [0.5, 'intertwined'],
] as const;

/** Of a sequence so many tokens are decoded one by one. */
const steps = 16;

async function main(): Promise<void> {
  const { layers, sequences, length } = options;
  const fitted: string[][] = [];
  const judged: string[][] = [];
  const grown: string[][] = [];
  const noisy: string[][] = [];
  let difference = 0;
  for (const shared of sharedParts) {
    const stack = await Stack.of(shared, options);
    const judge = async (name: string, converted: readonly LrkvWeights[]) => {
      const { states, logits, kl, sameBest } = await stack.errorOf(converted);
      const { cache, ...decoding } = await decode(stack, converted);
      difference = Math.max(difference, decoding.difference);
      const errors = [...states, logits].map(percent);
      judged.push([percent(shared), name, percent(cache), ...errors, kl.toFixed(3), percent(sameBest)]);
    };
    const all: Partial<Record<Way, Conversion>> = {};
    for (const way of ways) all[way] = await stack.convert(way);
    const conversions = all as Record<Way, Conversion>;
    fitted.push([percent(shared), ...fittedErrors(conversions)]);
    for (const [index, side] of (['key', 'value'] as const).entries()) {
      for (const way of ways.filter((each) => names[each][index] !== '')) {
        const converted = stack.only(side, conversions[way].layers);
        const name = `${side}s, ${names[way][index]}`;
        const wanted = way !== 'none' && converted.some((layer) => layer[`${side}Base`].dims[1] === 0);
        await judge(name + (wanted ? ' *' : ''), converted);
        if (way === 'fitted') grown.push([percent(shared), name, ...(await growth(stack, converted))]);
      }
    }
    const noise = await stack.errorOfNoise();
    noisy.push([percent(shared), ...noise.states.map(percent)]);
    for (const [budget, ropeMode] of budgets) await judge(`both, ${ropeMode}`, await stack.within(budget, ropeMode));
  }
  const numbers = Array.from({ length: layers }, (_, i) => String(i + 1));

  print(`Decoders of ${layers} layers of 8 heads of 32 with rotary embedding, random weights, nothing trained`);
  print(`Calibrated and judged on ${sequences * length} random tokens each, of one source`);
  print();
  print(bold('Error in the fitted norm at 37.5 % of a side, mean of the layers'));
  const header = ['keys: no base', 'gauge 1', 'a pair', 'intertwined', 'values: no base', 'gauge 1', 'free gauge'];
  print(table([['common', ...header], ...fitted]));

  print();
  print(bold('Errors of the residual stream after each layer, and of the logits, all layers converted'));
  const after = numbers.map((number) => `after ${number}`);
  print(table([['common', 'way', 'cache', ...after, 'logits', 'KL', 'same best'], ...judged]));
  print(
    '  keys, values: 37.5 % of this side as base and latents, the other side whole; cache: what LrkvCache allocates;',
  );
  print('  *: no base was better in some layer and taken');
  print(
    `  decoding ${steps} tokens one by one from caches: logits within ${difference.toExponential(0)} of those at once`,
  );

  print();
  print(bold('Error of the residual stream after the last layer, one layer converted'));
  print(table([['common', 'way', ...numbers.map((number) => `only ${number}`), 'root of squares', 'all'], ...grown]));

  print();
  print(bold('The same after each layer, nothing converted, noise in the first'));
  print(table([['common', ...after], ...noisy]));
}

/** Of a base and none, in the same memory, whatever is kept of them. */
function fittedErrors({ identity, fitted, intertwined }: Record<Way, Conversion>): string[] {
  const mean = ({ report }: Conversion, of: (layer: LrkvReport['layers'][number]) => number | undefined) => {
    const errors = report?.layers.map((layer) => of(layer) ?? Number.NaN) ?? [Number.NaN];
    return percent(errors.reduce((sum, error) => sum + error) / errors.length);
  };
  return [
    ...[mean(fitted, ({ key }) => key.noBaseError), mean(identity, ({ key }) => key.baseError)],
    ...[mean(fitted, ({ key }) => key.baseError), mean(intertwined, ({ key }) => key.predictedError)],
    ...[mean(fitted, ({ value }) => value.noBaseError), mean(identity, ({ value }) => value.baseError)],
    mean(fitted, ({ value }) => value.baseError),
  ];
}

/** Errors where one layer alone is converted, what they would come to if they were independent, and what they come to. */
async function growth(stack: Stack, converted: readonly LrkvWeights[]): Promise<string[]> {
  const last = async (layers: readonly (LrkvWeights | undefined)[]) =>
    (await stack.errorOf(layers)).states.at(-1) ?? Number.NaN;
  const alone: number[] = [];
  for (const only of converted) alone.push(await last(converted.map((layer) => (layer === only ? layer : undefined))));
  return [...alone, Math.hypot(...alone), await last(converted)].map(percent);
}

/** Memory of the caches beside the original's, and how far decoding is from all tokens at once. */
async function decode(stack: Stack, converted: readonly LrkvWeights[]): Promise<{ cache: number; difference: number }> {
  const [tokens] = stack.judged;
  const prompt = tokens.length - steps;
  const decoder = stack.with(converted);
  const original = await stack.with(converted.map(() => undefined)).decode(tokens, prompt);
  const { logits, bytes } = await decoder.decode(tokens, prompt);
  const { logits: atOnce } = await decoder.run([tokens]);
  return { cache: bytes / original.bytes, difference: approximationError(logits, atOnce).relativeFrobenius };
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
