import { readdirSync, readFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";

/** Top of the repository. */
export const root = fileURLToPath(new URL("../../", import.meta.url));

/** A fenced block of a document. */
export interface Fence {
  /** The document, from the top of the repository. */
  readonly file: string;
  /** Line of the opening fence, from 1. */
  readonly line: number;
  readonly language: string;
  /** What follows the language: `edge.yaml`, `edge-host`. */
  readonly info: string;
  readonly text: string;
}

/** Every document of the repository, from its top, with `/` as separator. */
export function documents(): string[] {
  const inDirectory = (directory: string): string[] =>
    readdirSync(join(root, directory), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".md"))
      .map((name) => join(directory, name).split(sep).join("/"));
  return ["README.md", ...inDirectory("docs"), ...inDirectory("deploy")].sort();
}

export function readDocument(file: string): string {
  return readFileSync(join(root, file), "utf8");
}

export function fences(file: string): Fence[] {
  const found: Fence[] = [];
  let open: { line: number; language: string; info: string; lines: string[] } | undefined;
  for (const [at, line] of readDocument(file).split("\n").entries()) {
    const [, opening] = /^```(.*)$/.exec(line) ?? [];
    if (opening === undefined) {
      open?.lines.push(line);
    } else if (open === undefined) {
      const [language = "", ...info] = opening.trim().split(/\s+/);
      open = { line: at + 1, language, info: info.join(" "), lines: [] };
    } else {
      const { lines, ...rest } = open;
      found.push({ file, ...rest, text: `${lines.join("\n")}\n` });
      open = undefined;
    }
  }
  if (open !== undefined) throw new Error(`${file}:${open.line}: the fence is never closed`);
  return found;
}

/** Cells of every table row of a document that lies between two lines, without heading and rule. */
export function tableRows(text: string): string[][] {
  return text
    .split("\n")
    .filter((line) => line.startsWith("|"))
    .slice(2)
    .map((line) =>
      line
        .slice(1, line.lastIndexOf("|"))
        .split(/(?<!\\)\|/)
        .map((cell) => cell.trim().replaceAll("\\|", "|")),
    );
}

/** What stands between `<!-- name -->` and the next `<!-- end -->`. */
export function section(file: string, name: string): string {
  const [, behind] = readDocument(file).split(`<!-- ${name} -->\n`);
  const [inside, rest] = behind?.split("<!-- end -->") ?? [];
  if (inside === undefined || rest === undefined) throw new Error(`${file}: no section ${name}`);
  return inside;
}

/** Ids of a document's headings, as the usual renderers make them. */
export function anchors(file: string): Set<string> {
  const headings = readDocument(file).match(/^#{1,6} .+$/gm) ?? [];
  return new Set(
    headings.map((heading) =>
      heading
        .replace(/^#+ /, "")
        .replaceAll("`", "")
        .toLowerCase()
        .replace(/[^\p{L}\p{N} _-]/gu, "")
        .replaceAll(" ", "-"),
    ),
  );
}

/** Targets of the links of a document that lead to files: path from the top of the repository, and anchor. */
export function links(file: string): { readonly path: string; readonly anchor: string | undefined }[] {
  const text = readDocument(file).replace(/^```[\s\S]*?^```/gm, "");
  return [...text.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = ""]) => target)
    .filter((target) => !/^[a-z]+:/.test(target))
    .map((target) => {
      const [path = "", anchor] = target.split("#");
      const from = file.split("/").slice(0, -1).join("/");
      return {
        path:
          path === ""
            ? file
            : relative(root, join(root, from, path))
                .split(sep)
                .join("/"),
        anchor,
      };
    });
}
