/** Garbage for any argument of any public function: a result of the right shape, or an AttentionError. */
import fc from 'fast-check';

import * as library from '../../lib';
import { AttentionError, KvCache } from '../../lib';
import { journal } from './journal';

const numRuns = 1500;

const detached = () => {
  const data = new Float32Array(6);
  structuredClone(data.buffer, { transfer: [data.buffer] });
  return data;
};
const revoked = () => {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
};
const throwing = () =>
  new Proxy(
    {},
    {
      get() {
        throw revoked();
      },
      ownKeys() {
        throw undefined;
      },
    },
  );

/** Fewer elements than take time to fill, or more than there can be. */
const harmless = (dims: unknown): boolean => {
  if (!Array.isArray(dims)) return true;
  const product = dims.reduce((a: number, b: unknown) => (typeof b === 'number' ? a * b : NaN), 1);
  return !(product > 1e6 && product < 1e13);
};

const number = fc.oneof(
  fc.integer({ min: 0, max: 5 }),
  fc.constantFrom(NaN, Infinity, -Infinity, -1, -0, 0.5, 2 ** 31, 2 ** 32, 2 ** 52, 2 ** 53, 1e300),
  fc.double(),
);
const junk = fc.oneof(
  fc.anything({
    withBigInt: true,
    withDate: true,
    withMap: true,
    withNullPrototype: true,
    withSparseArray: true,
    withTypedArray: true,
    withSet: true,
  }),
  number,
  fc.constantFrom(undefined, null, '', Symbol('junk'), () => 0, 2n),
  fc.constantFrom(throwing, detached, () => new Float32Array(new SharedArrayBuffer(24))).map((make) => make()),
);
const dims = fc
  .oneof(
    { weight: 5, arbitrary: fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 5 }) },
    { weight: 1, arbitrary: fc.array(number, { maxLength: 5 }) },
    { weight: 1, arbitrary: junk },
  )
  .filter(harmless);
const type = fc.oneof(
  { weight: 5, arbitrary: fc.constantFrom('float32', 'float16', 'bfloat16') },
  { weight: 1, arbitrary: junk },
);
const data = fc.oneof(
  { weight: 3, arbitrary: fc.float32Array({ maxLength: 12 }) },
  { weight: 2, arbitrary: fc.uint16Array({ maxLength: 12 }) },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 12 }) },
  { weight: 1, arbitrary: junk },
);

/** A tensor that is right, of small extents, so that calls get past the first checks. */
const right = (rank: number) =>
  fc
    .tuple(
      fc.array(fc.integer({ min: 1, max: 2 }), { minLength: rank, maxLength: rank }),
      fc.constantFrom('float32', 'bfloat16'),
    )
    .map(([extents, of]) => library.randomNormal(extents, { type: of as 'float32' }));
const tensor = (rank: number) =>
  fc.oneof(
    { weight: 6, arbitrary: right(rank) },
    { weight: 2, arbitrary: fc.record({ data, dims, type }, { requiredKeys: [] }) },
    { weight: 1, arbitrary: junk },
  );

const list = fc.oneof(
  fc.array(number, { maxLength: 3 }),
  fc.int32Array({ maxLength: 3 }),
  fc.float32Array({ maxLength: 3 }),
  junk,
);
const mask = fc.oneof(tensor(2), tensor(4), fc.record({ data, dims, type: fc.constant('bool') }));
const boolean = fc.oneof(fc.boolean(), junk);
const options = fc.oneof(
  { weight: 2, arbitrary: fc.constant(undefined) },
  { weight: 1, arbitrary: junk },
  {
    weight: 8,
    arbitrary: fc
      .record(
        {
          out: tensor(4),
          device: fc.oneof(fc.constantFrom('cpu', 'auto', 'cuda'), junk),
          isa: fc.oneof(fc.constantFrom('auto', 'scalar'), junk),
          threads: number,
          signal: fc.oneof(fc.constantFrom(new AbortController().signal, AbortSignal.abort()), junk),
          layout: fc.oneof(fc.constantFrom('bhld', 'blhd'), junk),
          scale: number,
          causal: boolean,
          queryOffset: number,
          window: list,
          mask,
          softcap: number,
          sinks: list,
          keyLengths: list,
          queryLengths: list,
          transposeB: boolean,
          unknown: junk,
        },
        { requiredKeys: [] },
      )
      .chain((all) =>
        fc
          .subarray(Object.keys(all), { maxLength: 3 })
          .map((names) => Object.fromEntries(names.map((name) => [name, all[name as 'out']]))),
      ),
  },
);

