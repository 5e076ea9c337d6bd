/**
 * The routes of a deployment, each target by each client, and which of them a connection takes now.
 *
 * Primaries serve while one of them can, backups only while none can. A target that is full is waited for; a backup does
 * not help out. An ejected route is avoided while there is another, so that no run of failures leaves a pool empty.
 */
import { type Balance, choose } from "./balance.ts";
import { type CheckThresholds, type EjectionSettings, Route, type RouteState, type TargetSettings } from "./route.ts";

export interface PoolSettings {
  /** At least one; no two of one name. */
  readonly targets: readonly TargetSettings[];
  /** Through whom; undefined: the edge dials the targets itself. */
  readonly clients: readonly string[] | undefined;
  readonly balance: Balance;
  readonly ejection: EjectionSettings;
}

export type Choice =
  | { readonly type: "route"; readonly route: Route }
  /** Every target that could take it has as many connections as it may. */
  | { readonly type: "full" }
  /** There is a route, were there an agent of its client. */
  | { readonly type: "noAgent" }
  /** Every route is down, drained, in maintenance, without weight, or was tried. */
  | { readonly type: "noTarget" };

export interface ChoiceInput {
  /** Where the partner comes from: what `ipHash` goes by. */
  readonly source: string;
  /** Routes that have failed for this connection. */
  readonly tried: ReadonlySet<Route>;
}

/** A place on a route; `release` gives it back, once. */
export interface Seat {
  readonly route: Route;
  release(): void;
}

/** What happened to a route, for the log and for what waits. */
export type RouteChange =
  | { readonly type: "up"; readonly route: Route }
  | { readonly type: "down"; readonly route: Route; readonly reason: string }
  | { readonly type: "ejected"; readonly route: Route; readonly pauseMs: number }
  | { readonly type: "state"; readonly route: Route };

export interface PoolOptions {
  /** Whether an agent of this client could take a connection now. */
  readonly isConnected: (client: string) => boolean;
  readonly onChange: (change: RouteChange) => void;
  /** Milliseconds of a clock that never goes back. Default: `performance.now`. */
  readonly now?: () => number;
  /** 0 up to and without 1. Default: `Math.random`. */
  readonly random?: () => number;
}

export class Pool {
  readonly #options: PoolOptions;
  readonly #now: () => number;
  readonly #random: () => number;
  #settings: PoolSettings;
  /** In the order of the file, a target's clients side by side. Bounded by the configuration. */
  #routes: Route[] = [];
  /** Those that the configuration no longer has, while connections are on them: they count against their targets' bounds. */
  #gone: readonly Route[] = [];

  constructor(settings: PoolSettings, options: PoolOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#random = options.random ?? Math.random;
    this.#settings = settings;
    this.#build();
  }

  get routes(): readonly Route[] {
    return this.#routes;
  }

  get settings(): PoolSettings {
    return this.#settings;
  }

  /** A new connection would be tried on some route at once. */
  get available(): boolean {
    return this.#serving.length > 0;
  }

  /** Takes new settings. What is known of a route, and what an operator wants of it, stays as long as it is there. */
  update(settings: PoolSettings): void {
    this.#settings = settings;
    this.#build();
  }

