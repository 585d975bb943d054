/** Measurements other than the time of a call: peak memory, the event loop during a call, loading. */
import { execFile, fork } from 'node:child_process';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { WrongAnswer } from './check';
import type { Contender } from './contender';
import type { Row } from './measured';
import { type Method, width } from './method';
import { type How, oursPrefill } from './ours';
import { peerPrefill } from './peer/contenders';
import type { Onnxruntime } from './peer/onnxruntime';
import { type ApproximateCase, approximate, type PrefillCase, type ProcessCase, prefill, type Shape } from './suite';
import { interleave, summarize } from './timing';

/** What a process that measures memory is told. */
export interface MemoryRequest {
  readonly side: 'ours' | 'peer';
  readonly subject: PrefillCase | ApproximateCase;
  readonly how: How;
}

export type MemoryAnswer =
  | { readonly name: string; readonly growthMiB: number; readonly error: number }
  /** This side cannot be asked for it. */
  | { readonly missing: true }
  | { readonly failure: string; readonly wrong: boolean };

/** Peak memory of one call in a process of its own, beyond what the inputs took: the output is part of it. */
export async function measureMemory(
  { shape, method }: ProcessCase,
  runs: number,
  how: How,
  peer?: Onnxruntime,
): Promise<Row[]> {
  const subjects =
    method === undefined
      ? [false, true].map((causal) => prefill('memory', shape, causal))
      : [approximate('memory', method, shape)];
  const rows: Row[] = [];
  for (const side of peer === undefined ? (['ours'] as const) : (['ours', 'peer'] as const)) {
    for (const subject of subjects) {
      const growth: number[] = [];
      let error = 0;
      let name = '';
      for (let run = 0; run < Math.min(runs, 3); run++) {
        const answer = await askChild({ side, subject, how });
        if (answer === undefined) break;
        growth.push(answer.growthMiB);
        error = Math.max(error, answer.error);
        name = answer.name;
      }
      if (growth.length === 0) continue;
      const causal = subject.kind === 'prefill' && subject.causal;
      rows.push({ name: causal ? `${name}, causal` : name, side, unit: 'MiB', value: summarize(growth), error });
    }
  }
  if (method !== undefined) rows.push(linearMemory(method, shape));
  return rows;
}

/** What a method needs that holds its own rows of every head and an output, and nothing else that grows with n. */
function linearMemory(method: Method, shape: Shape): Row {
  const { n, heads, dim } = shape;
  const bytes = 4 * heads * n * (width(method, shape) + dim);
  return { name: 'n·(m + d) of all heads', side: 'machine', unit: 'MiB', value: summarize([bytes / 2 ** 20]) };
}

/** The forms of onnxruntime that do not hold all scores. */
export function memoryForm(causal: boolean): 'GroupQueryAttention' | 'MultiHeadAttention' {
  return causal ? 'GroupQueryAttention' : 'MultiHeadAttention';
}

async function askChild(request: MemoryRequest): Promise<Extract<MemoryAnswer, { growthMiB: number }> | undefined> {
  const child = fork(path.join(__dirname, 'memory-child.js'), { execArgv: ['--expose-gc'] });
  const answer = await new Promise<MemoryAnswer>((resolve, reject) => {
    child.once('message', (message) => resolve(message as MemoryAnswer));
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`the process that measures memory ended with code ${code}`)));
    child.send(request);
  });
  if ('failure' in answer) throw answer.wrong ? new WrongAnswer(answer.failure) : new Error(answer.failure);
  return 'missing' in answer ? undefined : answer;
}

const timerMs = 5;

/** How late a 5 ms timer comes at worst during a call of about a second; and how long that call took. */
export async function measureLatency(
  { shape }: ProcessCase,
  runs: number,
  how: How,
  peer?: Onnxruntime,
): Promise<Row[]> {
  const one = oursPrefill(prefill('latency', { ...shape, heads: 1, kvHeads: 1 }, false), how);
  const [trial] = await interleave([one], 1);
  const heads = Math.min(64, Math.max(1, Math.round(1000 / summarize(trial?.ms ?? []).median)));
  const long = prefill('latency', { ...shape, heads, kvHeads: heads }, false);
  const contenders: Contender[] = [oursPrefill(long, how)];
  if (peer !== undefined) contenders.push(await peerPrefill(peer, long, 'MultiHeadAttention', how.threads));
  const rows: Row[] = [];
  for (const contender of contenders) {
    const error = (await contender.check?.()) ?? 0;
    const late: number[] = [];
    const took: number[] = [];
    for (let run = 0; run < Math.min(runs, 5); run++) {
      const start = performance.now();
      late.push(await latestTick(contender));
      took.push(performance.now() - start);
    }
    await contender.dispose?.();
    const { name, side } = contender;
    const seconds = (summarize(took).median / 1000).toFixed(1);
    rows.push({ name: `${name}: timer late, call of ${seconds} s`, side, unit: 'ms', value: summarize(late), error });
  }
  return rows;
}

async function latestTick({ call }: Contender): Promise<number> {
  await sleep(100);
  let last = performance.now();
  let worst = 0;
  const tick = () => {
    const now = performance.now();
    worst = Math.max(worst, now - last - timerMs);
    last = now;
  };
  const timer = setInterval(tick, timerMs);
  await sleep(4 * timerMs);
  // Only what the call does counts, not how the timer started.
  worst = 0;
  await call();
  await sleep(4 * timerMs);
  clearInterval(timer);
  return worst;
}

/** Loading the package, addon and all, in a new process. */
export async function measureLoad(runs: number, peer?: Onnxruntime): Promise<Row[]> {
  const ours = { name: 'ours: require', side: 'ours' as const, module: path.join(__dirname, '..', 'index.js') };
  const theirs = { name: 'onnxruntime: require', side: 'peer' as const, module: peer?.path ?? '' };
  const sides = peer === undefined ? [ours] : [ours, theirs];
  const all = sides.map(() => [] as number[]);
  for (let run = 0; run < Math.max(3, runs); run++) {
    for (const [index, { module }] of sides.entries()) (all[index] as number[]).push(await loadMs(module));
  }
  return sides.map(({ name, side }, index) => ({ name, side, unit: 'ms', value: summarize(all[index] as number[]) }));
}

async function loadMs(module: string): Promise<number> {
  const script = 'const t = performance.now(); require(process.argv[1]); console.log(performance.now() - t)';
  const { stdout } = await promisify(execFile)(process.execPath, ['-e', script, module]);
  return Number(stdout);
}
