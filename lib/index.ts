export { principalAngles, principalAnglesSync } from './analysis/angles';
export { linearCka, linearCkaSync } from './analysis/cka';
export {
  type ApproximationError,
  type AttentionRowKl,
  approximationError,
  attentionRowKl,
} from './analysis/error';
export {
  type HeadDiversity,
  headDiversity,
  headSimilarity,
  headSimilaritySync,
} from './analysis/heads';
export type { AnalysisOptions } from './analysis/matrix';
export { type SpectralMetrics, spectralMetrics } from './analysis/metrics';
export { type Pca, type PcaOptions, pca, pcaSync } from './analysis/pca';
export { type Spectrum, type SpectrumOptions, spectrum, spectrumSync } from './analysis/spectrum';
export { attentionLayer } from './attention-layer';
export { KvCache } from './cache';
export type { AttendOptions } from './cache-attend';
export {
  type AttendItem,
  attendBatch,
  attendBatchSync,
  attendBatchWithLse,
  attendBatchWithLseSync,
} from './cache-batch';
export type { CallOptions, Device } from './call';
export { cast, randomNormal } from './convert';
export { AttentionError, type AttentionErrorCode } from './errors';
export { type FavorMatrixOptions, favorMatrix } from './favor';
export {
  type CosformerOptions,
  cosformer,
  elu,
  type FavorOptions,
  type FeatureMap,
  type FeatureWeights,
  favor,
  type HedgehogOptions,
  hedgehog,
  identity,
  type ReluOptions,
  relu,
  taylor,
} from './features';
export type { Gauge } from './fit/als';
export {
  type ComponentsReport,
  type DescribeOptions,
  describeHeads,
  describeHeadsSync,
  type HeadsDescription,
  type SideDescription,
} from './fit/describe';
export { fitLrkv, fitLrkvSync, type LrkvFit } from './fit/fit';
export type { FitOptions, FitProgress, GaugeOption } from './fit/options';
export type {
  LrkvHeadReport,
  LrkvLayerReport,
  LrkvRatios,
  LrkvReport,
  LrkvSideReport,
} from './fit/report';
export { type AttentionWithLse, attention, attentionSync, attentionWithLse, attentionWithLseSync } from './full';
export type { AttentionOptions, Layout, ScoreOptions } from './full-options';
export { type DeviceInfo, devices, type Info, info } from './info';
export type { AttentionLayer, ForwardOptions, LayerCacheOptions, LayerOptions, StepOptions } from './layer';
export { type LinearAttentionOptions, linearAttention, linearAttentionSync } from './linear';
export type { LinearMethod, UpdateRule } from './linear-call';
export {
  type LinearAppendOptions,
  type LinearAttendOptions,
  LinearState,
  type LinearStateOptions,
  type UpdateInputs,
} from './linear-state';
export {
  type LinformerOptions,
  type LinformerProjections,
  linformerAttention,
  linformerAttentionSync,
} from './linformer';
export {
  type LinformerAppendOptions,
  type LinformerAttendOptions,
  LinformerState,
  type LinformerStateOptions,
} from './linformer-state';
export {
  type AttentionFactors,
  attentionFactors,
  attentionFactorsSync,
  type FactorOptions,
  type LowRankFactors,
  lowRankAttention,
  lowRankAttentionSync,
  type SketchOptions,
} from './lowrank';
export {
  type LrkvOptions,
  lrkvAttention,
  lrkvAttentionSync,
  lrkvAttentionWithLse,
  lrkvAttentionWithLseSync,
} from './lrkv';
export { LrkvCache, type LrkvCacheOptions } from './lrkv-cache';
export type { LrkvAppendOptions, LrkvProjections } from './lrkv-hidden';
export { lrkvLayer } from './lrkv-layer';
export type { LrkvModel, RopeMode } from './lrkv-model';
export type { LrkvRows } from './lrkv-rows';
export { type MatmulOptions, matmul, matmulSync } from './matmul';
export { type MergeOptions, mergeAttention, mergeAttentionSync } from './merge';
export { type ModelOptions, readAttentionWeights, readLrkvWeights } from './model/read';
export { type WriteLrkvOptions, writeLrkvWeights } from './model/write';
export type { KernelRow } from './native';
export { type LandmarkIndices, type NystromOptions, nystromAttention, nystromAttentionSync } from './nystrom';
export type { KvCacheOptions } from './paged-cache';
export { type Pairing, type RmsNormOptions, type Rope, ropeFrequencies } from './rope';
export { type RotaryOptions, rotary, rotarySync } from './rotary';
export {
  type BoolTensor,
  type DataType,
  type Float16ArrayLike,
  type MaskTensor,
  type RandomNormalOptions,
  type Tensor,
  type TensorData,
  type TensorOf,
  tensor,
  zeros,
} from './tensor';
export type { AttentionWeights, LrkvWeights } from './weights';
