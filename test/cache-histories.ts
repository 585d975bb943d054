import fc from 'fast-check';
import { type AttendOptions, type AttentionWithLse, attendBatch, attendBatchSync } from '../lib';
import type { Tensor } from '../lib/tensor';
import {
  append,
  type Cache,
  expectationOf,
  keepsNumbers,
  mostHeads,
  newCache,
  pageBytesOf,
  pageRows,
  plain,
  poison,
  type Shape,
  type Source,
  tableRows,
} from './cache-kinds';
import { normal, swapLayout, types } from './data';
import { expectSameBits } from './full-run';
import { compare } from './tolerance';

// Whatever happened to a cache and to its forks, it answers bit for bit like a new one filled with the same rows at once.
// Histories run against a model: of each cache the numbers of its rows and the identities of its pages.

// The same examples in every run; a failure prints the seed and the smallest history found.
const runs = (numRuns: number) => ({ numRuns, seed: 20250311, includeErrorInReport: true });

/** One call of attention over a cache. */
interface Attend {
  readonly queries: number;
  readonly options: Omit<AttendOptions, 'sinks'> & { readonly sinks?: readonly number[] };
  readonly how: { readonly isa: string; readonly threads: number };
  readonly source: Source;
}

/** Queries of layout 'bhld', and the options that change the meaning of the call. */
function meaningOf({ kvHeads, group, headDim }: Shape, { queries, options, source }: Attend) {
  const heads = kvHeads * group;
  const { sinks, ...rest } = options;
  const query = normal([1, heads, queries, headDim], 5 + queries, source.type);
  return { query, options: { ...rest, ...(sinks && { sinks: Float32Array.from(sinks.slice(0, heads)) }) } };
}

/** What a cache that holds these rows and has no history answers, on one thread. */
function wantedOf(shape: Shape, ids: readonly number[], attend: Attend): AttentionWithLse {
  const { query, options } = meaningOf(shape, attend);
  using cache = newCache({ ...shape, capacity: undefined });
  append(cache, shape, ids);
  return cache.attendWithLseSync(query, { ...options, isa: attend.how.isa, threads: 1 });
}

/** Query and options of the call as it is made. */
function callOf(shape: Shape, attend: Attend): [Tensor, AttendOptions] {
  const { query, options } = meaningOf(shape, attend);
  const { layout } = attend.source;
  return [layout === 'bhld' ? query : swapLayout(query), { ...options, ...attend.how, layout }];
}

function expectAnswer(found: Partial<AttentionWithLse>, wanted: AttentionWithLse, { source }: Attend): void {
  const output = found.output as Tensor;
  expectSameBits(source.layout === 'bhld' ? output : swapLayout(output), wanted.output);
  if (found.lse) expectSameBits(found.lse, wanted.lse);
}

/** The cache answers as a new one of these rows does. */
function expectRows(cache: Cache, shape: Shape, ids: readonly number[], attend: Attend): void {
  expect(cache.length).toBe(ids.length);
  expectAnswer(cache.attendWithLseSync(...callOf(shape, attend)), wantedOf(shape, ids, attend), attend);
}

function expectReference(shape: Shape, ids: readonly number[], attend: Attend, found: AttentionWithLse): void {
  const { query, options } = meaningOf(shape, attend);
  const expected = expectationOf(shape, ids, query, options);
  compare(found.output, expected.output, 'output');
  compare(found.lse, expected.lse, 'lse');
}

/** A number of rows: so many, or up to the border of a page and `by` beyond it. */
interface Step {
  readonly border: boolean;
  readonly by: number;
}

/** Rows that a step appends to `length`. */
const growth = (length: number, { border, by }: Step): number =>
  border ? Math.max(0, pageRows - (length % pageRows) + by) : by;

/** What a step leaves of `length`. */
function remainder(length: number, { border, by }: Step): number {
  const left = border ? Math.floor((length - 1) / pageRows) * pageRows + by : length - by;
  return Math.max(0, Math.min(length, left));
}

/** Performed on one of the caches alive, counted around. */
interface On<Name extends string> {
  readonly op: Name;
  readonly on: number;
}

type Grow<Name extends string> = On<Name> & { readonly step: Step; readonly source: Source };

type Operation =
  | { readonly op: 'create' }
  | { readonly op: 'settle' }
  | On<'fork'>
  | On<'dispose'>
  | Grow<'append'>
  | Grow<'draft'>
  | (On<'truncate'> & { readonly step: Step })
  | OfOne
  | OfMany;

interface Asked {
  readonly attend: Attend;
  /** Asynchronous, and awaited only when the history settles. */
  readonly inFlight: boolean;
}

