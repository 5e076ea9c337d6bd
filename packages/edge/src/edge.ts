/**
 * The edge program without its command line: builds the parts in order, takes a new configuration, and stops them in
 * reverse.
 */
import type { AddressInfo } from "node:net";
import { isDeepStrictEqual } from "node:util";
import {
  AdminServer,
  collectProcessMetrics,
  connectionCapacity,
  fileDescriptorLimit,
  ExitCode,
  Failure,
  LineRate,
  type Logger,
  listenFailure,
  ObservabilityServer,
  openStateDirectory,
  Resolver,
} from "@sallyport/host";
import { ResetCode } from "@sallyport/protocol";
import { TunnelServer, type TunnelServerEvent } from "@sallyport/tunnel";
import { Registry } from "prom-client";
import { RecordWriter } from "./access-record.ts";
import { Admission, type AdmissionLimits } from "./admission.ts";
import { adminRoutes } from "./admin-routes.ts";
import { AgentSessions } from "./agent-sessions.ts";
import { loadTunnelCertificate } from "./certificate.ts";
import { ClientStore } from "./client-store.ts";
import { type EdgeConfig, loadEdgeConfig } from "./config.ts";
import { Deployment, type DeploymentContext, type DeploymentSettings } from "./deployment.ts";
import { deploymentSettings, ipFilters } from "./deployment-settings.ts";
import type { IpFilter } from "./ip-filter.ts";
import type { Listener } from "./listener.ts";
import { registerEdgeMetrics } from "./metrics.ts";

/** Keys that are read at start only; a reload that changes them says so. */
const RESTART_KEYS = ["name", "stateDir", "metrics", "heartbeat", "resumeTimeout"] as const;

/**
 * Kept free for those who have not authenticated (as many as the tunnel admits at once) and for links. Without them partners
 * and strangers together take the last descriptor, and an agent that lost its links gets no new ones.
 */
const DESCRIPTORS_PER_TUNNEL = 64;
/** One agent with its most links, or eight with two each. Together they are at most a quarter of what there is. */
const DESCRIPTORS_PER_CLIENT = 16;

export class Edge {
  config: EdgeConfig;
  readonly configPath: string;
  readonly log: Logger;
  /** By name; the configuration bounds them. */
  readonly deployments = new Map<string, Deployment>();
  readonly sessions: AgentSessions;
  readonly clients: ClientStore;
  readonly tunnels = new Map<string, TunnelServer>();
  /** Where each tunnel listens, with the port that was chosen for port 0. */
  readonly tunnelAddresses = new Map<string, AddressInfo>();
  readonly startedAt = new Date();
  readonly #context: DeploymentContext;
  readonly #registry = new Registry();
  readonly #closers: (() => Promise<void> | void)[] = [];
  /** Deployments that the configuration no longer has, while their connections finish. */
  readonly #retired = new Set<string>();
  #filters: ReadonlyMap<string, IpFilter> = new Map();
  /** The last change of what listens; see `#inTurn`. */
  #changing: Promise<unknown> = Promise.resolve();
  readonly #tunnelEvents = new LineRate({ burst: 50, perSecond: 10 });
  #stopping = false;
  #interimTimer: NodeJS.Timeout | undefined;

