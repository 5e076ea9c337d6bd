import { createHash, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { createServer as createHttpServer, type Server as HttpServer } from "node:http";
import { createServer as createHttpsServer, type Server as HttpsServer } from "node:https";
import {
  type AddressInfo,
  connect as connectTcp,
  createServer as createTcpServer,
  type Server,
  type Socket,
} from "node:net";
import { createServer as createTlsServer, type TlsOptions, type TLSSocket } from "node:tls";
import { HttpsProxyAgent } from "https-proxy-agent";
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { withDeadline } from "../../../test/support/deadline.ts";
import { makeSelfSignedCertificate, type SelfSignedCertificate } from "../../edge/src/self-signed-certificate.ts";
import {
  agentProof,
  createNonce,
  edgeProof,
  exportChannelBinding,
  formatEdgeHello,
  parseAgentHello,
} from "./authentication.ts";
import { certificatePin } from "./pairing-line.ts";
import { createToken, deriveVerifier, encodeToken } from "./token.ts";
import { connectTunnel, TunnelConnectError, type TunnelConnectOptions } from "./tunnel-client.ts";
import { type TunnelPeer, TunnelServer } from "./tunnel-server.ts";

const token = createToken();
const verifier = deriveVerifier(token, "lan");
let own: SelfSignedCertificate;
let other: SelfSignedCertificate;
beforeAll(async () => {
  own = await makeSelfSignedCertificate({ host: "edge.example.com" });
  other = await makeSelfSignedCertificate({ host: "edge.example.com" });
});

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).toReversed()) {
    await close();
  }
});

async function listen(server: Server | HttpServer | HttpsServer): Promise<number> {
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    socket.on("error", () => undefined);
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  closers.push(async () => {
    const closing = once(server, "close");
    server.close();
    // The other end is closed by the client under test, whose sockets must all be gone by then.
    for (const socket of sockets) {
      socket.destroy();
    }
    await withDeadline(closing, { what: "the server closes" });
  });
  return (server.address() as AddressInfo).port;
}

function optionsFor(port: number, change: Partial<TunnelConnectOptions> = {}): TunnelConnectOptions {
  return {
    address: { host: "127.0.0.1", port },
    certificate: own.certificate,
    client: "lan",
    token,
    timeoutMs: 5_000,
    ...change,
  };
}

async function failureOf(options: TunnelConnectOptions): Promise<TunnelConnectError> {
  const error = await connectTunnel(options).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(TunnelConnectError);
  const text = `${String(error)} ${JSON.stringify(error)} ${(error as Error).stack}`;
  expect(text).not.toContain(encodeToken(token));
  expect(text).not.toContain(verifier.key.toString("base64url"));
  return error as TunnelConnectError;
}

/** A real edge. */
async function startEdge(): Promise<{ port: number; peers: TunnelPeer[]; edge: TunnelServer }> {
  const peers: TunnelPeer[] = [];
  const edge = new TunnelServer({
    listen: { host: "127.0.0.1", port: 0 },
    tls: { key: own.key, cert: own.certificate },
    credentials: (client) => (client === "lan" ? [verifier] : []),
    onPeer: (peer) => {
      peers.push(peer);
    },
    onEvent: () => undefined,
  });
  const { port } = await edge.listen();
  closers.push(async () => {
    for (const peer of peers) {
      peer.webSocket.terminate();
    }
    await edge.close();
  });
  return { port, peers, edge };
}

interface FalseEdgeRequest {
  readonly socket: TLSSocket;
  readonly authorization: string;
  readonly key: string;
}

/** An edge that answers the upgrade as the test wants it. */
async function startFalseEdge(answer: (request: FalseEdgeRequest) => string): Promise<number> {
  const server = createHttpsServer({ key: own.key, cert: own.certificate });
  server.on("upgrade", (request, socket) => {
    socket.on("error", () => undefined);
    const { authorization = "", "sec-websocket-key": key = "" } = request.headers;
    socket.write(Buffer.from(answer({ socket: socket as TLSSocket, authorization, key }), "latin1"));
  });
  return listen(server);
}

