import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect as connectTcp, createServer as createTcpServer, type Server, type Socket } from "node:net";
import {
  type ConnectionOptions,
  connect as connectTls,
  createServer as createTlsServer,
  type Server as TlsServer,
  type TLSSocket,
} from "node:tls";
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { withDeadline } from "../../../test/support/deadline.ts";
import { makeSelfSignedCertificate, type SelfSignedCertificate } from "../../edge/src/self-signed-certificate.ts";
import {
  agentProof,
  createNonce,
  exportChannelBinding,
  formatAgentHello,
  parseAgentHello,
  parseEdgeHello,
} from "./authentication.ts";
import { createToken, deriveVerifier, encodeToken } from "./token.ts";
import { connectTunnel } from "./tunnel-client.ts";
import { type TunnelPeer, TunnelServer, type TunnelServerEvent, type TunnelServerOptions } from "./tunnel-server.ts";

const token = createToken();
const verifier = deriveVerifier(token, "lan");
let own: SelfSignedCertificate;
let other: SelfSignedCertificate;
beforeAll(async () => {
  own = await makeSelfSignedCertificate({ host: "edge.example.com" });
  other = await makeSelfSignedCertificate({ host: "edge.example.com" });
});

let server: TunnelServer;
let port: number;
let peers: TunnelPeer[];
let events: TunnelServerEvent[];
let clock: number;
const opened: (Socket | TLSSocket | Server | TlsServer)[] = [];

async function startServer(options: Partial<TunnelServerOptions> = {}): Promise<void> {
  peers = [];
  events = [];
  clock = 0;
  server = new TunnelServer({
    listen: { host: "127.0.0.1", port: 0 },
    tls: { key: own.key, cert: own.certificate },
    credentials: (client) => (client === "lan" ? [verifier] : []),
    onPeer: (peer) => {
      peers.push(peer);
    },
    onEvent: (event) => {
      events.push(event);
    },
    now: () => clock,
    ...options,
  });
  ({ port } = await server.listen());
}

beforeEach(() => startServer());
afterEach(async () => {
  for (const peer of peers) {
    peer.webSocket.terminate();
  }
  for (const resource of opened.splice(0)) {
    if ("destroy" in resource) {
      resource.destroy();
    } else {
      resource.close();
    }
  }
  await server.close();
  if (server.pending !== 0) {
    throw new Error("a place was not given back");
  }
});

function tcp(): Socket {
  const socket = connectTcp(port, "127.0.0.1");
  socket.on("error", () => undefined);
  opened.push(socket);
  return socket;
}

/** The TCP socket below each TLS socket, because Node can reset only that. */
const below = new WeakMap<TLSSocket, Socket>();

/** A TLS client with every check turned off. */
async function tls(
  options: ConnectionOptions & { port?: number; localAddress?: string; allowHalfOpen?: boolean } = {},
): Promise<TLSSocket> {
  const { port: to = port, localAddress, ...rest } = options;
  const raw = connectTcp({ host: "127.0.0.1", port: to, ...(localAddress === undefined ? {} : { localAddress }) });
  const socket = connectTls({ socket: raw, rejectUnauthorized: false, ...rest });
  raw.on("error", () => undefined);
  socket.on("error", () => undefined);
  opened.push(socket);
  below.set(socket, raw);
  await once(socket, "secureConnect", { signal: AbortSignal.timeout(10_000) });
  return socket;
}

function reset(socket: TLSSocket): void {
  below.get(socket)?.resetAndDestroy();
}

interface RequestParts {
  authorization?: string | undefined;
  path?: string;
  method?: string;
  remove?: RegExp;
  replace?: [string, string];
}

