import fs from 'node:fs';

const file = fs.openSync(process.argv[2], 'w');

/** Says what is about to be tried; the last word stays readable after a crash. */
export function journal(text: string): void {
  fs.ftruncateSync(file);
  fs.writeSync(file, text, 0);
}
