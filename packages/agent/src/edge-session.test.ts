import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { dial, isSpecialAddress, parseIpAddress, Resolver } from "@sallyport/host";
import { CloseCode, type Hello, type Welcome } from "@sallyport/protocol";
import {
  connectTunnel,
  type LinkEnd,
  type LinkTransport,
  sendWelcome,
  TunnelConnectError,
  type TunnelConnectReason,
} from "@sallyport/tunnel";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { pollUntil, withDeadline } from "../../../test/support/deadline.ts";
import { HandWrittenEdge, type HandWrittenEdgeOptions } from "../../../test/support/hand-written-edge.ts";
import { startTcpServer, type TcpServer } from "../../../test/support/tcp-server.ts";
import { parseAllowRule } from "./config.ts";
import { RecordWriter } from "./connection-record.ts";
import { DialLimits } from "./dial-limits.ts";
import { EdgeSession } from "./edge-session.ts";
import { Policy } from "./policy.ts";
import { TargetConnections } from "./target-connections.ts";

const closers: (() => Promise<unknown> | void)[] = [];
let lines: Record<string, unknown>[];
const log = pino({ level: "debug" }, { write: (line: string) => lines.push(JSON.parse(line)) });

beforeEach(() => {
  lines = [];
});
afterEach(async () => {
  vi.useRealTimers();
  for (const close of closers.splice(0).toReversed()) await close();
});

async function startEdge(options: HandWrittenEdgeOptions = {}): Promise<HandWrittenEdge> {
  const edge = await HandWrittenEdge.start(options);
  closers.push(() => edge.stop());
  return edge;
}

async function startTarget(onConnection: (socket: Socket) => void): Promise<TcpServer> {
  const target = await startTcpServer(onConnection);
  closers.push(() => target.close());
  return target;
}

interface AgentOptions {
  readonly links?: number;
  readonly services?: Record<string, string>;
  readonly allow?: string[];
  readonly resolve?: (name: string) => Promise<string[]>;
  readonly connect?: (signal: AbortSignal) => Promise<LinkTransport>;
  readonly maxStreams?: number;
  readonly random?: () => number;
  readonly renewLinksMs?: number;
}

/** An agent's session with `edge`, and the connections that it serves. */
function startAgent(edge: { port: number } & Partial<HandWrittenEdge>, options: AgentOptions = {}) {
  const services = new Map(
    Object.entries(options.services ?? {}).map(([name, target]) => {
      const at = target.lastIndexOf(":");
      return [
        name,
        {
          target: { host: target.slice(0, at), port: Number(target.slice(at + 1)) },
          maxConnections: undefined,
          dialsPerSecond: undefined,
          proxyProtocol: "deny" as const,
        },
      ];
    }),
  );
  const connections = new TargetConnections({
    policy: new Policy({ services, allow: (options.allow ?? []).map(parseAllowRule) }),
    limits: new DialLimits({ maxConnections: 1_000, dialsPerSecond: 1_000, services }),
    resolver: options.resolve === undefined ? new Resolver() : { resolve: options.resolve },
    dial,
    timeouts: { connectMs: 2_000, idleMs: 60_000, halfCloseMs: 30_000 },
    records: new RecordWriter(log),
  });
  const session = new EdgeSession({
    address: { host: "127.0.0.1", port: edge.port },
    connect: options.connect ?? ((signal) => connectTo(edge as HandWrittenEdge, signal)),
    hello: {
      agent: "lan-agent-1",
      process: "0123456789abcdef0123456789abcdef",
      features: [],
      initialCredit: 16_384,
      maxStreams: options.maxStreams ?? 1_000,
      links: options.links ?? 2,
    },
    heartbeat: { intervalMs: 10_000, timeoutMs: 25_000 },
    backoff: { minMs: 20, maxMs: 50, ...(options.random === undefined ? {} : { random: options.random }) },
    ...(options.renewLinksMs === undefined ? {} : { renewLinksMs: options.renewLinksMs }),
    onOpen: (name, open, stream) => connections.serve(name, open, stream),
    log,
  });
  session.start();
  closers.push(() => session.close());
  return { session, connections };
}

