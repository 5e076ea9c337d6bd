import { type IpAddress, parseCidr, parseIpAddress } from "@sallyport/host";
import { describe, expect, test } from "vitest";
import {
  Admission,
  AdmissionDoor,
  type AdmissionLimits,
  type AdmissionPolicy,
  type AdmissionRule,
  Admitted,
  DEFAULT_POLICY,
  type Denial,
  type DoorSettings,
  type RulePolicy,
} from "./admission.ts";
import { BanList } from "./ban-list.ts";
import { IpFilter } from "./ip-filter.ts";
import { sourceKey } from "./source-key.ts";

const address = (text: string): IpAddress => parseIpAddress(text)!;
const stranger = address("198.51.100.9");
const partner = address("203.0.113.5");
const friend = address("203.0.113.200");

const filter = new IpFilter({
  default: "block",
  rules: [
    { action: "allow", cidr: parseCidr("203.0.113.0/24") },
    { action: "allow", cidr: parseCidr("203.0.113.200"), trusted: true },
    { action: "block", cidr: parseCidr("203.0.113.66") },
  ],
});

const policy = (change: Partial<Record<AdmissionRule, Partial<RulePolicy>>>): AdmissionPolicy =>
  Object.fromEntries(
    Object.entries(DEFAULT_POLICY).map(([rule, value]) => [rule, { ...value, ...change[rule as AdmissionRule] }]),
  ) as unknown as AdmissionPolicy;

const door = (change: Partial<DoorSettings> = {}) =>
  new AdmissionDoor({
    name: "sftp",
    ipFilter: undefined,
    maxConnections: undefined,
    connectionRate: undefined,
    policy: DEFAULT_POLICY,
    behindProxy: false,
    ...change,
  });

const make = (limits: Partial<AdmissionLimits> = {}, bans = new BanList()) =>
  new Admission({ maxConnections: 100, maxConnectionsPerSource: 100, ...limits }, { bans, maxSources: 1_000 });

const outcome = (answer: Admitted | Denial) => (answer.type === "admitted" ? "admitted" : answer.reason);
const admitted = (answer: Admitted | Denial): Admitted => {
  if (answer.type !== "admitted") throw new Error(answer.reason);
  return answer;
};

