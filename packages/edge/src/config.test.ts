import { readFile } from "node:fs/promises";
import { checkConfigText, configSchemaText, Failure } from "@sallyport/host";
import { expect, test } from "vitest";
import { edgeConfigSchema, loadEdgeConfig } from "./config.ts";

const full = `
name: dmz-1
stateDir: /var/lib/sallyport-edge
tunnels:
  - name: dmz
    listen: 0.0.0.0:7443
    publicAddress: edge.example.com:7443
clients:
  - name: lan
ipFilters:
  - name: partners
    default: block
    rules:
      - { action: allow, cidr: 203.0.113.0/24, description: ACME }
      - { action: block, cidr: 203.0.113.66 }
listeners:
  - name: sftp
    listen: 0.0.0.0:2222
    ipFilter: partners
  - { name: web, listen: "[::1]:8443", maxConnections: 5 }
deployments:
  - name: partner-sftp
    listener: sftp
    target: sftp
    via: { tunnel: dmz, client: lan }
    startup: auto
  - { name: web, listener: web, target: "web.example:443", startup: manual, timeouts: { idle: 5m } }
limits: { maxConnections: 10000 }
metrics: { listen: 127.0.0.1:9180 }
`;

function fault(text: string): string {
  try {
    checkConfigText(text, "edge.yaml", edgeConfigSchema);
  } catch (error) {
    return error instanceof Failure && error.exitCode === 78
      ? error.message
      : `not a configuration failure: ${String(error)}`;
  }
  return "no fault";
}

/** The full file with one text in place of another. */
function changed(from: string, to: string): string {
  expect(full).toContain(from);
  return full.replace(from, to);
}

test("the keys of the design are read, durations as milliseconds and addresses taken apart", () => {
  const config = checkConfigText(full, "edge.yaml", edgeConfigSchema);
  expect(config).toMatchObject({
    name: "dmz-1",
    tunnels: [
      {
        listen: { host: "0.0.0.0", port: 7443 },
        publicAddress: { host: "edge.example.com", port: 7443 },
        handshakeTimeout: 5_000,
      },
    ],
    listeners: [
      { name: "sftp", ipFilter: "partners" },
      { listen: { host: "::1", port: 8443 }, maxConnections: 5 },
    ],
    deployments: [
      { target: "sftp", via: { tunnel: "dmz", client: "lan" }, startup: "auto" },
      { target: "web.example:443", startup: "manual", timeouts: { idle: 300_000 } },
    ],
    metrics: { listen: { host: "127.0.0.1", port: 9180 } },
  });
  expect(config.ipFilters[0]?.rules[0]).toMatchObject({
    action: "allow",
    cidr: { family: 4, prefixLength: 24 },
    description: "ACME",
  });
  expect(config.ipFilters[0]?.rules[1]).toMatchObject({ action: "block", cidr: { prefixLength: 32 } });
});

test("a file with a name only has every default", () => {
  expect(checkConfigText("name: e", "edge.yaml", edgeConfigSchema)).toEqual({
    name: "e",
    stateDir: "/var/lib/sallyport-edge",
    tunnels: [],
    clients: [],
    ipFilters: [],
    listeners: [],
    deployments: [],
    timeouts: { connect: 5_000, idle: 3_600_000, halfClose: 30_000 },
    limits: {
      maxConnections: 10_000,
      maxConnectionsPerSource: 1_000,
      sourcePrefixes: { ipv4: 32, ipv6: 64 },
    },
    admission: { closeExisting: false, tarpit: { hold: 30_000, max: 100 }, rules: {} },
    detectors: {},
    drainTimeout: 30_000,
    memory: 268_435_456,
    stripe: false,
    resumeTimeout: 60_000,
    heartbeat: { interval: 10_000, timeout: 25_000 },
    recordInterval: 300_000,
    log: { level: "info" },
  });
});

