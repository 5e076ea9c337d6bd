/**
 * When to dial an edge again. Full jitter: a delay anywhere between nothing and a ceiling that doubles, so that agents
 * which lost the same edge do not come back in step ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
 * Only while a session waits is the delay at least half of its ceiling, and the first one next to nothing.
 */

/** A link that lived this long was a success; a shorter one is one more failure, or a crashing edge would be hammered. */
export const PROVEN_MS = 5_000;

/**
 * Ceiling while a session waits for a link, in milliseconds. Its streams stand still meanwhile, so they are to flow
 * again within a second of the path's return, however often it broke before. The wait is bounded by the edge's
 * `resumeTimeout`, and an edge that has forgotten the session says so; after that the ceiling counts again.
 */
export const WAITING_MAX_MS = 500;

/**
 * Ceiling of the first delay when a session waits, in milliseconds: most cuts leave the path whole, and its streams
 * stand still. Only after a link that was up, and once in HURRY_INTERVAL_MS, so that an edge which takes links and drops them
 * is not hammered.
 */
const HURRIED_MS = 20;
const HURRY_INTERVAL_MS = 1_000;

export interface BackoffOptions {
  /** Ceiling of the first delay, in milliseconds. Default 200. */
  readonly minMs?: number;
  /** Ceiling of every delay, in milliseconds. Default 20,000. */
  readonly maxMs?: number;
  /** Between 0 and 1. Default `Math.random`. */
  readonly random?: () => number;
  /** Milliseconds of a clock that never goes back. Default `performance.now`. */
  readonly now?: () => number;
}

export class Backoff {
  readonly #minMs: number;
  readonly #maxMs: number;
  readonly #random: () => number;
  readonly #now: () => number;
  #ceilingMs: number;
  #hadLink = false;
  #hurriedAt = Number.NEGATIVE_INFINITY;

  constructor(options: BackoffOptions = {}) {
    this.#minMs = options.minMs ?? 200;
    this.#maxMs = Math.max(this.#minMs, options.maxMs ?? 20_000);
    this.#random = options.random ?? Math.random;
    this.#now = options.now ?? (() => performance.now());
    this.#ceilingMs = this.#minMs;
  }

  /**
   * Milliseconds until the next attempt, `floorMs` (default 0) at least; the jitter comes on top of the floor.
   * `sessionWaits` (default false): there is a session without a link.
   */
  next({ floorMs = 0, sessionWaits = false }: { floorMs?: number; sessionWaits?: boolean } = {}): number {
    if (sessionWaits && this.#takeHurry()) return floorMs + this.#random() * Math.min(HURRIED_MS, this.#minMs);
    const ceilingMs = sessionWaits ? Math.min(this.#ceilingMs, Math.max(WAITING_MAX_MS, this.#minMs)) : this.#ceilingMs;
    // A few agents wait for an edge with sessions of theirs, and each try costs; all the others must not come back in step.
    const share = sessionWaits ? 0.5 + this.#random() / 2 : this.#random();
    const delayMs = floorMs + share * ceilingMs;
    this.#ceilingMs = Math.min(this.#maxMs, this.#ceilingMs * 2);
    return delayMs;
  }

  /** What was waited for is given up, and what comes is a new story: waits are short at first. */
  beginAnew(): void {
    this.#ceilingMs = this.#minMs;
  }

  /** An attempt has ended, and its link had been up for `livedMs`, 0 if it never was. */
  ended(livedMs: number): void {
    this.#hadLink = livedMs > 0;
    if (livedMs >= PROVEN_MS) this.#ceilingMs = this.#minMs;
  }

  #takeHurry(): boolean {
    const now = this.#now();
    if (!this.#hadLink || now - this.#hurriedAt < HURRY_INTERVAL_MS) return false;
    this.#hadLink = false;
    this.#hurriedAt = now;
    return true;
  }
}
