import { type FileHandle, open } from 'node:fs/promises';

import { expected, Text } from '../errors';

/** Most bytes of one read or write: the system takes no more than 2³¹ − 1 at a time. */
export const transferBytes = 2 ** 30;

/** A file of which parts are read by position. */
export class InputFile {
  private constructor(
    readonly path: string,
    /** In bytes, when it was opened. */
    readonly size: number,
    private readonly handle: FileHandle,
  ) {}

  /** Opens a file, hands it to `use`, and closes it. @throws Error of the file system */
  static async with<Result>(path: string, use: (file: InputFile) => Promise<Result>): Promise<Result> {
    const handle = await open(path);
    try {
      return await use(new InputFile(path, (await handle.stat()).size, handle));
    } finally {
      await handle.close();
    }
  }

  /** Fills all of `target` from `position` on. @throws AttentionError ERR_ARGUMENT if the file ends before that */
  async fill(target: ArrayBufferView, position: number): Promise<void> {
    const bytes = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
    for (let done = 0; done < bytes.length; ) {
      const length = Math.min(bytes.length - done, transferBytes);
      const { bytesRead } = await this.handle.read(bytes, done, length, position + done);
      if (bytesRead === 0) {
        throw this.wrong(`at least ${position + bytes.length} bytes`, new Text(`a file of ${position + done}`));
      }
      done += bytesRead;
    }
  }

  /** The bytes [position, position + length). */
  async bytes(position: number, length: number): Promise<Buffer> {
    const end = position + length;
    // Before they are allocated: a length read from the file may be anything.
    if (end > this.size) throw this.wrong(`at least ${end} bytes`, new Text(`a file of ${this.size}`));
    const result = Buffer.alloc(length);
    await this.fill(result, position);
    return result;
  }

  /** The error of a file whose content is not as it should be. */
  wrong(what: string, received: unknown, options?: ErrorOptions): Error {
    return expected('ERR_ARGUMENT', this.path, what, received, options);
  }
}
