/** Bytes of the two headers of a bitmap. */
const headers = 14 + 40;

/**
 * A picture of up to 256 colours as the address of an `img`: an uncompressed bitmap, the one format of all browsers that
 * needs no encoder.
 *
 * @param pixels indices of colours, row by row from the top
 * @param colors [red, green, blue] each, from 0 to 255
 */
export function bitmapUrl(
  pixels: Uint8Array,
  width: number,
  colors: readonly (readonly [number, number, number])[],
): string {
  const height = pixels.length / width;
  // Rows are padded to a multiple of four bytes.
  const stride = Math.ceil(width / 4) * 4;
  const start = headers + 4 * colors.length;
  const file = Buffer.alloc(start + stride * height);
  file.write('BM', 'latin1');
  file.writeUInt32LE(file.length, 2);
  file.writeUInt32LE(start, 10);
  file.writeUInt32LE(40, 14);
  file.writeInt32LE(width, 18);
  // Below zero: the first row is the top one.
  file.writeInt32LE(-height, 22);
  file.writeUInt16LE(1, 26);
  file.writeUInt16LE(8, 28);
  file.writeUInt32LE(colors.length, 46);
  for (const [index, [red, green, blue]] of colors.entries()) {
    file.set([blue, green, red, 0], headers + 4 * index);
  }
  for (let row = 0; row < height; row++) {
    file.set(pixels.subarray(row * width, (row + 1) * width), start + row * stride);
  }
  return `data:image/bmp;base64,${file.toString('base64')}`;
}
