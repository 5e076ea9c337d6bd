/** What can be done with bans, the same while the edge runs and while it does not. */
import {
  type Cidr,
  cidrContains,
  ExitCode,
  Failure,
  formatCidr,
  parseCidr,
  parseIpAddress,
  printableText,
} from "@sallyport/host";
import { type Ban, MAX_BAN_COMMENT } from "./ban-list.ts";
import type { BanStore } from "./ban-store.ts";
import type { IpFilter } from "./ip-filter.ts";

/** A ban as commands show it. Times are ISO 8601, UTC. */
export interface BanView {
  readonly cidr: string;
  readonly origin: string;
  readonly comment: string;
  readonly createdAt: string;
  /** Undefined: for good. */
  readonly expiresAt: string | undefined;
  readonly leftSeconds: number | undefined;
  readonly hits: number;
  readonly repeats: number;
}

export interface AddBan {
  readonly cidr: string;
  /** Milliseconds; 0: for good. */
  readonly ttlMs: number;
  readonly comment: string;
}

/** A hundred years. A date that is much later cannot be shown; a ban for good is one of 0. */
const MAX_TTL_MS = 36_500 * 86_400_000;

/** Listed at once, at most. */
export const MAX_LISTED_BANS = 10_000;

export function banView(ban: Ban, now: number): BanView {
  const { text, origin, comment, createdAt, expiresAt, hits, repeats } = ban;
  return {
    cidr: text,
    origin,
    comment,
    createdAt: new Date(createdAt).toISOString(),
    expiresAt: expiresAt === undefined ? undefined : new Date(expiresAt).toISOString(),
    leftSeconds: expiresAt === undefined ? undefined : Math.max(0, Math.round((expiresAt - now) / 1_000)),
    hits,
    repeats,
  };
}

/** @throws Failure 64 for what is neither an address nor a block */
export function readBlock(text: string): Cidr {
  try {
    return parseCidr(text);
  } catch (error) {
    throw new Failure(ExitCode.usage, "address", error instanceof Error ? error.message : "not an address or CIDR");
  }
}

/** Adds a ban by hand and writes it. @throws Failure 64 when it is refused, 74 or 77 when it cannot be written */
export async function addBan(store: BanStore, { cidr, ttlMs, comment }: AddBan, now: number): Promise<BanView> {
  if (comment.length > MAX_BAN_COMMENT) {
    throw new Failure(ExitCode.usage, "comment", `may have ${MAX_BAN_COMMENT} characters at most`);
  }
  if (ttlMs > MAX_TTL_MS) throw new Failure(ExitCode.usage, "--ttl", "may be 36500d at most; 0: for good");
  const ban = store.add({ cidr: readBlock(cidr), origin: "manual", ttlMs, comment: printableText(comment) });
  if (ban === undefined) {
    throw new Failure(ExitCode.usage, "ban", "the list is full; remove bans, or ban a wider block instead");
  }
  await store.save();
  return banView(ban, now);
}

/** @throws Failure 64 when there is no ban of exactly this block */
export async function removeBan(store: BanStore, text: string, now: number): Promise<BanView> {
  const cidr = readBlock(text);
  const ban = store.remove(formatCidr(cidr));
  if (ban === undefined) {
    const others = store.list.overlapping(cidr, now).map((other) => other.text);
    const hint = others.length === 0 ? "" : `; these concern it: ${others.slice(0, 5).join(", ")}`;
    throw new Failure(ExitCode.usage, formatCidr(cidr), `is not banned${hint}`);
  }
  await store.save();
  return banView(ban, now);
}

/** Removes all bans, or those of one origin. */
export async function flushBans(store: BanStore, origin: string | undefined): Promise<{ removed: number }> {
  const removed = store.flush(origin);
  await store.save();
  return { removed };
}

/** The bans that concern an address or a block: those that hold it, and those within it. */
export function getBans(store: BanStore, text: string, now: number): { bans: BanView[] } {
  return { bans: store.list.overlapping(readBlock(text), now).map((ban) => banView(ban, now)) };
}

export function listBans(
  store: BanStore,
  origin: string | undefined,
  now: number,
): { bans: BanView[]; total: number; more: boolean } {
  const bans: BanView[] = [];
  let total = 0;
  for (const ban of store.list.list(now)) {
    if (origin !== undefined && ban.origin !== origin && !ban.origin.startsWith(`${origin}:`)) continue;
    total += 1;
    if (bans.length < MAX_LISTED_BANS) bans.push(banView(ban, now));
  }
  return { bans, total, more: total > bans.length };
}

/** Trusted blocks that a ban touches: it does not concern them. By filter, at most ten. */
export function trustedWithin(
  filters: ReadonlyMap<string, IpFilter>,
  text: string,
): { filter: string; cidr: string }[] {
  const block = readBlock(text);
  const found: { filter: string; cidr: string }[] = [];
  for (const [filter, { rules }] of filters) {
    for (const { trusted, cidr } of rules) {
      if (trusted !== true || found.length >= 10) continue;
      if (touches(block, cidr)) found.push({ filter, cidr: formatCidr(cidr) });
    }
  }
  return found;
}

/** Of two blocks that have an address in common, one holds the other. */
function touches(one: Cidr, other: Cidr): boolean {
  return cidrContains(one, other.address) || cidrContains(other, one.address);
}

/** @throws Failure 64 */
export function readAddress(text: string): NonNullable<ReturnType<typeof parseIpAddress>> {
  const address = parseIpAddress(text);
  if (address === undefined) throw new Failure(ExitCode.usage, "address", "not a canonical IP address");
  return address;
}
