/**
 * The safetensors format (github.com/huggingface/safetensors, "Format"): the header's length in 8 bytes, little-endian, a
 * header in JSON, and the bytes of all tensors, one after another without gaps. What reading and writing share.
 */
import type { DataType } from '../tensor';

/** Longest header: the format's own limit, against files that would have all memory allocated. */
export const headerBytes = 100_000_000;

/** The one name in a header that is no tensor's: texts by name. */
export const metadataName = '__metadata__';

/** What a header says of a tensor, and where its data lies. */
export interface SafetensorsEntry {
  /** As the format names it: `'F32'`, `'BF16'`, `'I64'`… */
  readonly dtype: string;
  readonly dims: readonly number[];
  /** Bytes [begin, end) after the header. */
  readonly begin: number;
  readonly end: number;
}

const typesByName = [
  ['F32', 'float32'],
  ['F16', 'float16'],
  ['BF16', 'bfloat16'],
] as const satisfies readonly (readonly [string, DataType])[];

/** Element types of tensors by the format's names for them. */
export const readable: ReadonlyMap<string, DataType> = new Map(typesByName);

/** And the other way round. */
export const dtypes = Object.fromEntries(typesByName.map(([dtype, type]) => [type, dtype])) as Readonly<
  Record<DataType, string>
>;

/** Bytes of an element, for types of whole bytes. Others (F4, F6…) are known by their offsets alone. */
export const elementBytes: ReadonlyMap<string, number> = new Map(
  Object.entries({
    1: ['BOOL', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0'],
    2: ['U16', 'I16', 'F16', 'BF16'],
    4: ['U32', 'I32', 'F32'],
    8: ['U64', 'I64', 'F64', 'C64'],
  }).flatMap(([bytes, types]) => types.map((type) => [type, Number(bytes)] as const)),
);