const kept = new KvCache({ heads: 1, headDim: 2 });
kept.append(library.randomNormal([1, 1, 3, 2]), library.randomNormal([1, 1, 3, 2]));
const closed = new KvCache({ heads: 1, headDim: 2 });
closed.dispose();
const cache = fc.oneof(
  { weight: 4, arbitrary: fc.constant(kept) },
  { weight: 1, arbitrary: fc.constant(closed) },
  { weight: 1, arbitrary: junk },
);
const lists = (entry: fc.Arbitrary<unknown>) =>
  fc.oneof(
    {
      weight: 4,
      arbitrary: fc.array(fc.oneof({ weight: 6, arbitrary: entry }, { weight: 1, arbitrary: junk }), { maxLength: 3 }),
    },
    { weight: 1, arbitrary: junk },
  );

// biome-ignore lint/suspicious/noExplicitAny: nothing here has a type
type Any = any;

/** Throws unless it is a tensor whose data holds what its dims say. */
function checkTensor(result: Any): void {
  const size = result.dims.reduce((a: number, b: number) => a * b, 1);
  const kinds = result.type === 'float32' ? [Float32Array] : [Uint16Array];
  if (!kinds.some((Kind) => result.data instanceof Kind) || result.data.length !== size)
    throw new Error(`${result.type} [${result.dims}] in ${result.data}`);
}
const checkBoth = (result: Any) => [result.output, result.lse].forEach(checkTensor);
const checkEach = (result: Any) => result.forEach(checkTensor);
const checkEachBoth = (result: Any) => result.forEach(checkBoth);

/** Arguments that are right, and what to put in the place of each; the call; what must hold of a result. */
type Target = readonly [
  right: () => unknown[],
  wrong: readonly fc.Arbitrary<unknown>[],
  call: (...args: Any[]) => unknown,
  check: (result: Any) => void,
];
const loose = library as Any;
const normal = (...extents: number[]) => library.randomNormal(extents);
const method =
  (name: string) =>
  (self: Any, ...args: Any[]) =>
    (KvCache.prototype as Any)[name].call(self, ...args);
const nothing = () => {};

const attend: [() => unknown[], fc.Arbitrary<unknown>[]] = [
  () => [kept, normal(1, 2, 1, 2)],
  [cache, tensor(4), options],
];
const attention: typeof attend = [
  () => [normal(1, 2, 2, 2), normal(1, 1, 3, 2), normal(1, 1, 3, 2)],
  [tensor(4), tensor(4), tensor(4), options],
];
const matmul: typeof attend = [() => [normal(2, 2), normal(2, 2)], [tensor(2), tensor(3), options]];
const part = () => ({ output: normal(1, 2, 1, 2), lse: normal(1, 2, 1) });
const merge: typeof attend = [
  () => [[part(), part()]],
  [lists(fc.record({ output: tensor(4), lse: tensor(3) }, { requiredKeys: [] })), options],
];
const item = () => ({ cache: kept, query: normal(1, 2, 1, 2) });
const batch: typeof attend = [
  () => [[item(), item()]],
  [lists(fc.record({ cache, query: tensor(4) }, { requiredKeys: [] })), options],
];
const shape = fc.record(
  { heads: number, headDim: number, valueDim: number, capacity: number, type },
  { requiredKeys: [] },
);

