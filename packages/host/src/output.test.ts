import { expect, test } from "vitest";
import { formatTable } from "./output.ts";

test("rows of the same keys become columns", () => {
  expect(
    formatTable([
      { name: "sftp", bytesIn: 1, ready: true },
      { name: "web-long", bytesIn: 20_000 },
    ]),
  ).toBe(["NAME      BYTES IN  READY", "sftp      1         yes", "web-long  20000     -", ""].join("\n"));
});

test("lists and maps fit into a cell, and texts from outside are printed safely", () => {
  expect(formatTable([{ a: ["x", "y"], b: { c: 1 }, d: null, e: "\u001b[31m\n" }])).toBe(
    'A     B        D  E\nx, y  {"c":1}  -  \\u001b[31m\\u000a\n',
  );
});

test("no rows are no output", () => {
  expect(formatTable([])).toBe("");
});
