import { expect, test } from "vitest";
import { z } from "zod";
import { byteSize } from "./byte-size.ts";
import { isDnsName } from "./dns-name.ts";
import { duration } from "./duration.ts";
import { formatHostPort, hostPort, listenAddress, parsePort } from "./host-port.ts";
import { name } from "./name.ts";

function reasonOf(schema: z.ZodType, value: unknown): string | undefined {
  return schema.safeParse(value).error?.issues[0]?.message;
}

test.each([
  ["0ms", 0],
  ["500ms", 500],
  ["10s", 10_000],
  ["5m", 300_000],
  ["1h", 3_600_000],
  ["1d", 86_400_000],
  ["24d", 2_073_600_000],
])("the duration %s is %d ms", (text, ms) => {
  expect(duration().parse(text)).toBe(ms);
});

test.each([
  ["10"],
  [10],
  ["1.5s"],
  ["-1s"],
  ["+1s"],
  ["01s"],
  ["10 s"],
  ["10S"],
  ["1h30m"],
  ["s"],
  [""],
  ["1e3ms"],
  ["１s"],
  [true],
])("%j is no duration", (value) => {
  expect(reasonOf(duration(), value)).toBe("must be a duration with its unit, such as 500ms, 10s, 5m, 1h or 1d");
});

test("a duration has bounds, and none is longer than a timer can wait", () => {
  const bounded = duration({ min: "1s", max: "1m" });
  expect(bounded.parse("1s")).toBe(1_000);
  expect(bounded.parse("60s")).toBe(60_000);
  expect(reasonOf(bounded, "999ms")).toBe("must be 1s to 1m");
  expect(reasonOf(bounded, "61s")).toBe("must be 1s to 1m");
  expect(reasonOf(duration(), "25d")).toBe("must be 0ms to 24d");
  expect(reasonOf(duration({ max: "100d" }), "99d")).toBeDefined();
});

test.each([
  ["0B", 0],
  ["512B", 512],
  ["64KB", 64_000],
  ["256KiB", 262_144],
  ["1MiB", 1_048_576],
  ["2GB", 2e9],
])("the size %s is %d bytes", (text, bytes) => {
  expect(byteSize().parse(text)).toBe(bytes);
});

test.each([["512"], [512], ["1.5MiB"], ["-1B"], ["1K"], ["1kb"], ["1 MiB"], [""]])("%j is no size", (value) => {
  expect(reasonOf(byteSize(), value)).toBe("must be a size with its unit, such as 512B, 64KB, 256KiB or 1MiB");
});

test("a size has bounds", () => {
  expect(reasonOf(byteSize({ min: "1KiB", max: "1MiB" }), "1023B")).toBe("must be 1KiB to 1MiB");
  expect(reasonOf(byteSize({ min: "1KiB", max: "1MiB" }), "2MiB")).toBe("must be 1KiB to 1MiB");
});

test.each([["a"], ["partner-sftp"], ["A_1"], ["constructor"], ["x".repeat(255)]])("%s is a name", (text) => {
  expect(name().parse(text)).toBe(text);
});

test.each([[""], ["a b"], ["a.b"], ["é"], ["a\n"], ["x".repeat(256)], ["__proto__"], [22]])(
  "%j is no name",
  (value) => {
    expect(reasonOf(name(), value)).toMatch(/name/);
  },
);

test.each([
  ["host.example:22", { host: "host.example", port: 22 }],
  ["localhost:1", { host: "localhost", port: 1 }],
  ["_srv.example:65535", { host: "_srv.example", port: 65_535 }],
  ["192.0.2.1:22", { host: "192.0.2.1", port: 22 }],
  ["[2001:db8::1]:22", { host: "2001:db8::1", port: 22 }],
  ["[::1]:22", { host: "::1", port: 22 }],
])("%s is host and port, and is written so again", (text, address) => {
  expect(hostPort().parse(text)).toEqual(address);
  expect(formatHostPort(address)).toBe(text);
});

