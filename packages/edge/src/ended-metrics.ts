/** How connections ended and how long they took, for Prometheus. */
import { flowPauses } from "@sallyport/tunnel";
import { Counter, type Metric, type MetricValue, type Registry } from "prom-client";
import type { DurationHistogram } from "./duration-histogram.ts";
import type { Edge } from "./edge.ts";
import type { EndedOfDeployment } from "./ended-connections.ts";

export function registerEndedMetrics(registry: Registry, edge: Edge): void {
  const registers = [registry];
  // A deployment that is not known is that of connections that ended before one was chosen.
  const all = () =>
    edge.ended.keep(
      (listener, deployment) => edge.listeners.has(listener) && (deployment === "" || edge.deployments.has(deployment)),
    );
  const labelsOf = ({ listener, deployment }: EndedOfDeployment) => ({ listener, deployment });

  new Counter({
    name: "edge_connections_ended_total",
    help: "Partner connections that ended, by the two letters of their record; those that admission refused are among them.",
    labelNames: ["listener", "deployment", "code"],
    registers,
    collect() {
      this.reset();
      for (const ended of all()) {
        for (const [code, count] of ended.codes) this.inc({ ...labelsOf(ended), code }, count);
      }
    },
  });
  new Counter({
    name: "edge_idle_timeout_total",
    help: "Partner connections that a timeout ended, after silence (idle) or after one side had closed (halfClose).",
    labelNames: ["listener", "deployment", "kind"],
    registers,
    collect() {
      this.reset();
      for (const ended of all()) {
        for (const [kind, count] of Object.entries(ended.timeouts)) this.inc({ ...labelsOf(ended), kind }, count);
      }
    },
  });
  new Counter({
    name: "edge_max_duration_total",
    help: "Partner connections that ended because they had reached the longest duration.",
    labelNames: ["listener", "deployment"],
    registers,
    collect() {
      this.reset();
      for (const ended of all()) this.inc(labelsOf(ended), ended.maxDuration);
    },
  });
  new Counter({
    name: "edge_no_route_total",
    help: "Partner connections for which there was no deployment (server name) or no agent in time.",
    labelNames: ["listener", "deployment"],
    registers,
    collect() {
      this.reset();
      for (const ended of all()) this.inc(labelsOf(ended), ended.noRoute);
    },
  });
  new Counter({
    name: "edge_flow_paused_total",
    help: "Times that reading from a partner or a target was stopped because the other side did not take what came.",
    registers,
    collect() {
      this.reset();
      this.inc(flowPauses.total);
    },
  });
  histogram(registry, {
    name: "edge_queue_seconds",
    help: "From accept until the way to the target was begun.",
    read: () => all().map((ended) => ({ labels: labelsOf(ended), histogram: ended.queue })),
  });
  histogram(registry, {
    name: "edge_connect_seconds",
    help: "From then until the target was connected.",
    read: () => all().map((ended) => ({ labels: labelsOf(ended), histogram: ended.connect })),
  });
  histogram(registry, {
    name: "edge_session_seconds",
    help: "From accept until the end, of connections that admission let through.",
    read: () => all().map((ended) => ({ labels: labelsOf(ended), histogram: ended.session })),
  });
}

interface HistogramSource {
  readonly name: string;
  readonly help: string;
  readonly read: () => { labels: Record<string, string>; histogram: DurationHistogram }[];
}

/** The library's own histogram looks its labels up and makes objects at each observation; ours is only read here. */
function histogram(registry: Registry, { name, help, read }: HistogramSource): void {
  const values = () =>
    read().flatMap(
      ({ labels, histogram: { bounds, cumulative, sum } }): (MetricValue<string> & { metricName: string })[] => [
        ...cumulative.map((value, at) => ({
          metricName: `${name}_bucket`,
          labels: { ...labels, le: at < bounds.length ? String(bounds[at]) : "+Inf" },
          value,
        })),
        { metricName: `${name}_sum`, labels, value: sum },
        { metricName: `${name}_count`, labels, value: cumulative.at(-1) ?? 0 },
      ],
    );
  const metric = {
    name,
    help,
    type: "histogram",
    get: () => Promise.resolve({ name, help, type: "histogram", aggregator: "sum", values: values() }),
    reset: () => undefined,
  };
  // The registry asks for no more than that of what it prints.
  registry.registerMetric(metric as unknown as Metric);
}
