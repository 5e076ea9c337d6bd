/**
 * Configuration files: YAML, read strictly, every fault told as `file:line:column: key path: reason`. A reason names keys
 * and never values, because what stands in the wrong place may be a secret.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  type Pair,
  parseDocument,
  visit,
} from "yaml";
import type { z } from "zod";
import { configReason } from "./config-reason.ts";
import { ExitCode, Failure, systemFailure } from "./failure.ts";
import { nearestWord } from "./nearest-word.ts";
import { printableText } from "./printable-text.ts";

/** 100,000 IP filter rules are a tenth of it. */
const MAX_FILE_BYTES = 16 * 1024 * 1024;

/** Aliases may be resolved this often in all; more is the start of an "alias bomb". */
const MAX_ALIAS_COUNT = 20;

/**
 * Reads a configuration file. Blocks, because it is done at start, on reload and by commands, and a half-read file is of
 * no use to anybody.
 *
 * @throws Failure 78 that says where and why the content is wrong; 74 or 77 when the file cannot be read
 */
export function loadConfigFile<Schema extends z.ZodType>(path: string, schema: Schema): z.output<Schema> {
  return checkConfigText(readText(path), path, schema);
}

/**
 * The `stateDir` of a configuration file, for commands that ask the running program: that one goes on with what it has read
 * before, and an operator has to reach it just when the file has a fault. `schema` is that of the file, `stateDir` that of
 * the key.
 *
 * @throws Failure as `loadConfigFile` does, when the file cannot be read or the fault is in the key itself
 */
export function loadStateDir(
  path: string,
  { schema, stateDir }: { readonly schema: z.ZodType<{ stateDir: string }>; readonly stateDir: z.ZodType<string> },
): string {
  const text = readText(path);
  try {
    return checkConfigText(text, path, schema).stateDir;
  } catch (error) {
    const document = parseDocument(text, { logLevel: "silent", prettyErrors: false, stringKeys: true });
    const { contents } = document;
    // A file with faults of syntax that names no directory may name one behind the fault.
    if (!isMap(contents) || (document.errors.length > 0 && !contents.has("stateDir"))) throw error;
    const parsed = stateDir.safeParse(contents.get("stateDir"));
    if (!parsed.success) throw error;
    return parsed.data;
  }
}

/**
 * Checks the text of a configuration file; `name` is what faults call it. Checks that cross keys belong in a `superRefine`
 * of the schema; the `path` of an issue they add decides where the fault is shown.
 *
 * @throws Failure 78 for the first fault in the order of the file, with the number of the others
 */
export function checkConfigText<Schema extends z.ZodType>(
  text: string,
  name: string,
  schema: Schema,
): z.output<Schema> {
  // A UTF-8 byte order mark is allowed by YAML and means nothing.
  const source = text.startsWith("\ufeff") ? text.slice(1) : text;
  const lines = new LineCounter();
  const document = parseDocument(source, {
    lineCounter: lines,
    // Not "silent", which would let a second document pass without a word.
    logLevel: "error",
    prettyErrors: false,
    stringKeys: true,
    uniqueKeys: true,
    version: "1.2",
  });
  const fail = (faults: readonly Fault[]): never => {
    // One reason a place: a text in the place of a list is not also a list that is too long.
    const byPlace = new Map<string, Fault>();
    for (const fault of faults) {
      const place = JSON.stringify(fault.path);
      byPlace.set(place, byPlace.get(place) ?? fault);
    }
    // What is missing comes last: a key that is written wrong is missing, too, and its own place tells more.
    const sorted = [...byPlace.values()].toSorted(
      (a, b) => Number(a.isMissing ?? false) - Number(b.isMissing ?? false) || a.offset - b.offset,
    );
    const [first] = sorted;
    if (first === undefined) {
      throw new Error("no fault to tell");
    }
    const { line, col } = lines.linePos(first.offset);
    const more = sorted.length === 1 ? "" : ` (and ${sorted.length - 1} more)`;
    const path = first.path.length === 0 ? "" : `${formatPath(first.path)}: `;
    throw new Failure(ExitCode.configuration, `${name}:${line}:${col}`, `${path}${first.reason}${more}`);
  };

  const [syntaxError] = [...document.errors, ...document.warnings].toSorted((a, b) => a.pos[0] - b.pos[0]);
  if (syntaxError !== undefined) {
    // The first only: what follows is mostly its consequence. The library's own text quotes the file.
    fail([{ offset: syntaxError.pos[0], path: [], reason: syntaxReasons[syntaxError.code] ?? "is not valid YAML" }]);
  }
  const root: Node | null = document.contents;
  if (root === null || (isScalar(root) && root.value === null)) {
    fail([{ offset: 0, path: [], reason: "the file is empty" }]);
  }
  if (!isMap(root)) {
    return fail([
      {
        offset: root?.range?.[0] ?? 0,
        path: [],
        reason: "the file must be a map of keys and values, such as `name: x`",
      },
    ]);
  }
  const unusable = findUnusable(document);
  if (unusable !== undefined) {
    fail([unusable]);
  }

  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: MAX_ALIAS_COUNT });
  } catch {
    return fail([{ offset: root.range?.[0] ?? 0, path: [], reason: "has too many aliases (*name)" }]);
  }
  const result = schema.safeParse(value, { error: configReason });
  if (result.success) {
    return result.data;
  }
  const locate = (path: Path, part: "key" | "value") => placeOf({ root, document, path, part });
  const faults = result.error.issues
    .flatMap((issue) => flatten(issue, []))
    .flatMap((issue): Fault[] => {
      if (issue.code !== "unrecognized_keys") {
        return [{ ...locate(issue.path, "value"), path: issue.path, reason: issue.message }];
      }
      const known = knownKeys(schema, issue.path);
      return issue.keys.map((key) => {
        const path = [...issue.path, key];
        const nearest = nearestWord(key, known);
        const hint = nearest === undefined ? "" : `; did you mean ${nearest}?`;
        return { ...locate(path, "key"), path, reason: `unknown key${hint}` };
      });
    });
  return fail(faults);
}

