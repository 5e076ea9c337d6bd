/**
 * The tables of docs/operations.md say what the schemas do. With UPDATE_DOCS=1 the tables are written anew; the column of
 * values stays as it is, since only people can write it, and its bounds are tried out.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseByteSize } from "@sallyport/host";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import type { z } from "zod";
import { agentConfigSchema } from "../../packages/agent/src/config.ts";
import { edgeConfigSchema } from "../../packages/edge/src/config.ts";
import { type ConfigKey, configKeys } from "./config-keys.ts";
import { readDocument, root, section, tableRows } from "./markdown.ts";

const FILE = "docs/operations.md";

const programs: { name: string; schema: z.ZodType; example: string }[] = [
  { name: "edge", schema: edgeConfigSchema, example: "deploy/examples/edge-full.yaml" },
  { name: "agent", schema: agentConfigSchema, example: "deploy/examples/agent-full.yaml" },
];

describe.each(programs)("the table of $name.yaml", ({ name, schema, example }) => {
  const keys = configKeys(schema);
  const values = new Map(tableRows(section(FILE, `keys: ${name}`)).map(([key = "", value = ""]) => [key, value]));
  const expected = table(keys, values);

  if (process.env["UPDATE_DOCS"] === "1") {
    const old = section(FILE, `keys: ${name}`);
    writeFileSync(
      join(root, FILE),
      readDocument(FILE).replace(`<!-- keys: ${name} -->\n${old}`, () => `<!-- keys: ${name} -->\n${expected}`),
    );
  }

  it("has every key with its default and meaning, and no other", () => {
    expect(keys.length).toBeGreaterThan(20);
    expect(section(FILE, `keys: ${name}`)).toBe(expected);
  });

  it("says what values each key takes", () => {
    expect(keys.filter(({ path }) => (values.get(`\`${path}\``) ?? "") === "")).toEqual([]);
  });

  const bounded = [...values]
    .map(([key, value]) => ({
      path: key.replaceAll("`", ""),
      bounds: /^(duration|number|size), `?(\w+)`? to `?(\w+)`?/.exec(value),
    }))
    .flatMap(({ path, bounds }) =>
      bounds === null ? [] : [{ path, kind: bounds[1]!, min: bounds[2]!, max: bounds[3]! }],
    );

  it.each(bounded)("gives the bounds of $path", ({ path, kind, min, max }) => {
    const refused = (value: string | number) => refusesValue({ schema, example, path, value });
    const read = (text: string) => (kind === "number" ? Number(text) : text);
    expect(refused(read(min))).toBe(false);
    expect(refused(read(max))).toBe(false);
    expect(outside({ kind, min, max }).filter((beyond) => !refused(beyond))).toEqual([]);
  });

  it("is complete in the full example", () => {
    const missing = keys.filter(
      ({ path }) => placesOf(parse(readFileSync(join(root, example), "utf8")), path).length === 0,
    );
    expect(missing.map(({ path }) => path)).toEqual([]);
  });
});

it("the full examples state the true defaults where they say default", () => {
  for (const { schema, example } of programs) {
    const config: unknown = parse(readFileSync(join(root, example), "utf8"));
    const stated = new Set(
      readFileSync(join(root, example), "utf8")
        .split("\n")
        .filter((line) => /# default(;|$)/.test(line))
        .flatMap((line) => [...line.split("#")[0]!.matchAll(/(\w+): (?!\{)/g)].map(([, key]) => key!)),
    );
    for (const key of configKeys(schema)) {
      const last = key.path.split(".").at(-1)!;
      if (key.default === undefined || !stated.has(last)) continue;
      const [value] = placesOf(config, key.path);
      expect(`${key.path}: ${String(value?.holder[value.key])}`).toBe(`${key.path}: ${key.default}`);
    }
  }
});

function table(keys: readonly ConfigKey[], values: ReadonlyMap<string, string>): string {
  const rows = keys.map(({ path, default: value, required, description }) => {
    const byDefault = value === undefined ? (required ? "required" : "") : `\`${value}\``;
    const cells = [`\`${path}\``, values.get(`\`${path}\``) ?? "", byDefault, description];
    return `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  });
  return ["| key | values | default | meaning |", "|---|---|---|---|", ...rows, ""].join("\n");
}

type Holder = Record<string | number, unknown>;

/** Where a key stands in a parsed file. */
function placesOf(config: unknown, path: string): { holder: Holder; key: string | number }[] {
  const steps = path.replaceAll("[]", ".[]").split(".");
  const last = steps.pop()!;
  let holders: unknown[] = [config];
  for (const step of steps) {
    holders = holders.flatMap((holder) => {
      if (typeof holder !== "object" || holder === null) return [];
      return step === "[]" || step === "NAME" ? Object.values(holder) : [(holder as Holder)[step]];
    });
  }
  return holders
    .filter((holder): holder is Holder => typeof holder === "object" && holder !== null && last in holder)
    .map((holder) => ({ holder, key: last }));
}

/** Whether the schema finds fault with this key, when the full example has this value for it. */
function refusesValue(options: { schema: z.ZodType; example: string; path: string; value: string | number }): boolean {
  const { schema, example, path, value } = options;
  const config: unknown = parse(readFileSync(join(root, example), "utf8"));
  const [place] = placesOf(config, path);
  if (place === undefined) throw new Error(`${path} is not in ${example}`);
  place.holder[place.key] = value;
  // A pair of settings that must be in order; the other one is not what is tried here.
  if (path === "heartbeat.interval") place.holder["timeout"] = "1d";
  if (path === "heartbeat.timeout") place.holder["interval"] = "100ms";
  if (path === "reconnect.min") place.holder["max"] = "1h";
  if (path === "reconnect.max") place.holder["min"] = "10ms";
  return !schema.safeParse(config).success;
}

const unitMs = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** The nearest values on the wrong side of each bound. */
function outside({ kind, min, max }: { kind: string; min: string; max: string }): (string | number)[] {
  if (kind === "number") return [Number(min) - 1, Number(max) + 1];
  if (kind === "size") return [`${(parseByteSize(min) ?? 0) - 1}B`, `${(parseByteSize(max) ?? 0) + 1}B`];
  const read = (text: string) => {
    const [, count, unit] = /^(\d+)(ms|s|m|h|d)$/.exec(text)!;
    return Number(count) * unitMs[unit as keyof typeof unitMs];
  };
  // Beyond 24 days no timer can wait.
  const above = max === "24d" ? "25d" : `${read(max) + 1}ms`;
  return read(min) === 0 ? [above] : [`${read(min) - 1}ms`, above];
}
