/** One try to reach a target on a route. It ends with one word to its events, or with none when it is cancelled. */
import type { Socket } from "node:net";
import type { DialErrorReason } from "@sallyport/host";
import type { ResetCode, ResetReason } from "@sallyport/protocol";
import { Ended, type Ending, type TunnelStream } from "@sallyport/tunnel";

export interface Attempt {
  start(): void;
  /** Gives up; no event follows. */
  cancel(code: ResetCode): void;
}

export type Connected =
  | { readonly type: "tunnel"; readonly stream: TunnelStream; readonly address: string }
  /** The socket is paused and belongs to whoever hears of it. */
  | { readonly type: "direct"; readonly socket: Socket; readonly address: string };

export interface AttemptEvents {
  onConnected(connected: Connected): void;
  onFailed(failure: AttemptFailure): void;
}

/**
 * Whose failure it is. `target`: another route may do better, and it counts against this one. `way`: the same, but the
 * target is not to blame. `agent`: the agent that was asked stops or is gone; the route is as good as it was, through
 * another agent of its client. `connection`: it concerns this connection alone, wherever it goes.
 */
export type Blame = "target" | "way" | "agent" | "connection";

export interface AttemptFailure {
  readonly ending: Ending;
  readonly blame: Blame;
  /** What was dialled, where that is known. */
  readonly address?: string | undefined;
}

/** What a RESET before ACCEPT says of the target. */
export const resetBlame: Readonly<Record<ResetReason, Blame>> = {
  connectionReset: "target",
  targetRefused: "target",
  targetUnreachable: "target",
  targetTimeout: "target",
  nameNotFound: "target",
  // The agents of another client may have other rules.
  forbidden: "target",
  limit: "way",
  resource: "way",
  shutdown: "agent",
  sessionLost: "agent",
  replaced: "agent",
  revoked: "agent",
  sessionUnknown: "agent",
  internal: "connection",
  idleTimeout: "connection",
  halfCloseTimeout: "connection",
  killed: "connection",
  flowControl: "connection",
  stateLost: "connection",
  protocolViolation: "connection",
  cancelled: "connection",
  targetDown: "connection",
};

/** The same of a dial of our own. */
export const dialFailures: Readonly<Record<DialErrorReason, AttemptFailure>> = {
  refused: { ending: Ended.targetRefused, blame: "target" },
  timeout: { ending: Ended.targetTimeout, blame: "target" },
  unreachable: { ending: Ended.targetUnreachable, blame: "target" },
  name_not_found: { ending: Ended.nameNotFound, blame: "target" },
  name_timeout: { ending: Ended.nameTimeout, blame: "target" },
  forbidden: { ending: Ended.forbidden, blame: "target" },
  reset: { ending: Ended.targetReset, blame: "target" },
  resource: { ending: Ended.resource, blame: "way" },
  cancelled: { ending: Ended.partnerGone, blame: "connection" },
  other: { ending: Ended.targetUnreachable, blame: "target" },
};
