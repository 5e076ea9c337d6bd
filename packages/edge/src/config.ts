/**
 * The configuration file of the edge: its keys, their defaults, and what must fit together. What comes out cannot be
 * wrong in itself; whether an address can be bound or a file read shows when it is done.
 */
import {
  accessLogSection,
  byteSize,
  count,
  drainTimeout,
  duration,
  filePath,
  formatHostPort,
  formatIpAddress,
  type HostPort,
  heartbeatSection,
  hostPort,
  listenAddress,
  loadConfigFile,
  logSection,
  memorySize,
  metricsSection,
  name,
  parseCidr,
  parseHostPort,
  parseIpAddress,
  timeoutOverrides,
  timeoutsSection,
  stripeSetting,
} from "@sallyport/host";
import { z } from "zod";
import { admissionRules } from "./admission.ts";
import { BALANCES } from "./balance.ts";
import { detectorNames } from "./detectors.ts";
import { ServerNameTable, serverNameFault } from "./server-name-table.ts";

const cidr = z
  .string()
  .meta({ pattern: "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$" })
  .transform((text, context) => {
    try {
      return parseCidr(text);
    } catch (error) {
      context.addIssue({ code: "custom", message: error instanceof Error ? error.message : "not a CIDR" });
      return z.NEVER;
    }
  });

const tunnel = z.strictObject({
  name: name().describe("Name of the tunnel."),
  listen: listenAddress().describe("IP address and port on which agents arrive."),
  publicAddress: hostPort()
    .optional()
    .describe(
      "host:port at which agents reach the tunnel; `pair` writes it into the pairing line. Left out: `listen`.",
    ),
  tls: z
    .strictObject({
      certFile: filePath().describe("PEM file with the certificate and its chain."),
      keyFile: filePath().describe("PEM file with the private key, mode 0600."),
      trust: z
        .enum(["pin", "system"])
        .default("pin")
        .describe(
          "pin: agents trust exactly this certificate. system: agents trust the certificate authorities of their system.",
        ),
    })
    .optional()
    .describe(
      "The certificate. Left out: one is made at first start, kept in stateDir and pinned by the pairing line.",
    ),
  handshakeTimeout: duration({ min: "500ms", max: "1m" })
    .prefault("5s")
    .describe("The longest time for TLS, and after it for the request of an agent."),
});

const client = z.strictObject({ name: name().describe("Name of the client, as in `pair NAME`.") });

const ipFilter = z.strictObject({
  name: name().describe("Name of the IP filter."),
  default: z.enum(["allow", "block"]).describe("What happens to an address that no rule names."),
  rules: z
    .array(
      z.strictObject({
        action: z
          .enum(["allow", "block"])
          .describe("Block rules go before allow rules, in whatever order they are written."),
        cidr: cidr.describe("An IP address or a CIDR without host bits."),
        description: z.string().max(1_000).optional().describe("Whose addresses these are."),
        trusted: z
          .boolean()
          .default(false)
          .describe("Of an allow rule: no ban and no limit but limits.maxConnections holds for its addresses."),
      }),
    )
    .default([])
    .describe("The rules. Their order has no meaning."),
});

const connectionRate = () =>
  z.strictObject({
    perSecond: z.number().min(0.001).max(1_000_000).describe("New connections a second in the long run."),
    burst: count().describe("New connections at once after silence."),
  });

/** How each rule of admission is carried out; what is left out is as in the general section, and there as the default says. */
const admissionRuleMap = () =>
  z
    .partialRecord(
      z.enum(admissionRules),
      z.strictObject({
        enabled: z.boolean().optional().describe("Whether the rule holds. Left out: true."),
        dryRun: z
          .boolean()
          .optional()
          .describe("Count and tell what it would refuse, refuse nothing. Left out: false."),
        onDeny: z
          .enum(["reset", "close", "tarpit"])
          .optional()
          .describe(
            "RST at once, FIN at once without a byte, or held unread for a while and then reset. Left out: reset.",
          ),
      }),
    )
    .default({});

