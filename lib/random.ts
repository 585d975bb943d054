/** The package's one generator of random numbers: the same seed gives the same numbers on every machine. */
import { checkInteger } from './check';

export function checkSeed(seed: unknown): number {
  return checkInteger('seed', seed, 0, 2 ** 32 - 1);
}

/** Independent standard normal numbers, by the Box-Muller transform: two at a time. */
export function normals(seed: number): () => number {
  const uniform = xoshiro128(seed);
  let second: number | undefined;
  return () => {
    if (second !== undefined) {
      const number = second;
      second = undefined;
      return number;
    }
    // 1 − u lies in (0, 1], where the logarithm is finite.
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    second = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

/** Uniform numbers in [0, 1) with 32 bits: xoshiro128**, seeded by splitmix32. */
function xoshiro128(seed: number): () => number {
  let mixed = seed;
  const splitmix = (): number => {
    mixed = (mixed + 0x9e3779b9) | 0;
    let z = mixed;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return z ^ (z >>> 15);
  };
  let [a, b, c, d] = [splitmix(), splitmix(), splitmix(), splitmix()];
  return () => {
    const product = Math.imul(b, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const shifted = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= shifted;
    d = (d << 11) | (d >>> 21);
    return result / 4294967296;
  };
}
