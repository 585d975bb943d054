/** Where queries, keys and values come from. */
import { readFile } from 'node:fs/promises';
import { float32Of } from '../../convert';
import { readNpy } from '../../files/npy';
import { Safetensors } from '../../files/safetensors';
import { randomNormal, type Tensor, tensor } from '../../index';
import { Usage } from '../arguments';
import { headsFirst, type Inputs, rows } from '../inputs';
import { layerInputs, maxPieces } from '../sentence-encoder/encoder';
import { Tokenizer } from '../sentence-encoder/tokenizer';
import { loadVocabulary, loadWeights } from '../sentence-encoder/weights';
import type { InputFacts } from './results';

/** One sequence: `[1, heads, length, dim]` each. Values are not needed where attention is only looked at. */
export interface Source {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v?: Tensor;
  readonly facts: InputFacts;
}

/** What the user can say, option by option. */
export interface SourceOptions {
  readonly q?: string;
  readonly k?: string;
  readonly v?: string;
  readonly tensors?: string;
  readonly names: readonly string[];
  readonly layout: 'bhld' | 'blhd';
  readonly model?: 'sentence-encoder';
  readonly text?: string;
  readonly layer: number;
  readonly random?: true;
  readonly n?: number;
  readonly heads: number;
  readonly kvHeads?: number;
  readonly dim: number;
  readonly threads: number;
}

interface Found {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v?: Tensor;
  readonly source: string;
  readonly notes: readonly string[];
}

/** @throws Usage, PackageMissing, AttentionError, errors of the file system */
export async function readSource(options: SourceOptions): Promise<Source> {
  const forms = [
    options.q !== undefined || options.k !== undefined || options.v !== undefined,
    options.tensors !== undefined,
    options.model !== undefined || options.text !== undefined,
    options.random !== undefined,
  ];
  if (forms.filter(Boolean).length !== 1) {
    throw new Usage(
      'say where queries, keys and values come from, in one of these ways:\n' +
        '  --q q.npy --k k.npy --v v.npy\n' +
        '  --tensors file.safetensors [--names q,k,v]\n' +
        '  --model sentence-encoder --text book.txt [--layer 1]\n' +
        '  --random [--n 4096] [--heads 8] [--dim 64]',
    );
  }
  const [npy, safetensors, model] = forms;
  const found = npy
    ? await fromNpy(options)
    : safetensors
      ? await fromSafetensors(options)
      : model
        ? await fromModel(options)
        : fromRandom(options);
  return checked(found, options);
}

async function fromNpy({ q, k, v }: SourceOptions): Promise<Found> {
  if (q === undefined || k === undefined) throw new Usage(`--${q === undefined ? 'q' : 'k'} is missing`);
  return {
    q: await readNpy(q),
    k: await readNpy(k),
    ...(v === undefined ? {} : { v: await readNpy(v) }),
    source: [q, k, ...(v === undefined ? [] : [v])].join(', '),
    notes: [],
  };
}

async function fromSafetensors({ tensors = '', names }: SourceOptions): Promise<Found> {
  const [q, k, v] = names;
  if (q === undefined || k === undefined) throw new Usage('--names are those of q, k and v, separated by commas');
  return await Safetensors.with(tensors, async (file) => ({
    q: await file.read(q),
    k: await file.read(k),
    ...(v === undefined ? {} : { v: await file.read(v) }),
    source: `${names.join(', ')} of ${tensors}`,
    notes: [],
  }));
}

async function fromModel({ model, text, layer, n, threads }: SourceOptions): Promise<Found> {
  if (model === undefined || text === undefined) throw new Usage('--model and --text go together');
  const found = await encoderInputs(await readFile(text, 'utf8'), {
    layer,
    threads,
    ...(n === undefined ? {} : { n }),
  });
  return { ...found, source: `layer ${layer} of the sentence encoder over ${text}` };
}

/**
 * What a layer of the sentence encoder makes of a text.
 *
 * @throws Usage if there is no such layer, or no text
 */