interface OfOne extends On<'attend'>, Asked {
  readonly lse: boolean;
  /** Held against the reference as well. */
  readonly reference: boolean;
}

interface OfMany extends Asked {
  readonly op: 'attendBatch';
  readonly items: readonly { readonly on: number; readonly queries: number }[];
}

/** Whoever holds pages. Two hold the same page if both have its number. */
interface Holder {
  readonly pages: readonly number[];
}

/** A cache and what the model knows of it. */
interface Twin extends Holder {
  readonly name: string;
  readonly cache: Cache;
  readonly rows: readonly number[];
  /** What it must answer to the probe; undefined after a change. */
  answer: AttentionWithLse | undefined;
  /** Nothing has been appended since rows were dropped. */
  readonly truncated: boolean;
}

interface InFlight extends Holder {
  readonly name: string;
  readonly judge: () => Promise<void>;
}

/** How often what matters happened in all histories together: harmless ones would prove nothing. */
const happened = { copied: 0, diverged: 0, regrown: 0, changedInFlight: 0, disposedShared: 0, refused: 0 };

const mostAlive = 5;

/** A call under which every row weighs about the same, so that any wrong one changes the bits of the answer. */
const probe: Attend = {
  queries: 1,
  options: { scale: 0.05 },
  how: { isa: 'auto', threads: 1 },
  source: plain('float32'),
};

class History {
  /** What was done, one line an operation. */
  readonly log: string[] = [];
  readonly #shape: Shape;
  readonly #pageBytes: number;
  readonly #probe: [Tensor, AttendOptions];
  readonly #disposed: Cache[] = [];
  #alive: readonly Twin[] = [];
  #inFlight: InFlight[] = [];
  #cachesMade = 0;
  #pagesMade = 0;
  #rowsTaken = 0;

  constructor(shape: Shape) {
    this.#shape = shape;
    this.#pageBytes = pageBytesOf(shape);
    this.#probe = callOf(shape, probe);
    this.#create();
  }

