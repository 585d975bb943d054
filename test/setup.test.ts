/**
 * What scripts/setup does on systems unlike this one: each has a PATH of its own, with stand-ins that say what they were
 * asked for.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { filesOf, read, root } from './files';

let work: string;
beforeAll(() => {
  work = fs.mkdtempSync(path.join(os.tmpdir(), 'lowrank-attention-setup-'));
  fs.mkdirSync(path.join(work, 'scripts'));
  fs.copyFileSync(path.join(root, 'scripts/setup'), path.join(work, 'scripts/setup'));
});
afterAll(() => fs.rmSync(work, { recursive: true }));

/** Programs as shell lines; each also notes its call. What the script's own shell needs comes from the system. */
type System = Readonly<Record<string, string>>;

const node20: System = { node: 'echo v20.1.0' };
const builder: System = { 'c++': 'exit 0', cmake: 'exit 0', ninja: 'exit 0' };
const npm: System = { npm: 'mkdir -p node_modules; echo "{}" > node_modules/.package-lock.json' };

function setup(system: System, args: readonly string[] = []) {
  const bin = fs.mkdtempSync(path.join(work, 'bin-'));
  const log = path.join(bin, 'log');
  fs.writeFileSync(log, '');
  fs.rmSync(path.join(work, 'node_modules'), { recursive: true, force: true });
  fs.writeFileSync(path.join(work, 'package-lock.json'), '{}');
  for (const tool of ['dirname', 'env', 'mkdir', 'touch']) {
    const found = ['/usr/bin', '/bin'].map((folder) => path.join(folder, tool)).find((file) => fs.existsSync(file));
    fs.symlinkSync(found as string, path.join(bin, tool));
  }
  for (const [name, body] of Object.entries(system)) {
    fs.writeFileSync(path.join(bin, name), `#!/bin/sh\necho "${name} $*" >> ${log}\n${body}\n`, { mode: 0o755 });
  }
  const { status, stdout, stderr } = spawnSync('/bin/sh', [path.join(work, 'scripts/setup'), ...args], {
    env: { PATH: bin },
    encoding: 'utf8',
    timeout: 60_000,
  });
  const calls = fs.readFileSync(log, 'utf8').trim().split('\n');
  const probes = /^(node|c\+\+|cmake|ninja|clang-\w+|chromium) |^id |^sudo -n true$/;
  return { status, stdout, stderr, calls: calls.filter((call) => call !== '' && !probes.test(call)) };
}

const all = 'g++ cmake ninja-build libhwy-dev libeigen3-dev';
const apt = (sudo = '') => ({ 'apt-get': 'exit 0', id: 'echo 1000', ...(sudo && { sudo }) });

test('with everything there it installs the npm packages, and nothing else', () => {
  expect(setup({ ...node20, ...builder, ...npm })).toMatchObject({
    status: 0,
    stderr: '',
    calls: ['npm install --no-save --no-audit --no-fund --loglevel=error'],
  });
});

test.each([
  ['none', {}],
  ['v18.20.4', { node: 'echo v18.20.4' }],
])('Node.js %s is refused', (found, system) => {
  const { status, stderr, calls } = setup({ ...system, ...npm });
  expect([status, calls]).toEqual([1, []]);
  expect(stderr).toMatch(`needs Node.js 20 or later, found ${found}.`);
});

test('root on Debian: what is missing is installed', () => {
  const { status, calls } = setup({ ...node20, ...npm, ...apt(), id: 'echo 0' });
  expect(status).toBe(0);
  expect(calls).toEqual([
    'apt-get update -qq',
    `apt-get install -y -qq --no-install-recommends ${all}`,
    expect.stringMatching(/^npm install /),
  ]);
});

test.each([
  ['lint', 'clang-format clang-tidy'],
  ['browser', 'chromium'],
])('only what is missing, and what is asked for: %s', (word, packages) => {
  const { calls } = setup({ ...node20, ...npm, ...builder, ...apt(), id: 'echo 0' }, [word]);
  expect(calls[1]).toBe(`apt-get install -y -qq --no-install-recommends ${packages}`);
});

test('a browser that is there is not installed again', () => {
  const { calls } = setup({ ...node20, ...npm, ...builder, ...apt(), id: 'echo 0', chromium: 'exit 0' }, ['browser']);
  expect(calls).toEqual([expect.stringMatching(/^npm install /)]);
});

test('sudo without a password is used', () => {
  const { status, calls } = setup({ ...node20, ...npm, ...apt('[ "$1" = -n ] || "$@"') });
  expect(status).toBe(0);
  expect(calls).toContain(`apt-get install -y -qq --no-install-recommends ${all}`);
});

test.each([
  ['no sudo', apt()],
  ['a sudo that asks', apt('exit 1')],
])('%s: the one command is printed', (_name, system) => {
  const { status, stderr, calls } = setup({ ...node20, ...npm, ...system });
  expect([status, calls]).toEqual([1, []]);
  expect(stderr.trim().split('\n')).toEqual([
    `Missing: ${all}. Run: sudo apt-get install -y --no-install-recommends ${all}`,
  ]);
});

test('Fedora: the one command is printed', () => {
  const { status, stderr, calls } = setup({ ...node20, ...npm, dnf: 'exit 0' });
  expect([status, calls]).toEqual([1, []]);
  expect(stderr).toMatch(/Run: sudo dnf install -y gcc-c\+\+ cmake ninja-build highway-devel eigen3-devel\n$/);
});

test('elsewhere: what to install, and what to run then', () => {
  const { status, stderr, calls } = setup({ ...node20, ...npm });
  expect([status, calls]).toEqual([1, []]);
  expect(stderr.trim().split('\n')).toEqual([expect.stringMatching(/libhwy-dev.*then run: sh scripts\/setup$/)]);
});

test('an argument it does not know is refused', () => {
  expect(setup(node20, ['lnit'])).toMatchObject({
    status: 1,
    stderr: "setup takes 'lint', 'browser' or nothing, received 'lnit'\n",
  });
});

test('nothing but npm and Debian packages is fetched, by any script or by CMake', () => {
  const files = ['CMakeLists.txt', '.ci/run', ...filesOf('scripts')];
  const fetching = /\b(curl|wget|FetchContent|ExternalProject|file\(DOWNLOAD|git clone|fetch\(|npx --yes|pip)\b/;
  const found = files.filter((file) => fetching.test(read(file)));
  expect(found).toEqual([]);
});