function switching({ key }: FalseEdgeRequest, proof: string | undefined): string {
  const accept = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
  return (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
    `Sec-WebSocket-Accept: ${accept}\r\nSec-WebSocket-Protocol: sallyport.v1\r\n` +
    `${proof === undefined ? "" : `Sallyport-Authentication: ${proof}\r\n`}\r\n`
  );
}

/** The header that a true edge would send, with what the test changes. */
function edgeHello(
  request: FalseEdgeRequest,
  change: { key?: Buffer; version?: number; agentNonce?: Buffer } = {},
): string {
  const hello = parseAgentHello(request.authorization)!;
  const nonce = createNonce();
  const version = change.version ?? 1;
  const mac = edgeProof(change.key ?? verifier.key, {
    exporter: exportChannelBinding(request.socket),
    client: hello.client,
    versions: hello.versions,
    agentNonce: change.agentNonce ?? hello.nonce,
    version,
    edgeNonce: nonce,
  });
  return formatEdgeHello({ nonce, version, mac });
}

describe("a paired agent", () => {
  test("connects, and both sides know the version", async () => {
    const { port, peers } = await startEdge();
    const { webSocket, socket, version } = await connectTunnel(optionsFor(port));
    expect(version).toBe(1);
    expect(socket.authorized).toBe(true);
    expect(webSocket.protocol).toBe("sallyport.v1");
    expect(webSocket.extensions).toBe("");
    expect(peers).toHaveLength(1);
    webSocket.terminate();
  });

  test("connects by a name that the certificate does not carry, because it is pinned", async () => {
    const { port } = await startEdge();
    const resolve = vi.fn(async () => ["127.0.0.1"]);
    const { webSocket } = await connectTunnel(optionsFor(port, { address: { host: "other.example", port }, resolve }));
    expect(resolve).toHaveBeenCalledWith("other.example", { signal: expect.any(AbortSignal) });
    webSocket.terminate();
  });

  test("tries the next address when one refuses", async () => {
    const { port } = await startEdge();
    const resolve = async () => ["127.0.0.9", "127.0.0.1"];
    const { webSocket } = await connectTunnel(optionsFor(port, { address: { host: "edge.example", port }, resolve }));
    expect(webSocket.readyState).toBe(webSocket.OPEN);
    webSocket.terminate();
  });

  test("misses nothing that the edge sends right behind its answer, however late it listens", async () => {
    const port = await startFalseEdge((request) => `${switching(request, edgeHello(request))}\x82\x03one`);
    const { webSocket } = await connectTunnel(optionsFor(port));
    await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setImmediate(resolve));
    const [message] = (await withDeadline(once(webSocket, "message"), { what: "the message" })) as [Buffer];
    expect(message.toString()).toBe("one");
    webSocket.terminate();
  });
});

describe("the certificate", () => {
  test("of another edge is refused", async () => {
    const { port } = await startEdge();
    expect(await failureOf(optionsFor(port, { certificate: other.certificate }))).toMatchObject({ reason: "pin" });
  });

  test("must be the pinned one even when it is trusted", async () => {
    const { port, peers } = await startEdge();
    const pin = certificatePin(new X509Certificate(other.certificate).raw);
    expect(await failureOf(optionsFor(port, { pin }))).toMatchObject({ reason: "pin" });
    expect(peers).toEqual([]);
  });

  test("that signs itself is not trusted without a pin", async () => {
    const { port } = await startEdge();
    const { certificate: _, ...unpinned } = optionsFor(port, { serverName: "edge.example.com" });
    expect(await failureOf(unpinned)).toMatchObject({ reason: "tls", detail: "DEPTH_ZERO_SELF_SIGNED_CERT" });
  });

  test("is checked whatever NODE_TLS_REJECT_UNAUTHORIZED says", async () => {
    const { port } = await startEdge();
    vi.stubEnv("NODE_TLS_REJECT_UNAUTHORIZED", "0");
    try {
      expect(await failureOf(optionsFor(port, { certificate: other.certificate }))).toMatchObject({ reason: "pin" });
    } finally {
      vi.unstubAllEnvs();
    }
  });

  test("that cannot be read is an error and no crash", async () => {
    expect(await failureOf(optionsFor(1, { certificate: "nonsense" }))).toMatchObject({ reason: "tls" });
  });
});