function connectTo(edge: HandWrittenEdge, signal: AbortSignal): Promise<LinkTransport> {
  return connectTunnel({
    address: { host: "127.0.0.1", port: edge.port },
    certificate: edge.certificate.cert,
    client: "lan",
    token: edge.token,
    signal,
  });
}

/** A WELCOME to the session of `hello`, with what is to be wrong in it. */
function welcomeOf(hello: Hello, lie: Partial<Welcome>): Welcome {
  const { session } = hello;
  return { edge: "edge-by-hand", session, resumed: true, features: [], resumeTimeoutMs: 60_000, ...lie };
}

function said(message: string): Record<string, unknown>[] {
  return lines.filter(({ msg }) => msg === message);
}

describe("an agent's links", () => {
  it("come up together in one session, and serve it", async () => {
    const target = await startTarget((socket) => socket.pipe(socket));
    const edge = await startEdge();
    const { session } = startAgent(edge, { links: 3, services: { echo: `127.0.0.1:${target.port}` } });
    await edge.connected({ links: 3 });
    expect(edge.sessions).toHaveLength(1);
    expect(edge.hellos.map((hello) => hello.session)).toEqual(["", edge.session.id, edge.session.id]);
    await pollUntil(() => session.links === 3 || undefined, { what: "3 links at the agent" });
    expect(session).toMatchObject({ connected: true, edge: "edge-by-hand", sessionsStarted: 1 });
    const opened = edge.open("echo");
    expect(await opened.answer).toBe(`127.0.0.1:${target.port}`);
    opened.stream.write(Buffer.from("ping"));
    opened.stream.end();
    expect(await withDeadline(opened.end, { what: "end" })).toBe("finished");
    expect(opened.received().toString()).toBe("ping");
    expect(said("connected")).toMatchObject([{ edge: "edge-by-hand", address: `127.0.0.1:${edge.port}` }]);
    expect(JSON.stringify(lines)).not.toContain(edge.session.id);
  });

  it("are dialled again when they are cut, and streams go on where they were", async () => {
    const target = await startTarget((socket) => socket.pipe(socket));
    const edge = await startEdge();
    const { session } = startAgent(edge, { services: { echo: `127.0.0.1:${target.port}` } });
    await edge.connected({ links: 2 });
    const opened = edge.open("echo");
    await opened.answer;
    for (let round = 0; round < 3; round += 1) {
      opened.stream.write(Buffer.from(`round ${round} `));
      edge.cutLinks();
      await pollUntil(() => edge.hellos.length >= 2 * (round + 2) || undefined, { what: "both links again" });
      await edge.connected({ links: 2 });
    }
    opened.stream.end();
    expect(await withDeadline(opened.end, { what: "end" })).toBe("finished");
    expect(opened.received().toString()).toBe("round 0 round 1 round 2 ");
    expect(edge.sessions).toHaveLength(1);
    expect(session.linksLost).toBe(6);
    expect(target.acceptedConnections).toBe(1);
    expect(said("session resumed")).toHaveLength(3);
  });

  it("come back when the edge was down for a while, with one line about it", async () => {
    const edge = await startEdge();
    const { session } = startAgent(edge);
    await edge.connected({ links: 2 });
    await edge.goDown();
    await pollUntil(() => (session.connectFailures.get("refused") ?? 0) >= 6 || undefined, { what: "six attempts" });
    await edge.comeBack();
    await edge.connected({ links: 2 });
    expect(edge.sessions).toHaveLength(1);
    expect(said("not connected")).toMatchObject([{ reason: "refused", attempts: 1 }]);
    expect(said("last link lost; session waits")).toHaveLength(1);
  });

  it("serve with one when the edge refuses a second", async () => {
    const target = await startTarget((socket) => socket.end("hello"));
    const edge = await startEdge();
    const refused: CloseCode[] = [CloseCode.policy, CloseCode.sessionUnknown];
    edge.onHello = (link, hello) => {
      const code = hello.session === "" ? undefined : refused.shift();
      if (code === undefined) return hello.session !== "";
      link.close(code, "one is enough");
      return true;
    };
    const { session } = startAgent(edge, { links: 3, services: { hi: `127.0.0.1:${target.port}` } });
    await edge.connected({ links: 1 });
    await pollUntil(() => refused.length === 0 || undefined, { what: "both others refused" });
    const opened = edge.open("hi");
    await opened.answer;
    opened.stream.end();
    expect(await withDeadline(opened.end, { what: "end" })).toBe("finished");
    expect(session).toMatchObject({ links: 1, sessionsStarted: 1 });
  });
});

