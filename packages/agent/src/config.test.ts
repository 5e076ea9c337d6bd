import { readFile } from "node:fs/promises";
import { checkConfigText, configSchemaText, Failure, formatCidr } from "@sallyport/host";
import { expect, test } from "vitest";
import { agentConfigSchema, loadAgentConfig, parseAllowRule } from "./config.ts";

const BASE = "name: a\nedges: [{ credentialsFile: c }]\n";

function fault(text: string): string {
  try {
    checkConfigText(text, "agent.yaml", agentConfigSchema);
  } catch (error) {
    return error instanceof Failure && error.exitCode === 78
      ? error.message
      : `not a configuration failure: ${String(error)}`;
  }
  return "no fault";
}

test("the keys of the design are read", () => {
  const config = checkConfigText(
    `
name: lan-agent-1
stateDir: /var/lib/sallyport-agent
edges:
  - credentialsFile: /var/lib/sallyport-agent/dmz-1.credentials
links: 2
services: { sftp: sftp.corp.example:22, db: { target: "[fd00::1]:5432", maxConnections: 5, dialsPerSecond: 10, proxyProtocol: allow } }
allow: [ "10.20.0.0/16:22", "db.corp.example:5432" ]
metrics: { listen: 127.0.0.1:9181 }
proxy: { url: "http://proxy.corp.example:3128/", credentialsFile: /etc/proxy }
`,
    "agent.yaml",
    agentConfigSchema,
  );
  expect(config).toMatchObject({
    name: "lan-agent-1",
    edges: [{ credentialsFile: "/var/lib/sallyport-agent/dmz-1.credentials" }],
    metrics: { listen: { host: "127.0.0.1", port: 9181 } },
    proxy: { url: "http://proxy.corp.example:3128", credentialsFile: "/etc/proxy" },
  });
  expect([...config.services]).toEqual([
    [
      "sftp",
      {
        target: { host: "sftp.corp.example", port: 22 },
        maxConnections: undefined,
        dialsPerSecond: undefined,
        proxyProtocol: "deny",
      },
    ],
    ["db", { target: { host: "fd00::1", port: 5432 }, maxConnections: 5, dialsPerSecond: 10, proxyProtocol: "allow" }],
  ]);
  expect(config.allow.map(({ text }) => text)).toEqual(["10.20.0.0/16:22", "db.corp.example:5432"]);
});

test("a small file has every default", () => {
  expect(checkConfigText(`${BASE}allow: ["db:1"]`, "agent.yaml", agentConfigSchema)).toEqual({
    name: "a",
    stateDir: "/var/lib/sallyport-agent",
    edges: [{ credentialsFile: "c" }],
    links: 2,
    renewLinks: 3_600_000,
    services: new Map(),
    allow: [{ text: "db:1", subject: { type: "name", name: "db" }, ports: { first: 1, last: 1 } }],
    allowProxyProtocol: "deny",
    timeouts: { connect: 5_000, idle: 3_600_000, halfClose: 30_000 },
    limits: { maxStreams: 10_000, dialsPerSecond: 5_000 },
    reconnect: { min: 200, max: 20_000 },
    heartbeat: { interval: 10_000, timeout: 25_000 },
    drainTimeout: 30_000,
    memory: 268_435_456,
    stripe: false,
    log: { level: "info" },
  });
});

test("a service may have any name, `constructor` too, and only what is written is a service", () => {
  const { services } = checkConfigText(`${BASE}services: { constructor: "db:1" }`, "agent.yaml", agentConfigSchema);
  expect(services.get("constructor")?.target).toEqual({ host: "db", port: 1 });
  expect(services.get("toString")).toBeUndefined();
});

const NOTHING = "at least one service or allow entry is required (an agent without dials nothing)";

