/** What this machine gives at best: the rates that ours are a share of. */
import fs from 'node:fs';

import { randomNormal } from '../convert';
import { matmulSync } from '../matmul';
import { measureReadBandwidth } from '../probe';
import type { Contender } from './contender';
import type { How } from './ours';
import { matrixProduct } from './peer/models';
import type { Onnxruntime } from './peer/onnxruntime';
import { interleave, summarize } from './timing';

/** Matrix products: squares, and the two of attention (q kᵀ and weights · v) for 8 heads of 64. */
const products = [
  { name: '1024³', batch: 1, m: 1024, k: 1024, n: 1024 },
  { name: '2048³', batch: 1, m: 2048, k: 2048, n: 2048 },
  { name: '8 × 1024×64×1024', batch: 8, m: 1024, k: 64, n: 1024 },
  { name: '8 × 1024×1024×64', batch: 8, m: 1024, k: 1024, n: 64 },
] as const;

/** Larger than processor caches are. */
const readBytes = 256 * 2 ** 20;

/** The rates seen so far in this run, by probe. */
export class Machine {
  readonly matmul = new Map<string, number>();
  readonly read = new Map<string, number>();
  /** Reads 256 MiB. In decode cases it takes its turn with the others. */
  readonly reader: Contender;
  #product: Contender | undefined;

  constructor(
    private readonly how: How,
    private readonly peer?: Onnxruntime,
  ) {
    const data = new Float32Array(readBytes / 4).fill(1);
    this.reader = {
      name: 'memory read',
      side: 'machine',
      flops: 0,
      bytes: readBytes,
      call: () => measureReadBandwidth(data, how.threads),
    };
  }

  /** The product that came out fastest. In prefill cases it takes its turn with the others. */
  get product(): Contender | undefined {
    return this.#product;
  }

  /** Best matrix-product rate seen, GFLOP/s; 0 before anything was measured. */
  get bestMatmul(): number {
    return Math.max(0, ...this.matmul.values());
  }

  /** Best read rate seen, GB/s; 0 before anything was measured. */
  get bestRead(): number {
    return Math.max(0, ...this.read.values());
  }

  /** Takes a probe's median into account. */
  note({ name, flops, bytes }: Contender, ms: number): void {
    const [rates, work] = flops > 0 ? [this.matmul, flops] : [this.read, bytes];
    rates.set(name, Math.max(rates.get(name) ?? 0, work / ms / 1e6));
  }

  /** Times every probe. */
  async measure(rounds: number, onRound: () => void): Promise<void> {
    const probes: Contender[] = [this.reader];
    for (const product of products) {
      probes.push(ourProduct(product, this.how));
      if (this.peer !== undefined) probes.push(await peerProduct(product, this.how.threads, this.peer));
    }
    const times = await interleave(probes, rounds, onRound);
    let best = 0;
    for (const [index, probe] of probes.entries()) {
      const ms = summarize(times[index]?.ms ?? []).median;
      this.note(probe, ms);
      const rate = probe.flops / ms;
      if (rate > best) {
        best = rate;
        await this.#product?.dispose?.();
        this.#product = probe;
      } else {
        await probe.dispose?.();
      }
    }
  }

  async dispose(): Promise<void> {
    await this.#product?.dispose?.();
  }
}

type Product = (typeof products)[number];

const flopsOf = ({ batch, m, k, n }: Product): number => 2 * batch * m * k * n;

function ourProduct(product: Product, how: How): Contender {
  const { name, batch, m, k, n } = product;
  const a = randomNormal([batch, m, k], { seed: 1 });
  const b = randomNormal([batch, k, n], { seed: 2 });
  return {
    name: `matrix product ${name}, ours`,
    side: 'machine',
    flops: flopsOf(product),
    bytes: 0,
    call: () => matmulSync(a, b, how),
  };
}

async function peerProduct(product: Product, threads: number, peer: Onnxruntime): Promise<Contender> {
  const { name, batch, m, k, n } = product;
  const session = await peer.session(matrixProduct(), threads);
  const tensor = (rows: number, columns: number, seed: number) => {
    const { data, dims } = randomNormal<'float32'>([batch, rows, columns], { seed });
    return peer.tensor('float32', data, dims);
  };
  const feeds = { a: tensor(m, k, 1), b: tensor(k, n, 2) };
  return {
    name: `matrix product ${name}, onnxruntime`,
    side: 'machine',
    flops: flopsOf(product),
    bytes: 0,
    call: () => session.run(feeds),
    dispose: () => session.release(),
  };
}

/** How many copies of so many bytes surely do not all stay in the processor's caches; no more than 128. */
export function coldCopies(bytes: number): number {
  return Math.min(128, Math.ceil(coldBytes() / bytes));
}

/** Four times the largest cache, and at least 128 MiB. */
function coldBytes(): number {
  let cache = 0;
  try {
    const text = fs.readFileSync('/sys/devices/system/cpu/cpu0/cache/index3/size', 'utf8');
    cache = Number.parseInt(text, 10) * 1024;
  } catch {
    // Not Linux, or no third level.
  }
  return Math.max(128 * 2 ** 20, 4 * cache);
}
