/**
 * What a user gets: the packed tarball, installed into an empty folder where there is Node.js and nothing else.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

// The addon is compiled again where build/ holds no plain release.
jest.setTimeout(300_000);

const root = path.resolve(__dirname, '..');
const manifest = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'));
const platform = `${process.platform}-${process.arch}`;
const addonFile = `prebuilds/${platform}/lowrank_attention.node`;

/** The oldest glibc the prebuilt binary runs on, as README.md states it. */
const [, oldestGlibc = ''] =
  /glibc (2\.\d+) or later/.exec(fs.readFileSync(path.join(root, 'README.md'), 'utf8')) ?? [];
/** Parts of glibc. */
const systemLibraries = /^(ld-linux-.*|lib(c|m|dl|rt|pthread))\.so\.\d+$/;

interface Packed {
  readonly filename: string;
  readonly size: number;
  readonly unpackedSize: number;
  readonly files: readonly { readonly path: string }[];
}

let work: string;
let packed: Packed;
/** Folder of a user's project with the package installed. */
let project: string;
/** A PATH of node and the shell that npx starts programs with. */
let bareEnvironment: Record<string, string>;

function run(command: string, args: readonly string[], cwd: string, env: Record<string, string>) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, env, encoding: 'utf8' });
  if (error !== undefined) throw error;
  return { status, stdout, output: stdout + stderr };
}

