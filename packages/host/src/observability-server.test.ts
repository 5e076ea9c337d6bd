import { once } from "node:events";
import { request } from "node:http";
import { connect } from "node:net";
import { Counter, Registry } from "prom-client";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { ObservabilityServer } from "./observability-server.ts";
import { collectProcessMetrics } from "./process-metrics.ts";

let registry: Registry;
let reasons: string[];
let server: ObservabilityServer;
let port: number;

beforeEach(async () => {
  registry = new Registry();
  reasons = [];
  server = new ObservabilityServer({ listen: { host: "127.0.0.1", port: 0 }, registry, notReady: () => reasons });
  ({ port } = await server.listen());
});

afterEach(async () => {
  await server.close();
  vi.restoreAllMocks();
});

async function ask(path: string, method = "GET"): Promise<{ status: number; type: string | undefined; text: string }> {
  const asking = request({ host: "127.0.0.1", port, path, method, agent: false });
  asking.end();
  const [response] = (await once(asking, "response")) as [import("node:http").IncomingMessage];
  let text = "";
  for await (const chunk of response) {
    text += String(chunk);
  }
  expect(response.headers.connection).toBe("close");
  return { status: response.statusCode ?? 0, type: response.headers["content-type"], text };
}

test("/healthz says that the process lives, ready or not", async () => {
  reasons = ["no agent"];
  expect(await ask("/healthz")).toMatchObject({ status: 200, text: "ok\n" });
});

test("/readyz tells the reasons, a line each", async () => {
  expect(await ask("/readyz")).toMatchObject({ status: 200, text: "ready\n" });
  reasons = ["deployment a does not listen", "deployment b\n: no agent"];
  expect(await ask("/readyz")).toMatchObject({
    status: 503,
    text: "deployment a does not listen\ndeployment b\\u000a: no agent\n",
  });
});

test("/metrics tells what is in the registry at this moment", async () => {
  const counter = new Counter({ name: "edge_bytes_total", help: "Bytes.", registers: [registry] });
  counter.inc(3);
  const { status, type, text } = await ask("/metrics");
  expect({ status, type }).toEqual({ status: 200, type: registry.contentType });
  expect(text).toContain("edge_bytes_total 3");
  counter.inc(4);
  expect((await ask("/metrics?x=1")).text).toContain("edge_bytes_total 7");
});

test("HEAD has no body, other methods and paths are refused", async () => {
  expect(await ask("/healthz", "HEAD")).toMatchObject({ status: 200, text: "" });
  expect(await ask("/healthz", "POST")).toMatchObject({ status: 405 });
  expect(await ask("/metrics", "DELETE")).toMatchObject({ status: 405 });
  expect(await ask("/")).toMatchObject({ status: 404 });
  expect(await ask("/healthz/../metrics")).toMatchObject({ status: 404 });
});

test("a figure that cannot be had fails the scrape and not the process", async () => {
  const broken = new Registry();
  vi.spyOn(broken, "metrics").mockRejectedValue(new Error("hunter2"));
  const other = new ObservabilityServer({
    listen: { host: "127.0.0.1", port: 0 },
    registry: broken,
    notReady: () => [],
  });
  await server.close();
  ({ port } = await other.listen());
  try {
    expect(await ask("/metrics")).toEqual({
      status: 500,
      type: "text/plain; charset=utf-8",
      text: "not available now\n",
    });
    expect(await ask("/healthz")).toMatchObject({ status: 200 });
  } finally {
    await other.close();
  }
});

test("an address in use is the system's error", async () => {
  const second = new ObservabilityServer({ listen: { host: "127.0.0.1", port }, registry, notReady: () => [] });
  await expect(second.listen()).rejects.toMatchObject({ code: "EADDRINUSE" });
  await second.close();
});

test("close cuts silent connections and may be called twice", async () => {
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => undefined);
  await once(socket, "connect");
  const closed = once(socket, "close");
  await ask("/healthz");
  await server.close();
  await server.close();
  expect(await closed).toBeDefined();
});

test("figures of the process are told under their usual names", async () => {
  collectProcessMetrics(registry);
  const { text } = await ask("/metrics");
  for (const name of [
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "nodejs_heap_size_used_bytes",
    "nodejs_eventloop_lag_p99_seconds",
    "sallyport_log_dropped_total",
  ]) {
    expect(text).toMatch(new RegExp(`^${name} [0-9.e+-]+$`, "m"));
  }
  expect(text).not.toMatch(/nan|infinity/i);
});

test("figures that need a file keep their last value when descriptors have run out", async () => {
  collectProcessMetrics(registry);
  await ask("/metrics");
  vi.spyOn(process.memoryUsage, "rss").mockImplementation(() => {
    throw Object.assign(new Error("too many open files"), { code: "EMFILE" });
  });
  const { status, text } = await ask("/metrics");
  expect(status).toBe(200);
  expect(Number(/^process_resident_memory_bytes (\S+)$/m.exec(text)?.[1])).toBeGreaterThan(1_000_000);
});
