/**
 * Addresses and blocks that may not connect, each for a time or for good. Pure: the caller passes the time, in
 * milliseconds since 1970 of a clock that only goes forward while the process runs.
 *
 * A search asks one map for each prefix length that is in use, so it is bounded by the length of an address and, in
 * practice, two or three look-ups. Unlike the IP filter's trie, entries come and go all the time.
 */
import { type Cidr, cidrContains, formatCidr, type IpAddress, type IpFamily } from "@sallyport/host";
import { prefixKey } from "./source-key.ts";

/** Who made a ban: an operator, a detector, or a source of events by its name. */
export type BanOrigin = "manual" | `${"auto" | "log"}:${string}`;

export interface Ban {
  readonly cidr: Cidr;
  /** The block as text; the name of the ban. */
  readonly text: string;
  readonly origin: BanOrigin;
  readonly comment: string;
  readonly createdAt: number;
  /** Undefined: for good. */
  readonly expiresAt: number | undefined;
  /** How many times in a row this source was banned; a detector's next ban lasts longer. */
  readonly repeats: number;
  /** Connections that it refused, or would have refused. */
  hits: number;
}

export interface NewBan {
  readonly cidr: Cidr;
  readonly origin: BanOrigin;
  readonly comment?: string;
  /** Milliseconds; 0: for good. */
  readonly ttlMs: number;
  readonly repeats?: number;
}

/** The most bans. A manual one beyond is refused; one of a detector replaces the oldest of a detector. */
export const MAX_BANS = 200_000;
/** The longest comment, in UTF-16 units. */
export const MAX_BAN_COMMENT = 200;

export class BanList {
  readonly #maxBans: number;
  /** By block. Bounded by `maxBans`. */
  readonly #bans = new Map<string, Ban>();
  /** Those that no operator made, oldest first. */
  readonly #automatic = new Set<Ban>();
  readonly #families = { 4: new PrefixMaps(), 6: new PrefixMaps() } as const satisfies Record<IpFamily, PrefixMaps>;
  /** Bans by the second in which they expire. */
  readonly #expiring = new Map<number, Set<Ban>>();
  #sweptSecond: number | undefined;
  readonly #byOrigin = new Map<BanOrigin, number>();

  constructor(options: { maxBans?: number } = {}) {
    this.#maxBans = options.maxBans ?? MAX_BANS;
  }

  get size(): number {
    return this.#bans.size;
  }

  /** How many bans there are of each origin. */
  get byOrigin(): ReadonlyMap<BanOrigin, number> {
    return this.#byOrigin;
  }

  /**
   * Adds a ban, or replaces that of the same block. A ban that an operator made is not replaced by a detector's. Returns
   * undefined when the list is full, or the operator's ban when that stays.
   */
  add({ cidr, origin, comment = "", ttlMs, repeats = 1 }: NewBan, now: number): Ban | undefined {
    const text = formatCidr(cidr);
    const before = this.get(text, now);
    if (before?.origin === "manual" && origin !== "manual") return before;
    const ban: Ban = {
      cidr,
      text,
      origin,
      comment: comment.slice(0, MAX_BAN_COMMENT),
      createdAt: now,
      expiresAt: ttlMs === 0 ? undefined : now + ttlMs,
      repeats,
      hits: before?.hits ?? 0,
    };
    return this.insert(ban, now) ? ban : undefined;
  }

  /** Takes a ban as it is, from the disk. Returns false when it has expired or the list is full. */
  insert(ban: Ban, now: number): boolean {
    if (ban.expiresAt !== undefined && ban.expiresAt <= now) return false;
    this.sweep(now);
    const before = this.#bans.get(ban.text);
    if (before !== undefined) this.#drop(before);
    if (this.#bans.size >= this.#maxBans && !this.#makeRoom(ban)) {
      if (before !== undefined) this.#put(before);
      return false;
    }
    this.#put(ban);
    return true;
  }

  /** The ban of exactly this block. */
  get(text: string, now: number): Ban | undefined {
    const ban = this.#bans.get(text);
    return ban === undefined || isOver(ban, now) ? undefined : ban;
  }

  remove(text: string): Ban | undefined {
    const ban = this.#bans.get(text);
    if (ban !== undefined) this.#drop(ban);
    return ban;
  }

  /** Removes all bans, or those of one origin, and says how many. `auto` means every detector. */
  flush(origin?: string): number {
    let count = 0;
    for (const ban of this.#bans.values()) {
      if (origin !== undefined && ban.origin !== origin && !ban.origin.startsWith(`${origin}:`)) continue;
      this.#drop(ban);
      count += 1;
    }
    return count;
  }

