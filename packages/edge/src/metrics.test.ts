/** A real edge is used and read: its figures move as they should, and a Prometheus would take them. */
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { createLogger } from "@sallyport/host";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { pollUntil } from "../../../test/support/deadline.ts";
import { findFreePort } from "../../../test/support/free-port.ts";
import { startTcpServer, type TcpServer } from "../../../test/support/tcp-server.ts";
import { makeTempDir } from "../../../test/support/temp-dir.ts";
import { Edge } from "./edge.ts";

let directory: { path: string; remove(): Promise<void> };
let target: TcpServer;
let edge: Edge;
let metricsPort: number;
let port: number;
let records: Record<string, unknown>[];

beforeEach(async () => {
  directory = await makeTempDir();
  target = await startTcpServer((socket) => void socket.pipe(socket));
  [metricsPort, port] = [await findFreePort(), await findFreePort()];
  const config = join(directory.path, "edge.yaml");
  writeFileSync(
    config,
    JSON.stringify({
      name: "dmz-1",
      stateDir: join(directory.path, "state"),
      ipFilters: [{ name: "no-6", default: "allow", rules: [{ action: "block", cidr: "127.0.0.2" }] }],
      listeners: [{ name: "echo", listen: `127.0.0.1:${port}`, ipFilter: "no-6" }],
      deployments: [{ name: "echo-direct", listener: "echo", target: `127.0.0.1:${target.port}` }],
      timeouts: { idle: "300ms", halfClose: "0s" },
      metrics: { listen: `127.0.0.1:${metricsPort}` },
    }),
  );
  records = [];
  const destination = { write: (line: string) => void records.push(JSON.parse(line) as Record<string, unknown>) };
  edge = await Edge.start(config, createLogger({ name: "dmz-1", destination }));
});

afterEach(async () => {
  await edge.stop({ drain: false });
  await target.close();
  await directory.remove();
});

async function scrape(): Promise<string> {
  const response = await fetch(`http://127.0.0.1:${metricsPort}/metrics`, { signal: AbortSignal.timeout(5_000) });
  return response.text();
}

function partner(localAddress = "127.0.0.1"): Socket {
  const socket = connect({ port, host: "127.0.0.1", localAddress });
  socket.on("error", () => undefined);
  return socket;
}

const closed = (socket: Socket) => new Promise((resolve) => socket.once("close", resolve));

/** A served connection, one that falls silent, and one that is refused; resolves when all have their record. */
async function useTheEdge(): Promise<void> {
  const served = partner();
  served.end("hello");
  served.resume();
  await closed(served);
  const silent = partner();
  silent.write("hello");
  await closed(silent);
  await closed(partner("127.0.0.2"));
  const ended = () => records.filter(({ msg }) => msg === "connection");
  await pollUntil(() => ended().length === 3 || undefined, { what: "three records" });
}

/** The value of one series, by its name and all of its labels as they are printed. */
function value(text: string, series: string): number | undefined {
  const line = text.split("\n").find((each) => each.startsWith(`${series} `));
  return line === undefined ? undefined : Number(line.slice(series.length + 1));
}

test("how connections ended and how long they took can be read", async () => {
  await useTheEdge();
  const text = await scrape();
  const labels = 'listener="echo",deployment="echo-direct"';
  expect(value(text, `edge_connections_ended_total{${labels},code="--"}`)).toBe(1);
  expect(value(text, `edge_connections_ended_total{${labels},code="cD"}`)).toBe(1);
  expect(value(text, `edge_connections_ended_total{${labels},code="PA"}`)).toBe(1);
  expect(value(text, `edge_idle_timeout_total{${labels},kind="idle"}`)).toBe(1);
  expect(value(text, `edge_idle_timeout_total{${labels},kind="halfClose"}`)).toBe(0);
  for (const name of ["edge_queue_seconds", "edge_connect_seconds", "edge_session_seconds"]) {
    // The refused one is none of them.
    expect([name, value(text, `${name}_count{${labels}}`)]).toEqual([name, 2]);
    expect([name, value(text, `${name}_bucket{${labels},le="+Inf"}`)]).toEqual([name, 2]);
  }
  expect(value(text, `edge_session_seconds_sum{${labels}}`)).toBeGreaterThanOrEqual(0.29);
  expect(value(text, `edge_session_seconds_bucket{${labels},le="0.1"}`)).toBeLessThanOrEqual(1);
});

test("a partner that does not read stops the reading of its target, which is counted", async () => {
  const before = value(await scrape(), "edge_flow_paused_total") ?? 0;
  const socket = partner();
  socket.pause();
  socket.write(Buffer.alloc(16_000_000));
  const pauses = async () => (value(await scrape(), "edge_flow_paused_total") ?? 0) - before;
  expect(await pollUntil(async () => (await pauses()) || undefined, { what: "a pause" })).toBeGreaterThan(0);
  socket.destroy();
});

