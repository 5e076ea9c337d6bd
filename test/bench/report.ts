/** `docs/benchmarks.md`, from raw results alone. */
import { figure } from "./figure.ts";
import { notAhead, verdictsOf, withOpenssh, withRivals } from "./goals.ts";
import type { Comparison } from "./goals.ts";
import type { Column, Measurement } from "./measurement.ts";
import { MEASUREMENTS } from "./measurements.ts";
import { pairedRatio, summaryOf } from "./result.ts";
import type { PeerDescription, Result } from "./result.ts";

export function report(result: Result): string {
  const measured = MEASUREMENTS.filter(({ id }) => result.measurements.includes(id));
  const sections = measured.map((measurement) => section(result, measurement));
  return `${[...head(result), ...goals(result), ...sections, ...builds(result, measured), ...rows(result)].join("\n\n")}\n`;
}

function head(result: Result): string[] {
  const facts = Object.entries({
    ...result.machine,
    taken: `${result.startedAt.slice(0, 16).replace("T", " ")} UTC, in ${Math.ceil(result.durationSeconds / 60)} minutes`,
    settings: `${result.rounds} ${result.rounds === 1 ? "round" : "rounds"}, ${result.seconds} s a measurement`,
    command: `\`${result.command}\``,
  });
  return [
    "# Benchmarks",
    ...(result.isSmoke ? ["**The short form: it shows that everything works, and its figures say nothing.**"] : []),
    "The product as a user meets it, beside what a user would take instead: separate processes, TLS on, both ends counted, all " +
      "limits, counters and records on. Written by `npm run bench`; the raw figures of the same run are in benchmarks.json.",
    [
      "**To read it.** Every cell is the median of the rounds, with the least and the most of them in parentheses. In each round " +
        "every row has its turn in every table, in an order that rotates, so that what is compared was measured within minutes. " +
        "All processes, load and targets included, share the machine's processors: a row with less CPU leaves more to the load, " +
        "and the rates say less about a bigger machine than the CPU does. `failed` is a measurement that a peer did not get through, " +
        "`only N` the number of connections that it reached.",
      "**To repeat it.** On a machine that does nothing else, as root (for network namespaces): `npm ci && npm run bench`. It takes " +
        'what it finds on PATH and installs nothing; a program that is missing is a row "not installed". Debian\'s packages: ' +
        "gcc haproxy iperf3 iproute2 libnginx-mod-stream nginx openssh-client openssh-server openssl postgresql socat wrk. " +
        "`npm run bench -- --help` tells how to take some rows or columns only, and how to compare two builds in one run " +
        "(`--ours-dir`). `--report docs/benchmarks.json` writes this page again from the raw figures.",
    ].join("\n\n"),
    table(
      ["", ""],
      ["---", "---"],
      facts.map(([name, value]) => [name, value]),
    ),
  ];
}

function goals(result: Result): string[] {
  if (result.isSmoke) return [];
  const verdicts = verdictsOf(result);
  const lines = verdicts.map(({ goal, measured, against, ratio, bound, isReached }) => [
    goal,
    figure(measured),
    against,
    figure(ratio),
    "atMost" in bound ? `≤ ${figure(bound.atMost)}` : `≥ ${figure(bound.atLeast)}`,
    isReached ? "yes" : "**no**",
  ]);
  const header = ["goal", "ours", "against", "ratio", "wanted", "reached"];
  const parts = [
    ...(lines.length === 0 ? [] : [table(header, ["---", "---:", "---", "---:", "---:", "---"], lines)]),
    ...behind(result, "Ahead of frp, chisel, rathole, wstunnel and bore in every column", withRivals(result)),
    ...behind(result, "Ahead of OpenSSH with AES-GCM in every column but CPU a byte", withOpenssh(result)),
  ];
  return parts.length === 0 ? [] : ["## Goals", ...parts];
}