const MUST = "must be host:port, such as host.example:22, 192.0.2.1:22 or [2001:db8::1]:22";
const PORT = "port must be 1-65535";
const HOST = "the host is not a DNS name or canonical IP address";
const IPV6 = "not a canonical IPv6 address in the brackets";

test.each([
  ["host.example", MUST],
  [22, MUST],
  ["", MUST],
  ["::1:22:", MUST],
  ["::1", "an IPv6 address stands in brackets and is followed by the port, such as [2001:db8::1]:22"],
  ["h:", PORT],
  ["h:0", PORT],
  ["h:022", PORT],
  ["h:0x50", PORT],
  ["h:80abc", PORT],
  ["h:65536", PORT],
  ["h:-1", PORT],
  ["h:+1", PORT],
  ["h:8e1", PORT],
  ["h: 22", PORT],
  ["h:22\n", PORT],
  ["h:２２", PORT],
  [":22", HOST],
  ["a b:22", HOST],
  ["-a:22", HOST],
  ["a..b:22", HOST],
  ["010.0.0.1:22", HOST],
  ["10.1:22", HOST],
  ["0x7f.1:22", HOST],
  ["0x0a000001:22", HOST],
  ["2130706433:22", HOST],
  ["１０.0.0.1:22", HOST],
  ["http://h:22", MUST],
  ["user@h:22", HOST],
  ["[fe80::1%eth0]:22", IPV6],
  ["[192.0.2.1]:22", IPV6],
  ["[host]:22", IPV6],
  ["[]:22", IPV6],
])("%j is no host and port", (value, reason) => {
  expect(reasonOf(hostPort(), value)).toBe(reason);
});

test.each([
  ["0.0.0.0:2222", { host: "0.0.0.0", port: 2222 }],
  ["127.0.0.1:0", { host: "127.0.0.1", port: 0 }],
  ["localhost:80", { host: "127.0.0.1", port: 80 }],
  ["[::]:443", { host: "::", port: 443 }],
])("one can listen on %s", (text, address) => {
  expect(listenAddress().parse(text)).toEqual(address);
});

test.each([
  ["host.example:22"],
  ["*:22"],
  [":22"],
  ["22"],
  ["[localhost]:22"],
  ["[fe80::1%eth0]:22"],
  ["0.0.0.0:65536"],
  ["0.0.0.0:00"],
])("one cannot listen on %j", (value) => {
  expect(reasonOf(listenAddress(), value)).toBeDefined();
});

test.each([
  ["0", 0],
  ["65535", 65_535],
  ["65536", undefined],
  ["00", undefined],
  ["", undefined],
  ["1.0", undefined],
])("as a port %j is %j", (text, port) => {
  expect(parsePort(text)).toBe(port);
});

test.each([
  ["a.example", true],
  ["a1", true],
  ["1a", true],
  ["10.in-addr.arpa", true],
  ["a.example.", false],
  ["a.0x10", false],
  ["a.10", false],
  [`${"a".repeat(63)}.example`, true],
  [`${"a".repeat(64)}.example`, false],
  ["a.".repeat(126) + "aa", false],
  ["bücher.example", false],
])("%j as a DNS name: %j", (text, is) => {
  expect(isDnsName(text)).toBe(is);
});

test("every value has a JSON Schema with a pattern that editors can check", () => {
  const schema = z.strictObject({
    d: duration().prefault("5s"),
    b: byteSize(),
    n: name(),
    h: hostPort(),
    l: listenAddress(),
  });
  const { properties, required } = z.toJSONSchema(schema, { io: "input", target: "draft-7" });
  for (const property of Object.values(properties ?? {})) {
    expect(property).toMatchObject({ type: "string", pattern: expect.any(String) });
  }
  expect(properties?.["d"]).toMatchObject({ default: "5s" });
  expect(required).toEqual(["b", "n", "h", "l"]);
});
