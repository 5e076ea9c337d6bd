/**
 * The configuration file of the agent: its keys and their defaults. What the agent may dial stands here and nowhere else;
 * no frame from an edge changes it.
 */
import {
  accessLogSection,
  type Cidr,
  count,
  drainTimeout,
  duration,
  filePath,
  formatHostPort,
  type HostPort,
  heartbeatSection,
  hostPort,
  isDnsName,
  loadConfigFile,
  logSection,
  memorySize,
  metricsSection,
  name,
  parseCidr,
  parseHostPort,
  parsePort,
  spoken,
  timeoutsSection,
  stripeSetting,
} from "@sallyport/host";
import { z } from "zod";

/** A target that an edge may ask for by name. */
export interface Service {
  readonly target: HostPort;
  /** Connections at the same time; undefined: only the limits of the agent hold. */
  readonly maxConnections: number | undefined;
  /** Dials in a second; undefined: only the limits of the agent hold. */
  readonly dialsPerSecond: number | undefined;
  /** Whether an edge may have a PROXY header written to it. */
  readonly proxyProtocol: ProxyProtocolPermission;
}

export type ProxyProtocolPermission = "allow" | "deny";

/**
 * One entry of `allow`. A rule on addresses is checked against the resolved address, a rule on a name against the name.
 */
export interface AllowRule {
  /** As it stands in the file; the record of a connection names it. */
  readonly text: string;
  readonly subject:
    | { readonly type: "cidr"; readonly cidr: Cidr }
    /** In lower case. */
    | { readonly type: "name"; readonly name: string };
  /** First and last port that are allowed. */
  readonly ports: { readonly first: number; readonly last: number };
}

const service = z.union(
  [
    hostPort().transform(
      (target): Service => ({
        target,
        maxConnections: undefined,
        dialsPerSecond: undefined,
        proxyProtocol: "deny",
      }),
    ),
    z
      .strictObject({
        target: hostPort().describe("host:port that is dialled."),
        maxConnections: count()
          .optional()
          .describe("Connections to the service at the same time. Left out: only the limits of the agent hold."),
        dialsPerSecond: count()
          .optional()
          .describe("Dials of the service in a second. Left out: only the limits of the agent hold."),
        proxyProtocol: z
          .enum(["allow", "deny"])
          .default("deny")
          .describe(
            "allow: an edge may have a PROXY header written to the service, with the partner's address as the edge claims it.",
          ),
      })
      .transform(({ target, maxConnections, dialsPerSecond, proxyProtocol }): Service => {
        return { target, maxConnections, dialsPerSecond, proxyProtocol };
      }),
  ],
  spoken("must be host:port, or a map with target, maxConnections, dialsPerSecond and proxyProtocol"),
);

const allowRule = z
  .string()
  .meta({ pattern: "^(\\[[0-9a-fA-F:./]+\\]|[a-zA-Z0-9._/-]+):(\\*|[0-9]{1,5}(-[0-9]{1,5})?)$" })
  .transform((text, context): AllowRule => {
    try {
      return parseAllowRule(text);
    } catch (error) {
      context.addIssue({ code: "custom", message: error instanceof Error ? error.message : "not a rule" });
      return z.NEVER;
    }
  });

const proxyUrl = z
  .string(spoken("must be http://host:port"))
  .meta({ pattern: "^http://[^/@]+:[0-9]{1,5}/?$" })
  .transform((text, context) => {
    const [, address] = /^http:\/\/([^/]*)\/?$/.exec(text) ?? [];
    if (address === undefined) {
      context.addIssue({ code: "custom", message: "must be http://host:port" });
      return z.NEVER;
    }
    if (address.includes("@")) {
      context.addIssue({
        code: "custom",
        message: "must not hold a password; put user:password into the file of credentialsFile",
      });
      return z.NEVER;
    }
    try {
      return `http://${formatHostPort(parseHostPort(address))}`;
    } catch (error) {
      context.addIssue({
        code: "custom",
        message: error instanceof Error ? error.message : "must be http://host:port",
      });
      return z.NEVER;
    }
  });

