/*
 * How an agent reaches an edge: TCP, directly or through a proxy's CONNECT; TLS 1.3; the check of the pin; the upgrade with
 * the agent's proof; the check of the edge's proof. Only then does a caller see the connection.
 *
 * `ws` makes the request, but does not finish it: nothing of it is sent before TLS stands and the certificate is the
 * paired one, and the proof needs the finished handshake anyway.
 */
import type { Agent, ClientRequest, IncomingMessage } from "node:http";
import { isIP, type LookupFunction } from "node:net";
import { type ConnectionOptions, checkServerIdentity, connect as connectTls, TLSSocket } from "node:tls";
import { PROTOCOL_VERSIONS } from "@sallyport/protocol";
import { WebSocket, type ClientOptions } from "ws";
import {
  agentProof,
  createNonce,
  edgeProof,
  exportChannelBinding,
  formatAgentHello,
  macsEqual,
  parseEdgeHello,
} from "./authentication.ts";
import { certificatePin } from "./pairing-line.ts";
import { pinnedTrust } from "./pinned-trust.ts";
import { deriveVerifier } from "./token.ts";
import {
  SOCKET_HIGH_WATER_MARK_BYTES,
  TUNNEL_CIPHERS,
  TUNNEL_PATH,
  TUNNEL_SUBPROTOCOL,
  webSocketOptions,
} from "./web-socket-options.ts";

export type TunnelConnectReason =
  /** No address, or no way there. */
  | "unreachable"
  /** Nobody listens, or the edge closed without an answer: it is full, or it is wary of this address. */
  | "refused"
  /** The HTTP proxy did not let us through, or is not there. */
  | "proxy"
  /** No TLS 1.3, or a certificate that does not hold. */
  | "tls"
  /** The certificate is not the paired one. */
  | "pin"
  /** The edge does not know the client or the token. */
  | "authentication"
  /** No protocol version in common. */
  | "version"
  /** The edge could not prove that it knows the token: it is not the edge that was paired. */
  | "proof"
  /** Something answered that does not speak this protocol. */
  | "protocol"
  | "timeout"
  /** The caller's signal. */
  | "cancelled";

/** Why no connection came about. Holds reasons and codes only: no secret, and no text from the other side. */
export class TunnelConnectError extends Error {
  readonly reason: TunnelConnectReason;
  /** An error code or an HTTP status; empty when the reason says all. */
  readonly detail: string;

  constructor(reason: TunnelConnectReason, detail = "") {
    super(detail === "" ? reason : `${reason} (${detail})`);
    this.name = "TunnelConnectError";
    this.reason = reason;
    this.detail = detail;
  }
}