test.each([
  ["services: {}", `agent.yaml:3:11: services: ${NOTHING}`],
  ["services: {}\nallow: []", `agent.yaml:3:11: services: ${NOTHING}`],
  ["allow: []", `agent.yaml:1:1: services: ${NOTHING}`],
  ['allowlst: ["db:1"]', "agent.yaml:3:1: allowlst: unknown key; did you mean allow? (and 1 more)"],
  ["edge: wss://edge.example", "agent.yaml:3:1: edge: unknown key; did you mean edges? (and 1 more)"],
  [
    "services: { db: db }",
    "agent.yaml:3:17: services.db: must be host:port, such as host.example:22, 192.0.2.1:22 or [2001:db8::1]:22",
  ],
  [
    "services: { db: 5432 }",
    "agent.yaml:3:17: services.db: must be host:port, or a map with target, maxConnections, dialsPerSecond and proxyProtocol",
  ],
  ["services: { db: }", "agent.yaml:3:13: services.db: has no value; give it one or remove the key"],
  ["services: { db: { maxConnections: 1 } }", "agent.yaml:3:13: services.db.target: required"],
  [
    "services: { db: { target: 'db:1', maxConnection: 1 } }",
    "agent.yaml:3:35: services.db.maxConnection: unknown key; did you mean maxConnections?",
  ],
  [
    "services: { db: { target: 'db:1', maxConnections: 0 } }",
    "agent.yaml:3:51: services.db.maxConnections: must be at least 1",
  ],
  ["services: { db: 'db:0x50' }", "agent.yaml:3:17: services.db: port must be 1-65535"],
  ["services: { db.x: 'db:1' }", "agent.yaml:3:19: services.db.x: must be a name of 1-255 letters, digits, _ and -"],
  ["services: { __proto__: 'db:1' }", "agent.yaml:3:13: __proto__: is not usable as a key"],
  ["allow: ['db:1']\nlinks: 17", "agent.yaml:4:8: links: must be at most 16"],
  ["allow: ['db:1']\nlinks: 0", "agent.yaml:4:8: links: must be at least 1"],
  ["allow: ['db:1']\nproxy: { url: 'https://p:1' }", "agent.yaml:4:15: proxy.url: must be http://host:port"],
  [
    "allow: ['db:1']\nproxy: { url: 'http://p' }",
    "agent.yaml:4:15: proxy.url: must be host:port, such as host.example:22, 192.0.2.1:22 or [2001:db8::1]:22",
  ],
  [
    "allow: ['db:1']\nproxy: { url: 'http://u:hunter2@p:1' }",
    "agent.yaml:4:15: proxy.url: must not hold a password; put user:password into the file of credentialsFile",
  ],
  ["allow: ['db:1']\nreconnect: { min: 30s }", "agent.yaml:4:1: reconnect.max: must not be shorter than reconnect.min"],
  [
    "allow: ['db:1']\nheartbeat: { timeout: 5s }",
    "agent.yaml:4:23: heartbeat.timeout: must be longer than heartbeat.interval",
  ],
  ["allow: ['db:1']\ntoken: hunter2", "agent.yaml:4:1: token: unknown key"],
])("%j is refused", (lines, message) => {
  expect(fault(`${BASE}${lines}\n`)).toBe(message);
});

test.each([
  ["name: a\nservices: { db: 'db:1' }\n", "agent.yaml:1:1: edges: required"],
  [
    "name: a\nedges: []\nservices: { db: 'db:1' }\n",
    "agent.yaml:2:8: edges: at least one edge is required; pair with one by `sallyport-agent join`",
  ],
  [
    "name: a\nedges: [{ credentialsFile: c }, { credentialsFile: c }]\nservices: { db: 'db:1' }\n",
    "agent.yaml:2:52: edges.1.credentialsFile: another entry of edges has this file",
  ],
  [
    "name: a\nedges: [{ credentialsFile: '' }]\nservices: { db: 'db:1' }\n",
    "agent.yaml:2:28: edges.0.credentialsFile: needs at least 1 characters",
  ],
])("%j is refused", (text, message) => {
  expect(fault(text)).toBe(message);
});

