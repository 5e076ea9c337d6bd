/*
 * The edge's tunnel port: TLS 1.3, one HTTP request, one WebSocket.
 *
 *   accept ─► gate ─► TLS (5 s) ─► request (5 s) ─► authentication ─► upgrade ─► onPeer
 *
 * A plain TCP server accepts, so that a source that is refused costs no TLS work; what the gate admits is handed to an HTTPS
 * server that does not listen itself. Each stage is bounded from its beginning, whatever the peer sends meanwhile: TLS by
 * the handshake timeout of `node:tls`, the request by a timer of ours. The HTTP server's own timeouts need it to listen.
 *
 * Once the HTTPS server has a TCP socket, that socket is left alone and the TLS socket is destroyed: destroying the TCP
 * socket and touching the TLS socket above it in the same tick crashes Node 20 (a segmentation fault, not an error).
 *
 * Until the upgrade every socket belongs to this class, which destroys it; what `onPeer` gets belongs to the receiver.
 */
import { constants } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer as createHttpsServer, type Server as HttpsServer, type ServerOptions } from "node:https";
import { createServer as createTcpServer, type AddressInfo, type Server as TcpServer, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { TLSSocket } from "node:tls";
import { PROTOCOL_VERSIONS } from "@sallyport/protocol";
import { type WebSocket, WebSocketServer } from "ws";
import {
  type AgentHello,
  createNonce,
  edgeProof,
  exportChannelBinding,
  findVerifier,
  formatEdgeHello,
  parseAgentHello,
} from "./authentication.ts";
import type { Offence } from "./penalty-box.ts";
import { PreAuthGate, type PreAuthGateOptions, type PreAuthRefusal } from "./pre-auth-gate.ts";
import { sourcePrefix, unmapAddress } from "./source-prefix.ts";
import type { Verifier } from "./token.ts";
import {
  SOCKET_HIGH_WATER_MARK_BYTES,
  TUNNEL_CIPHERS,
  TUNNEL_PATH,
  TUNNEL_SUBPROTOCOL,
  webSocketOptions,
} from "./web-socket-options.ts";

/** An agent that has authenticated. Both sockets belong to whoever receives it. */
export interface TunnelPeer {
  /** Open. Listeners for its messages must be attached before the callback returns. */
  readonly webSocket: WebSocket;
  readonly socket: TLSSocket;
  readonly client: string;
  /** Which of the client's tokens it used. */
  readonly tokenId: string;
  /** An IPv4 address mapped into IPv6 is shown as IPv4. */
  readonly remoteAddress: string;
  readonly remotePort: number;
  /** The protocol version that both sides speak on this link. */
  readonly version: number;
}

/** Why a connection did not become a peer. */
export type TunnelRefusal =
  | PreAuthRefusal
  /** The TLS handshake failed: no TLS, no TLS 1.3, or the peer did not like the certificate. */
  | "tls"
  /** Not HTTP/1.1, or a header that is too large. */
  | "http"
  /** TLS or the request took too long. */
  | "timeout"
  /** The peer went away without asking for anything. */
  | "abandoned"
  /** Another path, another method, or no upgrade. */
  | "path"
  | "authentication"
  /** Authenticated, but no protocol version in common. */
  | "version"
  /** Authenticated, but not a proper WebSocket request. */
  | "websocket";

export interface TunnelServerEvent {
  readonly type: "refused";
  readonly reason: TunnelRefusal;
  readonly remoteAddress: string;
  readonly remotePort: number;
  /** The client's name as the peer gave it, where it gave a well-formed one. Not proven unless the reason is `version`. */
  readonly client?: string;
  /** Code of the library that refused, such as `ERR_SSL_UNSUPPORTED_PROTOCOL`. */
  readonly detail?: string;
}

/** Key and certificate (leaf first) as PEM. */
export interface TunnelTls {
  readonly key: string | Buffer;
  readonly cert: string | Buffer;
}

export interface TunnelServerLimits extends PreAuthGateOptions {
  /** From accept to the end of the TLS handshake. Default 5,000. */
  readonly handshakeTimeoutMs?: number;
  /** From there to the end of the request. Default 5,000. */
  readonly requestTimeoutMs?: number;
}

export interface TunnelServerOptions {
  /** Port 0 takes a free one. */
  readonly listen: { readonly host: string; readonly port: number };
  readonly tls: TunnelTls;
  /** The verifiers of a client, none when it is unknown. Called for every request that carries a well-formed proof. */
  readonly credentials: (client: string) => readonly Verifier[];
  readonly onPeer: (peer: TunnelPeer) => void;
  /** Called for each refused connection; whoever logs it limits the rate. */
  readonly onEvent: (event: TunnelServerEvent) => void;
  /** Protocol versions spoken here. Default: those of `@sallyport/protocol`. */
  readonly versions?: readonly number[];
  readonly limits?: TunnelServerLimits;
  /** Milliseconds of a clock that only goes forward, for penalties. Default `performance.now`. */
  readonly now?: () => number;
}

/** A connection that has not authenticated yet. */
interface Candidate {
  readonly key: string;
  readonly raw: Socket;
  /** Exists from the end of the TLS handshake. */
  socket: TLSSocket | undefined;
  readonly source: string;
  readonly remoteAddress: string;
  readonly remotePort: number;
  stage: "tls" | "request" | "done";
  timer: NodeJS.Timeout | undefined;
  refusal: TunnelRefusal | undefined;
  client: string | undefined;
  detail: string | undefined;
}

/** Not a word more than needed, and the same for every reason: the peer must not learn which clients exist. */
const unauthorized =
  "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Sallyport\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const notFound = "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const badRequest = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/** Bytes of request line and headers together; a request of ours has about 700. */
const MAX_HEADER_BYTES = 8_192;

/** How long after the handshake timeout a connection is cut that is still there. */
const HANDSHAKE_GRACE_MS = 500;

const offences: Readonly<Record<Exclude<TunnelRefusal, PreAuthRefusal>, Offence | undefined>> = {
  tls: "silence",
  http: "protocol",
  timeout: "silence",
  abandoned: "silence",
  path: "silence",
  authentication: "authentication",
  version: undefined,
  websocket: undefined,
};

export class TunnelServer {
  /** Totals since the start, for metrics. */
  accepted = 0;
  authenticated = 0;
  readonly refused: Record<TunnelRefusal, number> = {
    penalty: 0,
    source_limit: 0,
    limit: 0,
    tls: 0,
    http: 0,
    timeout: 0,
    abandoned: 0,
    path: 0,
    authentication: 0,
    version: 0,
    websocket: 0,
  };

  readonly #options: TunnelServerOptions;
  readonly #versions: readonly number[];
  readonly #handshakeTimeoutMs: number;
  readonly #requestTimeoutMs: number;
  readonly #now: () => number;
  readonly #gate: PreAuthGate;
  readonly #acceptor: TcpServer;
  readonly #https: HttpsServer;
  readonly #upgrader: WebSocketServer;
  /** By remote and local end, which name a TCP connection. Bounded by the gate's `maxPending`. */
  readonly #candidates = new Map<string, Candidate>();
  readonly #candidateOf = new WeakMap<Duplex, Candidate>();
  /** The edge's half of the handshake, between the check of a request and the writing of its response. */
  readonly #edgeHellos = new WeakMap<IncomingMessage, string>();

  /** Throws when key and certificate cannot be read or do not belong together. */
  constructor(options: TunnelServerOptions) {
    this.#options = options;
    this.#versions = options.versions ?? PROTOCOL_VERSIONS;
    this.#handshakeTimeoutMs = options.limits?.handshakeTimeoutMs ?? 5_000;
    this.#requestTimeoutMs = options.limits?.requestTimeoutMs ?? 5_000;
    this.#now = options.now ?? (() => performance.now());
    this.#gate = new PreAuthGate(options.limits);

    this.#https = createHttpsServer({
      ...tlsOptions(options.tls),
      handshakeTimeout: this.#handshakeTimeoutMs,
      headersTimeout: this.#requestTimeoutMs,
      requestTimeout: this.#requestTimeoutMs,
      connectionsCheckingInterval: 1_000,
      maxHeaderSize: MAX_HEADER_BYTES,
    });
    this.#https.maxRequestsPerSocket = 1;
    this.#https.on("secureConnection", (socket) => this.#startRequestStage(socket));
    // The HTTPS server reports failed handshakes here, too.
    this.#https.on("clientError", (error: NodeJS.ErrnoException, socket) => this.#failCandidate(error, socket));
    this.#https.on("request", (request, response) => this.#answer(request, response));
    this.#https.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
      // From here on nobody else listens, and a reset would end the process.
      socket.on("error", () => socket.destroy());
      this.#upgrade(request, socket, head);
    });

    this.#upgrader = new WebSocketServer({
      ...webSocketOptions,
      noServer: true,
      clientTracking: false,
      handleProtocols: (protocols) => (protocols.has(TUNNEL_SUBPROTOCOL) ? TUNNEL_SUBPROTOCOL : false),
    });
    this.#upgrader.on("headers", (headers, request) => {
      headers.push(`Sallyport-Authentication: ${this.#edgeHellos.get(request) ?? ""}`);
    });

    this.#acceptor = createTcpServer({ noDelay: true, highWaterMark: SOCKET_HIGH_WATER_MARK_BYTES }, (socket) =>
      this.#accept(socket),
    );
  }

  /** Connections that have not authenticated yet. */
  get pending(): number {
    return this.#gate.pending;
  }

  /** Sources that are remembered for what they did. */
  get punishedSources(): number {
    return this.#gate.punishedSources;
  }

  /** Rejects with the system's error when the address cannot be bound. */
  async listen(): Promise<AddressInfo> {
    await new Promise<void>((resolve, reject) => {
      this.#acceptor.once("error", reject);
      this.#acceptor.listen({ host: this.#options.listen.host, port: this.#options.listen.port }, () => {
        this.#acceptor.off("error", reject);
        // A failing accept (no descriptors left) concerns the one connection; the port stays.
        this.#acceptor.on("error", () => undefined);
        resolve();
      });
    });
    return this.#acceptor.address() as AddressInfo;
  }

  /** New connections get this certificate; those that exist keep theirs. Throws and changes nothing when it is unusable. */
  setTls(tls: TunnelTls): void {
    this.#https.setSecureContext(tlsOptions(tls));
  }

  /** Punishes the source of a peer that has authenticated and then broke the protocol. */
  punish(remoteAddress: string, offence: Offence): void {
    this.#gate.punish(sourcePrefix(remoteAddress), offence, this.#now());
  }

  /** Frees the port and cuts what has not authenticated. Peers that were handed over stay with their owners. */
  async close(): Promise<void> {
    if (this.#acceptor.listening) {
      this.#acceptor.close();
    }
    this.#upgrader.close();
    await Promise.all(
      [...this.#candidates.values()].map(
        (candidate) =>
          new Promise<void>((resolve) => {
            candidate.raw.once("close", () => resolve());
            cut(candidate);
          }),
      ),
    );
  }

  #accept(raw: Socket): void {
    // The TLS socket reports what happens; see the head of this file.
    raw.on("error", () => undefined);
    this.accepted++;
    const key = connectionKey(raw);
    const remoteAddress = unmapAddress(raw.remoteAddress ?? "");
    const remotePort = raw.remotePort ?? 0;
    if (key === undefined || this.#candidates.has(key)) {
      // It was reset before it was accepted.
      raw.destroy();
      return;
    }
    const source = sourcePrefix(remoteAddress);
    const refusal = this.#gate.admit(source, this.#now());
    if (refusal !== undefined) {
      // A reset leaves no connection in TIME_WAIT here.
      raw.resetAndDestroy();
      this.#report({ type: "refused", reason: refusal, remoteAddress, remotePort });
      return;
    }
    const candidate: Candidate = {
      key,
      raw,
      socket: undefined,
      source,
      remoteAddress,
      remotePort,
      stage: "tls",
      timer: undefined,
      refusal: undefined,
      client: undefined,
      detail: undefined,
    };
    this.#candidates.set(key, candidate);
    raw.once("close", () => this.#release(candidate));
    // The handshake timeout comes first and names its reason; this is the net below it.
    startTimer(candidate, this.#handshakeTimeoutMs + HANDSHAKE_GRACE_MS);
    this.#https.emit("connection", raw);
  }

  #startRequestStage(socket: TLSSocket): void {
    const candidate = this.#candidates.get(connectionKey(socket) ?? "");
    if (candidate === undefined) {
      socket.destroy();
      return;
    }
    this.#candidateOf.set(socket, candidate);
    candidate.socket = socket;
    candidate.stage = "request";
    startTimer(candidate, this.#requestTimeoutMs);
  }

  #failCandidate(error: NodeJS.ErrnoException, socket: Duplex): void {
    const candidate =
      this.#candidateOf.get(socket) ??
      (socket instanceof TLSSocket ? this.#candidates.get(connectionKey(socket) ?? "") : undefined);
    // A connection that just ends is an error for both TLS and HTTP; it is a refusal only when it said something wrong.
    if (candidate !== undefined && error.code !== "ECONNRESET" && error.code !== "EPIPE") {
      if (candidate.stage === "tls") {
        candidate.refusal ??= error.code === "ERR_TLS_HANDSHAKE_TIMEOUT" ? "timeout" : "tls";
      } else {
        candidate.refusal ??= httpRefusal(error.code);
      }
      candidate.detail ??= error.code;
    }
    if (candidate?.raw.destroyed !== true) {
      socket.destroy();
    }
  }

  /** A request that is no upgrade. */
  #answer(request: IncomingMessage, response: ServerResponse): void {
    const candidate = this.#candidateOf.get(request.socket);
    if (candidate !== undefined) {
      candidate.refusal ??= "path";
    }
    response.sendDate = false;
    response.shouldKeepAlive = false;
    if (request.url === TUNNEL_PATH && request.method === "GET") {
      response.writeHead(426, { Upgrade: "websocket", Connection: "close, upgrade", "Content-Length": "0" });
    } else {
      response.writeHead(404, { Connection: "close", "Content-Length": "0" });
    }
    response.end();
    // A body that is still to come is not waited for.
    response.once("finish", () => request.socket.destroySoon());
  }

  #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const candidate = this.#candidateOf.get(socket);
    if (candidate === undefined || !(socket instanceof TLSSocket) || socket.destroyed) {
      socket.destroy();
      return;
    }
    if (request.method !== "GET" || request.url !== TUNNEL_PATH) {
      refuse(socket, candidate, "path", notFound);
      return;
    }
    // The one place where identity is read; nothing else looks at these headers again.
    const hello = parseAgentHello(request.headers.authorization);
    candidate.client = hello?.client;
    const exporter = exportChannelBinding(socket);
    const verifier = hello && this.#verify(hello, exporter);
    if (hello === undefined || verifier === undefined) {
      refuse(socket, candidate, "authentication", unauthorized);
      return;
    }
    this.#gate.recognise(candidate.source, this.#now());
    const version = Math.max(...hello.versions.filter((offered) => this.#versions.includes(offered)));
    if (!Number.isFinite(version)) {
      const versions = this.#versions.join(",");
      refuse(
        socket,
        candidate,
        "version",
        `HTTP/1.1 426 Upgrade Required\r\nSallyport-Versions: ${versions}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`,
      );
      return;
    }
    if (!offersSubprotocol(request.headers["sec-websocket-protocol"])) {
      refuse(socket, candidate, "websocket", badRequest);
      return;
    }
    const edgeNonce = createNonce();
    const mac = edgeProof(verifier.key, {
      exporter,
      client: hello.client,
      versions: hello.versions,
      agentNonce: hello.nonce,
      version,
      edgeNonce,
    });
    this.#edgeHellos.set(request, formatEdgeHello({ nonce: edgeNonce, version, mac }));
    // Holds unless the upgrade succeeds, which it does or does not before this call returns.
    candidate.refusal = "websocket";
    this.#upgrader.handleUpgrade(request, socket, head, (webSocket) => {
      // `ws` reports what the peer does wrong as errors, and the receiver may attach its listener later.
      webSocket.on("error", () => undefined);
      candidate.refusal = undefined;
      this.#promote(candidate);
      this.authenticated++;
      const { remoteAddress, remotePort } = candidate;
      const { client } = hello;
      const { tokenId } = verifier;
      this.#options.onPeer({ webSocket, socket, client, tokenId, remoteAddress, remotePort, version });
    });
  }

  #verify(hello: AgentHello, exporter: Buffer): Verifier | undefined {
    const { client, versions, nonce, mac } = hello;
    return findVerifier(this.#options.credentials(client), { exporter, client, versions, agentNonce: nonce }, mac);
  }

  /** The candidate has authenticated: its place is free for another, and its socket is no longer ours. */
  #promote(candidate: Candidate): void {
    candidate.stage = "done";
    clearTimeout(candidate.timer);
    this.#candidates.delete(candidate.key);
    this.#gate.release(candidate.source);
  }

  /** The socket of a candidate is gone. */
  #release(candidate: Candidate): void {
    if (candidate.stage === "done") {
      return;
    }
    candidate.stage = "done";
    clearTimeout(candidate.timer);
    this.#candidates.delete(candidate.key);
    this.#gate.release(candidate.source);
    const reason = candidate.refusal ?? "abandoned";
    const offence = offences[reason as keyof typeof offences];
    if (offence !== undefined) {
      this.#gate.punish(candidate.source, offence, this.#now());
    }
    this.#report({
      type: "refused",
      reason,
      remoteAddress: candidate.remoteAddress,
      remotePort: candidate.remotePort,
      ...(candidate.client === undefined ? {} : { client: candidate.client }),
      ...(candidate.detail === undefined ? {} : { detail: candidate.detail }),
    });
  }

  #report(event: TunnelServerEvent): void {
    this.refused[event.reason]++;
    this.#options.onEvent(event);
  }
}

