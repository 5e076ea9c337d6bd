/**
 * What is asked of a connection before anything is made for it, in this order: the IP filter, bans, connection rates,
 * concurrency; and behind a proxy once more for the address of its PROXY header. Pure: the caller passes the time, in
 * milliseconds of a clock that only goes forward.
 *
 * Every rule can be switched off or run dry, in which case it is counted and nobody is refused. A source that an IP filter
 * trusts is asked for nothing but the hard maximum of the edge. Each question is O(1), and every table is bounded.
 */
import type { IpAddress } from "@sallyport/host";
import type { Ban, BanList } from "./ban-list.ts";
import { BoundedTable } from "./bounded-table.ts";
import type { IpFilter } from "./ip-filter.ts";
import { nextArrival, type RateSettings, rateWaitMs, UNUSED_RATE } from "./rate-limit.ts";
import { DEFAULT_SOURCE_PREFIXES, type SourcePrefixes, sourceKey } from "./source-key.ts";

/** The rules that can be switched, in the order in which they are asked. */
export const admissionRules = [
  "ipFilter",
  "ban",
  "connectionRatePerSource",
  "listenerConnectionRate",
  "listenerMaxConnections",
  "maxConnectionsPerSource",
  "proxyHeader",
  "firstByteTimeout",
  "targetMaxConnections",
] as const;

export type AdmissionRule = (typeof admissionRules)[number];

/** Why a connection is refused, as in metrics. The last two cannot be switched off. */
export type AdmissionRefusal = AdmissionRule | "maxConnections" | "badAddress";

/** `reset`: RST. `close`: FIN without a byte. `tarpit`: held unread for a while, then RST. */
export type OnDeny = "reset" | "close" | "tarpit";

export interface RulePolicy {
  readonly enabled: boolean;
  readonly dryRun: boolean;
  readonly onDeny: OnDeny;
}

export type AdmissionPolicy = Readonly<Record<AdmissionRule, RulePolicy>>;

/** Every rule holds, and a reset is the answer. */
export const DEFAULT_POLICY = Object.fromEntries(
  admissionRules.map((rule) => [rule, { enabled: true, dryRun: false, onDeny: "reset" }]),
) as unknown as AdmissionPolicy;

export interface AdmissionLimits {
  /** Partner connections of the whole edge. The hard maximum: it holds for trusted sources, too. */
  readonly maxConnections: number;
  /** Partner connections of one source. */
  readonly maxConnectionsPerSource: number;
  /** What counts as one source. */
  readonly sourcePrefixes?: SourcePrefixes;
  /** New connections of one source. Undefined: no limit. */
  readonly connectionRatePerSource?: RateSettings | undefined;
}

/** What admission asks of a listener. */
export interface DoorSettings {
  readonly name: string;
  readonly ipFilter: IpFilter | undefined;
  /** Undefined: only the limits of the edge hold. */
  readonly maxConnections: number | undefined;
  readonly connectionRate: RateSettings | undefined;
  readonly policy: AdmissionPolicy;
  /** Partners come through a proxy that tells their address: limits of a source wait for it. */
  readonly behindProxy: boolean;
}

/** A listener as admission sees it, with what it counts. Kept by the listener; a reload exchanges its settings. */
export class AdmissionDoor {
  settings: DoorSettings;
  /** Changed by `Admission` only. */
  active = 0;
  arrival = UNUSED_RATE;
  /** Connections that a rule in dry run would have refused. */
  readonly wouldRefuse: Partial<Record<AdmissionRule, number>> = {};

  constructor(settings: DoorSettings) {
    this.settings = settings;
  }
}

/** A rule that speaks against a connection. */
export interface Denial {
  readonly type: "denial";
  readonly reason: AdmissionRefusal;
  readonly onDeny: OnDeny;
  /** The rule of an IP filter, or the ban: what an operator has to change. */
  readonly rule: string | undefined;
  readonly ban: Ban | undefined;
  /** Milliseconds after which this rule alone would let the source in; undefined: not by itself, or unknown. */
  readonly forMs: number | undefined;
  readonly dryRun: boolean;
}

