/**
 * Decides over the source address of a connection: block rules first, then allow rules, then the default. The order in
 * which rules are written has no meaning beyond that, so a list can be sorted or merged without opening a hole.
 *
 * IPv4 and IPv6 are searched apart, after the one unwrapping of mapped addresses that `readIpAddress` does. `net.BlockList`
 * does neither (`::/0` matches IPv4 there) and scans its rules one by one.
 */
import { type Cidr, formatCidr, type IpAddress, type IpFamily, readIpAddress } from "@sallyport/host";
import type { RuleAction } from "./rule-prefixes.ts";
import { RuleTrie } from "./rule-trie.ts";

export interface IpFilterRule {
  readonly action: RuleAction;
  readonly cidr: Cidr;
  readonly description?: string | undefined;
  /** Of an allow rule: its sources are not banned and not limited, but by the hard maximum of the edge. */
  readonly trusted?: boolean | undefined;
}

/** The answer about one address. Without a rule it was the default that decided, or that the address was unreadable. */
export interface IpFilterDecision {
  readonly action: RuleAction;
  readonly rule?: {
    /** Position in the filter's list of rules, from 0. */
    readonly index: number;
    readonly action: RuleAction;
    readonly cidr: string;
    readonly description: string;
    readonly trusted: boolean;
  };
}

/**
 * A named, shared set of rules; several listeners may hold one. It is immutable apart from its counters: a changed
 * configuration makes a new filter. Its memory is bounded by the number of rules.
 */
export class IpFilter {
  readonly default: RuleAction;
  readonly rules: readonly IpFilterRule[];
  /** Connections that no rule decided over. */
  defaultHits = 0;

  readonly #ipv4: RuleTrie;
  readonly #ipv6: RuleTrie;
  readonly #hits: Float64Array;
  /** One decision a rule, made when it is first needed: handing out the same object costs the accept path nothing. */
  readonly #decisions: Array<IpFilterDecision | undefined>;
  readonly #defaultDecision: IpFilterDecision;
  readonly #bytes = new Uint8Array(16);

  constructor(options: { default: RuleAction; rules: readonly IpFilterRule[] }) {
    this.default = options.default;
    this.rules = options.rules;
    this.#ipv4 = new RuleTrie(4, options.rules);
    this.#ipv6 = new RuleTrie(6, options.rules);
    this.#hits = new Float64Array(options.rules.length);
    this.#decisions = Array.from({ length: options.rules.length });
    this.#defaultDecision = { action: options.default };
  }

  /** Takes over what another filter has counted: a reload that keeps a rule keeps its hits. */
  inheritHits(from: IpFilter): void {
    const names = new Map(from.rules.map(({ action, cidr }, index) => [`${action} ${formatCidr(cidr)}`, index]));
    for (const [index, { action, cidr }] of this.rules.entries()) {
      const before = names.get(`${action} ${formatCidr(cidr)}`);
      if (before !== undefined) this.#hits[index] = from.hitsOf(before);
    }
    this.defaultHits = from.defaultHits;
  }

  /** Answers for an address without counting: what `test-ip` asks. */
  explain(address: IpAddress): IpFilterDecision {
    return this.#decisionOf(this.#find(address.family, address.bytes));
  }

  /** Decides over a connection from this address and counts it. */
  decide(address: IpAddress): IpFilterDecision {
    return this.#count(this.#find(address.family, address.bytes));
  }

  /**
   * Decides over a connection and counts it. Takes what the kernel reports (`socket.remoteAddress`): a mapped IPv4 address
   * counts as IPv4, a zone is ignored. What is no address, as of a socket that is already gone, is blocked whatever the
   * default is, and not counted. Allocates nothing once each deciding rule was met.
   */
  decidePeer(remoteAddress: string | undefined): IpFilterDecision {
    if (remoteAddress === undefined) {
      return UNREADABLE;
    }
    const zone = remoteAddress.indexOf("%");
    const family = readIpAddress(remoteAddress, this.#bytes, zone === -1 ? remoteAddress.length : zone);
    return family === 0 ? UNREADABLE : this.#count(this.#find(family, this.#bytes));
  }

  /** Connections that the rule at this position decided over. */
  hitsOf(index: number): number {
    return this.#hits[index] ?? 0;
  }

  #find(family: IpFamily, bytes: Uint8Array): number {
    return (family === 4 ? this.#ipv4 : this.#ipv6).find(bytes);
  }

  #count(index: number): IpFilterDecision {
    if (index === -1) {
      this.defaultHits++;
    } else {
      this.#hits[index] = this.hitsOf(index) + 1;
    }
    return this.#decisionOf(index);
  }

  #decisionOf(index: number): IpFilterDecision {
    if (index === -1) {
      return this.#defaultDecision;
    }
    const known = this.#decisions[index];
    if (known !== undefined) {
      return known;
    }
    const rule = this.rules[index];
    if (rule === undefined) {
      throw new RangeError("the trie names a rule that the filter does not have");
    }
    const { action, cidr, description = "", trusted = false } = rule;
    const decision: IpFilterDecision = {
      action,
      rule: { index, action, cidr: formatCidr(cidr), description, trusted: trusted && action === "allow" },
    };
    this.#decisions[index] = decision;
    return decision;
  }
}

const UNREADABLE: IpFilterDecision = { action: "block" };
