/** The access log of real programs: beside real traffic, with a disk that fills up, and moved away by another program. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { pollUntil } from "../support/deadline.ts";
import { EchoProbe } from "../support/echo-probe.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { metric } from "../support/metric.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { makeTempDir } from "../support/temp-dir.ts";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

async function startPair(accessLog: { edge: string; agent: string }, recordInterval = "0s"): Promise<SallyportPair> {
  const target = await startEchoServer();
  closers.push(() => target.close());
  const pair = await SallyportPair.start({
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [{ name: "echo", target: "echo" }],
    edgeConfig: { accessLog: { file: accessLog.edge, stdout: false }, recordInterval },
    agentConfig: { accessLog: { file: accessLog.agent } },
  });
  closers.push(() => pair.stop());
  return pair;
}

async function makeDirectory(): Promise<string> {
  const directory = await makeTempDir();
  closers.push(() => directory.remove());
  return directory.path;
}

type Line = Readonly<Record<string, unknown>>;

/** Every line of the file is one JSON object, or this throws. */
function linesOf(path: string): Line[] {
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  expect(text === "" || text.endsWith("\n")).toBe(true);
  return text
    .split("\n")
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Line);
}

const waitForLines = (path: string, count: number) =>
  pollUntil(() => (linesOf(path).length >= count ? linesOf(path) : undefined), { what: `${count} lines of ${path}` });

async function oneConnection(pair: SallyportPair): Promise<void> {
  const socket = connect({ port: pair.listenerPort("echo"), host: "127.0.0.1" });
  socket.end("hello");
  socket.resume();
  await once(socket, "close");
}

test("both programs keep records of one connection in files, and open them anew when another program has moved them", async () => {
  const path = await makeDirectory();
  const files = { edge: join(path, "edge.log"), agent: join(path, "agent.log") };
  const pair = await startPair(files);
  for (const [program, signal] of [
    ["edge", "SIGUSR1"],
    ["edge", "SIGHUP"],
    ["agent", "SIGUSR1"],
    ["agent", "SIGHUP"],
  ] as const) {
    const file = files[program];
    await oneConnection(pair);
    const [before] = await waitForLines(file, 1);
    expect(before).toMatchObject({ msg: "connection", deployment: "echo", code: "--", bytesIn: 5, bytesOut: 5 });
    renameSync(file, `${file}.${signal}`);
    pair[program].process.signal(signal);
    await pollUntil(() => existsSync(file) || undefined, { what: `a new file after ${signal}` });
    await oneConnection(pair);
    await waitForLines(file, 1);
    expect(linesOf(`${file}.${signal}`)).not.toHaveLength(0);
    expect(statSync(file).mode & 0o777).toBe(0o640);
  }
  const [ofEdge] = linesOf(files.edge);
  const ofAgent = await waitForLines(files.agent, 1);
  const known = new Set(ofAgent.map(({ connection }) => connection));
  await pollUntil(() => known.has(linesOf(files.edge).at(-1)?.connection) || undefined, {
    what: "the same connection in both files",
  });
  expect(ofEdge).not.toHaveProperty("dialLocal");
  expect(ofAgent[0]).toMatchObject({
    dialLocal: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
    activeConnections: { agent: 1, service: 1 },
  });
  // `stdout: false` of the edge, and the default of the agent.
  await pollUntil(() => pair.records().agent.length >= 8 || undefined, { what: "the agent's records on its output" });
  expect(pair.records().edge).toEqual([]);
});

test("a long connection has a record in between, and each says which it is", async () => {
  const path = await makeDirectory();
  const file = join(path, "edge.log");
  const pair = await startPair({ edge: file, agent: join(path, "agent.log") }, "100ms");
  const probe = await EchoProbe.connect(pair.listenerPort("echo"));
  await waitForLines(file, 3);
  await probe.roundTrip(1_000, 5_000);
  probe.socket.end();
  const lines = await pollUntil(
    () => (linesOf(file).some(({ msg }) => msg === "connection") ? linesOf(file) : undefined),
    { what: "the last record" },
  );
  expect(lines.map(({ sequence }) => sequence)).toEqual(lines.map((_, at) => at + 1));
  expect(lines.slice(0, -1).every(({ msg, code }) => msg === "connection interim" && code === undefined)).toBe(true);
  expect(lines.at(-1)).toMatchObject({ msg: "connection", code: "--", bytesIn: 1_001, bytesOut: 1_001 });
  expect(new Set(lines.map(({ connection }) => connection)).size).toBe(1);
});

/** A disk of 512 KiB; undefined where this user may not mount one. */
function mountSmallDisk(): string | undefined {
  const path = mkdtempSync(join(tmpdir(), "sallyport-small-disk-"));
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=512k", "tmpfs", path], { stdio: "ignore" });
  } catch {
    rmSync(path, { recursive: true });
    return undefined;
  }
  closers.push(async () => {
    execFileSync("umount", ["-l", path]);
    rmSync(path, { recursive: true });
  });
  return path;
}

test("a full disk stops no traffic; lines are lost and counted, and are written again when there is room", async (context) => {
  const disk = mountSmallDisk();
  if (disk === undefined) return context.skip("this user may not mount a tmpfs");
  const path = await makeDirectory();
  const file = join(disk, "access.log");
  const pair = await startPair({ edge: file, agent: join(path, "agent.log") }, "10ms");
  const filler = join(disk, "filler");
  expect(() => writeFileSync(filler, Buffer.alloc(1_000_000))).toThrow("ENOSPC");
  // Each of them writes a hundred records a second: the four megabytes that wait for the disk are soon full.
  const idle = await Promise.all(Array.from({ length: 60 }, () => EchoProbe.connect(pair.listenerPort("echo"))));
  closers.push(async () => {
    for (const probe of idle) probe.close();
  });
  const dropped = async () => metric(await pair.edgeMetrics(), "sallyport_access_log_dropped_total");
  await pollUntil(async () => ((await dropped()) > 100 ? true : undefined), { what: "lost lines", timeoutMs: 60_000 });
  await pair.edge.process.waitForLine(/access log cannot be written.*|ENOSPC.*access log cannot/);

  const probe = await EchoProbe.connect(pair.listenerPort("echo"));
  for (let round = 0; round < 20; round += 1) await probe.roundTrip(1_000_000, 10_000);
  probe.close();
  for (const each of idle) each.close();
  const lost = await dropped();
  expect(lost).toBeGreaterThan(100);

  unlinkSync(filler);
  unlinkSync(file);
  pair.edge.process.signal("SIGUSR1");
  await pair.edge.process.waitForLine(/access log is written again/);
  const [first] = await waitForLines(file, 1);
  expect(first).toHaveProperty("connection");
  const status = JSON.parse(await pair.command("edge", ["status", "--json", "--config", pair.edge.configPath])) as {
    accessLog: { file: string; dropped: number };
  };
  expect(status.accessLog.file).toBe(file);
  expect(status.accessLog.dropped).toBeGreaterThanOrEqual(lost);
});
