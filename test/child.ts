import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const folder = path.join(__dirname, 'children');

/** How a process ended. */
export interface Ending {
  readonly status: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
  /** What it noted last in its journal. */
  readonly last: string;
}

/**
 * Runs a program of children/ in a process of its own, so that a crash is a failure and nothing more.
 *
 * @param seconds after which it is taken to hang
 * @param args what it finds in process.argv from 3 on
 * @throws Error when it hangs or cannot be started
 */
export function endingOf(...given: ChildArguments): Ending {
  // What V8 leaves behind when it is not wound up is no leak of ours.
  return run({ ...process.env, ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:detect_leaks=0` }, ...given);
}

type ChildArguments = [file: string, seconds: number, nodeOptions?: readonly string[], args?: readonly string[]];

function run(env: NodeJS.ProcessEnv, ...[file, seconds, nodeOptions = [], args = []]: ChildArguments): Ending {
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'child-'));
  const journal = path.join(work, 'journal');
  fs.writeFileSync(journal, '');
  try {
    const program = ['--require', path.join(folder, 'register.js'), path.join(folder, file), journal, ...args];
    const { status, signal, stdout, stderr, error } = spawnSync(process.execPath, [...nodeOptions, ...program], {
      env,
      encoding: 'utf8',
      timeout: 1000 * seconds,
      killSignal: 'SIGKILL',
    });
    const last = fs.readFileSync(journal, 'utf8');
    if (error !== undefined) throw new Error(`${file}: ${error.message}; last at: ${last}\n${stderr}${stdout}`);
    return { status, signal, stdout, stderr, last };
  } finally {
    fs.rmSync(work, { recursive: true });
  }
}

/**
 * Runs a program of children/ that is to end well, see {@link endingOf}.
 *
 * @returns what it printed, as JSON
 * @throws Error with its last words when it crashes, hangs or fails
 */
export function runChild<Answer>(...given: ChildArguments): Answer {
  const { status, signal, stdout, stderr, last } = run(process.env, ...given);
  if (status !== 0) {
    const end = signal === null ? `status ${status}` : signal;
    throw new Error(`${given[0]} ended with ${end}; last at: ${last}\n${stderr}${stdout}`);
  }
  return JSON.parse(stdout) as Answer;
}