describe("links that are renewed", () => {
  it.each([1, 2])("are unseen by a running transfer, with %i of them", async (links) => {
    const target = await startTarget((socket) => socket.pipe(socket));
    const edge = await startEdge();
    const { session } = startAgent(edge, {
      links,
      renewLinksMs: 40,
      services: { echo: `127.0.0.1:${target.port}` },
    });
    await edge.connected({ links });
    const opened = edge.open("echo");
    await opened.answer;
    const sent: Buffer[] = [];
    await pollUntil(
      () => {
        const piece = Buffer.from(`piece ${sent.length} `);
        sent.push(piece);
        opened.stream.write(piece);
        expect(edge.session.driver.session.linkCount).toBeGreaterThanOrEqual(1);
        return edge.hellos.length >= links * 6 || undefined;
      },
      { what: "five renewals of each link" },
    );
    opened.stream.end();
    expect(await withDeadline(opened.end, { what: "end" })).toBe("finished");
    expect(opened.received().toString()).toBe(Buffer.concat(sent).toString());
    expect(edge.sessions).toHaveLength(1);
    expect([session.sessionsStarted, session.linksLost]).toEqual([1, 0]);
    expect([...said("link lost"), ...said("last link lost; session waits")]).toEqual([]);
  });

  it("stay when their successor cannot be made, and make way when it can", async () => {
    const edge = await startEdge();
    let refuse = false;
    const { session } = startAgent(edge, {
      links: 1,
      renewLinksMs: 40,
      connect: async (signal) => {
        if (refuse) throw new TunnelConnectError("refused");
        return connectTo(edge, signal);
      },
    });
    await edge.connected({ links: 1 });
    refuse = true;
    await pollUntil(() => (session.connectFailures.get("refused") ?? 0) >= 3 || undefined, { what: "three attempts" });
    expect(session.links).toBe(1);
    const hellos = edge.hellos.length;
    refuse = false;
    await pollUntil(() => edge.hellos.length > hellos + 1 || undefined, { what: "renewed" });
    await pollUntil(() => session.links === 1 || undefined, { what: "one link" });
    expect([edge.sessions.length, session.linksLost]).toEqual([1, 0]);
  });
});