/** Runs a command that must succeed; returns what it printed. */
function succeed(...[command, args, cwd, env]: Parameters<typeof run>): string {
  const { status, stdout, output } = run(command, args, cwd, env);
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} gave ${status}:\n${output}`);
  return stdout;
}

/** Runs a program in a project as its user would. */
function node(folder: string, file: string): string {
  return succeed(process.execPath, [file], folder, bareEnvironment);
}

/** Where npm's own program lies: it is run with node, as a bare PATH has no npm. */
function npmFile(name: string): string {
  const npm = (process.env.PATH ?? '').split(path.delimiter).map((folder) => path.join(folder, 'npm'));
  const found = npm.find((file) => fs.existsSync(file));
  if (found === undefined) throw new Error('no npm on the PATH');
  return path.join(path.dirname(fs.realpathSync(found)), name);
}

/** Copies what the package depends on out of this checkout, so that installing needs no registry. */
function copyDependencies(folder: string): void {
  const lock = JSON.parse(fs.readFileSync(path.join(root, 'package-lock.json'), 'utf8'));
  for (const [place, { dev, devOptional, peer }] of Object.entries<Record<string, boolean>>(lock.packages)) {
    if (place === '' || dev || devOptional || peer || !fs.existsSync(path.join(root, place))) continue;
    fs.cpSync(path.join(root, place), path.join(folder, place), { recursive: true });
  }
}

/** The project with its installed package changed. */
function altered(name: string, change: (installed: string) => void): string {
  const copy = path.join(work, name);
  fs.cpSync(project, copy, { recursive: true });
  change(path.join(copy, 'node_modules', 'lowrank-attention'));
  fs.writeFileSync(
    path.join(copy, 'main.js'),
    `try { require('lowrank-attention'); } catch (error) { console.log(error.code + ': ' + error.message); }`,
  );
  return node(copy, 'main.js');
}

beforeAll(() => {
  work = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'lowrank-attention-')));
  const bin = path.join(work, 'bin');
  fs.mkdirSync(bin);
  fs.symlinkSync(process.execPath, path.join(bin, 'node'));
  fs.symlinkSync('/bin/sh', path.join(bin, 'sh'));
  bareEnvironment = { PATH: bin, HOME: work, npm_config_update_notifier: 'false' };
  // Nothing of npm's or jest's own variables, which change what npm and the compiler do.
  const environment = { PATH: process.env.PATH ?? '', HOME: os.homedir() };

  succeed(process.execPath, ['scripts/prebuild.mjs'], root, environment);
  const npm = npmFile('npm-cli.js');
  const pack = ['pack', '--ignore-scripts', '--json', '--pack-destination', work];
  [packed] = JSON.parse(succeed(process.execPath, [npm, ...pack], root, environment)) as [Packed];

  project = path.join(work, 'project');
  fs.mkdirSync(project);
  fs.writeFileSync(path.join(project, 'package.json'), '{ "name": "user", "private": true }');
  copyDependencies(project);
  const install = ['install', '--offline', '--no-audit', '--no-fund', path.join(work, packed.filename)];
  succeed(process.execPath, [npm, ...install], project, bareEnvironment);
});

afterAll(() => {
  if (work !== undefined) fs.rmSync(work, { recursive: true });
});

const installedFile = (file: string): string => path.join(project, 'node_modules', 'lowrank-attention', file);

describe('the tarball', () => {
  test('holds what it should and nothing else', () => {
    const files = packed.files.map((file) => file.path);
    expect(files).toEqual(
      expect.arrayContaining(['CHANGELOG.md', 'LICENSE', 'README.md', 'THIRD_PARTY_LICENSES.md', addonFile]),
    );
    const known = [/^[A-Z_]+(\.md)?$/, /^docs\/[\w-]+\.md$/, /^dist\/.+\.(js|d\.ts)$/, /^package\.json$/];
    const unknown = files.filter((file) => !known.some((pattern) => pattern.test(file)));
    expect(unknown).toEqual([addonFile]);
  });

  test('holds every module once as code and once as types, and none that is no longer in lib/', () => {
    const modules = fs
      .readdirSync(path.join(root, 'lib'), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts'))
      .flatMap((file) => [file.replace(/ts$/, 'js'), file.replace(/ts$/, 'd.ts')]);
    const compiled = packed.files.map((file) => file.path).filter((file) => file.startsWith('dist/'));
    expect(compiled.sort()).toEqual(modules.map((file) => `dist/${file}`).sort());
  });

  test('holds the licence of everything in it', () => {
    const licences = fs.readFileSync(installedFile('THIRD_PARTY_LICENSES.md'), 'utf8');
    for (const part of ['Highway', 'Eigen', 'node-addon-api', 'Node-API headers', 'libstdc++']) {
      expect(licences).toContain(`\n| ${part}`);
    }
    expect(fs.readFileSync(installedFile('LICENSE'), 'utf8')).toContain('Apache License');
  });

  test('is small', () => {
    expect(packed.unpackedSize).toBeLessThan(7e6);
  });

  test('runs nothing at installation', () => {
    expect(Object.keys(manifest.scripts)).not.toEqual(expect.arrayContaining([expect.stringMatching(/install$/)]));
    // npm compiles by itself where it sees one.
    expect(fs.existsSync(installedFile('binding.gyp'))).toBe(false);
  });
});

describe('the prebuilt binary', () => {
  const read = (option: string, file: string): string =>
    succeed('readelf', [option, '--wide', installedFile(file)], root, { PATH: process.env.PATH ?? '' });
  const found = (text: string, pattern: RegExp): string[] => [...text.matchAll(pattern)].map((match) => match[1] ?? '');

  test('links nothing but glibc', () => {
    const needed = found(read('-d', addonFile), /\(NEEDED\).*\[(.*)\]/g);
    expect(needed).toContain('libc.so.6');
    expect(needed.filter((name) => !systemLibraries.test(name))).toEqual([]);
  });

  test('runs on the oldest glibc that README.md names', () => {
    const minor = (version: string): number => Number(version.split('.')[1]);
    const versions = found(read('-V', addonFile), /GLIBC_(2\.\d+)/g);
    expect(oldestGlibc).toMatch(/^2\.\d+$/);
    expect(versions.length).toBeGreaterThan(0);
    expect(Math.max(...versions.map(minor))).toBeLessThanOrEqual(minor(oldestGlibc));
  });

  test('is stripped', () => {
    expect(read('-S', addonFile)).not.toMatch(/\.debug_|\.symtab/);
  });
});

describe('installed', () => {
  const value = [3, 4];
  const source = `
    const one = (...values) => tensor(Float32Array.from(values), [1, 1, 1, 2]);
    const output = await attention(one(1, 0), one(0, 1), one(${value}));
    const mapped = fs.readFileSync('/proc/self/maps', 'utf8').match(/\\/.*lowrank_attention.*/g);
    console.log(JSON.stringify({ data: [...output.data], info: info(), mapped: [...new Set(mapped)] }));`;
  const programs = {
    'main.cjs': `const { attention, info, tensor } = require('lowrank-attention');
    const fs = require('node:fs');
    (async () => {${source}})();`,
    'main.mjs': `import { attention, info, tensor } from 'lowrank-attention';
    import fs from 'node:fs';${source}`,
  };

  test.each(Object.entries(programs))('%s runs, on the packed addon', (file, text) => {
    fs.writeFileSync(path.join(project, file), text);
    const { data, info, mapped } = JSON.parse(node(project, file));
    expect(data).toEqual(value);
    expect(info).toMatchObject({ version: manifest.version, build: { type: 'Release', sanitizers: '' } });
    expect(mapped).toEqual([installedFile(addonFile)]);
  });

  test('the command line runs', () => {
    const npx = [npmFile('npx-cli.js'), '--offline', 'lowrank-attention', 'info'];
    expect(succeed(process.execPath, npx, project, bareEnvironment)).toContain(manifest.version);
  });

  test('its types serve both kinds of modules', () => {
    const source = `
      const x: Tensor = tensor(new Float32Array(4), [1, 1, 2, 2]);
      export const y: Promise<Tensor> = attention(x, x, x, { causal: true });
      // @ts-expect-error: there is no such option
      attentionSync(x, x, x, { casual: true });
      const cache: KvCache = new KvCache({ heads: 1, headDim: 2 });
      cache.dispose();`;
    const names = '{ attention, attentionSync, KvCache, tensor, type Tensor }';
    fs.writeFileSync(path.join(project, 'types.mts'), `import ${names} from 'lowrank-attention';${source}`);
    fs.writeFileSync(path.join(project, 'types.cts'), `import ${names} from 'lowrank-attention';${source}`);
    fs.writeFileSync(
      path.join(project, 'equals.cts'),
      `import lowrank = require('lowrank-attention');
      export const x: lowrank.Tensor = lowrank.zeros([1, 1, 2, 2]);`,
    );
    const options = { strict: true, noEmit: true, module: 'nodenext', target: 'es2022', types: ['node'] };
    fs.writeFileSync(
      path.join(project, 'tsconfig.json'),
      JSON.stringify({
        compilerOptions: { ...options, typeRoots: [path.join(root, 'node_modules', '@types')] },
        files: ['types.mts', 'types.cts', 'equals.cts'],
      }),
    );
    succeed(
      process.execPath,
      [path.join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', '.'],
      project,
      bareEnvironment,
    );
  });

  test('publint and arethetypeswrong find nothing', () => {
    const tarball = path.join(work, packed.filename);
    const tool = (name: string): string => path.join(root, 'node_modules', '.bin', name);
    const bin = { PATH: process.env.PATH ?? '' };
    const lint = succeed(process.execPath, [tool('publint'), 'run', tarball, '--strict'], work, bin);
    expect(lint).toContain('All good!');
    // A package without types gives no problems either, so the types are asked for as well.
    const types = JSON.parse(succeed(process.execPath, [tool('attw'), tarball, '--format', 'json'], work, bin));
    expect(types.analysis).toMatchObject({ types: { kind: 'included' }, problems: [] });
  });
});

describe('where the addon cannot be loaded, the message says', () => {
  test('what was looked for and what to run, if there is none', () => {
    const message = altered('absent', (installed) => fs.rmSync(path.join(installed, 'prebuilds'), { recursive: true }));
    expect(message).toMatch(`ERR_DEVICE: no native addon of lowrank-attention for ${platform}`);
    expect(message).toMatch('lowrank-attention/build/Release/lowrank_attention.node\n');
    expect(message).toMatch(`lowrank-attention/${addonFile}\n`);
    expect(message).toMatch('npm run build');
  });

  test('the reason, if it is damaged', () => {
    const message = altered('damaged', (installed) => fs.truncateSync(path.join(installed, addonFile), 40));
    expect(message).toMatch('ERR_DEVICE: the native addon of lowrank-attention does not load');
    expect(message).toMatch(`lowrank-attention/${addonFile}`);
    expect(message).toMatch('file too short');
  });

  test('the version, if glibc is older than it asks for', () => {
    // A binary that asks for a glibc to come stands in for today's under an older one.
    const message = altered('newer', (installed) => {
      const file = path.join(installed, addonFile);
      fs.writeFileSync(file, withVersion(fs.readFileSync(file), `GLIBC_${oldestGlibc}`, 'GLIBC_9.99'));
    });
    expect(message).toMatch('ERR_DEVICE: the native addon of lowrank-attention does not load');
    expect(message).toMatch("version `GLIBC_9.99' not found");
  });
});

/** An ELF file with the name of a symbol version, and the hash it is compared by, exchanged for another's. */
function withVersion(elf: Buffer, from: string, to: string): Buffer {
  const hash = (name: string): Buffer => {
    let h = 0;
    for (const byte of Buffer.from(name)) {
      h = (h << 4) + byte;
      const high = h & 0xf0000000;
      h = (h ^ (high >>> 24)) & ~high;
    }
    const bytes = Buffer.alloc(4);
    bytes.writeInt32LE(h);
    return bytes;
  };
  const changed = Buffer.from(elf);
  Buffer.from(`${to}\0`).copy(changed, changed.indexOf(`${from}\0`));
  hash(to).copy(changed, changed.indexOf(hash(from)));
  return changed;
}
