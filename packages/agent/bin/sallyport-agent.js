#!/usr/bin/env node
// Says in one line what would otherwise be a stack of the module loader. Written so that an old Node can read it.
import { existsSync } from "node:fs";

const program = new URL("../dist/cli.js", import.meta.url);
const [major, minor] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  fail(`needs Node 20.19 or later, this is ${process.version}`);
} else if (existsSync(program)) {
  await import(program.href);
} else {
  fail("is not built; run `npm ci` and `npm run build` at the top of the repository");
}

function fail(reason) {
  process.stderr.write(`error: sallyport-agent: ${reason}\n`);
  // As for a configuration that is wrong: a service manager must not try again.
  process.exitCode = 78;
}
