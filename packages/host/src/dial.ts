/**
 * Connects to a target: resolve once, check every resolved address, dial the addresses that passed. What is dialled is the
 * very address that was checked, never the name again, so nothing can answer differently the second time.
 *
 * The addresses are tried as RFC 8305 says: alternating between the families, the next one 250 ms after the last or at once
 * when that one fails, and the first connection wins.
 */
import { Socket } from "node:net";
import { formatIpAddress, type IpAddress, parseIpAddress } from "./ip-address.ts";
import { ResolveError, type Resolver } from "./resolver.ts";

export type DialErrorReason =
  | "refused"
  | "timeout"
  | "unreachable"
  | "name_not_found"
  | "name_timeout"
  | "forbidden"
  | "reset"
  | "resource"
  | "cancelled"
  | "other";

/** Why there is no connection. Its message names neither the target nor an address: those have fields of their own. */
export class DialError extends Error {
  override readonly name = "DialError";
  readonly reason: DialErrorReason;
  /** The system's or the DNS client's code, such as `ECONNREFUSED`. */
  readonly code: string | undefined;
  /** The address that the reason is about, without port. */
  readonly address: string | undefined;
  /** More for the log: what `admit` said, or what was wrong with the name. */
  readonly detail: string | undefined;

  constructor(
    reason: DialErrorReason,
    facts: { code?: string | undefined; address?: string | undefined; detail?: string | undefined } = {},
  ) {
    super(`dial failed: ${reason}${facts.code === undefined ? "" : ` (${facts.code})`}`);
    this.reason = reason;
    this.code = facts.code;
    this.address = facts.address;
    this.detail = facts.detail;
  }
}

export interface DialOptions {
  /** A name or an IP literal without brackets. */
  readonly host: string;
  /** 1-65535. */
  readonly port: number;
  /** For everything together: the name and all its addresses. */
  readonly timeoutMs: number;
  readonly resolver: Pick<Resolver, "resolve">;
  /** Asked about every address before it is dialled; returns why it must not be. Default: none is refused. */
  readonly admit?: ((address: IpAddress) => string | undefined) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface Dialled {
  /**
   * Belongs to the caller. Half-open is allowed, and it is paused: no byte is read before `resume()`, a 'data' listener
   * alone does not do that. Keeps a listener for 'error' that does nothing, so it can never end the process.
   */
  readonly socket: Socket;
  /** The address that was dialled, without port. */
  readonly address: string;
}

/** The constructor hands them on to the stream, which is why they are more than its type knows. */
const SOCKET_OPTIONS = {
  allowHalfOpen: true,
  noDelay: true,
  keepAlive: true,
  keepAliveInitialDelay: 30_000,
  // Bytes that Node buffers in each direction; its default differs between versions.
  highWaterMark: 64 * 1024,
};
/** RFC 8305 §5, "Connection Attempt Delay": 250 ms, and at the very least 10 ms. */
const ATTEMPT_DELAY_MS = 250;
const MIN_ATTEMPT_DELAY_MS = 10;
/** Of a name with more addresses, the rest is not tried: it bounds the sockets one dial can hold. */
const MAX_ATTEMPTS = 32;

/**
 * Connects to a target.
 *
 * @throws DialError, and nothing else as long as `admit` does not throw
 */
export async function dial(options: DialOptions): Promise<Dialled> {
  const { host, port, timeoutMs, resolver, admit, signal } = options;
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new DialError("other", { detail: "port must be 1-65535" });
  }
  if (signal?.aborted === true) {
    throw new DialError("cancelled");
  }

  const stop = new Stop();
  const timer = setTimeout(() => stop.now("timeout"), timeoutMs);
  const onAbort = (): void => stop.now("cancelled");
  signal?.addEventListener("abort", onAbort);
  try {
    const literal = parseIpAddress(host);
    const addresses = admitted(literal === undefined ? await resolveName(host, resolver, stop) : [literal], admit);
    const attemptDelayMs = Math.max(
      MIN_ATTEMPT_DELAY_MS,
      // The last of many addresses still gets half of the time.
      Math.min(ATTEMPT_DELAY_MS, timeoutMs / (2 * addresses.length)),
    );
    return await connectToFirst({ addresses, port, attemptDelayMs, stop });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  }
}

