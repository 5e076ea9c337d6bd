/**
 * Partner connections that wait because no agent of their client is connected: they are served in the order in which they
 * came when one returns, and given up one by one when they have waited too long. Nothing is read from them meanwhile.
 */

/** What waits. */
export interface Held {
  /** Whether what there is now is of use to it; left out: always. */
  isReady?(): boolean;
  /** An agent is there. */
  serve(): void;
  /** It has waited for the whole timeout. */
  expire(): void;
  /** Nobody may wait any longer: the deployment stops. */
  stop(): void;
}

export interface HoldSettings {
  /** How long a connection waits, in milliseconds; 0: not at all. */
  readonly timeoutMs: number;
  /** How many wait at once, at most. */
  readonly max: number;
}

export type HoldRefusal = "off" | "full";

export class HoldQueue {
  settings: HoldSettings;
  /** In the order of arrival; bounded by `settings.max`. */
  readonly #waiting = new Map<Held, number>();
  #timer: NodeJS.Timeout | undefined;
  #serving = false;
  /** `serve` was called since it began to go through what waits. */
  #again = false;
  /** Totals for metrics. */
  readonly counters = { held: 0, expired: 0 };

  constructor(settings: HoldSettings) {
    this.settings = settings;
  }

  get size(): number {
    return this.#waiting.size;
  }

  /** Lets `held` wait, or says why it may not. */
  add(held: Held): HoldRefusal | undefined {
    if (this.settings.timeoutMs === 0) return "off";
    if (this.#waiting.size >= this.settings.max) return "full";
    this.counters.held += 1;
    this.#waiting.set(held, performance.now() + this.settings.timeoutMs);
    this.#arm();
    return undefined;
  }

  /** It waits no longer, for whatever reason. */
  remove(held: Held): void {
    this.#waiting.delete(held);
    if (this.#waiting.size === 0) this.#disarm();
  }

  /**
   * Serves what waits, first come first, as long as `isServed` says that there is an agent. What begins to wait meanwhile, as
   * one does that was served in vain, is for the next time.
   *
   * One that is served in vain makes room for others at once, and asks for them to be served from within: that is done here
   * and not there, or a long queue of such would be as deep a recursion.
   */
  serve(isServed: () => boolean): void {
    this.#again = true;
    if (this.#serving) return;
    this.#serving = true;
    try {
      while (this.#again) {
        this.#again = false;
        let left = this.#waiting.size;
        for (const held of this.#waiting.keys()) {
          if (left === 0 || !isServed()) break;
          left -= 1;
          if (held.isReady?.() === false) continue;
          this.remove(held);
          held.serve();
        }
      }
    } finally {
      this.#serving = false;
    }
  }

  /** Gives up everything that waits, because the deployment stops. */
  stop(): void {
    for (const held of this.#waiting.keys()) {
      this.remove(held);
      held.stop();
    }
  }

  #arm(): void {
    // One timer for all: the first in line is the first to expire, unless a reload shortened the timeout meanwhile.
    const [due] = this.#waiting.values();
    if (this.#timer !== undefined || due === undefined) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        this.#expire();
      },
      Math.max(1, Math.ceil(due - performance.now())),
    );
  }

  #disarm(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #expire(): void {
    const now = performance.now();
    for (const [held, due] of this.#waiting) {
      if (due > now) break;
      this.#waiting.delete(held);
      this.counters.expired += 1;
      held.expire();
    }
    this.#arm();
  }
}
