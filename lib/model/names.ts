/**
 * What the tensors of attention layers are called in `.safetensors` files. A layer is all that begins with
 * `<stack>layers.<N>.self_attn.` or `<stack>layers.<N>.attention.`, its prefix; the stack is whatever a model puts before,
 * for example `model.`. After the prefix a part has one of two names:
 *
 * - that of Hugging Face's Llama, Mistral and Qwen: `q_proj.weight`, `k_proj.weight`, `v_proj.weight`, `o_proj.weight`,
 *   each [out, in], with their `….bias`; `q_norm.weight` and `k_norm.weight`, the gains of QK-norm, [headDim];
 * - our own, which is the name it has in `AttentionWeights` or `LrkvWeights`, each [in, out] as there: `query`, `key`,
 *   `value`, `output`, `queryBias`…, `keyBase`, `keyDown`, `keyUp`, `keyGauge`, `keyBaseBias`, `keyDownBias`, the same of
 *   the value; and `queryNorm` and `keyNorm` for those gains.
 *
 * Converting replaces `key`, `value` and their biases by the parts of LRKV under the same prefix, and nothing else.
 */
import { expected, Text } from '../errors';

/** Parts that both kinds of layers have. */
export const sharedParts = ['query', 'output', 'queryBias', 'outputBias'] as const;

/** Parts that conversion replaces. */
export const keyValueParts = ['key', 'value', 'keyBias', 'valueBias'] as const;

/** What it replaces them by. Ranks and all that is no tensor stand in the file's metadata: see metadata.ts. */
export const lrkvParts = [
  'keyBase',
  'keyDown',
  'keyUp',
  'keyGauge',
  'keyBaseBias',
  'keyDownBias',
  'valueBase',
  'valueDown',
  'valueUp',
  'valueGauge',
  'valueBaseBias',
  'valueDownBias',
] as const;

/** Gains of QK-norm. */
export const normParts = ['queryNorm', 'keyNorm'] as const;

export type KeyValuePart = (typeof keyValueParts)[number];
export type LrkvPart = (typeof lrkvParts)[number];
export type Part = (typeof sharedParts)[number] | (typeof normParts)[number] | KeyValuePart | LrkvPart;

interface Naming {
  readonly part: Part;
  /** Whether the matrix lies as [out, in]. */
  readonly transposed: boolean;
}

/** Parts by what stands after the prefix. */
const namings: ReadonlyMap<string, Naming> = new Map<string, Naming>([
  ...[...sharedParts, ...keyValueParts, ...lrkvParts, ...normParts].map(
    (part) => [part, { part, transposed: false }] as const,
  ),
  ...(['query', 'key', 'value', 'output'] as const).flatMap((part) => {
    const projection = `${part[0]}_proj`;
    return [
      [`${projection}.weight`, { part, transposed: true }],
      [`${projection}.bias`, { part: `${part}Bias`, transposed: false }],
    ] as const;
  }),
  ['q_norm.weight', { part: 'queryNorm', transposed: false }],
  ['k_norm.weight', { part: 'keyNorm', transposed: false }],
]);

/** Names of one matrix for queries, keys and values, as of Phi-3, GPT-NeoX and Baichuan: how its parts lie none tells. */
const fusedName = /^(qkv_proj|query_key_value|W_pack|Wqkv|qkv|c_attn|in_proj)(\.weight|_weight)?$/;

const layerName = /^((?:.*\.)?)layers\.(\d+)\.(?:self_attn|attention)\./;

/** A part of a layer as it stands in a file. */
export interface NamedPart extends Naming {
  readonly name: string;
}

/** An attention layer of a file. */
export interface NamedLayer {
  /** N of `layers.N`. */
  readonly index: number;
  readonly prefix: string;
  readonly parts: ReadonlyMap<Part, NamedPart>;
}

/** What is looked for, for messages. */
const looked =
  '`…layers.N.self_attn.{q,k,v,o}_proj.weight` of Hugging Face or `…layers.N.attention.{query,key,value,output}`';

/**
 * Finds the attention layers among a file's tensors.
 *
 * @param stack which of them, where a model has several stacks of layers: what stands before `layers.`
 * @returns ascending by index
 * @throws AttentionError ERR_ARGUMENT where there are none, several stacks, or one part under two names; ERR_UNSUPPORTED
 *   where queries, keys and values are one matrix
 */
export function findLayers(path: string, names: Iterable<string>, stack?: string): NamedLayer[] {
  const all = [...names];
  const stacks = new Map<string, Map<string, { index: number; parts: Map<Part, NamedPart> }>>();
  const fused = new Map<string, string>();
  for (const name of all) {
    const [prefix, before, index] = layerName.exec(name) ?? [];
    if (prefix === undefined || before === undefined) continue;
    const rest = name.slice(prefix.length);
    if (fusedName.test(rest) && !fused.has(before)) fused.set(before, name);
    const naming = namings.get(rest);
    if (naming === undefined) continue;
    const layers = stacks.get(before) ?? new Map();
    stacks.set(before, layers);
    const layer = layers.get(prefix) ?? { index: Number(index), parts: new Map<Part, NamedPart>() };
    layers.set(prefix, layer);
    const other: NamedPart | undefined = layer.parts.get(naming.part);
    if (other !== undefined) throw expected('ERR_ARGUMENT', name, `one of it and ${other.name}`, new Text('both'));
    layer.parts.set(naming.part, { ...naming, name });
  }
  const chosen = stack ?? [...stacks.keys(), ...fused.keys()][0];
  const whole = chosen === undefined ? undefined : fused.get(chosen);
  if (whole !== undefined) {
    const what = 'matrices of queries, keys and values by themselves';
    throw expected('ERR_UNSUPPORTED', whole, what, new Text('one of all three'));
  }
  const layers = stacks.get(chosen as string);
  if (layers === undefined) {
    const some = all.length === 0 ? 'no tensors' : `${all.slice(0, 6).join(', ')}${all.length > 6 ? ', …' : ''}`;
    const which = stack === undefined ? looked : `${looked} after '${stack}'`;
    throw expected('ERR_ARGUMENT', path, `attention layers ${which}`, new Text(some));
  }
  if (stack === undefined && stacks.size > 1) {
    const found = [...stacks.keys()].map((name) => `'${name}'`).join(', ');
    throw expected('ERR_ARGUMENT', 'stack', 'which stack of layers is meant', new Text(`none of ${found}`));
  }
  return [...layers].map(([prefix, layer]) => ({ prefix, ...layer })).sort((a, b) => a.index - b.index);
}

/** The part a layer must have. @throws AttentionError ERR_ARGUMENT */
export function partOf(layer: NamedLayer, part: Part): NamedPart {
  const found = layer.parts.get(part);
  if (found !== undefined) return found;
  const names = [...layer.parts.values()].map(({ name }) => name.slice(layer.prefix.length));
  const wanted = [...namings].filter(([, naming]) => naming.part === part).map(([name]) => name);
  throw expected('ERR_ARGUMENT', layer.prefix, wanted.join(' or '), new Text(names.join(', ')));
}
