/**
 * How much the agent does for edges: connections at once and dials per second, for each service and for all. An edge that
 * opens and resets as fast as it can costs targets no more than these.
 */
import type { Service } from "./config.ts";

export interface DialLimitSettings {
  /** Connections at once, of all services and allow rules together. */
  readonly maxConnections: number;
  /** Dials per second of all together; as many may come at once. */
  readonly dialsPerSecond: number;
  readonly services: ReadonlyMap<string, Pick<Service, "maxConnections" | "dialsPerSecond">>;
}

export type DialRefusal = "maxConnections" | "dialsPerSecond" | "serviceMaxConnections" | "serviceDialsPerSecond";

/** Counts until `release` is called: when the dial has failed or the connection is closed, whatever came of the stream. */
export interface DialPermit {
  /** Later calls do nothing. */
  release(): void;
}

/** A token bucket that holds what one second earns, and at least one token. */
class Bucket {
  #perSecond: number;
  #tokens: number;
  #at: number | undefined;

  constructor(perSecond: number) {
    this.#perSecond = perSecond;
    this.#tokens = this.#capacity;
  }

  setRate(perSecond: number): void {
    this.#perSecond = perSecond;
    this.#tokens = Math.min(this.#tokens, this.#capacity);
  }

  has(nowMs: number): boolean {
    if (this.#at !== undefined && nowMs > this.#at) {
      const earned = ((nowMs - this.#at) / 1_000) * this.#perSecond;
      this.#tokens = Math.min(this.#capacity, this.#tokens + earned);
    }
    this.#at = nowMs;
    return this.#tokens >= 1;
  }

  take(): void {
    // An unlimited bucket stays at infinity.
    this.#tokens -= 1;
  }

  get #capacity(): number {
    return Math.max(1, this.#perSecond);
  }
}

interface Counter {
  active: number;
  maxConnections: number;
  readonly dials: Bucket;
}

export class DialLimits {
  readonly #all: Counter;
  /** Bounded by the services of the configuration, and by those that were taken out of it while connections run. */
  readonly #services = new Map<string, Counter>();

  constructor(settings: DialLimitSettings) {
    this.#all = makeCounter(settings);
    this.update(settings);
  }

  /** Takes new limits over; what runs goes on and counts. */
  update(settings: DialLimitSettings): void {
    applyLimits(this.#all, settings);
    for (const [name, service] of settings.services) {
      const limits = {
        maxConnections: service.maxConnections ?? Number.POSITIVE_INFINITY,
        dialsPerSecond: service.dialsPerSecond ?? Number.POSITIVE_INFINITY,
      };
      const counter = this.#services.get(name);
      if (counter === undefined) this.#services.set(name, makeCounter(limits));
      else applyLimits(counter, limits);
    }
    for (const [name, counter] of this.#services) {
      if (!settings.services.has(name) && counter.active === 0) this.#services.delete(name);
    }
  }

  /** Dials and connections that count now. */
  get active(): number {
    return this.#all.active;
  }

  /** Asks for one dial; `service` is undefined for a target that `allow` admits. Nothing is counted when it is refused. */
  admit(service: string | undefined, nowMs: number): DialPermit | DialRefusal {
    const all = this.#all;
    const own = service === undefined ? undefined : this.#services.get(service);
    if (all.active >= all.maxConnections) return "maxConnections";
    if (own !== undefined && own.active >= own.maxConnections) return "serviceMaxConnections";
    if (own !== undefined && !own.dials.has(nowMs)) return "serviceDialsPerSecond";
    if (!all.dials.has(nowMs)) return "dialsPerSecond";
    all.dials.take();
    all.active += 1;
    if (own !== undefined) {
      own.dials.take();
      own.active += 1;
    }
    let released = false;
    return {
      release: () => {
        if (released) return;
        released = true;
        all.active -= 1;
        if (own !== undefined) own.active -= 1;
      },
    };
  }
}

function makeCounter(limits: { maxConnections: number; dialsPerSecond: number }): Counter {
  return { active: 0, maxConnections: limits.maxConnections, dials: new Bucket(limits.dialsPerSecond) };
}

function applyLimits(counter: Counter, limits: { maxConnections: number; dialsPerSecond: number }): void {
  counter.maxConnections = limits.maxConnections;
  counter.dials.setRate(limits.dialsPerSecond);
}
