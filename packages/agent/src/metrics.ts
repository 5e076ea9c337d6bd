/**
 * The agent's figures for Prometheus. The data path only adds to plain numbers; everything is read when it is asked for,
 * so bytes move while a transfer runs.
 */
import type { MemoryBudget } from "@sallyport/protocol";
import { Counter, Gauge, type Registry } from "prom-client";
import type { EdgeSession } from "./edge-session.ts";
import { ALLOW_LABEL, type TargetConnections } from "./target-connections.ts";

export interface AgentMetricsSource {
  readonly connections: TargetConnections;
  readonly edges: readonly EdgeSession[];
  readonly memory: MemoryBudget;
  /** The services of the configuration now. */
  readonly services: () => Iterable<string>;
}

export function registerAgentMetrics(registry: Registry, source: AgentMetricsSource): void {
  const registers = [registry];
  const { connections } = source;
  const labels = () => [...source.services(), ALLOW_LABEL];

  new Counter({
    name: "agent_connections_total",
    help: "Connections for which a dial was begun, by service; `(allow)` for targets of the allow list.",
    labelNames: ["service"],
    registers,
    collect() {
      this.reset();
      for (const service of labels()) this.inc({ service }, 0);
      for (const [service, count] of connections.dialled) this.inc({ service }, count);
    },
  });
  new Counter({
    name: "agent_checks_total",
    help: "Dials that were checks of an edge, by service; `(allow)` for targets of the allow list.",
    labelNames: ["service"],
    registers,
    collect() {
      this.reset();
      for (const service of labels()) this.inc({ service }, 0);
      for (const [service, count] of connections.checks) this.inc({ service }, count);
    },
  });
  new Gauge({
    name: "agent_connections_active",
    help: "Connections that are dialled or open, by service.",
    labelNames: ["service"],
    registers,
    collect() {
      this.reset();
      for (const service of labels()) this.set({ service }, 0);
      for (const connection of connections.live) this.inc({ service: connection.service ?? ALLOW_LABEL });
    },
  });
  new Counter({
    name: "agent_bytes_total",
    help: "Bytes of connections: `in` from partners to targets, `out` from targets to partners.",
    labelNames: ["dir"],
    registers,
    collect() {
      this.reset();
      const { bytes } = connections;
      this.inc({ dir: "in" }, bytes.in);
      this.inc({ dir: "out" }, bytes.out);
    },
  });
  new Counter({
    name: "agent_dial_errors_total",
    help: "Connections that did not reach their target, by reason; `limit`: a cap of the agent.",
    labelNames: ["reason"],
    registers,
    collect() {
      this.reset();
      for (const [reason, count] of Object.entries(connections.dialErrors)) this.inc({ reason }, count);
    },
  });
  new Counter({
    name: "agent_forbidden_total",
    help: "Targets named by an edge that the policy forbids, by name or by resolved address.",
    registers,
    collect() {
      this.reset();
      this.inc(connections.forbidden);
    },
  });
  new Gauge({
    name: "agent_tunnel_links",
    help: "Links that carry the session with an edge.",
    labelNames: ["edge"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) this.set({ edge: edge.address }, edge.links);
    },
  });
  new Gauge({
    name: "agent_tunnel_sessions",
    help: "1 while there is a session with the edge, with links or waiting for one.",
    labelNames: ["edge"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) this.set({ edge: edge.address }, edge.hasSession ? 1 : 0);
    },
  });
  new Gauge({
    name: "agent_tunnel_streams",
    help: "Streams of the session with an edge.",
    labelNames: ["edge"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) this.set({ edge: edge.address }, edge.streams);
    },
  });
  new Gauge({
    name: "agent_tunnel_held_bytes",
    help: "Bytes of all streams that are in memory: unacknowledged and unconsumed.",
    registers,
    collect() {
      let bytes = 0;
      for (const edge of source.edges) bytes += edge.heldBytes;
      this.set(bytes);
    },
  });
  new Gauge({
    name: "agent_tunnel_window_bytes",
    help: "Bytes that edges may make the agent hold: received and not yet taken by targets, or promised and still to come.",
    registers,
    collect() {
      let bytes = 0;
      for (const edge of source.edges) bytes += edge.windowBytes;
      this.set(bytes);
    },
  });
  new Gauge({
    name: "agent_tunnel_queue_bytes",
    help: "Bytes from targets that edges have not acknowledged.",
    registers,
    collect() {
      let bytes = 0;
      for (const edge of source.edges) bytes += edge.queueBytes;
      this.set(bytes);
    },
  });
  new Gauge({
    name: "agent_tunnel_memory_limit_bytes",
    help: "What window and queue bytes may be together; the key `memory`.",
    registers,
    collect() {
      this.set(source.memory.limitBytes);
    },
  });
  new Gauge({
    name: "agent_tunnel_stalled_streams",
    help: "Streams that have bytes for an edge which gives no credit: its partner does not read, or reads more slowly.",
    registers,
    collect() {
      let streams = 0;
      for (const edge of source.edges) streams += edge.stalledStreams;
      this.set(streams);
    },
  });
  new Counter({
    name: "agent_tunnel_stream_stalls_total",
    help: "How often a stream had bytes for an edge and no credit.",
    labelNames: ["edge"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) this.inc({ edge: edge.address }, edge.stalls);
    },
  });
  new Counter({
    name: "agent_tunnel_sessions_total",
    help: "Sessions begun with an edge.",
    labelNames: ["edge"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) this.inc({ edge: edge.address }, edge.sessionsStarted);
    },
  });
  new Counter({
    name: "agent_tunnel_links_lost_total",
    help: "Links that closed, for whatever reason but renewal.",
    labelNames: ["edge"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) this.inc({ edge: edge.address }, edge.linksLost);
    },
  });
  new Counter({
    name: "agent_tunnel_connect_failures_total",
    help: "Attempts to bring up a link that failed, by reason.",
    labelNames: ["edge", "reason"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) {
        for (const [reason, count] of edge.connectFailures) this.inc({ edge: edge.address, reason }, count);
      }
    },
  });
  new Gauge({
    name: "agent_tunnel_round_trip_seconds",
    help: "Smoothed round trip of each link to an edge. `link` is its place in the session.",
    labelNames: ["edge", "link"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) {
        for (const { index, roundTripMs } of edge.linkFigures) {
          if (roundTripMs !== undefined) this.set({ edge: edge.address, link: index }, roundTripMs / 1_000);
        }
      }
    },
  });
  new Gauge({
    name: "agent_tunnel_in_flight_bytes",
    help: "Bytes under way on each link to an edge: written, and not yet known to be read.",
    labelNames: ["edge", "link"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) {
        for (const { index, inFlightBytes } of edge.linkFigures) {
          this.set({ edge: edge.address, link: index }, inFlightBytes);
        }
      }
    },
  });
  new Counter({
    name: "agent_tunnel_resumptions_total",
    help: "How often the session with an edge lost every link and went on.",
    labelNames: ["edge"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) this.inc({ edge: edge.address }, edge.resumptions);
    },
  });
  new Counter({
    name: "agent_tunnel_retransmitted_bytes_total",
    help: "Bytes sent again after a link was lost.",
    labelNames: ["edge"],
    registers,
    collect() {
      this.reset();
      for (const edge of source.edges) this.inc({ edge: edge.address }, edge.retransmittedBytes);
    },
  });
}
