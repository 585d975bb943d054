/** Several copies of the package in one process: of other folders, and the same loaded anew. */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import type * as Package from '../../lib';
import { bitsOf } from '../full-run';

const root = path.resolve(__dirname, '..', '..');
const addon = path.join('build', 'Release', 'lowrank_attention.node');

/** A folder with what is installed of the package, its addon a file of its own. */
function install(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'copy-'));
  fs.cpSync(path.join(root, 'lib'), path.join(folder, 'lib'), { recursive: true });
  fs.mkdirSync(path.join(folder, path.dirname(addon)), { recursive: true });
  for (const file of ['package.json', addon]) fs.copyFileSync(path.join(root, file), path.join(folder, file));
  fs.symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'));
  return folder;
}

/** Loads a package as if it never had been, addon and all. */
function load(folder: string): typeof Package {
  for (const file of Object.keys(require.cache)) if (file.startsWith(folder)) delete require.cache[file];
  return require(path.join(folder, 'lib'));
}

function digest(tensors: readonly Package.Tensor[]): string {
  const hash = createHash('sha256');
  for (const tensor of tensors) hash.update(bitsOf(tensor));
  return hash.digest('hex');
}

async function main(folders: readonly string[]): Promise<void> {
  const copies = [root, ...folders, root, folders[0]].map(load);
  const [q, k, v] = [1, 2, 3].map((seed) => copies[0].randomNormal([1, 4, 300, 32], { seed }));
  const results = await Promise.all(
    copies.map(async ({ attention, attentionSync, KvCache }) => {
      const cache = new KvCache({ heads: 4, headDim: 32 });
      cache.append(k, v);
      const running = [cache.attend(q), attention(q, k, v), cache.attend(q, { threads: 1 })];
      const sync = attentionSync(q, k, v);
      cache.dispose();
      return digest([sync, ...(await Promise.all(running))]);
    }),
  );
  // A cache is known to its own copy only: what another one holds in memory is not for this one to say.
  const cache = new copies[0].KvCache({ heads: 4, headDim: 32 });
  cache.append(k, v);
  const codes = copies.map(({ attendBatchSync }) => {
    try {
      return attendBatchSync([{ cache, query: q }]).length;
    } catch (error) {
      return (error as Package.AttentionError).code;
    }
  });
  console.log(JSON.stringify({ digests: [...new Set(results)].length, codes }));
}

const folders = [install(), install()];
main(folders).finally(() => {
  for (const folder of folders) fs.rmSync(folder, { recursive: true });
});