/** The schema of agent.yaml. Durations come out in milliseconds, addresses as `{ host, port }`, services as a map. */
export const agentConfigSchema = z
  .strictObject({
    name: name().describe("Name of this agent, as in logs of agent and edge."),
    stateDir: filePath().default("/var/lib/sallyport-agent").describe("Directory of the admin socket; mode 0700."),
    edges: z
      .array(
        z.strictObject({
          credentialsFile: filePath().describe(
            "File that `sallyport-agent join` wrote: address, client, token and pin; mode 0600.",
          ),
        }),
      )
      .min(1, "at least one edge is required; pair with one by `sallyport-agent join`")
      .max(16)
      .superRefine((edges, context) => {
        for (const [at, { credentialsFile }] of edges.entries()) {
          if (edges.findIndex((other) => other.credentialsFile === credentialsFile) !== at) {
            context.addIssue({
              code: "custom",
              path: [at, "credentialsFile"],
              message: "another entry of edges has this file",
            });
          }
        }
      })
      .describe("The edges that this agent serves, each on its own."),
    renewLinks: duration({ max: "24d" })
      .prefault("1h")
      .describe(
        "How old a link may become before another replaces it, unseen by connections: load balancers cut old ones. 0s: any age.",
      ),
    links: count({ max: 16 }).default(2).describe("Connections to each edge; streams move to another when one dies."),
    // A map, not an object: `constructor` must not be found in it by accident.
    services: z
      .record(name(), service)
      .default({})
      .transform((services): ReadonlyMap<string, Service> => new Map(Object.entries(services)))
      .describe("Targets that an edge may ask for by name: host:port, or a map with limits."),
    allow: z
      .array(
        allowRule.describe(
          "CIDR:port, address:port or name:port; the port may be a range 1000-2000 or *, IPv6 stands in brackets.",
        ),
      )
      .max(10_000)
      .default([])
      .describe("Targets that an edge may ask for by address."),
    allowProxyProtocol: z
      .enum(["allow", "deny"])
      .default("deny")
      .describe("The same as a service's `proxyProtocol`, for the targets that `allow` admits."),
    timeouts: timeoutsSection(),
    limits: z
      .strictObject({
        maxStreams: count().default(10_000).describe("Connections for each edge at the same time."),
        dialsPerSecond: count().default(5_000).describe("Dials of all services and addresses in a second."),
      })
      .prefault({})
      .describe("Bounds of the whole agent."),
    proxy: z
      .strictObject({
        url: proxyUrl.describe("http://host:port of the proxy."),
        credentialsFile: filePath().optional().describe("File with user:password, mode 0600."),
      })
      .optional()
      .describe("HTTP proxy (CONNECT) on the way to the edges. Left out: none."),
    reconnect: z
      .strictObject({
        min: duration({ min: "10ms", max: "1m" })
          .prefault("200ms")
          .describe("The longest wait before the first new try."),
        max: duration({ min: "100ms", max: "1h" }).prefault("20s").describe("The longest wait before any try."),
      })
      .superRefine(({ min, max }, context) => {
        if (max < min) {
          context.addIssue({ code: "custom", path: ["max"], message: "must not be shorter than reconnect.min" });
        }
      })
      .prefault({})
      .describe("Waits between tries to reach an edge. They double and are random."),
    heartbeat: heartbeatSection(),
    memory: memorySize(),
    stripe: stripeSetting(),
    drainTimeout: drainTimeout(),
    accessLog: accessLogSection(),
    metrics: metricsSection(),
    log: logSection(),
  })
  .superRefine(({ services, allow }, context) => {
    if (services.size === 0 && allow.length === 0) {
      context.addIssue({
        code: "custom",
        path: ["services"],
        message: "at least one service or allow entry is required (an agent without dials nothing)",
      });
    }
  })
  .describe("Configuration of sallyport-agent.");

/** The configuration of the agent as the program sees it. */
export type AgentConfig = z.output<typeof agentConfigSchema>;

/** Reads agent.yaml. @throws Failure 78 with `file:line:column` when it is wrong, 74 or 77 when it cannot be read */
export function loadAgentConfig(path: string): AgentConfig {
  return loadConfigFile(path, agentConfigSchema);
}

const ALLOW_SHAPE = "must end in a port, such as 10.0.0.0/16:22, db.example:1000-2000 or [2001:db8::/32]:*";

/**
 * Parses `CIDR:port`, `address:port` or `name:port`; the port may be a range `1000-2000` or `*`, IPv6 stands in brackets.
 *
 * @throws Error whose message is a reason fit for the person who wrote the text; the text is not repeated in it
 */
export function parseAllowRule(text: string): AllowRule {
  const [, inBrackets, plain, ports] = /^(?:\[([^[\]]*)\]|([^:[\]]*)):([^:]*)$/.exec(text) ?? [];
  const host = inBrackets ?? plain;
  if (host === undefined || ports === undefined) {
    throw new Error(withoutPortReason(text));
  }
  if (inBrackets !== undefined && !inBrackets.includes(":")) {
    throw new Error("only an IPv6 address or CIDR stands in brackets");
  }
  const subject: AllowRule["subject"] =
    inBrackets === undefined && isDnsName(host)
      ? { type: "name", name: host.toLowerCase() }
      : { type: "cidr", cidr: parseCidr(host) };
  return { text, subject, ports: parsePorts(ports) };
}

/** An address that is no address deserves the first word; then comes the missing port. */
function withoutPortReason(text: string): string {
  if (isDnsName(text)) {
    return ALLOW_SHAPE;
  }
  try {
    return parseCidr(text).family === 6
      ? "an IPv6 address or CIDR stands in brackets and is followed by the port, such as [2001:db8::/32]:22"
      : ALLOW_SHAPE;
  } catch (error) {
    return error instanceof Error ? error.message : ALLOW_SHAPE;
  }
}

function parsePorts(text: string): AllowRule["ports"] {
  if (text === "*") {
    return { first: 1, last: 65_535 };
  }
  const [first, second, ...rest] = text.split("-").map(parsePort);
  const last = text.includes("-") ? second : first;
  if (first === undefined || last === undefined || rest.length > 0 || first === 0 || last < first) {
    throw new Error("port must be 1-65535, a range such as 1000-2000, or *");
  }
  return { first, last };
}