  /** Performs an operation on caches and model. Without a cache to perform it on, or room for one more, nothing happens. */
  async perform(operation: Operation): Promise<void> {
    if (operation.op === 'settle') return await this.#settle();
    if (operation.op === 'create') return this.#create();
    if (this.#alive.length === 0) return;
    if (operation.op === 'attendBatch') return this.#attendBatch(operation);
    const twin = this.#at(operation.on);
    const { length } = twin.rows;
    if (operation.op === 'append') this.#append(twin, this.#newRows(growth(length, operation.step)), operation.source);
    else if (operation.op === 'draft') this.#draft(twin, growth(length, operation.step), operation.source);
    else if (operation.op === 'truncate') this.#truncate(twin, remainder(length, operation.step));
    else if (operation.op === 'fork') this.#fork(twin);
    else if (operation.op === 'dispose') this.#dispose(twin);
    else this.#attend(twin, operation);
  }

  /** Each cache alive is as long and as large as the model says, and holds its rows and no others. */
  check(): void {
    const found = this.#alive.map(({ name, cache: { length, byteLength, sharedByteLength } }) => {
      return { name, length, byteLength, sharedByteLength };
    });
    const wanted = this.#alive.map((twin) => {
      const shared = twin.pages.filter((page) => this.#isShared(page, twin));
      const bytes = [twin.pages, shared].map(({ length }) => length * this.#pageBytes);
      return { name: twin.name, length: twin.rows.length, byteLength: bytes[0], sharedByteLength: bytes[1] };
    });
    expect(found).toEqual(wanted);
    for (const twin of this.#alive) {
      twin.answer ??= wantedOf(this.#shape, twin.rows, probe);
      try {
        expectAnswer(twin.cache.attendWithLseSync(...this.#probe), twin.answer, probe);
      } catch (error) {
        throw new Error(`${twin.name} does not hold its rows`, { cause: error });
      }
    }
  }

  /** Settles the calls in flight; then what is disposed is still refused, beside caches alive that are not harmed. */
  async end(): Promise<void> {
    await this.#settle();
    if (this.#alive.length > 0) this.#dispose(this.#at(0));
    for (const cache of this.#disposed) await this.#expectClosed(cache);
    this.check();
    for (const { cache } of this.#alive) cache.dispose();
  }

  #create(): void {
    const name = this.#add(newCache(this.#shape), { rows: [], pages: [], answer: undefined, truncated: false });
    if (name !== undefined) this.log.push(`${name} = new cache`);
  }

  #fork(twin: Twin): void {
    const name = this.#add(twin.cache.fork(), twin);
    if (name !== undefined) this.log.push(`${name} = ${twin.name}.fork()`);
  }

  #add(cache: Cache, { rows, pages, answer, truncated }: Omit<Twin, 'name' | 'cache'>): string | undefined {
    if (this.#alive.length === mostAlive) return cache.dispose() as undefined;
    const name = `c${this.#cachesMade++}`;
    this.#alive = [...this.#alive, { name, cache, rows, pages, answer, truncated }];
    return name;
  }

  /** @returns whether the rows fitted into the capacity */
  #append(twin: Twin, ids: readonly number[], source: Source): boolean {
    const { rows, pages, cache } = twin;
    const length = rows.length + ids.length;
    const call = () => append(cache, this.#shape, ids, source);
    this.log.push(`${twin.name}.append(${ids.length} rows ${source.layout} ${source.type}), length ${length}`);
    if (length > (this.#shape.capacity ?? Infinity)) {
      expect(call).toThrow(expect.objectContaining({ code: 'ERR_MEMORY' }));
      happened.refused++;
      return false;
    }
    call();
    if (ids.length === 0) return true;
    if (twin.truncated) happened.regrown++;
    if (pages.some((page) => this.#alive.some((other) => other !== twin && other.pages.includes(page))))
      happened.diverged++;
    // Others may hold the page that the first new row stands on: this one goes on with a copy of it.
    const copied = rows.length % pageRows !== 0 && this.#isShared(pages.at(-1) as number, twin);
    if (copied) happened.copied++;
    const kept = copied ? pages.slice(0, -1) : pages;
    const made = Math.ceil(length / pageRows) - kept.length;
    const next = Array.from({ length: made }, () => this.#pagesMade++);
    this.#change(twin, { rows: [...rows, ...ids], pages: [...kept, ...next], truncated: false });
    return true;
  }

  #truncate(twin: Twin, length: number): void {
    this.log.push(`${twin.name}.truncate(${length}) of ${twin.rows.length}`);
    twin.cache.truncate(length);
    if (length === twin.rows.length) return;
    const pages = twin.pages.slice(0, Math.ceil(length / pageRows));
    this.#change(twin, { rows: twin.rows.slice(0, length), pages, truncated: true });
  }

  /** As a rejected guess of a drafting model; its rows are NaN, so that a trace of them is found. */
  #draft(twin: Twin, count: number, source: Source): void {
    const { length } = twin.rows;
    if (this.#append(twin, new Array(count).fill(poison), source)) this.#truncate(twin, length);
  }

  #dispose(twin: Twin): void {
    this.log.push(`${twin.name}.dispose()`);
    if (twin.pages.some((page) => this.#isShared(page, twin))) happened.disposedShared++;
    twin.cache.dispose();
    this.#alive = this.#alive.filter((other) => other !== twin);
    this.#disposed.push(twin.cache);
  }

  #attend({ name, cache, rows, pages }: Twin, { attend, lse, inFlight, reference }: OfOne): void {
    this.log.push(`${name}.attend${lse ? 'WithLse' : ''}(${attend.queries} queries, ${written(attend, inFlight)}`);
    const [query, options] = callOf(this.#shape, attend);
    const wanted = wantedOf(this.#shape, rows, attend);
    if (reference && keepsNumbers(this.#shape)) expectReference(this.#shape, rows, attend, wanted);
    if (!inFlight) {
      const found = lse ? cache.attendWithLseSync(query, options) : { output: cache.attendSync(query, options) };
      expectAnswer(found, wanted, attend);
      return;
    }
    const call = lse
      ? cache.attendWithLse(query, options)
      : cache.attend(query, options).then((output) => ({ output }));
    this.#inFlight.push({ name, pages, judge: async () => expectAnswer(await call, wanted, attend) });
  }

  #attendBatch({ items, attend, inFlight }: OfMany): void {
    const twins = items.map(({ on }) => this.#at(on));
    const names = twins.map(({ name }) => name).join(', ');
    this.log.push(
      `attendBatch([${names}], ${items.map(({ queries }) => queries)} queries, ${written(attend, inFlight)}`,
    );
    const calls = items.map(({ queries }) => ({ ...attend, queries }));
    const sequences = twins.map(({ cache }, i) => ({ cache, query: callOf(this.#shape, calls[i])[0] }));
    const [, options] = callOf(this.#shape, attend);
    const wanted = twins.map(({ rows }, i) => wantedOf(this.#shape, rows, calls[i]));
    const judge = (outputs: readonly Tensor[]) => {
      expect(outputs).toHaveLength(wanted.length);
      for (const [i, output] of outputs.entries()) expectAnswer({ output }, wanted[i], attend);
    };
    if (!inFlight) {
      judge(attendBatchSync(sequences, options));
      return;
    }
    const call = attendBatch(sequences, options);
    const pages = twins.flatMap((twin) => twin.pages);
    this.#inFlight.push({ name: `a batch of ${names}`, pages, judge: async () => judge(await call) });
  }

  async #settle(): Promise<void> {
    if (this.#inFlight.length > 0) this.log.push('await all calls in flight');
    for (const { name, judge } of this.#inFlight) {
      try {
        await judge();
      } catch (error) {
        throw new Error(`the call on ${name} saw later changes`, { cause: error });
      }
    }
    this.#inFlight = [];
  }

  #at(on: number): Twin {
    return this.#alive[on % this.#alive.length];
  }

  #newRows(count: number): number[] {
    return Array.from({ length: count }, () => this.#rowsTaken++ % tableRows);
  }

  /** Calls count as in flight until they are awaited: between, the event loop has no turn to free what they hold. */
  #isShared(page: number, by: Twin): boolean {
    const holders: readonly Holder[] = [...this.#alive, ...this.#inFlight];
    return holders.some((holder) => holder !== by && holder.pages.includes(page));
  }

  #change(twin: Twin, to: Pick<Twin, 'rows' | 'pages' | 'truncated'>): void {
    if (twin.pages.some((page) => this.#inFlight.some((call) => call.pages.includes(page)))) happened.changedInFlight++;
    Object.assign(twin, { ...to, answer: undefined });
  }

  async #expectClosed(cache: Cache): Promise<void> {
    const { length, byteLength, sharedByteLength } = cache;
    expect([length, byteLength, sharedByteLength]).toEqual([0, 0, 0]);
    const [query] = this.#probe;
    const items = [...this.#alive, { cache }].map((each) => ({ cache: each.cache, query }));
    const uses = [
      () => append(cache, this.#shape, [0]),
      () => cache.truncate(0),
      () => cache.fork(),
      () => cache.attendSync(query),
      () => cache.attend(query),
      () => cache.attendWithLseSync(query),
      () => cache.attendWithLse(query),
      () => attendBatchSync(items),
      () => attendBatch(items),
    ];
    const outcomes = await Promise.allSettled(uses.map(async (use) => await use()));
    const codes = outcomes.map((outcome) => outcome.status === 'rejected' && outcome.reason.code);
    expect(codes).toEqual(uses.map(() => 'ERR_CLOSED'));
    cache.dispose();
  }
}

function written({ options, how, source }: Attend, inFlight: boolean): string {
  return `${fc.stringify({ ...options, ...how, ...source })})${inFlight ? ', in flight' : ''}`;
}

async function live(shape: Shape, operations: readonly Operation[]): Promise<void> {
  const history = new History(shape);
  try {
    for (const operation of operations) {
      await history.perform(operation);
      history.check();
    }
    await history.end();
  } catch (error) {
    const { message, cause } = error as Error;
    const why = cause instanceof Error ? `${message}: ${cause.message}` : message;
    throw new Error(`${why}\nafter\n${[fc.stringify(shape), ...history.log].join('\n  ')}`, { cause: error });
  }
}

const source: fc.Arbitrary<Source> = fc.record({
  layout: fc.constantFrom('bhld', 'blhd'),
  type: fc.constantFrom(...types),
});

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ border: fc.constant(false), by: fc.integer({ min: 0, max: 4 }) }),
  fc.record({ border: fc.constant(false), by: fc.integer({ min: 5, max: 300 }) }),
  fc.record({ border: fc.constant(true), by: fc.integer({ min: -1, max: 1 }) }),
);

const on = fc.nat({ max: 2 * mostAlive });
const op = <Name extends Operation['op']>(name: Name) => fc.constant(name);
const rowsFrom = (first: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => (first + i) % tableRows);

const length = fc.oneof(
  fc.integer({ min: 0, max: 300 }),
  fc.constantFrom(pageRows - 1, pageRows, pageRows + 1, 2 * pageRows),
);

/** Tests of caches of these shapes on these kernel rows. */
export function testHistories(shapes: fc.Arbitrary<Shape>, isas: readonly string[]): void {
  const attend: fc.Arbitrary<Attend> = fc.record({
    queries: fc.oneof(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 6, max: 40 })),
    options: fc.record(
      {
        causal: fc.boolean(),
        window: fc.tuple(
          fc.oneof(fc.integer({ min: 0, max: 300 }), fc.constant(Infinity)),
          fc.oneof(fc.integer({ min: 0, max: 9 }), fc.constant(Infinity)),
        ),
        softcap: fc.constantFrom(2, 10),
        scale: fc.constantFrom(0.05, 0.5),
        sinks: fc.array(fc.integer({ min: -5, max: 5 }), { minLength: 4 * mostHeads, maxLength: 4 * mostHeads }),
      },
      { requiredKeys: [] },
    ),
    how: fc.record({ isa: fc.constantFrom(...isas), threads: fc.constantFrom(1, 2) }),
    source,
  });

  // The reference is slow: one call in four is held against it.
  const reference = fc.constantFrom(false, false, false, true);
  const asked = { attend, inFlight: fc.boolean() };
  const items = fc.array(fc.record({ on, queries: fc.integer({ min: 1, max: 6 }) }), { minLength: 1, maxLength: 5 });
  const operation: fc.Arbitrary<Operation> = fc.oneof(
    { weight: 8, arbitrary: fc.record({ op: op('append'), on, step, source }) },
    { weight: 3, arbitrary: fc.record({ op: op('draft'), on, step, source }) },
    { weight: 4, arbitrary: fc.record({ op: op('truncate'), on, step }) },
    { weight: 4, arbitrary: fc.record({ op: op('fork'), on }) },
    { weight: 2, arbitrary: fc.record({ op: op('dispose'), on }) },
    { weight: 1, arbitrary: fc.record({ op: op('create') }) },
    { weight: 1, arbitrary: fc.record({ op: op('settle') }) },
    { weight: 4, arbitrary: fc.record({ op: op('attend'), on, lse: fc.boolean(), reference, ...asked }) },
    { weight: 2, arbitrary: fc.record({ op: op('attendBatch'), items, ...asked }) },
  );

  test('any history of caches and their forks', async () => {
    const operations = fc.array(operation, { minLength: 1, maxLength: 30, size: 'max' });
    await fc.assert(fc.asyncProperty(shapes, operations, live), runs(200));
    for (const [what, times] of Object.entries(happened)) expect([what, times >= 50]).toEqual([what, true]);
  });

  // The laws that histories rest on, each for itself: what breaks one is named by it.

  const unbounded = shapes.map((each): Shape => ({ ...each, capacity: undefined }));
  test('append in any partition gives the same bits as all at once', () => {
    const portions = fc.array(fc.record({ step, source }), { maxLength: 12, size: 'max' });
    fc.assert(
      fc.property(unbounded, portions, attend, (shape, portions, attend) => {
        using cache = newCache(shape);
        for (const { step, source } of portions)
          append(cache, shape, rowsFrom(cache.length, growth(cache.length, step)), source);
        expectRows(cache, shape, rowsFrom(0, cache.length), attend);
      }),
      runs(100),
    );
  });

  test('fork, then diverge: neither sees the rows of the other', () => {
    const turns = fc.array(fc.record({ side: fc.constantFrom(0, 1), step, source }), { minLength: 2, maxLength: 8 });
    fc.assert(
      fc.property(unbounded, length, turns, attend, (shape, length, turns, attend) => {
        using original = newCache(shape);
        append(original, shape, rowsFrom(0, length));
        using fork = original.fork();
        const sides = [original, fork].map((cache) => ({ cache, rows: rowsFrom(0, length) }));
        let taken = length;
        for (const { side, step, source } of turns) {
          const { cache, rows } = sides[side];
          const next = rowsFrom(taken, growth(rows.length, step));
          append(cache, shape, next, source);
          rows.push(...next);
          taken += next.length;
          for (const each of sides) expectRows(each.cache, shape, each.rows, attend);
        }
        // A page that was full when they parted is shared for ever, the last one until either side writes.
        const shared = taken === length ? Math.ceil(length / pageRows) : Math.floor(length / pageRows);
        for (const { cache } of sides) expect(cache.sharedByteLength).toBe(shared * pageBytesOf(shape));
      }),
      runs(100),
    );
  });

  test('truncate, then append: as if the dropped rows had never been', () => {
    fc.assert(
      fc.property(unbounded, length, step, step, source, attend, (shape, kept, dropped, appended, source, attend) => {
        using cache = newCache(shape);
        append(cache, shape, rowsFrom(0, kept));
        append(cache, shape, new Array(growth(kept, dropped)).fill(poison));
        cache.truncate(kept);
        expectRows(cache, shape, rowsFrom(0, kept), attend);
        const count = growth(kept, appended);
        append(cache, shape, rowsFrom(kept, count), source);
        expectRows(cache, shape, rowsFrom(0, kept + count), attend);
      }),
      runs(100),
    );
  });
}
