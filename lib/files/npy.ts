/**
 * NumPy's file format, one array a file: magic, version, and a Python dictionary before the elements
 * (numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1.0 to 3.0).
 */
import { checkDims } from '../check';
import { expected, Text } from '../errors';
import { allocate, type DataType, type Tensor } from '../tensor';
import { InputFile } from './input-file';

const magic = Buffer.from('\x93NUMPY', 'latin1');

/** NumPy itself has no bfloat16: that of ml_dtypes is written as two raw bytes. */
const typesByDescr: ReadonlyMap<string, DataType> = new Map([
  ['<f4', 'float32'],
  ['<f2', 'float16'],
  ['<V2', 'bfloat16'],
  ['|V2', 'bfloat16'],
]);

/** An open `.npy` file. */
export interface Npy {
  readonly dims: readonly number[];
  readonly type: DataType;
  /** Reads all of it, or the item of a number along the first axis. @throws AttentionError ERR_MEMORY */
  readonly read: (item?: number) => Promise<Tensor>;
}

/**
 * Opens a `.npy` file, hands it to `use`, and closes it. Elements are float32, float16 (held in a `Uint16Array`) or
 * bfloat16, in C order, little-endian, as they lie in the file.
 *
 * @throws AttentionError ERR_ARGUMENT for what is no such file, ERR_TYPE for other element types, ERR_UNSUPPORTED for
 *   Fortran order, ERR_SHAPE; errors of the file system as they are
 */
export async function withNpy<Result>(path: string, use: (array: Npy) => Promise<Result>): Promise<Result> {
  return await InputFile.with(path, async (file) => {
    const { header, dataStart } = await readHeader(file);
    const { descr, fortranOrder, shape } = parseHeader(file, header);
    const type = typesByDescr.get(descr);
    if (type === undefined) {
      throw expected('ERR_TYPE', path, "elements '<f4', '<f2' or, for bfloat16, '<V2'", descr);
    }
    const dims = checkDims(path, shape);
    if (fortranOrder) throw expected('ERR_UNSUPPORTED', path, 'elements in C order', new Text('Fortran order'));

    const bytesOf = (extents: readonly number[]): number =>
      extents.reduce((product, extent) => product * extent, type === 'float32' ? 4 : 2);
    // More would be a second array, which no one is to miss.
    if (file.size - dataStart !== bytesOf(dims)) {
      throw file.wrong(`${bytesOf(dims)} bytes of elements for [${dims.join(', ')}]`, file.size - dataStart);
    }
    const read = async (item?: number): Promise<Tensor> => {
      const extents = item === undefined ? dims : dims.slice(1);
      const tensor = allocate(path, extents, type);
      await file.fill(tensor.data as Float32Array | Uint16Array, dataStart + (item ?? 0) * bytesOf(extents));
      return tensor;
    };
    return await use({ dims, type, read });
  });
}

/** Reads a `.npy` file. @throws as {@link withNpy}, ERR_MEMORY */
export async function readNpy(path: string): Promise<Tensor> {
  return await withNpy(path, ({ read }) => read());
}

async function readHeader(file: InputFile): Promise<{ header: string; dataStart: number }> {
  const start = await file.bytes(0, Math.min(file.size, 12));
  if (!start.subarray(0, 6).equals(magic)) {
    throw file.wrong('a .npy file, which begins with \\x93NUMPY', start.subarray(0, 6).toString('latin1'));
  }
  const version = start[6] as number;
  if (start.length < 12 || version < 1 || version > 3 || start[7] !== 0) {
    throw file.wrong('a .npy file of version 1.0, 2.0 or 3.0', new Text(`version ${version}.${start[7]}`));
  }
  const lengthBytes = version === 1 ? 2 : 4;
  const length = start.readUIntLE(8, lengthBytes);
  const headerStart = 8 + lengthBytes;
  const header = await file.bytes(headerStart, length);
  return { header: header.toString(version === 3 ? 'utf8' : 'latin1'), dataStart: headerStart + length };
}

interface Header {
  readonly descr: string;
  readonly fortranOrder: boolean;
  readonly shape: readonly number[];
}

/** One entry of the dictionary, its value told apart by its first character. */
const entry = /\s*(['"])(\w+)\1\s*:\s*('[^']*'|"[^"]*"|True|False|\([\d\s,]*\))\s*(?:,|(?=\s*\}))/y;

/** The tuple of extents; Python needs the comma after a single one. */
const tuple = /^\(\s*(?:(?:0|[1-9]\d*)\s*,\s*)*(?:(?:0|[1-9]\d*)\s*)?\)$/;

function parseHeader(file: InputFile, header: string): Header {
  const malformed = () =>
    file.wrong("a header { 'descr': '…', 'fortran_order': False, 'shape': (…) } of plain elements", header);
  const text = header.trim();
  if (!text.startsWith('{') || !text.endsWith('}')) throw malformed();
  const found = new Map<string, string>();
  entry.lastIndex = 1;
  while (!/^\s*\}$/.test(text.slice(entry.lastIndex, entry.lastIndex + 100))) {
    const match = entry.exec(text);
    if (match === null) throw malformed();
    const [, , name, value] = match as unknown as [string, string, string, string];
    if (found.has(name)) throw file.wrong(`one '${name}' in the header`, new Text('two'));
    found.set(name, value);
  }
  const [descr, order, shape] = ['descr', 'fortran_order', 'shape'].map((name) => found.get(name));
  const complete = found.size === 3 && descr !== undefined && order !== undefined && shape !== undefined;
  if (!complete || !/^['"]/.test(descr) || !/^(True|False)$/.test(order) || !tuple.test(shape)) throw malformed();
  return {
    descr: descr.slice(1, -1),
    fortranOrder: order === 'True',
    shape: (shape.match(/\d+/g) ?? []).map(Number),
  };
}
