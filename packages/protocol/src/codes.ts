/**
 * Every way in which a stream, a link or a session ends, with its number on the wire.
 *
 * Numbers are never reused. A receiver treats a number that it does not know as `internal`, so that a newer peer may
 * add reasons without a new protocol version.
 */

/** Why a stream was aborted; carried by RESET. */
export const ResetCode = {
  /** The sender has a bug or no better word. */
  internal: 0,
  /** The TCP connection at the sender's side was reset or broke. */
  connectionReset: 1,
  /** The target refused the connection (its RST answered the SYN). */
  targetRefused: 2,
  /** No route to the target, or the network said so. */
  targetUnreachable: 3,
  /** The target did not answer within the connect timeout. */
  targetTimeout: 4,
  /** The target's name does not resolve. */
  nameNotFound: 5,
  /** The agent's own file does not allow the target that OPEN named. */
  forbidden: 6,
  /** A cap of the agent (per service, or of streams) is reached. */
  limit: 7,
  /** No byte moved in either direction for the idle timeout. */
  idleTimeout: 8,
  /** One direction had ended and the other did not within the half-close timeout. */
  halfCloseTimeout: 9,
  /** The operator stopped the deployment or killed the connection. */
  killed: 10,
  /** The sender shut down and its drain timeout passed. */
  shutdown: 11,
  /** The session could not be resumed in time. */
  sessionLost: 12,
  /** The peer sent more than the credit it had. */
  flowControl: 13,
  /** The peer asks to continue from bytes that are no longer kept: its state is older than what it had acknowledged. */
  stateLost: 14,
  /** The peer broke the protocol; the whole session ends. */
  protocolViolation: 15,
  /** The sender has no file descriptor, port or memory left for the connection. */
  resource: 16,
  /** The partner went away before the target was connected. */
  cancelled: 17,
  /** The edge has marked the target down and does not want connections on it to linger. */
  targetDown: 18,
  /** The session ended because another process has taken the agent's place. */
  replaced: 19,
  /** The session ended because the token of its links was revoked, or its client is no longer declared. */
  revoked: 20,
  /** The session ended because the edge does not know it any more. */
  sessionUnknown: 21,
} as const;
export type ResetCode = (typeof ResetCode)[keyof typeof ResetCode];
export type ResetReason = keyof typeof ResetCode;

const resetReasons = new Map<number, ResetReason>(
  Object.entries(ResetCode).map(([reason, code]) => [code, reason as ResetReason]),
);

/** The word for a code; `internal` for a number that this version does not know. */
export function resetReason(code: number): ResetReason {
  return resetReasons.get(code) ?? "internal";
}

/**
 * Why a link or session ends; carried by GO_AWAY and by the WebSocket close frame. The numbers lie in the range that
 * RFC 6455 §7.4.2 leaves to applications.
 */
export const CloseCode = {
  /** Finish what runs; nothing is wrong. */
  drain: 4000,
  /** This link alone has ended, because another replaces it; the session goes on. */
  renewed: 4001,
  /** The peer broke the protocol. */
  protocol: 4400,
  /** The token was revoked or the client is no longer declared. */
  authentication: 4401,
  /** The peer is not allowed what it asked for. */
  policy: 4403,
  /** The session to resume is unknown here, of another client or of another process. */
  sessionUnknown: 4404,
  /** Nothing was heard for the heartbeat timeout, or the handshake took too long. */
  timeout: 4408,
  /** Another process presented the same agent name and took over. */
  replaced: 4409,
  /** A message larger than the protocol allows. */
  tooLarge: 4413,
  /** No protocol version in common. */
  version: 4426,
  /** More useless frames than the budget allows. */
  budget: 4429,
} as const;
export type CloseCode = (typeof CloseCode)[keyof typeof CloseCode];
export type CloseReason = keyof typeof CloseCode;

const closeReasons = new Map<number, CloseReason>(
  Object.entries(CloseCode).map(([reason, code]) => [code, reason as CloseReason]),
);

/** The word for a code, or undefined for a number that is not ours. */
export function closeReason(code: number): CloseReason | undefined {
  return closeReasons.get(code);
}

/**
 * The peer broke the protocol. Whoever catches it ends the session with `code`; nothing of the offending frame has
 * taken effect.
 */
export class ProtocolError extends Error {
  readonly code: CloseCode;

  constructor(message: string, code: CloseCode = CloseCode.protocol) {
    super(message);
    this.name = "ProtocolError";
    this.code = code;
  }
}
