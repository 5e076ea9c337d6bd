/**
 * The agent program without its command line: builds the parts in order, takes a new configuration, and stops them in
 * reverse.
 */
import { randomBytes } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import {
  AdminServer,
  collectProcessMetrics,
  connectionCapacity,
  dial,
  keepKeys,
  type Logger,
  listenFailure,
  LogFile,
  ObservabilityServer,
  openStateDirectory,
  registerAccessLogMetrics,
  Resolver,
} from "@sallyport/host";
import { FEATURES, MemoryBudget, MIN_DIRECTION_BYTES } from "@sallyport/protocol";
import { Registry } from "prom-client";
import { adminRoutes } from "./admin-routes.ts";
import { type AgentConfig, loadAgentConfig } from "./config.ts";
import { RecordWriter } from "./connection-record.ts";
import { readCredentials } from "./credentials-file.ts";
import { type DialLimitSettings, DialLimits } from "./dial-limits.ts";
import { connectEdge } from "./edge-connector.ts";
import { EdgeSession } from "./edge-session.ts";
import { registerAgentMetrics } from "./metrics.ts";
import { Policy } from "./policy.ts";
import { TargetConnections } from "./target-connections.ts";

/** Keys that are read at start only; a reload that changes them says so. */
const RESTART_KEYS = [
  "name",
  "stateDir",
  "edges",
  "links",
  "renewLinks",
  "stripe",
  "proxy",
  "reconnect",
  "heartbeat",
  "accessLog",
  "metrics",
] as const;

/** What a partner that speaks first may send before its target is connected, in bytes of each stream. */
const INITIAL_CREDIT_BYTES = MIN_DIRECTION_BYTES;

export class Agent {
  /** As it was read last, but `RESTART_KEYS`, which stay as they were at the start. */
  config: AgentConfig;
  readonly configPath: string;
  readonly log: Logger;
  readonly connections: TargetConnections;
  /** In the order of the configuration. */
  readonly edges: EdgeSession[] = [];
  readonly memory: MemoryBudget;
  readonly startedAt = new Date();
  /** What edges were told. */
  readonly #maxStreamsAtStart: number;
  readonly #limits: DialLimits;
  readonly #registry = new Registry();
  readonly #resolver = new Resolver();
  readonly #records: RecordWriter;
  readonly #closers: (() => Promise<void> | void)[] = [];
  /** Aborted when connections are not waited for any more. */
  readonly #cut = new AbortController();
  #stopped: Promise<void> | undefined;