describe("the edge's proof", () => {
  test.each<[string, (request: FalseEdgeRequest) => string | undefined, string]>([
    ["that is missing", () => undefined, "proof"],
    ["that is malformed", () => "nonsense", "proof"],
    ["of an edge that does not know the token", (request) => edgeHello(request, { key: createToken() }), "proof"],
    ["for another connection", (request) => edgeHello(request, { agentNonce: createNonce() }), "proof"],
    ["for a version that was not offered", (request) => edgeHello(request, { version: 2 }), "version"],
    [
      "that reflects the agent's own",
      ({ authorization }) => {
        const { nonce, mac } = parseAgentHello(authorization)!;
        return formatEdgeHello({ nonce, version: 1, mac });
      },
      "proof",
    ],
    [
      "made as an agent makes one",
      (request) => {
        const { client, versions, nonce } = parseAgentHello(request.authorization)!;
        const exporter = exportChannelBinding(request.socket);
        const mac = agentProof(verifier.key, { exporter, client, versions, agentNonce: nonce });
        return formatEdgeHello({ nonce, version: 1, mac });
      },
      "proof",
    ],
  ])("%s ends the connection", async (_name, proof, reason) => {
    let connection: TLSSocket | undefined;
    const port = await startFalseEdge((request) => {
      connection = request.socket;
      return `${switching(request, proof(request))}\x82\x03one`;
    });
    expect(await failureOf(optionsFor(port))).toMatchObject({ reason });
    await withDeadline(
      vi.waitFor(() => expect(connection?.closed).toBe(true), { timeout: 5_000 }),
      {
        what: "the connection ends",
      },
    );
  });
});

describe("an answer other than an upgrade has its reason", () => {
  const answer = (status: string, headers = "") => `HTTP/1.1 ${status}\r\n${headers}Content-Length: 0\r\n\r\n`;
  test.each<[string, string, string, string]>([
    ["401", answer("401 Unauthorized"), "authentication", ""],
    ["426", answer("426 Upgrade Required"), "version", ""],
    ["404", answer("404 Not Found"), "protocol", "status 404"],
    ["200", answer("200 OK"), "protocol", "status 200"],
    ["a redirect", answer("302 Found", "Location: https://127.0.0.1:1/\r\n"), "protocol", "status 302"],
    ["something that is not HTTP", "SSH-2.0-OpenSSH_9.2\r\n", "protocol", "HPE_INVALID_CONSTANT"],
  ])("%s", async (_name, text, reason, detail) => {
    const port = await startFalseEdge(() => text);
    expect(await failureOf(optionsFor(port))).toMatchObject({ reason, detail });
  });

  test("a wrong token", async () => {
    const { port } = await startEdge();
    expect(await failureOf(optionsFor(port, { token: createToken() }))).toMatchObject({ reason: "authentication" });
  });

  test("versions that the edge does not speak", async () => {
    const { port } = await startEdge();
    expect(await failureOf(optionsFor(port, { versions: [7, 8] }))).toMatchObject({ reason: "version" });
  });

  test("a proof that is right with an upgrade that is wrong", async () => {
    const port = await startFalseEdge((request) =>
      switching(request, edgeHello(request)).replace("sallyport.v1", "sallyport.v2"),
    );
    expect(await failureOf(optionsFor(port))).toMatchObject({ reason: "protocol" });
  });
});

