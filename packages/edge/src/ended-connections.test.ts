import { Ended } from "@sallyport/tunnel";
import { expect, test } from "vitest";
import type { ConnectionFacts } from "./access-record.ts";
import { EndedConnections } from "./ended-connections.ts";

const facts: ConnectionFacts = {
  connection: "c-1",
  startedAt: "2026-01-02T03:04:05.678Z",
  partner: "192.0.2.1:5",
  local: "198.51.100.1:22",
  listener: "sftp",
  deployment: "sftp",
  target: "sftp",
  client: undefined,
  agent: undefined,
  address: undefined,
  bytesIn: 0,
  bytesOut: 0,
  queueMs: 1,
  connectMs: undefined,
  firstByteMs: undefined,
  totalMs: 1_000,
  rule: undefined,
};

test("each way to end is counted once, and each duration that there was", () => {
  const ended = new EndedConnections();
  for (const ending of [
    Ended.normal,
    Ended.idleTimeoutLast,
    Ended.halfCloseTimeout,
    Ended.maxDuration,
    Ended.maxDuration,
    Ended.noAgent,
  ]) {
    ended.count(facts, ending);
  }
  ended.count({ ...facts, denied: "ipFilter" }, { code: "PA", reason: "blocked by IP filter" });
  const [only, ...others] = ended.keep(() => true);
  expect(others).toEqual([]);
  expect([...(only?.codes ?? [])]).toEqual([
    ["--", 1],
    ["cL", 1],
    ["sD", 1],
    ["PD", 2],
    ["DX", 1],
    ["PA", 1],
  ]);
  expect([only?.timeouts, only?.maxDuration, only?.noRoute]).toEqual([{ idle: 1, halfClose: 1 }, 2, 1]);
  expect([only?.queue, only?.connect, only?.session].map((histogram) => histogram?.cumulative.at(-1))).toEqual([
    6, 0, 6,
  ]);
  expect(only?.session.sum).toBe(6);
});

test("what the configuration no longer has is forgotten", () => {
  const ended = new EndedConnections();
  ended.count(facts, Ended.normal);
  ended.count({ ...facts, deployment: "other" }, Ended.normal);
  expect(ended.keep((_, deployment) => deployment === "other").map(({ deployment }) => deployment)).toEqual(["other"]);
  expect(ended.keep(() => true)).toHaveLength(1);
});
