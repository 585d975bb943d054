/** Runs one case: builds its contenders, checks every one, then times them in turn. */
import os from 'node:os';
import { approximation } from './approximate/approximate';
import { exactBeside, oursApproximate, peerApproximate, productsBeside } from './approximate/contenders';
import { oursSteps, peerSteps, stepInputs } from './approximate/steps';
import type { Contender } from './contender';
import { type Inputs, makeInputs } from './inputs';
import { Load } from './load';
import { coldCopies, type Machine } from './machine';
import { type CaseResult, compare, type Row } from './measured';
import { type How, oursDecode, oursPrefill } from './ours';
import { obstacle, peerDecode, peerPrefill } from './peer/contenders';
import type { Onnxruntime } from './peer/onnxruntime';
import { measureLatency, measureLoad, measureMemory } from './processes';
import type { ApproximateCase, Case, DecodeCase, PrefillCase } from './suite';
import { interleave, ratio, summarize, type Times } from './timing';

/** What all cases of a run share. */
export interface Context {
  readonly how: How;
  readonly runs: number;
  readonly machine: Machine;
  readonly peer?: Onnxruntime;
  readonly onRound: () => void;
}

/** @throws WrongAnswer before anything is timed */
export async function runCase(given: Case, context: Context): Promise<CaseResult> {
  const { suite, name, kind, ...settings } = given;
  const load = new Load();
  const notes: string[] = [];
  const { rows, ratioOf } = await measure(given, context, notes);
  return { suite, name, kind, settings, rows, ...compare(rows, ratioOf), notes, busyCores: load.others() };
}

interface Measured {
  readonly rows: readonly Row[];
  readonly ratioOf: (ours: Row, other: Row) => ReturnType<typeof summarize>;
}

async function measure(given: Case, context: Context, notes: string[]): Promise<Measured> {
  const { how, runs, peer } = context;
  // Runs of other processes, or of one side after the other, are no rounds: only their medians may be compared.
  const ofMedians = (ours: Row, other: Row) => summarize([other.value.median / ours.value.median]);
  switch (given.kind) {
    case 'memory':
      return { rows: await measureMemory(given, runs, how, peer), ratioOf: ofMedians };
    case 'latency':
      return { rows: await measureLatency(given, runs, how, peer), ratioOf: ofMedians };
    case 'load':
      return { rows: await measureLoad(runs, peer), ratioOf: ofMedians };
    case 'prefill':
    case 'decode':
    case 'approximate': {
      const contenders: Contender[] = [];
      try {
        if (given.kind === 'prefill') await addPrefill(given, context, contenders, notes);
        else if (given.kind === 'decode') await addDecode(given, context, contenders);
        else if (given.step) await addSteps(given, context, contenders);
        else await addApproximate(given, context, contenders);
        const rows = await timeAll(contenders, context);
        return { rows, ratioOf: (ours, other) => ratio(ours.value.all, other.value.all) };
      } finally {
        for (const { side, dispose } of contenders) if (side !== 'machine') await dispose?.();
      }
    }
  }
}

async function addPrefill(
  given: PrefillCase,
  context: Context,
  contenders: Contender[],
  notes: string[],
): Promise<void> {
  const { how, peer, machine } = context;
  contenders.push(oursPrefill(given, how));
  for (const variant of given.variants) contenders.push(oursPrefill(given, how, variant));
  if (peer !== undefined) {
    for (const form of given.forms) {
      const reason = obstacle(given, form, os.freemem());
      if (reason !== undefined) notes.push(`onnxruntime ${form} left out: ${reason}`);
      else contenders.push(await peerPrefill(peer, given, form, how.threads));
    }
  }
  if (machine.product !== undefined) contenders.push(machine.product);
}

