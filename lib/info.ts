import os from 'node:os';

import { noCuda } from './call';
import { type KernelRow, nativeInfo } from './native';

/** What this installation is and what it can do on this machine. */
export interface Info {
  /** Version of the package. */
  readonly version: string;
  readonly build: {
    /** Compiler and its version. */
    readonly compiler: string;
    /** CMake's build type. */
    readonly type: string;
    /** CUDA toolkit the GPU kernels were built with, or why there are none. */
    readonly cuda: string;
    /** Node-API version. */
    readonly napi: number;
    /** Sanitizers built in; empty in a release. */
    readonly sanitizers: string;
  };
  readonly cpu: { readonly name: string; readonly cores: number };
  /** Most threads a call uses. */
  readonly threads: number;
  /** Every kernel that was built, fastest first. */
  readonly kernels: readonly KernelRow[];
}

/** A place where calls can run. */
export interface DeviceInfo {
  /** As the option `device` takes it. */
  readonly name: string;
  readonly available: boolean;
  /** Why it is not available. */
  readonly reason?: string;
  /** Model name, where known. */
  readonly description?: string;
}

/** The version, the build, and the kernel table. */
export function info(): Info {
  const { version, compiler, type, sanitizers, napi, threads, kernels } = nativeInfo;
  return {
    version,
    build: { compiler, type, cuda: noCuda, napi, sanitizers },
    cpu: { name: os.cpus()[0]?.model.trim() ?? 'unknown', cores: threads },
    threads,
    kernels,
  };
}

/** The devices there are, and why a GPU is not used. */
export function devices(): DeviceInfo[] {
  return [
    { name: 'cpu', available: true, description: info().cpu.name },
    { name: 'cuda', available: false, reason: noCuda },
  ];
}
