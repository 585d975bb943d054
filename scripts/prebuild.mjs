/**
 * Puts the addon under prebuilds/<platform>-<arch>/ for the npm tarball:
 *
 *     node scripts/prebuild.mjs
 *
 * prebuildify empties the folder it takes the binary from and knows node-gyp only. So it gets a folder of its own to
 * empty, and a stand-in for node-gyp that fills it (cmake-js-as-node-gyp.mjs); build/ stays as it was.
 */
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

import prebuildify from 'prebuildify';

const root = path.resolve(import.meta.dirname, '..');
const work = path.join(root, 'build-prebuild');
const folder = path.join(root, 'prebuilds', `${process.platform}-${process.arch}`);

// The name of the folder says nothing of the C library: what lies in it is for glibc.
const { glibcVersionRuntime } = process.report.getReport().header;
if (process.platform !== 'linux' || glibcVersionRuntime === undefined) {
  throw new Error(`expected Linux with glibc to prebuild on, received ${process.platform} without glibc`);
}

fs.rmSync(folder, { recursive: true, force: true });
fs.mkdirSync(work, { recursive: true });
await promisify(prebuildify)({
  cwd: work,
  out: root,
  // The name lib/native.ts looks for.
  name: 'lowrank_attention',
  napi: true,
  // With Node-API the version changes nothing, but prebuildify must be given one.
  targets: [process.version],
  arch: process.arch,
  strip: true,
  nodeGyp: path.join(import.meta.dirname, 'cmake-js-as-node-gyp.mjs'),
});

for (const name of fs.readdirSync(folder)) {
  const file = path.join(folder, name);
  console.log(`${path.relative(root, file)}  ${fs.statSync(file).size} bytes`);
}
