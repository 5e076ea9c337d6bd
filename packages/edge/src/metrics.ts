/**
 * The edge's figures for Prometheus. The data path only adds to plain numbers; everything is read when it is asked for,
 * so bytes move while a transfer runs.
 */
import { Counter, Gauge, type Registry } from "prom-client";
import type { Edge } from "./edge.ts";
import { registerTargetMetrics } from "./target-metrics.ts";

export function registerEdgeMetrics(registry: Registry, edge: Edge): void {
  const registers = [registry];
  const listenerLabels = ["listener", "deployment"] as const;
  const labelsOf = (deployment: { name: string; settings: { listener: string } }) => ({
    listener: deployment.settings.listener,
    deployment: deployment.name,
  });

  new Counter({
    name: "edge_connections_total",
    help: "Partner connections that passed admission.",
    labelNames: listenerLabels,
    registers,
    collect() {
      this.reset();
      for (const deployment of edge.deployments.values()) this.inc(labelsOf(deployment), deployment.counters.accepted);
    },
  });
  new Gauge({
    name: "edge_connections_active",
    help: "Partner connections that are being served.",
    labelNames: listenerLabels,
    registers,
    collect() {
      this.reset();
      for (const deployment of edge.deployments.values()) this.set(labelsOf(deployment), deployment.connections.size);
    },
  });
  new Counter({
    name: "edge_connections_denied_total",
    help: "Partner connections refused on a listener, by reason; `deployment` is empty when the listener has several.",
    labelNames: [...listenerLabels, "reason"],
    registers,
    collect() {
      this.reset();
      for (const { name, onlyDeployment, refused } of edge.listeners.values()) {
        const labels = { listener: name, deployment: onlyDeployment?.name ?? "" };
        for (const [reason, count] of Object.entries(refused)) this.inc({ ...labels, reason }, count);
      }
    },
  });
  new Counter({
    name: "edge_proxy_header_errors_total",
    help: "Partner connections refused for their PROXY header, by reason.",
    labelNames: ["listener", "reason"],
    registers,
    collect() {
      this.reset();
      for (const { name, refused, settings } of edge.listeners.values()) {
        if (settings.proxy === undefined) continue;
        for (const reason of ["proxyHeader", "proxyHeaderTimeout", "untrustedProxy"] as const) {
          this.inc({ listener: name, reason }, refused[reason] ?? 0);
        }
      }
    },
  });
  new Gauge({
    name: "edge_bytes_buffered",
    help: "Bytes of tunnelled connections in memory: `in` from partners and not acknowledged by agents, `out` not yet taken by partners.",
    labelNames: ["dir"],
    registers,
    collect() {
      let [bytesIn, bytesOut] = [0, 0];
      for (const { driver } of edge.sessions.all) {
        bytesIn += driver.session.queueBytes;
        bytesOut += driver.session.heldBytes - driver.session.queueBytes;
      }
      this.set({ dir: "in" }, bytesIn);
      this.set({ dir: "out" }, Math.max(0, bytesOut));
    },
  });
  new Counter({
    name: "edge_proxy_checks_total",
    help: "Connections of a proxy in front that only look whether the listener lives (PROXY protocol, LOCAL).",
    labelNames: ["listener"],
    registers,
    collect() {
      this.reset();
      for (const { name, proxyChecks, settings } of edge.listeners.values()) {
        if (settings.proxy !== undefined) this.inc({ listener: name }, proxyChecks);
      }
    },
  });
  new Counter({
    name: "edge_bytes_total",
    help: "Bytes of partner connections: `in` from partners, `out` to partners.",
    labelNames: [...listenerLabels, "dir"],
    registers,
    collect() {
      this.reset();
      for (const deployment of edge.deployments.values()) {
        const { bytes } = deployment;
        this.inc({ ...labelsOf(deployment), dir: "in" }, bytes.in);
        this.inc({ ...labelsOf(deployment), dir: "out" }, bytes.out);
      }
    },
  });
  new Gauge({
    name: "edge_connections_held",
    help: "Partner connections that wait because no agent is connected.",
    labelNames: listenerLabels,
    registers,
    collect() {
      this.reset();
      for (const deployment of edge.deployments.values()) this.set(labelsOf(deployment), deployment.holdQueue.size);
    },
  });
  new Counter({
    name: "edge_connections_held_total",
    help: "Partner connections that had to wait for an agent; `expired` are those that waited in vain.",
    labelNames: [...listenerLabels, "result"],
    registers,
    collect() {
      this.reset();
      for (const deployment of edge.deployments.values()) {
        const { held, expired } = deployment.holdQueue.counters;
        this.inc({ ...labelsOf(deployment), result: "held" }, held);
        this.inc({ ...labelsOf(deployment), result: "expired" }, expired);
      }
    },
  });
  registerTargetMetrics(registry, edge);
  new Gauge({
    name: "edge_deployment_running",
    help: "1 while the deployment listens.",
    labelNames: ["deployment"],
    registers,
    collect() {
      this.reset();
      for (const { name, state } of edge.deployments.values())
        this.set({ deployment: name }, state === "running" ? 1 : 0);
    },
  });
  new Gauge({
    name: "edge_tunnel_sessions",
    help: "Sessions of connected agents, by client.",
    labelNames: ["client"],
    registers,
    collect() {
      this.reset();
      for (const { name } of edge.config.clients) this.set({ client: name }, 0);
      for (const session of edge.sessions.all) this.inc({ client: session.client });
    },
  });
  new Gauge({
    name: "edge_tunnel_links",
    help: "Links of connected agents, by client.",
    labelNames: ["client"],
    registers,
    collect() {
      this.reset();
      for (const { name } of edge.config.clients) this.set({ client: name }, 0);
      for (const session of edge.sessions.all) this.inc({ client: session.client }, session.links);
    },
  });
  new Gauge({
    name: "edge_tunnel_streams",
    help: "Streams of connected agents, by client.",
    labelNames: ["client"],
    registers,
    collect() {
      this.reset();
      for (const session of edge.sessions.all) this.inc({ client: session.client }, session.streams);
    },
  });
  new Gauge({
    name: "edge_tunnel_held_bytes",
    help: "Bytes of all streams that are in memory: unacknowledged and unconsumed.",
    registers,
    collect() {
      let bytes = 0;
      for (const session of edge.sessions.all) bytes += session.driver.session.heldBytes;
      this.set(bytes);
    },
  });
  new Gauge({
    name: "edge_tunnel_window_bytes",
    help: "Bytes that agents may make the edge hold: received and not yet taken by partners, or promised and still to come.",
    registers,
    collect() {
      let bytes = 0;
      for (const session of edge.sessions.all) bytes += session.driver.session.windowBytes;
      this.set(bytes);
    },
  });
  new Gauge({
    name: "edge_tunnel_queue_bytes",
    help: "Bytes from partners that agents have not acknowledged.",
    registers,
    collect() {
      let bytes = 0;
      for (const session of edge.sessions.all) bytes += session.driver.session.queueBytes;
      this.set(bytes);
    },
  });
  new Gauge({
    name: "edge_tunnel_memory_limit_bytes",
    help: "What window and queue bytes may be together; the key `memory`.",
    registers,
    collect() {
      this.set(edge.memory.limitBytes);
    },
  });
  new Gauge({
    name: "edge_tunnel_stalled_streams",
    help: "Streams that have bytes for an agent which gives no credit: its target does not read, or reads more slowly.",
    registers,
    collect() {
      let streams = 0;
      for (const session of edge.sessions.all) streams += session.driver.session.stalledStreams;
      this.set(streams);
    },
  });
  new Counter({
    name: "edge_tunnel_stream_stalls_total",
    help: "How often a stream had bytes for an agent and no credit.",
    registers,
    collect() {
      this.reset();
      let stalls = edge.sessions.counters.stalls;
      for (const session of edge.sessions.all) stalls += session.driver.session.counters.stalls;
      this.inc(stalls);
    },
  });
  new Gauge({
    name: "edge_tunnel_round_trip_seconds",
    help: "Smoothed round trip of each link to an agent. `link` is its place in the session.",
    labelNames: ["client", "agent", "link"],
    registers,
    collect() {
      this.reset();
      for (const { client, agent, driver } of edge.sessions.all) {
        for (const { index, roundTripMs } of driver.session.linkFigures) {
          if (roundTripMs !== undefined) this.set({ client, agent, link: index }, roundTripMs / 1_000);
        }
      }
    },
  });
  new Gauge({
    name: "edge_tunnel_in_flight_bytes",
    help: "Bytes under way on each link to an agent: written, and not yet known to be read.",
    labelNames: ["client", "agent", "link"],
    registers,
    collect() {
      this.reset();
      for (const { client, agent, driver } of edge.sessions.all) {
        for (const { index, inFlightBytes } of driver.session.linkFigures) {
          this.set({ client, agent, link: index }, inFlightBytes);
        }
      }
    },
  });
  new Counter({
    name: "edge_tunnel_links_lost_total",
    help: "Links that closed, for whatever reason but renewal.",
    registers,
    collect() {
      this.reset();
      this.inc(edge.sessions.counters.linksLost);
    },
  });
  new Counter({
    name: "edge_tunnel_resumptions_total",
    help: "Sessions that lost every link and were continued by the same agent.",
    registers,
    collect() {
      this.reset();
      let count = edge.sessions.counters.resumptions;
      for (const session of edge.sessions.all) count += session.driver.session.counters.resumptions;
      this.inc(count);
    },
  });
  new Counter({
    name: "edge_tunnel_retransmitted_bytes_total",
    help: "Bytes sent again after a link was lost.",
    registers,
    collect() {
      this.reset();
      let bytes = edge.sessions.counters.retransmittedBytes;
      for (const session of edge.sessions.all) bytes += session.driver.session.counters.retransmittedBytes;
      this.inc(bytes);
    },
  });
}
