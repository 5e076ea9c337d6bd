/** SIGTERM on either end: no new work, what runs may finish within `drainTimeout`, then it is reset; twice: at once. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, describe, expect, test } from "vitest";
import { withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { timed } from "../support/machine-wait.ts";
import { SallyportPair } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import type { TcpServer } from "../support/tcp-server.ts";

const RESET = { how: "error", code: "ECONNRESET" };

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) await close();
});

let target: TcpServer;

async function startPair(drainTimeout: string, nodeArgs: readonly string[] = []): Promise<SallyportPair> {
  target = await startEchoServer();
  closers.push(() => target.close());
  const pair = await SallyportPair.start({
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [{ name: "echo", target: "echo" }],
    edgeConfig: { drainTimeout, resumeTimeout: "1s" },
    agentConfig: { drainTimeout },
    nodeArgs,
  });
  closers.push(() => pair.stop());
  return pair;
}

function partnerOf(pair: SallyportPair): Socket {
  const socket = connect({ port: pair.listenerPort("echo"), host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => undefined);
  return socket;
}

function bothPids({ edge, agent }: SallyportPair): number[] {
  return [edge.process.pid, agent.process.pid];
}

async function echo(socket: Socket, text: string): Promise<void> {
  socket.write(text);
  const [reply] = (await withDeadline(once(socket, "data"), { what: "echo" })) as [Buffer];
  expect(reply.toString()).toBe(text);
}

describe.each(["edge", "agent"] as const)("SIGTERM to the %s", (program) => {
  test("stops new work, lets what runs finish, and ends the process as soon as it has", async () => {
    const pair = await startPair("30s");
    const running = partnerOf(pair);
    await echo(running, "before");
    const stopping = pair[program].process;
    stopping.signal("SIGTERM");
    await stopping.waitForLine(/"msg":"draining"/);
    // The other end has heard of it: the edge has nobody to serve a new partner, or no listener.
    expect((await socketEnding(partnerOf(pair))).how).toBe("error");
    await echo(running, "while it drains");
    expect(stopping.hasEnded).toBe(false);
    running.end();
    expect((await socketEnding(running)).how).toBe("end");
    expect(await stopping.waitForEnd(5_000)).toMatchObject({ code: 0 });
  });

  test("resets what has not finished within drainTimeout", async () => {
    const pair = await startPair("1s");
    const running = partnerOf(pair);
    await echo(running, "before");
    const atTarget = [...target.sockets].map((socket) => socketEnding(socket));
    const { result, tookMs, machineMs } = await timed(bothPids(pair), () => {
      pair[program].process.signal("SIGTERM");
      return Promise.all([socketEnding(running), ...atTarget]);
    });
    expect(result).toMatchObject([RESET, RESET]);
    expect(tookMs).toBeGreaterThanOrEqual(990);
    expect(tookMs).toBeLessThan(1_000 + 1_000 + machineMs);
    expect(await pair[program].process.waitForEnd(5_000)).toMatchObject({ code: 0 });
    const [record] = await pair.waitForEdgeRecords("echo", 1);
    expect(record).toMatchObject({ reason: "shutdown" });
  });

  test("twice ends what runs at once, with a reset at both ends and an exit code that says so", async () => {
    const pair = await startPair("30s");
    const running = partnerOf(pair);
    await echo(running, "before");
    const stopping = pair[program].process;
    stopping.signal("SIGTERM");
    await stopping.waitForLine(/"msg":"draining"/);
    const atTarget = [...target.sockets].map((socket) => socketEnding(socket));
    const { result, tookMs, machineMs } = await timed(bothPids(pair), () => {
      stopping.signal("SIGTERM");
      return Promise.all([stopping.waitForEnd(5_000), socketEnding(running), ...atTarget]);
    });
    expect(result).toMatchObject([{ code: 143 }, RESET, RESET]);
    expect(tookMs).toBeLessThan(1_000 + machineMs);
  });

  test("ends it within a second when nothing runs", async () => {
    const pair = await startPair("30s");
    // What starting took of the processor does not delay the signal.
    await delay(200);
    const { result, tookMs, machineMs } = await timed(bothPids(pair), () => {
      pair[program].process.signal("SIGTERM");
      return pair[program].process.waitForEnd(5_000);
    });
    expect(result).toMatchObject({ code: 0 });
    expect(tookMs).toBeLessThan(1_000 + machineMs);
  });

  test("ends it although something is still open, such as a question to a silent name server", async () => {
    const open = 'if (process.argv.includes("run")) setInterval(() => undefined, 1_000)';
    const pair = await startPair("30s", ["--import", `data:text/javascript,${encodeURIComponent(open)}`]);
    pair[program].process.signal("SIGTERM");
    expect(await pair[program].process.waitForEnd(5_000)).toMatchObject({ code: 0 });
  });
});
