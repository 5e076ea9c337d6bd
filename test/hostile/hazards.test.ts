/**
 * Traps of the runtime, each measured before this was written, and the test that keeps the programs out of it:
 *
 * | id  | trap                                                             | test                                                    |
 * | --- | ---------------------------------------------------------------- | ------------------------------------------------------- |
 * | N1  | IPv4 peers of a dual-stack listener; `BlockList` fails open       | packages/edge/src/ip-filter.test.ts                     |
 * | N2  | `::/0` that matches IPv4, host bits, zones in rules               | packages/edge/src/ip-filter.test.ts, host/src/ip-address.test.ts |
 * | N3  | octal, hexadecimal and short addresses                            | packages/host/src/ip-address.test.ts, evil-edge.test.ts |
 * | N4  | `checkServerIdentity` that is never called                        | packages/tunnel/src/tunnel-client.test.ts               |
 * | N5  | HTTP bytes before the pin was checked                             | packages/tunnel/src/tunnel-server.test.ts               |
 * | N6  | messages behind `close`, `terminate` and `pause`                  | evil-agent.test.ts, packages/tunnel/src/link.test.ts    |
 * | N7  | pings of a peer that does not read                                | evil-agent.test.ts, evil-edge.test.ts                   |
 * | N8  | connections closed without a word when descriptors have run out   | here                                                    |
 * | N9  | `memoryUsage` that throws then                                    | here, packages/host/src/observability-server.test.ts    |
 * | N10 | errors that are logged with everything in them                    | packages/host/src/log.test.ts, secrets.test.ts          |
 * | N11 | a log on a full disk that ends the process                        | here, packages/host/src/log-destination.test.ts         |
 * | N12 | writes that go on after `write` said false                        | packages/tunnel/src/splice.test.ts, evil-agent.test.ts  |
 * | N13 | a reset while a request is authenticated                          | packages/tunnel/src/tunnel-server.test.ts               |
 * | N14 | silence before TLS and in headers                                 | tunnel-port.test.ts                                     |
 * | N15 | a black hole that keepalive does not notice                       | here                                                    |
 * | N16 | a reply lost after the partner's FIN                              | test/real/half-close.test.ts, packages/tunnel/src/splice.test.ts |
 */
import { once } from "node:events";
import { chmod, readFile, rm, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { runProcess, TestProcess } from "../support/child-process.ts";
import { pollUntil, withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { SallyportPair, type SallyportPairOptions } from "../support/sallyport-pair.ts";
import { TcpRelay } from "../support/tcp-relay.ts";
import { startTcpServer, type TcpServer } from "../support/tcp-server.ts";
import { makeTempDir } from "../support/temp-dir.ts";
import { HonestPartner } from "./honest-partner.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
const closers: (() => unknown)[] = [];
const sockets: Socket[] = [];

afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  for (const close of closers.splice(0).toReversed()) await close();
});

async function startPair(options: SallyportPairOptions): Promise<SallyportPair> {
  const pair = await SallyportPair.start(options);
  closers.push(() => pair.stop());
  return pair;
}

async function startEcho(): Promise<TcpServer> {
  const target = await startEchoServer();
  closers.push(() => target.close());
  return target;
}