function request({ authorization, path = "/sallyport/v1", method = "GET", remove, replace }: RequestParts): string {
  const lines = [
    `${method} ${path} HTTP/1.1`,
    "Host: edge.example.com",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    `Sec-WebSocket-Key: ${randomBytes(16).toString("base64")}`,
    "Sec-WebSocket-Protocol: sallyport.v1",
    ...(authorization === undefined ? [] : [`Authorization: ${authorization}`]),
  ].filter((line) => remove === undefined || !remove.test(line));
  const text = `${lines.join("\r\n")}\r\n\r\n`;
  return replace === undefined ? text : text.replace(...replace);
}

function authorize(socket: TLSSocket, options: { client?: string; key?: Buffer; versions?: number[] } = {}): string {
  const { client = "lan", key = verifier.key, versions = [1] } = options;
  const nonce = createNonce();
  const mac = agentProof(key, { exporter: exportChannelBinding(socket), client, versions, agentNonce: nonce });
  return formatAgentHello({ client, nonce, versions, mac });
}

async function closed(socket: Socket): Promise<void> {
  const closing = new Promise<void>((resolve) => {
    if (socket.closed) {
      resolve();
    }
    socket.once("close", () => resolve());
  });
  await withDeadline(closing, { what: "the connection ends" });
}

/** Everything until the connection is gone, however it ends. */
async function readAll(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  await closed(socket);
  return Buffer.concat(chunks);
}

async function exchange(text: (socket: TLSSocket) => string): Promise<string> {
  const socket = await tls();
  socket.write(text(socket));
  return (await readAll(socket)).toString("latin1");
}

async function refusals(count: number): Promise<TunnelServerEvent[]> {
  await vi.waitFor(() => expect(events.length).toBeGreaterThanOrEqual(count), { timeout: 10_000, interval: 5 });
  return events;
}

/** The response line of an agent by hand; the connection stays open. */
async function upgraded(behind: Buffer = Buffer.alloc(0)): Promise<{ socket: TLSSocket; head: string }> {
  const socket = await tls();
  const text = request({ authorization: authorize(socket) });
  socket.write(Buffer.concat([Buffer.from(text), behind]));
  const [chunk] = (await once(socket, "data")) as [Buffer];
  return { socket, head: chunk.toString("latin1") };
}

/** A client's frame with a zero masking key. */
function frame(firstByte: number, payload: Buffer): Buffer {
  const { length } = payload;
  const header =
    length < 126
      ? Buffer.from([firstByte, 0x80 | length, 0, 0, 0, 0])
      : Buffer.from([firstByte, 0x80 | 126, length >> 8, length & 0xff, 0, 0, 0, 0]);
  return Buffer.concat([header, payload]);
}

async function honestAgent() {
  return connectTunnel({ address: { host: "127.0.0.1", port }, certificate: own.certificate, client: "lan", token });
}

