import { parseIpAddress } from "@sallyport/host";
import { describe, expect, it } from "vitest";
import { parseAllowRule, type Service } from "./config.ts";
import { Policy } from "./policy.ts";

function service(host: string, port: number): Service {
  return {
    target: { host, port },
    maxConnections: undefined,
    dialsPerSecond: undefined,
    proxyProtocol: "deny" as const,
  };
}

function policy(options: { services?: Record<string, Service>; allow?: string[] }): Policy {
  return new Policy({
    services: new Map(Object.entries(options.services ?? {})),
    allow: (options.allow ?? []).map(parseAllowRule),
  });
}

/** What becomes of a target that resolves to `address`: the rule that admits it, or what refuses it. */
function outcome(rules: Policy, target: string, address: string): string {
  const decision = rules.decide(target);
  const parsed = parseIpAddress(address);
  if (decision === undefined || parsed === undefined) return "forbidden";
  return decision.admit(parsed) ?? `by ${decision.ruleFor(parsed)}`;
}

const rules = policy({
  services: {
    sftp: service("sftp.corp.example", 22),
    local: service("127.0.0.1", 8080),
    named: service("localhost", 8081),
    linkLocal: service("169.254.7.7", 80),
    v6: service("2001:db8::1", 443),
    http_alt: service("10.1.1.1", 8080),
  },
  allow: [
    "10.20.0.0/16:22",
    "10.30.0.7:1000-2000",
    "[2001:db8:5::/48]:60000-65535",
    "db.corp.example:5432",
    "0.0.0.0/0:9000",
    "[::/0]:9000",
    "127.0.0.53/32:53",
    "169.254.0.0/16:8000",
    "169.254.169.254:8001",
    "localhost:7000",
  ],
});

describe("a target that the configuration names", () => {
  it.each([
    ["sftp", "10.9.9.9", "by service sftp"],
    ["sftp", "2001:db8::9", "by service sftp"],
    ["local", "127.0.0.1", "by service local"],
    ["named", "127.0.0.1", "by service named"],
    ["named", "::1", "by service named"],
    ["linkLocal", "169.254.7.7", "by service linkLocal"],
    ["v6", "2001:db8::1", "by service v6"],
    ["http_alt", "10.1.1.1", "by service http_alt"],
    ["10.20.255.255:22", "10.20.255.255", "by 10.20.0.0/16:22"],
    ["10.30.0.7:1000", "10.30.0.7", "by 10.30.0.7:1000-2000"],
    ["10.30.0.7:2000", "10.30.0.7", "by 10.30.0.7:1000-2000"],
    ["[2001:db8:5::7]:65535", "2001:db8:5::7", "by [2001:db8:5::/48]:60000-65535"],
    ["db.corp.example:5432", "192.0.2.7", "by db.corp.example:5432"],
    ["DB.Corp.Example:5432", "192.0.2.7", "by db.corp.example:5432"],
    ["elsewhere.example:22", "10.20.1.1", "by 10.20.0.0/16:22"],
    ["192.0.2.1:9000", "192.0.2.1", "by 0.0.0.0/0:9000"],
    ["127.0.0.53:53", "127.0.0.53", "by 127.0.0.53/32:53"],
    ["169.254.1.1:8000", "169.254.1.1", "by 169.254.0.0/16:8000"],
    ["169.254.169.254:8001", "169.254.169.254", "by 169.254.169.254:8001"],
    ["localhost:7000", "127.0.0.1", "by localhost:7000"],
    ["[::ffff:10.20.1.1]:22", "10.20.1.1", "by 10.20.0.0/16:22"],
  ])("%s at %s is dialled %s", (target, address, expected) => {
    expect(outcome(rules, target, address)).toBe(expected);
  });
});

describe("a resolved address that no rule means", () => {
  it.each([
    ["sftp", "127.0.0.1", "loopback address not allowed"],
    ["sftp", "::1", "loopback address not allowed"],
    ["sftp", "::ffff:127.0.0.1", "loopback address not allowed"],
    ["sftp", "64:ff9b::7f00:1", "loopback address not allowed"],
    ["sftp", "169.254.169.254", "metadata address not allowed"],
    ["sftp", "0.0.0.0", "unspecified address not allowed"],
    ["sftp", "::", "unspecified address not allowed"],
    ["sftp", "224.0.0.1", "multicast address not allowed"],
    ["sftp", "255.255.255.255", "broadcast address not allowed"],
    ["sftp", "fe80::1", "link-local address not allowed"],
    ["named", "10.0.0.1", "address not allowed"],
    ["named", "169.254.169.254", "metadata address not allowed"],
    ["local", "127.0.0.2", "loopback address not allowed"],
    ["linkLocal", "169.254.7.8", "link-local address not allowed"],
    ["db.corp.example:5432", "127.0.0.1", "loopback address not allowed"],
    ["db.corp.example:5432", "169.254.169.254", "metadata address not allowed"],
    ["elsewhere.example:22", "10.21.1.1", "address not allowed"],
    ["elsewhere.example:22", "127.0.0.1", "loopback address not allowed"],
    ["elsewhere.example:9000", "127.0.0.1", "loopback address not allowed"],
    ["elsewhere.example:9000", "::1", "loopback address not allowed"],
    ["elsewhere.example:9000", "169.254.169.254", "metadata address not allowed"],
    ["elsewhere.example:8000", "169.254.169.254", "metadata address not allowed"],
    ["localhost:7000", "10.0.0.1", "address not allowed"],
  ])("%s at %s is refused: %s", (target, address, expected) => {
    expect(outcome(rules, target, address)).toBe(expected);
  });
});

