/**
 * Watches how sources behave and says when one is to be banned. Pure: the caller reports what happened and passes the
 * time (milliseconds of a clock that only goes forward); a trip comes back, and whoever gets it makes the ban.
 *
 * Each detector is off until it is configured. What is remembered of a source is a few numbers, in a table of bounded size
 * whose least recently seen entry makes room.
 */
import type { Cidr, IpAddress } from "@sallyport/host";
import { BoundedTable } from "./bounded-table.ts";
import { SlidingCount } from "./sliding-count.ts";
import { DEFAULT_SOURCE_PREFIXES, type SourcePrefixes, sourceCidr, sourceKey } from "./source-key.ts";

export const detectorNames = [
  /** Connections of a source, refused ones included. */
  "connectRate",
  /** Connections of a source that are open at the same time, for the length of the window. */
  "concurrency",
  /** Connections that the partner closed without having sent a byte. */
  "emptyConnections",
  /** Connections that sent nothing within `firstByteTimeout`. */
  "noFirstByte",
  /** Connections over which too little came after a while. */
  "slowBytes",
  /** Connections whose PROXY header was missing or wrong. */
  "badProxyHeader",
  /** Different listeners that one source reached. */
  "listenerScan",
  /** Connections that the partner reset soon after it had made them. */
  "earlyResets",
] as const;

export type DetectorName = (typeof detectorNames)[number];

export interface DetectorSettings {
  /** Events within the window, connections or listeners, from which on a source is banned. */
  readonly threshold: number;
  readonly windowMs: number;
  /** The first ban; each further one is twice as long. */
  readonly ttlMs: number;
  readonly maxTtlMs: number;
  /** Trips are counted and told, nobody is banned. */
  readonly dryRun: boolean;
}

export interface DetectorsSettings {
  readonly prefixes: SourcePrefixes;
  /** What `slowBytes` takes for slow: fewer bytes from the partner than this, so long after it came. */
  readonly slow?: { readonly afterMs: number; readonly minBytes: number } | undefined;
  readonly detectors: Readonly<Partial<Record<DetectorName, DetectorSettings>>>;
}

/** A source that went over a threshold. */
export interface Trip {
  readonly detector: DetectorName;
  readonly cidr: Cidr;
  readonly ttlMs: number;
  /** How many times in a row, from 1. */
  readonly repeats: number;
  readonly dryRun: boolean;
}

/** The most sources that are remembered. */
export const MAX_SOURCES = 200_000;

interface History {
  readonly counts: Partial<Record<DetectorName, SlidingCount>>;
  /** Since when it has had as many open connections as the threshold of `concurrency`. */
  aboveSince: number | undefined;
  /** The listeners it reached and when last; never more than the threshold of `listenerScan`. */
  listeners: Map<string, number> | undefined;
}

export class Detectors {
  #settings: DetectorsSettings;
  readonly #sources: BoundedTable<History>;
  /** Sources that tripped, and until when that is remembered. */
  readonly #offenders: BoundedTable<{ repeats: number; until: number }>;
  /** Trips since the start, those of a dry run apart. */
  readonly counters: Partial<Record<DetectorName, { trips: number; dryRun: number }>> = {};

  constructor(
    settings: DetectorsSettings = { prefixes: DEFAULT_SOURCE_PREFIXES, detectors: {} },
    options: { maxSources?: number } = {},
  ) {
    this.#settings = settings;
    this.#sources = new BoundedTable(options.maxSources ?? MAX_SOURCES);
    this.#offenders = new BoundedTable(options.maxSources ?? MAX_SOURCES);
  }

  /** Sources that are remembered now. */
  get size(): number {
    return this.#sources.size;
  }

  /** Whether `connected` has anything to do. */
  get watchesConnects(): boolean {
    const { connectRate, listenerScan } = this.#settings.detectors;
    return connectRate !== undefined || listenerScan !== undefined;
  }

  watches(detector: DetectorName): boolean {
    return this.#settings.detectors[detector] !== undefined;
  }

  get evicted(): number {
    return this.#sources.evicted;
  }

  get settings(): DetectorsSettings {
    return this.#settings;
  }

  /** Windows may have another length now, so what was counted is forgotten; who tripped is not. */
  set settings(settings: DetectorsSettings) {
    this.#settings = settings;
    this.#sources.clear();
  }