describe("an agent with the right token", () => {
  test("becomes a peer with its client, token, address and version", async () => {
    const agent = await honestAgent();
    expect(peers).toMatchObject([{ client: "lan", tokenId: verifier.tokenId, remoteAddress: "127.0.0.1", version: 1 }]);
    expect(peers[0]!.remotePort).toBe(agent.socket.localPort);
    expect(server).toMatchObject({ accepted: 1, authenticated: 1, pending: 0 });
    expect(events).toEqual([]);
    agent.webSocket.terminate();
  });

  test("speaks TLS 1.3 with AES-128-GCM", async () => {
    const agent = await honestAgent();
    expect(agent.socket.getProtocol()).toBe("TLSv1.3");
    expect(agent.socket.getCipher().standardName).toBe("TLS_AES_128_GCM_SHA256");
    agent.webSocket.terminate();
  });

  test("may use either of two tokens", async () => {
    const second = createToken();
    await server.close();
    await startServer({ credentials: () => [verifier, deriveVerifier(second, "lan")] });
    for (const each of [token, second]) {
      const agent = await connectTunnel({
        address: { host: "127.0.0.1", port },
        certificate: own.certificate,
        client: "lan",
        token: each,
      });
      agent.webSocket.terminate();
    }
    expect(peers.map(({ tokenId }) => tokenId)).toEqual([verifier.tokenId, deriveVerifier(second, "lan").tokenId]);
  });

  test("opens 16 links at once", async () => {
    const agents = await Promise.all(Array.from({ length: 16 }, honestAgent));
    expect(peers).toHaveLength(16);
    expect(events).toEqual([]);
    for (const agent of agents) {
      agent.webSocket.terminate();
    }
  });

  test("gets the newest version that both sides speak", async () => {
    await server.close();
    await startServer({ versions: [1, 2, 3] });
    const socket = await tls();
    socket.write(request({ authorization: authorize(socket, { versions: [2, 9, 3, 1] }) }));
    const [chunk] = (await once(socket, "data")) as [Buffer];
    expect(parseEdgeHello(/^Sallyport-Authentication: (.*)\r$/m.exec(chunk.toString())?.[1])?.version).toBe(3);
    expect(peers).toMatchObject([{ version: 3 }]);
  });

  test("loses nothing that it sends right behind its request", async () => {
    const received: string[] = [];
    await server.close();
    await startServer({
      onPeer: (peer) => {
        peers.push(peer);
        peer.webSocket.on("message", (data: Buffer) => received.push(data.toString()));
      },
    });
    await upgraded(Buffer.concat([frame(0x82, Buffer.from("one")), frame(0x82, Buffer.from("two"))]));
    await vi.waitFor(() => expect(received).toEqual(["one", "two"]));
  });
});

describe("authentication", () => {
  async function refusalOf(authorization: (socket: TLSSocket) => string | undefined): Promise<string> {
    return exchange((socket) => request({ authorization: authorization(socket) }));
  }

  const cases: [string, (socket: TLSSocket) => string | undefined][] = [
    ["a wrong token", (socket) => authorize(socket, { key: deriveVerifier(createToken(), "lan").key })],
    ["an unknown client", (socket) => authorize(socket, { client: "nobody" })],
    ["the token of another client", (socket) => authorize(socket, { key: deriveVerifier(token, "other").key })],
    ["no proof at all", () => undefined],
    ["another scheme", () => "Basic bGFuOmxhbg=="],
    ["the token itself", () => `Bearer ${encodeToken(token)}`],
    ["a malformed proof", (socket) => authorize(socket).replace('client="', 'client=" ')],
    ["a client called __proto__", (socket) => authorize(socket, { client: "__proto__" })],
    [
      "the edge's MAC for the agent's transcript",
      (socket) => {
        // What a reflecting peer would have: a MAC under the right verifier, but of the other side.
        const hello = parseAgentHello(authorize(socket))!;
        return formatAgentHello({ ...hello, mac: Buffer.from(verifier.key) });
      },
    ],
  ];

  test("every refusal is the same, byte for byte, and the connection is closed", async () => {
    const responses: string[] = [];
    for (const [, authorization] of cases) {
      clock += 600_000;
      responses.push(await refusalOf(authorization));
    }
    expect(new Set(responses)).toEqual(
      new Set([
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Sallyport\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
      ]),
    );
    const reasons = (await refusals(cases.length)).map(({ reason }) => reason);
    expect(reasons).toEqual(cases.map(() => "authentication"));
    expect(peers).toEqual([]);
    expect(JSON.stringify(events)).not.toContain(encodeToken(token));
  });

  test("a version that is not offered shows only to those that have authenticated", async () => {
    const unknown = await exchange((socket) =>
      request({ authorization: authorize(socket, { client: "nobody", versions: [99] }) }),
    );
    const known = await exchange((socket) => request({ authorization: authorize(socket, { versions: [99] }) }));
    expect(unknown).toMatch(/^HTTP\/1.1 401 /);
    expect(known).toMatch(/^HTTP\/1.1 426 /);
    expect(known).toContain("Sallyport-Versions: 1\r\n");
    expect((await refusals(2)).map(({ reason, client }) => [reason, client])).toEqual([
      ["authentication", "nobody"],
      ["version", "lan"],
    ]);
  });

  test("a request that was recorded is refused on every other connection", async () => {
    const first = await tls();
    const recorded = request({ authorization: authorize(first) });
    first.write(recorded);
    expect(String((await once(first, "data"))[0])).toMatch(/^HTTP\/1.1 101 /);

    expect(await exchange(() => recorded)).toMatch(/^HTTP\/1.1 401 /);
    expect(peers).toHaveLength(1);
  });

  test("a revoked token is refused from then on", async () => {
    let verifiers = [verifier];
    await server.close();
    await startServer({ credentials: () => verifiers });
    const { head } = await upgraded();
    expect(head).toMatch(/^HTTP\/1.1 101 /);
    verifiers = [];
    expect(await refusalOf((socket) => authorize(socket))).toMatch(/^HTTP\/1.1 401 /);
  });
});