/** What would happen to a connection that came now. */
export interface Verdict {
  readonly trusted: boolean;
  /** The rule of the IP filter that allows it, where one does. */
  readonly allowedBy: string | undefined;
  /** The rule that refuses it; undefined: it would be admitted. */
  readonly denial: Denial | undefined;
  /** Rules in dry run that would refuse it. */
  readonly dryRun: readonly Denial[];
}

/** A place that was given to a connection. */
export class Admitted {
  readonly type = "admitted";
  readonly door: AdmissionDoor;
  /** The address that counts: the peer's, or that of its PROXY header. */
  address: IpAddress;
  trusted = false;
  /** Undefined while the connection counts for no source. */
  source: string | undefined;
  /** Rules in dry run that would have refused it. */
  readonly dryRun: Denial[] = [];
  /** False for a question that leaves no trace. */
  readonly counts: boolean;
  readonly #onRelease: (place: Admitted) => void;
  #released = false;

  constructor(options: {
    door: AdmissionDoor;
    address: IpAddress;
    counts: boolean;
    onRelease: (place: Admitted) => void;
  }) {
    this.door = options.door;
    this.address = options.address;
    this.counts = options.counts;
    this.#onRelease = options.onRelease;
  }

  /** Gives the place back, once. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#onRelease(this);
  }
}

/** Rates of sources that are remembered, at most. */
const MAX_SOURCES = 200_000;

export class Admission {
  readonly bans: BanList;
  #limits: AdmissionLimits;
  #active = 0;
  /** Connections by source; an entry goes with its last connection, so at most `maxConnections` entries. */
  readonly #sources = new Map<string, number>();
  readonly #rates: BoundedTable<number>;

  constructor(limits: AdmissionLimits, options: { bans: BanList; maxSources?: number }) {
    this.#limits = limits;
    this.bans = options.bans;
    this.#rates = new BoundedTable(options.maxSources ?? MAX_SOURCES);
  }

  get limits(): AdmissionLimits {
    return this.#limits;
  }

  /** Connections that are there count on, under the keys they came with. */
  set limits(limits: AdmissionLimits) {
    this.#limits = limits;
    this.#rates.clear();
  }

  get active(): number {
    return this.#active;
  }

  /** Sources with an open connection. */
  get sources(): number {
    return this.#sources.size;
  }

  /** Sources whose rate is remembered. */
  get ratedSources(): number {
    return this.#rates.size;
  }

  get evictedSources(): number {
    return this.#rates.evicted;
  }

  activeOf(address: IpAddress): number {
    return this.#sources.get(this.#keyOf(address)) ?? 0;
  }