  /** A connection came, admitted or not. */
  connected(address: IpAddress, listener: string, now: number): Trip | undefined {
    const { connectRate, listenerScan } = this.#settings.detectors;
    if (connectRate === undefined && listenerScan === undefined) return undefined;
    const rate = this.note("connectRate", address, now);
    if (rate !== undefined) return rate;
    if (listenerScan === undefined) return undefined;
    const history = this.#historyOf(address);
    history.listeners ??= new Map();
    const { listeners } = history;
    listeners.delete(listener);
    listeners.set(listener, now);
    // The first ones are the oldest, so that only what is dropped is looked at, and one more.
    for (const [name, at] of listeners) {
      if (at > now - listenerScan.windowMs) break;
      listeners.delete(name);
    }
    if (listeners.size < listenerScan.threshold) return undefined;
    listeners.clear();
    return this.#trip("listenerScan", listenerScan, address, now);
  }

  /** The number of open connections of a source has changed to `active`. */
  active(address: IpAddress, active: number, now: number): Trip | undefined {
    const settings = this.#settings.detectors.concurrency;
    if (settings === undefined) return undefined;
    if (active < settings.threshold) {
      const known = this.#sources.peek(sourceKey(address, this.#settings.prefixes));
      if (known !== undefined) known.aboveSince = undefined;
      return undefined;
    }
    const history = this.#historyOf(address);
    history.aboveSince ??= now;
    if (now - history.aboveSince < settings.windowMs) return undefined;
    history.aboveSince = undefined;
    return this.#trip("concurrency", settings, address, now);
  }

  /** Something that a detector counts has happened. */
  note(detector: DetectorName, address: IpAddress, now: number): Trip | undefined {
    const settings = this.#settings.detectors[detector];
    if (settings === undefined) return undefined;
    const { counts } = this.#historyOf(address);
    const count = (counts[detector] ??= new SlidingCount(now));
    if (count.add(now, settings.windowMs) < settings.threshold) return undefined;
    count.clear(now);
    return this.#trip(detector, settings, address, now);
  }

  /** What is counted of a source at this moment; undefined when nothing is known of it. */
  describe(address: IpAddress, now: number): Partial<Record<DetectorName, number>> | undefined {
    const history = this.#sources.peek(sourceKey(address, this.#settings.prefixes));
    if (history === undefined) return undefined;
    const described: Partial<Record<DetectorName, number>> = {};
    for (const name of detectorNames) {
      const settings = this.#settings.detectors[name];
      const count = history.counts[name];
      if (settings !== undefined && count !== undefined) {
        described[name] = Math.round(count.value(now, settings.windowMs) * 100) / 100;
      }
    }
    if (history.listeners !== undefined) described.listenerScan = history.listeners.size;
    return described;
  }

  /** Forgets a source, or all: what it did and how often it was banned. */
  clear(address?: IpAddress): number {
    if (address === undefined) {
      const count = this.#sources.size;
      this.#sources.clear();
      this.#offenders.clear();
      return count;
    }
    const key = sourceKey(address, this.#settings.prefixes);
    this.#offenders.delete(key);
    return this.#sources.delete(key) ? 1 : 0;
  }

  #historyOf(address: IpAddress): History {
    const key = sourceKey(address, this.#settings.prefixes);
    const known = this.#sources.use(key);
    if (known !== undefined) return known;
    const history: History = { counts: {}, aboveSince: undefined, listeners: undefined };
    this.#sources.set(key, history);
    return history;
  }

  #trip(detector: DetectorName, settings: DetectorSettings, address: IpAddress, now: number): Trip {
    const { prefixes } = this.#settings;
    const key = sourceKey(address, prefixes);
    const before = this.#offenders.use(key);
    const repeats = before !== undefined && now < before.until ? before.repeats + 1 : 1;
    // 2 ** 40 is beyond any cap, and does not overflow.
    const ttlMs = Math.min(settings.ttlMs * 2 ** Math.min(repeats - 1, 40), settings.maxTtlMs);
    // Good behaviour for as long as the longest ban, after this one, makes a first offender again.
    this.#offenders.set(key, { repeats, until: now + ttlMs + settings.maxTtlMs });
    const counter = (this.counters[detector] ??= { trips: 0, dryRun: 0 });
    if (settings.dryRun) counter.dryRun += 1;
    else counter.trips += 1;
    return { detector, cidr: sourceCidr(address, prefixes), ttlMs, repeats, dryRun: settings.dryRun };
  }
}
