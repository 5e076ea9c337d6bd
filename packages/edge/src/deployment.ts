/**
 * A deployment: a target and the way there, for the connections of a listener that are meant for it. It can be started
 * and stopped while the edge runs.
 */
import type { AddressInfo } from "node:net";
import type { Resolver } from "@sallyport/host";
import { ResetCode } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { ConnectionFacts, RecordWriter } from "./access-record.ts";
import type { AgentSessions } from "./agent-sessions.ts";
import type { CheckSlots } from "./check-slots.ts";
import { ConnectionCount } from "./connection-count.ts";
import type { Gatekeeper } from "./gatekeeper.ts";
import { type CheckSettings, HealthChecks, type Probe } from "./health-checks.ts";
import { HoldQueue, type HoldSettings } from "./hold-queue.ts";
import type { Listener } from "./listener.ts";
import type { PartnerConnection } from "./partner-connection.ts";
import { Pool, type PoolSettings, type RouteChange } from "./pool.ts";
import type { Route } from "./route.ts";
import { probeDirectly, probeThroughAgent } from "./target-probe.ts";

/** What listeners and deployments share; it outlives each of them. */
export interface DeploymentContext {
  readonly gatekeeper: Gatekeeper;
  readonly sessions: AgentSessions;
  readonly resolver: Resolver;
  readonly records: RecordWriter;
  readonly checkSlots: CheckSlots;
  readonly log: Logger;
}

export interface DeploymentSettings {
  readonly name: string;
  /** Name of the listener on which its connections arrive. */
  readonly listener: string;
  /** See `ServerNames`. */
  readonly sni: readonly string[];
  readonly alpn: readonly string[];
  /** Version of the PROXY header that the target gets first. */
  readonly proxyProtocol: "off" | "v1" | "v2";
  readonly pool: PoolSettings;
  /** Connections of the deployment at the same time, whatever their targets; undefined: no limit of its own. */
  readonly maxConnections: number | undefined;
  /** The way through agents; undefined: the edge dials itself. The clients are those of `pool`. */
  readonly via: { readonly tunnel: string; readonly clients: readonly string[] } | undefined;
  /** Other routes that are tried when one fails. */
  readonly retries: number;
  /** Waiting for a target that is full. */
  readonly queue: HoldSettings;
  readonly check: CheckSettings | undefined;
  readonly onDown: "keep" | "close";
  readonly startup: "auto" | "manual";
  readonly hold: HoldSettings;
  readonly timeouts: { readonly connectMs: number; readonly idleMs: number; readonly halfCloseMs: number };
}

export type DeploymentState = "stopped" | "running" | "draining";

export class Deployment {
  readonly name: string;
  readonly context: DeploymentContext;
  /** Connections keep the way they began on; new ones follow the settings of the moment. */
  settings: DeploymentSettings;
  /** Bounded by the limits of admission. */
  readonly connections = new Set<PartnerConnection>();
  /** Of ended connections, except `accepted`; they only grow. */
  readonly counters = { accepted: 0, bytesIn: 0, bytesOut: 0 };
  /** Of its connections, against the limit of its target. */
  readonly count: ConnectionCount;
  /** Those that wait for an agent. */
  readonly holdQueue: HoldQueue;
  /** Those that wait because every target is full. */
  readonly targetQueue: HoldQueue;
  /** Connections keep the one that they began with. */
  #pool: Pool;
  #checks: HealthChecks;
  #listener: Listener;
  #drainTimer: NodeJS.Timeout | undefined;
  #onDrained: (() => void)[] = [];

  constructor(settings: DeploymentSettings, listener: Listener) {
    this.name = settings.name;
    this.settings = settings;
    this.context = listener.context;
    this.count = new ConnectionCount(settings.maxConnections);
    this.holdQueue = new HoldQueue(settings.hold);
    this.#listener = listener;
    this.targetQueue = new HoldQueue(settings.queue);
    this.#pool = this.#makePool(settings);
    this.#checks = this.#makeChecks();
  }

