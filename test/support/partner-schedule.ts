import { Chance } from "./chance.ts";
import type { PeerPlan } from "./scheduled-peer.ts";

/** No peer sends more. */
export const MAX_PEER_BYTES = 3_000_000;

/** What both peers and all between them do with one partner connection. */
export interface PartnerSchedule {
  readonly partner: PeerPlan;
  readonly target: PeerPlan;
  /** The partner sends a PROXY header first, which the edge takes away. */
  readonly header: boolean;
  readonly firstByte: boolean;
  /** What the look at a ClientHello waits for and leaves; 0: there is no such look. */
  readonly helloBytes: number;
  /** Bytes a millisecond, and at once. */
  readonly pace: { readonly perMs: number; readonly burst: number } | undefined;
  readonly way: "direct" | "tunnel";
  /** Through a tunnel, before the last. `refused`: by the target; `givenUp`: by the edge, soon after it has begun. */
  readonly failedTries: readonly ("refused" | "givenUp")[];
  /** `atEnd`: when the partner's end has been read, if that comes soon. */
  readonly connects: "soon" | "atEnd";
  /** Whoever has read this end resets both sides a turn or a few later: the edge, or the agent where there is one. */
  readonly killedAt: "partnersEnd" | "targetsEnd" | undefined;
  readonly initialCredit: number;
  readonly windowBytes: number;
}

/** The same schedule for the same seed. */
export function drawPartnerSchedule(seed: string): PartnerSchedule {
  const chance = new Chance(seed);
  const header = chance.happens(0.5);
  const firstByte = chance.happens(0.5);
  const helloBytes = chance.happens(0.5) ? chance.oneOf(1, 20, 1_000, 9_000, 30_000) : 0;
  const isLookedAt = header || firstByte || helloBytes > 0;
  const ends = (): PeerPlan["ends"] => chance.oneOf("end", "end", "end", "reset", "endAndReset");
  const bytes = () => chance.oneOf(0, 1, 10, 1_000, 8_192, 16_384, 65_536, 100_000, 300_000, 1_500_000, MAX_PEER_BYTES);
  const upTo = (all: number, { isCut }: { isCut: boolean }) => (isCut ? chance.below(all + 1) : all);
  const partnerEnds = ends();
  const targetEnds = ends();
  // One of them has to begin, and one has to read.
  const targetBegins = chance.oneOf("now", "atEnd");
  const partnerWaits = !isLookedAt && targetBegins === "now" && chance.happens(0.3);
  const partnerReads = chance.oneOf<PeerPlan["reads"]>("fast", "slowly", ...(partnerWaits ? [] : ["late" as const]));
  const targetMayBeLate = targetBegins === "now" && partnerReads !== "late" && !partnerWaits;
  const way = chance.oneOf("direct", "tunnel", "tunnel");
  const tries = way === "tunnel" ? chance.oneOf(0, 0, 1, 1, 2, 3) : 0;
  return {
    partner: {
      bytes: upTo(bytes(), { isCut: partnerEnds === "reset" }),
      begins: partnerWaits ? "atEnd" : "now",
      ends: partnerEnds,
      reads: partnerReads,
    },
    target: {
      bytes: upTo(bytes(), { isCut: targetEnds === "reset" }),
      begins: targetBegins,
      ends: targetEnds,
      reads: chance.oneOf<PeerPlan["reads"]>("fast", "slowly", ...(targetMayBeLate ? ["late" as const] : [])),
    },
    header,
    firstByte,
    helloBytes,
    pace: chance.oneOf(undefined, undefined, { perMs: 40_000, burst: 400_000 }, { perMs: 20_000, burst: 32_768 }),
    way,
    failedTries: Array.from({ length: tries }, () => chance.oneOf("refused", "givenUp")),
    connects: chance.oneOf("soon", "soon", "atEnd"),
    killedAt: chance.oneOf(undefined, undefined, undefined, undefined, "partnersEnd", "targetsEnd"),
    initialCredit: chance.oneOf(8_192, 16_384, 65_536),
    windowBytes: chance.oneOf(16_384, 262_144),
  };
}
