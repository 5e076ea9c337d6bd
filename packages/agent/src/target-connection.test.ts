import { once } from "node:events";
import type { Socket } from "node:net";
import {
  DialError,
  type DialErrorReason,
  type Dialled,
  type DialOptions,
  dial,
  parseProxyHeader,
  ResolveError,
} from "@sallyport/host";
import { CHECK_PARTNER, type Open, type OpenProxy, ResetCode, resetReason } from "@sallyport/protocol";
import type { StreamHandler, TunnelStream } from "@sallyport/tunnel";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { withDeadline } from "../../../test/support/deadline.ts";
import { startTcpServer, type TcpServer } from "../../../test/support/tcp-server.ts";
import { parseAllowRule } from "./config.ts";
import { RecordWriter } from "./connection-record.ts";
import { DialLimits } from "./dial-limits.ts";
import { Policy } from "./policy.ts";
import type { TargetContext } from "./target-connection.ts";
import { TargetConnections } from "./target-connections.ts";

/** What the agent does to a stream, as the edge would see it. */
class FakeStream {
  readonly id = 1;
  readonly acknowledgedBytes = 0;
  readonly calls: string[] = [];
  readonly sent: Buffer[] = [];
  consumed = 0;
  handler: StreamHandler | undefined;
  #heard: (() => void)[] = [];

  accept(address: string): void {
    this.#note(`accept ${address}`);
  }
  write(bytes: Uint8Array): boolean {
    this.sent.push(Buffer.from(bytes));
    return true;
  }
  end(): void {
    this.#note("end");
  }
  reset(code: ResetCode): void {
    this.handler = undefined;
    this.#note(`reset ${resetReason(code)}`);
  }
  consume(count: number): void {
    this.consumed += count;
  }
  consumeEnd(): void {
    this.#note("consumeEnd");
  }
  handOver(handler: StreamHandler): void {
    this.handler = handler;
  }
  flushLater(writer: { flush(): void }): void {
    setImmediate(() => writer.flush());
  }

