/**
 * What one record of a connection costs, from its facts to the bytes that go out. Run it after `npm run build`:
 * node test/bench/access-record.bench.mjs
 */
import { createLogger } from "@sallyport/host";
import { Ended } from "@sallyport/tunnel";
import { RecordWriter } from "../../packages/edge/dist/access-record.js";

const RECORDS = 200_000;
const ROUNDS = 5;

let written = 0;
const destination = { write: (line) => (written += line.length) };
const log = createLogger({ name: "dmz-1", destination });
const records = new RecordWriter(log);
const startedAt = new Date();

/** What a connection through an agent hands over, made anew for each as the edge does. */
const facts = (at) => ({
  connection: `9f8a01c2d3-${at.toString(36)}`,
  startedAt: startedAt.toISOString(),
  endedAt: new Date(startedAt.getTime() + at).toISOString(),
  partner: `192.0.2.10:${20_000 + (at % 40_000)}`,
  local: "198.51.100.1:22",
  listener: "sftp",
  deployment: "sftp-internal",
  target: "sftp",
  client: "lan",
  agent: "lan-1",
  address: "10.0.0.7:22",
  dialLocal: undefined,
  bytesIn: at * 1_000,
  bytesOut: at * 2_000,
  queueMs: 0.12,
  connectMs: 3.45,
  firstByteMs: 5.67,
  totalMs: at,
  rule: undefined,
  activeConnections: { edge: 120, listener: 12, deployment: 12 },
});

for (let round = 1; round <= ROUNDS; round += 1) {
  written = 0;
  const before = process.cpuUsage();
  for (let at = 0; at < RECORDS; at += 1) records.ended(facts(at), Ended.normal);
  const { user, system } = process.cpuUsage(before);
  const each = (user + system) / RECORDS;
  console.log(`round ${round}: ${each.toFixed(2)} µs a record, ${Math.round(written / RECORDS)} bytes`);
}