function tlsOptions(tls: TunnelTls): ServerOptions {
  return {
    key: tls.key,
    cert: tls.cert,
    minVersion: "TLSv1.3",
    maxVersion: "TLSv1.3",
    ciphers: TUNNEL_CIPHERS,
    honorCipherOrder: true,
    // No resumption: every connection proves the certificate. Without tickets OpenSSL offers sessions kept by the server,
    // and Node keeps none.
    secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
    sessionTimeout: 1,
    ALPNProtocols: ["http/1.1"],
  };
}

/** Bounds the candidate's stage from now on, whatever the peer sends meanwhile. */
function startTimer(candidate: Candidate, timeoutMs: number): void {
  clearTimeout(candidate.timer);
  candidate.timer = setTimeout(() => {
    candidate.refusal ??= "timeout";
    cut(candidate);
  }, timeoutMs);
}

/** Ends a candidate. Nobody else may touch the TLS socket in the tick in which the TCP socket below it is destroyed. */
function cut(candidate: Candidate): void {
  (candidate.socket ?? candidate.raw).destroy();
}

/** Both ends of a TCP connection as text; undefined once it is gone. */
function connectionKey(socket: Socket): string | undefined {
  const { remoteAddress, remotePort, localAddress, localPort } = socket;
  return remoteAddress === undefined ? undefined : `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`;
}

/** Slow requests are the peer's silence; what the HTTP parser refuses is not. */
function httpRefusal(code: string | undefined): TunnelRefusal {
  if (code === "ERR_HTTP_REQUEST_TIMEOUT") return "timeout";
  return code === "HPE_INVALID_EOF_STATE" ? "abandoned" : "http";
}

function refuse(socket: TLSSocket, candidate: Candidate, reason: TunnelRefusal, response: string): void {
  candidate.refusal = reason;
  // The candidate's timer ends it when the peer takes neither the response nor the end.
  socket.end(response);
  socket.once("finish", () => socket.destroy());
}

function offersSubprotocol(header: string | undefined): boolean {
  return (header ?? "").split(",").some((name) => name.trim() === TUNNEL_SUBPROTOCOL);
}
