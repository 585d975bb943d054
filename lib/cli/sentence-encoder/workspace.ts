import { type Matrix, matrix } from './weights';

/**
 * Memory for intermediate results, by name, kept from one batch to the next. With fresh memory for every product, page
 * faults and garbage collection took as long as all the arithmetic that is done in TypeScript.
 *
 * It belongs to one batch at a time.
 */
export class Workspace {
  private readonly buffers = new Map<string, Float32Array>();

  /** [rows, width] under a name; what was under that name before is overwritten. The contents are undefined. */
  matrix(name: string, rows: number, width: number): Matrix {
    const length = rows * width;
    let buffer = this.buffers.get(name);
    if (buffer === undefined || buffer.length < length) {
      buffer = new Float32Array(length);
      this.buffers.set(name, buffer);
    }
    return matrix(buffer.subarray(0, length), rows, width);
  }
}
