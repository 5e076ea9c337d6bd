/**
 * A route of a deployment: a target, and the client through which it is reached, or none when the edge dials it itself.
 * What is known of it: whether it may be used, whether it works, what runs on it. Pure: results and `now` go in.
 *
 * Two things can take a route out of service without an operator: checks, which mark it down and up again, and ejection,
 * a pause after connects of partners have failed in a row.
 */
import { nameHash } from "./balance.ts";

/** What an operator wants of a route. `drain`: no new connections. `maint`: no checks either. Running ones go on. */
export const ROUTE_STATES = ["ready", "drain", "maint"] as const;
export type RouteState = (typeof ROUTE_STATES)[number];

export interface TargetSettings {
  readonly target: string;
  /** The target as an address to dial; where the edge dials itself. */
  readonly address: { readonly host: string; readonly port: number } | undefined;
  /** The share of connections, relative to others; 0: none. */
  readonly weight: number;
  /** Serves only while no other target can. */
  readonly backup: boolean;
  /** Connections to the target at once, by all its routes together; undefined: no bound. */
  readonly maxConnections: number | undefined;
}

export interface EjectionSettings {
  /** Connects that fail in a row; 0: a route is never ejected. */
  readonly failures: number;
  /** The first pause in milliseconds; the nth lasts n times as long. */
  readonly timeMs: number;
  /** The longest pause, and how long a route must have behaved for its pauses to be forgotten. */
  readonly maxMs: number;
}

export interface CheckThresholds {
  /** Checks that must succeed in a row before a route that is down is up. */
  readonly rise: number;
  /** Checks that must fail in a row before a route that is up is down. */
  readonly fall: number;
}

export class Route {
  readonly client: string | undefined;
  readonly target: string;
  readonly hash: number;
  settings: TargetSettings;
  state: RouteState = "ready";
  /** Set by an operator; goes with a reload that changes the weight in the file. */
  #weight: number | undefined;
  turn = 0;
  /** Connections on it now, those that are being opened included. */
  active = 0;
  /** Of checks; a route is taken for up until one says otherwise. */
  checkedUp = true;
  /** Why it is down, or was last. */
  reason: string | undefined;
  /** When `checkedUp` changed last, in milliseconds of the caller's clock. */
  changedAt: number;
  /** Totals for metrics; they only grow. */
  readonly counters = { connectErrors: 0, retries: 0, redispatches: 0, checkFailures: 0, upDowns: 0, ejections: 0 };
  #hasBeenChecked = false;
  /** Results in a row that contradict `checkedUp`. */
  #contrary = 0;
  #failures = 0;
  #ejectedUntil = 0;
  #ejectedInARow = 0;
  #downMs = 0;

  constructor(settings: TargetSettings, { client, nowMs }: { client: string | undefined; nowMs: number }) {
    this.settings = settings;
    this.client = client;
    this.target = settings.target;
    this.hash = nameHash(`${client ?? ""} ${settings.target}`);
    this.changedAt = nowMs;
  }

  get weight(): number {
    return this.#weight ?? this.settings.weight;
  }

  setWeight(weight: number): void {
    this.#weight = weight;
  }

  /** Takes what the file says now. A weight that was set by command stays unless the file's has changed. */
  update(settings: TargetSettings): void {
    if (settings.weight !== this.settings.weight) this.#weight = undefined;
    this.settings = settings;
  }

  /** Neither its operator nor its checks forbid it; an ejected route may still be the last resort. */
  get usable(): boolean {
    return this.state === "ready" && this.weight > 0 && this.checkedUp;
  }

  isEjected(nowMs: number): boolean {
    return nowMs < this.#ejectedUntil;
  }

  /** When the pause ends that the last ejection began. */
  get ejectedUntil(): number {
    return this.#ejectedUntil;
  }

  /** Milliseconds for which checks have had it down. */
  downMs(nowMs: number): number {
    return this.#downMs + (this.checkedUp ? 0 : nowMs - this.changedAt);
  }

  /** A check has ended; undefined reason: it succeeded. Returns what that changed. The first result counts at once. */
  checked(reason: string | undefined, { thresholds, nowMs }: { thresholds: CheckThresholds; nowMs: number }) {
    const isUp = reason === undefined;
    if (!isUp) this.counters.checkFailures += 1;
    const isFirst = !this.#hasBeenChecked;
    this.#hasBeenChecked = true;
    if (isUp === this.checkedUp) {
      this.#contrary = 0;
      return undefined;
    }
    this.#contrary += 1;
    if (!isFirst && this.#contrary < (isUp ? thresholds.rise : thresholds.fall)) return undefined;
    this.#set(isUp, reason, nowMs);
    return isUp ? ("up" as const) : ("down" as const);
  }

  /** It is checked no more, or anew: what checks have said is forgotten. */
  forgetChecks(nowMs: number): void {
    if (!this.checkedUp) this.#set(true, undefined, nowMs);
    this.#hasBeenChecked = false;
    this.#contrary = 0;
  }

  /** A partner's connect succeeded. */
  connected(): void {
    this.#failures = 0;
  }

  /** A partner's connect failed, for a reason that is the target's. Returns whether it should be ejected. */
  connectFailed({ failures }: EjectionSettings): boolean {
    this.counters.connectErrors += 1;
    this.#failures += 1;
    return failures > 0 && this.#failures >= failures;
  }

  /** Takes it out for a while; returns for how long. */
  eject({ timeMs, maxMs }: EjectionSettings, nowMs: number): number {
    // One that has behaved for the longest pause begins anew.
    if (nowMs - this.#ejectedUntil > maxMs) this.#ejectedInARow = 0;
    this.#ejectedInARow += 1;
    this.#failures = 0;
    const pauseMs = Math.min(maxMs, timeMs * this.#ejectedInARow);
    this.#ejectedUntil = nowMs + pauseMs;
    this.counters.ejections += 1;
    return pauseMs;
  }

  /** An operator, or a check that has brought it up, says that it works. */
  endEjection(): void {
    this.#ejectedUntil = 0;
    this.#ejectedInARow = 0;
    this.#failures = 0;
  }

  #set(isUp: boolean, reason: string | undefined, nowMs: number): void {
    if (isUp) this.#downMs += nowMs - this.changedAt;
    this.checkedUp = isUp;
    this.reason = reason;
    this.changedAt = nowMs;
    this.#contrary = 0;
    this.turn = 0;
    this.counters.upDowns += 1;
    if (isUp) this.endEjection();
  }
}
