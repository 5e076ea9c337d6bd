import { createHash } from "node:crypto";
import { once } from "node:events";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { runProcess, TestProcess } from "../support/child-process.ts";
import { withDeadline } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { PseudoRandomBytes } from "../support/prng.ts";
import { findProgram } from "../support/required-program.ts";
import { socketEnding } from "../support/socket-ending.ts";
import { TcpRelay } from "../support/tcp-relay.ts";
import type { TcpRelayOptions } from "../support/tcp-relay.ts";
import { startTcpServer } from "../support/tcp-server.ts";

/** What a test has opened, closed in reverse order after it. */
const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

const connectTo = (port: number): Socket => {
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => undefined);
  cleanups.push(() => socket.destroy());
  return socket;
};

describe("TCP relay", () => {
  const startRelay = async (options: Omit<TcpRelayOptions, "targetPort"> = {}): Promise<TcpRelay> => {
    const echo = await startEchoServer();
    cleanups.push(() => echo.close());
    const relay = await TcpRelay.start({ ...options, targetPort: echo.port });
    cleanups.push(() => relay.close());
    return relay;
  };

  it("carries bytes and both ends", async () => {
    const relay = await startRelay();
    const socket = connectTo(relay.port);
    const source = new PseudoRandomBytes("relay");
    const heard = createHash("sha256");
    socket.on("data", (bytes) => heard.update(bytes));
    socket.end(source.next(4 * 1024 * 1024));
    expect(await socketEnding(socket)).toEqual({ how: "end", code: undefined, receivedBytes: 4 * 1024 * 1024 });
    expect(heard.digest("hex")).toBe(source.digest());
  });

  it("delays each direction by the latency", async () => {
    const relay = await startRelay({ latencyMs: 40 });
    const socket = connectTo(relay.port);
    await once(socket, "connect");
    const sentAt = performance.now();
    socket.write("ping");
    await withDeadline(once(socket, "data"), { what: "the echo" });
    expect(performance.now() - sentAt).toBeGreaterThanOrEqual(80);
  });

  it("keeps to the rate", async () => {
    const relay = await startRelay({ bytesPerSecond: 1_000_000 });
    const socket = connectTo(relay.port);
    const sentAt = performance.now();
    socket.end(Buffer.alloc(300_000));
    await socketEnding(socket);
    expect(performance.now() - sentAt).toBeGreaterThanOrEqual(290);
  });

  it("cuts by a reset", async () => {
    const relay = await startRelay();
    const socket = connectTo(relay.port);
    socket.write("hello");
    await withDeadline(once(socket, "data"), { what: "the echo" });
    relay.cut();
    expect(await socketEnding(socket)).toMatchObject({ how: "error", code: "ECONNRESET" });
    expect(relay.openConnections).toBe(0);
  });

  it("cuts by a reset after so many bytes", async () => {
    const relay = await startRelay({ stopAfter: { bytes: 100_000, direction: "down", how: "reset" } });
    const socket = connectTo(relay.port);
    socket.write(Buffer.alloc(1_000_000));
    expect(await socketEnding(socket)).toMatchObject({ how: "error", code: "ECONNRESET" });
  });

  it("holds everything in a black hole and loses nothing when it heals", async () => {
    const relay = await startRelay();
    const socket = connectTo(relay.port);
    socket.write("a");
    await withDeadline(once(socket, "data"), { what: "the first echo" });
    relay.blackHole();
    let heard = "";
    socket.on("data", (bytes) => {
      heard += String(bytes);
    });
    socket.end("b");
    await withDeadline(once(socket, "finish"), { what: "the bytes sent into the black hole" });
    expect(heard).toBe("");
    relay.heal();
    expect(await socketEnding(socket)).toMatchObject({ how: "end" });
    expect(heard).toBe("b");
  });
});

describe("socket ending", () => {
  const connectedPair = async (): Promise<{ near: Socket; far: Socket }> => {
    let accept: (socket: Socket) => void = () => undefined;
    const accepted = new Promise<Socket>((resolve) => {
      accept = resolve;
    });
    const server = await startTcpServer(accept);
    cleanups.push(() => server.close());
    const near = connectTo(server.port);
    await once(near, "connect");
    return { near, far: await accepted };
  };
  const reset = async (socket: Socket): Promise<void> => {
    const closed = once(socket, "close");
    socket.resetAndDestroy();
    await withDeadline(closed, { what: "the reset" });
  };

  it.each(["open", "ended"])("tells a reset behind unread bytes from an end, own half %s", async (ownHalf) => {
    const { near, far } = await connectedPair();
    near.pause();
    if (ownHalf === "ended") near.end();
    await new Promise((resolve) => far.write(Buffer.alloc(1000), resolve));
    await reset(far);
    expect(await socketEnding(near)).toEqual({ how: "error", code: "ECONNRESET", receivedBytes: 1000 });
  });

  it("knows an error that came before the question", async () => {
    const { near, far } = await connectedPair();
    const failed = new Promise((resolve) => near.once("close", resolve));
    await reset(far);
    await withDeadline(failed, { what: "the error" });
    expect(await socketEnding(near)).toMatchObject({ how: "error", code: "ECONNRESET" });
  });
});

describe("test process", () => {
  const node = (script: string) => ({ command: process.execPath, args: ["-e", script] });

  it("hears lines of both streams, also those from before the question", async () => {
    const child = await TestProcess.start(
      node("console.log('one'); console.error('two'); setInterval(() => {}, 1000)"),
    );
    cleanups.push(() => child.stop());
    expect(await child.waitForLine(/^two$/)).toBe("two");
    expect(await child.waitForLine(/^one$/)).toBe("one");
  });

  it("tells why a line never came", async () => {
    const child = await TestProcess.start(node("console.error('broken'); process.exitCode = 3"));
    await expect(child.waitForLine(/ready/)).rejects.toThrow(/exit code 3[\s\S]*broken/);
  });

  it("kills a process that does not stop by itself", async () => {
    const child = await TestProcess.start(
      node("process.on('SIGTERM', () => {}); console.log('up'); setInterval(() => {}, 1000)"),
    );
    await child.waitForLine(/up/);
    expect(await child.stop(100)).toEqual({ code: null, signal: "SIGKILL" });
  });

  it("keeps a bounded amount of output", async () => {
    const { stdout } = await runProcess({
      ...node("for (let i = 0; i < 20000; i++) console.log('line ' + i)"),
      maxOutputBytes: 10_000,
    });
    expect(stdout.length).toBeLessThan(25_000);
    expect(stdout).toContain("line 19999");
  });

  it("rejects when the command does not exist", async () => {
    await expect(TestProcess.start({ command: "no-such-program-anywhere" })).rejects.toThrow(/ENOENT/);
  });
});

describe("pseudo-random bytes", () => {
  it("depend on the seed alone, not on how they are taken", () => {
    const whole = new PseudoRandomBytes("seed");
    const parts = new PseudoRandomBytes("seed");
    const other = new PseudoRandomBytes("another seed");
    expect(Buffer.concat([parts.next(10), parts.next(90)])).toEqual(whole.next(100));
    expect(parts.digest()).toBe(whole.digest());
    other.next(100);
    expect(other.digest()).not.toBe(whole.digest());
  });
});

describe("required programs", () => {
  it("finds none that is not there", () => {
    expect(findProgram("no-such-program" as "socat")).toBeUndefined();
  });
});
