/**
 * The rules of the house that a compiler does not check: who may include whom, how long a file may be, and that no
 * function compiled for one instruction set can serve another.
 */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

import { info } from '../lib';
import { filesOf, read, root } from './files';

const native = ['core', 'cpu', 'binding'].flatMap((folder) => filesOf(folder, /\.(h|cc)$/));
const typescript = ['lib', 'test', 'examples'].flatMap((folder) => filesOf(folder, /\.ts$/));

test('no file is longer than 600 lines', () => {
  const sources = [...native, ...typescript, ...filesOf('scripts')];
  expect(sources.length).toBeGreaterThan(100);
  const long = sources.filter((file) => read(file).split('\n').length > 601);
  expect(long).toEqual([]);
});

describe('native code', () => {
  /** What a folder may include beside the standard library. */
  const allowed: Readonly<Record<string, readonly RegExp[]>> = {
    core: [/^"core\//, /^<(sys\/mman|unistd)\.h>$/],
    cpu: [/^"core\//, /^"cpu\//, /^<hwy\/(highway|cache_control)\.h>$/, /^<cpuid\.h>$/, /^<Eigen\/\w+>$/],
    binding: [/^"core\//, /^"binding\//, /^<napi\.h>$/, /^<hwy\/cache_control\.h>$/],
  };
  const standard = /^<[a-z_]+>$/;

  test.each(native)('%s includes only what its folder may', (file) => {
    const [folder] = file.split('/') as [string];
    const includes = [...read(file).matchAll(/^\s*#\s*include\s*(\S+)/gm)].map((match) => match[1] as string);
    const known = [standard, ...(allowed[folder] as readonly RegExp[])];
    expect(includes.filter((name) => !known.some((pattern) => pattern.test(name)))).toEqual([]);
  });

  test.each(native.filter((file) => !file.startsWith('binding/')))('%s knows nothing of N-API', (file) => {
    expect(read(file)).not.toMatch(/\bnapi_|\bNapi::|\bNAPI_/);
  });

  test.each(native.filter((file) => !file.startsWith('cpu/')))(
    '%s has no vectors and asks for no processor',
    (file) => {
      const vectors = /\b_mm(256|512)?_|\b__m(128|256|512)|<\w*intrin\.h>|<arm_neon\.h>/;
      expect(read(file)).not.toMatch(vectors);
      // The pause of a thread that watches a variable is the one thing that scheduling asks of Highway.
      const text = read(file).replaceAll(/<hwy\/cache_control\.h>|\bhwy::Pause\(\)/g, '');
      expect(text).not.toMatch(/\bhwy\b|\bHWY_|__builtin_(ia32|cpu)/);
    },
  );

  test.each(native.filter((file) => file.endsWith('.h')))('%s is guarded by its path', (file) => {
    const guard = `LOWRANK_ATTENTION_${file.toUpperCase().replaceAll(/[/.]/g, '_')}_`;
    expect(read(file)).toMatch(new RegExp(`#ifndef ${guard}\\n#define ${guard}\\n[\\s\\S]*#endif  // ${guard}\\n$`));
  });
});

describe('TypeScript', () => {
  const modules = filesOf('lib', /\.ts$/);
  const imports = (file: string): string[] =>
    [...read(file).matchAll(/\b(?:from|require\(|import\() ?'([^']+)'/g)].map((match) => match[1] as string);

  test('only lib/native.ts loads the addon', () => {
    expect(modules.filter((file) => imports(file).includes('bindings'))).toEqual(['lib/native.ts']);
    const others = modules.filter((file) => /\.node\b['"`]|process\.dlopen/.test(read(file)));
    expect(others).toEqual(['lib/native.ts']);
  });

  test('the library does not know its command line', () => {
    const library = modules.filter((file) => !file.startsWith('lib/cli/'));
    const outward = library.filter((file) =>
      imports(file)
        .filter((name) => name.startsWith('.'))
        .map((name) => path.posix.join(path.posix.dirname(file), name))
        .some((target) => target.startsWith('lib/cli') || !target.startsWith('lib/')),
    );
    expect(outward).toEqual([]);
  });

  test('what is not the command line needs nothing but Node.js and bindings', () => {
    const library = modules.filter((file) => !file.startsWith('lib/cli/'));
    const foreign = library.flatMap(imports).filter((name) => !/^(\.|node:)/.test(name));
    expect([...new Set(foreign)]).toEqual(['bindings']);
  });

  test('every package that is imported is declared', () => {
    const { dependencies, devDependencies } = JSON.parse(read('package.json'));
    const names = (files: readonly string[]) =>
      files
        .flatMap(imports)
        .filter((name) => !/^(\.|node:)/.test(name))
        .map((name) => name.split('/', name.startsWith('@') ? 2 : 1).join('/'));
    const runtime = Object.keys(dependencies);
    // The peer is the user's own, looked for when he asks for a comparison.
    expect([...new Set(names(modules))].filter((name) => !runtime.includes(name))).toEqual(['onnxruntime-node']);
    const all = [...runtime, ...Object.keys(devDependencies), 'lowrank-attention'];
    expect([...new Set(names(typescript))].filter((name) => !all.includes(name))).toEqual([]);
  });
});

describe('one instruction set', () => {
  const folder = path.join(root, 'build', 'CMakeFiles');
  const isas = [...new Set(info().kernels.map(({ isa }) => isa))];
  /** Namespaces of Highway's targets. */
  const targets: Readonly<Record<string, string>> = {
    scalar: 'N_EMU128',
    sse4: 'N_SSE4',
    avx2: 'N_AVX2',
    avx512: 'N_AVX3',
  };
  const symbols = (isa: string) => {
    const objects = path.join(folder, `la_isa_${isa}.dir`, 'cpu');
    const files = fs.readdirSync(objects).map((file) => path.join(objects, file));
    return execFileSync('nm', ['--demangle', ...files], { encoding: 'utf8' })
      .split('\n')
      .map((line) => /^(?:[0-9a-f]+)? *([A-Za-z]) (.*)$/.exec(line)?.slice(1))
      .filter((found): found is [kind: string, name: string] => found !== undefined);
  };

  test.each(isas)('%s: defines nothing that the linker could merge with another', (isa) => {
    const found = symbols(isa);
    expect(found.length).toBeGreaterThan(40);
    // V, W, u: weak and unique symbols, as inline functions and variables of C++ become. One copy would serve all, and it
    // might be that of the widest instruction set.
    expect(found.filter(([kind]) => /[VvWwu]/.test(kind))).toEqual([]);
    // Nothing global but its rows of the table, and what is named after its target.
    const name = `lowrank_attention::k${isa[0]?.toUpperCase()}${isa.slice(1)}Kernels`;
    const global = found.filter(([kind]) => /[A-TX-Z]/.test(kind) && kind !== 'U').map(([, symbol]) => symbol);
    expect(global.filter((symbol) => !symbol.startsWith(`lowrank_attention::${targets[isa]}::`))).toEqual([name]);
  });

  test.each(isas)('%s: calls nothing but the C library and its own detection', (isa) => {
    const called = symbols(isa)
      .filter(([kind]) => kind === 'U')
      .map(([, name]) => name);
    const known =
      /^(lowrank_attention::((have\w+|alwaysAvailable)\(\)|(regularizedInverse|orthonormalize|svd|eigenSymmetric|basis)\(.*\))|_GLOBAL_OFFSET_TABLE_|expf?|log|log2f|sin|cos|sincos|sqrt|mem(cpy|set))$/;
    const own = `lowrank_attention::${targets[isa]}::`;
    expect(called.filter((name) => !known.test(name) && !name.startsWith(own))).toEqual([]);
  });
});