/** The columns in which ours is not ahead, or that there is none. Says nothing where nothing was compared. */
function behind(result: Result, goal: string, comparisons: readonly Comparison[]): string[] {
  if (comparisons.length === 0) return [];
  const titleOf = (peer: string): string => result.peers.find(({ id }) => id === peer)?.title ?? peer;
  const behind = notAhead(comparisons);
  const lines = [...new Set(behind.map(({ column }) => column))].map((column) => {
    const [worst, ...others] = behind.filter((comparison) => comparison.column === column);
    return [
      `${groupOf(column)}: ${column.title}, ${column.unit}`,
      figure(worst!.ours),
      `${titleOf(worst!.peer)}: ${figure(worst!.theirs)}`,
      figure(worst!.advantage),
      others.map(({ peer, theirs }) => `${titleOf(peer)} ${figure(theirs)}`).join(", "),
    ];
  });
  if (lines.length === 0) return [`${goal}: yes, in all ${comparisons.length} that were compared.`];
  const header = ["column", "ours", "best", "ours is … times as good", "ahead of ours, too"];
  return [
    `${goal}: in ${comparisons.length - behind.length} of ${comparisons.length} comparisons. Not in these columns:`,
    table(header, ["---", "---:", "---", "---:", "---"], lines),
  ];
}

function groupOf(column: Column): string {
  return MEASUREMENTS.find(({ columns }) => columns.includes(column))?.title ?? "";
}

/** What stood in each row. */
function rows(result: Result): string[] {
  const lines = result.peers.map(({ title, absent, version, protection, settings, id }) => [
    title,
    `\`${id}\``,
    absent ?? version,
    protection,
    settings,
  ]);
  const header = ["row", "name", "version", "protection between the ends", "settings"];
  return [
    "## Rows",
    table(
      header,
      header.map(() => "---"),
      lines,
    ),
  ];
}

function section(result: Result, measurement: Measurement): string {
  const measured = result.peers.filter(({ id }) =>
    result.samples.some((sample) => sample.peer === id && sample.measurement === measurement.id),
  );
  const absent = result.peers.filter((peer) => peer.absent !== undefined && peer.kind === "tunnel" && !peer.isOurs);
  const header = ["", ...measurement.columns.map(({ title, unit }) => `${title}, ${unit}`)];
  const lines = [
    ...measured.map(({ title, id }) => [title, ...measurement.columns.map((column) => cell(result, id, column.id))]),
    ...absent.map((peer) => [peer.title, ...measurement.columns.map(() => peer.absent ?? "")]),
  ];
  const alignment = ["---", ...measurement.columns.map(() => "---:")];
  return [`## ${measurement.title}`, measurement.method, table(header, alignment, lines)].join("\n\n");
}

/** Two builds of ours that ran in turn: each later one as a share of the first, round by round. */
function builds(result: Result, measurements: readonly Measurement[]): string[] {
  const families = new Map<string, PeerDescription[]>();
  for (const peer of result.peers) {
    if (!peer.isOurs || peer.absent !== undefined) continue;
    const family = peer.id.split("@")[0]!;
    families.set(family, [...(families.get(family) ?? []), peer]);
  }
  const lines = [...families.values()].flatMap(([base, ...others]) =>
    others.flatMap((peer) =>
      measurements
        .flatMap(({ columns }) => columns)
        .flatMap(({ id, title, better }) => {
          const ratio = pairedRatio(result, { peer: peer.id, base: base!.id, column: id });
          if (ratio === undefined) return [];
          const range = `${ratio.min.toFixed(3)}–${ratio.max.toFixed(3)}`;
          return [[peer.id, base!.id, title, ratio.median.toFixed(3), range, better]];
        }),
    ),
  );
  if (lines.length === 0) return [];
  const header = ["build", "as a share of", "column", "median", "range", "better"];
  return ["## Builds, round by round", table(header, ["---", "---", "---", "---:", "---:", "---"], lines)];
}

function table(header: readonly string[], alignment: readonly string[], lines: readonly (readonly string[])[]): string {
  return [header, alignment, ...lines].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

/** The median, and after it the least and the most when there was more than one round. */
function cell(result: Result, peer: string, column: string): string {
  const summary = summaryOf(result, peer, column);
  if (summary === undefined) return "";
  if (typeof summary === "string") return summary;
  const { median, min, max, rounds } = summary;
  return rounds === 1 ? figure(median) : `${figure(median)} (${figure(min)}–${figure(max)})`;
}