describe("no connection", () => {
  async function tlsServer(options: TlsOptions, onConnection: (socket: TLSSocket) => void): Promise<number> {
    const server = createTlsServer({ key: own.key, cert: own.certificate, ...options }, (socket) => {
      socket.on("error", () => undefined);
      onConnection(socket);
    });
    server.on("tlsClientError", () => undefined);
    return listen(server);
  }

  test("nobody listens", async () => {
    const port = await listen(createTcpServer());
    await closers.pop()?.();
    expect(await failureOf(optionsFor(port))).toMatchObject({ reason: "refused", detail: "ECONNREFUSED" });
  });

  test("the name has no address", async () => {
    const address = { host: "edge.example", port: 1 };
    const failing = async () => Promise.reject(Object.assign(new Error("no"), { code: "ENOTFOUND" }));
    expect(await failureOf(optionsFor(1, { address, resolve: failing }))).toMatchObject({
      reason: "unreachable",
      detail: "ENOTFOUND",
    });
    expect(await failureOf(optionsFor(1, { address, resolve: async () => [] }))).toMatchObject({
      reason: "unreachable",
    });
  });

  test("the edge closes before TLS: it is full or wary", async () => {
    const port = await listen(createTcpServer((socket) => socket.resetAndDestroy()));
    expect(await failureOf(optionsFor(port))).toMatchObject({ reason: "refused", detail: "ECONNRESET" });
    const politely = await listen(createTcpServer((socket) => socket.end()));
    expect(await failureOf(optionsFor(politely))).toMatchObject({ reason: "refused" });
  });

  test("the edge closes after TLS", async () => {
    const port = await tlsServer({}, (socket) => socket.once("data", () => socket.destroy()));
    expect(await failureOf(optionsFor(port))).toMatchObject({ reason: "refused" });
  });

  test("the other end speaks TLS 1.2 at most", async () => {
    const port = await tlsServer({ maxVersion: "TLSv1.2" }, () => undefined);
    expect(await failureOf(optionsFor(port))).toMatchObject({ reason: "tls" });
  });

  test("the other end does not speak TLS", async () => {
    const port = await listen(createTcpServer((socket) => socket.write("220 mail.example ESMTP\r\n")));
    expect(await failureOf(optionsFor(port))).toMatchObject({ reason: "tls" });
  });

  test.each<[string, () => Promise<number>, string]>([
    ["before TLS", () => listen(createTcpServer()), "tls"],
    ["after TLS", () => tlsServer({}, (socket) => socket.resume()), "upgrade"],
    ["in the middle of its answer", () => startFalseEdge(() => "HTTP/1.1 101 Switching"), "upgrade"],
  ])("the edge is silent %s", async (_name, start, detail) => {
    const port = await start();
    const since = performance.now();
    expect(await failureOf(optionsFor(port, { timeoutMs: 150 }))).toMatchObject({ reason: "timeout", detail });
    expect(performance.now() - since).toBeLessThan(1_500);
  });

  test("the resolver is silent, and is told to stop", async () => {
    let stopped = false;
    const resolve = async (_host: string, { signal }: { signal: AbortSignal }) => {
      await once(signal, "abort");
      stopped = true;
      return ["127.0.0.1"];
    };
    const address = { host: "edge.example", port: 1 };
    expect(await failureOf(optionsFor(1, { address, resolve, timeoutMs: 100 }))).toMatchObject({ reason: "timeout" });
    await vi.waitFor(() => expect(stopped).toBe(true));
  });

  test("the caller cancels, before or meanwhile", async () => {
    expect(await failureOf(optionsFor(1, { signal: AbortSignal.abort() }))).toMatchObject({ reason: "cancelled" });
    const server = createTcpServer();
    const port = await listen(server);
    const cancel = new AbortController();
    const failing = failureOf(optionsFor(port, { signal: cancel.signal }));
    const [near] = (await once(server, "connection")) as [Socket];
    const ended = once(near.resume(), "close");
    cancel.abort();
    expect(await failing).toMatchObject({ reason: "cancelled" });
    await withDeadline(ended, { what: "the connection ends" });
  });
});

