/** What a comparison finds: what `--json` prints, and what the tables and the page show. */
import type { Info } from '../../info';
import type { DataType } from '../../tensor';
import type { Summary } from '../timing';

/** The queries, keys and values that were used. */
export interface InputFacts {
  /** Where they are from, for people. */
  readonly source: string;
  /** What must be known to judge them. */
  readonly notes: readonly string[];
  readonly heads: number;
  readonly kvHeads: number;
  readonly length: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly type: DataType;
}

/** Where and with what it was measured. */
export interface Provenance {
  readonly date: string;
  readonly package: Omit<Info, 'kernels'>;
  readonly node: string;
  readonly machine: {
    readonly platform: string;
    readonly cpu: string;
    readonly cores: number;
    readonly memoryGiB: number;
    readonly loadAverage: readonly number[];
  };
  readonly threads: number;
}

/** One value of a method's knob, for example 64 landmarks. */
export interface Setting {
  readonly knob: string;
  readonly value: number;
}

/** A method with its knob at one value. */
export interface Run {
  /** In the table of methods. */
  readonly method: string;
  readonly name: string;
  readonly setting?: Setting;
  /** Milliseconds a call, once what `preparationMs` is about is there. */
  readonly time: Summary;
  /** Milliseconds to make, from q and k, what the call works with: counts for every new input. Measured once. */
  readonly preparationMs?: number;
  /** Time of exact attention over that of a call, preparation included. */
  readonly speedup: number;
  /** Of the output against that of exact attention. */
  readonly error: { readonly relativeFrobenius: number; readonly maxAbs: number };
  /** Memory beside inputs and output, by formula. */
  readonly extraBytes: number;
  /** Whether no other run is both faster and nearer. */
  readonly onFront: boolean;
  /** What must be known to judge it. */
  readonly note?: string;
}

/** Milliseconds a call, preparation included. */
export function totalMs({ time, preparationMs = 0 }: Pick<Run, 'time' | 'preparationMs'>): number {
  return time.median + preparationMs;
}

/** What a method could not do. */
export interface LeftOut {
  readonly name: string;
  readonly setting?: Setting;
  readonly reason: string;
}

/** One method over several lengths. */
export interface LengthSeries {
  readonly method: string;
  readonly name: string;
  readonly setting?: Setting;
  /** Milliseconds a call, preparation included. */
  readonly points: readonly { readonly length: number; readonly ms: number }[];
  /** Exponent of the length in the time, between the two greatest lengths; undefined for less than two. */
  readonly slope?: number;
}

/** Variants of effective rank, each by a name of its own, as they are called by people. */
export const metricTitles = {
  effectiveRank: 'effective rank (σ)',
  energyRank: 'effective rank (σ²)',
  stableRank: 'stable rank',
  participationRatio: 'participation ratio',
  rank90: '90 % of σ²',
  rank95: '95 % of σ²',
  rank99: '99 % of σ²',
} as const;

export type MetricName = keyof typeof metricTitles;

/** The singular values of one head's attention matrix. */
export interface HeadSpectrum {
  readonly head: number;
  /** Descending. */
  readonly values: readonly number[];
  /** Σ σ² of all singular values, of which `values` may be a part. */
  readonly totalEnergy: number;
  /** Undefined where it takes more singular values than were computed. */
  readonly metrics: Readonly<Partial<Record<MetricName, number>>>;
}

/** All singular values there are are as many as the length; so many were computed. */
export interface Spectra {
  readonly length: number;
  readonly count: number;
  readonly heads: readonly HeadSpectrum[];
}

export interface CompareReport extends Provenance {
  readonly input: InputFacts;
  readonly rounds: number;
  readonly exact: { readonly time: Summary };
  readonly runs: readonly Run[];
  readonly leftOut: readonly LeftOut[];
  /** Exact attention first. */
  readonly lengths: readonly LengthSeries[];
  readonly spectra: Spectra;
  readonly warnings: readonly string[];
}

export interface AnalyzeReport extends Provenance {
  readonly input: InputFacts;
  readonly spectra: Spectra;
}

/** An attention matrix of one head, and what methods make of it: for the page only. */
export interface AttentionMaps {
  readonly head: number;
  readonly length: number;
  readonly maps: readonly {
    readonly name: string;
    readonly setting?: Setting;
    /** [length, length] */
    readonly weights: Float32Array;
    /** Of the matrix itself; undefined for the exact one. */
    readonly error?: number;
  }[];
}

/** `64 landmarks`, or nothing. */
export function settingText(setting: Setting | undefined): string {
  return setting === undefined ? '' : `${setting.value} ${setting.knob}`;
}

/** `Nyström, 64 landmarks` */
export function label({ name, setting }: { readonly name: string; readonly setting?: Setting }): string {
  return setting === undefined ? name : `${name}, ${settingText(setting)}`;
}
