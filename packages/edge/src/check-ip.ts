/** What would happen to a connection from an address, on each listener, and why: the answer of `check-ip`. */
import { formatIpAddress, type IpAddress } from "@sallyport/host";
import type { Denial } from "./admission.ts";
import { type BanView, banView } from "./ban-commands.ts";
import type { Gatekeeper } from "./gatekeeper.ts";
import type { Listener } from "./listener.ts";

export interface ListenerAnswer {
  readonly listener: string;
  readonly verdict: "allow" | "refuse";
  /** The rule of admission that refuses it, in the word of records and metrics. */
  readonly reason: string | undefined;
  /** The rule of the IP filter or the ban that decides. */
  readonly rule: string | undefined;
  readonly ban: BanView | undefined;
  /** Seconds until this rule alone would let it in; undefined: not by itself. */
  readonly forSeconds: number | undefined;
  readonly onDeny: string | undefined;
  readonly trusted: boolean;
  /** Rules in dry run that would refuse it. */
  readonly dryRun: readonly { readonly reason: string; readonly rule: string | undefined }[];
}

export interface CheckIpAnswer {
  readonly address: string;
  /** Open connections of its source. */
  readonly connections: number;
  /** What detectors have counted within their windows. */
  readonly detectors: Readonly<Record<string, number>>;
  readonly listeners: readonly ListenerAnswer[];
}

export function checkIp(address: IpAddress, gatekeeper: Gatekeeper, listeners: Iterable<Listener>): CheckIpAnswer {
  const { admission, detectors, now } = gatekeeper;
  return {
    address: formatIpAddress(address),
    connections: admission.activeOf(address),
    detectors: detectors.describe(address, now) ?? {},
    listeners: [...listeners].map(({ name, door }) => {
      const { trusted, allowedBy, denial, dryRun } = admission.explain(address, door, now);
      const common = {
        listener: name,
        trusted,
        dryRun: dryRun.map(({ reason, rule }) => ({ reason, rule })),
      };
      return denial === undefined
        ? {
            ...common,
            verdict: "allow" as const,
            reason: undefined,
            rule: allowedBy,
            ban: undefined,
            forSeconds: undefined,
            onDeny: undefined,
          }
        : { ...common, verdict: "refuse" as const, ...denialFacts(denial, now) };
    }),
  };
}

function denialFacts({ reason, rule, ban, forMs, onDeny }: Denial, now: number) {
  return {
    reason,
    rule,
    ban: ban === undefined ? undefined : banView(ban, now),
    forSeconds: forMs === undefined ? undefined : Math.ceil(forMs / 1_000),
    onDeny,
  };
}