describe("through an HTTP proxy", () => {
  let asked: string[];
  beforeEach(() => {
    asked = [];
  });

  /** A proxy that connects everything to `port`, or answers with a refusal. */
  async function startProxy(port: number, refusal?: string): Promise<URL> {
    const proxy = createHttpServer();
    proxy.on("connect", (request, near: Socket, head: Buffer) => {
      asked.push(request.url ?? "");
      near.on("error", () => undefined);
      if (refusal !== undefined) {
        near.end(refusal);
        return;
      }
      const far = connectTcp(port, "127.0.0.1", () => {
        near.write("HTTP/1.1 200 Connection established\r\n\r\n");
        far.write(head);
        far.pipe(near).pipe(far);
      });
      far.on("error", () => near.destroy());
    });
    return new URL(`http://127.0.0.1:${await listen(proxy)}`);
  }

  test("a tunnel stands as it does without, and the proxy is asked for the name", async () => {
    const { port, peers } = await startEdge();
    const agent = new HttpsProxyAgent(await startProxy(port));
    const address = { host: "edge.example", port: 7443 };
    const { webSocket } = await connectTunnel(optionsFor(port, { address, agent }));
    expect(asked).toEqual(["edge.example:7443"]);
    const received = once(peers[0]!.webSocket, "message");
    webSocket.send("through");
    expect(String(((await received) as [Buffer])[0])).toBe("through");
    webSocket.terminate();
  });

  test("the pin is checked as it is without", async () => {
    const { port } = await startEdge();
    const agent = new HttpsProxyAgent(await startProxy(port));
    expect(await failureOf(optionsFor(port, { agent, certificate: other.certificate }))).toMatchObject({
      reason: "pin",
    });
  });

  test("names are checked against the edge's name, not the proxy's", async () => {
    const { port } = await startEdge();
    const agent = new HttpsProxyAgent(await startProxy(port));
    const { certificate: _, ...unpinned } = optionsFor(port, { agent });
    expect(await failureOf(unpinned)).toMatchObject({ reason: "tls" });
  });

  test.each([
    ["407 Proxy Authentication Required", "status 407"],
    ["403 Forbidden", "status 403"],
    ["502 Bad Gateway", "status 502"],
  ])("a refusal is the proxy's: %s", async (status, detail) => {
    const agent = new HttpsProxyAgent(await startProxy(1, `HTTP/1.1 ${status}\r\nContent-Length: 0\r\n\r\n`));
    expect(await failureOf(optionsFor(1, { agent }))).toMatchObject({ reason: "proxy", detail });
  });

  test("a proxy that is not there", async () => {
    const url = await startProxy(1);
    await closers.pop()?.();
    expect(await failureOf(optionsFor(1, { agent: new HttpsProxyAgent(url) }))).toMatchObject({
      reason: "proxy",
      detail: "ECONNREFUSED",
    });
  });

  test("a silent proxy costs the timeout, and its connection is closed", async () => {
    const proxy = createTcpServer();
    const port = await listen(proxy);
    const agent = (signal: AbortSignal) => new HttpsProxyAgent(`http://127.0.0.1:${port}`, { signal });
    const failing = failureOf(optionsFor(1, { agent, timeoutMs: 150 }));
    const [near] = (await once(proxy, "connection")) as [Socket];
    const ended = once(near.resume(), "close");
    expect(await failing).toMatchObject({ reason: "timeout", detail: "connect" });
    await withDeadline(ended, { what: "the connection to the proxy ends" });
  });

  test("a proxy that is silent after its answer costs the timeout, with a signal or without", async () => {
    const silent = await listen(createTcpServer());
    const url = await startProxy(silent);
    for (const agent of [new HttpsProxyAgent(url), (signal: AbortSignal) => new HttpsProxyAgent(url, { signal })]) {
      expect(await failureOf(optionsFor(1, { agent, timeoutMs: 150 }))).toMatchObject({
        reason: "timeout",
        detail: "tls",
      });
    }
  });
});