  private constructor(config: AgentConfig, options: { configPath: string; log: Logger }) {
    this.config = config;
    this.#maxStreamsAtStart = config.limits.maxStreams;
    this.configPath = options.configPath;
    this.log = options.log;
    this.#limits = new DialLimits(limitSettings(config));
    this.#records = new RecordWriter(options.log);
    this.memory = new MemoryBudget(config.memory);
    this.connections = new TargetConnections(this.#context(config));
    registerAgentMetrics(this.#registry, {
      connections: this.connections,
      edges: this.edges,
      memory: this.memory,
      services: () => this.config.services.keys(),
    });
    registerAccessLogMetrics(this.#registry, () => this.accessLog);
  }

  /**
   * Resolves when the edges are being dialled. `config` is what is in the file, where that is known.
   *
   * @throws Failure; nothing is left open then
   */
  static async start(configPath: string, log: Logger, config = loadAgentConfig(configPath)): Promise<Agent> {
    await openStateDirectory(config.stateDir);
    const agent = new Agent(config, { configPath, log });
    try {
      await agent.#start();
    } catch (error) {
      await agent.stop({ drain: false });
      throw error;
    }
    return agent;
  }

  get stopping(): boolean {
    return this.#stopped !== undefined;
  }

  /** The file of records, where the configuration names one. */
  get accessLog(): LogFile | undefined {
    return this.#records.log.file;
  }

  /** Why the agent is not ready; empty when every edge has a session with a link. */
  get notReady(): string[] {
    if (this.stopping) return ["shutting down"];
    return this.edges
      .filter((edge) => !edge.connected)
      .map(({ address, lastFailure }) => `edge ${address} is not connected: ${lastFailure ?? "being dialled"}`);
  }

  /**
   * Reads the configuration again and takes over services, allow, limits, memory, timeouts and log level, for connections
   * to come. @throws Failure; nothing has changed then
   */
  reload(): { restartNeeded: string[] } {
    const next = loadAgentConfig(this.configPath);
    const { config, changed } = keepKeys(RESTART_KEYS, { before: this.config, next });
    const restartNeeded: string[] = [...changed];
    // An edge was told the old number; fewer are enforced here at once, more would never be used.
    if (next.limits.maxStreams > this.#maxStreamsAtStart) restartNeeded.push("limits.maxStreams");
    this.#limits.update(limitSettings(next));
    this.memory.limitBytes = next.memory;
    this.connections.context = this.#context(next);
    this.log.level = next.log.level;
    this.config = config;
    if (restartNeeded.length === 0) this.log.info("configuration reloaded");
    else this.log.warn({ restartNeeded }, "configuration reloaded; some keys take effect after a restart");
    return { restartNeeded };
  }

  /**
   * With `drain`, edges open nothing more and running connections have `drainTimeout` to finish; then, or at once, they
   * are reset. A second call without `drain` ends the waiting of the first.
   */
  async stop(options: { drain: boolean }): Promise<void> {
    if (!options.drain) this.#cut.abort();
    this.#stopped ??= this.#stop();
    await this.#stopped;
  }

  async #start(): Promise<void> {
    const { config } = this;
    if (config.accessLog !== undefined) {
      const { log } = this.#records;
      const file = await LogFile.open(config.accessLog, { log: this.log });
      log.file = file;
      log.toLog = config.accessLog.stdout;
      // The first to be opened is the last to be closed, when every record is written.
      this.#closers.push(() => file.close());
    }
    const maxStreams = Math.min(config.limits.maxStreams, connectionCapacity(1) ?? Number.POSITIVE_INFINITY);
    if (maxStreams < config.limits.maxStreams) {
      this.log.warn(
        { maxStreams, configured: config.limits.maxStreams },
        "limits.maxStreams is more than file descriptors are there for; raise the limit of the service (LimitNOFILE)",
      );
    }
    for (const { credentialsFile } of config.edges) {
      // Read now, so that a file that cannot be used ends the program at its start.
      const { address } = await readCredentials(credentialsFile);
      this.edges.push(
        new EdgeSession({
          address,
          connect: (signal) => connectEdge({ credentialsFile, proxy: config.proxy, resolver: this.#resolver }, signal),
          hello: {
            agent: config.name,
            // Of each entry its own: two of them may lead to one edge, by different tunnels.
            process: randomBytes(16).toString("hex"),
            features: FEATURES.slice(),
            initialCredit: INITIAL_CREDIT_BYTES,
            maxStreams,
            links: config.links,
          },
          heartbeat: { intervalMs: config.heartbeat.interval, timeoutMs: config.heartbeat.timeout },
          backoff: { minMs: config.reconnect.min, maxMs: config.reconnect.max },
          renewLinksMs: config.renewLinks,
          memory: this.memory,
          stripe: config.stripe,
          onOpen: (edge, open, stream) => this.connections.serve(edge, open, stream),
          log: this.log,
        }),
      );
    }
    const admin = new AdminServer({ stateDir: config.stateDir, routes: adminRoutes(this) });
    await admin.listen();
    this.#closers.push(() => admin.close());
    if (config.metrics !== undefined) {
      const { listen } = config.metrics;
      collectProcessMetrics(this.#registry);
      const observability = new ObservabilityServer({
        listen,
        registry: this.#registry,
        notReady: () => this.notReady,
      });
      const address = await observability.listen().catch((error: unknown) => {
        throw listenFailure("metrics.listen", listen, error);
      });
      this.#closers.push(() => observability.close());
      this.log.info({ address: address.address, port: address.port }, "metrics listening");
    }
    for (const edge of this.edges) edge.start();
  }

  async #stop(): Promise<void> {
    for (const edge of this.edges) edge.drain();
    await this.#drained();
    this.connections.shutDown();
    // The resets leave with the next turns of the event loop; behind a close they would not.
    await nextTurn();
    await nextTurn();
    await Promise.all(this.edges.map((edge) => edge.close()));
    for (const close of this.#closers.splice(0).toReversed()) await close();
  }

  /** No connection is left, the time is over, or nobody wants to wait. */
  async #drained(): Promise<void> {
    const { signal } = this.#cut;
    if (signal.aborted) return;
    let timer: NodeJS.Timeout | undefined;
    const enough = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, this.config.drainTimeout);
      signal.addEventListener("abort", () => resolve());
    });
    await Promise.race([this.connections.whenEmpty(), enough]);
    clearTimeout(timer);
  }

  #context(config: AgentConfig): TargetConnections["context"] {
    const { connect, idle, halfClose } = config.timeouts;
    return {
      policy: new Policy(config),
      limits: this.#limits,
      resolver: this.#resolver,
      dial,
      timeouts: { connectMs: connect, idleMs: idle, halfCloseMs: halfClose },
      records: this.#records,
    };
  }
}

function limitSettings({ limits, edges, services }: AgentConfig): DialLimitSettings {
  const maxConnections = limits.maxStreams * edges.length;
  return {
    maxConnections: Math.min(maxConnections, connectionCapacity(1) ?? maxConnections),
    dialsPerSecond: limits.dialsPerSecond,
    services,
  };
}