const listener = z.strictObject({
  name: name().describe("Name of the listener."),
  listen: listenAddress().describe("IP address and port on which partners arrive."),
  ipFilter: name().optional().describe("Name of the IP filter. Left out: every address is allowed."),
  maxConnections: count()
    .optional()
    .describe("Connections on this listener at the same time. Left out: only the limits of the edge hold."),
  limits: z
    .strictObject({
      connectionRate: connectionRate()
        .optional()
        .describe("How fast new connections may come on this listener. Left out: no limit."),
      bytesPerSecond: byteSize({ min: "1KiB" })
        .optional()
        .describe("Bytes a second in each direction of all its connections together. Left out: no limit."),
      connectionBytesPerSecond: byteSize({ min: "1KiB" })
        .optional()
        .describe("Bytes a second in each direction of each connection. Left out: no limit."),
      firstByteTimeout: duration({ max: "1h" })
        .prefault("0s")
        .describe(
          "The partner must send something within this time, and nothing is opened before. 0s: off, as protocols need in which the server speaks first (SFTP, SMTP, FTP, MySQL).",
        ),
      maxDuration: duration().prefault("0s").describe("A connection is reset when it is this old. 0s: never."),
    })
    .prefault({})
    .describe("Limits of this listener, beside those of the edge."),
  admission: z
    .strictObject({
      rules: admissionRuleMap().describe("Rules that are carried out in another way on this listener, by name."),
    })
    .prefault({})
    .describe("How rules of admission are carried out on this listener."),
  proxyProtocol: z
    .enum(["off", "required"])
    .default("off")
    .describe(
      "required: every connection comes from one of trustedProxies and begins with a PROXY header (version 1 or 2). off: none is read.",
    ),
  trustedProxies: z
    .array(cidr)
    .max(1_000)
    .default([])
    .describe("Addresses of the proxies in front, whose headers are believed; needed with proxyProtocol: required."),
  proxyHeaderTimeout: duration({ min: "100ms", max: "1m" })
    .prefault("5s")
    .describe("The longest time for a whole PROXY header."),
  clientHelloTimeout: duration({ min: "100ms", max: "1m" })
    .prefault("5s")
    .describe(
      "The longest time for a TLS client to say whom it wants, where deployments have `sni`. Then the default deployment takes it, or none.",
    ),
});

const serverName = z
  .string()
  .meta({ pattern: "^(\\*\\.)?[a-zA-Z0-9_.-]+$", maxLength: 255 })
  .transform((text, context) => {
    const pattern = text.toLowerCase();
    const fault = serverNameFault(pattern);
    if (fault === undefined) return pattern;
    context.addIssue({ code: "custom", message: fault });
    return z.NEVER;
  });

const targetName = () => z.string().min(1).max(300);

/** Bytes as text: each character is the byte of its number, so that `"\\x00"` and `"\\r\\n"` of YAML mean what they say. */
const bytes = () =>
  z
    .string()
    .min(1)
    .max(1_024)
    .regex(/^[^\u0100-\uffff]*$/, "must hold characters up to \\xff only: each is one byte")
    .transform((text) => Buffer.from(text, "latin1"));

const poolTarget = z.strictObject({
  target: targetName().describe("host:port, or with `via` the name of a service that the agent defines."),
  weight: count({ min: 0, max: 1_000 })
    .default(1)
    .describe("The share of connections, relative to the other targets. 0: none."),
  backup: z.boolean().default(false).describe("Serves only while no target that is not a backup can."),
  maxConnections: count()
    .optional()
    .describe("Connections to the target at the same time, by all clients together. Left out: no limit of its own."),
});

const check = z.strictObject({
  type: z
    .enum(["tcp", "none"])
    .default("tcp")
    .describe("tcp: a TCP connection, by whoever dials, the agent or the edge itself. none: no checks."),
  interval: duration({ min: "100ms", max: "1h" }).prefault("5s").describe("From the end of a check to the next."),
  timeout: duration({ min: "10ms", max: "1m" })
    .prefault("2s")
    .describe("The longest time for connecting and for the expected answer."),
  rise: count({ max: 100 }).default(2).describe("Checks that succeed in a row before a target that is down is up."),
  fall: count({ max: 100 }).default(3).describe("Checks that fail in a row before a target that is up is down."),
  jitter: z.number().min(0).max(100).default(10).describe("How far an interval strays from its length, in percent."),
  send: bytes()
    .optional()
    .describe("Text that is sent when the target is connected; escapes such as \\r\\n in double quotes."),
  expect: bytes()
    .optional()
    .describe("Text that must appear in the first 4,096 bytes of the target. Left out: being connected is enough."),
});

/** What `check: {}` says. */
export const defaultCheck = check.parse({});

