/**
 * Turns names into addresses without `dns.lookup`. That one runs the C library's resolver on the four threads that the
 * process shares with file access: four look-ups at a dead name server, and nothing else gets on for many seconds. It also
 * takes `0x7f.1` and `2130706433` for addresses, which is how address checks are bypassed.
 *
 * Here a name goes through the hosts file and then to the DNS client inside Node, which waits in the event loop:
 *
 * ```
 *   literal ──► itself      localhost ──► loopback      name ──► cache ──► running look-up ──► hosts file ──► A and AAAA
 * ```
 *
 * Other sources that the C library may be told to ask (mDNS, LDAP, NetBIOS) are not asked.
 */
import { Resolver as DnsClient } from "node:dns/promises";
import { FileSnapshot } from "./file-snapshot.ts";
import { hostsFilePath, parseHosts } from "./hosts-file.ts";
import { formatIpAddress, parseIpAddress } from "./ip-address.ts";
import { completeNames, parseResolvConf } from "./resolv-conf.ts";

export type ResolveErrorReason =
  /** Not a host name that means one thing only: empty labels, other characters, a last label that is a number. */
  | "invalid_name"
  /** The name, or an address for it, does not exist. */
  | "not_found"
  /** No answer within the time of a look-up. */
  | "timeout"
  /** A name server failed or refused. */
  | "server_failure"
  /** Too many look-ups of other names are running. */
  | "busy"
  | "cancelled";

export class ResolveError extends Error {
  override readonly name = "ResolveError";
  readonly reason: ResolveErrorReason;
  /** The DNS client's code, such as `ENOTFOUND` or `ESERVFAIL`. */
  readonly code: string | undefined;

  constructor(reason: ResolveErrorReason, code?: string) {
    super(`name not resolved: ${reason}`);
    this.reason = reason;
    this.code = code;
  }
}

export interface ResolverOptions {
  /** Name servers as `address` or `address:port`. Default: those of the system, read again when they change. */
  readonly servers?: readonly string[];
  /** Default: that of the system. */
  readonly hostsFile?: string;
  /** Where `search` and `ndots` come from. Default: `/etc/resolv.conf`, on Windows none. */
  readonly resolvConfFile?: string;
  /** For all of a look-up, search domains included. Default 5000. */
  readonly timeoutMs?: number;
  /** For one question to one server, doubled for the second and last try. Default 1500. */
  readonly queryTimeoutMs?: number;
  /** Default 5000. */
  readonly positiveTtlMs?: number;
  /** For every kind of failure. Default 1000. */
  readonly negativeTtlMs?: number;
  /** Answers remembered; beyond, the oldest goes. Default 1000. */
  readonly maxEntries?: number;
  /** Look-ups of distinct names at a time; beyond, a further name fails with `busy`. Default 512. */
  readonly maxPending?: number;
  /** A monotonic clock in milliseconds. Default `performance.now`. */
  readonly now?: () => number;
}

/** What came of a look-up, kept apart from promises so that it can be remembered and nothing rejects unheard. */
type Answer =
  | { readonly addresses: readonly string[] }
  | { readonly reason: ResolveErrorReason; readonly code?: string };

/**
 * How long the addresses of one family wait for those of the other. RFC 8305 §3 says 50 ms; here an address of the second
 * family may be the only one that is allowed, so a slow answer is given more, and one that never comes costs little.
 */
const OTHER_FAMILY_DELAY_MS = 250;

/** Resolves names for one process. Holds no sockets or timers while no look-up runs, so nobody has to close it. */
export class Resolver {
  readonly #timeoutMs: number;
  readonly #queryTimeoutMs: number;
  readonly #positiveTtlMs: number;
  readonly #negativeTtlMs: number;
  readonly #maxEntries: number;
  readonly #maxPending: number;
  readonly #now: () => number;
  readonly #servers: readonly string[] | undefined;
  readonly #hosts: FileSnapshot<ReturnType<typeof parseHosts>>;
  readonly #resolvConf: FileSnapshot<ReturnType<typeof parseResolvConf>>;

  /** Bounded by `maxEntries`; the oldest entry comes first. */
  readonly #answers = new Map<string, { answer: Answer; expiresAt: number }>();
  /** Bounded by `maxPending`. */
  readonly #lookups = new Map<string, Promise<Answer>>();
  /** Look-ups that the DNS client still works on, also those that nobody waits for any more. */
  #pending = 0;
  #client: { dns: DnsClient; configuration: object } | undefined;