describe("a relay in the middle with another certificate", () => {
  let relayPort: number;
  let seen: Buffer[];
  beforeEach(async () => {
    seen = [];
    const relay = createTlsServer({ key: other.key, cert: other.certificate }, (near) => {
      near.on("error", () => undefined);
      const far = connectTls({ host: "127.0.0.1", port, rejectUnauthorized: false });
      far.on("error", () => undefined);
      opened.push(near, far);
      near.on("data", (chunk: Buffer) => seen.push(chunk));
      near.pipe(far).pipe(near);
    });
    relay.on("tlsClientError", () => undefined);
    opened.push(relay);
    relay.listen(0, "127.0.0.1");
    await once(relay, "listening");
    relayPort = (relay.address() as { port: number }).port;
  });

  test("is refused by the agent's pin before it sees a byte of the request", async () => {
    const address = { host: "127.0.0.1", port: relayPort };
    await expect(connectTunnel({ address, certificate: own.certificate, client: "lan", token })).rejects.toMatchObject({
      reason: "pin",
    });
    expect(Buffer.concat(seen)).toHaveLength(0);
    expect(peers).toEqual([]);
  });

  test("gains nothing where certificates are not checked: the proof does not hold at the edge", async () => {
    const socket = await tls({ port: relayPort });
    socket.write(request({ authorization: authorize(socket) }));
    expect((await readAll(socket)).toString()).toMatch(/^HTTP\/1.1 401 /);
    expect(Buffer.concat(seen).toString()).toMatch(/^GET \/sallyport\/v1 /);
    expect(peers).toEqual([]);
  });
});

describe("requests that are no tunnel", () => {
  test.each<[string, RequestParts, number]>([
    ["another path", { path: "/" }, 404],
    ["a query", { path: "/sallyport/v1?x=1" }, 404],
    ["another method", { method: "POST" }, 404],
    ["no upgrade", { remove: /^(Connection|Upgrade)/ }, 426],
    ["no upgrade on another path", { remove: /^(Connection|Upgrade)/, path: "/metrics" }, 404],
    ["another subprotocol", { replace: ["sallyport.v1\r", "sallyport.v2\r"] }, 400],
    ["no subprotocol", { remove: /^Sec-WebSocket-Protocol/ }, 400],
    ["no key", { remove: /^Sec-WebSocket-Key/ }, 400],
    ["another WebSocket version", { replace: ["Version: 13", "Version: 7"] }, 400],
  ])("%s", async (_name, parts, status) => {
    const response = await exchange((socket) => request({ ...parts, authorization: authorize(socket) }));
    expect(response).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(response).toMatch(/^Connection: close/im);
    expect(peers).toEqual([]);
    expect(await refusals(1)).toHaveLength(1);
  });

  test("learn nothing of WebSocket before they authenticate", async () => {
    const response = await exchange(() => request({ remove: /^Sec-WebSocket/ }));
    expect(response).toMatch(/^HTTP\/1.1 401 /);
  });

  test("a body is not waited for", async () => {
    const response = await exchange(() => "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc");
    expect(response).toMatch(/^HTTP\/1.1 404 /);
  });

  test("a second request on one connection is not read", async () => {
    const response = await exchange(() => "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n");
    expect(response.match(/HTTP\/1.1/g)).toHaveLength(1);
  });
});

