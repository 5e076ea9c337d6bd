/** docs/records.md says of every ending and of every field of a record what it means elsewhere, and of none that does not exist. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { fences, readDocument, root, section, tableRows } from "./markdown.ts";

const FILE = "docs/records.md";

/** Every pair of letters that the programs write, with its words. */
function endings(): { code: string; reason: string }[] {
  return ["tunnel", "edge", "agent"]
    .flatMap((name) => {
      const directory = join(root, "packages", name, "src");
      return readdirSync(directory)
        .filter((file) => file.endsWith(".ts") && !file.endsWith(".test.ts"))
        .map((file) => readFileSync(join(directory, file), "utf8"));
    })
    .flatMap((text) => [...text.matchAll(/\{\s*code: "([-A-Za-z]{2})",\s*reason: "([^"]+)",?\s*\}/g)])
    .map(([, code = "", reason = ""]) => ({ code, reason }));
}

/** The keys of `ConnectionFacts` of one program. */
function fields(file: string): string[] {
  const [, body = ""] = /interface ConnectionFacts \{([\s\S]*?)^\}/m.exec(readFileSync(join(root, file), "utf8")) ?? [];
  return [...body.matchAll(/^ {2}readonly (\w+)\??:/gm)].map(([, key = ""]) => key);
}

const EDGE_FIELDS = fields("packages/edge/src/access-record.ts");
const AGENT_FIELDS = fields("packages/agent/src/connection-record.ts");
const EVERY_LINE = ["level", "time", "name", "msg", "code", "reason"];
const codes = new Set(endings().map(({ code }) => code));

const examples = fences(FILE)
  .filter(({ language }) => language === "json")
  .map(({ text }) => JSON.parse(text) as Record<string, unknown>);

/** Rows of the tables of operations.md that are about endings: the letters, the words, an example. */
const documented = [...readDocument("docs/operations.md").matchAll(/^\| `([-A-Za-z]{2})` \| ([^|]+) \| [^|]/gm)].map(
  ([, code = "", reason = ""]) => ({ code, reason }),
);

it("there are codes and fields to look for", () => {
  expect(codes.size).toBeGreaterThan(18);
  expect(EDGE_FIELDS.length).toBeGreaterThan(25);
  expect(AGENT_FIELDS.length).toBeGreaterThan(15);
});

describe("every ending", () => {
  it("that a program has is in docs/operations.md, and the other way round", () => {
    const spoken = (list: { code: string; reason: string }[]) =>
      [...new Set(list.map(({ code, reason }) => `${code} ${reason}`))].sort();
    expect(spoken(documented)).toEqual(spoken(endings()));
  });

  it("has an example record, and no other has", () => {
    const shown = examples.filter(({ msg }) => msg === "connection").map(({ code }) => String(code));
    expect(shown.sort()).toEqual([...codes].sort());
  });

  it("has a name of nginx and of Envoy", () => {
    const rows = tableRows(readDocument(FILE).split("## In the words of nginx and Envoy")[1]!.split("## ")[0]!);
    const mapped = rows.map(([code = ""]) => code.replaceAll("`", "")).filter((code) => /^[-A-Za-z]{2}$/.test(code));
    expect(mapped.sort()).toEqual([...codes].sort());
    expect(rows.filter(([code = "", nginx = ""]) => code.includes("`") && !/^\d{3}$/.test(nginx))).toEqual([]);
  });
});

describe("an example record", () => {
  it.each(examples.map((record) => [record.code ?? record.msg, record]))("of %s has fields that exist", (_, record) => {
    const known = new Set([...EVERY_LINE, ...EDGE_FIELDS]);
    expect(Object.keys(record).filter((key) => !known.has(key))).toEqual([]);
    const { startedAt, endedAt, totalMs, code, reason } = record;
    expect(new Date(String(startedAt)).getTime() + Number(totalMs)).toBe(
      new Date(String(endedAt ?? record.time)).getTime(),
    );
    expect(endings().filter((ending) => ending.code === code && ending.reason === reason).length).toBe(
      code === undefined ? 0 : 1,
    );
  });
});

describe("the names of the Elastic Common Schema", () => {
  const rows = tableRows(section(FILE, "ecs"))
    .map(([ours = "", ecs = "", type = "", example = ""]) => ({ ours: ours.replaceAll("`", ""), ecs, type, example }))
    .filter(({ ours }) => ours !== "our field" && !ours.startsWith("---"));

  it("there is a row for every field of a record, and for no other", () => {
    const all = [...new Set([...EVERY_LINE, ...EDGE_FIELDS, ...AGENT_FIELDS])];
    expect(rows.map(({ ours }) => ours).sort()).toEqual(all.sort());
  });

  it("each row has a name, a type and an example", () => {
    expect(rows.filter(({ ecs, type, example }) => [ecs, type, example].includes(""))).toEqual([]);
    expect(rows.filter(({ ecs }) => !/^(@timestamp|[a-z]+\.[\w.]+)/.test(ecs))).toEqual([]);
  });
});