  get state(): DeploymentState {
    if (this.#listener.serves(this)) return "running";
    return this.connections.size > 0 ? "draining" : "stopped";
  }

  /** Where its connections arrive; other deployments may have the same one. */
  get listener(): Listener {
    return this.#listener;
  }

  /** Where it listens, while it runs. */
  get address(): AddressInfo | undefined {
    return this.state === "running" ? this.#listener.address : undefined;
  }

  get pool(): Pool {
    return this.#pool;
  }

  /** Running, and a target is up with an agent if one is needed: a connection that came now would be served. */
  get ready(): boolean {
    return this.state === "running" && this.#pool.available;
  }

  /** What is missing when no route is available, for people. */
  get whyNoRoute(): string {
    const { via } = this.settings;
    const conditions = this.#pool.routes.map((route) => ({ route, condition: this.#pool.condition(route) }));
    if (via !== undefined && conditions.every(({ condition }) => condition === "no agent")) {
      return `no agent of client ${via.clients.join(" or ")} is connected at tunnel ${via.tunnel}`;
    }
    const each = conditions.map(({ route, condition }) => {
      const through = route.client === undefined ? "" : ` through ${route.client}`;
      const why = condition === "down" && route.reason !== undefined ? ` (${route.reason})` : "";
      return `${route.target}${through} ${condition}${why}`;
    });
    return `no target is available: ${each.join(", ")}`;
  }

  /**
   * Serves connections that wait for an agent or for room at a target, as far as there is one now. One that does not run
   * gives them up, and dials nobody for them before.
   */
  serveWaiting(): void {
    if (this.state !== "running") return;
    const pool = this.#pool;
    if (this.holdQueue.size > 0) this.holdQueue.serve(() => pool.available);
    if (this.targetQueue.size > 0) this.targetQueue.serve(() => pool.hasRoom);
  }

  /** Bytes of all connections so far, the live ones included. */
  get bytes(): { in: number; out: number } {
    let bytesIn = this.counters.bytesIn;
    let bytesOut = this.counters.bytesOut;
    for (const connection of this.connections) {
      bytesIn += connection.bytesIn;
      bytesOut += connection.bytesOut;
    }
    return { in: bytesIn, out: bytesOut };
  }

  /** Takes connections. Does nothing when it does already. @throws the system's error when the address cannot be bound */
  async start(): Promise<void> {
    if (this.state === "running") return;
    await this.#listener.start(this);
    this.started();
  }

  /**
   * Takes the settings of a reload, and the listener that it has now; whether it runs there is told to the listener, and what
   * waits is served when it knows.
   */
  adopt(settings: DeploymentSettings, listener: Listener): void {
    this.settings = settings;
    this.holdQueue.settings = settings.hold;
    this.count.max = settings.maxConnections;
    this.targetQueue.settings = settings.queue;
    this.#listener = listener;
    this.#updatePool(settings);
  }

  /** Called when its listener takes connections for it. */
  started(): void {
    this.updateChecks();
    clearTimeout(this.#drainTimer);
    for (const resolve of this.#onDrained.splice(0)) resolve();
    const { address, port } = this.#listener.address ?? {};
    this.context.log.info(
      { deployment: this.name, listener: this.#listener.name, address, port },
      "deployment started",
    );
  }

  /**
   * Takes no more connections. `cut` resets its connections now; `drain` lets them finish for `drainTimeoutMs` and resets what is
   * left then. Resolves when none is left.
   */
  async stop(mode: { type: "cut" } | { type: "drain"; drainTimeoutMs: number }): Promise<void> {
    if (this.state === "running") {
      this.#listener.stop(this, mode.type === "cut" ? ResetCode.killed : ResetCode.shutdown);
      this.context.log.info({ deployment: this.name, mode: mode.type }, "deployment stopped");
    }
    this.#checks.update(undefined);
    if (mode.type === "cut") {
      this.cut(ResetCode.killed);
      return;
    }
    this.holdQueue.stop();
    this.targetQueue.stop();
    if (this.connections.size === 0) return;
    clearTimeout(this.#drainTimer);
    this.#drainTimer = setTimeout(() => this.cut(ResetCode.shutdown), mode.drainTimeoutMs);
    await new Promise<void>((resolve) => this.#onDrained.push(resolve));
  }

  /** Resets every connection. */
  cut(code: typeof ResetCode.killed | typeof ResetCode.shutdown): void {
    for (const connection of this.connections) connection.abort(code);
  }

  /** A deployment that dials itself and one that goes through agents have no route in common. */
  #updatePool(settings: DeploymentSettings): void {
    const isTunnelled = settings.pool.clients !== undefined;
    if (isTunnelled === (this.#pool.settings.clients !== undefined)) {
      this.#pool.update(settings.pool);
    } else {
      this.#checks.update(undefined);
      this.#pool = this.#makePool(settings);
      this.#checks = this.#makeChecks();
    }
  }

  /** Checks its targets if it runs, as its settings say, and no others. */
  updateChecks(): void {
    this.#checks.update(this.state === "running" ? this.settings.check : undefined);
  }

  #makePool(settings: DeploymentSettings): Pool {
    return new Pool(settings.pool, {
      isConnected: (client) => {
        const { via } = this.settings;
        return via !== undefined && this.context.sessions.pick({ tunnel: via.tunnel, client }) !== undefined;
      },
      onChange: (change) => this.#routeChanged(change),
    });
  }

  #makeChecks(): HealthChecks {
    const { sessions, resolver, checkSlots: slots } = this.context;
    const probe: Probe = (route, settings, signal) => {
      const { client, target } = route;
      const { address } = route.settings;
      if (address !== undefined)
        return probeDirectly({ ...address, resolver, proxyProtocol: this.settings.proxyProtocol }, settings, signal);
      const via = { tunnel: this.settings.via?.tunnel ?? "", client: client ?? "" };
      return probeThroughAgent(
        { sessions, via, target, deployment: this.name, proxyProtocol: this.settings.proxyProtocol },
        settings,
        signal,
      );
    };
    return new HealthChecks({ pool: this.#pool, probe, slots });
  }

  #routeChanged(change: RouteChange): void {
    const { log } = this.context;
    const { route } = change;
    const facts = { deployment: this.name, target: route.target, client: route.client };
    switch (change.type) {
      case "up":
        log.info(facts, "target up");
        break;
      case "down":
        log.warn({ ...facts, reason: change.reason, active: route.active }, "target down");
        if (this.settings.onDown === "close") this.#closeConnectionsOf(route);
        break;
      case "ejected":
        log.warn({ ...facts, reason: "connects failed in a row", pauseMs: change.pauseMs }, "target ejected");
        break;
      case "state":
        log.info({ ...facts, state: route.state, weight: route.weight }, "target set");
        break;
    }
    this.serveWaiting();
  }

  #closeConnectionsOf(route: Route): void {
    for (const connection of this.connections) {
      if (connection.targetRoute === route) connection.abort(ResetCode.targetDown);
    }
  }

  /** Called by a connection when it is over. */
  ended(connection: PartnerConnection, facts: ConnectionFacts): void {
    if (!this.connections.delete(connection)) return;
    this.count.release();
    this.counters.bytesIn += facts.bytesIn;
    this.counters.bytesOut += facts.bytesOut;
    if (this.connections.size > 0) return;
    clearTimeout(this.#drainTimer);
    for (const resolve of this.#onDrained.splice(0)) resolve();
  }
}