  constructor(options: ResolverOptions = {}) {
    this.#timeoutMs = options.timeoutMs ?? 5_000;
    this.#queryTimeoutMs = options.queryTimeoutMs ?? 1_500;
    this.#positiveTtlMs = options.positiveTtlMs ?? 5_000;
    this.#negativeTtlMs = options.negativeTtlMs ?? 1_000;
    this.#maxEntries = options.maxEntries ?? 1_000;
    this.#maxPending = options.maxPending ?? 512;
    this.#now = options.now ?? (() => performance.now());
    this.#servers = options.servers;
    this.#hosts = new FileSnapshot({ path: options.hostsFile ?? hostsFilePath(), parse: parseHosts, now: this.#now });
    const resolvConfFile = options.resolvConfFile ?? (process.platform === "win32" ? undefined : "/etc/resolv.conf");
    this.#resolvConf = new FileSnapshot({ path: resolvConfFile, parse: parseResolvConf, now: this.#now });
  }

  /**
   * The addresses of a name, at least one, in the order in which they should be tried. Callers that ask for the same name at
   * the same time share one look-up; a caller that is cancelled leaves it running for the others and for the cache.
   *
   * @throws ResolveError
   */
  async resolve(name: string, options: { signal?: AbortSignal | undefined } = {}): Promise<string[]> {
    const { signal } = options;
    if (signal?.aborted === true) {
      throw new ResolveError("cancelled");
    }
    const literal = parseIpAddress(name);
    if (literal !== undefined) {
      return [formatIpAddress(literal)];
    }
    const key = name.toLowerCase();
    if (!isHostName(key)) {
      throw new ResolveError("invalid_name");
    }
    const answer = this.#answerAtOnce(key) ?? (await untilAborted(this.#lookup(key), signal));
    if ("reason" in answer) {
      throw new ResolveError(answer.reason, answer.code);
    }
    return [...answer.addresses];
  }

