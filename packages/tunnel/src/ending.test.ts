import { ResetCode } from "@sallyport/protocol";
import { describe, expect, test } from "vitest";
import { Ended, endingOf } from "./ending.ts";
import type { SpliceEnd } from "./splice.ts";

const neither = { fromSocket: false, fromStream: false };
const fromSocket = { fromSocket: true, fromStream: false };
const fromStream = { fromSocket: false, fromStream: true };
const reset = { type: "socketReset", error: "ECONNRESET" } as const;
const idle = { type: "timeout", kind: "idle" } as const;
const halfClose = { type: "timeout", kind: "halfClose" } as const;
const ofPeer = (code: number) => ({ type: "streamReset", code, by: "peer" }) as const;

const seen: readonly [side: "edge" | "agent", end: SpliceEnd, code: string, what: string][] = [
  ["edge", { type: "finished", ended: { fromSocket: true, fromStream: true } }, "--", "both have ended"],
  ["edge", { ...reset, ended: neither }, "CD", "the partner resets"],
  ["edge", { ...reset, ended: fromStream }, "CL", "the partner resets after the target's last byte"],
  ["edge", { ...reset, ended: fromSocket }, "CD", "the partner resets after its own last byte"],
  ["edge", { ...ofPeer(ResetCode.connectionReset), ended: neither }, "SD", "the target resets"],
  ["edge", { ...ofPeer(ResetCode.connectionReset), ended: fromStream }, "SL", "the target resets after its last byte"],
  ["edge", { ...idle, ended: neither }, "cD", "nothing moves"],
  ["edge", { ...idle, ended: fromStream }, "cL", "nothing moves after the target's last byte"],
  ["edge", { ...halfClose, ended: fromSocket }, "sD", "the target does not follow the partner's end"],
  ["edge", { ...halfClose, ended: fromStream }, "cL", "the partner does not follow the target's end"],
  ["edge", { ...ofPeer(ResetCode.halfCloseTimeout), ended: fromSocket }, "sD", "the agent sees the target not follow"],
  ["agent", { ...reset, ended: neither }, "SD", "the target resets"],
  ["agent", { ...reset, ended: fromSocket }, "SL", "the target resets after its last byte"],
  [
    "agent",
    { ...ofPeer(ResetCode.connectionReset), ended: fromSocket },
    "CL",
    "the partner resets after the target's end",
  ],
  ["agent", { ...ofPeer(ResetCode.connectionReset), ended: fromStream }, "CD", "the partner resets after its own end"],
  ["agent", { ...halfClose, ended: fromStream }, "sD", "the target does not follow the partner's end"],
  ["agent", { ...halfClose, ended: fromSocket }, "cL", "the partner does not follow the target's end"],
  ["edge", { type: "aborted", code: ResetCode.killed, ended: fromStream }, "KD", "an operator ends it"],
  ["edge", { type: "aborted", code: ResetCode.shutdown, ended: neither }, "LD", "the program stops"],
  [
    "edge",
    { type: "streamReset", code: ResetCode.sessionLost, by: "session", ended: neither },
    "DX",
    "the agent is lost",
  ],
  ["edge", { ...ofPeer(60_000), ended: neither }, "IX", "a newer agent has a reason that this edge does not know"],
];

describe("the two letters", () => {
  test.each(seen)("at the %s: %j is %s: %s", (side, end, code) => {
    expect(endingOf(end, { side, connected: true }).code).toBe(code);
  });

  test("a partner that leaves before the target is connected has left while connecting", () => {
    expect(endingOf(reset, { side: "edge", connected: false }).code).toBe("CC");
  });

  test.each(Object.entries(ResetCode))("RESET %s has its words at both ends", (_, code) => {
    for (const side of ["edge", "agent"] as const) {
      for (const by of ["peer", "session"] as const) {
        expect(endingOf({ type: "streamReset", code, by }, { side, connected: true }).code).toMatch(
          /^[-A-Za-z][-A-Z]$/,
        );
      }
    }
  });

  test("no two endings have the same letters and words", () => {
    const spoken = Object.values(Ended).map(({ code, reason }) => `${code} ${reason}`);
    expect(new Set(spoken).size).toBe(spoken.length);
  });
});
