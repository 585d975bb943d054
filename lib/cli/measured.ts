import type { Contender } from './contender';
import type { Case } from './suite';
import type { Summary } from './timing';

/** What came out for one contender. */
export interface Row {
  readonly name: string;
  readonly side: Contender['side'];
  readonly unit: 'ms' | 'MiB';
  readonly value: Summary;
  /** Calls in one timed turn. */
  readonly calls?: number;
  /** Largest relative error of the answer that was checked before timing. */
  readonly error?: number;
  /** Useful arithmetic, GFLOP/s at the median. */
  readonly gflops?: number;
  /** Bytes that must be read or written, GB/s at the median. */
  readonly gbs?: number;
  /** Of the best matrix-product rate of the whole run. */
  readonly matmulShare?: number;
  /** Of the memory's read rate: the median over rounds of this row's rate against the probe's in the same round. */
  readonly readShare?: number;
  /** What the caches of a decode step take. */
  readonly cacheMib?: number;
  /**
   * Time against that of the case's yardstick, divided by the same of bytes, the median over rounds: 1 is what fewer
   * bytes bring by themselves.
   */
  readonly timePerByte?: number;
}

/** Another row against ours: above 1, ours is faster, or smaller, by that factor. */
export interface Ratio {
  readonly to: string;
  readonly value: Summary;
}

export interface CaseResult {
  readonly suite: string;
  readonly name: string;
  readonly kind: Case['kind'];
  readonly settings: Readonly<Record<string, unknown>>;
  readonly rows: readonly Row[];
  readonly ratios: readonly Ratio[];
  /** The fastest of the peer's forms. */
  readonly bestPeer?: Ratio;
  /** What had to be left out, and why. */
  readonly notes: readonly string[];
  /** Processor cores that others used meanwhile. */
  readonly busyCores: number;
}

/** Ratios of all other rows to the first, and the smallest of the peer's. */
export function compare(
  rows: readonly Row[],
  ratioOf: (ours: Row, other: Row) => Summary,
): Pick<CaseResult, 'ratios' | 'bestPeer'> {
  const [ours, ...others] = rows;
  const entries = others
    .filter(({ side }) => side !== 'machine')
    .map((other) => ({
      side: other.side,
      median: other.value.median,
      ratio: { to: other.name, value: ratioOf(ours as Row, other) },
    }));
  const peers = entries.filter(({ side }) => side === 'peer').sort((a, b) => a.median - b.median);
  return { ratios: entries.map(({ ratio }) => ratio), ...(peers[0] === undefined ? {} : { bestPeer: peers[0].ratio }) };
}