/**
 * What ends both stages of a dial before its time. Not an `AbortSignal`, which is 2 % of the processor time of a short
 * connection.
 */
class Stop {
  /** Whether time or the caller did; undefined as long as the dial goes on. */
  reason: "timeout" | "cancelled" | undefined;
  /** Of the stage that runs. */
  onStop: (() => void) | undefined;

  now(reason: "timeout" | "cancelled"): void {
    if (this.reason !== undefined) return;
    this.reason = reason;
    this.onStop?.();
  }
}

async function resolveName(host: string, resolver: DialOptions["resolver"], stop: Stop): Promise<IpAddress[]> {
  const controller = new AbortController();
  stop.onStop = () => controller.abort();
  try {
    const texts = await resolver.resolve(host, { signal: controller.signal });
    return texts.map(parseIpAddress).filter((address) => address !== undefined);
  } catch (error) {
    if (!(error instanceof ResolveError)) {
      throw new DialError("other", { code: errorCode(error), detail: "name not resolved" });
    }
    const { code } = error;
    switch (error.reason) {
      case "cancelled":
        throw new DialError(stop.reason === "timeout" ? "name_timeout" : "cancelled");
      case "timeout":
        throw new DialError("name_timeout", { code });
      case "not_found":
        throw new DialError("name_not_found", { code });
      case "invalid_name":
        throw new DialError("name_not_found", { code, detail: "not a host name" });
      case "server_failure":
        throw new DialError("name_not_found", { code, detail: "name server failed" });
      case "busy":
        throw new DialError("resource", { detail: "too many names are being resolved" });
    }
  }
}

/** The addresses that may be dialled, in the order in which they are, at least one. */
function admitted(addresses: readonly IpAddress[], admit: DialOptions["admit"]): string[] {
  let refusal: DialError | undefined;
  const passed = addresses.filter((address) => {
    const detail = admit?.(address);
    if (detail !== undefined) {
      refusal ??= new DialError("forbidden", { address: formatIpAddress(address), detail });
    }
    return detail === undefined;
  });
  if (passed.length === 0) {
    throw refusal ?? new DialError("name_not_found", { detail: "the name has no address" });
  }
  return interleaved(passed).slice(0, MAX_ATTEMPTS).map(formatIpAddress);
}

/** Alternates between the families, starting with that of the first address (RFC 8305 §4). */
function interleaved(addresses: readonly IpAddress[]): IpAddress[] {
  const first = addresses.filter(({ family }) => family === addresses[0]?.family);
  const second = addresses.filter(({ family }) => family !== addresses[0]?.family);
  const order: IpAddress[] = [];
  for (let index = 0; index < Math.max(first.length, second.length); index++) {
    order.push(...first.slice(index, index + 1), ...second.slice(index, index + 1));
  }
  return order;
}

function connectToFirst(options: {
  addresses: readonly string[];
  port: number;
  attemptDelayMs: number;
  stop: Stop;
}): Promise<Dialled> {
  const { addresses, port, attemptDelayMs, stop } = options;
  return new Promise((resolve, reject) => {
    /** Sockets that still connect, with their addresses; bounded by `MAX_ATTEMPTS`, empty once this promise settles. */
    const attempts = new Map<Socket, string>();
    let next = 0;
    let failure: DialError | undefined;
    let timer: NodeJS.Timeout | undefined;

    const settle = (): void => {
      clearTimeout(timer);
      stop.onStop = undefined;
      for (const socket of attempts.keys()) {
        socket.destroy();
      }
      attempts.clear();
    };

    const onStop = (): void => {
      const [address = addresses[0]] = attempts.values();
      settle();
      reject(new DialError(stop.reason === "timeout" ? "timeout" : "cancelled", { address }));
    };

    const attemptNext = (): void => {
      clearTimeout(timer);
      const address = addresses[next++];
      if (address === undefined) {
        return;
      }
      const socket = targetSocket();
      attempts.set(socket, address);
      const failed = (error: DialError): void => {
        if (attempts.delete(socket)) {
          failure = moreTelling(failure, error);
          if (next < addresses.length) {
            attemptNext();
          } else if (attempts.size === 0) {
            settle();
            reject(failure);
          }
        }
      };
      socket.once("connect", () => {
        if (isConnectedToItself(socket)) {
          socket.resetAndDestroy();
          failed(new DialError("refused", { code: "ECONNREFUSED", address }));
        } else if (attempts.delete(socket)) {
          settle();
          resolve({ socket, address });
        }
      });
      socket.once("error", (error) => failed(new DialError(dialReason(error), { code: errorCode(error), address })));
      socket.connect({ host: address, port });
      if (next < addresses.length) {
        timer = setTimeout(attemptNext, attemptDelayMs);
      }
    };

    if (stop.reason !== undefined) {
      onStop();
      return;
    }
    stop.onStop = onStop;
    attemptNext();
  });
}

