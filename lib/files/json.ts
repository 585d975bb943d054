import { readFile } from 'node:fs/promises';

import { expected } from '../errors';

/** An object of JSON: no list, no null. */
export type JsonObject = Readonly<Record<string, unknown>>;

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Reads a file of JSON. @throws AttentionError ERR_ARGUMENT; errors of the file system */
export async function readJson(path: string): Promise<unknown> {
  const text = await readFile(path, 'utf8');
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw expected('ERR_ARGUMENT', path, 'JSON', text, { cause });
  }
}
