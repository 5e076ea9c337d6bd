// Sums vitest's JSON reports: `node scripts/count-tests.mjs REPORT[=FOLDER][:EXCLUDED_FOLDER,…]…`. The last line on stdout
// is `N passed, N failed, N skipped`. Exits with 1 when a test failed, when a report is missing, or when a test file of the
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

const total = { passed: 0, failed: 0, skipped: 0 };
const faults = [];
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
  for (const { name, status, assertionResults } of report.testResults) {
    const count = (wanted) => assertionResults.filter((result) => wanted(result.status)).length;
    const passed = count((status) => status === "passed");
    const failed = count((status) => status === "failed");
    total.passed += passed;
    total.failed += failed;
    total.skipped += assertionResults.length - passed - failed;
    // A file that cannot be loaded, or whose hooks fail, is one failure even when none of its tests is to blame.
    if (status === "failed" && failed === 0) total.failed += 1;
    ranPerFile.set(relative(root, name).split(sep).join("/"), passed + failed);
  }
  for (const file of testFiles) {
    if (!file.startsWith(folder) || excludedFolders.some((prefix) => file.startsWith(prefix))) continue;
    if ((ranPerFile.get(file) ?? 0) === 0) faults.push(`${reportPath}: ${file}: ran no test`);
  }
}
if (total.passed + total.failed === 0) faults.push("no test ran at all");

for (const fault of faults) console.error(`error: ${fault}`);
console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
if (faults.length > 0 || total.failed > 0) process.exitCode = 1;
