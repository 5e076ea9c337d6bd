import { createSocket } from "node:dgram";
import { getEventListeners, once } from "node:events";
import { createServer, connect as netConnect, type Server, Socket } from "node:net";
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, test, vi } from "vitest";
import { DialError, type DialOptions, dial, socketErrorReason } from "./dial.ts";
import { isSpecialAddress } from "./ip-address.ts";
import { ResolveError, Resolver } from "./resolver.ts";

const cleanups: Array<() => unknown> = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) {
    await cleanup();
  }
});

interface Target {
  readonly port: number;
  readonly accepted: Socket[];
  nextConnection(): Promise<Socket>;
}

/** A listener that counts who came. */
async function startTarget(host = "127.0.0.1", port = 0): Promise<Target> {
  const accepted: Socket[] = [];
  const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => {});
    accepted.push(socket);
  });
  server.listen(port, host);
  await once(server, "listening");
  cleanups.push(() => {
    for (const socket of accepted) {
      socket.destroy();
    }
    server.close();
  });
  return {
    port: (server.address() as { port: number }).port,
    accepted,
    nextConnection: async () => accepted[0] ?? ((await once(server, "connection"))[0] as Socket),
  };
}

/** A port where nobody listens. */
async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

/**
 * A port whose connections are neither taken nor refused: a listener on a thread that sleeps, with its queue full, so that
 * the kernel drops what else arrives.
 */
async function startBlackHole(host = "127.0.0.1"): Promise<number> {
  const worker = new Worker(
    `const { parentPort, workerData } = require("node:worker_threads");
     const server = require("node:net").createServer();
     server.listen({ port: 0, host: workerData, backlog: 1 }, () => {
       parentPort.postMessage(server.address().port);
       setImmediate(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0));
     });`,
    { eval: true, workerData: host },
  );
  const [port] = (await once(worker, "message")) as [number];
  const fillers = Array.from({ length: 8 }, () => netConnect({ host, port }).on("error", () => {}));
  cleanups.push(async () => {
    for (const filler of fillers) {
      filler.destroy();
    }
    await worker.terminate();
  });
  await Promise.all(fillers.slice(0, 2).map((filler) => once(filler, "connect")));
  return port;
}

/** A name server that never says anything. */
async function startDeadNameServer(): Promise<string> {
  const socket = createSocket("udp4");
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  cleanups.push(() => socket.close());
  return `127.0.0.1:${socket.address().port}`;
}

/** Resolves every name to these addresses and counts how often it is asked. */
const resolvesTo = (...addresses: string[]) => {
  const resolver = { asked: 0, resolve: async () => (resolver.asked++, addresses) };
  return resolver;
};

async function dialed(options: Omit<DialOptions, "timeoutMs" | "resolver"> & Partial<DialOptions>) {
  const { socket, address } = await dial({ timeoutMs: 5_000, resolver: resolvesTo(), ...options });
  cleanups.push(() => socket.destroy());
  return { socket, address };
}

/** The error of a dial that fails. */
const failure = (options: Omit<DialOptions, "timeoutMs" | "resolver"> & Partial<DialOptions>): Promise<DialError> =>
  dialed(options).then(
    () => {
      throw new Error("the dial was expected to fail");
    },
    (error: unknown) => {
      expect(error).toBeInstanceOf(DialError);
      return error as DialError;
    },
  );

