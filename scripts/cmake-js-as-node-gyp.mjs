#!/usr/bin/env node
/**
 * Stands in for node-gyp under prebuildify, which calls
 *
 *     <this file> rebuild --target=<Node version> --devdir=<cache> --arch=<arch> --release
 *
 * and takes build/Release/*.node out of the working directory. cmake-js itself cannot be put there: to it `--target` is
 * a target of CMake's.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';

const root = path.resolve(import.meta.dirname, '..');
const addon = 'lowrank_attention.node';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    arch: { type: 'string' },
    release: { type: 'boolean' },
    // Node-API needs neither a version of Node nor its headers.
    target: { type: 'string' },
    devdir: { type: 'string' },
  },
});
if (positionals.join() !== 'rebuild' || !values.release || values.arch !== process.arch) {
  throw new Error(`expected a release build for ${process.arch}, received ${process.argv.slice(2).join(' ')}`);
}

const own = path.resolve('build');
const release = path.join(own, 'Release');
// A developer's build folder is brought up to date and copied from, if it holds what a user should get. That saves a
// second compilation and leaves the folder whole.
const local = path.join(root, 'build');
const folder = holdsRelease(local) ? local : own;
fs.rmSync(release, { recursive: true, force: true });
fs.mkdirSync(release, { recursive: true });
const built = spawnSync(
  path.join(root, 'node_modules', '.bin', 'cmake-js'),
  ['build', '--directory', root, '--out', folder, '--config', 'Release', '--generator', 'Ninja', '--log-level', 'warn'],
  { stdio: 'inherit' },
);
if (built.status !== 0) process.exit(1); // the compiler has said why
if (folder !== own) fs.copyFileSync(path.join(folder, 'Release', addon), path.join(release, addon));

const foreign = linkedLibraries(path.join(release, addon));
// Nothing but the addon is packed, so it may need nothing that a user's machine might lack.
if (foreign.length > 0) throw new Error(`expected an addon that links to the C library only, found ${foreign}`);

/** Whether a build folder of cmake-js is configured from this checkout as a plain release. */
function holdsRelease(candidate) {
  const cache = path.join(candidate, 'CMakeCache.txt');
  if (!fs.existsSync(cache)) return false;
  const text = fs.readFileSync(cache, 'utf8');
  const setting = (name) => new RegExp(`^${name}:\\w+=(.*)$`, 'm').exec(text)?.[1];
  return (
    setting('CMAKE_HOME_DIRECTORY') === root &&
    setting('CMAKE_BUILD_TYPE') === 'Release' &&
    setting('LA_SANITIZE') === ''
  );
}

/** Shared libraries a file needs beyond those of the C library. */
function linkedLibraries(file) {
  const needed = execFileSync('ldd', [file], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => line.includes(' => '))
    .map((line) => line.trim().split(' => ')[0]);
  return needed.filter((name) => !/^lib(c|m|dl|rt|pthread)\.so\.\d+$/.test(name));
}