async function addDecode(given: DecodeCase, context: Context, contenders: Contender[]): Promise<void> {
  const { how, peer, machine } = context;
  // Whole keys and values of long sequences take seconds to make and are the same for all who hold them.
  const made = new Map<number, Inputs>();
  const inputsOf = (kvHeads: number): Inputs => {
    const inputs = made.get(kvHeads) ?? makeInputs({ ...given.shape, kvHeads }, 'float32', 1);
    made.set(kvHeads, inputs);
    return inputs;
  };
  contenders.push(oursDecode(given, inputsOf, coldCopies, how));
  for (const variant of given.variants) contenders.push(oursDecode(given, inputsOf, coldCopies, how, variant));
  for (const form of peer === undefined ? [] : given.forms) {
    const inputs = inputsOf(given.shape.kvHeads);
    contenders.push(await peerDecode(peer as Onnxruntime, given, form, inputs, coldCopies, how.threads));
  }
  contenders.push(machine.reader);
}

async function addApproximate(given: ApproximateCase, context: Context, contenders: Contender[]): Promise<void> {
  const { how, machine } = context;
  const peer = given.peer ? context.peer : undefined;
  const main = approximation(given.method, given.shape);
  contenders.push(oursApproximate(given, main, how));
  for (const variant of given.variants) {
    const own = variant.method === undefined ? main : approximation(variant.method, given.shape, main.inputs);
    contenders.push(oursApproximate(given, own, how, variant));
  }
  if (given.exact) contenders.push(exactBeside(given, main, how), ...productsBeside(given, main, how));
  const theirs = peer === undefined ? undefined : await peerApproximate(peer, given, main, how.threads);
  if (theirs !== undefined) contenders.push(theirs);
  if (machine.product !== undefined) contenders.push(machine.product);
}

async function addSteps(given: ApproximateCase, context: Context, contenders: Contender[]): Promise<void> {
  const { how, peer, machine } = context;
  const inputs = stepInputs(given.shape);
  contenders.push(oursSteps(given, inputs, coldCopies, how));
  for (const variant of given.variants) contenders.push(oursSteps(given, inputs, coldCopies, how, variant));
  if (peer !== undefined) contenders.push(await peerSteps(peer, given, inputs, coldCopies, how.threads));
  contenders.push(machine.reader);
}

async function timeAll(contenders: readonly Contender[], { runs, machine, onRound }: Context): Promise<Row[]> {
  const errors: (number | undefined)[] = [];
  for (const contender of contenders) errors.push(await contender.check?.());
  const times = await interleave(contenders, runs, onRound);
  const rateOf = (index: number): Rate | undefined =>
    index < 0 ? undefined : { bytes: (contenders[index] as Contender).bytes, ms: (times[index] as Times).ms };
  const reader = rateOf(contenders.indexOf(machine.reader));
  const yardstick = rateOf(contenders.findIndex((contender) => contender.yardstick));
  const rows = contenders.map((contender, index) =>
    rowOf(contender, times[index] as Times, errors[index], reader, yardstick),
  );
  for (const [index, row] of rows.entries()) {
    if (row.side === 'machine') machine.note(contenders[index] as Contender, row.value.median);
  }
  return rows;
}

/** Bytes, and the times they took round by round. */
interface Rate {
  readonly bytes: number;
  readonly ms: readonly number[];
}

/** How many times faster `one` reads: the median of the rounds' own ratios. */
function faster(one: Rate, other: Rate): number {
  return (ratio(one.ms, other.ms).median * one.bytes) / other.bytes;
}

function rowOf(
  { name, side, flops, bytes, cacheBytes }: Contender,
  { calls, ms }: Times,
  error: number | undefined,
  reader: Rate | undefined,
  yardstick: Rate | undefined,
): Row {
  const value = summarize(ms);
  const own = { bytes, ms };
  return {
    name,
    side,
    unit: 'ms',
    value,
    calls,
    ...(error === undefined ? {} : { error }),
    ...(flops === 0 ? {} : { gflops: flops / value.median / 1e6 }),
    ...(bytes === 0 ? {} : { gbs: bytes / value.median / 1e6 }),
    ...(reader === undefined || bytes === 0 ? {} : { readShare: faster(own, reader) }),
    ...(cacheBytes === undefined ? {} : { cacheMib: cacheBytes / 2 ** 20 }),
    ...(yardstick === undefined || bytes === 0 || side === 'machine' ? {} : { timePerByte: faster(yardstick, own) }),
  };
}
