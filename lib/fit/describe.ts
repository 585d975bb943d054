import { type HeadDiversity, headDiversity, similarityOf } from '../analysis/heads';
import { checkMatrix } from '../analysis/matrix';
import { type SpectralMetrics, spectralMetrics } from '../analysis/metrics';
import { type CallOptions, checkDevice } from '../call';
import { checkOptions } from '../check';
import { expected } from '../errors';
import { eigenOf, float64, type Matrices } from '../linalg';
import { runStepsAsync, runStepsSync, type Steps, step } from '../steps';
import type { Tensor } from '../tensor';
import { type AttentionWeights, checkAttentionWeights } from '../weights';
import { matrices, type Run } from './algebra';
import { diagonalBlocks, gramOf, meansOf, momentOf, type SecondMoment, seenBy } from './moments';
import { checkNumbers, withBias } from './projections';

/** Options of {@link describeHeads}. */
export interface DescribeOptions extends Pick<CallOptions, 'threads' | 'signal' | 'device'> {
  /** Hidden states as they enter the projections, `[tokens, modelDim]`. Default none: uncorrelated ones of variance 1. */
  readonly calibration?: Tensor;
}

/** Principal components of keys or values. */
export interface ComponentsReport {
  /** Along each component, descending. */
  readonly standardDeviations: Float64Array;
  /** Undefined where nothing varies. */
  readonly metrics: SpectralMetrics | undefined;
}

/** Keys or values of a layer. */
export interface SideDescription {
  /** ‖E[k]‖² / E‖k‖² over all heads together: what a constant would explain. */
  readonly meanShare: number;
  readonly heads: readonly ComponentsReport[];
  /** Of all heads side by side: where they share directions it is far less than the heads' own together. */
  readonly joint: ComponentsReport;
}

/** What {@link describeHeads} tells of a layer. */
export interface HeadsDescription {
  /** Cosines of the heads' forms W_Q·W_Kᵀ, weighted by the moment of the hidden states, as `headSimilarity` has them. */
  readonly similarity: number[][];
  /** Undefined of one head. */
  readonly diversity: HeadDiversity | undefined;
  /** (heads − 1) / heads, which `diversity.centredOfHeads` cannot exceed. */
  readonly ceiling: number;
  readonly key: SideDescription;
  readonly value: SideDescription;
}

const optionNames: ReadonlySet<string> = new Set(['calibration', 'threads', 'signal', 'device']);

/**
 * How much the heads of a layer share, before anything is converted, on a worker thread and in float64: likeness of their
 * forms (rotary embedding is not seen), and principal components of keys and values (before rotation and normalisation).
 *
 * @throws AttentionError (as a rejection) ERR_SHAPE, ERR_TYPE, ERR_ARGUMENT (a number that is not finite, a head whose
 *   form is zero), ERR_DEVICE, ERR_MEMORY, ERR_ABORTED
 */
export async function describeHeads(weights: AttentionWeights, options?: DescribeOptions): Promise<HeadsDescription> {
  return await runStepsAsync(describeHeads, describeSteps(weights, options));
}

/** {@link describeHeads} on the calling thread. */
export function describeHeadsSync(weights: AttentionWeights, options?: DescribeOptions): HeadsDescription {
  return runStepsSync(describeHeadsSync, describeSteps(weights, options));
}

function* describeSteps(given: AttentionWeights, options: DescribeOptions | undefined): Steps<HeadsDescription> {
  const { weights, shape } = checkAttentionWeights('weights', given);
  const { calibration, device, ...rest }: DescribeOptions = checkOptions('options', options, optionNames);
  checkDevice(device);
  const run: Run = rest;
  const hidden = calibration === undefined ? null : checkMatrix('calibration', calibration, 1);
  if (hidden !== null && hidden.columns !== shape.modelDim)
    throw expected('ERR_SHAPE', 'calibration', `${shape.modelDim} columns, modelDim`, [hidden.rows, hidden.columns]);
  checkNumbers('weights', weights);
  const { heads, kvHeads, headDim } = shape;
  const moment = yield* momentOf(hidden, 0, run);
  const query = yield* momentsOf(withBias('weights.query', weights.query, weights.queryBias), moment, run);
  const key = yield* momentsOf(withBias('weights.key', weights.key, weights.keyBias), moment, run);
  const value = yield* momentsOf(withBias('weights.value', weights.value, weights.valueBias), moment, run);
  const similarity = similarityOf(query.gram.data, key.gram.data, { heads, kvHeads, headDim }, 'weights.query');
  return {
    similarity,
    diversity: heads === 1 ? undefined : headDiversity(similarity),
    ceiling: (heads - 1) / heads,
    key: yield* describe(key, kvHeads, run),
    value: yield* describe(value, kvHeads, run),
  };
}

/** E[y·yᵀ] and E[y] of what a projection gives. */
interface Moments {
  readonly gram: Matrices;
  readonly mean: Float64Array;
}

function* momentsOf(weights: Matrices, moment: SecondMoment, run: Run): Steps<Moments> {
  const seen = yield* seenBy(moment, weights, run);
  return { gram: yield* gramOf(moment, seen, 1, run), mean: meansOf(moment, seen) };
}

function* describe({ gram, mean }: Moments, heads: number, run: Run): Steps<SideDescription> {
  const size = gram.rows;
  const covariance = matrices(float64('weights', size * size), 1, size, size);
  let [energy, ofMean] = [0, 0];
  for (let i = 0; i < size; i++) {
    energy += gram.data[i * (size + 1)] as number;
    ofMean += (mean[i] as number) ** 2;
    for (let j = 0; j < size; j++)
      covariance.data[i * size + j] = (gram.data[i * size + j] as number) - (mean[i] as number) * (mean[j] as number);
  }
  const [joint] = yield* componentsOf(covariance, run);
  return {
    meanShare: energy > 0 ? ofMean / energy : 0,
    heads: yield* componentsOf(diagonalBlocks(covariance, heads), run),
    joint: joint as ComponentsReport,
  };
}

/** Variances below this share of the largest are rounding. */
const rounding = 1e-14;

function* componentsOf(covariances: Matrices, run: Run): Steps<ComponentsReport[]> {
  const { batch, rows: size } = covariances;
  const { values } = yield* step(eigenOf(covariances, false, run));
  return Array.from({ length: batch }, (_, item) => {
    const variances = values.slice(item * size, (item + 1) * size).reverse();
    const largest = Math.max(0, variances[0] as number);
    const standardDeviations = variances.map((variance) => (variance > rounding * largest ? Math.sqrt(variance) : 0));
    return { standardDeviations, metrics: largest > 0 ? spectralMetrics(standardDeviations) : undefined };
  });
}
