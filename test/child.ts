import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const folder = path.join(__dirname, 'children');

/**
 * Runs a program of children/ in a process of its own, so that a crash is a failure and nothing more.
 *
 * @param seconds after which it is taken to hang
 * @returns what it printed, as JSON
 * @throws Error with its last words when it crashes, hangs or fails
 */
export function runChild<Answer>(file: string, seconds: number, nodeOptions: readonly string[] = []): Answer {
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'child-'));
  const journal = path.join(work, 'journal');
  fs.writeFileSync(journal, '');
  try {
    const args = ['--require', path.join(folder, 'register.js'), path.join(folder, file), journal];
    const { status, signal, stdout, stderr, error } = spawnSync(process.execPath, [...nodeOptions, ...args], {
      encoding: 'utf8',
      timeout: 1000 * seconds,
      killSignal: 'SIGKILL',
    });
    if (status !== 0) {
      const end = error?.message ?? (signal === null ? `status ${status}` : signal);
      throw new Error(`${file} ended with ${end}; last at: ${fs.readFileSync(journal, 'utf8')}\n${stderr}${stdout}`);
    }
    return JSON.parse(stdout) as Answer;
  } finally {
    fs.rmSync(work, { recursive: true });
  }
}