  /** Takes a place for a connection, or says which rule refuses it; then no place is taken. */
  admit(address: IpAddress, door: AdmissionDoor, now: number): Admitted | Denial {
    const { ipFilter, behindProxy } = door.settings;
    const place = this.#place(address, door, true);
    const refused =
      this.#filtered(place, ipFilter?.decide(address)) ??
      this.#banned(place, now) ??
      (behindProxy ? undefined : this.#sourceTooFast(place, now)) ??
      this.#listenerTooFast(place, now) ??
      this.#listenerFull(place) ??
      (behindProxy ? undefined : this.#sourceFull(place)) ??
      (this.#active >= this.#limits.maxConnections ? hardMaximum : undefined);
    if (refused !== undefined) return this.#refuse(refused);
    this.#count(place);
    if (!behindProxy) this.#countSource(place);
    return place;
  }

  /**
   * Asks what concerns a source for the address of the PROXY header, which counts from now on instead of the proxy's. The
   * place is given back when the answer is a denial.
   */
  admitClient(place: Admitted, address: IpAddress, now: number): Admitted | Denial {
    const { door } = place;
    this.#uncountSource(place);
    place.address = address;
    place.trusted = false;
    const refused =
      this.#filtered(place, door.settings.ipFilter?.decide(address)) ??
      this.#banned(place, now) ??
      this.#sourceTooFast(place, now) ??
      this.#sourceFull(place);
    if (refused === undefined) {
      this.#countSource(place);
      return place;
    }
    place.release();
    return this.#refuse(refused);
  }

  /** Counts a refusal that comes from behind the chain, such as the first-byte guard; undefined when its rule is in dry run or off. */
  refuseLater(place: Admitted, rule: AdmissionRule, text?: string): Denial | undefined {
    const denial = this.#against(place, rule, text === undefined ? {} : { rule: text });
    return denial === undefined ? undefined : this.#refuse(denial);
  }

  /** What would happen to a connection from this address at this moment. Nothing is counted or taken. */
  explain(address: IpAddress, door: AdmissionDoor, now: number): Verdict {
    const { ipFilter } = door.settings;
    const place = this.#place(address, door, false);
    const decision = ipFilter?.explain(address);
    const denial =
      this.#filtered(place, decision) ??
      this.#banned(place, now) ??
      this.#sourceTooFast(place, now, "look") ??
      this.#listenerTooFast(place, now, "look") ??
      this.#listenerFull(place) ??
      this.#sourceFull(place) ??
      (this.#active >= this.#limits.maxConnections ? hardMaximum : undefined);
    const allowed = decision?.action === "allow" ? decision.rule : undefined;
    return {
      trusted: place.trusted,
      allowedBy: allowed === undefined ? undefined : `${allowed.action} ${allowed.cidr}`,
      denial,
      dryRun: place.dryRun,
    };
  }

  /** Whether detectors have nothing to do with this address: it is trusted, or banned already. */
  isSettled(address: IpAddress, door: AdmissionDoor, now: number): boolean {
    const decision = door.settings.ipFilter?.explain(address);
    const trusted = decision?.action === "allow" && decision.rule?.trusted === true;
    return trusted || (this.bans.size > 0 && this.bans.match(address, now) !== undefined);
  }

  /** What an IP filter or a ban says against a connection that is open already; limits do not concern it. */
  recheck(place: Admitted, address: IpAddress, now: number): Denial | undefined {
    const asked = this.#place(address, place.door, false);
    return this.#filtered(asked, place.door.settings.ipFilter?.explain(address)) ?? this.#banned(asked, now);
  }

  /** Forgets the rate of a source, or of all. */
  clearRates(address?: IpAddress): number {
    if (address !== undefined) return this.#rates.delete(this.#keyOf(address)) ? 1 : 0;
    const count = this.#rates.size;
    this.#rates.clear();
    return count;
  }

  /** Sources with open connections, at most `max` of them, those with the most first. */
  busiest(max: number): { key: string; active: number }[] {
    return [...this.#sources]
      .map(([key, active]) => ({ key, active }))
      .sort((a, b) => b.active - a.active)
      .slice(0, max);
  }

  // ── the rules, in their order ──

  #filtered(place: Admitted, decision: ReturnType<IpFilter["explain"]> | undefined): Denial | undefined {
    place.trusted = decision?.action === "allow" && decision.rule?.trusted === true;
    if (decision?.action !== "block") return undefined;
    const { rule } = decision;
    return this.#against(place, "ipFilter", { rule: rule === undefined ? "default" : `${rule.action} ${rule.cidr}` });
  }

  #banned(place: Admitted, now: number): Denial | undefined {
    if (place.trusted || this.bans.size === 0) return undefined;
    const ban = this.bans.match(place.address, now);
    if (ban === undefined) return undefined;
    const forMs = ban.expiresAt === undefined ? undefined : ban.expiresAt - now;
    return this.#against(place, "ban", { rule: `ban ${ban.text} (${ban.origin})`, ban, forMs });
  }

  #sourceTooFast(place: Admitted, now: number, mode?: "look"): Denial | undefined {
    const rate = this.#limits.connectionRatePerSource;
    if (rate === undefined || place.trusted) return undefined;
    const key = this.#keyOf(place.address);
    const arrival = (mode === "look" ? this.#rates.peek(key) : this.#rates.use(key)) ?? UNUSED_RATE;
    const next = nextArrival(rate, arrival, now);
    if (next === undefined) {
      return this.#against(place, "connectionRatePerSource", { forMs: rateWaitMs(rate, arrival, now) });
    }
    if (mode !== "look") this.#rates.set(key, next);
    return undefined;
  }

  #listenerTooFast(place: Admitted, now: number, mode?: "look"): Denial | undefined {
    const { door } = place;
    const rate = door.settings.connectionRate;
    if (rate === undefined || this.#isExempt(place)) return undefined;
    const next = nextArrival(rate, door.arrival, now);
    if (next === undefined) {
      return this.#against(place, "listenerConnectionRate", { forMs: rateWaitMs(rate, door.arrival, now) });
    }
    if (mode !== "look") door.arrival = next;
    return undefined;
  }

  #listenerFull(place: Admitted): Denial | undefined {
    const { active, settings } = place.door;
    if (settings.maxConnections === undefined || active < settings.maxConnections || this.#isExempt(place)) {
      return undefined;
    }
    return this.#against(place, "listenerMaxConnections", {});
  }

  #sourceFull(place: Admitted): Denial | undefined {
    if (place.trusted || this.activeOf(place.address) < this.#limits.maxConnectionsPerSource) return undefined;
    return this.#against(place, "maxConnectionsPerSource", {});
  }

  /** A proxy that is trusted does not make everybody behind it trusted. */
  #isExempt(place: Admitted): boolean {
    return place.trusted && !place.door.settings.behindProxy;
  }

  /** A denial where the rule is on; one in dry run is noted, and the next rule is asked. */
  #against(
    place: Admitted,
    reason: AdmissionRule,
    facts: { rule?: string; ban?: Ban; forMs?: number | undefined },
  ): Denial | undefined {
    const { enabled, dryRun, onDeny } = place.door.settings.policy[reason];
    if (!enabled) return undefined;
    const { rule, ban, forMs } = facts;
    const denial: Denial = { type: "denial", reason, onDeny, rule, ban, forMs, dryRun };
    if (!dryRun) return denial;
    place.dryRun.push(denial);
    if (place.counts) {
      place.door.wouldRefuse[reason] = (place.door.wouldRefuse[reason] ?? 0) + 1;
      if (ban !== undefined) ban.hits += 1;
    }
    return undefined;
  }