  choose({ source, tried }: ChoiceInput): Choice {
    const serving = this.#serving;
    if (serving.length === 0) {
      return { type: this.#routes.some((route) => route.usable && !tried.has(route)) ? "noAgent" : "noTarget" };
    }
    const untried = serving.filter((route) => !tried.has(route));
    if (untried.length === 0) return { type: "noTarget" };
    const free = untried.filter((route) => this.#hasRoom(route));
    const route = choose(free, { balance: this.#settings.balance, source, random: this.#random });
    return route === undefined ? { type: "full" } : { type: "route", route };
  }

  /** Whether a connection that has tried nothing would be given a route. */
  get hasRoom(): boolean {
    return this.#serving.some((route) => this.#hasRoom(route));
  }

  /** What there is for a connection that has tried these: room on another route, others that are full, or no other. */
  roomBeside(tried: ReadonlySet<Route>): "room" | "full" | "none" {
    const others = this.#serving.filter((route) => !tried.has(route));
    if (others.length === 0) return "none";
    return others.some((route) => this.#hasRoom(route)) ? "room" : "full";
  }

  take(route: Route): Seat {
    route.active += 1;
    let released = false;
    return {
      route,
      release: () => {
        if (released) return;
        released = true;
        route.active -= 1;
      },
    };
  }

  connected(route: Route): void {
    route.connected();
  }

  /** A connect failed for a reason that is the target's. The last route that could serve is never ejected. */
  connectFailed(route: Route): void {
    const nowMs = this.#now();
    const { ejection } = this.#settings;
    if (!route.connectFailed(ejection) || route.isEjected(nowMs)) return;
    const isOther = (other: Route) =>
      other !== route && other.usable && this.#isReachable(other) && !other.isEjected(nowMs);
    if (!this.#routes.some(isOther)) return;
    const pauseMs = route.eject(ejection, nowMs);
    this.#options.onChange({ type: "ejected", route, pauseMs });
  }

  /** A check has ended; undefined reason: it succeeded. */
  checked(route: Route, reason: string | undefined, thresholds: CheckThresholds): void {
    const change = route.checked(reason, { thresholds, nowMs: this.#now() });
    if (change === "up") this.#options.onChange({ type: "up", route });
    else if (change === "down") this.#options.onChange({ type: "down", route, reason: reason ?? "" });
  }

  /** Nobody checks a route any more: it is taken for up. */
  forgetChecks(route: Route): void {
    route.forgetChecks(this.#now());
  }

  /** The routes of a target, of one client only when it is named. */
  find(target: string, client?: string): Route[] {
    return this.#routes.filter((route) => route.target === target && (client === undefined || route.client === client));
  }

  setState(route: Route, state: RouteState): void {
    // What checks said before a maintenance is old; the first one after it decides.
    if (route.state === "maint" && state !== "maint") route.forgetChecks(this.#now());
    route.state = state;
    if (state === "ready") route.endEjection();
    this.#options.onChange({ type: "state", route });
  }

  setWeight(route: Route, weight: number): void {
    route.setWeight(weight);
    this.#options.onChange({ type: "state", route });
  }

  /** What a route is now, in one word, the first that holds: as `target list` shows it. */
  condition(route: Route): "maint" | "drain" | "off" | "down" | "no agent" | "ejected" | "full" | "up" {
    if (route.state !== "ready") return route.state;
    if (route.weight === 0) return "off";
    if (!route.checkedUp) return "down";
    if (!this.#isReachable(route)) return "no agent";
    if (route.isEjected(this.#now())) return "ejected";
    return this.#hasRoom(route) ? "up" : "full";
  }

  /** Works as far as checks and ejection say, whatever an operator wants of it. */
  isUp(route: Route): boolean {
    return route.checkedUp && !route.isEjected(this.#now());
  }

  downMs(route: Route): number {
    return route.downMs(this.#now());
  }

  /** Those that serve now: primaries or else backups, and ejected ones only when there is nothing else. */
  get #serving(): Route[] {
    const nowMs = this.#now();
    const usable = this.#routes.filter((route) => route.usable && this.#isReachable(route));
    const sound = usable.filter((route) => !route.isEjected(nowMs));
    for (const routes of [sound, usable]) {
      const primaries = routes.filter(({ settings }) => !settings.backup);
      if (primaries.length > 0) return primaries;
      if (routes.length > 0) return routes;
    }
    return [];
  }

  #isReachable({ client }: Route): boolean {
    return client === undefined || this.#options.isConnected(client);
  }

  /** The bound of a target holds for all its routes together. */
  #hasRoom(route: Route): boolean {
    const { maxConnections } = route.settings;
    if (maxConnections === undefined) return true;
    let active = 0;
    for (const other of this.#routes) if (other.target === route.target) active += other.active;
    for (const other of this.#gone) if (other.target === route.target) active += other.active;
    return active < maxConnections;
  }

  #build(): void {
    const before = [...this.#gone, ...this.#routes];
    const known = new Map(this.#routes.map((route) => [`${route.client ?? ""} ${route.target}`, route]));
    const nowMs = this.#now();
    this.#routes = this.#settings.targets.flatMap((target) =>
      (this.#settings.clients ?? [undefined]).map((client) => {
        const route = known.get(`${client ?? ""} ${target.target}`);
        route?.update(target);
        return route ?? new Route(target, { client, nowMs });
      }),
    );
    const here = new Set(this.#routes);
    this.#gone = before.filter((route) => route.active > 0 && !here.has(route));
  }
}
