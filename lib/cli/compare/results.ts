/** What a comparison finds: what `--json` prints, and what the tables and the page show. */
import type { SpectralMetrics } from '../../analysis/metrics';
import type { DataType } from '../../tensor';
import { wholeText } from '../numbers';
import type { Provenance } from '../provenance';
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

/** One value of a method's knob, for example 64 landmarks. */
export interface Setting {
  readonly knob: string;
  readonly value: number;
  /** For people: `64 landmarks`, `rank 64`. */
  readonly text: string;
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
  /** Exponent of the length in the time, over the three greatest lengths; undefined for a single one. */
  readonly slope?: number;
}

/** The singular values of one head's attention matrix. */
export interface HeadSpectrum {
  readonly head: number;
  /** The largest, descending. */
  readonly values: readonly number[];
  /** Σσ² of all, of which `values` may be a part. */
  readonly energy: number;
  readonly metrics: SpectralMetrics;
}

export interface Spectra {
  readonly length: number;
  /** Singular values computed; there are as many as the length. */
  readonly count: number;
  /** Whether they are those of whole matrices. If not, none exceeds the true one. */
  readonly exact: boolean;
  readonly heads: readonly HeadSpectrum[];
}

/** Variants of effective rank, as they are called by people. */
export const metrics: readonly {
  readonly title: string;
  readonly of: (metrics: SpectralMetrics) => number | undefined;
  /** Whether it is a number of components. */
  readonly whole: boolean;
  /** Whether it is but a lower bound where singular values are missing. */
  readonly bound: boolean;
}[] = [
  { title: 'effective rank (σ)', of: (of) => of.effectiveRankOfValues, whole: false, bound: true },
  { title: 'effective rank (σ²)', of: (of) => of.effectiveRankOfEnergies, whole: false, bound: true },
  { title: 'stable rank', of: (of) => of.stableRank, whole: false, bound: false },
  { title: 'participation ratio', of: (of) => of.participationRatio, whole: false, bound: true },
  { title: '90 % of σ²', of: (of) => of.componentsFor[0.9], whole: true, bound: false },
  { title: '95 % of σ²', of: (of) => of.componentsFor[0.95], whole: true, bound: false },
  { title: '99 % of σ²', of: (of) => of.componentsFor[0.99], whole: true, bound: false },
];

/** Every variant for one head, as text: bounds are marked, and what takes more values than there are is one as well. */
export function metricTexts({ metrics: of, values }: HeadSpectrum, complete: boolean): string[] {
  return metrics.map(({ of: read, whole, bound }) => {
    const value = read(of);
    if (value === undefined) return `> ${values.length}`;
    return `${bound && !complete ? '≥ ' : ''}${whole ? value : value.toFixed(1)}`;
  });
}

export interface CompareReport extends Provenance {
  readonly threads: number;
  readonly input: InputFacts;
  readonly rounds: number;
  readonly exact: { readonly time: Summary };
  readonly runs: readonly Run[];
  /** What must be known of methods to judge their runs; `name` is that of one or more. */
  readonly notes: readonly { readonly name: string; readonly note: string }[];
  readonly leftOut: readonly LeftOut[];
  /** Exact attention first. */
  readonly lengths: readonly LengthSeries[];
  readonly spectra: Spectra;
  readonly warnings: readonly string[];
}

export interface AnalyzeReport extends Provenance {
  readonly threads: number;
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

/** `Nyström, 64 landmarks` */
export function label({ name, setting }: { readonly name: string; readonly setting?: Setting }): string {
  return setting === undefined ? name : `${name}, ${setting.text}`;
}

/** `layer 0 of …: 4,096 positions, 8 heads of 64, float32` */
export function inputText({ source, length, heads, kvHeads, headDim, type }: InputFacts): string {
  const groups = heads === kvHeads ? '' : ` over ${kvHeads} key/value heads`;
  return `${source}: ${wholeText(length)} positions, ${heads} heads of ${headDim}${groups}, ${type}`;
}

/** What singular values were computed, and how. */
export function spectraNote({ length, count, exact }: Spectra): string {
  const part = count < length ? `the ${wholeText(count)} largest of ${wholeText(length)}` : `all ${wholeText(length)}`;
  const how = exact ? '' : ', by random projection, so that none exceeds the true one';
  return `From ${part} singular values of softmax(scale·QKᵀ)${how}.`;
}
