/** From the configuration file, whose names refer to each other, to what listeners and deployments need. */
import { admissionPolicy } from "./admission-settings.ts";
import type { EdgeConfig } from "./config.ts";
import type { DeploymentSettings } from "./deployment.ts";
import { IpFilter } from "./ip-filter.ts";
import type { ListenerSettings } from "./listener.ts";

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
      behindProxy: false,
      firstByteTimeoutMs: limits.firstByteTimeout,
      maxDurationMs: limits.maxDuration,
      bytesPerSecond: limits.bytesPerSecond,
      connectionBytesPerSecond: limits.connectionBytesPerSecond,
      ipFilter: ipFilter === undefined ? undefined : filters.get(ipFilter),
    };
  });
}

/** One settings object a deployment, in the order of the file. */
export function deploymentSettings(config: EdgeConfig): DeploymentSettings[] {
  return config.deployments.map((deployment) => {
    const timeouts = { ...config.timeouts, ...withoutUndefined(deployment.timeouts ?? {}) };
    return {
      name: deployment.name,
      listener: deployment.listener,
      target: deployment.target,
      directTarget: deployment.via === undefined ? splitTarget(deployment.target) : undefined,
      via: deployment.via,
      maxConnections: deployment.maxConnections,
      startup: deployment.startup,
      hold: { timeoutMs: deployment.hold.timeout, max: deployment.hold.max },
      timeouts: { connectMs: timeouts.connect, idleMs: timeouts.idle, halfCloseMs: timeouts.halfClose },
    };
  });
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