const ejection = z.strictObject({
  failures: count({ min: 0, max: 1_000 })
    .default(5)
    .describe("Connects that fail in a row before the target gets no connections for a while. 0: never."),
  time: duration({ min: "100ms", max: "1h" })
    .prefault("30s")
    .describe("How long it gets none the first time; the second time twice as long, and so on."),
  max: duration({ min: "100ms", max: "1d" }).prefault("5m").describe("The longest such time."),
});

const deployment = z.strictObject({
  name: name().describe("Name of the deployment."),
  listener: name().describe("Name of the listener. Several deployments may share one if `sni` tells them apart."),
  sni: z
    .array(serverName)
    .max(1_000)
    .default([])
    .describe(
      "TLS server names that it takes: a name, or *. and a name for exactly one label more. Left out: it takes whoever no other deployment of the listener takes.",
    ),
  alpn: z
    .array(z.string().regex(/^[\x21-\x7e]{1,255}$/, "must be 1 to 255 printable ASCII characters"))
    .max(100)
    .default([])
    .describe("Of its `sni`, only clients that offer one of these protocols (ALPN). Left out: all."),
  target: targetName()
    .optional()
    .describe("host:port, or with `via` the name of a service that the agent defines. Either this or `targets`."),
  targets: z
    .array(poolTarget)
    .min(1)
    .max(100)
    .optional()
    .describe("Several targets, among which connections are divided."),
  balance: z
    .enum(BALANCES)
    .default("roundRobin")
    .describe(
      "How: in turn; to the one with the fewest; by the partner's address; to the less loaded of two that are drawn; to the first that can.",
    ),
  retries: count({ min: 0, max: 10 })
    .default(2)
    .describe("How many other targets are tried when one cannot be connected."),
  queue: z
    .strictObject({
      max: count({ min: 0 })
        .default(0)
        .describe("Connections that wait while every target has its `maxConnections`. 0: the next is reset at once."),
      timeout: duration({ min: "10ms", max: "1h" })
        .optional()
        .describe("How long each waits. Left out: as long as `timeouts.connect`."),
    })
    .prefault({})
    .describe("Waiting for a target."),
  check: check
    .optional()
    .describe("Active checks. Left out: with the defaults where there are several targets or clients, else none."),
  ejection: ejection.prefault({}).describe("A pause for targets that partners' connections do not reach."),
  onDown: z
    .enum(["keep", "close"])
    .default("keep")
    .describe("What happens to the connections of a target that checks mark down: they go on, or are reset."),
  via: z
    .strictObject({
      tunnel: name().describe("Name of the tunnel."),
      client: name().optional().describe("Name of the client whose agents serve it. Either this or `clients`."),
      clients: z
        .array(name())
        .min(1)
        .max(16)
        .optional()
        .describe("Several clients, such as two sites: each target is reached by each of them."),
    })
    .optional()
    .describe("The way through an agent. Left out: the edge dials the target itself."),
  maxConnections: count()
    .optional()
    .describe("Connections to this target at the same time. Left out: only the limits of listener and edge hold."),
  proxyProtocol: z
    .enum(["off", "v1", "v2"])
    .default("off")
    .describe(
      "PROXY header with the partner's address that the target gets first. With `via` the agent writes it, if its own configuration allows it.",
    ),
  startup: z
    .enum(["auto", "manual"])
    .default("auto")
    .describe("Whether it listens as soon as the edge runs, or on command."),
  hold: z
    .strictObject({
      timeout: duration({ max: "1h" })
        .prefault("10s")
        .describe("How long a connection waits for an agent while none is connected. 0s: it is reset at once."),
      max: count().default(1_000).describe("How many connections wait at the same time."),
    })
    .prefault({})
    .describe("Accept and hold: what happens to connections while no agent of the client is connected."),
  timeouts: timeoutOverrides(),
});

const detector = z.strictObject({
  threshold: count({ min: 2 }).describe("Events of one source within the window that ban it."),
  window: duration({ min: "1s", max: "1d" }).prefault("1m").describe("The time that counts."),
  ttl: duration({ min: "1s" })
    .prefault("10m")
    .describe("How long the first ban lasts; each further one twice as long."),
  maxTtl: duration({ min: "1s" }).prefault("1d").describe("The longest ban."),
  dryRun: z.boolean().default(false).describe("Count and tell, ban nobody."),
  after: duration({ min: "1s", max: "1h" })
    .optional()
    .describe("Of slowBytes: the age at which a connection is looked at. Left out: 30s."),
  minBytes: byteSize({ min: "1B" })
    .optional()
    .describe("Of slowBytes: a connection from which less has come by then is slow. Left out: 1KiB."),
});

