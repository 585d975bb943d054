import { withPackage } from '../installed';

/** The parts of onnxruntime-node used here. Declared by hand: the package is the user's, and may not be installed. */
export interface OnnxTensor {
  readonly data: Float32Array | Uint16Array | Int32Array | Uint8Array | BigInt64Array;
  readonly dims: readonly number[];
  readonly type: string;
}

export type Feeds = Readonly<Record<string, OnnxTensor>>;

export interface OnnxSession {
  run(
    feeds: Feeds,
    fetches?: Readonly<Record<string, OnnxTensor | null>>,
  ): Promise<Readonly<Record<string, OnnxTensor>>>;
  release(): Promise<void>;
}

interface OnnxModule {
  readonly Tensor: new (type: string, data: OnnxTensor['data'], dims: readonly number[]) => OnnxTensor;
  readonly InferenceSession: { create(model: Uint8Array, options: object): Promise<OnnxSession> };
}

/** onnxruntime-node as found from the user's project, or else from this package's own. */
export class Onnxruntime {
  readonly name = 'onnxruntime-node';

  private constructor(
    readonly version: string,
    /** Of its main file. */
    readonly path: string,
    private readonly module: OnnxModule,
  ) {}

  /** @throws PackageMissing saying how to install it */
  static load(): Onnxruntime {
    return withPackage(
      'onnxruntime-node',
      (require) => {
        const { version } = require('onnxruntime-node/package.json') as { version: string };
        return new Onnxruntime(version, require.resolve('onnxruntime-node'), require('onnxruntime-node') as OnnxModule);
      },
      // Its install script downloads what the CPU does not need.
      '--ignore-scripts onnxruntime-node',
    );
  }

  tensor(type: string, data: OnnxTensor['data'], dims: readonly number[]): OnnxTensor {
    return new this.module.Tensor(type, data, dims);
  }

  int32(...values: number[]): OnnxTensor {
    return this.tensor('int32', Int32Array.from(values), [values.length]);
  }

  /**
   * A session on the CPU.
   *
   * @param spinning whether its threads busy-wait for the next call (its default, and what a user gets)
   */
  async session(model: Uint8Array, threads: number, spinning = true): Promise<OnnxSession> {
    return await this.module.InferenceSession.create(model, {
      executionProviders: ['cpu'],
      graphOptimizationLevel: 'all',
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      ...(spinning
        ? {}
        : { extra: { session: { intra_op: { allow_spinning: '0' }, inter_op: { allow_spinning: '0' } } } }),
    });
  }
}