describe("a session", () => {
  it.each([
    [
      "that the edge has forgotten",
      (edge: HandWrittenEdge) => edge.forgetSessions(),
      "DX tunnel session unknown to the edge",
    ],
    [
      "whose agent was replaced",
      (edge: HandWrittenEdge) => edge.session.driver.close(CloseCode.replaced, "replaced"),
      "DX agent replaced by a new process",
    ],
    [
      "whose token was revoked",
      (edge: HandWrittenEdge) => edge.session.driver.close(CloseCode.authentication, "token revoked"),
      "DX token of the agent revoked",
    ],
    [
      "that the edge shut down",
      (edge: HandWrittenEdge) => edge.session.driver.close(CloseCode.drain, "shutting down"),
      "LD shutdown",
    ],
  ])("%s resets its targets, says so, and another is begun", async (_, end, told) => {
    const closed: Promise<unknown>[] = [];
    const target = await startTarget((socket) => {
      socket.resume();
      closed.push(once(socket, "error"));
    });
    const edge = await startEdge();
    const { connections, session } = startAgent(edge, { services: { sink: `127.0.0.1:${target.port}` } });
    await edge.connected({ links: 2 });
    await edge.open("sink").answer;
    expect(connections.live.size).toBe(1);
    end(edge);
    edge.cutLinks();
    await edge.connected({ links: 2, sessions: 2 });
    await withDeadline(Promise.all(closed), { what: "target reset" });
    expect(closed).toHaveLength(1);
    expect(connections.live.size).toBe(0);
    expect(said("connection").map(({ code, reason }) => `${String(code)} ${String(reason)}`)).toEqual([told]);
    expect(session.sessionsStarted).toBe(2);
    expect(edge.hellos.filter((hello) => hello.session === "")).toHaveLength(2);
  });

  it.each([
    ["another session", { session: "f".repeat(32), resumed: true }],
    ["its session as if that began", { resumed: false }],
  ])("is not left for %s: the link that is welcomed to it is closed, and the others go on", async (_, lie) => {
    const target = await startTarget((socket) => socket.end("hello"));
    const edge = await startEdge();
    const closed = new Promise<LinkEnd>((resolve) => {
      edge.onHello = (link, hello) => {
        if (hello.session === "") return false;
        link.onClosed = resolve;
        sendWelcome(link, welcomeOf(hello, lie));
        return true;
      };
    });
    const { session } = startAgent(edge, { links: 2, services: { hi: `127.0.0.1:${target.port}` } });
    expect((await withDeadline(closed, { what: "close" })).code).toBe(CloseCode.protocol);
    await pollUntil(() => (session.connectFailures.get("protocol") ?? 0) >= 1 || undefined, { what: "lie noticed" });
    const opened = edge.open("hi");
    await opened.answer;
    opened.stream.end();
    expect(await withDeadline(opened.end, { what: "end" })).toBe("finished");
    expect(session).toMatchObject({ links: 1, sessionsStarted: 1 });
  });

  it("is not begun by a WELCOME that says it existed before", async () => {
    const edge = await startEdge();
    const closed = new Promise<LinkEnd>((resolve) => {
      edge.onHello = (link, hello) => {
        link.onClosed = resolve;
        sendWelcome(link, welcomeOf(hello, { session: "f".repeat(32), resumed: true }));
        return true;
      };
    });
    const { session } = startAgent(edge);
    expect((await withDeadline(closed, { what: "close" })).code).toBe(CloseCode.protocol);
    expect(session).toMatchObject({ hasSession: false, sessionsStarted: 0 });
  });

  it("tells the edge when the agent drains, and is closed without delay", async () => {
    const edge = await startEdge();
    const { session } = startAgent(edge);
    const side = await edge.connected({ links: 2 });
    session.drain();
    await pollUntil(() => side.goneAway.length > 0 || undefined, { what: "GO_AWAY" });
    const before = performance.now();
    await session.close();
    expect(performance.now() - before).toBeLessThan(1_000);
    await pollUntil(() => edge.links.every((link) => link.dead) || undefined, { what: "links closed" });
    expect(said("session closed")).toHaveLength(1);
    expect(said("not connected")).toHaveLength(0);
  });
});

