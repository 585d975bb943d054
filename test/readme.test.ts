/**
 * README.md as a user would follow it: every block of TypeScript is compiled strictly and run, and prints what its
 * comments say; every command line is run. Nothing in it can rot unseen.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

import { writeNpy, writeSafetensors } from './tensor-files';

jest.setTimeout(180_000);

const root = path.resolve(__dirname, '..');
const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8');
const manifest = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'));

const blocks = [...readme.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map((match) => ({
  language: match[1] as string,
  text: match[2] as string,
}));
const programs = blocks.filter(({ language }) => language === 'ts').map(({ text }) => text);
const commands = blocks.filter(({ language }) => language === 'sh').flatMap(({ text }) => text.trim().split('\n'));

// Inside this package its own name leads to it, as node_modules would in a user's project.
const work = path.join(root, 'build', 'readme');

function run(args: readonly string[], cwd: string): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd, encoding: 'utf8', timeout: 120_000 });
  if (status !== 0) throw new Error(`${args.join(' ')} gave ${status}:\n${stdout}${stderr}`);
  return stdout;
}

beforeAll(() => {
  fs.rmSync(work, { recursive: true, force: true });
  fs.mkdirSync(work, { recursive: true });
  // The user's own tensors, which commands name.
  const content = (seed: number) => ({ dims: [2, 96, 8], value: (i: number) => Math.sin(i * seed) });
  for (const [index, name] of ['q', 'k', 'v'].entries()) writeNpy(path.join(work, `${name}.npy`), content(index + 1));
  writeSafetensors(path.join(work, 'layer.safetensors'), { q: content(1), k: content(2), v: content(3) });
  const square = (seed: number) => ({ dims: [64, 64], value: (i: number) => Math.sin(i * i * seed) });
  const projections = ['q_proj', 'k_proj', 'v_proj', 'o_proj'].map((name, index) => [
    `model.layers.0.self_attn.${name}.weight`,
    square(index + 1),
  ]);
  writeSafetensors(path.join(work, 'model.safetensors'), Object.fromEntries(projections));
  const config = { model_type: 'llama', num_attention_heads: 4, num_key_value_heads: 4, rope_theta: 10000 };
  fs.writeFileSync(path.join(work, 'config.json'), JSON.stringify(config));
  writeNpy(path.join(work, 'hidden.npy'), square(5));
  programs.forEach((text, index) => {
    fs.writeFileSync(path.join(work, `example${index}.mts`), text);
  });
  const options = { strict: true, target: 'es2022', module: 'nodenext', rootDir: '.', skipLibCheck: false };
  const compilerOptions = { ...options, lib: ['es2023', 'esnext.disposable'], types: ['node'] };
  fs.writeFileSync(path.join(work, 'tsconfig.json'), JSON.stringify({ compilerOptions, include: ['*.mts'] }));
  run([path.join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', '.'], work);
});

test('has blocks of TypeScript and of commands only', () => {
  expect([...new Set(blocks.map(({ language }) => language))].sort()).toEqual(['sh', 'ts']);
  expect(programs.length).toBeGreaterThanOrEqual(3);
  // An indented block would be missed.
  expect(readme).not.toMatch(/^ {4}\S/m);
});

test.each(programs.map((text, index) => [index, text] as const))('program %i prints what it says', (index, text) => {
  const expected = [...text.matchAll(/\/\/ → (.*)$/gm)].map((match) => match[1]);
  expect(expected.length).toBeGreaterThan(0);
  expect(
    run([`example${index}.mjs`], work)
      .trimEnd()
      .split('\n'),
  ).toEqual(expected);
});

const ours = /^npx lowrank-attention /;

test.each(commands.filter((line) => ours.test(line)))('%s', (line) => {
  const [, , ...given] = line.split(' ');
  // As written it takes its time for the sake of the figures, which are not of interest here.
  const args = given[0] === 'bench' ? [...given, '--runs', '1', '--no-machine'] : given;
  const printed = run([path.join(root, manifest.bin['lowrank-attention']), ...args], work);
  if (args.includes('--json')) expect(JSON.parse(printed).cases.length).toBeGreaterThan(0);
  else expect(printed.split('\n').length).toBeGreaterThan(5);
  if (args.includes('--peer')) expect(printed).toContain('onnxruntime');
});

test('its other commands are those that npm has', () => {
  // package.test.ts installs the package, and the last one runs this very test.
  expect(commands.filter((line) => !ours.test(line))).toEqual([
    'npm install lowrank-attention',
    'npm start',
    'npm test',
  ]);
  expect(manifest.scripts).toMatchObject({ start: expect.any(String), test: expect.any(String) });
});

test('its tables name what there is', () => {
  const attention = fs.readFileSync(path.join(root, 'lib', 'full-options.ts'), 'utf8');
  const call = fs.readFileSync(path.join(root, 'lib', 'call.ts'), 'utf8');
  const options = [...`${attention}${call}`.matchAll(/^ {2}readonly (\w+)\?: /gm)].map((match) => match[1] as string);
  expect(options.length).toBeGreaterThan(10);
  const [, section = ''] = readme.split('## Options of `attention`');
  const [table = ''] = section.split('\n## ');
  expect(options.filter((name) => !table.includes(`\`${name}\``))).toEqual([]);
});

test('every link within the repository leads somewhere', () => {
  const links = [...readme.matchAll(/\]\(([^)#]+)\)/g)].map((match) => match[1] as string);
  const broken = links.filter((link) => !/^https?:/.test(link) && !fs.existsSync(path.join(root, link)));
  expect(broken).toEqual([]);
});
