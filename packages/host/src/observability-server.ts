/** Metrics and health over plain HTTP. It tells figures to anybody who can reach it, and takes nothing. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Registry } from "prom-client";
import type { HostPort } from "./host-port.ts";
import { printableText } from "./printable-text.ts";

/** A few monitors; what is more is closed when it comes. */
const MAX_CONNECTIONS = 64;

const REQUEST_TIMEOUT_MS = 5_000;

export interface ObservabilityServerOptions {
  readonly listen: HostPort;
  /** What /metrics tells. */
  readonly registry: Registry;
  /** Why the program is not ready, a reason each; empty when it is. What /readyz tells. */
  readonly notReady: () => readonly string[];
}

export class ObservabilityServer {
  readonly #options: ObservabilityServerOptions;
  readonly #server: Server;

  constructor(options: ObservabilityServerOptions) {
    this.#options = options;
    this.#server = createServer(
      {
        headersTimeout: REQUEST_TIMEOUT_MS,
        requestTimeout: REQUEST_TIMEOUT_MS,
        connectionsCheckingInterval: 1_000,
        maxHeaderSize: 8 * 1024,
      },
      (request, response) => {
        request.on("error", ignore);
        response.on("error", ignore);
        void this.#answer(request, response);
      },
    );
    this.#server.maxConnections = MAX_CONNECTIONS;
    // A reader that stops reading, or sends a request byte by byte, is cut.
    this.#server.timeout = 2 * REQUEST_TIMEOUT_MS;
  }

  /** Resolves with the address, the port being the system's choice when 0 was asked for. @throws the system's error */
  listen(): Promise<AddressInfo> {
    const { host, port } = this.#options.listen;
    return new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen({ host, port }, () => {
        this.#server.removeListener("error", reject);
        // Running out of descriptors fails an accept; the next one may work.
        this.#server.on("error", ignore);
        resolve(this.#server.address() as AddressInfo);
      });
    });
  }

  /** Cuts requests that are being answered. */
  async close(): Promise<void> {
    if (!this.#server.listening) {
      return;
    }
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const {
      status,
      type = "text/plain; charset=utf-8",
      text,
    } = await this.#respond(request).catch(() => ({
      status: 500,
      type: undefined,
      text: "not available now\n",
    }));
    if (response.destroyed) {
      return;
    }
    // A monitor comes every few seconds; a connection kept for it would be one of a bounded number.
    response.writeHead(status, {
      "cache-control": "no-store",
      connection: "close",
      "content-length": Buffer.byteLength(text),
      "content-type": type,
      "x-content-type-options": "nosniff",
      ...(status === 405 ? { allow: "GET, HEAD" } : {}),
    });
    response.end(request.method === "HEAD" ? undefined : text);
  }

  async #respond({
    method,
    url,
  }: IncomingMessage): Promise<{ status: number; type?: string | undefined; text: string }> {
    if (method !== "GET" && method !== "HEAD") {
      return { status: 405, text: "only GET and HEAD\n" };
    }
    switch (url?.split("?", 1)[0]) {
      case "/healthz":
        return { status: 200, text: "ok\n" };
      case "/readyz": {
        const reasons = this.#options.notReady();
        return reasons.length === 0
          ? { status: 200, text: "ready\n" }
          : { status: 503, text: reasons.map((reason) => `${printableText(reason)}\n`).join("") };
      }
      case "/metrics": {
        const { registry } = this.#options;
        return { status: 200, type: registry.contentType, text: await registry.metrics() };
      }
      default:
        return { status: 404, text: "there are /metrics, /healthz and /readyz\n" };
    }
  }
}

function ignore(): void {}
