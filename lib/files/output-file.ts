import { randomBytes } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import path from 'node:path';

import { transferBytes } from './input-file';

/** Puts bytes at the end of a file that is being written. */
export type Append = (bytes: Uint8Array) => Promise<void>;

/**
 * Writes a file whole or not at all: under a name beside its own until all is on the disk, and with that removed should
 * anything fail. A file of that name is replaced in one step, and may be read meanwhile.
 *
 * @param signal stops it between two pieces, and nothing is left
 * @throws Error of the file system, the signal's reason, or whatever `write` throws
 */
export async function writeWhole(
  file: string,
  write: (append: Append) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const { dir, base } = path.parse(path.resolve(file));
  const partial = path.join(dir, `.${base}.${randomBytes(6).toString('hex')}.part`);
  const handle = await open(partial, 'wx');
  try {
    try {
      await write(async (bytes) => {
        for (let done = 0; done < bytes.length; ) {
          signal?.throwIfAborted();
          done += (await handle.write(bytes, done, Math.min(transferBytes, bytes.length - done))).bytesWritten;
        }
      });
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(partial, file);
  } catch (error) {
    await rm(partial, { force: true });
    throw error;
  }
}
