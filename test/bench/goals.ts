/** What the product wants to reach, computed from the figures of one run. */
import { figure } from "./figure.ts";
import type { Column } from "./measurement.ts";
import { MEASUREMENTS } from "./measurements.ts";
import { pairedRatio, summaryOf } from "./result.ts";
import type { Result } from "./result.ts";

export interface Verdict {
  readonly goal: string;
  /** The figure of ours, in the unit of its column. */
  readonly measured: number;
  /** What it is compared with, and its figure. */
  readonly against: string;
  /** Ours to that: the median of the rounds' ratios where both have rounds. */
  readonly ratio: number;
  readonly bound: { readonly atMost: number } | { readonly atLeast: number };
  readonly isReached: boolean;
}

export interface Comparison {
  readonly peer: string;
  readonly column: Column;
  readonly ours: number;
  readonly theirs: number;
  /** How many times better ours is; below 1 it is worse. */
  readonly advantage: number;
}

/** The tunnels that ours wants to be ahead of in everything. */
const RIVALS = ["frp", "chisel", "rathole-tls", "rathole-noise", "wstunnel", "bore"];
const CASES = [
  ["1-in", "1 stream in"],
  ["1-out", "1 stream out"],
  ["8-in", "8 streams in"],
  ["8-out", "8 streams out"],
] as const;

function median(result: Result, peer: string, column: string): number | undefined {
  const summary = summaryOf(result, peer, column);
  return typeof summary === "object" ? summary.median : undefined;
}

class Verdicts {
  readonly all: Verdict[] = [];
  readonly #result: Result;

  constructor(result: Result) {
    this.#result = result;
  }

