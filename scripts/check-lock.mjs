// Fails when package-lock.json lacks an entry for an optional dependency that it names. npm drops platform packages that
// the registry does not have without a word, and the next `npm ci` then fails on every machine.
import { readFileSync } from "node:fs";

const path = new URL("../package-lock.json", import.meta.url);
const { packages } = JSON.parse(readFileSync(path, "utf8"));

/** Where Node looks for `name` from the package at `from`: its own node_modules, then those of the directories above. */
function* candidates(from, name) {
  for (let directory = from; ; directory = directory.slice(0, Math.max(0, directory.lastIndexOf("/")))) {
    yield directory === "" ? `node_modules/${name}` : `${directory}/node_modules/${name}`;
    if (directory === "") return;
  }
}

let checked = 0;
const missing = [];
for (const [from, { optionalDependencies = {} }] of Object.entries(packages)) {
  for (const name of Object.keys(optionalDependencies)) {
    checked++;
    if (![...candidates(from, name)].some((candidate) => candidate in packages)) missing.push(`${name} (of ${from})`);
  }
}

for (const name of missing)
  console.error(`error: package-lock.json: no entry for ${name}; pin a version that is complete`);
if (checked === 0)
  console.error("error: package-lock.json: no optional dependency found; this check no longer checks anything");
if (missing.length > 0 || checked === 0) process.exitCode = 1;
else console.log(`${checked} optional dependencies have their lock entries`);
