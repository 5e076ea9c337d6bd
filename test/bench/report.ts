/** `docs/benchmarks.md`, from raw results alone. */
import type { Column, Measurement } from "./measurement.ts";
import { MEASUREMENTS } from "./measurements.ts";
import { pairedRatio, summaryOf } from "./result.ts";
import type { PeerDescription, Result } from "./result.ts";

export function report(result: Result): string {
  const measured = MEASUREMENTS.filter(({ id }) => result.measurements.includes(id));
  const sections = measured.map((measurement) => section(result, measurement));
  return `${[...head(result), ...sections, ...builds(result, measured)].join("\n\n")}\n`;
}

function head(result: Result): string[] {
  const facts = Object.entries(result.machine).map(([name, value]) => `| ${name} | ${value} |`);
  return [
    "# Benchmarks",
    [
      "| | |",
      "|---|---|",
      ...facts,
      `| command | \`${result.command}\` |`,
      `| taken | ${result.startedAt.slice(0, 16)}Z |`,
    ].join("\n"),
  ];
}

function section(result: Result, measurement: Measurement): string {
  const rows = result.peers.filter(
    (peer) =>
      peer.absent !== undefined ||
      result.samples.some((sample) => sample.peer === peer.id && sample.measurement === measurement.id),
  );
  return [`## ${measurement.title}`, measurement.method, table(result, measurement.columns, rows)].join("\n\n");
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
          return [`| ${peer.id} | ${base!.id} | ${title} | ${ratio.median.toFixed(3)} | ${range} | ${better} |`];
        }),
    ),
  );
  if (lines.length === 0) return [];
  const header = ["| build | as a share of | column | median | range | better |", "|---|---|---|---:|---:|---|"];
  return ["## Builds, round by round", [...header, ...lines].join("\n")];
}

function table(result: Result, columns: readonly Column[], rows: readonly PeerDescription[]): string {
  const header = ["", ...columns.map(({ title, unit }) => `${title}, ${unit}`)];
  const lines = rows.map((peer) => [peer.title, ...columns.map(({ id }) => peer.absent ?? cell(result, peer.id, id))]);
  return [header, ["---", ...columns.map(() => "---:")], ...lines]
    .map((cells) => `| ${cells.join(" | ")} |`)
    .join("\n");
}

/** The median, and after it the least and the most when there was more than one round. */
function cell(result: Result, peer: string, column: string): string {
  const summary = summaryOf(result, peer, column);
  if (summary === undefined) return "";
  if (typeof summary === "string") return summary;
  const { median, min, max, rounds } = summary;
  return rounds === 1 ? figure(median) : `${figure(median)} (${figure(min)}–${figure(max)})`;
}

/** Three significant digits, and never an exponent. */
export function figure(value: number): string {
  if (value === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(digits, 3));
}
