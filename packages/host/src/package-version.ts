import { readFileSync } from "node:fs";

/** The version of the package that a module of its `src` or `dist` belongs to. `moduleUrl` is its `import.meta.url`. */
export function packageVersion(moduleUrl: string): string {
  const { version } = JSON.parse(readFileSync(new URL("../package.json", moduleUrl), "utf8")) as { version: string };
  return version;
}
