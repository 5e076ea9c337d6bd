/**
 * The admin socket of a running program: HTTP/1.1 with JSON over a unix socket that only the program's own user (and root)
 * can connect to. File permissions are all the authentication there is, so the socket never exists with other ones.
 */
import { lstat, unlink } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { connect } from "node:net";
import type { z } from "zod";
import { adminAddress } from "./admin-address.ts";
import { errorFacts, ExitCode, Failure, systemFailure } from "./failure.ts";
import { withFileLock } from "./file-lock.ts";

/** Requests are names and options; nothing of ours comes near. */
const MAX_BODY_BYTES = 64 * 1024;

/** For head and body of a request to arrive, in milliseconds. */
const REQUEST_TIMEOUT_MS = 10_000;

/** Commands come one by one; this many at once are a mistake. */
const MAX_CONNECTIONS = 64;

/** What a handler may throw to answer with a status of its own and words for the operator. */
export class AdminError extends Error {
  override readonly name = "AdminError";
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** One thing that can be asked. Paths are matched exactly; what varies is in the body. */
export interface AdminRoute {
  readonly method: "GET" | "POST";
  readonly path: string;
  /** What the body must be; without it, the body is ignored. A body that does not fit is answered with 400. */
  readonly body?: z.ZodType;
  /**
   * The answer, as JSON. `body` is what `body` of the route made of the request's. May throw `AdminError` or `Failure`,
   * whose words reach the operator; anything else is answered with 500 and its class.
   */
  readonly handler: (body: unknown) => unknown;
}

export interface AdminServerOptions {
  readonly stateDir: string;
  readonly routes: readonly AdminRoute[];
}

/** What an answer other than 200 holds. */
export interface AdminErrorAnswer {
  readonly error: { readonly message: string; readonly where?: string; readonly exitCode?: number };
}

export class AdminServer {
  /** The path of the socket. */
  readonly address: string;
  readonly #routes: ReadonlyMap<string, AdminRoute>;
  readonly #paths: ReadonlySet<string>;
  readonly #server: Server;

  constructor({ stateDir, routes }: AdminServerOptions) {
    this.address = adminAddress(stateDir);
    this.#routes = new Map(routes.map((route) => [`${route.method} ${route.path}`, route]));
    this.#paths = new Set(routes.map(({ path }) => path));
    this.#server = createServer(
      {
        headersTimeout: REQUEST_TIMEOUT_MS,
        requestTimeout: REQUEST_TIMEOUT_MS,
        connectionsCheckingInterval: 1_000,
        keepAliveTimeout: 1_000,
        maxHeaderSize: 8 * 1024,
      },
      (request, response) => {
        // Every error of a request is a caller that left.
        request.on("error", ignore);
        response.on("error", ignore);
        void this.#answer(request, response);
      },
    );
    this.#server.maxConnections = MAX_CONNECTIONS;
  }

