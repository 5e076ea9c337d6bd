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
import { ConnectionCount } from "./connection-count.ts";
import type { Gatekeeper } from "./gatekeeper.ts";
import { HoldQueue, type HoldSettings } from "./hold-queue.ts";
import type { Listener } from "./listener.ts";
import type { PartnerConnection } from "./partner-connection.ts";

/** What listeners and deployments share; it outlives each of them. */
export interface DeploymentContext {
  readonly gatekeeper: Gatekeeper;
  readonly sessions: AgentSessions;
  readonly resolver: Resolver;
  readonly records: RecordWriter;
  readonly log: Logger;
}

export interface DeploymentSettings {
  readonly name: string;
  /** Name of the listener on which its connections arrive. */
  readonly listener: string;
  readonly target: string;
  /** The target as an address to dial; of a direct deployment only. */
  readonly directTarget: { readonly host: string; readonly port: number } | undefined;
  readonly via: { readonly tunnel: string; readonly client: string } | undefined;
  /** Connections to the target at the same time; undefined: no limit of its own. */
  readonly maxConnections: number | undefined;
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
  readonly holdQueue: HoldQueue;
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

  /** Running, and an agent is there if one is needed: a connection that came now would be served. */
  get ready(): boolean {
    const { via } = this.settings;
    return this.state === "running" && (via === undefined || this.context.sessions.pick(via) !== undefined);
  }

  /** Serves connections that wait for an agent, if there is one now. */
  serveHeld(): void {
    const { via } = this.settings;
    if (via !== undefined) this.holdQueue.serve(() => this.context.sessions.pick(via) !== undefined);
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

  /** Takes the settings of a reload, and the listener that it has now; whether it runs there is told to the listener. */
  adopt(settings: DeploymentSettings, listener: Listener): void {
    this.settings = settings;
    this.holdQueue.settings = settings.hold;
    this.count.max = settings.maxConnections;
    this.#listener = listener;
  }

  /** Called when its listener takes connections for it. */
  started(): void {
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
    this.holdQueue.clear();
    if (mode.type === "cut") {
      this.cut(ResetCode.killed);
      return;
    }
    if (this.connections.size === 0) return;
    clearTimeout(this.#drainTimer);
    this.#drainTimer = setTimeout(() => this.cut(ResetCode.shutdown), mode.drainTimeoutMs);
    await new Promise<void>((resolve) => this.#onDrained.push(resolve));
  }

  /** Resets every connection. */
  cut(code: typeof ResetCode.killed | typeof ResetCode.shutdown): void {
    for (const connection of this.connections) connection.abort(code);
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