describe("dial", () => {
  test("connects to a literal without asking for a name", async () => {
    const target = await startTarget();
    const resolver = resolvesTo("192.0.2.1");
    const { address } = await dialed({ host: "127.0.0.1", port: target.port, resolver });
    expect(address).toBe("127.0.0.1");
    expect(resolver.asked).toBe(0);
  });

  test("resolves a name once and says which address it dialled", async () => {
    const target = await startTarget("::1");
    const resolver = resolvesTo("::1");
    const { address } = await dialed({ host: "db.example", port: target.port, resolver });
    expect(address).toBe("::1");
    expect(resolver.asked).toBe(1);
  });

  test("hands over a socket that waits: paused, half-open, with known buffers", async () => {
    const target = await startTarget();
    const { socket } = await dialed({ host: "127.0.0.1", port: target.port });
    const peer = await target.nextConnection();
    peer.end("spoken first");
    expect(socket.isPaused()).toBe(true);
    expect(socket.allowHalfOpen).toBe(true);
    expect(socket.readableHighWaterMark).toBe(65_536);
    expect(socket.writableHighWaterMark).toBe(65_536);

    const chunks: Buffer[] = [];
    socket.on("data", (chunk) => chunks.push(chunk as Buffer));
    expect(socket.isPaused()).toBe(true);
    socket.resume();
    await once(socket, "end");
    expect(Buffer.concat(chunks).toString()).toBe("spoken first");

    // The peer's end is half of a close: the other direction still works.
    socket.end("answered after");
    peer.resume();
    const [answer] = await once(peer, "data");
    expect(String(answer)).toBe("answered after");
  });

  test("a reset before anybody listens does not end the process", async () => {
    const target = await startTarget();
    const { socket } = await dialed({ host: "127.0.0.1", port: target.port });
    const peer = await target.nextConnection();
    // `once` of node:events would listen for the error as well.
    const closed = new Promise((resolve) => socket.once("close", resolve));
    peer.resetAndDestroy();
    socket.resume();
    await closed;
    expect(socket.errored).toMatchObject({ code: "ECONNRESET" });
  });

  test("goes on to the next address at once when one is refused", async () => {
    const target = await startTarget("127.0.0.1");
    const started = performance.now();
    const { address } = await dialed({
      host: "db.example",
      port: target.port,
      resolver: resolvesTo("::1", "127.0.0.1"),
    });
    expect(address).toBe("127.0.0.1");
    expect(performance.now() - started).toBeLessThan(240);
  });

  test("goes on to the next address after a while when one stays silent, and lets the silent one go", async () => {
    const port = await startBlackHole("127.0.0.1");
    const target = await startTarget("::1", port);
    const started = performance.now();
    const { address } = await dialed({ host: "db.example", port, resolver: resolvesTo("127.0.0.1", "::1") });
    const elapsedMs = performance.now() - started;
    expect(address).toBe("::1");
    expect(elapsedMs).toBeGreaterThanOrEqual(240);
    expect(elapsedMs).toBeLessThan(2_000);
    expect(target.accepted.length).toBeLessThanOrEqual(1);
  });

  test("reaches the last of many silent addresses within its time", async () => {
    const port = await startBlackHole("127.0.0.1");
    await startTarget("127.0.0.2", port);
    // Six attempts that each wait 250 ms would use up all of the time.
    const { address } = await dialed({
      host: "db.example",
      port,
      timeoutMs: 1_500,
      resolver: resolvesTo(...Array.from({ length: 6 }, () => "127.0.0.1"), "127.0.0.2"),
    });
    expect(address).toBe("127.0.0.2");
  });

  test("gives up in time when nobody answers", async () => {
    const port = await startBlackHole();
    const started = performance.now();
    const error = await failure({ host: "127.0.0.1", port, timeoutMs: 300 });
    const elapsedMs = performance.now() - started;
    expect(error).toMatchObject({ reason: "timeout", address: "127.0.0.1" });
    expect(elapsedMs).toBeGreaterThanOrEqual(290);
    expect(elapsedMs).toBeLessThan(1_300);
  });

  test("says that a target refuses", async () => {
    const error = await failure({ host: "127.0.0.1", port: await freePort() });
    expect(error).toMatchObject({ reason: "refused", code: "ECONNREFUSED", address: "127.0.0.1" });
    expect(error.message).toBe("dial failed: refused (ECONNREFUSED)");
  });

  test("takes a connection that is its own other end for a refusal, and goes on to the next address", async () => {
    const port = await freePort();
    // What the system does by chance, about once in ten thousand dials to a free port of its own range.
    const chance = { localAddress: "127.0.0.1", localPort: port };
    const connect = Reflect.get(Socket.prototype, "connect") as (options: object) => Socket;
    vi.spyOn(Socket.prototype, "connect").mockImplementation(function (this: Socket, options: object) {
      return connect.call(this, { ...options, ...chance });
    } as Socket["connect"]);
    cleanups.push(() => vi.restoreAllMocks());
    const error = await failure({ host: "127.0.0.1", port });
    expect(error).toMatchObject({ reason: "refused", code: "ECONNREFUSED", address: "127.0.0.1" });
    const target = await startTarget("127.0.0.2", port);
    const resolver = resolvesTo("127.0.0.1", "127.0.0.2");
    const { address } = await dialed({ host: "two.test", port: target.port, resolver });
    expect(address).toBe("127.0.0.2");
  });

  test("tells of the address that refused rather than of one without a route", async () => {
    const port = await freePort();
    // TCP to a multicast address fails at once on every machine.
    const error = await failure({ host: "db.example", port, resolver: resolvesTo("ff02::1", "127.0.0.1") });
    expect(error).toMatchObject({ reason: "refused", address: "127.0.0.1" });
  });

  test.each([0, -1, 65_536, 1.5, Number.NaN])("refuses the port %s", async (port) => {
    expect(await failure({ host: "127.0.0.1", port })).toMatchObject({
      reason: "other",
      detail: "port must be 1-65535",
    });
  });

  test("is over at once when it is cancelled, before and while it connects", async () => {
    const port = await startBlackHole();
    const controller = new AbortController();
    const running = failure({ host: "127.0.0.1", port, signal: controller.signal });
    controller.abort();
    expect((await running).reason).toBe("cancelled");
    expect((await failure({ host: "127.0.0.1", port, signal: controller.signal })).reason).toBe("cancelled");
  });

  test("leaves no socket and no listener behind, however it ends", async () => {
    const port = await startBlackHole("127.0.0.1");
    const target = await startTarget("::1", port);
    const { signal } = new AbortController();
    const sockets = () => process.getActiveResourcesInfo().filter((name) => name === "TCPSocketWrap").length;
    const before = sockets();
    const { socket } = await dialed({ host: "db.example", port, resolver: resolvesTo("127.0.0.1", "::1"), signal });
    await failure({ host: "127.0.0.1", port, timeoutMs: 50, signal });
    await failure({ host: "127.0.0.1", port: await freePort(), signal });
    await failure({
      host: "db.example",
      port,
      resolver: { resolve: () => Promise.reject(new ResolveError("busy")) },
      signal,
    });
    expect(getEventListeners(signal, "abort")).toEqual([]);
    expect(socket.destroyed).toBe(false);
    socket.destroy();
    (await target.nextConnection()).destroy();
    await expect.poll(sockets).toBe(before);
  });

  test("a cancellation after the connection was handed over does not touch it", async () => {
    const target = await startTarget();
    const controller = new AbortController();
    const { socket } = await dialed({ host: "127.0.0.1", port: target.port, signal: controller.signal });
    controller.abort();
    expect(socket.destroyed).toBe(false);
  });
});