describe("admission", () => {
  test("asks the IP filter, then bans, then rates, then concurrency, the hard maximum last", () => {
    const bans = new BanList();
    const admission = make(
      { maxConnections: 3, maxConnectionsPerSource: 2, connectionRatePerSource: { perSecond: 1, burst: 4 } },
      bans,
    );
    const listener = door({ ipFilter: filter, maxConnections: 3, connectionRate: { perSecond: 1, burst: 6 } });
    const ask = (source: IpAddress) => outcome(admission.admit(source, listener, 0));
    const other = address("203.0.113.6");
    expect(ask(stranger)).toBe("ipFilter");
    bans.add({ cidr: parseCidr("198.51.100.0/24"), origin: "manual", ttlMs: 0 }, 0);
    bans.add({ cidr: parseCidr("203.0.113.77"), origin: "manual", ttlMs: 0 }, 0);
    expect(ask(stranger)).toBe("ipFilter");
    expect(ask(address("203.0.113.77"))).toBe("ban");
    expect([ask(partner), ask(partner), ask(partner)]).toEqual(["admitted", "admitted", "maxConnectionsPerSource"]);
    expect([ask(partner), ask(partner)]).toEqual(["maxConnectionsPerSource", "connectionRatePerSource"]);
    expect([ask(other), ask(other), ask(other)]).toEqual([
      "admitted",
      "listenerMaxConnections",
      "listenerConnectionRate",
    ]);
    expect(outcome(admission.admit(other, listener, 10_000))).toBe("listenerMaxConnections");
    expect(outcome(admission.admit(other, door(), 10_000))).toBe("maxConnections");
  });

  test.each([
    ["maxConnections", { maxConnections: 1 }, {}],
    ["listenerMaxConnections", {}, { maxConnections: 1 }],
    ["maxConnectionsPerSource", { maxConnectionsPerSource: 1 }, {}],
    ["connectionRatePerSource", { connectionRatePerSource: { perSecond: 1, burst: 1 } }, {}],
    ["listenerConnectionRate", {}, { connectionRate: { perSecond: 1, burst: 1 } }],
  ] as const)("%s refuses what goes beyond it, and takes no place for it", (reason, limits, settings) => {
    const admission = make(limits);
    const listener = door(settings);
    const place = admitted(admission.admit(partner, listener, 0));
    expect(outcome(admission.admit(partner, listener, 0))).toBe(reason);
    expect([admission.active, listener.active, admission.sources]).toEqual([1, 1, 1]);
    place.release();
    expect(outcome(admission.admit(partner, listener, 2_000))).toBe("admitted");
  });

  test("releasing twice gives back one place, and the table of sources empties", () => {
    const admission = make();
    const listener = door();
    const one = admitted(admission.admit(partner, listener, 0));
    const two = admitted(admission.admit(partner, listener, 0));
    one.release();
    one.release();
    expect([admission.active, listener.active, admission.sources]).toEqual([1, 1, 1]);
    two.release();
    expect([admission.active, listener.active, admission.sources]).toEqual([0, 0, 0]);
  });

  test("a trusted source passes bans and every limit but the hard maximum", () => {
    const bans = new BanList();
    bans.add({ cidr: parseCidr("0.0.0.0/0"), origin: "manual", ttlMs: 0 }, 0);
    const admission = make(
      { maxConnections: 5, maxConnectionsPerSource: 1, connectionRatePerSource: { perSecond: 0.1, burst: 1 } },
      bans,
    );
    const listener = door({ ipFilter: filter, maxConnections: 1, connectionRate: { perSecond: 0.1, burst: 1 } });
    const answers = Array.from({ length: 6 }, () => outcome(admission.admit(friend, listener, 0)));
    expect(answers).toEqual([...Array.from({ length: 5 }, () => "admitted"), "maxConnections"]);
    expect(outcome(admission.admit(partner, listener, 0))).toBe("ban");
  });

  test.each([
    ["ipFilter", stranger],
    ["ban", address("203.0.113.77")],
    ["connectionRatePerSource", partner],
    ["listenerConnectionRate", partner],
    ["listenerMaxConnections", partner],
    ["maxConnectionsPerSource", partner],
  ] as const)("%s in dry run counts, and refuses nobody; switched off it does not even count", (rule, source) => {
    const limits = {
      ...(rule === "maxConnectionsPerSource" ? { maxConnectionsPerSource: 1 } : {}),
      ...(rule === "connectionRatePerSource" ? { connectionRatePerSource: { perSecond: 0.1, burst: 1 } } : {}),
    };
    const bans = new BanList();
    bans.add({ cidr: parseCidr("203.0.113.77"), origin: "manual", ttlMs: 0 }, 0);
    const settings = {
      ipFilter: filter,
      ...(rule === "listenerMaxConnections" ? { maxConnections: 1 } : {}),
      ...(rule === "listenerConnectionRate" ? { connectionRate: { perSecond: 0.1, burst: 1 } } : {}),
    };
    const run = (change: Partial<RulePolicy>) => {
      const admission = make(limits, bans);
      const listener = door({ ...settings, policy: policy({ [rule]: change }) });
      const answers = [0, 1].map(() => admission.admit(source, listener, 0));
      const last = answers[1]!;
      return {
        answer: outcome(last),
        told: last.type === "admitted" ? last.dryRun.map(({ reason }) => reason) : [],
        counted: listener.wouldRefuse[rule] ?? 0,
      };
    };
    const isLimit = rule !== "ipFilter" && rule !== "ban";
    expect(run({})).toEqual({ answer: rule, told: [], counted: 0 });
    expect(run({ dryRun: true })).toEqual({ answer: "admitted", told: [rule], counted: isLimit ? 1 : 2 });
    expect(run({ enabled: false })).toEqual({ answer: "admitted", told: [], counted: 0 });
  });

  test("says how a refusal is to be answered, and which ban or rule it was", () => {
    const bans = new BanList();
    const ban = bans.add({ cidr: parseCidr("203.0.113.0/28"), origin: "auto:connectRate", ttlMs: 60_000 }, 0)!;
    const listener = door({ ipFilter: filter, policy: policy({ ban: { onDeny: "tarpit" } }) });
    const admission = make({}, bans);
    expect(admission.admit(partner, listener, 15_000)).toMatchObject({
      onDeny: "tarpit",
      rule: "ban 203.0.113.0/28 (auto:connectRate)",
      forMs: 45_000,
    });
    expect(ban.hits).toBe(1);
    expect(admission.admit(address("203.0.113.66"), listener, 0)).toMatchObject({
      reason: "ipFilter",
      onDeny: "reset",
      rule: "block 203.0.113.66/32",
    });
    expect(admission.admit(stranger, listener, 0)).toMatchObject({ rule: "default" });
    expect(outcome(admission.admit(partner, listener, 60_000))).toBe("admitted");
  });

  test("explains without leaving a trace", () => {
    const bans = new BanList();
    const ban = bans.add({ cidr: parseCidr("203.0.113.77"), origin: "manual", ttlMs: 0 }, 0)!;
    const admission = make({ connectionRatePerSource: { perSecond: 0.1, burst: 1 } }, bans);
    const listener = door({ ipFilter: filter, policy: policy({ ban: { dryRun: true } }) });
    const before = filter.hitsOf(0);
    for (let at = 0; at < 3; at += 1) {
      expect(admission.explain(address("203.0.113.77"), listener, 0)).toMatchObject({
        trusted: false,
        allowedBy: "allow 203.0.113.0/24",
        denial: undefined,
        dryRun: [{ reason: "ban" }],
      });
    }
    expect(admission.explain(friend, listener, 0)).toMatchObject({ trusted: true, denial: undefined });
    admission.admit(partner, listener, 0);
    expect(admission.explain(partner, listener, 4_000).denial).toMatchObject({
      reason: "connectionRatePerSource",
      forMs: 6_000,
    });
    expect([ban.hits, filter.hitsOf(0) - before, admission.active, listener.wouldRefuse.ban]).toEqual([
      0,
      1,
      1,
      undefined,
    ]);
  });

  test("behind a proxy, what concerns a source waits for the address of the header", () => {
    const bans = new BanList();
    const admission = make({ maxConnectionsPerSource: 1, connectionRatePerSource: { perSecond: 0.1, burst: 1 } }, bans);
    const proxy = friend;
    const listener = door({ ipFilter: filter, behindProxy: true, connectionRate: { perSecond: 0.1, burst: 3 } });
    const come = (source: IpAddress) => {
      const place = admission.admit(proxy, listener, 0);
      return place.type === "admitted" ? admission.admitClient(place, source, 0) : place;
    };
    const first = admitted(come(partner));
    expect([first.address, first.trusted, admission.activeOf(partner), admission.activeOf(proxy)]).toEqual([
      partner,
      false,
      1,
      0,
    ]);
    expect(outcome(come(partner))).toBe("connectionRatePerSource");
    bans.add({ cidr: parseCidr("203.0.113.77"), origin: "manual", ttlMs: 0 }, 0);
    expect(outcome(come(address("203.0.113.77")))).toBe("ban");
    // A proxy that is trusted lends its trust to nobody: the listener's rate holds.
    expect(outcome(come(address("203.0.113.8")))).toBe("listenerConnectionRate");
    expect([admission.active, listener.active]).toEqual([1, 1]);
    first.release();
    expect([admission.active, listener.active, admission.sources]).toEqual([0, 0, 0]);
  });

  test("says what forbids a connection that is open: filter and bans, not limits", () => {
    const bans = new BanList();
    const admission = make({ maxConnectionsPerSource: 1 }, bans);
    const listener = door({ ipFilter: filter });
    const place = admitted(admission.admit(partner, listener, 0));
    expect(admission.recheck(place, place.address, 0)).toBeUndefined();
    bans.add({ cidr: parseCidr("203.0.113.5"), origin: "manual", ttlMs: 0 }, 0);
    expect(admission.recheck(place, place.address, 0)?.reason).toBe("ban");
    listener.settings = { ...listener.settings, ipFilter: new IpFilter({ default: "block", rules: [] }) };
    expect(admission.recheck(place, place.address, 0)?.reason).toBe("ipFilter");
  });

  test("remembers the rate of a bounded number of sources", () => {
    const admission = make({ connectionRatePerSource: { perSecond: 1, burst: 1 } });
    const listener = door();
    for (let at = 0; at < 5_000; at += 1) {
      const answer = admission.admit(address(`10.0.${at >> 8}.${at & 255}`), listener, 0);
      if (answer.type === "admitted") answer.release();
    }
    expect([admission.ratedSources, admission.evictedSources]).toEqual([1_000, 4_000]);
  });
});

describe("a source", () => {
  test.each([
    ["2001:db8:0:1::1", "2001:db8:0:1:ffff::2", { ipv4: 32, ipv6: 64 }, true],
    ["2001:db8:0:1::1", "2001:db8:0:2::1", { ipv4: 32, ipv6: 64 }, false],
    ["2001:db8:0:1::1", "2001:db8:0:2::1", { ipv4: 32, ipv6: 48 }, true],
    ["192.0.2.1", "192.0.2.2", { ipv4: 32, ipv6: 64 }, false],
    ["192.0.2.1", "192.0.2.200", { ipv4: 24, ipv6: 64 }, true],
    ["192.0.2.1", "192.0.3.1", { ipv4: 23, ipv6: 64 }, true],
    ["192.0.2.1", "192.0.4.1", { ipv4: 23, ipv6: 64 }, false],
    ["192.0.2.1", "::ffff:192.0.2.1", { ipv4: 32, ipv6: 64 }, true],
    ["1.2.3.4", "102:304::1", { ipv4: 32, ipv6: 64 }, false],
  ])("%s and %s with prefixes %j: one source %s", (one, other, prefixes, same) => {
    expect(sourceKey(address(one), prefixes) === sourceKey(address(other), prefixes)).toBe(same);
  });
});