  /** Nothing is said where either side was not measured. */
  compare(goal: string, options: { ours?: string; base: string; column: string; bound: Verdict["bound"] }): void {
    const { ours = "ours", base, column, bound } = options;
    const measured = median(this.#result, ours, column);
    const theirs = median(this.#result, base, column);
    if (measured === undefined || theirs === undefined) return;
    const paired = pairedRatio(this.#result, { peer: ours, base, column });
    const ratio = paired?.median ?? measured / theirs;
    const title = this.#result.peers.find(({ id }) => id === base)?.title ?? base;
    this.#add({ goal, measured, against: `${title}: ${figure(theirs)}`, ratio, bound });
  }

  /** Against the tunnel that is best in this column, or in `bestBy`. */
  compareWithBest(
    goal: string,
    options: { ours?: string; column: string; bestBy?: Column; bound: Verdict["bound"] },
  ): void {
    const column = columnOf(options.column);
    const bestBy = options.bestBy ?? column;
    const tunnels = this.#result.peers.filter(({ kind, isOurs }) => kind === "tunnel" && !isOurs);
    const ranked = tunnels
      .flatMap(({ id }) => {
        const value = median(this.#result, id, bestBy.id);
        return value === undefined ? [] : [{ id, value }];
      })
      .sort((a, b) => (bestBy.better === "more" ? b.value - a.value : a.value - b.value));
    if (ranked.length === 0) return;
    this.compare(goal, { ...options, base: ranked[0]!.id });
  }

  compareWithNumber(goal: string, options: { ours?: string; column: string; number: number }): void {
    const measured = median(this.#result, options.ours ?? "ours", options.column);
    if (measured === undefined) return;
    const { number } = options;
    const ratio = number === 0 ? measured : measured / number;
    this.#add({
      goal,
      measured,
      against: `${number} ${columnOf(options.column).unit}`,
      ratio,
      bound: { atMost: number === 0 ? 0 : 1 },
    });
  }

  add(verdict: Omit<Verdict, "isReached">): void {
    this.#add(verdict);
  }

  #add(verdict: Omit<Verdict, "isReached">): void {
    const { bound, ratio } = verdict;
    this.all.push({ ...verdict, isReached: "atMost" in bound ? ratio <= bound.atMost : ratio >= bound.atLeast });
  }
}

export function verdictsOf(result: Result): Verdict[] {
  const verdicts = new Verdicts(result);
  for (const [key, title] of CASES) {
    const cpu = `cpu-${key}`;
    const rate = `bulk-${key}`;
    verdicts.compare(`CPU a byte, ${title}: the runtime's floor`, {
      base: "node-tls",
      column: cpu,
      bound: { atMost: 1.15 },
    });
    verdicts.compare(`throughput, ${title}: the runtime's floor`, {
      base: "node-tls",
      column: rate,
      bound: { atLeast: 0.9 },
    });
  }
  for (const [key, title] of CASES) {
    const column = `cpu-${key}`;
    verdicts.compare(`CPU a byte, ${title}: two thirds of OpenSSH`, {
      base: "openssh",
      column,
      bound: { atMost: 2 / 3 },
    });
    verdicts.compare(`CPU a byte, ${title}: OpenSSH with AES-GCM`, {
      base: "openssh-aes128-gcm",
      column,
      bound: { atMost: 1.6 },
    });
  }
  for (const [key, title] of CASES) {
    const direct = { ours: "ours-direct" };
    verdicts.compare(`direct mode, CPU a byte, ${title}`, {
      ...direct,
      base: "node-pipe",
      column: `cpu-${key}`,
      bound: { atMost: 1.15 },
    });
    verdicts.compare(`direct mode, throughput, ${title}`, {
      ...direct,
      base: "haproxy",
      column: `bulk-${key}`,
      bound: { atLeast: 0.9 },
    });
  }
  verdicts.compareWithBest("connections a second, best tunnel", { column: "open-rate", bound: { atLeast: 2 } });
  verdicts.compareWithBest("p99 of a connection, the same tunnel", {
    column: "open-p99",
    bestBy: columnOf("open-rate"),
    bound: { atMost: 1 },
  });
  verdicts.compareWithBest("echo p50, best tunnel", { column: "echo-p50", bound: { atMost: 1 } });
  verdicts.compareWithNumber("echo p99 beside bulk", { column: "busy-p99", number: 10 });
  verdicts.compareWithNumber("edge with 10,000 idle connections", { column: "memory-edge-10000", number: 250 });
  verdicts.compareWithNumber("agent with 10,000 idle connections", { column: "memory-agent-10000", number: 250 });
  verdicts.compareWithNumber("CPU while 10,000 are idle", { column: "idle-cpu", number: 3 });
  for (const ours of ["ours", "ours-4-links", "ours-4-links-stripe"]) {
    const links = { ours: "default links", "ours-4-links": "4 links", "ours-4-links-stripe": "4 links, stripe" }[ours];
    const goal = `one stream at 50 ms and 1 % loss, ${links}, best tunnel`;
    verdicts.compareWithBest(goal, { ours, column: "path-loss-1", bound: { atLeast: 2 } });
  }
  const [few, many] = [median(result, "ours", "open-cpu-100"), median(result, "ours", "open-cpu-9900")];
  if (few !== undefined && many !== undefined) {
    verdicts.add({
      goal: "CPU a connection beside 9,900 others",
      measured: many,
      against: `beside 100: ${figure(few)}`,
      ratio: many / few,
      bound: { atMost: 1.2 },
    });
  }
  verdicts.compareWithNumber("IP filter, 100,000 rules", { column: "ip-filter-hit", number: 1 });
  verdicts.compareWithNumber("IP filter, 100,000 rules, any address", { column: "ip-filter-random", number: 1 });
  verdicts.compareWithNumber("bytes lost when the link is cut", { column: "cut-lost", number: 0 });
  return verdicts.all;
}

/** Every column that ours and one of the rivals have. */
export function withRivals(result: Result): Comparison[] {
  return comparisonsWith(result, RIVALS);
}

/** The same for OpenSSH with AES-GCM; its CPU for a byte is a goal of its own. */
export function withOpenssh(result: Result): Comparison[] {
  return comparisonsWith(result, ["openssh-aes128-gcm"]).filter(({ column }) => !column.id.startsWith("cpu-"));
}

/** Those in which ours is not better, worst first. To have the same is to be ahead where nothing better is possible. */
export function notAhead(comparisons: readonly Comparison[]): Comparison[] {
  return comparisons
    .filter(({ ours, theirs, advantage }) => !(advantage > 1) && !(ours === 0 && theirs === 0))
    .sort((a, b) => a.advantage - b.advantage);
}

function comparisonsWith(result: Result, peers: readonly string[]): Comparison[] {
  return peers.flatMap((peer) =>
    MEASUREMENTS.flatMap(({ columns }) => columns).flatMap((column): Comparison[] => {
      const [ours, theirs] = [median(result, "ours", column.id), median(result, peer, column.id)];
      if (ours === undefined || theirs === undefined) return [];
      const advantage = column.better === "more" ? ours / theirs : theirs / ours;
      return [{ peer, column, ours, theirs, advantage }];
    }),
  );
}

function columnOf(id: string): Column {
  const column = MEASUREMENTS.flatMap(({ columns }) => columns).find((one) => one.id === id);
  if (column === undefined) throw new Error(`no column ${id}`);
  return column;
}
