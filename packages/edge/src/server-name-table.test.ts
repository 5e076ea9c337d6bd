import { expect, test } from "vitest";
import { type ServerNames, ServerNameTable, serverNameFault } from "./server-name-table.ts";

const takers: readonly (readonly [string, ServerNames])[] = [
  ["default", { sni: [], alpn: [] }],
  ["exact", { sni: ["sftp.example", "a.corp.example"], alpn: [] }],
  ["wild", { sni: ["*.corp.example", "*.example"], alpn: [] }],
  ["acme", { sni: ["*.corp.example"], alpn: ["acme-tls/1", "spdy"] }],
  ["h2", { sni: ["h2.example"], alpn: ["h2"] }],
];
const table = new ServerNameTable<string>();
const refused = takers.map(([taker, names]) => table.add(taker, names));

test("claims that do not meet are all taken", () => {
  expect(refused).toEqual(takers.map(() => undefined));
});

test.each([
  ["sftp.example", [], "exact"],
  ["a.corp.example", [], "exact"],
  ["a.corp.example", ["acme-tls/1"], "exact"],
  ["b.corp.example", [], "wild"],
  ["b.corp.example", ["h2", "acme-tls/1"], "acme"],
  ["b.corp.example", ["spdy"], "acme"],
  ["b.corp.example", ["h2"], "wild"],
  ["corp.example", [], "wild"],
  ["b.b.corp.example", [], "default"],
  ["example", [], "default"],
  ["h2.example", ["h2"], "h2"],
  ["h2.example", ["http/1.1"], "wild"],
  ["other.test", [], "default"],
  [undefined, ["h2"], "default"],
])("%s with protocols %j goes to the right taker", (serverName, alpn, taker) => {
  expect(table.find({ serverName, alpn })).toBe(taker);
});

test("without a default, what nobody claims is nobody's", () => {
  const strict = new ServerNameTable<string>();
  strict.add("only", { sni: ["a.example"], alpn: ["h2"] });
  expect(strict.find({ serverName: "a.example", alpn: [] })).toBeUndefined();
  expect(strict.find({ serverName: undefined, alpn: ["h2"] })).toBeUndefined();
  expect(strict.asks).toBe(true);
});

test.each([
  [{ sni: [], alpn: [] }, "default", ""],
  [{ sni: ["new.example", "sftp.example"], alpn: [] }, "exact", "sftp.example"],
  [{ sni: ["*.corp.example"], alpn: ["new", "spdy"] }, "acme", "*.corp.example"],
])("a claim that is taken is refused as a whole: %j", (names, taker, pattern) => {
  expect(table.add("late", names)).toEqual({ taker, pattern });
  expect(table.find({ serverName: "new.example", alpn: [] })).toBe("wild");
});

test.each([
  ["sftp.example", undefined],
  ["*.corp.example", undefined],
  ["localhost", undefined],
  ["*", "a wildcard is the whole first label: *.corp.example"],
  ["a*.example", "a wildcard is the whole first label: *.corp.example"],
  ["*.*.example", "a wildcard is the whole first label: *.corp.example"],
  ["*.", "must be a host name, or *. and a host name; no IP address, no dot at its end"],
  ["a.example.", "must be a host name, or *. and a host name; no IP address, no dot at its end"],
  ["192.0.2.1", "must be a host name, or *. and a host name; no IP address, no dot at its end"],
  ["", "must be a host name, or *. and a host name; no IP address, no dot at its end"],
])("%j as a pattern: %s", (pattern, fault) => {
  expect(serverNameFault(pattern)).toBe(fault);
});
