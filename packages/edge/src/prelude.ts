/**
 * What is read of a connection before it is known where it goes: the PROXY header, where a proxy in front has to send one,
 * and the ClientHello, where deployments of the listener are told apart by what TLS clients ask for. The header is taken away;
 * everything behind it stays in front of the socket, for the target.
 *
 * Nothing is guessed: whether there is a header says the listener, and a connection without one is refused.
 */
import type { Socket } from "node:net";
import {
  formatIpAddress,
  type IpAddress,
  PROXY_HEADER_MAX_BYTES,
  type ProxyEndpoint,
  type ProxyHeader,
  parseProxyHeader,
} from "@sallyport/host";
import type { Ending } from "@sallyport/tunnel";
import { CLIENT_HELLO_MAX_BYTES, type ClientHello, parseClientHello } from "./client-hello.ts";
import type { Deployment } from "./deployment.ts";
import type { InboundProxySettings, Listener } from "./listener.ts";
import { peek } from "./peek.ts";

/** Why a connection is refused for its first bytes, in the word of the metrics. */
export type PreludeRefusal =
  | "untrustedProxy"
  | "proxyHeader"
  | "proxyHeaderTimeout"
  | "serverName"
  | "clientHelloTimeout"
  | "notRunning";

/** A client asked for a name that no deployment of its listener has. */
export const noServerName: Ending = { code: "PR", reason: "no deployment for this server name" };

export const preludeRefusals: Record<PreludeRefusal, Ending> = {
  untrustedProxy: { code: "PA", reason: "peer is no trusted proxy" },
  proxyHeader: { code: "PR", reason: "bad PROXY header" },
  proxyHeaderTimeout: { code: "cR", reason: "PROXY header timeout" },
  serverName: noServerName,
  clientHelloTimeout: { code: "cR", reason: "client hello timeout" },
  notRunning: { code: "PA", reason: "the deployment is stopped" },
};

/** The partner went away, or ended its direction, within what has to come first. */
export const leftInPrelude: Ending = { code: "CR", reason: "partner left within its first bytes" };

export interface PreludeEvents {
  /**
   * It is known who it is: the client that a trusted proxy names, or, undefined, the peer itself. Nothing more happens before
   * `choose`.
   */
  onIdentified(source: ProxyEndpoint | undefined): void;
  /**
   * The proxy in front only looks whether we live: it says LOCAL, or it leaves without a byte. The socket is paused, its header is
   * read; it may be closed already.
   */
  onCheck(): void;
  onRefused(refusal: PreludeRefusal, rule?: string): void;
  onGone(): void;
  /** The socket is paused, and what belongs to the target is still in front of it. */
  onDeployment(deployment: Deployment): void;
}

/** What was read, for the record. */
export interface PreludeFacts {
  /** What the partner reached at the proxy in front. */
  readonly proxyLocal?: string | undefined;
  readonly proxyAuthority?: string | undefined;
  readonly proxyUniqueId?: string | undefined;
  readonly sni?: string | undefined;
  readonly alpn?: readonly string[] | undefined;
}

/** Longer texts of others are cut in records. */
const MAX_TEXT_LENGTH = 255;
const MAX_PROTOCOLS = 16;

export class Prelude {
  readonly #socket: Socket;
  readonly #listener: Listener;
  readonly #events: PreludeEvents;
  #peek: { readonly cancel: () => void } | undefined;
  #facts: PreludeFacts = {};

  /** The socket is paused and belongs to the caller, which hears one event after `start` and one after `choose`, unless it cancels. */
  constructor(socket: Socket, listener: Listener, events: PreludeEvents) {
    this.#socket = socket;
    this.#listener = listener;
    this.#events = events;
  }

  get facts(): PreludeFacts {
    return this.#facts;
  }