export async function encoderInputs(
  text: string,
  { layer, n, threads }: { readonly layer: number; readonly n?: number; readonly threads: number },
): Promise<Inputs & { readonly notes: readonly string[] }> {
  const weights = await loadWeights();
  if (layer >= weights.layers.length) throw new Usage(`--layer is from 0 to ${weights.layers.length - 1}`);
  const all = new Tokenizer(await loadVocabulary()).encode(text.replace(/\s+/g, ' ').trim());
  const ids = all.slice(0, n);
  if (ids.length === 0) throw new Usage('the text is empty');
  const part = ids.length < all.length ? `The first ${ids.length} of the text’s ${all.length} pieces. ` : '';
  const beyond =
    ids.length > maxPieces
      ? `The model was trained on ${maxPieces} positions; its sinusoidal signal of position goes on beyond them here.`
      : '';
  const notes = [`${part}${beyond}`.trim()].filter((note) => note !== '');
  return { ...(await layerInputs(weights, ids, layer, { threads })), notes };
}

function fromRandom({ n = 4096, heads, kvHeads = heads, dim }: SourceOptions): Found {
  if (heads % kvHeads !== 0) throw new Usage(`--heads ${heads} is no multiple of --kv-heads ${kvHeads}`);
  return {
    q: randomNormal([1, heads, n, dim], { seed: 1 }),
    k: randomNormal([1, kvHeads, n, dim], { seed: 2 }),
    v: randomNormal([1, kvHeads, n, dim], { seed: 3 }),
    source: 'normal random numbers, seeds 1 to 3',
    notes: ['Attention of random inputs is nearly uniform, and of higher rank than that of trained models.'],
  };
}

/** One sequence of as many keys as queries, all numbers finite, cut to --n. */
function checked({ source, notes, ...given }: Found, { layout, n, model }: SourceOptions): Source {
  const order = model === undefined ? layout : 'bhld';
  const q = oneSequence('q', given.q, order);
  const k = oneSequence('k', given.k, order);
  const v = given.v === undefined ? undefined : oneSequence('v', given.v, order);
  const [length, keys] = [q.dims[2] as number, k.dims[2] as number];
  if (keys !== length) throw new Usage(`this is about self-attention: q has ${length} positions, k has ${keys}`);
  if (n !== undefined && n > length) throw new Usage(`--n ${n} is more than the ${length} positions there are`);
  const shorter = n !== undefined && n < length;
  const cut = (of: Tensor) => (shorter ? rows(of, 0, n) : of);
  const used = { q: cut(q), k: cut(k), ...(v === undefined ? {} : { v: cut(v) }) };
  return {
    ...used,
    facts: factsOf(used, source, shorter ? [...notes, `The first ${n} of ${length} positions.`] : notes),
  };
}

export function factsOf(
  { q, k, v }: Pick<Source, 'q' | 'k' | 'v'>,
  source: string,
  notes: readonly string[],
): InputFacts {
  const [, heads, length, headDim] = q.dims as [number, number, number, number];
  const kvHeads = k.dims[1] as number;
  return { source, notes, heads, kvHeads, length, headDim, valueDim: v?.dims[3] ?? headDim, type: q.type };
}

/** `[length, dim]`, `[heads, length, dim]` or `[1, heads, length, dim]`, heads and positions in the other order for blhd. */
function oneSequence(name: string, { data, dims, type }: Tensor, layout: SourceOptions['layout']): Tensor {
  const given = dims.length === 2 ? (layout === 'bhld' ? [1, ...dims] : [dims[0], 1, dims[1]]) : dims;
  const full = (given.length === 3 ? [1, ...given] : given) as readonly number[];
  if (full.length !== 4 || full[0] !== 1 || full.includes(0)) {
    throw new Usage(
      `expected one sequence, [${layout === 'bhld' ? 'heads, length' : 'length, heads'}, dim], for ${name}, received [${dims.join(', ')}]`,
    );
  }
  const ordered = layout === 'bhld' ? tensor(data, full, type) : headsFirst(tensor(data, full, type));
  if (!float32Of(ordered).every(Number.isFinite)) throw new Usage(`${name} holds numbers that are not finite`);
  return ordered;
}
