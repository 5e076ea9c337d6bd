/**
 * What the agent dials: the one place that decides. The edge is the machine we expect to lose, so a target that it names
 * is looked up in the agent's own rules at every OPEN, and the address that is dialled is checked after its name was
 * resolved.
 *
 * Loopback, link-local, multicast, metadata and their like need an entry that means them: a service whose host is that
 * address or `localhost`, or an allow rule that lies wholly inside such a range. `0.0.0.0/0` does not admit 127.0.0.1, and
 * a name that somebody points at 169.254.169.254 leads nowhere.
 */
import { cidrContains, type Cidr, type IpAddress, isSpecialAddress, parseIpAddress } from "@sallyport/host";
import type { AllowRule, ProxyProtocolPermission, Service } from "./config.ts";
import { parseTargetAddress } from "./target-address.ts";

/** The keys of the configuration that decide. */
export interface PolicyRules {
  readonly services: ReadonlyMap<string, Service>;
  readonly allow: readonly AllowRule[];
  /** Of targets that `allow` admits; a service says so itself. Default: deny. */
  readonly allowProxyProtocol?: ProxyProtocolPermission;
}

/** A target that may be resolved; whether it may be dialled is decided on its address. */
export interface Decision {
  /** A name to resolve, or a literal address. */
  readonly host: string;
  readonly port: number;
  /** The service that was named; undefined where `allow` admitted the target. */
  readonly service?: string;
  /** Whether an edge may have a PROXY header written to it. */
  readonly proxyProtocol: ProxyProtocolPermission;
  /** Why this address of the target is not dialled; undefined: it may be. */
  readonly admit: (address: IpAddress) => string | undefined;
  /** The rule that admits the address, for records. */
  readonly ruleFor: (address: IpAddress) => string | undefined;
}

/** The longest target that a decision is made about; OPEN holds no longer one either. */
const MAX_TARGET_CHARACTERS = 300;

export class Policy {
  readonly #services: ReadonlyMap<string, Service>;
  readonly #allowProxyProtocol: ProxyProtocolPermission;
  readonly #cidrRules: readonly (AllowRule & { subject: { type: "cidr" } })[];
  readonly #nameRules: ReadonlyMap<string, readonly AllowRule[]>;

  /** Without any rule everything is forbidden. */
  constructor(rules: PolicyRules) {
    this.#services = rules.services;
    this.#allowProxyProtocol = rules.allowProxyProtocol ?? "deny";
    this.#cidrRules = rules.allow.filter((rule): rule is AllowRule & { subject: { type: "cidr" } } => {
      return rule.subject.type === "cidr";
    });
    const nameRules = new Map<string, AllowRule[]>();
    for (const rule of rules.allow) {
      if (rule.subject.type !== "name") continue;
      const ofName = nameRules.get(rule.subject.name) ?? [];
      ofName.push(rule);
      nameRules.set(rule.subject.name, ofName);
    }
    this.#nameRules = nameRules;
  }

  /** Undefined: forbidden, and nothing is resolved. */
  decide(target: string): Decision | undefined {
    if (target.length > MAX_TARGET_CHARACTERS) return undefined;
    const service = this.#services.get(target);
    if (service !== undefined) return decideService(target, service);
    const wanted = parseTargetAddress(target);
    if (wanted === undefined) return undefined;
    const { host, port } = wanted;
    const names = wanted.type === "name" ? (this.#nameRules.get(host) ?? []) : [];
    const nameRule = names.find((rule) => holdsPort(rule, port));
    const cidrRules = this.#cidrRules.filter((rule) => holdsPort(rule, port));
    if (nameRule === undefined && cidrRules.length === 0) return undefined;
    const decision = decisionBy({
      host,
      port,
      proxyProtocol: this.#allowProxyProtocol,
      find: (address) => {
        if (nameRule !== undefined && nameAdmits(host, address)) return nameRule.text;
        return cidrRules.find((rule) => cidrAdmits(rule.subject.cidr, address))?.text;
      },
    });
    // A literal address needs no resolver to be refused.
    if (wanted.type === "address" && decision.admit(wanted.address) !== undefined) return undefined;
    return decision;
  }
}

function decideService(name: string, { target: { host, port }, proxyProtocol }: Service): Decision {
  const literal = parseIpAddress(host);
  return {
    ...decisionBy({
      host,
      port,
      proxyProtocol,
      find: (address) => {
        const admitted = literal === undefined ? nameAdmits(host, address) : sameAddress(literal, address);
        return admitted ? `service ${name}` : undefined;
      },
    }),
    service: name,
  };
}

function decisionBy(options: {
  host: string;
  port: number;
  proxyProtocol: ProxyProtocolPermission;
  find: (address: IpAddress) => string | undefined;
}): Decision {
  const { host, port, proxyProtocol, find } = options;
  return {
    host,
    port,
    proxyProtocol,
    ruleFor: find,
    admit: (address) => {
      if (find(address) !== undefined) return undefined;
      const kind = isSpecialAddress(address);
      return kind === undefined ? "address not allowed" : `${kind} address not allowed`;
    },
  };
}

/** A rule that gives a name trusts whoever answers for it, but not with addresses that mean this machine or its network. */
function nameAdmits(name: string, address: IpAddress): boolean {
  const kind = isSpecialAddress(address);
  if (name.toLowerCase() === "localhost") return kind === "loopback";
  return kind === undefined;
}

function cidrAdmits(cidr: Cidr, address: IpAddress): boolean {
  if (!cidrContains(cidr, address)) return false;
  const kind = isSpecialAddress(address);
  if (kind === undefined) return true;
  // The kinds are contiguous ranges, so a block whose two ends are of one kind lies inside it. The two ends of 0.0.0.0/0
  // are special, too, but of different kinds.
  return isSpecialAddress(cidr.address) === kind && isSpecialAddress(lastAddress(cidr)) === kind;
}

function lastAddress(cidr: Cidr): IpAddress {
  const bytes = cidr.address.bytes.map((byte, at) => {
    const networkBits = Math.min(Math.max(cidr.prefixLength - 8 * at, 0), 8);
    return byte | (0xff >> networkBits);
  });
  return { family: cidr.family, bytes };
}

function sameAddress(one: IpAddress, other: IpAddress): boolean {
  return one.family === other.family && one.bytes.every((byte, at) => byte === other.bytes[at]);
}

function holdsPort({ ports }: AllowRule, port: number): boolean {
  return ports.first <= port && port <= ports.last;
}