describe("a target that is forbidden before anything is resolved", () => {
  const hostile = [
    "",
    " ",
    "SFTP",
    "sftp ",
    " sftp",
    "sftp:23",
    "sftp.corp.example:22".repeat(20),
    "sftp/../local",
    "../local",
    "./sftp",
    "sftp\0",
    "sftp\n",
    "sftp,local",
    "*",
    "%",
    "__proto__",
    "constructor",
    "toString",
    "hasOwnProperty",
    "prototype",
    "__proto__:23",
    "http://10.20.0.1:22",
    "tcp://10.20.0.1:22",
    "10.20.0.1:22/",
    "10.20.0.1:22/path",
    "user@10.20.0.1:22",
    "user:password@10.20.0.1:22",
    "10.20.0.1:22#",
    "10.20.0.1:22?x",
    "10.20.0.1:22,10.20.0.2:22",
    "10.20.0.1 :22",
    "10.20.0.1: 22",
    "10.20.0.1:022",
    "10.20.0.1:+22",
    "10.20.0.1:22.0",
    "10.20.0.1:0x16",
    "10.20.0.1:2 2",
    "10.20.0.1:0",
    "10.20.0.1:65558",
    "10.20.0.1:99999",
    "10.20.0.1:-22",
    "10.20.0.1:*",
    "10.20.0.1:",
    "10.20.0.1",
    ":22",
    "10.20.0.0/16:22",
    "10.20.1:22",
    "010.020.000.001:22",
    "10.20.0.1.:22",
    "0x0a140001:22",
    "169083905:22",
    "10.0x14.0.1:22",
    "0x7f.1:22",
    "017700000001:22",
    "2130706433:22",
    "127.1:22",
    "0:22",
    "127.0.0.1:22",
    "127.0.0.1:9000",
    "[::1]:9000",
    "[::1]:22",
    "[::]:9000",
    "0.0.0.0:9000",
    "169.254.169.254:80",
    "169.254.169.254:9000",
    "169.254.169.254:8000",
    "[fe80::1%eth0]:9000",
    "[fe80::1]:9000",
    "[::ffff:127.0.0.1]:9000",
    "[::ffff:169.254.169.254]:9000",
    "[64:ff9b::7f00:1]:9000",
    "[2002:7f00:1::]:9000",
    "[10.20.0.1]:22",
    "::1:9000",
    "2001:db8:5::7:22",
    "[2001:db8:5::7]",
    "[2001:db8:5::7]22",
    "[2001:db8:6::7]:0",
    "10.30.0.7:999",
    "10.30.0.7:2001",
    "10.30.0.8:1000",
    "10.21.0.1:22",
    "db.corp.example:5433",
    "db.corp.example.:5432",
    ".db.corp.example:5432",
    "db..corp.example:5432",
    "other.example:5432",
    "localhost:8081",
    "localhost.:7000",
    "db.corp.example\u0000.evil:5432",
    "ⅼocalhost:7000",
    "１０.20.0.1:22",
    `${"a".repeat(64)}:22`,
    `${"a.".repeat(130)}a:22`,
  ];

  it("is checked on more than forty of them", () => {
    expect(hostile.length).toBeGreaterThan(40);
  });

  it.each(hostile.map((target) => [target]))("%j is forbidden", (target) => {
    expect(rules.decide(target)).toBeUndefined();
  });
});

describe("a policy", () => {
  it("forbids everything when it has no rule", () => {
    expect(policy({}).decide("sftp")).toBeUndefined();
    expect(policy({}).decide("10.0.0.1:22")).toBeUndefined();
  });

  it("does not find what every object has among the services", () => {
    const built = policy({ services: { sftp: service("10.0.0.1", 22) } });
    expect(["__proto__", "constructor", "valueOf"].map((name) => built.decide(name))).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
  });

  it("dials the service's own host and port, whatever stands beside its name", () => {
    expect(rules.decide("sftp")).toMatchObject({ host: "sftp.corp.example", port: 22, service: "sftp" });
    expect(rules.decide("DB.corp.example:5432")).toMatchObject({ host: "db.corp.example", port: 5432 });
    expect(rules.decide("db.corp.example:5432")?.service).toBeUndefined();
  });

  it("admits a whole special range by an entry that lies inside it, and no metadata address with it", () => {
    const built = policy({ allow: ["127.0.0.0/8:80", "[fe80::/10]:80", "169.254.0.0/16:80"] });
    expect(outcome(built, "127.9.9.9:80", "127.9.9.9")).toBe("by 127.0.0.0/8:80");
    expect(outcome(built, "[fe80::1]:80", "fe80::1")).toBe("by [fe80::/10]:80");
    expect(outcome(built, "169.254.169.254:80", "169.254.169.254")).toBe("forbidden");
  });

  it.each(["0.0.0.0/0", "0.0.0.0/1", "126.0.0.0/7", "168.0.0.0/5", "192.0.0.0/2", "128.0.0.0/1"])(
    "a wider block %s admits none of the special addresses in it",
    (cidr) => {
      const built = policy({ allow: [`${cidr}:80`] });
      for (const address of [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
      ]) {
        expect(built.decide(`${address}:80`)).toBeUndefined();
        expect(outcome(built, "name.example:80", address)).not.toContain("by ");
      }
    },
  );
});