describe("what is not TLS 1.3 with HTTP/1.1 is closed without a word", () => {
  test("TLS 1.2", async () => {
    await expect(tls({ maxVersion: "TLSv1.2" })).rejects.toMatchObject({
      code: "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION",
    });
    expect(await refusals(1)).toMatchObject([{ reason: "tls", detail: "ERR_SSL_UNSUPPORTED_PROTOCOL" }]);
  });

  test.each<[string, string | Buffer]>([
    ["plain HTTP", "GET /sallyport/v1 HTTP/1.1\r\nHost: edge\r\n\r\n"],
    ["SSH", "SSH-2.0-OpenSSH_9.2\r\n"],
    ["random bytes", randomBytes(4_096)],
    ["a TLS record that is too long", Buffer.from([0x16, 3, 1, 0xff, 0xff, 1, 0, 0, 0])],
  ])("%s", async (_name, bytes) => {
    const socket = tcp();
    socket.write(bytes);
    const answer = await readAll(socket);
    // At most a TLS alert.
    expect(answer.length).toBeLessThanOrEqual(7);
    expect(answer.toString()).not.toContain("HTTP");
    expect(await refusals(1)).toHaveLength(1);
  });

  test.each<[string, string]>([
    ["HTTP/2 inside TLS", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ["binary inside TLS", "\0\u0001\u0002\u0003"],
    ["headers of 9 KiB", `GET /sallyport/v1 HTTP/1.1\r\nX: ${"a".repeat(9_216)}\r\n\r\n`],
    ["two lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"],
  ])("%s", async (_name, text) => {
    expect(await exchange(() => text)).toBe("");
    expect(await refusals(1)).toMatchObject([{ reason: "http" }]);
    // Nobody does this by mistake.
    expect(await exchange(() => text).catch((error: NodeJS.ErrnoException) => error.code)).toBe("ECONNRESET");
    expect(events.at(-1)).toMatchObject({ reason: "penalty" });
  });

  test("no session is resumed", async () => {
    const first = await tls();
    let session: Buffer | undefined;
    first.on("session", (offered: Buffer) => {
      session = offered;
    });
    first.write(request({ path: "/" }));
    await readAll(first);
    expect(session).toBeDefined();
    const second = await tls({ session });
    expect(second.isSessionReused()).toBe(false);
  });
});

describe("silence", () => {
  const clientHello = async () => {
    // The first flight of a client, taken from a connection to nowhere in particular.
    const sink = createTcpServer();
    opened.push(sink);
    sink.listen(0, "127.0.0.1");
    await once(sink, "listening");
    const client = connectTls({ host: "127.0.0.1", port: (sink.address() as { port: number }).port });
    client.on("error", () => undefined);
    opened.push(client);
    const [near] = (await once(sink, "connection")) as [Socket];
    opened.push(near);
    return ((await once(near, "data")) as [Buffer])[0];
  };

  const stages: [string, () => Promise<Socket>][] = [
    ["before TLS", async () => tcp()],
    [
      "in the middle of the client hello",
      async () => {
        const socket = tcp();
        socket.write((await clientHello()).subarray(0, 100));
        return socket;
      },
    ],
    [
      "after the client hello",
      async () => {
        const socket = tcp();
        socket.write(await clientHello());
        return socket;
      },
    ],
    ["after TLS", () => tls()],
    [
      "in the middle of the headers",
      async () => {
        const socket = await tls();
        socket.write(request({ authorization: authorize(socket) }).slice(0, -10));
        return socket;
      },
    ],
    [
      "in the middle of a request line",
      async () => {
        const socket = await tls();
        socket.write("GE");
        return socket;
      },
    ],
  ];

  test.each(stages)("%s ends after the stage's time", async (_name, open) => {
    await server.close();
    await startServer({ limits: { handshakeTimeoutMs: 150, requestTimeoutMs: 150 } });
    const socket = await open();
    const since = performance.now();
    await readAll(socket);
    expect(performance.now() - since).toBeLessThan(1_500);
    expect(await refusals(1)).toMatchObject([{ reason: "timeout" }]);
  });

  test("that is broken by single bytes ends all the same", async () => {
    await server.close();
    await startServer({ limits: { handshakeTimeoutMs: 400, requestTimeoutMs: 400 } });
    const [hello, socket] = [await clientHello(), tcp()];
    const encrypted = await tls();
    const since = performance.now();
    let sent = 0;
    const drip = setInterval(() => {
      socket.write(hello.subarray(sent, sent + 1));
      encrypted.write("GET /".charAt(sent) || "a");
      sent++;
    }, 20);
    await Promise.all([readAll(socket), readAll(encrypted)]);
    clearInterval(drip);
    expect(performance.now() - since).toBeLessThan(2_000);
    expect(await refusals(2)).toMatchObject([{ reason: "timeout" }, { reason: "timeout" }]);
  });

  test("at every stage is gone within six seconds with the limits that are shipped", async () => {
    await Promise.all(
      stages.map(async ([, open]) => {
        const socket = await open();
        const since = performance.now();
        await readAll(socket);
        const elapsedMs = performance.now() - since;
        expect(elapsedMs).toBeGreaterThan(4_000);
        expect(elapsedMs).toBeLessThan(6_000);
      }),
    );
    await refusals(stages.length);
    expect(server.refused.timeout).toBe(stages.length);
  }, 15_000);

  test("of a peer that does not take its refusal ends as well", async () => {
    await server.close();
    await startServer({ limits: { requestTimeoutMs: 200 } });
    const socket = await tls({ allowHalfOpen: true });
    socket.pause();
    socket.write(request({}));
    await refusals(1);
    expect(server.pending).toBe(0);
  });
});

describe("a reset", () => {
  test.each<[string, () => Promise<void>]>([
    [
      "before TLS",
      async () => {
        const socket = tcp();
        await once(socket, "connect");
        socket.resetAndDestroy();
      },
    ],
    [
      "in the middle of the client hello",
      async () => {
        const socket = tcp();
        socket.write(Buffer.from([0x16, 3, 1, 2, 0, 1]), () => socket.resetAndDestroy());
        await closed(socket);
      },
    ],
    [
      "right after TLS",
      async () => {
        reset(await tls());
      },
    ],
    [
      "in the middle of the headers",
      async () => {
        const socket = await tls();
        socket.write("GET /sallyport/v1 HTTP/1.1\r\nHost:", () => reset(socket));
        await closed(socket);
      },
    ],
    [
      "right after a request that is refused",
      async () => {
        const socket = await tls();
        socket.write(request({}), () => reset(socket));
        await closed(socket);
      },
    ],
    [
      "right after a request that is no upgrade",
      async () => {
        const socket = await tls();
        socket.write("GET / HTTP/1.1\r\nHost: x\r\n\r\n", () => reset(socket));
        await closed(socket);
      },
    ],
  ])("%s leaves nothing behind", async (_name, act) => {
    await act();
    await refusals(1);
    expect(server.pending).toBe(0);
    const agent = await honestAgent();
    agent.webSocket.terminate();
  });

  test("right after a good request, many times, breaks nothing", async () => {
    for (let round = 0; round < 20; round++) {
      // A reset that overtakes the request counts as silence.
      clock += 1_000;
      const socket = await tls();
      socket.write(request({ authorization: authorize(socket) }), () => reset(socket));
      await closed(socket);
    }
    await vi.waitFor(() => expect(server.authenticated + events.length).toBe(20), { timeout: 5_000 });
    expect(server.pending).toBe(0);
    const agent = await honestAgent();
    agent.webSocket.terminate();
  });

  test("of a peer shows at its WebSocket", async () => {
    const { socket } = await upgraded();
    const closing = once(peers[0]!.webSocket, "close");
    reset(socket);
    expect((await closing)[0]).toBe(1006);
  });
});

describe("limits before authentication", () => {
  test("a source with too many silent connections is refused before TLS, an agent elsewhere is not", async () => {
    const silent = Array.from({ length: 16 }, tcp);
    await vi.waitFor(() => expect(server.pending).toBe(16));
    expect(await readAll(tcp())).toHaveLength(0);
    expect(await refusals(1)).toMatchObject([{ reason: "source_limit", remoteAddress: "127.0.0.1" }]);
    await tls({ localAddress: "127.0.0.2" });
    for (const socket of silent) {
      socket.destroy();
    }
  });

  test("a source that authenticated before gets in while strangers fill the port", async () => {
    const limits = { maxPending: 8, reservedForKnown: 2, maxPerSource: 6 };
    await server.close();
    await startServer({ limits });
    (await honestAgent()).webSocket.terminate();
    const strangers = Array.from({ length: 10 }, (_, index) => {
      const socket = connectTcp({ host: "127.0.0.1", port, localAddress: `127.0.0.${10 + index}` });
      socket.on("error", () => undefined);
      opened.push(socket);
      return socket;
    });
    await refusals(4);
    expect(events).toMatchObject(Array.from({ length: 4 }, () => ({ reason: "limit" })));
    const since = performance.now();
    const agent = await honestAgent();
    expect(performance.now() - since).toBeLessThan(2_000);
    agent.webSocket.terminate();
    for (const stranger of strangers) {
      stranger.destroy();
    }
  });

  test("three wrong proofs close the port for their source, loopback or not, until the time has passed", async () => {
    for (let attempt = 0; attempt < 3; attempt++) {
      await exchange(() => request({}));
    }
    await refusals(3);
    await expect(honestAgent()).rejects.toMatchObject({ reason: "refused" });
    expect(events.at(-1)).toMatchObject({ reason: "penalty" });
    expect(server.refused).toMatchObject({ authentication: 3, penalty: 1 });
    clock = 14_999;
    await expect(honestAgent()).rejects.toMatchObject({ reason: "refused" });
    clock = 15_000;
    (await honestAgent()).webSocket.terminate();
  });

  test("an agent that connects and leaves all day is never punished", async () => {
    for (let round = 0; round < 30; round++) {
      const agent = await honestAgent();
      agent.webSocket.terminate();
    }
    expect(server.punishedSources).toBe(0);
    expect(server.authenticated).toBe(30);
  });

  test("a peer that breaks the protocol after it authenticated can be punished", async () => {
    (await honestAgent()).webSocket.terminate();
    server.punish("::ffff:127.0.0.1", "protocol");
    await expect(honestAgent()).rejects.toMatchObject({ reason: "refused" });
  });
});

describe("a peer's WebSocket", () => {
  test.each<[string, Buffer, number]>([
    ["a message larger than a frame of the protocol", frame(0x82, Buffer.alloc(16_377)), 1009],
    ["a message in two fragments", Buffer.concat([frame(0x02, Buffer.from("a")), frame(0x80, Buffer.from("b"))]), 1008],
    ["an unmasked message", Buffer.from([0x82, 1, 65]), 1002],
    ["compression", frame(0xc2, Buffer.from("a")), 1002],
    ["a reserved opcode", frame(0x83, Buffer.from("a")), 1002],
    ["a long control frame", frame(0x89, Buffer.alloc(126)), 1002],
    ["a stray continuation", frame(0x80, Buffer.from("a")), 1002],
  ])("is closed by %s", async (_name, bytes, code) => {
    const messages: unknown[] = [];
    await server.close();
    await startServer({
      onPeer: (peer) => {
        peers.push(peer);
        peer.webSocket.on("message", (data) => messages.push(data));
      },
    });
    const { socket } = await upgraded();
    const closing = once(socket, "data");
    socket.write(bytes);
    const [chunk] = (await closing) as [Buffer];
    expect(chunk[0]).toBe(0x88);
    expect(chunk.readUInt16BE(2)).toBe(code);
    expect(messages).toEqual([]);
    await once(peers[0]!.webSocket, "close");
  });

  test("takes a message of the greatest size in one piece", async () => {
    const { socket } = await upgraded();
    const received = once(peers[0]!.webSocket, "message");
    socket.write(frame(0x82, Buffer.alloc(16_376, 7)));
    expect(((await received) as [Buffer])[0]).toHaveLength(16_376);
  });

  test("is cut when it is flooded with pings by a peer that does not read", async () => {
    const { socket } = await upgraded();
    socket.pause();
    const cut = once(peers[0]!.webSocket, "close", { signal: AbortSignal.timeout(20_000) });
    const pings = Buffer.concat(Array.from({ length: 500 }, () => frame(0x89, Buffer.alloc(125))));
    let ended = false;
    const flood = () => {
      if (!ended && !socket.destroyed) {
        socket.write(pings, flood);
      }
    };
    flood();
    await cut;
    ended = true;
    expect(peers[0]!.webSocket.bufferedAmount).toBeLessThan(1_000_000);
  });
});

describe("the server", () => {
  test("takes a new certificate for new connections, and keeps the old one when the new is unusable", async () => {
    const before = await honestAgent();
    server.setTls({ key: other.key, cert: other.certificate });
    await expect(honestAgent()).rejects.toMatchObject({ reason: "pin" });
    expect(before.webSocket.readyState).toBe(before.webSocket.OPEN);
    const options = { address: { host: "127.0.0.1", port }, client: "lan", token };
    const after = await connectTunnel({ ...options, certificate: other.certificate });
    expect(() => server.setTls({ key: own.key, cert: other.certificate })).toThrow(
      expect.objectContaining({ code: "ERR_OSSL_X509_KEY_VALUES_MISMATCH" }),
    );
    const last = await connectTunnel({ ...options, certificate: other.certificate });
    await expect(tls({ maxVersion: "TLSv1.2" })).rejects.toMatchObject({
      code: "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION",
    });
    for (const agent of [before, after, last]) {
      agent.webSocket.terminate();
    }
  });

  test("closes: the port is free, strangers are cut, peers stay", async () => {
    const agent = await honestAgent();
    const stranger = tcp();
    await vi.waitFor(() => expect(server.pending).toBe(1));
    await server.close();
    await readAll(stranger);
    await expect(honestAgent()).rejects.toMatchObject({ reason: "refused" });
    const echoed = once(peers[0]!.webSocket, "message");
    agent.webSocket.send("still here");
    expect(String(((await echoed) as [Buffer])[0])).toBe("still here");
    agent.webSocket.terminate();
  });

  test("closes in the middle of many handshakes, and again", async () => {
    const strangers = Array.from({ length: 16 }, () => tls().catch(() => undefined));
    await vi.waitFor(() => expect(server.accepted).toBeGreaterThan(4), { interval: 1 });
    await server.close();
    await server.close();
    await Promise.all(opened.map(async (socket) => ("destroy" in socket ? closed(socket) : undefined)));
    await Promise.all(strangers);
    expect(server.pending).toBe(0);
  });

  test("says why when its port is taken or its key does not fit", async () => {
    const options = { listen: { host: "127.0.0.1", port }, credentials: () => [], onPeer: vi.fn(), onEvent: vi.fn() };
    const second = new TunnelServer({ ...options, tls: { key: own.key, cert: own.certificate } });
    await expect(second.listen()).rejects.toMatchObject({ code: "EADDRINUSE" });
    await second.close();
    expect(() => new TunnelServer({ ...options, tls: { key: other.key, cert: own.certificate } })).toThrow(
      expect.objectContaining({ code: "ERR_OSSL_X509_KEY_VALUES_MISMATCH" }),
    );
  });
});
