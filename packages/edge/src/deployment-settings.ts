/** From the configuration file, whose names refer to each other, to what listeners and deployments need. */
import { admissionPolicy } from "./admission-settings.ts";
import { clientsOf, defaultCheck, type EdgeConfig, targetsOf } from "./config.ts";
import type { DeploymentSettings } from "./deployment.ts";
import type { CheckSettings } from "./health-checks.ts";
import { IpFilter } from "./ip-filter.ts";
import type { InboundProxySettings, ListenerSettings } from "./listener.ts";
import type { PoolSettings } from "./pool.ts";

/** The filters by name, each built once, however many listeners name it. */
export function ipFilters(config: EdgeConfig): Map<string, IpFilter> {
  return new Map(config.ipFilters.map((filter) => [filter.name, new IpFilter(filter)]));
}

/** One settings object a listener, in the order of the file. */
export function listenerSettings(config: EdgeConfig, filters: ReadonlyMap<string, IpFilter>): ListenerSettings[] {
  return config.listeners.map((listener) => {
    const { name, listen, limits, ipFilter } = listener;
    return {
      name,
      host: listen.host,
      port: listen.port,
      maxConnections: listener.maxConnections,
      connectionRate: limits.connectionRate,
      policy: admissionPolicy(config.admission.rules, listener.admission.rules),
      behindProxy: listener.proxyProtocol !== "off",
      firstByteTimeoutMs: limits.firstByteTimeout,
      maxDurationMs: limits.maxDuration,
      bytesPerSecond: limits.bytesPerSecond,
      connectionBytesPerSecond: limits.connectionBytesPerSecond,
      proxy: listener.proxyProtocol === "off" ? undefined : inboundProxy(listener),
      clientHelloTimeoutMs: listener.clientHelloTimeout,
      ipFilter: ipFilter === undefined ? undefined : filters.get(ipFilter),
    };
  });
}

function inboundProxy(listener: EdgeConfig["listeners"][number]): InboundProxySettings {
  const rules = listener.trustedProxies.map((cidr) => ({ action: "allow" as const, cidr }));
  return { trusted: new IpFilter({ default: "block", rules }), headerTimeoutMs: listener.proxyHeaderTimeout };
}

/** One settings object a deployment, in the order of the file. */
export function deploymentSettings(config: EdgeConfig): DeploymentSettings[] {
  return config.deployments.map((deployment) => {
    const timeouts = { ...config.timeouts, ...withoutUndefined(deployment.timeouts ?? {}) };
    const clients = clientsOf(deployment);
    return {
      name: deployment.name,
      listener: deployment.listener,
      sni: deployment.sni,
      alpn: deployment.alpn,
      proxyProtocol: deployment.proxyProtocol,
      pool: poolSettings(deployment),
      maxConnections: deployment.maxConnections,
      via: deployment.via === undefined ? undefined : { tunnel: deployment.via.tunnel, clients: clients ?? [] },
      retries: deployment.retries,
      queue: { max: deployment.queue.max, timeoutMs: deployment.queue.timeout ?? timeouts.connect },
      check: checkSettings(deployment),
      onDown: deployment.onDown,
      startup: deployment.startup,
      hold: { timeoutMs: deployment.hold.timeout, max: deployment.hold.max },
      timeouts: { connectMs: timeouts.connect, idleMs: timeouts.idle, halfCloseMs: timeouts.halfClose },
    };
  });
}

type DeploymentConfig = EdgeConfig["deployments"][number];

function poolSettings(deployment: DeploymentConfig): PoolSettings {
  const { balance, ejection } = deployment;
  return {
    targets: targetsOf(deployment).map(({ target, weight, backup, maxConnections }) => ({
      target,
      weight,
      backup,
      maxConnections,
      address: deployment.via === undefined ? splitTarget(target) : undefined,
    })),
    clients: clientsOf(deployment),
    balance,
    ejection: { failures: ejection.failures, timeMs: ejection.time, maxMs: ejection.max },
  };
}

/** One target by one way is not checked unless it is asked for: there is nowhere else to go. */
function checkSettings(deployment: DeploymentConfig): CheckSettings | undefined {
  const routes = targetsOf(deployment).length * (clientsOf(deployment)?.length ?? 1);
  if (deployment.check === undefined && routes < 2) return undefined;
  const { type, interval, timeout, rise, fall, jitter, send, expect } = deployment.check ?? defaultCheck;
  if (type === "none") return undefined;
  return { intervalMs: interval, timeoutMs: timeout, rise, fall, jitter: jitter / 100, send, expect };
}

function splitTarget(target: string): { host: string; port: number } {
  const colon = target.lastIndexOf(":");
  return { host: target.slice(0, colon).replace(/^\[|\]$/g, ""), port: Number(target.slice(colon + 1)) };
}

function withoutUndefined<T extends object>(value: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(value).filter(([, entry]) => entry !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>;
  };
}