  #answerAtOnce(name: string): Answer | undefined {
    const bare = name.replace(/\.$/, "");
    if (bare === "localhost" || bare.endsWith(".localhost")) {
      // RFC 6761 §6.3: never asked for, and nothing else whatever the hosts file says.
      return { addresses: ["127.0.0.1", "::1"] };
    }
    const known = this.#answers.get(name);
    if (known !== undefined && this.#now() < known.expiresAt) {
      return known.answer;
    }
    const addresses = this.#hosts.current().get(bare);
    return addresses === undefined ? undefined : { addresses };
  }

  #lookup(name: string): Promise<Answer> {
    const running = this.#lookups.get(name);
    if (running !== undefined) {
      return running;
    }
    if (this.#pending >= this.#maxPending) {
      return Promise.resolve({ reason: "busy" });
    }
    const lookup = this.#askInTime(name).then((answer) => {
      this.#lookups.delete(name);
      this.#remember(name, answer);
      return answer;
    });
    this.#lookups.set(name, lookup);
    return lookup;
  }

  #remember(name: string, answer: Answer): void {
    // Deleted first, so that the entry becomes the youngest.
    this.#answers.delete(name);
    const oldest = this.#answers.keys().next();
    if (this.#answers.size >= this.#maxEntries && oldest.done !== true) {
      this.#answers.delete(oldest.value);
    }
    const ttlMs = "reason" in answer ? this.#negativeTtlMs : this.#positiveTtlMs;
    this.#answers.set(name, { answer, expiresAt: this.#now() + ttlMs });
  }

  async #askInTime(name: string): Promise<Answer> {
    let timer: NodeJS.Timeout | undefined;
    const progress = { expired: false };
    const timeout = new Promise<Answer>((resolve) => {
      timer = setTimeout(() => {
        progress.expired = true;
        resolve({ reason: "timeout" });
      }, this.#timeoutMs);
    });
    // The place is taken until the DNS client is done, which may be later than this look-up's time.
    this.#pending++;
    const work = this.#askForAll(name, progress).finally(() => {
      this.#pending--;
    });
    const answer = await Promise.race([work, timeout]);
    clearTimeout(timer);
    return answer;
  }

  async #askForAll(name: string, progress: { readonly expired: boolean }): Promise<Answer> {
    let answer: Answer = { reason: "not_found" };
    for (const complete of completeNames(name, this.#resolvConf.current())) {
      if (complete.length > MAX_NAME_LENGTH) {
        continue;
      }
      answer = await this.#ask(complete);
      // Only "there is no such name" leads to the next one: a server that fails must not send a connection elsewhere.
      if (progress.expired || !("reason" in answer) || answer.reason !== "not_found") {
        break;
      }
    }
    return answer;
  }

  async #ask(name: string): Promise<Answer> {
    let dns: DnsClient;
    try {
      dns = this.#dnsClient();
    } catch (error) {
      return toFailure(error);
    }
    const ipv6 = dns.resolve6(name).then(toAnswer, toFailure);
    const ipv4 = dns.resolve4(name).then(toAnswer, toFailure);
    const first = await Promise.race([ipv6, ipv4]);
    if ("addresses" in first) {
      const nothing: Answer = { reason: "timeout" };
      const [six, four] = await Promise.all([within(ipv6, nothing), within(ipv4, nothing)]);
      return { addresses: [...addressesOf(six), ...addressesOf(four)] };
    }
    const [six, four] = await Promise.all([ipv6, ipv4]);
    const addresses = [...addressesOf(six), ...addressesOf(four)];
    if (addresses.length > 0) {
      return { addresses };
    }
    // "Not found" stands only when both say so; of two failures the more serious one is told.
    return "reason" in six && six.reason !== "not_found" ? six : four;
  }

  #dnsClient(): DnsClient {
    // The DNS client reads the system's servers when it is made, so a changed file needs a new one.
    const configuration = this.#resolvConf.current();
    if (this.#client === undefined || this.#client.configuration !== configuration) {
      const dns = new DnsClient({ timeout: this.#queryTimeoutMs, tries: 2 });
      if (this.#servers !== undefined) {
        dns.setServers(this.#servers);
      }
      this.#client = { dns, configuration };
    }
    return this.#client.dns;
  }
}

const MAX_NAME_LENGTH = 253;

/**
 * A host name in lower case that nothing can take for an address: labels of letters, digits, `-` and `_`, the last one
 * neither decimal nor `0x` hexadecimal (the WHATWG URL Standard's "ends in a number"), one trailing dot allowed.
 * International names are to be written in their ASCII form, because folding characters is another way to smuggle digits.
 */
function isHostName(name: string): boolean {
  const labels = name.replace(/\.$/, "").split(".");
  return (
    name.length <= MAX_NAME_LENGTH + 1 &&
    labels.every((label) => /^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/.test(label)) &&
    !/^(?:[0-9]+|0x[0-9a-f]*)$/.test(labels.at(-1) ?? "")
  );
}

function toAnswer(texts: readonly string[]): Answer {
  const addresses: string[] = [];
  for (const text of texts.slice(0, MAX_ADDRESSES)) {
    const address = parseIpAddress(text);
    if (address !== undefined) {
      addresses.push(formatIpAddress(address));
    }
  }
  return addresses.length === 0 ? { reason: "not_found" } : { addresses };
}

/** Of one answer of one family; a name with more addresses is served by the first of them. */
const MAX_ADDRESSES = 64;

function toFailure(error: unknown): Answer {
  const code = error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";
  switch (code) {
    case "ENOTFOUND":
    case "ENODATA":
      return { reason: "not_found", code };
    case "ETIMEOUT":
      return { reason: "timeout", code };
    case "EBADNAME":
      return { reason: "invalid_name", code };
    default:
      return { reason: "server_failure", code };
  }
}

function addressesOf(answer: Answer): readonly string[] {
  return "addresses" in answer ? answer.addresses : [];
}

async function within(answer: Promise<Answer>, otherwise: Answer): Promise<Answer> {
  let timer: NodeJS.Timeout | undefined;
  const delay = new Promise<Answer>((resolve) => {
    timer = setTimeout(resolve, OTHER_FAMILY_DELAY_MS, otherwise);
  });
  const result = await Promise.race([answer, delay]);
  clearTimeout(timer);
  return result;
}

async function untilAborted(answer: Promise<Answer>, signal: AbortSignal | undefined): Promise<Answer> {
  if (signal === undefined) {
    return answer;
  }
  let onAbort: (() => void) | undefined;
  const aborted = new Promise<Answer>((resolve) => {
    onAbort = () => resolve({ reason: "cancelled" });
    signal.addEventListener("abort", onAbort);
  });
  const result = await Promise.race([answer, aborted]);
  if (onAbort !== undefined) {
    signal.removeEventListener("abort", onAbort);
  }
  return result;
}
