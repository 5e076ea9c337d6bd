/**
 * How a connection ended, in the words of its record: HAProxy's two letters, which every operator knows
 * (haproxy doc/configuration.txt §8.5 "Session state at disconnection"), and a reason in words.
 *
 * First letter, who or what ended it: `-` normal, `C` the partner aborted, `S` the target aborted or refused, `c` and
 * `s` a timeout while waiting for the partner or the target, `P` a rule of ours, `R` a limit or a lack of resources,
 * `K` an operator, `D` no agent to reach the target, or the target marked down, `L` our own shutdown, `I` a bug or a violation.
 * Second letter, in which phase: `-` after the end, `A` at admission, `R` while its first bytes are read, `Q` while waiting for an agent or a target, `C` while connecting, `D` while bytes flowed,
 * `L` after the target had sent its last byte, `X` in the tunnel.
 */
import { type ResetReason, resetReason } from "@sallyport/protocol";
import type { SpliceEnd } from "./splice.ts";

export interface Ending {
  readonly code: string;
  readonly reason: string;
}

/** The endings that are not a matter of the bytes. */
export const Ended = {
  normal: { code: "--", reason: "finished" },
  partnerReset: { code: "CD", reason: "partner reset" },
  partnerGone: { code: "CC", reason: "partner left before the target was connected" },
  targetReset: { code: "SD", reason: "target reset" },
  targetRefused: { code: "SC", reason: "target refused" },
  targetUnreachable: { code: "SC", reason: "target unreachable" },
  targetTimeout: { code: "sC", reason: "connect timeout" },
  nameNotFound: { code: "SC", reason: "target name not found" },
  nameTimeout: { code: "sC", reason: "target name not resolved in time" },
  noTarget: { code: "SC", reason: "no target is available" },
  targetDown: { code: "DD", reason: "target marked down" },
  targetsFull: { code: "RQ", reason: "connection limit of the target" },
  targetQueueFull: { code: "RQ", reason: "too many connections wait for a target" },
  noTargetInTime: { code: "sQ", reason: "no target had room in time" },
  forbidden: { code: "PC", reason: "target not allowed by the agent" },
  noProxyHeader: { code: "PC", reason: "agent is too old to write a PROXY header" },
  limit: { code: "RC", reason: "limit of the agent" },
  resource: { code: "RC", reason: "out of resources" },
  partnerResetLast: { code: "CL", reason: "partner reset after the target had ended" },
  targetResetLast: { code: "SL", reason: "target reset after it had ended" },
  idleTimeoutLast: { code: "cL", reason: "idle timeout after the target had ended" },
  idleTimeout: { code: "cD", reason: "idle timeout" },
  /** The partner had ended, the target did not follow. */
  halfCloseTimeout: { code: "sD", reason: "half-close timeout" },
  halfCloseTimeoutLast: { code: "cL", reason: "half-close timeout" },
  maxDuration: { code: "PD", reason: "longest duration reached" },
  killed: { code: "KD", reason: "killed by operator" },
  shutdown: { code: "LD", reason: "shutdown" },
  sessionLost: { code: "DX", reason: "tunnel session not resumed in time" },
  replaced: { code: "DX", reason: "agent replaced by a new process" },
  revoked: { code: "DX", reason: "token of the agent revoked" },
  sessionUnknown: { code: "DX", reason: "tunnel session unknown to the edge" },
  noAgentInTime: { code: "DQ", reason: "no agent connected in time" },
  holdFull: { code: "RQ", reason: "too many connections wait for an agent" },
  noAgent: { code: "DX", reason: "no agent connected" },
  violation: { code: "IX", reason: "protocol violation" },
  internal: { code: "IX", reason: "internal error" },
} as const satisfies Record<string, Ending>;

/** A RESET in the words of a record; `sender` is the end of the tunnel that sent it. */
function endingOfReset(reason: ResetReason, options: { sender: "edge" | "agent"; connected: boolean }): Ending {
  const { sender, connected } = options;
  switch (reason) {
    case "connectionReset":
      if (sender === "edge") return connected ? Ended.partnerReset : Ended.partnerGone;
      return Ended.targetReset;
    case "targetRefused":
    case "targetUnreachable":
    case "targetTimeout":
    case "nameNotFound":
    case "forbidden":
    case "limit":
    case "resource":
    case "idleTimeout":
    case "halfCloseTimeout":
    case "killed":
    case "shutdown":
    case "sessionLost":
    case "replaced":
    case "revoked":
    case "sessionUnknown":
    case "targetDown":
      return Ended[reason];
    case "cancelled":
      return Ended.partnerGone;
    case "flowControl":
    case "stateLost":
    case "protocolViolation":
      return Ended.violation;
    case "internal":
      return Ended.internal;
  }
}

/** The ending of a spliced connection, seen from `side`; `connected`: the target had been reached. */
export function endingOf(end: SpliceEnd, options: { side: "edge" | "agent"; connected: boolean }): Ending {
  const ending = plainEndingOf(end, options);
  const { ended } = end;
  if (ended === undefined) return ending;
  return (options.side === "edge" ? ended.fromStream : ended.fromSocket) ? afterTargetEnded(ending) : ending;
}

/** The same ending when the target had sent its last byte: what was left was the partner's part. */
export function afterTargetEnded(ending: Ending): Ending {
  switch (ending) {
    case Ended.partnerReset:
      return Ended.partnerResetLast;
    case Ended.targetReset:
      return Ended.targetResetLast;
    case Ended.idleTimeout:
      return Ended.idleTimeoutLast;
    case Ended.halfCloseTimeout:
      return Ended.halfCloseTimeoutLast;
    default:
      return ending;
  }
}

function plainEndingOf(end: SpliceEnd, options: { side: "edge" | "agent"; connected: boolean }): Ending {
  const { side, connected } = options;
  switch (end.type) {
    case "finished":
      return Ended.normal;
    case "socketReset":
      return endingOfReset("connectionReset", { sender: side, connected });
    case "streamReset": {
      const sender = end.by === "session" ? side : side === "edge" ? "agent" : "edge";
      return endingOfReset(resetReason(end.code), { sender, connected });
    }
    case "timeout":
      return end.kind === "idle" ? Ended.idleTimeout : Ended.halfCloseTimeout;
    case "aborted":
      return endingOfReset(resetReason(end.code), { sender: side, connected });
  }
}