export interface TunnelConnectOptions {
  readonly address: { readonly host: string; readonly port: number };
  /** The name that TLS asks for, and checks where nothing is pinned. Default: the host. */
  readonly serverName?: string;
  /** The paired certificate as PEM. With it nothing else is trusted, and names do not matter. Default: the system's trust. */
  readonly certificate?: string;
  /** SHA-256 of the certificate that must be presented, 64 hexadecimal characters. Default: that of `certificate`. */
  readonly pin?: string;
  readonly client: string;
  readonly token: Buffer;
  /** Protocol versions to offer. Default: those of `@sallyport/protocol`. */
  readonly versions?: readonly number[];
  /**
   * Connects through an HTTP proxy. A function is given a signal that aborts when this attempt fails, for agents that
   * would otherwise wait for a silent proxy.
   */
  readonly agent?: Agent | ((signal: AbortSignal) => Agent);
  /** Finds the host's addresses. Default: the system's resolver. Not used for a proxy. */
  readonly resolve?: (host: string, options: { signal: AbortSignal }) => Promise<readonly string[]>;
  /** For all of it. Default 10,000. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

/** A connection to an edge that has proved itself. Both sockets belong to the caller. */
export interface TunnelConnection {
  /** Open. Nothing is read until the first listener for `message` is attached, so nothing is missed. */
  readonly webSocket: WebSocket;
  readonly socket: TLSSocket;
  /** The protocol version that the edge chose. */
  readonly version: number;
}

/** Node tries the addresses of a host one after the other; its 250 ms for each are too few for a distant edge. */
const addressAttempts = { autoSelectFamily: true, autoSelectFamilyAttemptTimeout: 2_500 };

/** Connects and authenticates. Rejects with a {@link TunnelConnectError}; every socket is closed then. */
export async function connectTunnel(options: TunnelConnectOptions): Promise<TunnelConnection> {
  return new Promise((resolve, reject) => {
    new Attempt(options, resolve, reject).start();
  });
}

class Attempt {
  readonly #options: TunnelConnectOptions;
  readonly #resolve: (connection: TunnelConnection) => void;
  readonly #reject: (error: TunnelConnectError) => void;
  readonly #versions: readonly number[];
  readonly #verifierKey: Buffer;
  #pin: string | undefined;
  readonly #agentNonce = createNonce();
  readonly #abort = new AbortController();
  readonly #onCancel = () => this.#fail("cancelled");
  /** What an error means depends on how far it got. */
  #stage: "connect" | "tls" | "upgrade" = "connect";
  #settled = false;
  #timer: NodeJS.Timeout | undefined;
  #webSocket: WebSocket | undefined;
  #socket: TLSSocket | undefined;
  #exporter: Buffer | undefined;
  #version: number | undefined;

  constructor(
    options: TunnelConnectOptions,
    resolve: (connection: TunnelConnection) => void,
    reject: (error: TunnelConnectError) => void,
  ) {
    this.#options = options;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#versions = options.versions ?? PROTOCOL_VERSIONS;
    this.#verifierKey = deriveVerifier(options.token, options.client).key;
  }