function targetSocket(): Socket {
  const socket = new Socket(SOCKET_OPTIONS);
  socket.on("error", () => {
    // Whoever holds the socket learns of the failure from listeners of its own.
  });
  socket.pause();
  return socket;
}

/**
 * Whether both ends are one: where nobody listens on a port of this machine, the system may choose that very port for the
 * outgoing end, and TCP lets the two SYNs open a connection that is its own echo (RFC 9293 §3.5, simultaneous open).
 */
function isConnectedToItself(socket: Socket): boolean {
  return socket.localPort === socket.remotePort && socket.localAddress === socket.remoteAddress;
}

/** Of the failures of several addresses, the one that says most about the target; of equals, the first. */
function moreTelling(known: DialError | undefined, other: DialError): DialError {
  return known === undefined || TELLING.indexOf(other.reason) < TELLING.indexOf(known.reason) ? other : known;
}

/** An answer of the target comes first; that this machine has no route for one of the families comes last. */
const TELLING: readonly DialErrorReason[] = ["refused", "reset", "timeout", "other", "resource", "unreachable"];

/** What ended a socket that was connected. */
export type SocketErrorReason = "reset" | "broken_pipe" | "timeout" | "unreachable" | "refused" | "resource" | "other";

/**
 * Says in our words what an error of a socket means. The only place that knows the system's codes, those of Windows
 * included, which libuv gives the same names.
 */
export function socketErrorReason(error: unknown): SocketErrorReason {
  switch (errorCode(error)) {
    case "ECONNREFUSED":
      return "refused";
    case "ECONNRESET":
    case "ECONNABORTED":
      return "reset";
    // The peer was gone already when this side wrote or ended.
    case "EPIPE":
    case "ENOTCONN":
    case "ESHUTDOWN":
    case "ERR_STREAM_DESTROYED":
    case "ERR_STREAM_WRITE_AFTER_END":
    case "ERR_STREAM_PREMATURE_CLOSE":
    case "ERR_SOCKET_CLOSED":
      return "broken_pipe";
    case "ETIMEDOUT":
    case "ERR_SOCKET_CONNECTION_TIMEOUT":
      return "timeout";
    case "EHOSTUNREACH":
    case "ENETUNREACH":
    case "EHOSTDOWN":
    case "ENETDOWN":
    case "ENONET":
    case "EAFNOSUPPORT":
    // A link-local address without a zone.
    case "EINVAL":
    // A packet filter of this machine.
    case "EACCES":
    case "EPERM":
      return "unreachable";
    // File descriptors, memory, or local ports (Linux also says so for an address of a family that is switched off).
    case "EMFILE":
    case "ENFILE":
    case "ENOBUFS":
    case "ENOMEM":
    case "EAGAIN":
    case "EADDRINUSE":
    case "EADDRNOTAVAIL":
      return "resource";
    default:
      return "other";
  }
}

function dialReason(error: unknown): DialErrorReason {
  const reason = socketErrorReason(error);
  return reason === "broken_pipe" ? "reset" : reason;
}

function errorCode(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
}
