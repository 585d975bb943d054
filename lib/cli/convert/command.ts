/** The command `convert` as the command line has it. */
import { Command, InvalidArgumentError, Option } from 'commander';

import { dataTypes } from '../../check';
import { defaultIterations } from '../../fit/options';
import { type DataType, type GaugeOption, info } from '../../index';
import type { ModelOptions } from '../../model/read';
import { count, Usage } from '../arguments';
import { interruptible } from '../interruptible';
import { writePage } from '../page/document';
import { progressBar } from '../progress';
import { type ConvertRequest, type RankRule, runConvert } from './convert';
import { convertPage } from './page/page';
import { convertText } from './text';

interface ConvertOptions {
  readonly output: string;
  readonly force?: true;
  readonly ranks: 'auto' | NonNullable<RankRule['rank']>;
  readonly budget?: number;
  readonly calibration?: string;
  readonly gauge: GaugeOption;
  readonly ropeMode?: 'exact' | 'intertwined';
  readonly iterations: number;
  readonly type?: DataType;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly ropeBase?: number;
  readonly ropePairing?: 'half' | 'interleaved';
  /** False for --no-rope. */
  readonly rope: boolean;
  readonly normEpsilon?: number;
  readonly stack?: string;
  readonly threads: number;
  readonly html?: string | true;
  readonly json?: true;
}

/** Share of the cache where nothing else is asked for. */
const usualBudget = 0.5;

export function convertCommand(print: (what: unknown) => void): Command {
  return new Command('convert')
    .description('attention of a trained model as LRKV: a shared base and low-rank residuals of keys and values')
    .argument(
      '<model>',
      'a .safetensors file, the .safetensors.index.json of several, or their folder; config.json beside it says what the ' +
        'options below leave open',
    )
    .requiredOption('-o, --output <file>', 'the .safetensors file to write')
    .option('--force', 'replace it if it is there')
    .option('--ranks <ranks>', 'auto (by --budget), one rank, or key:N,value:N', ranks, 'auto')
    .option('--budget <share>', `of the memory of a KvCache, 50% or 0.5 (${100 * usualBudget}%)`, share)
    .option(
      '--calibration <file>',
      'hidden states as they enter each layer’s projections (not token ids): .npy [layers, tokens, modelDim], or ' +
        '.safetensors with layers.N.hidden [tokens, modelDim]',
    )
    .addOption(
      new Option('--gauge <kind>', 'between the base and each head')
        .choices(['auto', 'free', 'rope-pair', 'identity', 'none'])
        .default('auto'),
    )
    .addOption(new Option('--rope-mode <mode>', 'residuals of rotated keys').choices(['exact', 'intertwined']))
    .option('--iterations <count>', 'most of a fit', count, defaultIterations)
    .option('--heads <count>', 'query heads', count)
    .option('--kv-heads <count>', 'key/value heads', count)
    .option('--rope-base <number>', 'base of the rotary embedding', positive)
    .addOption(new Option('--rope-pairing <kind>', 'its pairs, with --rope-base').choices(['half', 'interleaved']))
    .option('--no-rope', 'keys are not rotated')
    .option('--norm-epsilon <number>', 'of QK-norm', positive)
    .option('--stack <text>', 'what stands before layers. in the names, if there are several stacks')
    .addOption(
      new Option('--type <type>', 'element type of the new tensors (that of the model’s keys)').choices(dataTypes),
    )
    .option('--threads <count>', 'most threads a call may use', count, info().threads)
    .option('--json', 'print one JSON document with every value')
    .option('--html [file]', 'write a page with charts (convert.html)')
    .action(async (source: string, options: ConvertOptions) => {
      const request = requestOf(source, options);
      const report = await interruptible((signal) => runConvert(request, progressBar(), signal));
      print(options.json ? report : convertText(report));
      await writePage(options.html, 'convert.html', () => convertPage(report));
    });
}

function requestOf(source: string, options: ConvertOptions): ConvertRequest {
  const { output, force = false, calibration, gauge, ropeMode, iterations, type, threads } = options;
  return {
    source,
    output,
    force,
    rule: ruleOf(options),
    // What cannot lie before values is meant for keys.
    fit: {
      gauge: gauge === 'rope-pair' ? { key: gauge, value: 'auto' } : gauge,
      iterations,
      ...(ropeMode === undefined ? {} : { ropeMode }),
      ...(type === undefined ? {} : { type }),
    },
    ...(calibration === undefined ? {} : { calibration }),
    model: modelOptions(options),
    threads,
  };
}

function ruleOf({ ranks: rank, budget }: ConvertOptions): RankRule {
  if (rank === 'auto') return { budget: budget ?? usualBudget };
  if (budget !== undefined) throw new Usage('--budget finds the ranks: leave out --ranks, or say --ranks auto');
  return { rank };
}

function modelOptions(options: ConvertOptions): ModelOptions {
  const { heads, kvHeads, ropeBase: base, ropePairing: pairing, rope, normEpsilon, stack } = options;
  if (!rope && (base !== undefined || pairing !== undefined)) {
    throw new Usage('--no-rope goes with neither --rope-base nor --rope-pairing');
  }
  if (base === undefined && pairing !== undefined) throw new Usage('--rope-pairing goes with --rope-base');
  return {
    ...(heads === undefined ? {} : { heads }),
    ...(kvHeads === undefined ? {} : { kvHeads }),
    ...(rope ? {} : { rope: false }),
    ...(base === undefined ? {} : { rope: { base, ...(pairing === undefined ? {} : { pairing }) } }),
    ...(normEpsilon === undefined ? {} : { normEpsilon }),
    ...(stack === undefined ? {} : { stack }),
  };
}

function ranks(text: string): ConvertOptions['ranks'] {
  if (text === 'auto') return text;
  const [, key, value] = /^key:(\d+),value:(\d+)$/.exec(text) ?? [];
  if (key !== undefined && value !== undefined) return { key: Number(key), value: Number(value) };
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError('Not auto, a rank, or key:N,value:N.');
  return Number(text);
}

/** `50%`, `50 %` or `0.5` */
function share(text: string): number {
  const [, digits, percent] = /^(\d+(?:\.\d+)?|\.\d+)(\s*%)?$/.exec(text.trim()) ?? [];
  const value = Number(digits) / (percent === undefined ? 1 : 100);
  if (!(value > 0 && value <= 1)) throw new InvalidArgumentError('Not a share above 0 % and up to 100 %.');
  return value;
}

function positive(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value) || value <= 0) throw new InvalidArgumentError('Not a number > 0.');
  return value;
}
