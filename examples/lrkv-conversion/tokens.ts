// Streams of tokens from a random source that has some structure: frequencies as words have them, and what tends to follow what.
import { randomNormal } from '../../lib';

/** Tokens there are. */
export const vocabulary = 512;

/** Each token is followed by one of so many of its own, drawn by frequency, */
const followers = 4;
/** with this probability, else by any, by frequency. */
const followed = 0.7;

/** A Markov chain; the frequency of token i is about in proportion to 1/(i + 1). */
export class TokenSource {
  /** Σ of the frequencies up to each token. */
  private readonly cumulative: Float64Array;
  /** `[vocabulary · followers]` */
  private readonly after: readonly number[];

  constructor(seed: number) {
    let sum = 0;
    this.cumulative = Float64Array.from({ length: vocabulary }, (_, i) => {
      sum += 1 / (i + 1);
      return sum;
    });
    this.after = Array.from(uniform(vocabulary * followers, seed), (at) => this.byFrequency(at));
  }

  /** The same for the same seed. */
  stream(length: number, seed: number): number[] {
    const drawn = uniform(3 * length, seed);
    const tokens: number[] = [];
    for (let i = 0; i < length; i++) {
      const [which, follower, any] = drawn.subarray(3 * i);
      const last = tokens.at(-1);
      const follows = last !== undefined && which < followed;
      tokens.push(follows ? this.after[last * followers + Math.floor(follower * followers)] : this.byFrequency(any));
    }
    return tokens;
  }

  private byFrequency(at: number): number {
    const sum = at * this.cumulative[vocabulary - 1];
    return this.cumulative.findIndex((upTo) => sum < upTo);
  }
}

/** Numbers in [0, 1): the direction of a normal point in the plane is uniform. */
function uniform(count: number, seed: number): Float64Array {
  const { data } = randomNormal<'float32'>([count, 2], { seed });
  return Float64Array.from({ length: count }, (_, i) => {
    const turn = Math.atan2(data[2 * i], data[2 * i + 1]) / (2 * Math.PI);
    return turn < 0 ? turn + 1 : turn % 1;
  });
}