type Path = readonly PropertyKey[];

interface Fault {
  /** Position in the text, in UTF-16 units. */
  readonly offset: number;
  /** The path does not exist in the file; the position is that of what is around it. */
  readonly isMissing?: boolean;
  readonly path: Path;
  readonly reason: string;
}

const syntaxReasons: Partial<Record<string, string>> = {
  ALIAS_PROPS: "an alias (*name) takes no tag or anchor",
  BAD_ALIAS: "this is no usable alias (*name); a text that begins with * or & needs quotes",
  BAD_DQ_ESCAPE: "invalid escape in a text in double quotes",
  BAD_INDENT: "wrong indentation, or a bracket or quote before it is not closed",
  BAD_SCALAR_START: "a text that begins with this character needs quotes",
  BLOCK_AS_IMPLICIT_KEY:
    "a map or list begins where a value was expected; check the indentation, and quote a text that holds `: `",
  BLOCK_IN_FLOW: "inside { } and [ ] everything stays on its line or is separated by commas",
  DUPLICATE_KEY: "this key occurs twice in its map",
  KEY_OVER_1024_CHARS: "a key is too long",
  MISSING_CHAR: "a character is missing here: a closing quote, bracket, comma, or the space behind a colon",
  MULTILINE_IMPLICIT_KEY: "a key must stand on one line; is a colon or quote missing?",
  MULTIPLE_ANCHORS: "more than one anchor (&name)",
  MULTIPLE_DOCS: "a second document begins here (---); a configuration file holds one",
  MULTIPLE_TAGS: "more than one tag (!name)",
  NON_STRING_KEY: "a key must be a plain text",
  TAB_AS_INDENT: "tabs cannot indent in YAML; use spaces",
  TAG_RESOLVE_FAILED: "tags (!name) are not used here, or the value does not fit its tag",
  UNEXPECTED_TOKEN: "this was not expected here; check quotes, brackets and indentation",
};

function readText(path: string): string {
  let bytes: Buffer;
  try {
    const file = openSync(path, "r");
    try {
      bytes = readBounded(file, path);
    } finally {
      closeSync(file);
    }
  } catch (error) {
    throw error instanceof Failure ? error : systemFailure(error, path, "read the configuration");
  }
  if ((bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff)) {
    throw new Failure(ExitCode.configuration, path, "is UTF-16; save it as UTF-8");
  }
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new Failure(ExitCode.configuration, path, "is not UTF-8 text");
  }
}

/** Reads to the end whatever the size in the directory says: a pipe has none, and a file can grow meanwhile. */
function readBounded(file: number, path: string): Buffer {
  const tooLarge = new Failure(ExitCode.configuration, path, `is larger than ${MAX_FILE_BYTES / 1024 / 1024} MiB`);
  if (fstatSync(file).size > MAX_FILE_BYTES) {
    throw tooLarge;
  }
  const chunks: Buffer[] = [];
  let length = 0;
  for (;;) {
    const chunk = Buffer.allocUnsafe(64 * 1024);
    const count = readSync(file, chunk);
    if (count === 0) {
      return Buffer.concat(chunks, length);
    }
    chunks.push(chunk.subarray(0, count));
    length += count;
    if (length > MAX_FILE_BYTES) {
      throw tooLarge;
    }
  }
}