describe("an attempt that is refused", () => {
  it.each<[TunnelConnectReason, number]>([
    ["authentication", 5_000],
    ["proof", 5_000],
    ["pin", 5_000],
    ["version", 30_000],
    ["refused", 0],
    ["proxy", 0],
  ])("for reason %s is repeated after %i ms and the jitter", async (reason, floorMs) => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    let attempts = 0;
    startAgent(
      { port: 1 },
      {
        links: 4,
        random: () => 1,
        connect: () => {
          attempts += 1;
          return Promise.reject(new TunnelConnectError(reason));
        },
      },
    );
    await vi.advanceTimersByTimeAsync(0);
    expect(attempts).toBe(1);
    await vi.advanceTimersByTimeAsync(floorMs + 19);
    expect(attempts).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(attempts).toBe(2);
    await vi.advanceTimersByTimeAsync(floorMs + 40 + 10 * (floorMs + 50));
    expect(attempts).toBe(13);
  });

  it("says what to do", async () => {
    startAgent({ port: 1 }, { connect: () => Promise.reject(new TunnelConnectError("proxy", "status 407")) });
    await pollUntil(() => said("not connected").length > 0 || undefined, { what: "line" });
    expect(said("not connected")[0]).toMatchObject({
      reason: "proxy",
      detail: "proxy refused the credentials (407); check proxy.credentialsFile",
    });
  });

  it("by a wrong token is told apart from an edge that is not there", async () => {
    const edge = await startEdge();
    const { session } = startAgent(edge, {
      connect: (signal) => connectTo(Object.assign(Object.create(edge), { token: Buffer.alloc(32, 7) }), signal),
    });
    await pollUntil(() => session.connectFailures.get("authentication") === 1 || undefined, { what: "refusal" });
    expect(edge.sessions).toHaveLength(0);
  });
});

