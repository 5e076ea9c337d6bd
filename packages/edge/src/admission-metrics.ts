/** The figures of admission, bans and detectors for Prometheus. Their labels are bounded by the configuration. */
import { formatCidr } from "@sallyport/host";
import { Counter, Gauge, type Registry } from "prom-client";
import type { Edge } from "./edge.ts";

/** Rules of IP filters that have a time series of their own: the first ones in the order of the file. */
const MAX_RULES = 500;

export function registerAdmissionMetrics(registry: Registry, edge: Edge): void {
  const registers = [registry];
  new Counter({
    name: "edge_connections_would_deny_total",
    help: "Connections that a rule in dry run would have refused.",
    labelNames: ["listener", "reason"],
    registers,
    collect() {
      this.reset();
      for (const { name, door } of edge.listeners.values()) {
        for (const [reason, count] of Object.entries(door.wouldRefuse)) this.inc({ listener: name, reason }, count);
      }
    },
  });
  new Gauge({
    name: "edge_banned_sources",
    help: "Bans in force, by origin.",
    labelNames: ["origin"],
    registers,
    collect() {
      this.reset();
      this.set({ origin: "manual" }, 0);
      for (const [origin, count] of edge.gatekeeper.bans.list.byOrigin) this.set({ origin }, count);
    },
  });
  new Counter({
    name: "edge_bans_total",
    help: "Bans made since the start, by origin.",
    labelNames: ["origin"],
    registers,
    collect() {
      this.reset();
      for (const [origin, count] of edge.gatekeeper.bans.counters) this.inc({ origin }, count);
    },
  });
  new Counter({
    name: "edge_detector_trips_total",
    help: "Sources that went over the threshold of a detector; mode `enforce` or `dryRun`.",
    labelNames: ["detector", "mode"],
    registers,
    collect() {
      this.reset();
      for (const [detector, { trips, dryRun }] of Object.entries(edge.gatekeeper.detectors.counters)) {
        this.inc({ detector, mode: "enforce" }, trips);
        this.inc({ detector, mode: "dryRun" }, dryRun);
      }
    },
  });
  new Gauge({
    name: "edge_tarpitted",
    help: "Refused connections that the tarpit holds.",
    registers,
    collect() {
      this.set(edge.gatekeeper.tarpit.size);
    },
  });
  new Gauge({
    name: "edge_sources",
    help: "Sources in each table of admission: connected, rated, watched by detectors.",
    labelNames: ["table"],
    registers,
    collect() {
      const { admission, detectors } = edge.gatekeeper;
      this.set({ table: "connected" }, admission.sources);
      this.set({ table: "rated" }, admission.ratedSources);
      this.set({ table: "watched" }, detectors.size);
    },
  });
  new Counter({
    name: "edge_sources_evicted_total",
    help: "Sources that had to be forgotten because a table was full.",
    labelNames: ["table"],
    registers,
    collect() {
      this.reset();
      this.inc({ table: "rated" }, edge.gatekeeper.admission.evictedSources);
      this.inc({ table: "watched" }, edge.gatekeeper.detectors.evicted);
    },
  });
  new Counter({
    name: "edge_ip_filter_hits_total",
    help: "Connections that a rule of an IP filter decided over; `rule` is its CIDR, or `default`.",
    labelNames: ["filter", "action", "rule"],
    registers,
    collect() {
      this.reset();
      let left = MAX_RULES;
      for (const [filter, ipFilter] of edge.ipFilters) {
        this.inc({ filter, action: ipFilter.default, rule: "default" }, ipFilter.defaultHits);
        for (const [index, { action, cidr }] of ipFilter.rules.slice(0, left).entries()) {
          this.inc({ filter, action, rule: formatCidr(cidr) }, ipFilter.hitsOf(index));
        }
        left -= Math.min(left, ipFilter.rules.length);
      }
    },
  });
}