/** The schema of edge.yaml. Durations come out in milliseconds, addresses as `{ host, port }`, CIDRs parsed. */
export const edgeConfigSchema = z
  .strictObject({
    name: name().describe("Name of this edge, as in logs."),
    stateDir: filePath()
      .default("/var/lib/sallyport-edge")
      .describe("Directory of paired clients, the generated certificate and the admin socket; mode 0700."),
    tunnels: z.array(tunnel).max(100).default([]).describe("Where agents arrive."),
    clients: z.array(client).max(10_000).default([]).describe("Paired identities of agents."),
    ipFilters: z.array(ipFilter).max(10_000).default([]).describe("Sets of rules that listeners share."),
    listeners: z.array(listener).max(10_000).default([]).describe("Where partners arrive."),
    deployments: z.array(deployment).max(10_000).default([]).describe("What each listener does."),
    timeouts: timeoutsSection(),
    limits: z
      .strictObject({
        maxConnections: count().default(10_000).describe("Partner connections at the same time."),
        maxConnectionsPerSource: count().default(1_000).describe("Partner connections of one source at the same time."),
        connectionRatePerSource: connectionRate()
          .optional()
          .describe("How fast one source may make new connections. Left out: no limit."),
        sourcePrefixes: z
          .strictObject({
            ipv4: z.int().min(8).max(32).default(32).describe("Bits of an IPv4 address that make a source."),
            ipv6: z.int().min(16).max(128).default(64).describe("Bits of an IPv6 address that make a source."),
          })
          .prefault({})
          .describe("What counts as one source, for limits and detectors."),
      })
      .prefault({})
      .describe("Bounds of the whole edge."),
    admission: z
      .strictObject({
        closeExisting: z
          .boolean()
          .default(false)
          .describe("A ban, or a reload of IP filters, also resets connections that it forbids."),
        tarpit: z
          .strictObject({
            hold: duration({ min: "1s", max: "1h" }).prefault("30s").describe("How long a refused connection is held."),
            max: count({ min: 0, max: 10_000 })
              .default(100)
              .describe("Refused connections held at the same time; beyond, they are reset at once."),
          })
          .prefault({})
          .describe("For rules with `onDeny: tarpit`."),
        rules: admissionRuleMap().describe(`Rules of admission by name: ${admissionRules.join(", ")}.`),
      })
      .prefault({})
      .describe("How rules of admission are carried out, on every listener that says nothing else."),
    detectors: z
      .partialRecord(z.enum(detectorNames), detector)
      .default({})
      .describe(`Detectors that ban sources, by name; each is off until it stands here: ${detectorNames.join(", ")}.`),
    drainTimeout: drainTimeout(),
    resumeTimeout: duration({ min: "1s", max: "1h" })
      .prefault("1m")
      .describe("How long connections wait for an agent that lost all its links before they are reset."),
    heartbeat: heartbeatSection(),
    memory: memorySize(),
    stripe: stripeSetting(),
    recordInterval: duration({ max: "1d" })
      .prefault("5m")
      .describe("How often a long connection writes a record while it runs. 0s: only at its end."),
    accessLog: accessLogSection(),
    metrics: metricsSection(),
    log: logSection(),
  })
  .superRefine((config, context) => {
    const refuse = (path: readonly (string | number)[], message: string) =>
      context.addIssue({ code: "custom", path: [...path], message });
    const names = {
      tunnels: uniqueNames("tunnels", config.tunnels, refuse),
      clients: uniqueNames("clients", config.clients, refuse),
      ipFilters: uniqueNames("ipFilters", config.ipFilters, refuse),
      listeners: uniqueNames("listeners", config.listeners, refuse),
      deployments: uniqueNames("deployments", config.deployments, refuse),
    };
    for (const [at, { ipFilter: filter }] of config.listeners.entries()) {
      if (filter !== undefined && !names.ipFilters.has(filter)) {
        refuse(["listeners", at, "ipFilter"], "no IP filter of this name in ipFilters");
      }
    }
    for (const [at, { rules }] of config.ipFilters.entries()) {
      for (const [of, { action, trusted }] of rules.entries()) {
        if (trusted && action !== "allow") {
          refuse(["ipFilters", at, "rules", of, "trusted"], "only an allow rule can be trusted");
        }
      }
    }
    for (const [of, { ttl, maxTtl, after, minBytes }] of Object.entries(config.detectors)) {
      if (maxTtl < ttl) refuse(["detectors", of, "maxTtl"], "must not be less than ttl");
      if (of === "slowBytes") continue;
      if (after !== undefined) refuse(["detectors", of, "after"], "is a key of slowBytes");
      if (minBytes !== undefined) refuse(["detectors", of, "minBytes"], "is a key of slowBytes");
    }
    if (
      config.detectors.noFirstByte !== undefined &&
      config.listeners.every(({ limits }) => limits.firstByteTimeout === 0)
    ) {
      refuse(["detectors", "noFirstByte"], "no listener has limits.firstByteTimeout, so nothing would be counted");
    }
    for (const [at, { proxyProtocol, trustedProxies }] of config.listeners.entries()) {
      if (proxyProtocol === "required" && trustedProxies.length === 0) {
        refuse(["listeners", at, "proxyProtocol"], "needs trustedProxies: the addresses whose headers are believed");
      }
      if (proxyProtocol === "off" && trustedProxies.length > 0) {
        refuse(["listeners", at, "trustedProxies"], "has no effect without proxyProtocol: required");
      }
    }
    for (const [path, { proxyHeader }] of [
      [["admission", "rules", "proxyHeader"], config.admission.rules] as const,
      ...config.listeners.map(
        ({ admission }, at) => [["listeners", at, "admission", "rules", "proxyHeader"], admission.rules] as const,
      ),
    ]) {
      if (proxyHeader?.enabled === false || proxyHeader?.dryRun === true) {
        refuse(path, "a header that is required cannot be left out: only onDeny can be set; see proxyProtocol");
      }
    }
    refuseSharedClaims(config, refuse);
    for (const [at, entry] of config.deployments.entries()) {
      const { listener: of, via } = entry;
      if (!names.listeners.has(of)) {
        refuse(["deployments", at, "listener"], "no listener of this name in listeners");
      }
      if (via !== undefined && !names.tunnels.has(via.tunnel)) {
        refuse(["deployments", at, "via", "tunnel"], "no tunnel of this name in tunnels");
      }
      refuseRoutes(entry, { clients: names.clients, refuse: (path, why) => refuse(["deployments", at, ...path], why) });
    }
    refuseSharedAddresses(config, refuse);
  })
  .describe("Configuration of sallyport-edge.");

