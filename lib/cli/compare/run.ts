/** Runs methods on the same inputs: each is checked against exact attention before any is timed, then all in turn. */
import { AttentionError, approximationError, attention, type Tensor, zeros } from '../../index';
import type { Inputs } from '../inputs';
import { rows } from '../inputs';
import { interleave, ratio, type Summary, summarize, type Turn } from '../timing';
import { type Call, type Method, settingsOf, shapeOf, standardOf } from './methods';
import { type LeftOut, type LengthSeries, type Run, type Setting, totalMs } from './results';

export interface RunOptions {
  readonly methods: readonly Method[];
  readonly rounds: number;
  readonly threads: number;
  /** Told of every step: a setting that is ready to be timed, and a round. */
  readonly onStep: (what: string) => void;
}

/** A method at a setting that gave an answer worth timing. */
interface Ready {
  readonly method: Method;
  readonly setting?: Setting;
  readonly call: Call;
  readonly preparationMs: number;
  readonly error: Run['error'];
}

interface Prepared {
  readonly exact: Call;
  readonly ready: readonly Ready[];
  readonly leftOut: readonly LeftOut[];
  /** What all calls write to: they run one after another. */
  readonly out: Tensor;
}

/** Every method at every value of its knob. */
export async function runSettings(
  inputs: Inputs,
  options: RunOptions,
): Promise<{ exact: Summary; runs: Run[]; leftOut: readonly LeftOut[] }> {
  const shape = shapeOf(inputs);
  const prepared = await prepare(inputs, options, (method) => settingsOf(method, shape.length));
  const { ready, leftOut } = prepared;
  const [exact, ...times] = await timed(prepared, options);
  const exactMs = exact as Summary;
  const runs = ready.map(({ method, setting, preparationMs, error }, index): Run => {
    const time = times[index] as Summary;
    return {
      method: method.id,
      name: method.name,
      ...(setting === undefined ? {} : { setting }),
      time,
      ...(method.preparesInputs ? { preparationMs } : {}),
      speedup: ratio(
        time.all.map((ms) => ms + preparationMs),
        exactMs.all,
      ).median,
      error,
      extraBytes: method.extraBytes(shape, setting?.value ?? 0),
      onFront: false,
    };
  });
  return { exact: exactMs, runs: withFront(runs, exactMs.median), leftOut };
}

/** Marks the runs that are faster than exact attention, and that none beats in both time and error. */
function withFront(runs: readonly Run[], exactMs: number): Run[] {
  const beaten = (run: Run) =>
    runs.some((other) => {
      const [ms, otherMs] = [totalMs(run), totalMs(other)];
      const [error, otherError] = [run.error.relativeFrobenius, other.error.relativeFrobenius];
      return otherMs <= ms && otherError <= error && (otherMs < ms || otherError < error);
    });
  return runs.map((run) => ({ ...run, onFront: totalMs(run) < exactMs && !beaten(run) }));
}

/** Exact attention and every method at its standard setting, over the first positions of the inputs. */
export async function runLengths(
  inputs: Inputs,
  lengths: readonly number[],
  options: RunOptions,
): Promise<LengthSeries[]> {
  const series = new Map<string, Omit<LengthSeries, 'points'> & { points: { length: number; ms: number }[] }>();
  const add = (method: string, name: string, setting: Setting | undefined, length: number, ms: number) => {
    const key = JSON.stringify([method, setting]);
    const found = series.get(key) ?? { method, name, ...(setting === undefined ? {} : { setting }), points: [] };
    found.points.push({ length, ms });
    series.set(key, found);
  };
  const least = Math.min(...lengths);
  for (const length of lengths) {
    const part = { q: rows(inputs.q, 0, length), k: rows(inputs.k, 0, length), v: rows(inputs.v, 0, length) };
    const prepared = await prepare(part, options, (method) => [standardOf(method, least)]);
    const [exact, ...times] = await timed(prepared, options);
    add('exact', 'exact', undefined, length, (exact as Summary).median);
    for (const [index, { method, setting, preparationMs }] of prepared.ready.entries()) {
      add(method.id, method.name, setting, length, (times[index] as Summary).median + preparationMs);
    }
  }
  return [...series.values()].map((one) => {
    const slope = slopeOf(one.points);
    return slope === undefined ? one : { ...one, slope };
  });
}

/** Exponent of the length in the time: least squares over the logarithms of the three greatest lengths. */
function slopeOf(points: LengthSeries['points']): number | undefined {
  const last = points.slice(-3).map(({ length, ms }) => [Math.log(length), Math.log(ms)] as const);
  if (last.length < 2) return undefined;
  const mean = (axis: 0 | 1) => last.reduce((sum, point) => sum + point[axis], 0) / last.length;
  const [meanX, meanY] = [mean(0), mean(1)];
  const sum = (of: (x: number, y: number) => number) => last.reduce((all, [x, y]) => all + of(x - meanX, y - meanY), 0);
  return sum((x, y) => x * y) / sum((x) => x * x);
}

/** Makes everything ready, and one call of each. What cannot be done, or is not finite, is left out by name. */
async function prepare(
  inputs: Inputs,
  { methods, threads, onStep }: RunOptions,
  settings: (method: Method) => readonly (Setting | undefined)[],
): Promise<Prepared> {
  const { heads, length, valueDim } = shapeOf(inputs);
  const exact: Call = (options) => attention(inputs.q, inputs.k, inputs.v, options);
  // In float32, so that errors of methods are not those of rounding the output to 16 bits.
  const wanted = await exact({ threads, out: zeros([1, heads, length, valueDim]) });
  const out = zeros([1, heads, length, valueDim]);
  const ready: Ready[] = [];
  const leftOut: LeftOut[] = [];
  for (const method of methods) {
    for (const setting of settings(method)) {
      const shown = { name: method.name, ...(setting === undefined ? {} : { setting }) };
      try {
        const start = performance.now();
        const call = await method.prepare(inputs, setting?.value ?? 0, { threads });
        const preparationMs = method.preparesInputs ? performance.now() - start : 0;
        const error = approximationError(await call({ threads, out }), wanted);
        ready.push({ method, ...(setting === undefined ? {} : { setting }), call, preparationMs, error });
      } catch (error) {
        if (!(error instanceof AttentionError)) throw error;
        leftOut.push({ ...shown, reason: error.message });
      }
      onStep(method.name);
    }
  }
  return { exact, ready, leftOut, out };
}

/** Times of exact attention and of all that is ready. */
async function timed({ exact, ready, out }: Prepared, { rounds, threads, onStep }: RunOptions): Promise<Summary[]> {
  const turns = [exact, ...ready.map(({ call }) => call)].map((call): Turn => ({ call: () => call({ threads, out }) }));
  const times = await interleave(turns, rounds, () => onStep('timing all in turn'));
  return times.map(({ ms }) => summarize(ms));
}
