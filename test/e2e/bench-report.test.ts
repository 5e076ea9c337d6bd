import { expect, it } from "vitest";
import { notAhead, verdictsOf, withRivals } from "../bench/goals.ts";
import { parseOptions, UsageError } from "../bench/options.ts";
import { report } from "../bench/report.ts";
import { pairedRatio, summaryOf } from "../bench/result.ts";
import type { PeerDescription, Result, Sample } from "../bench/result.ts";

function peer(id: string, more: Partial<PeerDescription> = {}): PeerDescription {
  const described = { title: `row ${id}`, kind: "tunnel", protection: "TLS", settings: "default", version: "1" };
  return { id, ...described, isOurs: id.startsWith("ours"), ...more };
}

function sample(round: number, peerId: string, values: Sample["values"], measurement = "bulk"): Sample {
  return { round, peer: peerId, measurement, values };
}

function resultOf(peers: readonly PeerDescription[], samples: readonly Sample[]): Result {
  return {
    startedAt: "2026-01-02T03:04:05.000Z",
    durationSeconds: 60,
    command: "npm run bench",
    rounds: 3,
    seconds: 2,
    isSmoke: false,
    machine: { processor: "2 × example" },
    peers,
    measurements: ["bulk", "cut"],
    samples,
  };
}

it("a column is the median of its rounds with the least and the most", () => {
  const samples = [30, 10, 20].map((value, round) => sample(round, "ours", { "bulk-1-in": value }));
  expect(summaryOf(resultOf([peer("ours")], samples), "ours", "bulk-1-in")).toEqual({
    median: 20,
    min: 10,
    max: 30,
    rounds: 3,
  });
});

it("a round without a figure is left out, and a column without any says why", () => {
  const samples = [sample(0, "ours", { a: "failed", b: "failed" }), sample(1, "ours", { a: 4, b: "failed" })];
  const result = resultOf([peer("ours")], samples);
  expect(summaryOf(result, "ours", "a")).toMatchObject({ median: 4, rounds: 1 });
  expect(summaryOf(result, "ours", "b")).toBe("failed");
  expect(summaryOf(result, "ours", "c")).toBeUndefined();
});

it("two builds are compared within each round", () => {
  const samples = [100, 10, 1].flatMap((speed, round) => [
    sample(round, "ours", { a: speed }),
    sample(round, "ours@new", { a: 2 * speed }),
  ]);
  const ratio = pairedRatio(resultOf([], samples), { peer: "ours@new", base: "ours", column: "a" });
  expect(ratio).toEqual({ median: 2, min: 2, max: 2, rounds: 3 });
});

it("a goal is reached or not by its ratio, and is left out where one side was not measured", () => {
  const samples = [
    sample(0, "ours", { "cpu-1-in": 3, "bulk-1-in": 80 }),
    sample(0, "node-tls", { "cpu-1-in": 2, "bulk-1-in": 80 }),
  ];
  const verdicts = verdictsOf(resultOf([peer("ours"), peer("node-tls", { kind: "floor" })], samples));
  expect(verdicts.map(({ goal, ratio, isReached }) => ({ goal, ratio, isReached }))).toEqual([
    { goal: "CPU a byte, 1 stream in: the runtime's floor", ratio: 1.5, isReached: false },
    { goal: "throughput, 1 stream in: the runtime's floor", ratio: 1, isReached: true },
  ]);
});

it("a column in which a rival is better is listed with its ratio", () => {
  const samples = [
    sample(0, "ours", { "bulk-1-in": 50, "cpu-1-in": 2 }),
    sample(0, "bore", { "bulk-1-in": 100, "cpu-1-in": 4 }),
  ];
  const result = resultOf([peer("ours"), peer("bore")], samples);
  expect(notAhead(withRivals(result)).map(({ peer, column, advantage }) => [peer, column.id, advantage])).toEqual([
    ["bore", "bulk-1-in", 0.5],
  ]);
  expect(report(result)).toMatch(/\| Bulk: 1 stream in, MB\/s \| 50\.0 \| row bore: 100 \| 0\.50+ \| {2}\|/);
});

it("a tunnel that is not installed is a row of every table", () => {
  const result = resultOf(
    [peer("ours"), peer("frp", { absent: "not installed" })],
    [sample(0, "ours", { "bulk-1-in": 50 })],
  );
  expect(report(result).match(/^\| row frp \| not installed \|/gm)).toHaveLength(result.measurements.length);
});

it.each([
  ["--rounds", "0"],
  ["--rounds", "many"],
  ["--seconds", "61"],
  ["--ours-dir", "no-label"],
  ["--unknown", "x"],
])("%s %s is refused", (name, value) => {
  expect(() => parseOptions([name, value])).toThrow(UsageError);
});