describe("an edge that was taken over", () => {
  /** Loopback addresses where nobody must arrive. */
  const sentinelAddresses = ["127.0.0.1", "127.0.0.2", "127.0.0.53", "127.1.1.1", "127.255.255.254", "::1"];

  async function startSentinels(): Promise<{ port: number; connections: () => number }> {
    let arrived = 0;
    let port = 0;
    for (const host of sentinelAddresses) {
      const server = createServer((socket) => {
        arrived += 1;
        socket.destroy();
      });
      server.listen(port, host);
      // A machine may lack IPv6 or other loopback addresses than the first.
      const bound = await Promise.race([
        once(server, "listening").then(() => true),
        once(server, "error").then(() => false),
      ]);
      if (!bound) continue;
      port = (server.address() as { port: number }).port;
      closers.push(() => void server.close());
    }
    return { port, connections: () => arrived };
  }

  it("reaches none of the sentinels by any target it names, and what is allowed still works", async () => {
    const sentinels = await startSentinels();
    const { port } = sentinels;
    const target = await startTarget((socket) => socket.end("ok"));
    const edge = await startEdge();
    const asked: string[] = [];
    const { connections, session } = startAgent(edge, {
      services: { good: `127.0.0.1:${target.port}`, db: `db.corp.example:${port}`, web: `web.corp.example:${port}` },
      // As wide as an operator may be careless.
      allow: [`0.0.0.0/0:${port}`, `[::/0]:${port}`, `intranet.example:*`],
      resolve: (name) => {
        asked.push(name);
        const answers = new Map([
          ["web.corp.example", ["0.0.0.0", "::", "169.254.169.254"]],
          ["v6.example", ["::1"]],
          ["mapped.example", ["::ffff:127.0.0.1"]],
          ["meta.example", ["169.254.169.254", "fd00:ec2::254"]],
          ["translated.example", ["64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1"]],
        ]);
        return Promise.resolve(answers.get(name) ?? ["127.0.0.1", "127.1.1.1"]);
      },
    });
    await edge.connected({ links: 2 });
    const loopback = [
      "127.0.0.1",
      "127.0.0.2",
      "127.0.0.53",
      "127.1.1.1",
      "127.255.255.254",
      "0.0.0.0",
      "169.254.169.254",
    ];
    const spelled = [
      "127.1",
      "127.0.1",
      "0",
      "2130706433",
      "0x7f000001",
      "0x7f.1",
      "017700000001",
      "0177.0.0.1",
      "127.0.0.01",
    ];
    const v6 = [
      "::1",
      "::",
      "::ffff:127.0.0.1",
      "::ffff:7f00:1",
      "64:ff9b::7f00:1",
      "2002:7f00:1::",
      "fe80::1",
      "::127.0.0.1",
    ];
    const names = [
      "localhost",
      "v6.example",
      "mapped.example",
      "meta.example",
      "translated.example",
      "intranet.example",
    ];
    const smuggled = [
      ...[...loopback, ...spelled, ...names].map((host) => `${host}:${port}`),
      ...v6.map((host) => `[${host}]:${port}`),
      "db",
      "web",
      "DB",
      "db ",
      " db",
      "../db",
      "./good",
      "good/../db",
      "good:22",
      "db\t",
      "good,db",
      "*",
      "",
      "__proto__",
      "constructor",
      "toString",
      "prototype",
      "services",
      "allow",
      `__proto__:${port}`,
      `constructor:${port}`,
      `http://127.0.0.1:${port}`,
      `tcp://localhost:${port}/`,
      `127.0.0.1:${port}/`,
      `127.0.0.1:${port}#`,
      `user@127.0.0.1:${port}`,
      `good@127.0.0.1:${port}`,
      `127.0.0.1:0${port}`,
      `127.0.0.1 :${port}`,
      `127.0.0.1:+${port}`,
      `10.0.0.1:${port},127.0.0.1:${port}`,
      `{"host":"127.0.0.1","port":${port}}`,
      `host=127.0.0.1;port=${port}`,
      `localhost.:${port}`,
      `LOCALHOST:${port}`,
      `%31%32%37.0.0.1:${port}`,
      `unix:/run/x.sock`,
      `127.0.0.1`,
      `:${port}`,
    ].filter((target) => /^[\x20-\x7e]{1,300}$/.test(target));
    expect(smuggled.length).toBeGreaterThan(40);
    const answers = await Promise.all(smuggled.map(async (target) => [target, await edge.open(target).answer]));
    const wrong = answers.filter(([, answer]) => answer !== "reset forbidden");
    expect(wrong).toEqual([]);
    expect(sentinels.connections()).toBe(0);
    expect(connections.live.size).toBe(0);
    expect(connections.forbidden).toBe(smuggled.length);
    // A number is never asked for as if it were a name.
    expect(asked.filter((name) => /^[0-9.x]+$/i.test(name))).toEqual([]);
    expect(said("connection").filter(({ code }) => code === "PC")).toHaveLength(smuggled.length);
    const good = edge.open("good");
    expect(await good.answer).toBe(`127.0.0.1:${target.port}`);
    expect(session.sessionsStarted).toBe(1);
    // The sentinels would have noticed.
    const probe = connect(port, "127.0.0.1");
    await once(probe, "close");
    expect(sentinels.connections()).toBe(1);
    expect(isSpecialAddress(parseIpAddress("127.255.255.254")!)).toBe("loopback");
  });

  it("cannot make the agent dial faster than its limit", async () => {
    const target = await startTarget((socket) => socket.resume());
    const edge = await startEdge();
    const { connections } = startAgent(edge, { services: { sink: `127.0.0.1:${target.port}` }, maxStreams: 10_000 });
    await edge.connected({ links: 2 });
    const answers: Promise<string>[] = [];
    for (let count = 0; count < 3_000; count += 1) {
      const opened = edge.open("sink");
      answers.push(opened.answer);
    }
    const all = await Promise.all(answers);
    const refused = all.filter((answer) => answer === "reset limit");
    expect(target.acceptedConnections).toBeLessThanOrEqual(all.length - refused.length);
    expect(refused.length).toBeGreaterThan(1_000);
    expect(connections.dialErrors.limit).toBe(refused.length);
    edge.session.driver.close(CloseCode.drain, "enough");
  });
});