describe("dial with a policy", () => {
  const noSpecialAddress: DialOptions["admit"] = (address) => isSpecialAddress(address);

  test.each([
    ["127.0.0.1", "loopback"],
    ["::ffff:127.0.0.1", "loopback"],
    ["169.254.169.254", "metadata"],
    ["0.0.0.0", "unspecified"],
    ["::", "unspecified"],
  ])("never connects to %s", async (address, detail) => {
    const target = await startTarget("::");
    const byName = await failure({
      host: "sly.example",
      port: target.port,
      resolver: resolvesTo(address),
      admit: noSpecialAddress,
    });
    const byLiteral = await failure({ host: address, port: target.port, admit: noSpecialAddress });
    expect(byName).toMatchObject({ reason: "forbidden", detail });
    expect(byLiteral).toMatchObject({ reason: "forbidden", detail });
    // Whoever had connected would be in front of this one.
    await dialed({ host: "::1", port: target.port });
    await target.nextConnection();
    expect(target.accepted).toHaveLength(1);
  });

  test("skips the refused addresses of a name and dials the others", async () => {
    const sentinel = await startTarget("127.0.0.1");
    await startTarget("::1", sentinel.port);
    const { address } = await dialed({
      host: "db.example",
      port: sentinel.port,
      resolver: resolvesTo("127.0.0.1", "::1"),
      admit: ({ family }) => (family === 4 ? "not in the allow list" : undefined),
    });
    expect(address).toBe("::1");
    expect(sentinel.accepted).toHaveLength(0);
  });

  test("asks about each address once and names the first refused one", async () => {
    const asked: number[] = [];
    const error = await failure({
      host: "db.example",
      port: 1,
      resolver: resolvesTo("192.0.2.1", "192.0.2.2"),
      admit: ({ bytes }) => {
        asked.push(bytes[3]!);
        return "not in the allow list";
      },
    });
    expect(asked).toEqual([1, 2]);
    expect(error).toMatchObject({ reason: "forbidden", address: "192.0.2.1", detail: "not in the allow list" });
  });
});