const targets: Record<string, Target> = {
  attention: [...attention, loose.attention, checkTensor],
  attentionSync: [...attention, loose.attentionSync, checkTensor],
  attentionWithLse: [...attention, loose.attentionWithLse, checkBoth],
  attentionWithLseSync: [...attention, loose.attentionWithLseSync, checkBoth],
  matmul: [...matmul, loose.matmul, checkTensor],
  matmulSync: [...matmul, loose.matmulSync, checkTensor],
  mergeAttention: [...merge, loose.mergeAttention, checkBoth],
  mergeAttentionSync: [...merge, loose.mergeAttentionSync, checkBoth],
  attendBatch: [...batch, loose.attendBatch, checkEach],
  attendBatchSync: [...batch, loose.attendBatchSync, checkEach],
  attendBatchWithLse: [...batch, loose.attendBatchWithLse, checkEachBoth],
  attendBatchWithLseSync: [...batch, loose.attendBatchWithLseSync, checkEachBoth],
  attend: [...attend, method('attend'), checkTensor],
  attendSync: [...attend, method('attendSync'), checkTensor],
  attendWithLse: [...attend, method('attendWithLse'), checkBoth],
  attendWithLseSync: [...attend, method('attendWithLseSync'), checkBoth],
  cast: [() => [normal(2, 3), 'float16'], [tensor(2), type], loose.cast, checkTensor],
  tensor: [() => [new Float32Array(6), [2, 3], undefined], [data, dims, type], loose.tensor, nothing],
  zeros: [() => [[2, 3]], [dims, type], loose.zeros, checkTensor],
  randomNormal: [
    () => [[2, 3]],
    [dims, fc.oneof(fc.record({ seed: number, type }, { requiredKeys: [] }), junk)],
    loose.randomNormal,
    checkTensor,
  ],
  KvCache: [
    () => [{ heads: 1, headDim: 2 }],
    [fc.oneof(shape, junk)],
    (given) => new loose.KvCache(given),
    (made) => made.dispose(),
  ],
  append: [
    () => [kept.fork(), normal(1, 1, 2, 2), normal(1, 1, 2, 2)],
    [cache, tensor(4), tensor(4), fc.oneof(fc.record({ layout: junk }), junk)],
    (self, ...args) => {
      // The one that all calls share stays as it is.
      const own = self === kept ? kept.fork() : self;
      method('append')(own, ...args);
      return own;
    },
    (own) => own.dispose(),
  ],
  truncate: [
    () => [kept.fork(), 2],
    [cache, junk],
    (self, length) => method('truncate')(self === kept ? kept.fork() : self, length),
    nothing,
  ],
  fork: [() => [kept], [cache], method('fork'), (copy) => copy.dispose()],
  info: [() => [], [junk], loose.info, nothing],
  devices: [() => [], [junk], loose.devices, nothing],
};

/** Right arguments with some, seldom all, exchanged. */
function spoiled(right: () => unknown[], wrong: readonly fc.Arbitrary<unknown>[]): fc.Arbitrary<unknown[]> {
  const places = fc.subarray([...wrong.keys()], { minLength: 1, maxLength: Math.min(wrong.length, 2) });
  return fc.tuple(places, fc.tuple(...wrong)).map(([chosen, values]) => {
    const given = right();
    for (const place of chosen) given[place] = values[place];
    return given;
  });
}

async function main(): Promise<void> {
  const counts: Record<string, { done: number; refused: number }> = {};
  for (const [name, [right, wrong, call, check]] of Object.entries(targets)) {
    const count = { done: 0, refused: 0 };
    counts[name] = count;
    await fc.assert(
      fc.asyncProperty(spoiled(right, wrong), async (given) => {
        // The seed is fixed: this says what crashed.
        journal(`${name}, run ${count.done + count.refused}`);
        let outcome: unknown;
        try {
          outcome = call(...given);
          if (outcome instanceof Promise) outcome = await outcome;
        } catch (error) {
          let ours = false;
          try {
            ours = error instanceof AttentionError && /^expected .+ for `.*`, received .+$/s.test(error.message);
          } catch {
            // A revoked proxy.
          }
          if (!ours) throw error;
          count.refused++;
          return;
        }
        check(outcome);
        count.done++;
      }),
      {
        numRuns,
        seed: 20240607,
      },
    );
  }
  console.log(JSON.stringify(counts));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
