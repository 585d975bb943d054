/** The command `bench`: measures cases one after another, and the machine before and after them. */
import os from 'node:os';

import { runCase } from './case';
import { Load } from './load';
import { Machine } from './machine';
import type { CaseResult, Row } from './measured';
import type { How } from './ours';
import { Onnxruntime } from './peer/onnxruntime';
import { type MachineFacts, type Provenance, provenance } from './provenance';
import type { Case } from './suite';

/** What the user asked for. */
export interface BenchRequest {
  readonly cases: readonly Case[];
  readonly how: How;
  /** Rounds a case. */
  readonly runs: number;
  readonly peer: boolean;
  /** Measure what the machine gives at best. */
  readonly machine: boolean;
}

/** All that came out: what `--json` prints. */
export interface BenchReport extends Provenance {
  readonly peer?: { readonly name: string; readonly version: string };
  readonly machine: MachineFacts & {
    /** Best matrix-product rates by probe, GFLOP/s. */
    readonly matmulGflops: Readonly<Record<string, number>>;
    /** Best read rate, GB/s. */
    readonly readGbs: number;
  };
  readonly threads: number;
  readonly isa?: string;
  readonly runs: number;
  readonly cases: readonly CaseResult[];
  readonly warnings: readonly string[];
}

/** Told how far a run is. */
export interface Progress {
  start(steps: number): void;
  /** What is being done now. */
  show(what: string): void;
  step(): void;
  stop(): void;
}

const probeRounds = 5;

/** Load of others from which a comparison of a few percent means little. */
const busyCores = 0.15;

/** @throws WrongAnswer, PackageMissing */
export async function runBench(request: BenchRequest, progress: Progress): Promise<BenchReport> {
  const { cases, how, runs } = request;
  const peer = request.peer ? Onnxruntime.load() : undefined;
  const machine = new Machine(how, peer);
  const idle = new Load();
  const loadAverage = os.loadavg();
  const results: CaseResult[] = [];
  progress.start(cases.length * runs + (request.machine ? 2 * probeRounds : 0));
  try {
    await new Promise((resolve) => setTimeout(resolve, 300));
    const busyBefore = idle.others();
    const probe = async () => {
      progress.show('matrix products and memory');
      if (request.machine) await machine.measure(probeRounds, () => progress.step());
    };
    await probe();
    for (const given of cases) {
      progress.show(`${given.suite}: ${given.name}`);
      let left = runs;
      const onRound = () => {
        left--;
        progress.step();
      };
      results.push(await runCase(given, { how, runs, machine, onRound, ...(peer === undefined ? {} : { peer }) }));
      // Slow cases make fewer rounds, and some make none.
      for (; left > 0; left--) progress.step();
    }
    await probe();
    return report(request, machine, peer, results, loadAverage, busyBefore);
  } finally {
    progress.stop();
    await machine.dispose();
  }
}

function report(
  { how, runs }: BenchRequest,
  machine: Machine,
  peer: Onnxruntime | undefined,
  results: readonly CaseResult[],
  loadAverage: readonly number[],
  busyBefore: number,
): BenchReport {
  const { machine: facts, ...own } = provenance(loadAverage);
  return {
    ...own,
    ...(peer === undefined ? {} : { peer: { name: peer.name, version: peer.version } }),
    machine: {
      ...facts,
      matmulGflops: Object.fromEntries(machine.matmul),
      readGbs: machine.bestRead,
    },
    ...how,
    runs,
    // Only now is the best rate of the whole run known.
    cases: results.map((result) => ({ ...result, rows: result.rows.map((row) => withShare(row, machine)) })),
    warnings: warnings(results, busyBefore, own.package.build.type),
  };
}

function withShare(row: Row, { bestMatmul }: Machine): Row {
  return row.gflops === undefined || bestMatmul === 0 ? row : { ...row, matmulShare: row.gflops / bestMatmul };
}

function warnings(results: readonly CaseResult[], busyBefore: number, buildType: string): string[] {
  const found: string[] = [];
  if (buildType !== 'Release') found.push(`the addon is a ${buildType} build`);
  if (busyBefore > busyCores) found.push(`other processes used ${busyBefore.toFixed(1)} cores when the run began`);
  for (const { suite, name, kind, busyCores: cores } of results) {
    // The others work in processes of ours, which count as others.
    if (['prefill', 'decode', 'approximate'].includes(kind) && cores > busyCores)
      found.push(`other processes used ${cores.toFixed(1)} cores during ${suite}: ${name}`);
  }
  return found;
}