  private constructor(config: EdgeConfig, options: { configPath: string; log: Logger; clients: ClientStore }) {
    this.config = config;
    this.configPath = options.configPath;
    this.log = options.log;
    this.clients = options.clients;
    this.sessions = new AgentSessions({
      edge: config.name,
      log: options.log,
      heartbeatIntervalMs: config.heartbeat.interval,
      heartbeatTimeoutMs: config.heartbeat.timeout,
      resumeTimeoutMs: config.resumeTimeout,
      onChange: () => {
        for (const deployment of this.deployments.values()) deployment.serveHeld();
      },
      maxConnections: () => this.config.limits.maxConnections,
      onViolation: (remoteAddress) => {
        for (const tunnel of this.tunnels.values()) tunnel.punish(remoteAddress, "protocol");
      },
    });
    this.#context = {
      admission: new Admission(this.#limitsOf(config)),
      sessions: this.sessions,
      resolver: new Resolver(),
      records: new RecordWriter(options.log),
      log: options.log,
    };
    registerEdgeMetrics(this.#registry, this);
    collectProcessMetrics(this.#registry);
  }

  /** Resolves when everything that starts by itself listens. @throws Failure; nothing is left bound then */
  static async start(configPath: string, log: Logger): Promise<Edge> {
    const config = loadEdgeConfig(configPath);
    await openStateDirectory(config.stateDir);
    const edge = new Edge(config, { configPath, log, clients: await ClientStore.open(config.stateDir) });
    try {
      await edge.#start();
    } catch (error) {
      await edge.stop({ drain: false });
      throw error;
    }
    return edge;
  }

  get stopping(): boolean {
    return this.#stopping;
  }

  /** The filter of the running configuration, of whatever listener. */
  ipFilter(name: string): IpFilter | undefined {
    return this.#filters.get(name);
  }

  get admission(): Admission {
    return this.#context.admission;
  }

  /** Why the edge is not ready; empty when every deployment that starts by itself can serve a connection. */
  get notReady(): string[] {
    if (this.#stopping) return ["shutting down"];
    const reasons: string[] = [];
    for (const deployment of this.deployments.values()) {
      if (deployment.settings.startup === "manual" && deployment.state === "stopped") continue;
      if (deployment.state !== "running") reasons.push(`deployment ${deployment.name} does not listen`);
      else if (!deployment.ready) {
        reasons.push(
          `deployment ${deployment.name}: no agent of client ${deployment.settings.via?.client} is connected at tunnel ${deployment.settings.via?.tunnel}`,
        );
      }
    }
    return reasons;
  }

  /**
   * Reads the configuration again and takes over IP filters, listeners, deployments, clients, limits, timeouts and
   * tunnel certificates. Connections that are not concerned are not touched. @throws Failure; nothing has changed then
   */
  async reload(): Promise<{ restartNeeded: string[] }> {
    const result = await this.#inTurn(() => this.#reload());
    const { restartNeeded } = result;
    if (restartNeeded.length === 0) this.log.info("configuration reloaded");
    else this.log.warn({ restartNeeded }, "configuration reloaded; some keys take effect after a restart");
    return result;
  }

  /** With `drain`, running connections have `drainTimeout` to finish; `stop` again without it cuts them at once. */
  async stop(options: { drain: boolean }): Promise<void> {
    this.#stopping = true;
    clearInterval(this.#interimTimer);
    // What is being bound must not go on listening behind our back.
    await this.#changing;
    const deployments = [...this.deployments.values()];
    if (options.drain) {
      this.sessions.drain();
      const drainTimeoutMs = this.config.drainTimeout;
      await Promise.all(deployments.map((deployment) => deployment.stop({ type: "drain", drainTimeoutMs })));
    } else {
      for (const deployment of deployments) {
        deployment.cut(ResetCode.shutdown);
        await deployment.stop({ type: "cut" });
      }
    }
    this.sessions.close();
    for (const tunnel of this.tunnels.values()) await tunnel.close();
    for (const close of this.#closers.splice(0).toReversed()) await close();
  }

  async #start(): Promise<void> {
    const { config } = this;
    // Everything is made before anything listens, so that a fault leaves nothing bound.
    this.#filters = ipFilters(config);
    for (const settings of deploymentSettings(config, this.#filters)) {
      this.deployments.set(settings.name, new Deployment(settings, this.#context));
    }
    for (const tunnel of config.tunnels) {
      const tls = await loadTunnelCertificate(tunnel, config.stateDir);
      this.tunnels.set(
        tunnel.name,
        new TunnelServer({
          listen: tunnel.listen,
          tls,
          credentials: (client) => (this.#declared(client) ? this.clients.verifiers(client) : []),
          onPeer: (peer) => this.sessions.take(peer, tunnel.name),
          onEvent: (event) => this.#tunnelEvent(tunnel.name, event),
          limits: { handshakeTimeoutMs: tunnel.handshakeTimeout, requestTimeoutMs: tunnel.handshakeTimeout },
        }),
      );
    }
    const admin = new AdminServer({ stateDir: config.stateDir, routes: adminRoutes(this) });
    await admin.listen();
    this.#closers.push(() => admin.close());
    // Until the socket was there, commands worked on the file itself; none does from now on.
    await this.clients.reload();
    if (config.metrics !== undefined) {
      const observability = new ObservabilityServer({
        listen: config.metrics.listen,
        registry: this.#registry,
        notReady: () => this.notReady,
      });
      const address = await observability.listen().catch((error: unknown) => {
        throw listenFailure("metrics.listen", config.metrics?.listen, error);
      });
      this.#closers.push(() => observability.close());
      this.log.info({ address: address.address, port: address.port }, "metrics listening");
    }
    for (const tunnel of config.tunnels) {
      const server = this.tunnels.get(tunnel.name);
      const address = await server?.listen().catch((error: unknown) => {
        throw listenFailure(`tunnels.${tunnel.name}.listen`, tunnel.listen, error);
      });
      if (address === undefined) continue;
      this.tunnelAddresses.set(tunnel.name, address);
      this.log.info({ tunnel: tunnel.name, address: address.address, port: address.port }, "tunnel listening");
    }
    for (const deployment of this.deployments.values()) {
      if (deployment.settings.startup === "auto") await this.startDeployment(deployment);
    }
    this.#armInterim();
  }

  /** @throws Failure that names the listener when its address cannot be bound */
  async startDeployment(deployment: Deployment): Promise<void> {
    await this.#inTurn(async () => {
      const { listener } = deployment.settings;
      await deployment.start().catch((error: unknown) => {
        throw listenFailure(`listeners.${listener.name}.listen`, listener, error);
      });
    });
  }

  /** Resets every partner connection, in this very turn: for the moment before the process ends. */
  cut(): void {
    for (const deployment of this.deployments.values()) deployment.cut(ResetCode.shutdown);
  }

  /** Changes of what listens come one at a time, since two that overlap would leave a mixture, and none while stopping. */
  #inTurn<T>(change: () => Promise<T>): Promise<T> {
    const run = this.#changing.then(() => {
      if (this.#stopping) throw new Failure(ExitCode.unavailable, this.config.name, "the edge is shutting down");
      return change();
    });
    this.#changing = run.catch(() => undefined);
    return run;
  }

  async #reload(): Promise<{ restartNeeded: string[] }> {
    const next = loadEdgeConfig(this.configPath);
    const before = this.config;
    const restartNeeded: string[] = RESTART_KEYS.filter((key) => !isDeepStrictEqual(before[key], next[key]));
    // Certificates are read again and the public address is asked for when a line is made; the rest is not.
    const changed = (tunnel: EdgeConfig["tunnels"][number]) => {
      const old = before.tunnels.find(({ name }) => name === tunnel.name);
      if (old === undefined || old.handshakeTimeout !== tunnel.handshakeTimeout) return true;
      return !isDeepStrictEqual(old.listen, tunnel.listen);
    };
    if (next.tunnels.length !== before.tunnels.length || next.tunnels.some(changed)) restartNeeded.push("tunnels");
    // What can fail comes first: certificates are read, and new addresses are bound beside the old ones.
    const certificates = new Map<string, Awaited<ReturnType<typeof loadTunnelCertificate>>>();
    for (const tunnel of next.tunnels) {
      if (this.tunnels.has(tunnel.name))
        certificates.set(tunnel.name, await loadTunnelCertificate(tunnel, before.stateDir));
    }
    await this.#applyDeployments(next);
    for (const [name, tls] of certificates) this.tunnels.get(name)?.setTls(tls);
    this.config = next;
    this.#context.admission.limits = this.#limitsOf(next);
    this.log.level = next.log.level;
    for (const { name } of before.clients) if (!this.#declared(name)) this.sessions.revoke(name);
    this.#armInterim();
    return { restartNeeded };
  }

  /**
   * Binds what is new first, so that a failure leaves everything as it was. A listener that stays at its address stays
   * open, whichever deployment has it afterwards: renaming or exchanging deployments refuses no partner.
   */
  async #applyDeployments(next: EdgeConfig): Promise<void> {
    const filters = ipFilters(next);
    const wanted = new Map(deploymentSettings(next, filters).map((settings) => [settings.name, settings]));
    const bound = new Map<string, Listener>();
    for (const { settings, listener } of this.deployments.values()) {
      if (listener !== undefined) bound.set(addressKey(settings), listener);
    }
    const fresh: Listener[] = [];
    const plan: { readonly settings: DeploymentSettings; listener: Listener | undefined }[] = [];
    try {
      for (const settings of wanted.values()) {
        let listener: Listener | undefined;
        if (this.#runsAfterReload(settings)) {
          const key = addressKey(settings);
          listener = bound.get(key);
          bound.delete(key);
          if (listener === undefined) {
            listener = await Deployment.listen(settings, this.log).catch((error: unknown) => {
              throw listenFailure(`listeners.${settings.listener.name}.listen`, settings.listener, error);
            });
            fresh.push(listener);
          }
        }
        plan.push({ settings, listener });
      }
    } catch (error) {
      for (const listener of fresh) listener.close();
      throw error;
    }
    this.#filters = filters;
    // A listener that an operator has closed meanwhile is not to be taken for one that listens.
    for (const entry of plan) if (entry.listener?.address === undefined) entry.listener = undefined;
    const leaving = [...this.deployments.values()].filter(({ name }) => !wanted.has(name));
    for (const { settings, listener } of plan) {
      const deployment = this.deployments.get(settings.name) ?? new Deployment(settings, this.#context);
      this.deployments.set(settings.name, deployment);
      this.#retired.delete(settings.name);
      deployment.adopt(settings, listener);
    }
    for (const deployment of leaving) this.#retire(deployment, next.drainTimeout);
    for (const listener of bound.values()) listener.close();
  }

  /** What runs goes on running, what an operator has stopped stays stopped, what is new starts as it says. */
  #runsAfterReload(settings: DeploymentSettings): boolean {
    const existing = this.deployments.get(settings.name);
    if (existing === undefined || this.#retired.has(settings.name)) return settings.startup === "auto";
    return existing.state === "running";
  }

  /** It is not in the configuration any more: its connections finish, and it is forgotten when none is left. */
  #retire(deployment: Deployment, drainTimeoutMs: number): void {
    this.#retired.add(deployment.name);
    deployment.adopt(deployment.settings, undefined);
    void deployment.stop({ type: "drain", drainTimeoutMs }).then(() => {
      if (this.#retired.delete(deployment.name)) this.deployments.delete(deployment.name);
    });
  }

  /** The configured limits, or what the file descriptors of this process allow where that is less. */
  #limitsOf(config: EdgeConfig): AdmissionLimits {
    const descriptorsEach = config.deployments.some(({ via }) => via === undefined) ? 2 : 1;
    const forTunnels = config.tunnels.length * DESCRIPTORS_PER_TUNNEL + config.clients.length * DESCRIPTORS_PER_CLIENT;
    const atMost = Math.floor((fileDescriptorLimit() ?? 0) / 4);
    const capacity = connectionCapacity(descriptorsEach, Math.min(forTunnels, atMost));
    const { maxConnections } = config.limits;
    if (capacity === undefined || capacity >= maxConnections) return config.limits;
    this.log.warn(
      { configured: maxConnections, maxConnections: capacity },
      "limits.maxConnections is lowered: the process may not open more files (LimitNOFILE, ulimit -n)",
    );
    return { ...config.limits, maxConnections: capacity };
  }

  #declared(client: string): boolean {
    return this.config.clients.some(({ name }) => name === client);
  }

  /** A scan of the port must not become a flood of lines: beyond the rate they are counted. */
  #tunnelEvent(tunnel: string, event: TunnelServerEvent): void {
    const suppressed = this.#tunnelEvents.admit();
    if (suppressed === undefined) return;
    const { type: _, ...facts } = event;
    this.log.warn({ tunnel, ...facts, ...(suppressed > 0 ? { suppressed } : {}) }, "tunnel connection refused");
  }

  /** Interim records of long connections, from one timer for all of them. */
  #armInterim(): void {
    clearInterval(this.#interimTimer);
    const intervalMs = this.config.recordInterval;
    if (intervalMs === 0) return;
    this.#interimTimer = setInterval(() => {
      for (const deployment of this.deployments.values()) {
        for (const connection of deployment.connections) {
          if (connection.ageMs >= intervalMs) this.#context.records.interim(connection.interimFacts);
        }
      }
    }, intervalMs);
    this.#interimTimer.unref();
  }
}

/** Names the address of a deployment; each port 0 is another one. */
function addressKey({ name, listener: { host, port } }: DeploymentSettings): string {
  return port === 0 ? `${host} 0 ${name}` : `${host} ${port}`;
}
