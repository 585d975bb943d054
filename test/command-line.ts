import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { root } from './files';

/** The command line's program. */
export const program = path.join(root, 'dist', 'cli', 'main.js');

/** The command line in a folder: words are separated by spaces. */
export class CommandLine {
  constructor(
    readonly folder: string,
    /** Words before those of every line. */
    readonly before: readonly string[] = [],
  ) {}

  run(line: string) {
    const args = [program, ...this.before, ...line.split(' ').filter((word) => word !== '')];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: this.folder, encoding: 'utf8' });
    return { status, stdout, stderr };
  }

  // biome-ignore lint/suspicious/noExplicitAny: JSON of any shape
  json(line: string): any {
    const { status, stdout, stderr } = this.run(`${line} --json`);
    if (status !== 0) throw new Error(`${line} gave ${status}: ${stderr}`);
    return JSON.parse(stdout);
  }
}