test.each([
  ["limits: {", "limts: {", "limts: unknown key; did you mean limits?"],
  ["ipFilter: partners", "ipfilter: partners", "listeners.0.ipfilter: unknown key; did you mean ipFilter?"],
  ["203.0.113.0/24", "203.0.113.5/24", "ipFilters.0.rules.0.cidr: host bits set; did you mean 203.0.113.0/24"],
  ["203.0.113.66", "010.0.0.1", "ipFilters.0.rules.1.cidr: not a canonical IP address or CIDR"],
  ["203.0.113.66", "0x0a000001", "ipFilters.0.rules.1.cidr: must be text (in quotes when it looks like a number)"],
  ["203.0.113.66", "'0x0a000001'", "ipFilters.0.rules.1.cidr: not a canonical IP address or CIDR"],
  ["203.0.113.66", "'10.1'", "ipFilters.0.rules.1.cidr: not a canonical IP address or CIDR"],
  ["203.0.113.66", "'fe80::1%eth0'", "ipFilters.0.rules.1.cidr: not a canonical IP address or CIDR"],
  ["203.0.113.66", "'１０.0.0.1'", "ipFilters.0.rules.1.cidr: not a canonical IP address or CIDR"],
  ["203.0.113.66", "10.0.0.0/33", "ipFilters.0.rules.1.cidr: prefix length must be 0-32"],
  ["203.0.113.66", "10.0.0.0/08", "ipFilters.0.rules.1.cidr: prefix length must be 0-32"],
  ["203.0.113.66", "10.0.0.0/-1", "ipFilters.0.rules.1.cidr: prefix length must be 0-32"],
  ["203.0.113.66", "10.0.0.0/8.5", "ipFilters.0.rules.1.cidr: prefix length must be 0-32"],
  ["203.0.113.66", "'::/129'", "ipFilters.0.rules.1.cidr: prefix length must be 0-128"],
  ["0.0.0.0:2222", "0.0.0.0:0x50", "listeners.0.listen: port must be 0-65535"],
  ["0.0.0.0:2222", "0.0.0.0:65536", "listeners.0.listen: port must be 0-65535"],
  ["0.0.0.0:2222", "0.0.0.0:80abc", "listeners.0.listen: port must be 0-65535"],
  ["0.0.0.0:2222", "0.0.0.0:8e1", "listeners.0.listen: port must be 0-65535"],
  ["0.0.0.0:2222", "0.0.0.0:-1", "listeners.0.listen: port must be 0-65535"],
  ["listener: sftp", "listener: ftp", "deployments.0.listener: no listener of this name in listeners"],
  ["tunnel: dmz,", "tunnel: dmx,", "deployments.0.via.tunnel: no tunnel of this name in tunnels"],
  ["client: lan }", "client: wan }", "deployments.0.via.client: no client of this name in clients"],
  ["ipFilter: partners", "ipFilter: partner", "listeners.0.ipFilter: no IP filter of this name in ipFilters"],
  [
    "via: { tunnel: dmz, client: lan }",
    "via: { tunnel: dmz }",
    "deployments.0.via: either client or clients must be given",
  ],
  ["via: { tunnel: dmz, client: lan }", "via: { client: lan }", "deployments.0.via.tunnel: required"],
  [
    "    via: { tunnel: dmz, client: lan }\n",
    "",
    "deployments.0.target: without via the edge dials the target itself: must be host:port, such as host.example:22, 192.0.2.1:22 or [2001:db8::1]:22",
  ],
  ["web.example:443", "web.example:0", "deployments.1.target: port must be 1-65535"],
  ["target: sftp", "target: 10.1:22", "deployments.0.target: the host is not a DNS name or canonical IP address"],
  [
    "listener: web",
    "listener: sftp",
    "deployments.1.listener: deployments.0 has this listener already; `sni` tells deployments of one listener apart",
  ],
  [
    "limits: {",
    "admission: { rules: { proxyHeader: { dryRun: true } } }\nlimits: {",
    "admission.rules.proxyHeader: a header that is required cannot be left out: only onDeny can be set; see proxyProtocol",
  ],
  ["startup: auto", "alpn: [h2]", "deployments.0.alpn: narrows `sni`, which is missing"],
  ["startup: auto", "sni: ['a*.example']", "deployments.0.sni.0: a wildcard is the whole first label: *.corp.example"],
  [
    "startup: auto",
    "sni: [a.example, 192.0.2.1]",
    "deployments.0.sni.1: must be a host name, or *. and a host name; no IP address, no dot at its end",
  ],
  [
    "ipFilter: partners",
    "proxyProtocol: required",
    "listeners.0.proxyProtocol: needs trustedProxies: the addresses whose headers are believed",
  ],
  [
    "ipFilter: partners",
    "trustedProxies: [10.0.0.2]",
    "listeners.0.trustedProxies: has no effect without proxyProtocol: required",
  ],

  [
    "name: web, listener: web",
    "name: partner-sftp, listener: web",
    "deployments.1.name: another entry of deployments has this name",
  ],
  [
    "name: web, listen:",
    "name: sftp, listen:",
    "listeners.1.name: another entry of listeners has this name (and 1 more)",
  ],
  ["[::1]:8443", "0.0.0.0:2222", "listeners.1.listen: listeners.0.listen listens on 0.0.0.0:2222 already"],
  ["[::1]:8443", "127.0.0.1:2222", "listeners.1.listen: listeners.0.listen listens on 0.0.0.0:2222 already"],
  ["[::1]:8443", "[::]:7443", "listeners.1.listen: tunnels.0.listen listens on 0.0.0.0:7443 already"],
  ["127.0.0.1:9180", "127.0.0.1:7443", "metrics.listen: tunnels.0.listen listens on 0.0.0.0:7443 already"],
  ["default: block", "default: deny", "ipFilters.0.default: must be allow or block"],
  ["    default: block\n", "", "ipFilters.0.default: required"],
  ["name: dmz-1", "name: dmz 1", "name: must be a name of 1-255 letters, digits, _ and -"],
  [
    "idle: 5m",
    "idle: 300",
    "deployments.1.timeouts.idle: must be a duration with its unit, such as 500ms, 10s, 5m, 1h or 1d",
  ],
  ["maxConnections: 10000", "maxConnections: 0", "limits.maxConnections: must be at least 1"],
  ["listen: 0.0.0.0:7443", "listen: 0.0.0.0:7443\n    tls: { certFile: a.pem }", "tunnels.0.tls.keyFile: required"],
])("%j instead of %j is refused", (from, to, message) => {
  expect(fault(changed(from, to)).replace(/^edge\.yaml:\d+:\d+: /, "")).toBe(message);
});