  start(): void {
    const { signal, timeoutMs = 10_000 } = this.#options;
    if (signal?.aborted === true) {
      this.#fail("cancelled");
      return;
    }
    signal?.addEventListener("abort", this.#onCancel, { once: true });
    this.#timer = setTimeout(() => this.#fail("timeout", this.#stage), timeoutMs);
    try {
      this.#request(timeoutMs);
    } catch (error) {
      // A certificate that cannot be read, an address that is none.
      this.#fail("tls", codeOf(error));
    }
  }

  #request(timeoutMs: number): void {
    const { address, agent, resolve, certificate, pin } = this.#options;
    this.#pin = pin ?? (certificate === undefined ? undefined : pinnedTrust(certificate).pin);
    const tls = this.#tlsOptions();
    const clientOptions: ClientOptions = {
      ...webSocketOptions,
      // The types of `ws` have another idea of some options that it hands on to node:https as they are.
      ...(tls as object),
      followRedirects: false,
      handshakeTimeout: timeoutMs,
      // Masks protect plaintext intermediaries, of which there are none inside TLS; `ws` skips the work for a zero mask.
      generateMask: (mask) => mask.fill(0),
      finishRequest: (request) => this.#watch(request),
    };
    if (agent === undefined) {
      clientOptions.createConnection = (() =>
        connectTls({
          ...tls,
          host: address.host,
          port: address.port,
          ...(resolve === undefined ? {} : { lookup: this.#lookup(resolve) }),
          ...addressAttempts,
        })) as unknown as NonNullable<ClientOptions["createConnection"]>;
    } else {
      clientOptions.agent = typeof agent === "function" ? agent(this.#abort.signal) : agent;
    }
    const host = isIP(address.host) === 6 ? `[${address.host}]` : address.host;
    const webSocket = new WebSocket(`wss://${host}:${address.port}${TUNNEL_PATH}`, TUNNEL_SUBPROTOCOL, clientOptions);
    this.#webSocket = webSocket;
    webSocket.on("error", (error: NodeJS.ErrnoException) => this.#failWith(error));
    webSocket.on("close", () => this.#fail("protocol", "closed"));
    webSocket.on("unexpected-response", (_request, response) => this.#failStatus(response));
    webSocket.on("upgrade", (response) => this.#checkEdge(response));
    webSocket.on("open", () => this.#succeed());
  }

  #tlsOptions(): ConnectionOptions & { highWaterMark: number; secureEndpoint: true } {
    const { address, certificate } = this.#options;
    const name = this.#options.serverName ?? address.host;
    const pinned = certificate !== undefined;
    return {
      minVersion: "TLSv1.3",
      maxVersion: "TLSv1.3",
      ciphers: TUNNEL_CIPHERS,
      // Explicit, so that NODE_TLS_REJECT_UNAUTHORIZED does not undo it.
      rejectUnauthorized: true,
      ALPNProtocols: ["http/1.1"],
      highWaterMark: SOCKET_HIGH_WATER_MARK_BYTES,
      // Said outright, because proxy agents otherwise guess it from the call stack.
      secureEndpoint: true,
      ...(isIP(name) === 0 ? { servername: name } : {}),
      ...(pinned ? { secureContext: pinnedTrust(certificate).secureContext } : {}),
      checkServerIdentity: (_host, presented) => {
        if (pinned) {
          return certificatePin(presented.raw) === this.#pin ? undefined : new PinError();
        }
        return checkServerIdentity(name, presented);
      },
    };
  }

  #lookup(resolve: NonNullable<TunnelConnectOptions["resolve"]>): LookupFunction {
    return (host, _options, callback) => {
      resolve(host, { signal: this.#abort.signal }).then(
        (found) => {
          if (found.length === 0) {
            this.#fail("unreachable", "no address");
            return;
          }
          callback(
            null,
            found.map((address) => ({ address, family: isIP(address) })),
          );
        },
        (error: unknown) => this.#fail("unreachable", codeOf(error) ?? "no address"),
      );
    };
  }

  /** The request exists and waits: for its socket, for TLS, and for the check of the certificate. */
  #watch(request: ClientRequest): void {
    request.once("proxyConnect", (response: { statusCode?: number }) => {
      if (response.statusCode !== 200) {
        this.#fail("proxy", `status ${response.statusCode ?? "unknown"}`);
      }
    });
    request.once("socket", (socket) => {
      if (this.#settled) {
        socket.on("error", () => undefined);
        socket.destroy();
        return;
      }
      if (!(socket instanceof TLSSocket)) {
        this.#fail("proxy", "no TLS");
        return;
      }
      this.#socket = socket;
      socket.setNoDelay(true);
      socket.setKeepAlive(true, 30_000);
      if (this.#options.agent === undefined) {
        socket.once("connect", () => {
          this.#stage = "tls";
        });
      } else {
        this.#stage = "tls";
      }
      socket.once("secureConnect", () => {
        if (!this.#settled) {
          this.#finish(request, socket);
        }
      });
    });
  }

  /** TLS stands. Everything here happens before the first byte of HTTP leaves. */
  #finish(request: ClientRequest, socket: TLSSocket): void {
    // Not getPeerX509Certificate, which works only once. A resumed session would not have checked the certificate.
    const presented = socket.getPeerCertificate(true).raw as Buffer | undefined;
    if (this.#pin !== undefined && (presented === undefined || certificatePin(presented) !== this.#pin)) {
      this.#fail("pin");
      return;
    }
    if (!socket.authorized || socket.isSessionReused() || socket.getProtocol() !== "TLSv1.3") {
      this.#fail("tls");
      return;
    }
    this.#stage = "upgrade";
    this.#exporter = exportChannelBinding(socket);
    const { client } = this.#options;
    const mac = agentProof(this.#verifierKey, {
      exporter: this.#exporter,
      client,
      versions: this.#versions,
      agentNonce: this.#agentNonce,
    });
    request.setHeader(
      "Authorization",
      formatAgentHello({ client, nonce: this.#agentNonce, versions: this.#versions, mac }),
    );
    request.end();
  }

  /** The response says 101, and `ws` has not looked at it yet. */
  #checkEdge(response: IncomingMessage): void {
    const header = response.headers["sallyport-authentication"];
    const hello = parseEdgeHello(typeof header === "string" ? header : undefined);
    if (hello === undefined || this.#exporter === undefined) {
      this.#fail("proof");
      return;
    }
    const expected = edgeProof(this.#verifierKey, {
      exporter: this.#exporter,
      client: this.#options.client,
      versions: this.#versions,
      agentNonce: this.#agentNonce,
      version: hello.version,
      edgeNonce: hello.nonce,
    });
    if (!macsEqual(expected, hello.mac)) {
      this.#fail("proof");
    } else if (!this.#versions.includes(hello.version)) {
      this.#fail("version");
    } else {
      this.#version = hello.version;
    }
  }

  #succeed(): void {
    const webSocket = this.#webSocket;
    const socket = this.#socket;
    const version = this.#version;
    if (this.#settled || webSocket === undefined || socket === undefined || version === undefined) {
      webSocket?.terminate();
      return;
    }
    this.#settle();
    // What came right behind the response is read in the next tick, before the caller runs on. It waits for a listener.
    webSocket.pause();
    const resume = (event: string | symbol) => {
      if (event === "message") {
        webSocket.off("newListener", resume);
        process.nextTick(() => webSocket.resume());
      }
    };
    webSocket.on("newListener", resume);
    this.#resolve({ webSocket, socket, version });
  }

  #failStatus(response: IncomingMessage): void {
    const status = response.statusCode ?? 0;
    const detail = `status ${status}`;
    if (this.#socket === undefined) {
      this.#fail("proxy", detail);
    } else if (status === 401) {
      this.#fail("authentication");
    } else if (status === 426) {
      this.#fail("version");
    } else {
      this.#fail("protocol", detail);
    }
  }

  #failWith(error: NodeJS.ErrnoException): void {
    const code = codeOf(error) ?? "";
    if (this.#stage === "connect") {
      if (this.#options.agent !== undefined) {
        this.#fail("proxy", code);
      } else if (code === "ETIMEDOUT") {
        this.#fail("timeout", code);
      } else {
        this.#fail(code === "ECONNREFUSED" || code === "ECONNRESET" ? "refused" : "unreachable", code);
      }
    } else if (code === "ECONNRESET" || code === "EPIPE") {
      this.#fail("refused", code);
    } else if (this.#stage === "tls") {
      this.#fail(this.#pin !== undefined && wrongCertificateCodes.has(code) ? "pin" : "tls", code);
    } else {
      this.#fail("protocol", code);
    }
  }

  #fail(reason: TunnelConnectReason, detail = ""): void {
    if (this.#settled) {
      return;
    }
    this.#settle();
    this.#webSocket?.terminate();
    this.#socket?.destroy();
    // A proxy agent's signal destroys its TCP socket. With TLS above it that is done already, and destroying both in one
    // tick crashes Node 20.
    if (this.#socket === undefined || this.#options.agent === undefined) {
      this.#abort.abort();
    }
    this.#reject(new TunnelConnectError(reason, detail));
  }

  #settle(): void {
    this.#settled = true;
    clearTimeout(this.#timer);
    this.#options.signal?.removeEventListener("abort", this.#onCancel);
  }
}

/** Reported through OpenSSL's verification errors and our own check when another certificate than the paired one came. */
class PinError extends Error {
  readonly code = "ERR_SALLYPORT_PIN";
}

const wrongCertificateCodes = new Set([
  "ERR_SALLYPORT_PIN",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "CERT_SIGNATURE_FAILURE",
  "CERT_UNTRUSTED",
]);

function codeOf(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null | undefined)?.code;
  return typeof code === "string" && /^[A-Z0-9_]{1,64}$/.test(code) ? code : undefined;
}
