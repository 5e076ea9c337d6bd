/**
 * The active checks of one deployment: when each route is checked, while it listens. What a result means is the pool's
 * matter, how it is had the probe's.
 *
 * The first check of a route comes within a second, the next an interval after the last has ended; both are spread at
 * random, so that neither edges nor routes check in step.
 */
import type { CheckSlots } from "./check-slots.ts";
import type { Pool } from "./pool.ts";
import type { CheckThresholds, Route } from "./route.ts";

export interface CheckSettings extends CheckThresholds {
  readonly intervalMs: number;
  /** For connecting, and for the answer where one is expected. */
  readonly timeoutMs: number;
  /** How far an interval strays from its length, as a part of it: 0 to 1. */
  readonly jitter: number;
  /** Sent when the target is connected. */
  readonly send: Buffer | undefined;
  /** Must appear in the first bytes of the target. */
  readonly expect: Buffer | undefined;
}

export type ProbeResult =
  | { readonly type: "passed" }
  | { readonly type: "failed"; readonly reason: string }
  /** Nothing was learnt of the target: there is no agent, or it has its hands full. */
  | { readonly type: "unknown" };

export type Probe = (route: Route, settings: CheckSettings, signal: AbortSignal) => Promise<ProbeResult>;

const FIRST_WITHIN_MS = 1_000;

export interface HealthChecksOptions {
  readonly pool: Pool;
  readonly probe: Probe;
  readonly slots: CheckSlots;
  /** 0 up to and without 1. Default: `Math.random`. */
  readonly random?: () => number;
}

export class HealthChecks {
  readonly #options: HealthChecksOptions;
  readonly #random: () => number;
  #settings: CheckSettings | undefined;
  /** One for each route that is checked; aborting it ends its checks. */
  readonly #running = new Map<Route, AbortController>();

  constructor(options: HealthChecksOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
  }

  /**
   * Checks the routes that the pool has now, from now on, or none without settings. Routes that were checked before go on
   * with what is known of them; where the interval is a shorter one, the longer one is not waited for.
   */
  update(settings: CheckSettings | undefined): void {
    const isSooner = (settings?.intervalMs ?? 0) < (this.#settings?.intervalMs ?? 0);
    this.#settings = settings;
    const wanted = new Set(settings === undefined ? [] : this.#options.pool.routes);
    for (const [route, controller] of this.#running) {
      if (wanted.has(route) && !isSooner) continue;
      controller.abort();
      this.#running.delete(route);
      if (!wanted.has(route)) this.#options.pool.forgetChecks(route);
    }
    for (const route of wanted) {
      if (this.#running.has(route)) continue;
      const controller = new AbortController();
      this.#running.set(route, controller);
      const first = Math.min(FIRST_WITHIN_MS, settings?.intervalMs ?? 0) * this.#random();
      this.#schedule(route, first, controller.signal);
    }
  }

  #schedule(route: Route, afterMs: number, signal: AbortSignal): void {
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", onAbort);
      void this.#check(route, signal);
    }, afterMs);
    const onAbort = () => clearTimeout(timer);
    signal.addEventListener("abort", onAbort, { once: true });
  }

  async #check(route: Route, signal: AbortSignal): Promise<void> {
    const { pool, probe, slots } = this.#options;
    const result = await slots.run(async (): Promise<ProbeResult> => {
      const settings = this.#settings;
      if (signal.aborted || settings === undefined || route.state === "maint") return { type: "unknown" };
      return probe(route, settings, signal);
    });
    const settings = this.#settings;
    if (signal.aborted || settings === undefined) return;
    // A maintenance that began meanwhile does not want to hear of it.
    if (result.type !== "unknown" && route.state !== "maint") {
      pool.checked(route, result.type === "failed" ? result.reason : undefined, settings);
    }
    const stray = settings.jitter * (2 * this.#random() - 1);
    this.#schedule(route, settings.intervalMs * (1 + stray), signal);
  }
}
