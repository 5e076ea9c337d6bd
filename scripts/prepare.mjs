// Builds after `npm ci`. An install without development dependencies has no compiler; the shipped `dist` is used then.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
if (existsSync(`${root}/node_modules/typescript/package.json`)) {
  const { status } = spawnSync(
    process.execPath,
    ["node_modules/typescript/bin/tsc", "-b", "packages/edge", "packages/agent"],
    {
      cwd: root,
      stdio: "inherit",
    },
  );
  process.exitCode = status ?? 1;
}
