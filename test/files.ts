import fs from 'node:fs';
import path from 'node:path';

/** The root of this repository. */
export const root = path.resolve(__dirname, '..');

/** Files under a folder of this repository, as sorted paths from its root. */
export function filesOf(folder: string, ending = /./): string[] {
  return fs
    .readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true, encoding: 'utf8' })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)))
    .filter((file) => ending.test(file))
    .sort();
}

/** The text of a file of this repository. */
export const read = (file: string): string => fs.readFileSync(path.join(root, file), 'utf8');