  /** Finds out who it is. Where nothing has to be read, the event comes before this returns. */
  start(): void {
    const { proxy } = this.#listener.settings;
    if (proxy === undefined) this.#events.onIdentified(undefined);
    else if (proxy.trusted.decidePeer(this.#socket.remoteAddress).action === "block") {
      this.#events.onRefused("untrustedProxy");
    } else this.#readHeader(proxy);
  }

  /** No event follows. */
  cancel(): void {
    this.#peek?.cancel();
  }

  #readHeader({ headerTimeoutMs }: InboundProxySettings): void {
    this.#peek = peek(this.#socket, {
      parse: (bytes) => {
        const parsed = parseProxyHeader(bytes);
        if (parsed.type === "incomplete") return undefined;
        return { value: parsed, length: parsed.type === "header" ? parsed.length : 0 };
      },
      maxBytes: PROXY_HEADER_MAX_BYTES,
      timeoutMs: headerTimeoutMs,
      onDone: (result) => {
        switch (result.type) {
          case "known":
            if (result.value.type === "header") return this.#onHeader(result.value.header);
            return this.#events.onRefused("proxyHeader", result.value.reason);
          case "timeout":
            return this.#events.onRefused("proxyHeaderTimeout");
          case "ended":
            return result.bytes === 0 ? this.#events.onCheck() : this.#events.onGone();
          case "closed": {
            const isCheck = result.value?.type === "header" && result.value.header.type === "local";
            return result.bytes === 0 || isCheck ? this.#events.onCheck() : this.#events.onGone();
          }
        }
      },
    });
  }

  #onHeader(header: ProxyHeader): void {
    switch (header.type) {
      case "local":
        return this.#events.onCheck();
      case "unknown":
        break;
      case "proxied":
        this.#facts = { proxyLocal: endpointText(header.destination) };
        break;
    }
    this.#facts = {
      ...this.#facts,
      proxyAuthority: textOf(header.authority),
      proxyUniqueId: idText(header.uniqueId),
    };
    this.#events.onIdentified(header.type === "proxied" ? header.source : undefined);
  }

  /** Finds the deployment. Where nothing has to be read, the event comes before this returns. */
  choose(): void {
    if (!this.#listener.names.asks) return this.#take(this.#listener.names.default);
    this.#peek = peek(this.#socket, {
      parse: (bytes) => {
        const parsed = parseClientHello(bytes);
        return parsed.type === "incomplete" ? undefined : { value: parsed, length: 0 };
      },
      maxBytes: CLIENT_HELLO_MAX_BYTES,
      timeoutMs: this.#listener.settings.clientHelloTimeoutMs,
      onDone: (result) => {
        // A reload may have changed who takes what.
        const { names } = this.#listener;
        switch (result.type) {
          case "known":
            if (result.value.type === "hello") return this.#onHello(result.value.hello);
            return this.#take(names.default);
          case "ended":
            return result.bytes === 0 && names.default === undefined
              ? this.#events.onGone()
              : this.#take(names.default);
          case "timeout":
            // A client of a protocol in which the server speaks first is silent.
            if (names.default === undefined) return this.#events.onRefused("clientHelloTimeout");
            return this.#take(names.default);
          case "closed":
            return this.#events.onGone();
        }
      },
    });
  }

  #onHello(hello: ClientHello): void {
    const alpn = hello.alpn.slice(0, MAX_PROTOCOLS);
    this.#facts = { ...this.#facts, sni: hello.serverName, alpn: alpn.length === 0 ? undefined : alpn };
    this.#take(this.#listener.names.find(hello));
  }

  #take(deployment: Deployment | undefined): void {
    if (deployment === undefined) this.#events.onRefused("serverName");
    else if (!this.#listener.serves(deployment)) this.#events.onRefused("notRunning");
    else this.#events.onDeployment(deployment);
  }
}

/** `address:port`, IPv6 in brackets. */
export function endpointText({ address, port }: { readonly address: IpAddress; readonly port: number }): string {
  const text = formatIpAddress(address);
  return `${text.includes(":") ? `[${text}]` : text}:${port}`;
}

function textOf(bytes: Uint8Array | undefined): string | undefined {
  if (bytes === undefined || bytes.length === 0) return undefined;
  return Buffer.from(bytes).toString("utf8").slice(0, MAX_TEXT_LENGTH);
}

/** An id is shown as it is where that can be read, and in hexadecimal where it cannot. */
function idText(bytes: Uint8Array | undefined): string | undefined {
  if (bytes === undefined || bytes.length === 0) return undefined;
  return bytes.every((byte) => byte >= 0x21 && byte <= 0x7e)
    ? Buffer.from(bytes).toString("latin1")
    : Buffer.from(bytes).toString("hex");
}