/** The configuration of the edge as the program sees it. */
export type EdgeConfig = z.output<typeof edgeConfigSchema>;

/** Reads edge.yaml. @throws Failure 78 with `file:line:column` when it is wrong, 74 or 77 when it cannot be read */
export function loadEdgeConfig(path: string): EdgeConfig {
  return loadConfigFile(path, edgeConfigSchema);
}

/** The clients of a deployment through agents; undefined when the edge dials itself. */
export function clientsOf({ via }: EdgeConfig["deployments"][number]): readonly string[] | undefined {
  return via === undefined ? undefined : (via.clients ?? (via.client === undefined ? [] : [via.client]));
}

/** The targets of a deployment, a single one as a pool of one. */
export function targetsOf({
  target,
  targets,
}: EdgeConfig["deployments"][number]): readonly z.output<typeof poolTarget>[] {
  if (targets !== undefined) return targets;
  return target === undefined ? [] : [{ target, weight: 1, backup: false }];
}

/** Targets and clients: one or several of each, each once, and such that they can be reached. */
function refuseRoutes(
  deployment: z.output<typeof edgeConfigSchema>["deployments"][number],
  { clients, refuse }: { clients: ReadonlySet<string>; refuse: Refuse },
): void {
  const { target, targets, via } = deployment;
  if ((target === undefined) === (targets === undefined)) refuse(["target"], "either target or targets must be given");
  if (via !== undefined && (via.client === undefined) === (via.clients === undefined)) {
    refuse(["via"], "either client or clients must be given");
  }
  if (via?.client !== undefined && !clients.has(via.client)) {
    refuse(["via", "client"], "no client of this name in clients");
  }
  for (const [at, client] of (via?.clients ?? []).entries()) {
    if (!clients.has(client)) refuse(["via", "clients", at], "no client of this name in clients");
    if (via?.clients?.indexOf(client) !== at) refuse(["via", "clients", at], "this client is in the list already");
  }
  if (target !== undefined) {
    const reason = targetFault(target, via !== undefined);
    if (reason !== undefined) refuse(["target"], reason);
  }
  for (const [at, { target: one }] of (targets ?? []).entries()) {
    const reason = targetFault(one, via !== undefined);
    if (reason !== undefined) refuse(["targets", at, "target"], reason);
    if (targets?.findIndex((other) => other.target === one) !== at) {
      refuse(["targets", at, "target"], "this target is in the list already; give it a larger weight instead");
    }
  }
  if (targets?.every(({ weight }) => weight === 0)) refuse(["targets"], "every target has weight 0: none would serve");
}