describe("dial with names", () => {
  test.each([
    ["not_found", "name_not_found"],
    ["invalid_name", "name_not_found"],
    ["server_failure", "name_not_found"],
    ["timeout", "name_timeout"],
    ["busy", "resource"],
    ["cancelled", "cancelled"],
  ] as const)("gives the failure %s as %s", async (reason, expected) => {
    const resolver = { resolve: () => Promise.reject(new ResolveError(reason)) };
    expect((await failure({ host: "db.example", port: 1, resolver })).reason).toBe(expected);
  });

  test("finds no address where the resolver finds none", async () => {
    expect((await failure({ host: "db.example", port: 1 })).reason).toBe("name_not_found");
  });

  test.each(["0x7f.1", "017700000001", "2130706433", "127.1", "127.0.0.1.", "\uff11\uff12\uff17.0.0.1"])(
    "does not take %j for an address",
    async (host) => {
      const target = await startTarget();
      const error = await failure({ host, port: target.port, resolver: new Resolver() });
      expect(error).toMatchObject({ reason: "name_not_found", detail: "not a host name" });
      expect(target.accepted).toHaveLength(0);
    },
  );

  test("counts the time for the name into its own", async () => {
    const resolver = new Resolver({ servers: [await startDeadNameServer()] });
    const started = performance.now();
    const error = await failure({ host: "db.example", port: 1, timeoutMs: 100, resolver });
    expect(error.reason).toBe("name_timeout");
    expect(performance.now() - started).toBeLessThan(1_000);
  });

  test("can be cancelled while the name is resolved", async () => {
    const resolver = new Resolver({ servers: [await startDeadNameServer()] });
    const controller = new AbortController();
    const running = failure({ host: "db.example", port: 1, resolver, signal: controller.signal });
    controller.abort();
    expect((await running).reason).toBe("cancelled");
  });

  test("with a dead resolver, dials to literals and known names go on", async () => {
    const target = await startTarget();
    const resolver = new Resolver({ servers: [await startDeadNameServer()] });
    const waiting = Array.from({ length: 50 }, (_, index) =>
      failure({ host: `db${index}.example`, port: 1, timeoutMs: 1_000, resolver }),
    );
    const started = performance.now();
    await dialed({ host: "127.0.0.1", port: target.port, resolver });
    await dialed({ host: "localhost", port: target.port, resolver });
    expect(performance.now() - started).toBeLessThan(500);
    expect(new Set((await Promise.all(waiting)).map(({ reason }) => reason))).toEqual(new Set(["name_timeout"]));
  });
});

describe("the reason of a socket's error", () => {
  test.each([
    ["ECONNRESET", "reset"],
    ["EPIPE", "broken_pipe"],
    ["ERR_STREAM_WRITE_AFTER_END", "broken_pipe"],
    ["ETIMEDOUT", "timeout"],
    ["EHOSTUNREACH", "unreachable"],
    ["ECONNREFUSED", "refused"],
    ["EMFILE", "resource"],
    ["EWHATEVER", "other"],
  ])("%s is %s", (code, reason) => {
    expect(socketErrorReason(Object.assign(new Error("x"), { code }))).toBe(reason);
  });

  test.each([
    undefined,
    null,
    "ECONNRESET",
    { code: "ECONNRESET" },
    new Error("x"),
    Object.assign(new Error("x"), { code: 1 }),
  ])("%j is other", (error) => {
    expect(socketErrorReason(error)).toBe("other");
  });
});
