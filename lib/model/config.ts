/**
 * What a `.safetensors` file does not say of a model, as Hugging Face's `config.json` beside it does
 * (huggingface.co/docs/transformers, PretrainedConfig).
 */
import { dirname, join } from 'node:path';

import { expected, Text } from '../errors';
import { isObject, type JsonObject, readJson } from '../files/json';
import { type Rope, ropeFrequencies } from '../rope';

/**
 * Kinds of models whose heads are rotated as a whole, half against half, in every layer, at `rope_theta`. Others rotate a
 * part of a head, neighbours against each other, or not in all layers, which no field tells for certain.
 */
const plainRopes: readonly unknown[] = ['llama', 'mistral', 'qwen2', 'qwen3'];

/** What a config.json says of attention; undefined is what it does not. */
export interface ModelConfig {
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly normEpsilon?: number;
  /** @throws AttentionError ERR_UNSUPPORTED, ERR_ARGUMENT where it cannot be told from this file */
  readonly rope: (headDim: number) => Rope;
  /** @throws AttentionError ERR_UNSUPPORTED where heads are not rotated as a whole */
  readonly checkRotatedWhole: (headDim: number) => void;
}

/** Reads the config.json beside a file, if there is one. @throws AttentionError ERR_ARGUMENT; errors of the file system */
export async function readConfig(modelPath: string): Promise<ModelConfig | undefined> {
  const path = join(dirname(modelPath), 'config.json');
  let all: unknown;
  try {
    all = await readJson(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
  if (!isObject(all)) throw expected('ERR_ARGUMENT', path, 'an object', all);
  // Models of more than text keep their language model's fields by themselves.
  const config = isObject(all.text_config) ? all.text_config : all;
  const [heads, kvHeads, headDim] = ['num_attention_heads', 'num_key_value_heads', 'head_dim'].map((name) =>
    optional(config, name, (value) => Number.isSafeInteger(value) && value >= 1),
  );
  const normEpsilon = optional(config, 'rms_norm_eps', (value) => value >= 0);
  return {
    ...(heads === undefined ? {} : { heads }),
    ...(kvHeads === undefined ? {} : { kvHeads }),
    ...(headDim === undefined ? {} : { headDim }),
    ...(normEpsilon === undefined ? {} : { normEpsilon }),
    rope: (dim) => ropeOf(config, dim),
    checkRotatedWhole: (dim) => checkRotatedWhole(config, dim),
  };
}

/** A number that may be missing or null. */
function optional(config: JsonObject, name: string, fits: (value: number) => boolean): number | undefined {
  const value = config[name];
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'number' || !fits(value)) throw expected('ERR_ARGUMENT', name, 'a number that can be', value);
  return value;
}

function ropeOf(config: JsonObject, headDim: number): Rope {
  const kind = config.model_type;
  if (!plainRopes.includes(kind)) {
    const known = `one of ${plainRopes.join(', ')}, or base and pairing as options`;
    throw expected('ERR_UNSUPPORTED', 'model_type', known, kind);
  }
  // Newer versions keep the base and the scaling in one place.
  const nested = isObject(config.rope_parameters) ? config.rope_parameters : undefined;
  const base = optional(nested ?? config, 'rope_theta', (value) => value > 0);
  if (base === undefined) throw expected('ERR_ARGUMENT', 'rope_theta', 'a number, or the base as an option', base);
  checkRotatedWhole(config, headDim);
  const frequencies = ropeFrequencies(headDim, base);
  return { frequencies: scaled(frequencies, nested ?? config.rope_scaling), pairing: 'half' };
}

/** Fields by which configurations say how much of a head is rotated, and what they say where it is all of it. */
const rotatedParts = (headDim: number) =>
  [
    ['partial_rotary_factor', 1],
    ['rotary_pct', 1],
    ['rotary_dim', headDim],
  ] as const;

/** How the elements of a part pair up no such field tells, and it is not as those of whole heads: docs/converting.md. */
function checkRotatedWhole(config: JsonObject, headDim: number): void {
  const nested = isObject(config.rope_parameters) ? config.rope_parameters : {};
  for (const [name, whole] of rotatedParts(headDim)) {
    for (const fields of [config, nested]) {
      const part = optional(fields, name, () => true);
      if (part !== undefined && part !== whole)
        throw expected('ERR_UNSUPPORTED', name, `${whole}, heads that are rotated whole,`, part);
    }
  }
}

/** Frequencies as a model's longer context has them (transformers, modeling_rope_utils.py). */
function scaled(frequencies: Float64Array, scaling: unknown): Float64Array {
  if (scaling === undefined || scaling === null) return frequencies;
  const fields = isObject(scaling) ? scaling : {};
  const kind = fields.rope_type ?? fields.type;
  if (kind === 'default') return frequencies;
  const field = (name: string): number => {
    const value = optional(fields, name, (number) => number > 0);
    if (value === undefined) throw expected('ERR_ARGUMENT', `rope_scaling.${name}`, 'a number > 0', value);
    return value;
  };
  if (kind === 'linear') {
    const factor = field('factor');
    return frequencies.map((frequency) => frequency / factor);
  }
  if (kind !== 'llama3') {
    throw expected('ERR_UNSUPPORTED', 'rope_scaling', "null or rope_type 'default', 'linear' or 'llama3'", shown(kind));
  }
  const [factor, low, high] = [field('factor'), field('low_freq_factor'), field('high_freq_factor')];
  const context = field('original_max_position_embeddings');
  if (high <= low) throw expected('ERR_ARGUMENT', 'rope_scaling.high_freq_factor', `more than ${low}`, high);
  return frequencies.map((frequency) => {
    // Turns within the context the model was first trained on: fast pairs stay, slow ones are slowed, with a blend between.
    const turns = (context * frequency) / (2 * Math.PI);
    const share = Math.min(1, Math.max(0, (turns - low) / (high - low)));
    return (1 - share) * (frequency / factor) + share * frequency;
  });
}

function shown(kind: unknown): unknown {
  return typeof kind === 'string' ? new Text(`'${kind}'`) : kind;
}