  // ── counting ──

  #place(address: IpAddress, door: AdmissionDoor, counts: boolean): Admitted {
    return new Admitted({ door, address, counts, onRelease: this.#onRelease });
  }

  #count(place: Admitted): void {
    this.#active += 1;
    place.door.active += 1;
  }

  #countSource(place: Admitted): void {
    const key = this.#keyOf(place.address);
    place.source = key;
    this.#sources.set(key, (this.#sources.get(key) ?? 0) + 1);
  }

  #uncountSource(place: Admitted): void {
    const key = place.source;
    if (key === undefined) return;
    place.source = undefined;
    const left = (this.#sources.get(key) ?? 1) - 1;
    if (left === 0) this.#sources.delete(key);
    else this.#sources.set(key, left);
  }

  #refuse(denial: Denial): Denial {
    if (denial.ban !== undefined) denial.ban.hits += 1;
    return denial;
  }

  readonly #onRelease = (place: Admitted): void => {
    this.#active -= 1;
    place.door.active -= 1;
    this.#uncountSource(place);
  };

  #keyOf(address: IpAddress): string {
    return sourceKey(address, this.#limits.sourcePrefixes ?? DEFAULT_SOURCE_PREFIXES);
  }
}

const hardMaximum: Denial = {
  type: "denial",
  reason: "maxConnections",
  onDeny: "reset",
  rule: undefined,
  ban: undefined,
  forMs: undefined,
  dryRun: false,
};
