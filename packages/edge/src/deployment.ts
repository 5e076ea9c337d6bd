/**
 * A deployment: a listener, a target and the way there, with the connections that it serves. It can be started and
 * stopped while the edge runs.
 */
import type { AddressInfo } from "node:net";
import type { Resolver } from "@sallyport/host";
import { ResetCode } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { ConnectionFacts, RecordWriter } from "./access-record.ts";
import type { Admission, AdmissionCounter } from "./admission.ts";
import type { AgentSessions } from "./agent-sessions.ts";
import { HoldQueue, type HoldSettings } from "./hold-queue.ts";
import type { IpFilter } from "./ip-filter.ts";
import { Listener } from "./listener.ts";
import { PartnerConnection, type Refusal } from "./partner-connection.ts";

/** What deployments share; it outlives each of them. */
export interface DeploymentContext {
  readonly admission: Admission;
  readonly sessions: AgentSessions;
  readonly resolver: Resolver;
  readonly records: RecordWriter;
  readonly log: Logger;
}

export interface DeploymentSettings {
  readonly name: string;
  readonly listener: {
    readonly name: string;
    readonly host: string;
    readonly port: number;
    readonly maxConnections: number | undefined;
  };
  readonly ipFilter: IpFilter | undefined;
  readonly target: string;
  /** The target as an address to dial; of a direct deployment only. */
  readonly directTarget: { readonly host: string; readonly port: number } | undefined;
  readonly via: { readonly tunnel: string; readonly client: string } | undefined;
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
  readonly counters = { accepted: 0, bytesIn: 0, bytesOut: 0, refused: {} as Partial<Record<Refusal, number>> };
  readonly holdQueue: HoldQueue;
  readonly counter: { active: number; maxConnections: number | undefined };
  #listener: Listener | undefined;
  #drainTimer: NodeJS.Timeout | undefined;
  #onDrained: (() => void)[] = [];

  constructor(settings: DeploymentSettings, context: DeploymentContext) {
    this.name = settings.name;
    this.settings = settings;
    this.context = context;
    this.holdQueue = new HoldQueue(settings.hold);
    this.counter = { active: 0, maxConnections: settings.listener.maxConnections } satisfies AdmissionCounter;
  }

  get state(): DeploymentState {
    if (this.#listener !== undefined) return "running";
    return this.connections.size > 0 ? "draining" : "stopped";
  }

  /** What it listens with, while it runs. */
  get listener(): Listener | undefined {
    return this.#listener;
  }

  /** Where it listens, while it runs. */
  get address(): AddressInfo | undefined {
    return this.#listener?.address;
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

  /** Listens. Does nothing when it does already. @throws the system's error when the address cannot be bound */
  async start(): Promise<void> {
    if (this.#listener !== undefined) return;
    const bound = await Deployment.listen(this.settings, this.context.log);
    if (this.#listener !== undefined) return bound.close();
    this.adopt(this.settings, bound);
  }

  /** Binds the address of `settings`; the listener belongs to the caller. @throws as `start` */
  static async listen({ listener }: DeploymentSettings, log: Logger): Promise<Listener> {
    const bound = new Listener({
      ...listener,
      onError: (code) => log.error({ listener: listener.name, error: code }, "accept failed"),
    });
    await bound.bind();
    return bound;
  }

  /**
   * Takes new settings, and a bound listener for them or none. The listener before is not closed: it may serve another
   * deployment now.
   */
  adopt(settings: DeploymentSettings, listener: Listener | undefined): void {
    const wasRunning = this.#listener !== undefined;
    this.settings = settings;
    this.holdQueue.settings = settings.hold;
    this.counter.maxConnections = settings.listener.maxConnections;
    this.#listener = listener;
    if (listener === undefined) return;
    listener.onSocket = (socket) => PartnerConnection.serve(socket, this);
    clearTimeout(this.#drainTimer);
    for (const resolve of this.#onDrained.splice(0)) resolve();
    if (wasRunning) return;
    const { address, port } = listener.address ?? {};
    this.context.log.info(
      { deployment: this.name, listener: settings.listener.name, address, port },
      "deployment started",
    );
  }

  /**
   * Stops listening. `cut` resets its connections now; `drain` lets them finish for `drainTimeoutMs` and resets what is
   * left then. Resolves when none is left.
   */
  async stop(mode: { type: "cut" } | { type: "drain"; drainTimeoutMs: number }): Promise<void> {
    if (this.#listener !== undefined) {
      this.#listener.close();
      this.#listener = undefined;
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
    this.counters.bytesIn += facts.bytesIn;
    this.counters.bytesOut += facts.bytesOut;
    if (this.connections.size > 0) return;
    clearTimeout(this.#drainTimer);
    for (const resolve of this.#onDrained.splice(0)) resolve();
  }
}