  /** Resolves once `call` was made. */
  async heard(call: RegExp): Promise<void> {
    const wait = async () => {
      while (!this.calls.some((made) => call.test(made))) await new Promise<void>((done) => this.#heard.push(done));
    };
    await withDeadline(wait(), { what: `${call} of the stream; it heard ${this.calls.join(", ")}` });
  }

  #note(call: string): void {
    this.calls.push(call);
    for (const done of this.#heard.splice(0)) done();
  }
}

const servers: TcpServer[] = [];
let records: Record<string, unknown>[];

beforeEach(() => {
  records = [];
});
afterEach(async () => {
  for (const server of servers.splice(0)) await server.close();
});

async function startTarget(onConnection: (socket: Socket) => void): Promise<TcpServer> {
  const server = await startTcpServer(onConnection);
  servers.push(server);
  return server;
}

function makeConnections(options: {
  port?: number;
  allow?: string[];
  maxConnections?: number;
  dial?: TargetContext["dial"];
  resolve?: (name: string) => Promise<string[]>;
  connectMs?: number;
  proxyProtocol?: "allow" | "deny";
  allowProxyProtocol?: "allow" | "deny";
}): TargetConnections {
  const port = options.port ?? 9;
  const common = { dialsPerSecond: undefined, proxyProtocol: options.proxyProtocol ?? ("deny" as const) };
  const services = new Map([
    ["sftp", { target: { host: "127.0.0.1", port }, maxConnections: options.maxConnections, ...common }],
    ["named", { target: { host: "db.corp.example", port }, maxConnections: undefined, ...common }],
  ]);
  return new TargetConnections({
    policy: new Policy({
      services,
      allow: (options.allow ?? []).map(parseAllowRule),
      ...(options.allowProxyProtocol === undefined ? {} : { allowProxyProtocol: options.allowProxyProtocol }),
    }),
    limits: new DialLimits({ maxConnections: 100, dialsPerSecond: 100, services }),
    resolver: { resolve: options.resolve ?? (() => Promise.reject(new ResolveError("not_found", "ENOTFOUND"))) },
    dial: options.dial ?? dial,
    timeouts: { connectMs: options.connectMs ?? 5_000, idleMs: 60_000, halfCloseMs: 30_000 },
    records: new RecordWriter(pino({}, { write: (line: string) => records.push(JSON.parse(line)) })),
  });
}

function openOf(target: string, partner = "192.0.2.1:5000"): Open {
  return { stream: 1, connection: "c-1", target, deployment: "d", partner, limit: 262_144 };
}

function serve(
  connections: TargetConnections,
  target: string,
  { partner, proxy }: { partner?: string; proxy?: OpenProxy } = {},
): FakeStream {
  const stream = new FakeStream();
  const open = { ...openOf(target, partner), ...(proxy === undefined ? {} : { proxy }) };
  stream.handler = connections.serve("dmz-1", open, stream as unknown as TunnelStream);
  return stream;
}

/** A dial that ends when the test says so. */
function heldDial() {
  const held: { settle: (result: Dialled | DialError) => void; options: DialOptions }[] = [];
  const dialHeld: TargetContext["dial"] = (options) =>
    new Promise((resolve, reject) => {
      held.push({
        options,
        settle: (result) => {
          if (result instanceof DialError) reject(result);
          else resolve(result);
        },
      });
    });
  return { held, dial: dialHeld };
}

describe("an OPEN that the agent refuses", () => {
  it.each(["other", "10.0.0.1:22", "__proto__", "../sftp", "localhost:9"])(
    "%s is reset as forbidden, dialled never and recorded",
    (target) => {
      let dials = 0;
      const connections = makeConnections({
        dial: () => {
          dials += 1;
          return Promise.reject(new DialError("refused"));
        },
      });
      const stream = serve(connections, target);
      expect(stream.calls).toEqual(["reset forbidden"]);
      expect(stream.handler).toBeUndefined();
      expect(dials).toBe(0);
      expect(connections.forbidden).toBe(1);
      expect(connections.live.size).toBe(0);
      expect(records).toMatchObject([
        { level: 40, msg: "connection", connection: "c-1", target, code: "PC", partner: "192.0.2.1:5000" },
      ]);
    },
  );

  it("is reset by `limit` beyond the cap of its service", () => {
    const { dial: dialHeld, held } = heldDial();
    const connections = makeConnections({ maxConnections: 1, dial: dialHeld });
    serve(connections, "sftp");
    const second = serve(connections, "sftp");
    expect(second.calls).toEqual(["reset limit"]);
    expect(held).toHaveLength(1);
    expect(connections.dialErrors).toEqual({ limit: 1 });
    expect(records).toMatchObject([{ code: "RC", rule: "serviceMaxConnections" }]);
  });

  it.each(["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "169.254.169.254"])(
    "is reset as forbidden when its name resolves to %s, and nothing is connected",
    async (address) => {
      const sentinel = await startTarget(() => undefined);
      const connections = makeConnections({
        port: sentinel.port,
        allow: [`0.0.0.0/0:${sentinel.port}`, `[::/0]:${sentinel.port}`],
        resolve: () => Promise.resolve([address]),
      });
      for (const target of ["named", `evil.example:${sentinel.port}`]) {
        const stream = serve(connections, target);
        await stream.heard(/^reset forbidden$/);
        expect(stream.calls).toEqual(["reset forbidden"]);
      }
      expect(connections.forbidden).toBe(2);
      expect(sentinel.acceptedConnections).toBe(0);
      expect(records).toMatchObject([
        { code: "PC", target: "named" },
        { code: "PC", target: `evil.example:${sentinel.port}` },
      ]);
      expect(connections.context.limits.active).toBe(0);
    },
  );
});

describe("a dial that fails", () => {
  it.each<[DialErrorReason, string, string]>([
    ["refused", "targetRefused", "SC"],
    ["timeout", "targetTimeout", "sC"],
    ["unreachable", "targetUnreachable", "SC"],
    ["name_not_found", "nameNotFound", "SC"],
    ["name_timeout", "targetTimeout", "sC"],
    ["forbidden", "forbidden", "PC"],
    ["reset", "connectionReset", "SD"],
    ["resource", "resource", "RC"],
    ["cancelled", "cancelled", "CC"],
    ["other", "targetUnreachable", "SC"],
  ])("for reason %s is RESET %s and recorded as %s", async (reason, reset, code) => {
    const connections = makeConnections({
      dial: () => Promise.reject(new DialError(reason, { address: "192.0.2.9" })),
    });
    const stream = serve(connections, "sftp");
    await stream.heard(/^reset/);
    expect(stream.calls).toEqual([`reset ${reset}`]);
    expect(records).toMatchObject([{ msg: "connection", code, service: "sftp", address: "192.0.2.9:9" }]);
    expect(connections.dialErrors).toEqual({ [reason]: 1 });
    expect(connections.live.size).toBe(0);
    expect(connections.context.limits.active).toBe(0);
  });
});

describe("a stream that is reset while its target is dialled", () => {
  it("cancels the dial, and counts until the dial has ended", async () => {
    const { held, dial: dialHeld } = heldDial();
    const connections = makeConnections({ dial: dialHeld });
    const stream = serve(connections, "sftp");
    stream.handler?.onReset(ResetCode.connectionReset, "peer");
    expect(held[0]?.options.signal?.aborted).toBe(true);
    expect(records).toMatchObject([{ code: "CC" }]);
    expect(connections.context.limits.active).toBe(1);
    held[0]?.settle(new DialError("cancelled"));
    await new Promise(setImmediate);
    expect(connections.context.limits.active).toBe(0);
    expect(stream.calls).toEqual([]);
    expect(records).toHaveLength(1);
  });

  it("drops a socket that was connected nevertheless", async () => {
    const target = await startTarget(() => undefined);
    const { held, dial: dialHeld } = heldDial();
    const connections = makeConnections({ dial: dialHeld });
    const stream = serve(connections, "sftp");
    stream.handler?.onReset(ResetCode.connectionReset, "peer");
    const dialled = await dial({
      host: "127.0.0.1",
      port: target.port,
      timeoutMs: 1_000,
      resolver: { resolve: () => Promise.resolve([]) },
    });
    const closed = once(dialled.socket, "close");
    held[0]?.settle(dialled);
    await withDeadline(closed, { what: "socket closed" });
    expect(connections.context.limits.active).toBe(0);
    expect(stream.calls).toEqual([]);
  });

  it("bounds what a flood of opens and resets dials", () => {
    const { held, dial: dialHeld } = heldDial();
    const connections = makeConnections({ dial: dialHeld });
    for (let count = 0; count < 5_000; count += 1) {
      serve(connections, "sftp").handler?.onReset(ResetCode.connectionReset, "peer");
    }
    expect(held.length).toBeLessThanOrEqual(100);
  });
});

describe("a connection", () => {
  it("gives the target what came before it was connected however much that is", async () => {
    // A RESUME while the target is dialled may raise the credit to a whole window.
    let heard = 0;
    const target = await startTarget((socket) => {
      socket.on("data", (part: Buffer) => (heard += part.length));
      socket.on("end", () => socket.end(`heard ${heard}`));
    });
    const stream = serve(makeConnections({ port: target.port }), "sftp");
    for (let count = 0; count < 16; count += 1) stream.handler?.onData(Buffer.alloc(16_363));
    stream.handler?.onEnd();
    await stream.heard(/^end$/);
    await stream.heard(/^consumeEnd$/);
    expect(Buffer.concat(stream.sent).toString()).toBe(`heard ${16 * 16_363}`);
    expect(stream.consumed).toBe(16 * 16_363);
  });

  it("gives the target what came before it was connected, END included, and returns its answer", async () => {
    const target = await startTarget((socket) => {
      const parts: Buffer[] = [];
      socket.on("data", (part: Buffer) => parts.push(part));
      socket.on("end", () => socket.end(`heard ${Buffer.concat(parts).toString()}`));
    });
    const connections = makeConnections({ port: target.port });
    const stream = serve(connections, "sftp");
    const early = Buffer.from("hello ");
    stream.handler?.onData(early);
    // What was handed over belongs to the message buffer; a later message may overwrite it.
    early.fill(0);
    stream.handler?.onData(Buffer.from("world"));
    stream.handler?.onEnd();
    await stream.heard(/^end$/);
    await stream.heard(/^consumeEnd$/);
    expect(stream.calls[0]).toBe(`accept 127.0.0.1:${target.port}`);
    expect(Buffer.concat(stream.sent).toString()).toBe("heard hello world");
    expect(stream.consumed).toBe(11);
    stream.handler?.onFinished();
    expect(records).toMatchObject([
      {
        level: 30,
        msg: "connection",
        connection: "c-1",
        edge: "dmz-1",
        deployment: "d",
        partner: "192.0.2.1:5000",
        target: "sftp",
        service: "sftp",
        address: `127.0.0.1:${target.port}`,
        bytesIn: 11,
        bytesOut: 17,
        code: "--",
        reason: "finished",
        rule: "service sftp",
        connectMs: expect.any(Number),
        firstByteMs: expect.any(Number),
        totalMs: expect.any(Number),
      },
    ]);
    expect(connections.bytes).toEqual({ in: 11, out: 17 });
    await connections.whenEmpty();
  });

  it("is reset on both sides when an operator kills it, dialling or open", async () => {
    const closed: Promise<unknown>[] = [];
    const target = await startTarget((socket) => {
      socket.resume();
      closed.push(once(socket, "error"));
    });
    const connections = makeConnections({ port: target.port });
    const dialling = serve(connections, "sftp");
    expect(connections.kill("c-1")).toBe(true);
    expect(dialling.calls).toEqual(["reset killed"]);
    const open = serve(connections, "sftp");
    await open.heard(/^accept/);
    expect(connections.kill("c-1")).toBe(true);
    expect(open.calls.at(-1)).toBe("reset killed");
    expect(connections.kill("c-1")).toBe(false);
    expect(records).toMatchObject([{ code: "KD" }, { code: "KD" }]);
    await withDeadline(Promise.all(closed), { what: "reset at the target" });
  });

  it("is reset when its target is", async () => {
    const target = await startTarget((socket) => {
      socket.once("data", () => socket.resetAndDestroy());
    });
    const connections = makeConnections({ port: target.port });
    const stream = serve(connections, "sftp");
    stream.handler?.onData(Buffer.from("x"));
    await stream.heard(/^reset connectionReset$/);
    expect(records).toMatchObject([{ code: "SD", reason: "target reset" }]);
    expect(connections.live.size).toBe(0);
  });
});

describe("a check of an edge", () => {
  it("leaves no record whether the target is there or not, and counts as a check", async () => {
    const server = await startTarget((socket) => void socket.write("ready\n"));
    const connections = makeConnections({ port: server.port });
    const stream = serve(connections, "sftp", { partner: CHECK_PARTNER });
    await stream.heard(/accept/);
    stream.handler?.onReset(ResetCode.cancelled, "peer");
    const failing = makeConnections({ dial: () => Promise.reject(new DialError("refused")) });
    const refused = serve(failing, "sftp", { partner: CHECK_PARTNER });
    await refused.heard(/reset targetRefused/);
    expect(records).toEqual([]);
    expect([connections.checks.get("sftp"), connections.dialled.get("sftp")]).toEqual([1, undefined]);
    expect(failing.dialErrors).toEqual({});
  });

  it("is recorded when the policy forbids its target", () => {
    serve(makeConnections({}), "other", { partner: CHECK_PARTNER });
    expect(records).toHaveLength(1);
  });

  it("is recorded as a connection when more bytes pass than a check needs: no edge can hide connections among checks", async () => {
    const received: Buffer[] = [];
    const server = await startTarget((socket) => socket.on("data", (bytes) => received.push(bytes)));
    const connections = makeConnections({ port: server.port });
    const stream = serve(connections, "sftp", { partner: CHECK_PARTNER });
    await stream.heard(/accept/);
    stream.handler?.onData(Buffer.alloc(1_025));
    const wait = async () => {
      while (stream.consumed < 1_025) await new Promise((resolve) => setImmediate(resolve));
    };
    await withDeadline(wait(), { what: "the bytes at the target" });
    stream.handler?.onReset(ResetCode.cancelled, "peer");
    expect(records).toMatchObject([{ partner: "check", bytesIn: 1_025 }]);
  });
});

describe("a PROXY header that an edge asks for", () => {
  const wanted: OpenProxy = [2, "203.0.113.7:51000", "198.51.100.20:443", "sftp.example.com", ""];
  const allowed = { proxyProtocol: "allow", allow: ["127.0.0.1:*"], allowProxyProtocol: "deny" } as const;

  /** All bytes that a target got, after the partner has sent `hello` and ended. */
  async function receivedBy(proxy: OpenProxy, options: Partial<Parameters<typeof makeConnections>[0]> = {}) {
    const parts: Buffer[] = [];
    let ends: { local: string; remote: string } | undefined;
    const target = await startTarget((socket) => {
      ends = { local: `${socket.localPort}`, remote: `${socket.remotePort}` };
      socket.on("data", (bytes: Buffer) => parts.push(bytes));
      socket.on("end", () => socket.end());
    });
    const connections = makeConnections({ port: target.port, ...allowed, allow: [...allowed.allow], ...options });
    const stream = serve(connections, options.allowProxyProtocol === "allow" ? `127.0.0.1:${target.port}` : "sftp", {
      proxy,
    });
    stream.handler?.onData(Buffer.from("hello"));
    stream.handler?.onEnd();
    await stream.heard(/^end$/);
    expect(stream.consumed).toBe(5);
    stream.handler?.onFinished();
    return { received: Buffer.concat(parts), ends };
  }

  it("comes first, with the id of the connection, and counts for no byte of the stream", async () => {
    const { received } = await receivedBy(wanted);
    const parsed = parseProxyHeader(received);
    expect(parsed).toMatchObject({
      type: "header",
      header: { type: "proxied", version: 2, source: { port: 51_000 }, destination: { port: 443 } },
    });
    const { header, length } = parsed as Extract<typeof parsed, { type: "header" }>;
    const { authority, uniqueId, alpn } = header as Extract<typeof header, { type: "proxied" }>;
    expect([authority, uniqueId, alpn].map((bytes) => bytes && Buffer.from(bytes).toString())).toEqual([
      "sftp.example.com",
      "c-1",
      undefined,
    ]);
    expect(received.subarray(length).toString()).toBe("hello");
    expect(records).toMatchObject([{ code: "--", proxyProtocol: "v2", bytesIn: 5, partner: "192.0.2.1:5000" }]);
  });

  it.each<[OpenProxy, (ends: { local: string; remote: string } | undefined) => string]>([
    [[1, "203.0.113.7:51000", "198.51.100.20:443", "", ""], () => "PROXY TCP4 203.0.113.7 198.51.100.20 51000 443\r\n"],
    [[1, "[2001:db8::1]:1", "192.0.2.1:2", "", ""], () => "PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 1 2\r\n"],
    [[1, "", "", "", ""], (ends) => `PROXY TCP4 127.0.0.1 127.0.0.1 ${ends?.remote} ${ends?.local}\r\n`],
    [[2, "", "", "", ""], () => "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"],
  ])("is written as %j says", async (proxy, header) => {
    const { received, ends } = await receivedBy(proxy);
    expect(received.toString("latin1")).toBe(`${header(ends)}hello`);
  });

  it("may be allowed for the targets of `allow`", async () => {
    const { received } = await receivedBy([1, "192.0.2.1:1", "192.0.2.2:2", "", ""], {
      proxyProtocol: "deny",
      allowProxyProtocol: "allow",
    });
    expect(received.toString()).toBe("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nhello");
  });

  it.each<[string, string, OpenProxy, object]>([
    ["a service that does not allow it", "named", wanted, { proxyProtocol: "deny", allowProxyProtocol: "allow" }],
    ["a target of `allow` that does not allow it", "127.0.0.1:9", wanted, { allowProxyProtocol: "deny" }],
  ])("is refused for %s, and nothing is dialled", (_, target, proxy, options) => {
    let dials = 0;
    const dialNever = () => {
      dials += 1;
      return Promise.reject(new DialError("refused"));
    };
    const connections = makeConnections({ ...allowed, allow: [...allowed.allow], dial: dialNever, ...options });
    expect(serve(connections, target, { proxy }).calls).toEqual(["reset forbidden"]);
    expect(dials).toBe(0);
    expect(connections.forbidden).toBe(1);
    expect(records).toMatchObject([
      { level: 40, code: "PC", reason: "PROXY header not allowed by the agent", rule: "proxyProtocol: deny" },
    ]);
  });

  it.each<OpenProxy>([
    [2, "db.corp.example:1", "192.0.2.1:1", "", ""],
    [2, "192.0.2.1:1", "", "", ""],
    [2, "2001:db8::1:1", "192.0.2.1:1", "", ""],
    [1, "192.0.2.1:65536", "192.0.2.1:1", "", ""],
    [1, "192.0.2.1:1", "192.0.2.1:1\r\n", "", ""],
  ])("is refused where no header can be made of it: %j", (...proxy) => {
    const connections = makeConnections({ ...allowed, allow: [] });
    expect(serve(connections, "sftp", { proxy }).calls).toEqual(["reset forbidden"]);
    expect(records).toMatchObject([{ code: "PC", rule: "the edge names no addresses" }]);
  });
});
