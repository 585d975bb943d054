export {
  type AttendItem,
  type AttendOptions,
  attendBatch,
  attendBatchSync,
  KvCache,
  type KvCacheOptions,
} from './cache';
export type { CallOptions, Device } from './call';
export { cast, randomNormal } from './convert';
export { AttentionError, type AttentionErrorCode } from './errors';
export { type AttentionWithLse, attention, attentionSync, attentionWithLse, attentionWithLseSync } from './full';
export type { AttentionOptions, Layout, ScoreOptions } from './full-options';
export { type DeviceInfo, devices, type Info, info } from './info';
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
export { type MatmulOptions, matmul, matmulSync } from './matmul';
export { type MergeOptions, mergeAttention, mergeAttentionSync } from './merge';
export type { KernelRow } from './native';
export type { KeyMask } from './qkv';
export {
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