/**
 * What YAML allows and an object cannot hold: `__proto__` would vanish on the way, merge keys (`<<`) are not YAML 1.2, and
 * an alias has to lead somewhere else than around itself.
 */
function findUnusable(document: Document): Fault | undefined {
  let found: Fault | undefined;
  const refuse = (node: Node, path: Path, reason: string) => {
    found = { offset: node.range?.[0] ?? 0, path, reason };
    return visit.BREAK;
  };
  visit(document, {
    Pair: (_, { key }) => {
      if (!isScalar(key) || (key.value !== "__proto__" && key.value !== "<<")) {
        return undefined;
      }
      const reason = key.value === "<<" ? "merge keys (<<) are not supported" : "is not usable as a key";
      return refuse(key, [key.value], reason);
    },
    Alias: (_, alias, ancestors) => {
      const target = alias.resolve(document);
      if (target === undefined) {
        return refuse(alias, [], "no anchor (&name) of this name stands before this alias (*name)");
      }
      return ancestors.includes(target)
        ? refuse(alias, [], "this alias (*name) stands inside of what it means")
        : undefined;
    },
  });
  return found;
}

/** Where the value (or the key) at the path stands; for one that is missing, where the innermost thing around it does. */
function placeOf(options: { root: Node; document: Document; path: Path; part: "key" | "value" }): {
  offset: number;
  isMissing: boolean;
} {
  const { document, path, part } = options;
  let node: Node | null | undefined = options.root;
  let offset = node.range?.[0] ?? 0;
  for (const [at, segment] of path.entries()) {
    const parent = resolveAlias(node, document);
    if (isMap(parent)) {
      const pair = (parent.items as Pair<Node, Node | null>[]).find(
        ({ key }) => isScalar(key) && String(key.value) === String(segment),
      );
      if (pair === undefined) {
        return { offset, isMissing: true };
      }
      const isValueAskedFor = at === path.length - 1 && part === "value" && !isEmpty(pair.value);
      offset = (isValueAskedFor ? pair.value?.range?.[0] : pair.key.range?.[0]) ?? offset;
      node = pair.value;
    } else if (isSeq(parent) && typeof segment === "number") {
      node = parent.items[segment] as Node | undefined;
      offset = node?.range?.[0] ?? offset;
    } else {
      return { offset, isMissing: true };
    }
  }
  return { offset, isMissing: false };
}

function isEmpty(node: Node | null): boolean {
  return node === null || (isScalar(node) && node.value === null);
}

function resolveAlias(node: Node | null | undefined, document: Document): Node | undefined {
  return (isAlias(node) ? node.resolve(document) : node) ?? undefined;
}

type Issue = z.core.$ZodIssue;

/**
 * Unions and keys of records wrap the issues that matter. Of a union the branch counts that accepted the value's kind: for a
 * map that is not quite right, the reason is inside the map and not that it is no text.
 */
function flatten(issue: Issue, prefix: Path): Issue[] {
  const path = [...prefix, ...issue.path];
  if (issue.code === "invalid_union") {
    const branch = issue.errors.find((issues) => !issues.some((inner) => inner.path.length === 0 && isOfKind(inner)));
    return branch === undefined ? [{ ...issue, path }] : branch.flatMap((inner) => flatten(inner, path));
  }
  if (issue.code === "invalid_key") {
    const [inner] = issue.issues;
    return [{ ...issue, path, message: inner?.message ?? issue.message }];
  }
  return [{ ...issue, path }];
}

function isOfKind(issue: Issue): boolean {
  return issue.code === "invalid_type" || issue.code === "invalid_union";
}

/** `deployments.0.via.tunnel`. A key of the file may hold anything, so it is cut and printed safely. */
function formatPath(path: Path): string {
  return path.map((segment) => printableText(String(segment), 64)).join(".");
}

/** The keys that the schema knows at a path; of a union, those of all branches. */
function knownKeys(schema: z.core.$ZodType, path: Path): string[] {
  const { def } = (schema as z.core.$ZodTypes)._zod;
  const [segment, ...rest] = path;
  switch (def.type) {
    case "object": {
      if (segment === undefined) {
        return Object.keys(def.shape);
      }
      const next = def.shape[String(segment)];
      return next === undefined ? [] : knownKeys(next, rest);
    }
    case "array":
      return segment === undefined ? [] : knownKeys(def.element, rest);
    case "record":
      return segment === undefined ? [] : knownKeys(def.valueType, rest);
    case "union":
      return def.options.flatMap((option) => knownKeys(option, path));
    case "pipe":
      return knownKeys(def.in, path);
    case "optional":
    case "nullable":
    case "default":
    case "prefault":
    case "readonly":
    case "nonoptional":
      return knownKeys(def.innerType, path);
    default:
      return [];
  }
}
