/** The figures of targets for Prometheus, one series for each target and client of a deployment. */
import { Counter, Gauge, type Registry } from "prom-client";
import type { Deployment } from "./deployment.ts";
import type { Edge } from "./edge.ts";
import type { Route } from "./route.ts";

const labelNames = ["deployment", "target", "client"] as const;

type Read = (route: Route, deployment: Deployment) => number;

const gauges: Readonly<Record<string, { readonly help: string; readonly read: Read }>> = {
  edge_target_up: {
    help: "1 while checks and connects of a target succeed, whatever an operator wants of it.",
    read: (route, { pool }) => (pool.isUp(route) ? 1 : 0),
  },
  edge_target_available: {
    help: "1 while a target would take a connection: up, ready, and reachable through an agent.",
    read: (route, { pool }) => (["up", "full"].includes(pool.condition(route)) ? 1 : 0),
  },
  edge_target_active: {
    help: "Connections on a target, those that are being opened included.",
    read: (route) => route.active,
  },
};

const counters: Readonly<Record<string, { readonly help: string; readonly read: Read }>> = {
  edge_target_connect_errors_total: {
    help: "Connects of partners' connections that failed for reasons of the target.",
    read: ({ counters: { connectErrors } }) => connectErrors,
  },
  edge_target_retries_total: {
    help: "Tries on a target that were not the connection's first.",
    read: ({ counters: { retries } }) => retries,
  },
  edge_target_redispatch_total: {
    help: "Connections that failed on a target and were tried on another.",
    read: ({ counters: { redispatches } }) => redispatches,
  },
  edge_target_ejections_total: {
    help: "Pauses of a target after connects had failed in a row.",
    read: ({ counters: { ejections } }) => ejections,
  },
  edge_target_check_failures_total: {
    help: "Checks of a target that failed.",
    read: ({ counters: { checkFailures } }) => checkFailures,
  },
  edge_target_check_updown_total: {
    help: "Times that checks took a target down or up.",
    read: ({ counters: { upDowns } }) => upDowns,
  },
  edge_target_downtime_seconds_total: {
    help: "Seconds for which checks had a target down.",
    read: (route, { pool }) => pool.downMs(route) / 1_000,
  },
};

export function registerTargetMetrics(registry: Registry, edge: Edge): void {
  const registers = [registry];
  const each = (
    take: (labels: Record<(typeof labelNames)[number], string>, deployment: Deployment, route: Route) => void,
  ) => {
    for (const deployment of edge.deployments.values()) {
      for (const route of deployment.pool.routes) {
        take({ deployment: deployment.name, target: route.target, client: route.client ?? "" }, deployment, route);
      }
    }
  };
  for (const [name, { help, read }] of Object.entries(gauges)) {
    new Gauge({
      name,
      help,
      labelNames,
      registers,
      collect() {
        this.reset();
        each((labels, deployment, route) => this.set(labels, read(route, deployment)));
      },
    });
  }
  for (const [name, { help, read }] of Object.entries(counters)) {
    new Counter({
      name,
      help,
      labelNames,
      registers,
      collect() {
        this.reset();
        each((labels, deployment, route) => this.inc(labels, read(route, deployment)));
      },
    });
  }
  new Gauge({
    name: "edge_target_queue",
    help: "Connections that wait for a target that has room.",
    labelNames: ["deployment"],
    registers,
    collect() {
      this.reset();
      for (const { name, targetQueue } of edge.deployments.values()) this.set({ deployment: name }, targetQueue.size);
    },
  });
  new Counter({
    name: "edge_target_queue_total",
    help: "Connections that had to wait for a target; `expired` are those that waited in vain.",
    labelNames: ["deployment", "result"],
    registers,
    collect() {
      this.reset();
      for (const { name, targetQueue } of edge.deployments.values()) {
        this.inc({ deployment: name, result: "queued" }, targetQueue.counters.held);
        this.inc({ deployment: name, result: "expired" }, targetQueue.counters.expired);
      }
    },
  });
}