test("the record of a connection says when, from where to where, and beside how many others", async () => {
  await useTheEdge();
  const [served, , refused] = records.filter(({ msg }) => msg === "connection");
  expect(served).toMatchObject({
    listener: "echo",
    deployment: "echo-direct",
    address: `127.0.0.1:${target.port}`,
    dialLocal: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
    activeConnections: { edge: 1, listener: 1, deployment: 1 },
    code: "--",
  });
  const { startedAt, endedAt, totalMs } = served as { startedAt: string; endedAt: string; totalMs: number };
  expect(Math.abs(Date.parse(endedAt) - Date.parse(startedAt) - totalMs)).toBeLessThan(1);
  expect(refused).toMatchObject({ code: "PA", denied: "ipFilter", rule: "block 127.0.0.2/32" });
});

describe("a Prometheus takes the figures:", () => {
  interface Sample {
    readonly name: string;
    readonly labels: string;
    readonly value: string;
  }
  const samplesOf = (text: string): Sample[] =>
    text
      .split("\n")
      .filter((line) => line !== "" && !line.startsWith("#"))
      .map((line) => {
        const [, name = "", labels = "", number = ""] =
          /^([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (\S+)$/.exec(line) ?? [];
        if (name === "") throw new Error(`not a sample: ${line}`);
        return { name, labels, value: number };
      });
  const family = (name: string, types: ReadonlyMap<string, string>) => {
    const base = name.replace(/_(bucket|sum|count)$/, "");
    return types.get(base) === "histogram" ? base : name;
  };

  test("each has HELP and TYPE once, a name for what it is, and no series twice", async () => {
    await useTheEdge();
    const text = await scrape();
    const types = new Map([...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name = "", type = ""]) => [name, type]));
    const helped = [...text.matchAll(/^# HELP (\S+) \S.+$/gm)].map(([, name = ""]) => name);
    expect([...new Set(helped)].sort()).toEqual(helped.sort());
    expect([...types.keys()].sort()).toEqual(helped.sort());
    const samples = samplesOf(text);
    expect(samples.length).toBeGreaterThan(80);
    expect(samples.filter(({ name }) => !types.has(family(name, types)))).toEqual([]);
    expect([...types].filter(([name, type]) => (type === "counter") !== name.endsWith("_total"))).toEqual([]);
    expect([...types].filter(([name]) => /_(ms|millis|kb|kib|mb)(_|$)/.test(name))).toEqual([]);
    const series = samples.map(({ name, labels }) => `${name}{${labels}}`);
    expect(new Set(series).size).toBe(series.length);
    expect(samples.filter((sample) => Number.isNaN(Number(sample.value.replace("Inf", "Infinity"))))).toEqual([]);
  });

  test("buckets of a histogram rise, and the last is the count", async () => {
    await useTheEdge();
    const samples = samplesOf(await scrape());
    const counts = samples.filter(({ name }) => name.endsWith("_seconds_count"));
    expect(counts).toHaveLength(3);
    for (const { name, labels, value: count } of counts) {
      const buckets = samples.filter(
        (sample) => sample.name === name.replace(/_count$/, "_bucket") && sample.labels.startsWith(labels),
      );
      const values = buckets.map((bucket) => Number(bucket.value));
      expect(values).toEqual([...values].sort((a, b) => a - b));
      expect(buckets.at(-1)).toMatchObject({ labels: expect.stringContaining('le="+Inf"'), value: count });
    }
  });

  test("labels come from the configuration and from fixed lists, never from partners", async () => {
    const before = samplesOf(await scrape()).length;
    await useTheEdge();
    const after = samplesOf(await scrape());
    for (let round = 0; round < 20; round += 1) {
      const socket = partner();
      await once(socket, "connect");
      socket.resetAndDestroy();
    }
    await pollUntil(() => records.filter(({ msg }) => msg === "connection").length === 23 || undefined, {
      what: "the records of twenty more",
    });
    const later = samplesOf(await scrape());
    // One more way to end is one more series.
    expect(later.length - after.length).toBeLessThanOrEqual(2);
    expect(after.length).toBeGreaterThan(before);
    // The target is a word of the configuration; its address is none of a partner.
    const configured = `target="127.0.0.1:${target.port}"`;
    const foreign = later.filter(({ labels }) => /127\.0\.0\.[12](:\d+)?"/.test(labels.replace(configured, "")));
    expect(foreign).toEqual([]);
  });
});