test.each([
  ["heartbeat: { interval: 30s }", "heartbeat.timeout: must be longer than heartbeat.interval"],
  ["links: 2", "links: unknown key"],
  ["log: { level: loud }", "log.level: must be trace or debug or info or warn or error or fatal"],
])("%j is refused", (line, reason) => {
  expect(fault(`name: e\n${line}\n`)).toContain(reason);
});

test("addresses that share nothing are fine, and so is port 0 twice", () => {
  const config = `
name: e
listeners:
  - { name: a, listen: "127.0.0.1:0" }
  - { name: b, listen: "127.0.0.1:0" }
  - { name: c, listen: "127.0.0.1:22" }
  - { name: d, listen: "127.0.0.2:22" }
  - { name: e, listen: "[::1]:22" }
`;
  expect(checkConfigText(config, "edge.yaml", edgeConfigSchema).listeners).toHaveLength(5);
});

test("interim records and idle timeouts can be turned off", () => {
  const config = checkConfigText("name: e\nrecordInterval: 0s\ntimeouts: { idle: 0s }", "edge.yaml", edgeConfigSchema);
  expect(config).toMatchObject({ recordInterval: 0, timeouts: { idle: 0, halfClose: 30_000 } });
});

test.each([
  ["admission: { rules: { bann: { dryRun: true } } }", "admission.rules.bann"],
  ["admission: { rules: { ban: { onDeny: drop } } }", "admission.rules.ban.onDeny: must be reset or close or tarpit"],
  ["detectors: { connectRates: { threshold: 5 } }", "detectors.connectRates"],
  ["detectors: { connectRate: { threshold: 1 } }", "detectors.connectRate.threshold: must be at least 2"],
  [
    "detectors: { connectRate: { threshold: 5, ttl: 1h, maxTtl: 1m } }",
    "detectors.connectRate.maxTtl: must not be less",
  ],
  [
    "detectors: { connectRate: { threshold: 5, minBytes: 1KiB } }",
    "detectors.connectRate.minBytes: is a key of slowBytes",
  ],
  ["detectors: { noFirstByte: { threshold: 5 } }", "detectors.noFirstByte: no listener has limits.firstByteTimeout"],
  ["limits: { connectionRatePerSource: { perSecond: 0, burst: 1 } }", "perSecond: must be at least 0.001"],
  ["limits: { connectionRatePerSource: { perSecond: 5 } }", "limits.connectionRatePerSource.burst: required"],
  [
    "ipFilters: [{ name: f, default: allow, rules: [{ action: block, cidr: 192.0.2.1, trusted: true }] }]",
    "ipFilters.0.rules.0.trusted: only an allow rule can be trusted",
  ],
])("%s is refused: %s", (text, message) => {
  expect(() => checkConfigText(`name: e\n${text}`, "edge.yaml", edgeConfigSchema)).toThrow(message);
});