  /**
   * Listens. The socket that a dead process left is removed; that of a living one is not touched.
   *
   * @throws Failure 69 when another process listens, which uses the state directory therefore; 74 or 77 from the system
   */
  async listen(): Promise<void> {
    try {
      await this.#bind();
    } catch (error) {
      if (errorFacts(error).code !== "EADDRINUSE") {
        throw systemFailure(error, this.address, "listen on the admin socket");
      }
      if (process.platform === "win32") throw this.#inUse();
      // Of two that find the socket of a dead process, the later must not remove what the earlier has made.
      await withFileLock(this.address, () => this.#takeOver());
    }
    // Running out of descriptors fails an accept; the next one may work.
    this.#server.on("error", ignore);
  }

  /** Cuts requests that are being answered. Removes the socket. */
  async close(): Promise<void> {
    if (!this.#server.listening) {
      return;
    }
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }

  #bind(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      // The socket gets its mode when it is bound, and a unix socket is bound before `listen` returns: there is no moment in
      // which it is open to others.
      const before = process.platform === "win32" ? undefined : process.umask(0o177);
      try {
        this.#server.listen(this.address, () => {
          this.#server.removeListener("error", reject);
          resolve();
        });
      } finally {
        if (before !== undefined) {
          process.umask(before);
        }
      }
    });
  }

  async #takeOver(): Promise<void> {
    if (await this.#isAlive()) throw this.#inUse();
    try {
      // A file that is no socket refuses connections as well, and is not ours to remove.
      if (!(await lstat(this.address)).isSocket()) {
        throw new Failure(ExitCode.configuration, this.address, "is in the way of the admin socket; move it elsewhere");
      }
      await unlink(this.address);
      await this.#bind();
    } catch (error) {
      throw error instanceof Failure ? error : systemFailure(error, this.address, "listen on the admin socket");
    }
  }

  #inUse(): Failure {
    return new Failure(
      ExitCode.unavailable,
      this.address,
      "another process uses this state directory; stop it, or give each its own stateDir",
    );
  }

  /** Whether somebody accepts on the socket. One that may not be asked counts as alive. */
  #isAlive(): Promise<boolean> {
    return new Promise((resolve) => {
      const socket = connect(this.address);
      socket.once("connect", () => {
        socket.destroy();
        resolve(true);
      });
      socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code !== "ECONNREFUSED"));
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      send(response, 200, (await this.#handle(request)) ?? {});
    } catch (error) {
      const { status, answer } = describeError(error);
      // What is left of the body is not read, so the connection is of no further use.
      response.setHeader("connection", "close");
      send(response, status, answer);
    }
  }

  async #handle(request: IncomingMessage): Promise<unknown> {
    const path = request.url ?? "";
    const route = this.#routes.get(`${request.method} ${path}`);
    if (route === undefined) {
      throw this.#paths.has(path)
        ? new AdminError(405, "method not allowed")
        : new AdminError(404, "this program does not know the request; is it of another version?");
    }
    const { body: schema } = route;
    const body = request.method === "GET" ? undefined : await readJson(request);
    if (schema === undefined) {
      return route.handler(undefined);
    }
    const parsed = schema.safeParse(body ?? {});
    if (!parsed.success) {
      const [issue] = parsed.error.issues;
      throw new AdminError(400, `${issue?.path.join(".") || "body"}: ${issue?.message ?? "invalid"}`);
    }
    return route.handler(parsed.data);
  }
}

/** The body as JSON; undefined when there is none. It is refused by its declared size, and then by its real one. */
async function readJson(request: IncomingMessage): Promise<unknown> {
  const declared = Number(request.headers["content-length"] ?? 0);
  if (declared > MAX_BODY_BYTES) {
    throw tooLarge();
  }
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > MAX_BODY_BYTES) {
      throw tooLarge();
    }
    chunks.push(chunk);
  }
  if (length === 0) {
    return undefined;
  }
  if (request.headers["content-type"] !== "application/json") {
    throw new AdminError(415, "the content type must be application/json");
  }
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(chunks)));
  } catch {
    throw new AdminError(400, "the body is not JSON");
  }
}

function tooLarge(): AdminError {
  return new AdminError(413, `the body has more than ${MAX_BODY_BYTES} bytes`);
}

function describeError(error: unknown): { status: number; answer: AdminErrorAnswer } {
  if (error instanceof AdminError) {
    return { status: error.status, answer: { error: { message: error.message } } };
  }
  if (error instanceof Failure) {
    const { where, what, exitCode } = error;
    return { status: 422, answer: { error: { message: what, where, exitCode } } };
  }
  const { type, code } = errorFacts(error);
  return { status: 500, answer: { error: { message: `internal: ${type}${code === undefined ? "" : ` ${code}`}` } } };
}

function send(response: ServerResponse, status: number, answer: unknown): void {
  if (response.destroyed || response.headersSent) {
    return;
  }
  const text = JSON.stringify(answer);
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text) });
  response.end(text);
}

function ignore(): void {}
