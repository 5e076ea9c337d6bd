import { setImmediate as nextTurn, setTimeout as delay } from "node:timers/promises";
import { seededRandom } from "./seeded-random.ts";

/** What a schedule leaves to chance. The same seed answers the same questions in the same way. */
export class Chance {
  readonly #random: () => number;

  constructor(seed: string) {
    this.#random = seededRandom(seed);
  }

  /** A whole number from 0 up to and without `limit`. */
  below(limit: number): number {
    return Math.floor(this.#random() * limit);
  }

  /** `share` is between 0, never, and 1, always. */
  happens(share: number): boolean {
    return this.#random() < share;
  }

  oneOf<T>(...values: readonly [T, ...T[]]): T {
    return values[this.below(values.length)];
  }

  /** Lets others go first: nobody, all of this turn of the event loop or of the next, or those of up to three milliseconds. */
  async pause(): Promise<void> {
    const kind = this.below(10);
    if (kind < 3) return;
    if (kind === 9) return delay(this.below(4));
    await nextTurn();
    if (kind > 5) await nextTurn();
  }
}
