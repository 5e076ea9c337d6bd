/*
 * Penalties by source for those that reach the tunnel port and do not authenticate, modelled on OpenSSH's
 * PerSourcePenalties. Every failure adds time; time takes it away, a second for a second. A source whose time has reached
 * the threshold is refused until all of it has passed. Below the threshold nothing happens, so that an agent with an old
 * token and a port scan once a day are not noticed. Pure: the caller passes the time.
 */

/** What a penalty is for. */
export type Offence =
  /** A proof was wrong: unknown client, wrong token, malformed, replayed. */
  | "authentication"
  /** The connection ended, or ran out of time, without an attempt to authenticate. */
  | "silence"
  /** Bytes that no agent sends: the peer speaks and means harm, or is broken. */
  | "protocol";

/** Time that an offence adds, in milliseconds. */
export const penaltyMs: Readonly<Record<Offence, number>> = {
  authentication: 5_000,
  silence: 1_000,
  protocol: 90_000,
};

export interface PenaltyBoxOptions {
  /** Time that must have come together before a source is refused. Default 15 s. */
  readonly thresholdMs?: number;
  /** The most time that a source can collect. Default 10 min. */
  readonly maxPenaltyMs?: number;
  /** The most sources that are remembered; beyond, the one whose last offence is oldest is forgotten. Default 65,536. */
  readonly maxSources?: number;
}

interface Penalty {
  expiresAt: number;
  /** Set once the threshold was reached; the source then waits until `expiresAt`. */
  enforced: boolean;
}

export class PenaltyBox {
  /** In the order of the last offence. Bounded by `maxSources`. */
  readonly #penalties = new Map<string, Penalty>();
  readonly #thresholdMs: number;
  readonly #maxPenaltyMs: number;
  readonly #maxSources: number;

  constructor(options: PenaltyBoxOptions = {}) {
    this.#thresholdMs = options.thresholdMs ?? 15_000;
    this.#maxPenaltyMs = options.maxPenaltyMs ?? 600_000;
    this.#maxSources = options.maxSources ?? 65_536;
  }

  /** How many sources are remembered. */
  get size(): number {
    return this.#penalties.size;
  }

  /** Adds the time for an offence. `now` in milliseconds, from any clock that only goes forward. */
  punish(source: string, offence: Offence, now: number): void {
    const known = this.#penalties.get(source);
    const before = known !== undefined && known.expiresAt > now ? known : undefined;
    const expiresAt = Math.min((before?.expiresAt ?? now) + penaltyMs[offence], now + this.#maxPenaltyMs);
    const enforced = (before?.enforced ?? false) || expiresAt - now >= this.#thresholdMs;
    this.#penalties.delete(source);
    this.#penalties.set(source, { expiresAt, enforced });
    if (this.#penalties.size > this.#maxSources) {
      const oldest = this.#penalties.keys().next();
      if (oldest.done !== true) {
        this.#penalties.delete(oldest.value);
      }
    }
  }

  /** Milliseconds for which a source is still refused; 0 when it may connect. */
  refusedForMs(source: string, now: number): number {
    const penalty = this.#penalties.get(source);
    if (penalty === undefined) {
      return 0;
    }
    if (penalty.expiresAt <= now) {
      this.#penalties.delete(source);
      return 0;
    }
    return penalty.enforced ? penalty.expiresAt - now : 0;
  }
}