/** The sum of all series of a metric that match. */
function figure(metrics: string, pattern: RegExp): number {
  const lines = metrics.split("\n").filter((line) => pattern.test(line));
  return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

function dial(port: number, localAddress = "127.0.0.1"): Socket {
  const socket = connect({ port, host: "127.0.0.1", localAddress });
  socket.on("error", () => undefined);
  sockets.push(socket);
  return socket;
}

/** Whether the connection carries an echo; false once it is closed without one. */
function carries(socket: Socket): Promise<boolean> {
  return new Promise((resolve) => {
    socket.once("data", () => resolve(true));
    socket.once("close", () => resolve(false));
    socket.write("?");
  });
}

describe.runIf(process.platform === "linux")("with 256 file descriptors (N8, N9)", () => {
  test("a thousand partners and a full tunnel port leave the edge its links, its metrics and its life", async () => {
    const directory = await makeTempDir();
    closers.push(() => directory.remove());
    const nodePath = join(directory.path, "node");
    // Both programs run with it; only the edge that serves is short of descriptors.
    await writeFile(nodePath, `#!/bin/sh\ncase "$2" in serve) ulimit -n 256;; esac\nexec '${process.execPath}' "$@"\n`);
    await chmod(nodePath, 0o700);
    const target = await startEcho();
    let relay: TcpRelay | undefined;
    let tunnelPort = 0;
    const pair = await startPair({
      nodePath,
      services: { echo: `127.0.0.1:${target.port}` },
      deployments: [{ name: "echo", target: "echo" }],
      publicAddress: async (port) => {
        tunnelPort = port;
        relay = await TcpRelay.start({ targetPort: port });
        closers.push(() => relay?.close());
        return `127.0.0.1:${relay.port}`;
      },
    });
    expect(pair.edge.process.stdout).toContain("limits.maxConnections is lowered");
    const honest = await HonestPartner.start(pair.listenerPort("echo"));
    const partners = await Promise.all(Array.from({ length: 1_000 }, () => carries(dial(pair.listenerPort("echo")))));
    const served = partners.filter(Boolean).length;
    expect(served).toBeGreaterThan(100);
    expect(served).toBeLessThan(256 - 32);
    // Strangers take every place before authentication as well.
    const strangers = Array.from({ length: 100 }, (_, at) => dial(tunnelPort, `127.88.0.${(at % 25) + 1}`));
    await Promise.all(strangers.map((socket) => once(socket, "connect").catch(() => undefined)));
    const metrics = await pair.edgeMetrics();
    expect(figure(metrics, /^process_open_fds/)).toBeLessThan(256);
    expect(figure(metrics, /^edge_connections_active{/)).toBe(served + 1);
    expect(figure(metrics, /^edge_connections_denied_total{.*maxConnections"/)).toBe(1_000 - served);
    // All links die; the agent has to get new ones, with everything else as full as it can be.
    const accepted = relay!.acceptedConnections;
    relay!.cut();
    await pollUntil(
      async () =>
        figure(await pair.edgeMetrics(), /^edge_tunnel_links{/) === 2 && relay!.acceptedConnections > accepted
          ? true
          : undefined,
      { what: "new links" },
    );
    expect(await honest.stop()).toBeUndefined();
    expect(pair.edge.process.stdout).not.toContain("accept failed");
    // Room comes back when partners go.
    for (const socket of sockets.splice(0)) socket.destroy();
    await pollUntil(async () => (await carries(dial(pair.listenerPort("echo")))) || undefined, { what: "room" });
    expect(pair.edge.process.hasEnded).toBe(false);
  }, 40_000);
});

describe.runIf(process.platform === "linux")("a log that cannot be written (N11)", () => {
  /** Runs edge and agent of a pair again, with their standard output in these files. */
  async function restartInto(pair: SallyportPair, outputFile: (name: string) => string): Promise<TestProcess[]> {
    await Promise.all([pair.edge.process.stop(), pair.agent.process.stop()]);
    const started: TestProcess[] = [];
    for (const [name, command, { configPath }] of [
      ["edge", "serve", pair.edge],
      ["agent", "run", pair.agent],
    ] as const) {
      const program = await TestProcess.start({
        command: process.execPath,
        args: [join(root, `packages/${name}/bin/sallyport-${name}.js`), command, "--config", configPath],
        outputFile: outputFile(name),
      });
      closers.push(() => program.stop());
      started.push(program);
    }
    await pair.waitUntilReady();
    return started;
  }

  async function connections(pair: SallyportPair, count: number): Promise<void> {
    for (let at = 0; at < count; at += 20) {
      const served = await Promise.all(
        Array.from({ length: 20 }, async () => {
          const socket = dial(pair.listenerPort("echo"));
          const isServed = await carries(socket);
          socket.destroy();
          return isServed;
        }),
      );
      expect(served).not.toContain(false);
    }
  }

  const dropped = /^sallyport_log_dropped_total/;

  test("costs lines, which are counted, and not one connection", async () => {
    const target = await startEcho();
    const pair = await startPair({
      services: { echo: `127.0.0.1:${target.port}` },
      deployments: [{ name: "echo", target: "echo" }],
    });
    const programs = await restartInto(pair, () => "/dev/full");
    await connections(pair, 200);
    await pollUntil(
      async () =>
        figure(await pair.edgeMetrics(), dropped) > 200 && figure(await pair.agentMetrics(), dropped) > 200
          ? true
          : undefined,
      { what: "dropped lines in the figures of both" },
    );
    expect(programs.map(({ hasEnded, stderr }) => [hasEnded, stderr])).toEqual([
      [false, ""],
      [false, ""],
    ]);
  }, 30_000);

  test("goes on where there is room again", async (context) => {
    const directory = await makeTempDir();
    closers.push(() => directory.remove());
    const mount = ["-t", "tmpfs", "-o", "size=512k", "tmpfs", directory.path];
    const mounted = await runProcess({ command: "mount", args: mount }).then(
      ({ code }) => code === 0,
      () => false,
    );
    context.skip(!mounted, "needs root, for a small file system");
    closers.push(() => runProcess({ command: "umount", args: [directory.path] }));
    const target = await startEcho();
    const pair = await startPair({
      services: { echo: `127.0.0.1:${target.port}` },
      deployments: [{ name: "echo", target: "echo" }],
    });
    const filler = join(directory.path, "filler");
    await writeFile(filler, Buffer.alloc(480 * 1_024));
    await restartInto(pair, (name) => join(directory.path, `${name}.log`));
    await connections(pair, 200);
    expect(figure(await pair.edgeMetrics(), dropped)).toBeGreaterThan(0);
    await rm(filler);
    await connections(pair, 20);
    await pollUntil(
      async () => {
        const lines = (await readFile(join(directory.path, "edge.log"), "utf8")).split("\n");
        const whole = lines.filter((line) => line.startsWith('{"level"') && line.endsWith("}"));
        return whole.length > 20 ? true : undefined;
      },
      { what: "lines after the disk has room" },
    );
  }, 30_000);
});

describe("a black hole on the way (N15)", () => {
  // Long enough that a process which waits for a processor is not taken for dead.
  const heartbeat = { interval: "500ms", timeout: "2s" };

  test.each(["idle", "with data in flight"])(
    "is noticed at both ends, %s, and nothing is lost",
    async (state) => {
      const receivedBytes = { count: 0 };
      const target = await startTcpServer((socket) => {
        socket.on("data", (bytes: Buffer) => (receivedBytes.count += bytes.length));
        socket.on("end", () => socket.end(String(receivedBytes.count)));
      });
      closers.push(() => target.close());
      let relay: TcpRelay | undefined;
      const pair = await startPair({
        services: { sink: `127.0.0.1:${target.port}` },
        deployments: [{ name: "sink", target: "sink" }],
        edgeConfig: { heartbeat },
        agentConfig: { heartbeat, reconnect: { min: "50ms", max: "200ms" } },
        publicAddress: async (port) => {
          relay = await TcpRelay.start({ targetPort: port, bytesPerSecond: 20 * 1_048_576 });
          closers.push(() => relay?.close());
          return `127.0.0.1:${relay.port}`;
        },
      });
      const partner = connect({ port: pair.listenerPort("sink"), host: "127.0.0.1", allowHalfOpen: true });
      partner.on("error", () => undefined);
      sockets.push(partner);
      const total = 16 * 1_048_576;
      const chunk = Buffer.alloc(65_536, "x");
      let sent = 0;
      const pump = () => {
        while (sent < total && !partner.writableNeedDrain) {
          partner.write(chunk);
          sent += chunk.length;
        }
      };
      partner.on("drain", pump);
      if (state !== "idle") {
        pump();
        await pollUntil(() => (receivedBytes.count > 1_048_576 ? true : undefined), { what: "a transfer that runs" });
      }
      await pollUntil(
        async () => ((await pair.edgeMetrics()).includes('edge_tunnel_links{client="lan"} 2') ? true : undefined),
        { what: "both links" },
      );
      relay!.blackHole();
      const since = performance.now();
      await Promise.all([
        pair.edge.process.waitForLine(/agent lost; session waits/, 10_000),
        pair.agent.process.waitForLine(/last link lost; session waits/, 10_000),
      ]);
      expect(performance.now() - since).toBeLessThan(5_000);
      relay!.heal();
      pump();
      const answered = withDeadline(once(partner, "data"), { what: "the target's count", timeoutMs: 15_000 });
      await pollUntil(() => (sent === total ? true : undefined), { what: "everything handed over", timeoutMs: 15_000 });
      partner.end();
      expect(String((await answered)[0])).toBe(String(total));
    },
    40_000,
  );
});

test("ten thousand refused connections cause no stream and no dial while an allowed one is served", async () => {
  const target = await startEcho();
  const pair = await startPair({
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [{ name: "echo", target: "echo" }],
    edgeConfig: {
      ipFilters: [{ name: "loopback", default: "allow", rules: [{ action: "block", cidr: "127.0.0.9" }] }],
    },
  });
  const honest = await HonestPartner.start(pair.listenerPort("echo"));
  await pollUntil(() => (target.acceptedConnections === 1 ? true : undefined), { what: "the allowed connection" });
  for (let at = 0; at < 10_000; at += 200) {
    const ends = Array.from({ length: 200 }, () => {
      const socket = connect({ port: pair.listenerPort("echo"), host: "127.0.0.1", localAddress: "127.0.0.9" });
      socket.on("error", () => undefined);
      return new Promise<void>((resolve) => socket.once("close", () => resolve()));
    });
    await withDeadline(Promise.all(ends), { what: "refusals" });
  }
  expect(await honest.stop()).toBeUndefined();
  expect(target.acceptedConnections).toBe(1);
  expect(figure(await pair.edgeMetrics(), /^edge_connections_denied_total{.*ipFilter/)).toBe(10_000);
  expect(figure(await pair.edgeMetrics(), /^edge_connections_total{/)).toBe(1);
  expect(figure(await pair.agentMetrics(), /^agent_connections_total/)).toBe(1);
  expect(pair.records().edge.length).toBeLessThan(5_000);
}, 40_000);