  /** The ban with the longest prefix that holds the address. Counts nothing. */
  match(address: IpAddress, now: number): Ban | undefined {
    return this.#families[address.family].match(address.bytes, now);
  }

  /** Whether a ban concerns an address of this block: holds it, or lies in it. */
  overlapping(cidr: Cidr, now: number): Ban[] {
    return [...this.list(now)].filter(
      (ban) => cidrContains(ban.cidr, cidr.address) || cidrContains(cidr, ban.cidr.address),
    );
  }

  /** Those in force, oldest first. */
  *list(now: number): IterableIterator<Ban> {
    for (const ban of this.#bans.values()) if (!isOver(ban, now)) yield ban;
  }

  /** Forgets what has expired. Called about once a second; a search does not depend on it. */
  sweep(now: number): number {
    const second = Math.floor(now / 1_000);
    const from = this.#sweptSecond ?? second;
    this.#sweptSecond = Math.max(from, second);
    let count = 0;
    const drop = (at: number) => {
      for (const ban of this.#expiring.get(at) ?? []) {
        if (!isOver(ban, now)) continue;
        this.#drop(ban);
        count += 1;
      }
    };
    // After a long sleep the seconds in use are fewer than those that passed.
    if (second - from > this.#expiring.size) for (const at of this.#expiring.keys()) drop(at);
    else for (let at = from; at <= second; at += 1) drop(at);
    return count;
  }

  #makeRoom(ban: Ban): boolean {
    if (ban.origin === "manual") return false;
    const [oldest] = this.#automatic;
    if (oldest === undefined) return false;
    this.#drop(oldest);
    return true;
  }

  #put(ban: Ban): void {
    this.#bans.set(ban.text, ban);
    if (ban.origin !== "manual") this.#automatic.add(ban);
    this.#families[ban.cidr.family].set(ban);
    this.#byOrigin.set(ban.origin, (this.#byOrigin.get(ban.origin) ?? 0) + 1);
    if (ban.expiresAt === undefined) return;
    const second = Math.floor(ban.expiresAt / 1_000);
    const bucket = this.#expiring.get(second) ?? new Set();
    bucket.add(ban);
    this.#expiring.set(second, bucket);
  }

  #drop(ban: Ban): void {
    this.#bans.delete(ban.text);
    this.#automatic.delete(ban);
    this.#families[ban.cidr.family].delete(ban);
    const left = (this.#byOrigin.get(ban.origin) ?? 1) - 1;
    if (left === 0) this.#byOrigin.delete(ban.origin);
    else this.#byOrigin.set(ban.origin, left);
    if (ban.expiresAt === undefined) return;
    const second = Math.floor(ban.expiresAt / 1_000);
    const bucket = this.#expiring.get(second);
    bucket?.delete(ban);
    if (bucket?.size === 0) this.#expiring.delete(second);
  }
}

/** The bans of one family: a map for each prefix length that is in use, the longest first. */
class PrefixMaps {
  readonly #maps: { readonly prefixLength: number; readonly bans: Map<string, Ban> }[] = [];

  set(ban: Ban): void {
    const { prefixLength, address } = ban.cidr;
    let entry = this.#maps.find((map) => map.prefixLength === prefixLength);
    if (entry === undefined) {
      entry = { prefixLength, bans: new Map() };
      this.#maps.push(entry);
      this.#maps.sort((a, b) => b.prefixLength - a.prefixLength);
    }
    entry.bans.set(prefixKey(address.bytes, prefixLength), ban);
  }

  delete(ban: Ban): void {
    const { prefixLength, address } = ban.cidr;
    const at = this.#maps.findIndex((map) => map.prefixLength === prefixLength);
    const entry = this.#maps[at];
    if (entry === undefined) return;
    entry.bans.delete(prefixKey(address.bytes, prefixLength));
    if (entry.bans.size === 0) this.#maps.splice(at, 1);
  }

  match(bytes: Uint8Array, now: number): Ban | undefined {
    for (const { prefixLength, bans } of this.#maps) {
      const ban = bans.get(prefixKey(bytes, prefixLength));
      if (ban !== undefined && !isOver(ban, now)) return ban;
    }
    return undefined;
  }
}

function isOver(ban: Ban, now: number): boolean {
  return ban.expiresAt !== undefined && ban.expiresAt <= now;
}