type Refuse = (path: readonly (string | number)[], message: string) => void;

function uniqueNames(section: string, entries: readonly { readonly name: string }[], refuse: Refuse): Set<string> {
  const names = new Set<string>();
  for (const [at, { name: entry }] of entries.entries()) {
    if (names.has(entry)) {
      refuse([section, at, "name"], `another entry of ${section} has this name`);
    }
    names.add(entry);
  }
  return names;
}

/** Every connection on a listener has one taker at most. */
function refuseSharedClaims(config: Pick<z.output<typeof edgeConfigSchema>, "deployments">, refuse: Refuse): void {
  const tables = new Map<string, ServerNameTable<number>>();
  for (const [at, { listener: of, sni, alpn }] of config.deployments.entries()) {
    if (alpn.length > 0 && sni.length === 0) {
      refuse(["deployments", at, "alpn"], "narrows `sni`, which is missing");
      continue;
    }
    const table = tables.get(of) ?? new ServerNameTable<number>();
    tables.set(of, table);
    const taken = table.add(at, { sni, alpn });
    if (taken === undefined) continue;
    if (taken.pattern === "") {
      refuse(
        ["deployments", at, "listener"],
        `deployments.${taken.taker} has this listener already; \`sni\` tells deployments of one listener apart`,
      );
    } else {
      const position = sni.indexOf(taken.pattern);
      refuse(
        ["deployments", at, "sni", position],
        `deployments.${taken.taker} takes this name on the same listener already`,
      );
    }
  }
}

/** A tunnelled target may be a service; only the agent knows its services, so any name will do here. */
function targetFault(target: string, isTunnelled: boolean): string | undefined {
  if (isTunnelled && /^[a-zA-Z0-9_-]{1,255}$/.test(target)) {
    return undefined;
  }
  try {
    parseHostPort(target);
    return undefined;
  } catch (error) {
    const reason = error instanceof Error ? error.message : "not host:port";
    return isTunnelled || target.includes(":") ? reason : `without via the edge dials the target itself: ${reason}`;
  }
}

interface Bound {
  readonly path: readonly (string | number)[];
  readonly address: HostPort;
}

/** Two sockets on one address, or on one port of an address and of all addresses, cannot be bound together. */
function refuseSharedAddresses(
  config: Pick<z.output<typeof edgeConfigSchema>, "tunnels" | "listeners" | "metrics">,
  refuse: Refuse,
): void {
  const bound: Bound[] = [
    ...config.tunnels.map(({ listen }, at) => ({ path: ["tunnels", at, "listen"], address: listen })),
    ...config.listeners.map(({ listen }, at) => ({ path: ["listeners", at, "listen"], address: listen })),
    ...(config.metrics === undefined ? [] : [{ path: ["metrics", "listen"], address: config.metrics.listen }]),
  ];
  const byPort = new Map<number, Bound[]>();
  for (const current of bound) {
    const { port } = current.address;
    // The system chooses for port 0, and never twice the same.
    if (port === 0) {
      continue;
    }
    const others = byPort.get(port) ?? [];
    const clash = others.find(({ address }) => overlaps(canonicalHost(address), canonicalHost(current.address)));
    if (clash !== undefined) {
      refuse(current.path, `${clash.path.join(".")} listens on ${formatHostPort(clash.address)} already`);
    }
    byPort.set(port, [...others, current]);
  }
}

function canonicalHost({ host }: HostPort): string {
  const address = parseIpAddress(host);
  return address === undefined ? host : formatIpAddress(address);
}

/** `::` takes the IPv4 addresses, too, as Node binds it. */
function overlaps(a: string, b: string): boolean {
  const isIpv4 = (host: string) => !host.includes(":");
  return a === b || a === "::" || b === "::" || ((a === "0.0.0.0" || b === "0.0.0.0") && isIpv4(a) && isIpv4(b));
}