test("a file that does not exist is named", () => {
  expect(() => loadEdgeConfig("/nowhere/edge.yaml")).toThrow(
    expect.objectContaining({ exitCode: 74, where: "/nowhere/edge.yaml" }),
  );
});

test("100,000 rules are read in seconds", () => {
  const rules = Array.from(
    { length: 100_000 },
    (_, at) => `  - {action: allow, cidr: 10.${at >> 16}.${(at >> 8) & 255}.${at & 255}}`,
  );
  const text = `name: e\nipFilters:\n- name: f\n  default: block\n  rules:\n${rules.join("\n")}\n`;
  expect(checkConfigText(text, "edge.yaml", edgeConfigSchema).ipFilters[0]?.rules).toHaveLength(100_000);
});

test("the JSON Schema in the repository is the one of this code, and describes every key", async () => {
  const text = configSchemaText(edgeConfigSchema, "sallyport-edge configuration");
  expect(undescribedKeys(JSON.parse(text), "")).toEqual([]);
  const file = await readFile(new URL("../schema/edge.schema.json", import.meta.url), "utf8");
  expect(file, "stale: npm run build && npm run schemas").toBe(text);
});

/** Paths of the properties without description. */
function undescribedKeys(schema: object, path: string): string[] {
  const {
    properties = {},
    items,
    anyOf = [],
  } = schema as {
    properties?: Record<string, { description?: string }>;
    items?: object;
    anyOf?: object[];
  };
  return [
    ...Object.entries(properties).flatMap(([key, property]) => [
      ...(property.description === undefined ? [`${path}${key}`] : []),
      ...undescribedKeys(property, `${path}${key}.`),
    ]),
    ...(items === undefined ? [] : undescribedKeys(items, `${path}*.`)),
    ...anyOf.flatMap((branch) => undescribedKeys(branch, path)),
  ];
}

const shared = (first: string, second: string) => `
name: e
listeners: [{ name: l, listen: "0.0.0.0:1" }]
deployments:
- { name: a, listener: l, target: "a.example:1"${first} }
- { name: b, listener: l, target: "b.example:1"${second} }
`;

test.each([
  [", sni: [a.example]", ", sni: [b.example]", "no fault"],
  [", sni: [a.example]", "", "no fault"],
  [", sni: [a.example]", ", sni: ['*.example']", "no fault"],
  [", sni: [a.example], alpn: [h2]", ", sni: [a.example], alpn: [h3]", "no fault"],
  [", sni: [a.example], alpn: [h2]", ", sni: [a.example]", "no fault"],
  [", sni: [A.example]", ", sni: [c.example, a.EXAMPLE]", "6:67: deployments.1.sni.1: deployments.0 takes this name"],
  [
    ", sni: [a.example], alpn: [h2]",
    ", sni: [a.example], alpn: [x, h2]",
    "deployments.1.sni.0: deployments.0 takes this",
  ],
  [", sni: ['*.example']", ", sni: ['*.example']", "deployments.1.sni.0: deployments.0 takes this name on the same"],
  ["", "", "deployments.1.listener: deployments.0 has this listener already"],
])("deployments of one listener with%s and%s: %s", (first, second, says) => {
  expect(fault(shared(first, second))).toContain(says);
});

test("server names are lower case", () => {
  const text = shared(", sni: ['*.Corp.EXAMPLE']", "");
  expect(checkConfigText(text, "edge.yaml", edgeConfigSchema).deployments[0]?.sni).toEqual(["*.corp.example"]);
});
