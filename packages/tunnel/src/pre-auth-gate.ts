/*
 * Decides, before any TLS work, whether a connection to the tunnel port may try to authenticate. Pure: the caller passes
 * the time and says when a connection ended or authenticated.
 *
 * The caps are on connections that have not authenticated yet. An honest one is in that state for about three round trips,
 * an idle one for up to ten seconds. The cap per source is 16, because an agent opens up to 16 links at once; all replicas
 * behind one address translation count as one source, so a source that has authenticated lately gets three times as much:
 * twenty agents with two links each then reconnect in one go. Who is over the cap is only refused, not punished: agents
 * try again with back-off. The last places of the total are kept for sources that have authenticated lately, so that
 * strangers who fill the port do not keep known agents out.
 */
import { type Offence, PenaltyBox, type PenaltyBoxOptions } from "./penalty-box.ts";

export interface PreAuthGateOptions {
  /** Connections that may be unauthenticated at the same time. Default 64. */
  readonly maxPending?: number;
  /** How many of `maxPending` only known sources may take. Default 16. */
  readonly reservedForKnown?: number;
  /** The most unauthenticated connections of one source. Default 16. */
  readonly maxPerSource?: number;
  /** The same for a source that has authenticated lately. Default 48. */
  readonly maxPerKnownSource?: number;
  /** How long a source stays known after it authenticated. Default 24 h, so that it survives a night's outage. */
  readonly knownForMs?: number;
  /** The most known sources; beyond, the one that authenticated the longest ago is forgotten. Default 4,096. */
  readonly maxKnownSources?: number;
  readonly penalties?: PenaltyBoxOptions;
}

/** Why a connection is refused: its source is punished, holds too many places, or there is no place left. */
export type PreAuthRefusal = "penalty" | "source_limit" | "limit";

export class PreAuthGate {
  /** Sources with unauthenticated connections, and how many. Bounded by `maxPending`. */
  readonly #pendingBySource = new Map<string, number>();
  /** When a source last authenticated, in that order. Bounded by `maxKnownSources`. */
  readonly #knownSources = new Map<string, number>();
  readonly #penalties: PenaltyBox;
  readonly #maxPending: number;
  readonly #reservedForKnown: number;
  readonly #maxPerSource: number;
  readonly #maxPerKnownSource: number;
  readonly #knownForMs: number;
  readonly #maxKnownSources: number;
  #pending = 0;

  constructor(options: PreAuthGateOptions = {}) {
    this.#penalties = new PenaltyBox(options.penalties);
    this.#maxPending = options.maxPending ?? 64;
    this.#reservedForKnown = options.reservedForKnown ?? 16;
    this.#maxPerSource = options.maxPerSource ?? 16;
    this.#maxPerKnownSource = options.maxPerKnownSource ?? 48;
    this.#knownForMs = options.knownForMs ?? 24 * 3_600_000;
    this.#maxKnownSources = options.maxKnownSources ?? 4_096;
  }

  /** Connections that were admitted and not yet released. */
  get pending(): number {
    return this.#pending;
  }

  /** Sources that the penalty table remembers. */
  get punishedSources(): number {
    return this.#penalties.size;
  }

  /** Takes a place for a connection, or says why there is none. Every place taken must be given back by `release`. */
  admit(source: string, now: number): PreAuthRefusal | undefined {
    if (this.#penalties.refusedForMs(source, now) > 0) {
      return "penalty";
    }
    const known = this.#isKnown(source, now);
    const held = this.#pendingBySource.get(source) ?? 0;
    if (held >= (known ? this.#maxPerKnownSource : this.#maxPerSource)) {
      return "source_limit";
    }
    if (this.#pending >= this.#maxPending - (known ? 0 : this.#reservedForKnown)) {
      return "limit";
    }
    this.#pending++;
    this.#pendingBySource.set(source, held + 1);
    return undefined;
  }

  /** Gives a place back: the connection ended or has authenticated. */
  release(source: string): void {
    const held = this.#pendingBySource.get(source);
    if (held === undefined) {
      return;
    }
    this.#pending--;
    if (held === 1) {
      this.#pendingBySource.delete(source);
    } else {
      this.#pendingBySource.set(source, held - 1);
    }
  }

  /** Remembers that somebody at this source proved a token. */
  recognise(source: string, now: number): void {
    this.#knownSources.delete(source);
    this.#knownSources.set(source, now);
    if (this.#knownSources.size > this.#maxKnownSources) {
      const oldest = this.#knownSources.keys().next();
      if (oldest.done !== true) {
        this.#knownSources.delete(oldest.value);
      }
    }
  }

  /**
   * Punishes a source. A known one is not punished for silence: when a network breaks in the middle of many agents'
   * handshakes, their connections end without an attempt, and they must be able to come back at once.
   */
  punish(source: string, offence: Offence, now: number): void {
    if (offence === "silence" && this.#isKnown(source, now)) {
      return;
    }
    this.#penalties.punish(source, offence, now);
  }

  #isKnown(source: string, now: number): boolean {
    const since = this.#knownSources.get(source);
    return since !== undefined && now - since < this.#knownForMs;
  }
}
