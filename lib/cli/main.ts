#!/usr/bin/env node
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';

import { dataTypes } from '../check';
import { AttentionError } from '../errors';
import { info } from '../info';
import type { DataType } from '../tensor';
import { count, counts, Usage } from './arguments';
import { runBench } from './bench';
import { WrongAnswer } from './check';
import { analyzeCommand, compareCommand } from './compare/command';
import { convertCommand } from './convert/command';
import { infoReport, infoText } from './info';
import { PackageMissing } from './installed';
import { progressBar } from './progress';
import { benchText } from './report';
import { type Case, decode, prefill } from './suite';
import { allSuites, suites } from './suites';

const exits = { ok: 0, failed: 1, usage: 2 } as const;

interface ShapeOptions {
  readonly n?: readonly number[];
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly dim?: number;
  readonly causal?: true;
  readonly window?: number;
  readonly decode?: true;
  readonly sync?: true;
  readonly dtype?: DataType;
}

interface BenchOptions extends ShapeOptions {
  readonly suite?: readonly string[];
  readonly threads: number;
  readonly isa?: string;
  readonly runs: number;
  readonly peer?: 'onnxruntime';
  readonly machine: boolean;
  readonly json?: true;
}

const shapeOptions = ['n', 'heads', 'kvHeads', 'dim', 'causal', 'window', 'decode', 'sync', 'dtype'] as const;

function program(): Command {
  const root = new Command('lowrank-attention')
    .description('Exact and low-rank attention for Node.js as native kernels')
    .version(info().version)
    .exitOverride();

  root
    .command('info')
    .description('versions, build, processor, kernels, and why a GPU is not used')
    .option('--json', 'print JSON')
    .action(({ json }: { json?: true }) => print(json ? infoReport() : infoText(infoReport())));

  root
    .command('bench')
    .description('time attention on this machine; nothing is timed before its answer was checked')
    .addOption(
      new Option('--suite <names>', `named cases: ${[...allSuites, 'quick', 'all'].join(', ')}`).argParser(suiteNames),
    )
    .option('--n <lengths>', 'sequence lengths, separated by commas', counts)
    .option('--heads <count>', 'query heads', count)
    .option('--kv-heads <count>', 'key/value heads, a divisor of --heads', count)
    .option('--dim <size>', 'head size', count)
    .option('--causal', 'causal attention')
    .option('--window <keys>', 'see only so many keys, the own one included (implies --causal)', count)
    .option('--decode', 'one new token against a cache of n − 1')
    .option('--sync', 'time the synchronous call')
    .addOption(new Option('--dtype <type>', 'element type').choices(dataTypes))
    .option('--threads <count>', 'most threads a call may use', count, info().threads)
    .addOption(new Option('--isa <name>', 'force one row of the kernel table').choices(isas()))
    .option('--runs <rounds>', 'rounds a case; slow cases make fewer', count, 15)
    .addOption(new Option('--peer <name>', 'time this package in turn, and print the ratio').choices(['onnxruntime']))
    .option('--no-machine', 'do not measure what the machine gives at best')
    .option('--json', 'print one JSON document with every measured value')
    .action(bench);

  for (const command of [compareCommand, analyzeCommand, convertCommand])
    root.addCommand(command(print).exitOverride());
  return root;
}

async function bench(options: BenchOptions): Promise<void> {
  const { threads, isa, runs, peer, machine, json } = options;
  const request = {
    cases: casesOf(options),
    how: { threads, ...(isa === undefined ? {} : { isa }) },
    runs,
    peer: peer !== undefined,
    machine,
  };
  const report = await runBench(request, progressBar());
  print(json ? report : benchText(report));
}

function casesOf(options: BenchOptions): Case[] {
  const custom = shapeOptions.filter((name) => options[name] !== undefined);
  if (options.suite !== undefined) {
    if (custom.length > 0) throw new Usage(`--suite has its own shapes: leave out ${custom.map(flagOf).join(', ')}`);
    return options.suite.flatMap((name) => suites[name] as readonly Case[]);
  }
  return custom.length === 0 ? [...(suites.quick as readonly Case[])] : customCases(options);
}

function customCases(options: ShapeOptions): Case[] {
  const { n: lengths = [1024], heads = 8, kvHeads = heads, dim = 64, window, dtype: type = 'float32' } = options;
  if (heads % kvHeads !== 0) throw new Usage(`--heads ${heads} is no multiple of --kv-heads ${kvHeads}`);
  if (options.decode && (window !== undefined || options.sync))
    throw new Usage('--decode goes with neither --window nor --sync');
  return lengths.map((n) => {
    const shape = { n, heads, kvHeads, dim };
    if (options.decode) return decode('custom', shape, { type, variants: [] });
    if (window !== undefined && window > n) throw new Usage(`--window ${window} is more than --n ${n}`);
    const causal = options.causal === true || window !== undefined;
    const more = { type, sync: options.sync === true, ...(window === undefined ? {} : { window }) };
    return prefill('custom', shape, causal, more);
  });
}

function flagOf(name: string): string {
  return `--${name.replace(/[A-Z]/, (letter) => `-${letter.toLowerCase()}`)}`;
}

function isas(): string[] {
  return [
    ...new Set(
      info()
        .kernels.filter(({ supported }) => supported)
        .map(({ isa }) => isa),
    ),
  ];
}

function suiteNames(text: string): string[] {
  const names = text.split(',');
  const unknown = names.find((name) => name !== 'all' && suites[name] === undefined);
  if (unknown !== undefined) throw new InvalidArgumentError(`There is no suite '${unknown}'.`);
  return names.flatMap((name) => (name === 'all' ? allSuites : [name]));
}

/** A file that is not there, or may not be read or written. */
function isFileError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'syscall' in error;
}

function print(what: unknown): void {
  process.stdout.write(`${typeof what === 'string' ? what : JSON.stringify(what, null, 2)}\n`);
}

async function main(): Promise<number> {
  try {
    await program().parseAsync();
    return exits.ok;
  } catch (error) {
    // commander has printed its own message already; for --help and --version it comes here with 0.
    if (error instanceof CommanderError) return error.exitCode === 0 ? exits.ok : exits.usage;
    if (error instanceof Usage || error instanceof PackageMissing || error instanceof WrongAnswer) {
      console.error(`error: ${error.message}`);
      return error instanceof WrongAnswer ? exits.failed : exits.usage;
    }
    console.error(error instanceof AttentionError || isFileError(error) ? `error: ${error.message}` : error);
    return exits.failed;
  }
}

// Not process.exit: what was printed into a pipe must get out first.
void main().then((code) => {
  process.exitCode = code;
});
