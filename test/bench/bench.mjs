// `npm run bench` (docs/benchmarks.md). Node 20 cannot load TypeScript by itself; vite's module runner, which vitest brings,
// does, and keeps `import.meta.url` as it is.
import { fileURLToPath } from "node:url";
import { runnerImport } from "vite";

const { module } = await runnerImport(fileURLToPath(new URL("main.ts", import.meta.url)), {
  configFile: false,
  logLevel: "error",
});
await module.main(process.argv.slice(2));
