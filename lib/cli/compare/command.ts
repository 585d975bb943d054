/** The commands `compare` and `analyze` as the command line has them. */
import { Command, InvalidArgumentError, Option } from 'commander';

import { info } from '../../info';
import { count, counts, Usage } from '../arguments';
import { writePage } from '../page/document';
import { progressBar } from '../progress';
import { runAnalyze, runCompare, usualLengths } from './compare';
import { type Method, methods } from './methods';
import { analyzePage, comparePage } from './page/page';
import { readSource, type SourceOptions } from './sources';
import { analyzeText, compareText } from './text';

interface OutputOptions {
  readonly json?: true;
  /** `true` without a name. */
  readonly html?: string | true;
}

interface CompareOptions extends SourceOptions, OutputOptions {
  readonly methods?: readonly Method[];
  readonly lengths?: readonly number[];
  readonly runs: number;
}

interface AnalyzeOptions extends SourceOptions, OutputOptions {
  readonly count: number;
}

type Print = (what: unknown) => void;

export function compareCommand(print: Print): Command {
  return withSource(new Command('compare'))
    .description('what each method gives for what it costs, on your own tensors: time, error, memory, spectra')
    .addOption(
      new Option('--methods <names>', `some of: ${methods.map(({ id }) => id).join(', ')}`).argParser(methodNames),
    )
    .option('--lengths <lengths>', 'first positions to time all methods on, separated by commas', counts)
    .option('--runs <rounds>', 'rounds of timing; what is slow makes fewer', count, 5)
    .option('--json', 'print one JSON document with every measured value')
    .option('--html [file]', 'write a page with charts (compare.html)')
    .action(async (options: CompareOptions) => {
      const { q, k, v, facts } = await readSource(options);
      if (v === undefined) throw new Usage('values are missing: --v, or a third name');
      const lengths = [...new Set(options.lengths ?? usualLengths(facts.length))].sort((a, b) => a - b);
      const longest = lengths.at(-1) as number;
      if (longest > facts.length) throw new Usage(`--lengths ${longest} is more than the ${facts.length} there are`);
      const { report, maps } = await runCompare(
        {
          inputs: { q, k, v },
          facts,
          methods: options.methods ?? methods,
          lengths,
          rounds: options.runs,
          threads: options.threads,
        },
        progressBar(),
      );
      print(options.json ? report : compareText(report));
      await writePage(options.html, 'compare.html', () => comparePage(report, maps));
    });
}

export function analyzeCommand(print: Print): Command {
  return withSource(new Command('analyze'))
    .description('singular values of attention matrices, and every variant of effective rank, head by head')
    .option('--count <values>', 'singular values wanted of more than 512', count, 256)
    .option('--json', 'print one JSON document with every value')
    .option('--html [file]', 'write a page with the spectra (analyze.html)')
    .action(async (options: AnalyzeOptions) => {
      const source = await readSource(options);
      const report = await runAnalyze(source, source.facts, options.count, options.threads);
      print(options.json ? report : analyzeText(report));
      await writePage(options.html, 'analyze.html', () => analyzePage(report));
    });
}

/** Options that say where queries, keys and values come from. */
function withSource(command: Command): Command {
  return command
    .option('--q <file>', 'queries, a .npy file [heads, length, dim]')
    .option('--k <file>', 'keys, as many as queries')
    .option('--v <file>', 'values')
    .option('--tensors <file>', 'a .safetensors file with all three')
    .option('--names <q,k,v>', 'their names there', names, ['q', 'k', 'v'])
    .addOption(new Option('--layout <order>', 'axis order in files').choices(['bhld', 'blhd']).default('bhld'))
    .addOption(new Option('--model <name>', 'those of a real model’s layer').choices(['sentence-encoder']))
    .option('--text <file>', 'what the model reads')
    .option('--layer <index>', 'of the model, from 0 on', index, 0)
    .option('--random', 'normal random numbers')
    .option('--n <length>', 'positions (4096 random ones, or all there are)', count)
    .option('--heads <count>', 'of random numbers', count, 8)
    .option('--kv-heads <count>', 'of random numbers, a divisor of --heads', count)
    .option('--dim <size>', 'of random heads', count, 64)
    .option('--threads <count>', 'most threads a call may use', count, info().threads);
}

function methodNames(text: string): Method[] {
  return text.split(',').map((id) => {
    const method = methods.find((one) => one.id === id);
    if (method === undefined) throw new InvalidArgumentError(`There is no method '${id}'.`);
    return method;
  });
}

function names(text: string): string[] {
  return text.split(',');
}

function index(text: string): number {
  return text === '0' ? 0 : count(text);
}
