import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLogger, LogFile } from "@sallyport/host";
import { Ended } from "@sallyport/tunnel";
import { expect, onTestFinished, test } from "vitest";
import { seededRandom } from "../../../test/support/seeded-random.ts";
import { type ConnectionFacts, RecordWriter } from "./access-record.ts";

const facts: ConnectionFacts = {
  connection: "c-1",
  startedAt: "2026-01-02T03:04:05.678Z",
  endedAt: "2026-01-02T03:04:06.678Z",
  partner: "192.0.2.1:5",
  local: "198.51.100.1:22",
  listener: "sftp",
  deployment: "sftp",
  target: "sftp",
  client: "lan",
  agent: "lan-1",
  address: "10.0.0.7:22",
  bytesIn: 1,
  bytesOut: 2,
  queueMs: 0.1,
  connectMs: 1,
  firstByteMs: undefined,
  totalMs: 1_000,
  rule: undefined,
};

/** A log whose lines are kept, and a file beside it. */
async function writer(): Promise<{ records: RecordWriter; lines: string[]; inFile: () => Promise<string[]> }> {
  const directory = mkdtempSync(join(tmpdir(), "sallyport-records-"));
  const lines: string[] = [];
  const log = createLogger({ name: "dmz-1", destination: { write: (line: string) => void lines.push(line) } });
  const records = new RecordWriter(log);
  const path = join(directory, "access.log");
  const file = await LogFile.open({ file: path, maxSize: 0, maxAge: 0, keep: 1 }, { log });
  records.log.file = file;
  onTestFinished(async () => {
    await file.close();
    rmSync(directory, { recursive: true });
  });
  const inFile = async () => {
    await file.flush();
    return readFileSync(path, "utf8").split(/(?<=\n)/);
  };
  return { records, lines, inFile };
}

test("a record is one line with what every line has, in the log and in the file", async () => {
  const { records, lines, inFile } = await writer();
  records.ended(facts, Ended.normal);
  expect(JSON.parse(lines[0]!)).toEqual({
    level: "info",
    time: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
    name: "dmz-1",
    ...JSON.parse(JSON.stringify(facts)),
    code: "--",
    reason: "finished",
    msg: "connection",
  });
  expect(await inFile()).toEqual(lines);
});

test("a quiet log keeps records out of itself, not out of the file", async () => {
  const { records, lines, inFile } = await writer();
  records.log.toLog = false;
  records.ended(facts, Ended.normal);
  records.interim({ ...facts, sequence: 1 });
  expect(lines).toEqual([]);
  expect((await inFile()).map((line) => (JSON.parse(line) as { msg: string }).msg)).toEqual([
    "connection",
    "connection interim",
  ]);
});

test("a flood of refused connections is a thousand lines, and the next one says how many are left out", async () => {
  const { records, lines } = await writer();
  for (let count = 0; count < 5_000; count += 1) records.refused(facts, { code: "PA", reason: "blocked by IP filter" });
  expect(lines.length).toBeGreaterThanOrEqual(1_000);
  expect(lines.length).toBeLessThan(2_000);
});

/** What has broken logs, terminals and their readers, and mixtures of it. */
const PIECES = [
  '"}\n{"level":"info","msg":"connection","code":"--"}',
  "\r\n",
  "\n",
  "\u0000",
  "\u001b[2J\u001b]0;owned\u0007",
  "\u007f",
  "\u0085",
  "\u009b31m",
  "\u2028",
  "\u2029",
  "\u202e\u2066",
  "\ufeff",
  "\ud800",
  "\udc00x",
  "\\u000a\\n",
  "\\",
  '"',
  "</script><script>alert(1)</script>",
  "${jndi:ldap://x/a}",
  "%s%n%x",
  "__proto__",
  "漢字 größe 🚪",
  "x".repeat(5_000),
];

test("two hundred hostile texts in what strangers choose forge no line and leave no control character", async () => {
  const seed = `${process.env.SALLYPORT_TEST_SEED ?? Date.now()}`;
  const random = seededRandom(seed);
  const { records, lines, inFile } = await writer();
  const texts = Array.from({ length: 200 }, (_, at) => {
    const first = PIECES[at % PIECES.length] ?? "";
    const more = Array.from({ length: 3 }, () => PIECES[Math.floor(random() * PIECES.length)] ?? "");
    return [first, ...more].join("").slice(0, 4_000);
  });
  for (const text of texts) {
    const hostile: ConnectionFacts = {
      ...facts,
      sni: text,
      alpn: [text, "h2"],
      proxyAuthority: text,
      proxyUniqueId: text,
      proxyLocal: text,
      agent: text,
      address: text,
      dialLocal: text,
      rule: text,
    };
    records.ended(hostile, { code: "SC", reason: text });
    records.interim(hostile);
  }
  expect(lines, `seed ${seed}`).toHaveLength(400);
  expect(await inFile()).toEqual(lines);
  for (const [at, line] of lines.entries()) {
    // oxlint-disable-next-line no-control-regex -- it is what is looked for.
    expect(line).toMatch(/^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*\n$/);
    expect(JSON.parse(line)).toMatchObject({
      connection: "c-1",
      sni: texts[Math.floor(at / 2)],
      alpn: [texts[Math.floor(at / 2)], "h2"],
    });
  }
});
