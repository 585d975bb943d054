/**
 * The only file that knows the addon: how it is found, and the shape of its functions.
 *
 * Every op takes `operands` (typed arrays, or null where absent), `numbers` (dims and scalars in the order the binding
 * of that op documents), and how to run. It returns undefined, or a failure as `code:argument:detail`; asynchronous
 * calls return a promise of the same.
 */
import fs from 'node:fs';
import path from 'node:path';

import bindings from 'bindings';

import { AttentionError } from './errors';

export type Outcome = string | undefined;

type Operands = readonly unknown[];

export type NativeOp = (
  operands: Operands,
  numbers: Float64Array,
  threads: number,
  isa: string,
  async: boolean,
  abort: Int32Array | null,
) => Outcome | Promise<Outcome>;

/** A cache's memory. Methods run at once on the calling thread. */
export interface NativeCache {
  append(operands: Operands, numbers: Float64Array): Outcome;
  truncate(length: number): void;
  fork(): NativeCache;
  dispose(): void;
  bytes(): number;
  sharedBytes(): number;
}

export interface Addon {
  /** JSON, see {@link NativeInfo}. */
  info(): string;
  readonly convert: NativeOp;
  readonly read: NativeOp;
  readonly linalg: NativeOp;
  readonly lowrank: NativeOp;
  readonly lrkv: NativeOp;
  readonly lrkvCached: NativeOp;
  readonly matmul: NativeOp;
  readonly full: NativeOp;
  readonly linear: NativeOp;
  readonly merge: NativeOp;
  readonly nystrom: NativeOp;
  readonly rotary: NativeOp;
  readonly cached: NativeOp;
  readonly linformer: NativeOp;
  readonly KvCache: new (heads: number, headDim: number, valueDim: number, type: number) => NativeCache;
  /** Takes the stored form alone; the model comes with each call. */
  readonly LrkvCache: new (
    heads: number,
    type: number,
    keyBaseDim: number,
    valueBaseDim: number,
    scaled: 0 | 1,
    keyWidths: Int32Array,
    valueWidths: Int32Array,
  ) => NativeCache;
}

/** One row of the kernel table. */
export interface KernelRow {
  readonly op: string;
  readonly device: string;
  /** Instruction set, as the option `isa` takes it. */
  readonly isa: string;
  /** Whether this machine can run it. */
  readonly supported: boolean;
}

/** What the addon says of itself. */
export interface NativeInfo {
  readonly version: string;
  readonly compiler: string;
  readonly type: string;
  readonly sanitizers: string;
  readonly napi: number;
  readonly threads: number;
  readonly kernels: readonly KernelRow[];
}

/** Numbers that stand for element types in `numbers`. */
export const typeNumbers = { float32: 0, float16: 1, bfloat16: 2 } as const;

const addonName = 'lowrank_attention';

/** The folder of this package: the nearest one above this file with its package.json. */
export function packageRoot(): string {
  for (let folder = __dirname; ; folder = path.dirname(folder)) {
    const manifest = path.join(folder, 'package.json');
    if (fs.existsSync(manifest) && JSON.parse(fs.readFileSync(manifest, 'utf8')).name === 'lowrank-attention')
      return folder;
    if (folder === path.dirname(folder))
      throw new AttentionError('ERR_DEVICE', '', `no package.json of lowrank-attention above ${__dirname}`);
  }
}

function load(): Addon {
  const root = packageRoot();
  const looked: string[] = [];
  try {
    return bindings({ bindings: addonName, module_root: root }) as Addon;
  } catch (error) {
    const { tries } = error as { tries?: string[] };
    // A local build that is there and does not load is a fault to be seen, not to be stepped over.
    if (tries === undefined) throw unusable('the local build', error);
    looked.push(...tries);
  }
  const prebuilt = path.join(root, 'prebuilds', `${process.platform}-${process.arch}`, `${addonName}.node`);
  looked.push(prebuilt);
  if (fs.existsSync(prebuilt)) {
    try {
      return require(prebuilt) as Addon;
    } catch (error) {
      throw unusable(prebuilt, error);
    }
  }
  throw new AttentionError(
    'ERR_DEVICE',
    '',
    `no native addon of lowrank-attention for ${process.platform}-${process.arch}. Looked for:\n  ${looked.join('\n  ')}\n` +
      `To build it from a checkout of the source: sh scripts/setup && npm run build`,
  );
}

function unusable(what: string, cause: unknown): AttentionError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new AttentionError(
    'ERR_DEVICE',
    '',
    `the native addon of lowrank-attention does not load (${what}): ${reason}`,
    { cause },
  );
}

export const addon: Addon = load();
/** Frozen: `info()` hands out parts of it. */
export const nativeInfo: NativeInfo = JSON.parse(addon.info(), (_key, value) => Object.freeze(value)) as NativeInfo;