test.each([
  ["10.20.0.0/16:22", "10.20.0.0/16", 22, 22],
  ["10.20.0.5:22", "10.20.0.5/32", 22, 22],
  ["0.0.0.0/0:*", "0.0.0.0/0", 1, 65_535],
  ["[fd00::/8]:1000-2000", "fd00::/8", 1_000, 2_000],
  ["[::1]:80", "::1/128", 80, 80],
  ["[::ffff:10.0.0.0/104]:22", "10.0.0.0/8", 22, 22],
])("the rule %s admits addresses of %s", (text, cidr, first, last) => {
  const rule = parseAllowRule(text);
  const subject = rule.subject.type === "cidr" ? formatCidr(rule.subject.cidr) : undefined;
  expect({ ...rule, subject }).toEqual({ text, subject: cidr, ports: { first, last } });
});

test.each([
  ["db.corp.example:5432", "db.corp.example", 5_432, 5_432],
  ["DB.Corp.example:1-65535", "db.corp.example", 1, 65_535],
  ["localhost:*", "localhost", 1, 65_535],
])("the rule %s admits the name %s", (text, name, first, last) => {
  expect(parseAllowRule(text)).toEqual({ text, subject: { type: "name", name }, ports: { first, last } });
});

const CANONICAL = "not a canonical IP address or CIDR";
const PORT = "port must be 1-65535, a range such as 1000-2000, or *";
const SHAPE = "must end in a port, such as 10.0.0.0/16:22, db.example:1000-2000 or [2001:db8::/32]:*";

test.each([
  ["10.0.0.5/8:22", "host bits set; did you mean 10.0.0.0/8"],
  ["10.0.0.5/8", "host bits set; did you mean 10.0.0.0/8"],
  ["010.0.0.1:22", CANONICAL],
  ["010.0.0.1", CANONICAL],
  ["10.1:22", CANONICAL],
  ["10.1", CANONICAL],
  ["0x0a000001:22", CANONICAL],
  ["0x7f.1:22", CANONICAL],
  ["2130706433:22", CANONICAL],
  ["[fe80::1%eth0]:22", CANONICAL],
  ["fe80::1%eth0", CANONICAL],
  ["１０.0.0.1:22", CANONICAL],
  ["10.0.0.0/33:22", "prefix length must be 0-32"],
  ["10.0.0.0/-1:22", "prefix length must be 0-32"],
  ["10.0.0.0/8.5:22", "prefix length must be 0-32"],
  ["10.0.0.0/08:22", "prefix length must be 0-32"],
  ["[::/129]:22", "prefix length must be 0-128"],
  ["[10.0.0.0/8]:22", "only an IPv6 address or CIDR stands in brackets"],
  ["[host]:22", "only an IPv6 address or CIDR stands in brackets"],
  ["fd00::/8", "an IPv6 address or CIDR stands in brackets and is followed by the port, such as [2001:db8::/32]:22"],
  ["db.example", SHAPE],
  ["10.0.0.0/8", SHAPE],
  ["", CANONICAL],
  ["*:22", CANONICAL],
  ["*.example:22", CANONICAL],
  ["db:", PORT],
  ["db:0", PORT],
  ["db:65536", PORT],
  ["db:022", PORT],
  ["db:0x50", PORT],
  ["db:80abc", PORT],
  ["db:-1", PORT],
  ["db:8e1", PORT],
  ["db:20-10", PORT],
  ["db:1-2-3", PORT],
  ["db:1-", PORT],
  ["db:-", PORT],
  ["db:0-10", PORT],
  ["db:**", PORT],
])("the rule %j is refused", (text, reason) => {
  expect(fault(`${BASE}allow: [${JSON.stringify(text)}]\n`)).toBe(`agent.yaml:3:9: allow.0: ${reason}`);
});

test("a file that does not exist is named", () => {
  expect(() => loadAgentConfig("/nowhere/agent.yaml")).toThrow(
    expect.objectContaining({ exitCode: 74, where: "/nowhere/agent.yaml" }),
  );
});

test("the JSON Schema in the repository is the one of this code, and describes every key", async () => {
  const text = configSchemaText(agentConfigSchema, "sallyport-agent configuration");
  const { properties } = JSON.parse(text) as { properties: Record<string, { description?: string }> };
  expect(Object.values(properties).filter(({ description }) => description === undefined)).toEqual([]);
  const file = await readFile(new URL("../schema/agent.schema.json", import.meta.url), "utf8");
  expect(file, "stale: npm run build && npm run schemas").toBe(text);
});
