// Sums vitest's JSON reports: `node scripts/count-tests.mjs REPORT[=FOLDER][:EXCLUDED_FOLDER,…]…`. Names each test that failed
// on stderr, with how it failed, since reports of long runs are cut. The last line on stdout is
// `N passed, N failed, N skipped`. Exits with 1 when a test failed, when a report is missing, or when a test file of the
// tree, or of the report's folder, outside of the excluded folders, ran no test: a suite that tests nothing must not pass.
import { readdirSync, readFileSync } from "node:fs";
import { relative, sep } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const isTestFile = (path) => path.endsWith(".test.ts") && !/(^|\/)(node_modules|dist)\//.test(path);
const testFiles = ["packages", "test"].flatMap((folder) =>
  readdirSync(`${root}${folder}`, { recursive: true })
    .map((path) => `${folder}/${path.split(sep).join("/")}`)
    .filter(isTestFile),
);

/** Of what a failed test says. */
const MAX_MESSAGE_CHARACTERS = 2_000;

const total = { passed: 0, failed: 0, skipped: 0 };
const faults = [];
const failures = [];
for (const argument of process.argv.slice(2)) {
  const [, reportPath, folder = "", excluded] = /^([^=]*?)(?:=([^:]*))?(?::([^:\\]*))?$/.exec(argument);
  const excludedFolders = excluded?.split(",") ?? [];
  let report;
  try {
    report = JSON.parse(readFileSync(reportPath, "utf8"));
  } catch {
    faults.push(`${reportPath}: no report; the run did not come to its end`);
    continue;
  }
  const ranPerFile = new Map();
  for (const { name, status, message, assertionResults } of report.testResults) {
    const file = relative(root, name).split(sep).join("/");
    const count = (wanted) => assertionResults.filter((result) => wanted(result.status)).length;
    const passed = count((status) => status === "passed");
    const failed = count((status) => status === "failed");
    total.passed += passed;
    total.failed += failed;
    total.skipped += assertionResults.length - passed - failed;
    // A file that cannot be loaded, or whose hooks fail, is one failure even when none of its tests is to blame.
    if (status === "failed" && failed === 0) {
      total.failed += 1;
      failures.push([file, message]);
    }
    for (const { status, fullName, failureMessages } of assertionResults) {
      if (status === "failed") failures.push([`${file}: ${fullName}`, failureMessages.join("\n")]);
    }
    ranPerFile.set(file, passed + failed);
  }
  for (const file of testFiles) {
    if (!file.startsWith(folder) || excludedFolders.some((prefix) => file.startsWith(prefix))) continue;
    if ((ranPerFile.get(file) ?? 0) === 0) faults.push(`${reportPath}: ${file}: ran no test`);
  }
}
if (total.passed + total.failed === 0) faults.push("no test ran at all");

for (const [title, message] of failures) {
  console.error(`failed: ${title}\n${message.slice(0, MAX_MESSAGE_CHARACTERS).replace(/^/gm, "    ")}`);
}
for (const fault of faults) console.error(`error: ${fault}`);
console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
if (faults.length > 0 || total.failed > 0) process.exitCode = 1;
