import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { Ended } from "@sallyport/tunnel";
import { pino } from "pino";
import { type ConnectionFacts, RecordWriter } from "./connection-record.ts";

const facts: ConnectionFacts = {
  connection: "c-1",
  startedAt: "2026-01-02T03:04:05.678Z",
  edge: "dmz-1",
  deployment: "d",
  partner: "192.0.2.1:5",
  target: "sftp",
  service: "sftp",
  address: undefined,
  bytesIn: 0,
  bytesOut: 0,
  connectMs: undefined,
  firstByteMs: undefined,
  totalMs: 1,
  rule: undefined,
};

beforeEach(() => void vi.useFakeTimers({ toFake: ["performance"] }));
afterEach(() => void vi.useRealTimers());

it("bounds the records of refused targets, and says how many were left out", () => {
  const lines: Record<string, unknown>[] = [];
  const log = pino({ level: "info" }, { write: (line: string) => lines.push(JSON.parse(line)) });
  const records = new RecordWriter(log);
  for (let count = 0; count < 10_000; count += 1) records.refused(facts, Ended.forbidden);
  expect(lines).toHaveLength(200);
  vi.advanceTimersByTime(50);
  records.refused(facts, Ended.forbidden);
  expect(lines.slice(200)).toMatchObject([
    { level: 40, count: 9_800 },
    { level: 40, msg: "connection", connection: "c-1", target: "sftp", code: "PC" },
  ]);
});
