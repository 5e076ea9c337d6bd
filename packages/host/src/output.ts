/** What commands print on standard output. */
import { printableText } from "./printable-text.ts";

/** One JSON document, for programs. */
export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

/** A table with the keys of the rows as its head, for people; nothing for no rows. */
export function printTable(rows: readonly object[]): void {
  process.stdout.write(formatTable(rows));
}

/** The text of {@link printTable}. Texts from outside are printed safely. */
export function formatTable(rows: readonly object[]): string {
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = [
    keys.map((key) => key.replace(/[A-Z]/g, (letter) => ` ${letter}`).toUpperCase()),
    ...rows.map((row) => keys.map((key) => formatCell((row as Record<string, unknown>)[key]))),
  ];
  const widths = keys.map((_, at) => Math.max(...lines.map((line) => line[at]?.length ?? 0)));
  const pad = (line: readonly string[]) => line.map((cell, at) => cell.padEnd(widths[at] ?? 0)).join("  ");
  return rows.length === 0 ? "" : lines.map((line) => `${pad(line).trimEnd()}\n`).join("");
}

function formatCell(value: unknown): string {
  switch (typeof value) {
    case "undefined":
      return "-";
    case "boolean":
      return value ? "yes" : "no";
    case "object":
      if (value === null) {
        return "-";
      }
      return Array.isArray(value) ? value.map(formatCell).join(", ") : printableText(JSON.stringify(value));
    default:
      return printableText(String(value));
  }
}
