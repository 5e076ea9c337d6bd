import { createSocket } from "node:dgram";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { formatIpAddress, parseIpAddress } from "./ip-address.ts";
import { ResolveError, Resolver, type ResolverOptions } from "./resolver.ts";

/** What the fake name server does with a name; one it does not know does not exist. */
interface Zone {
  [name: string]: {
    a?: string[];
    aaaa?: string[];
    fault?: "silent" | "servfail" | "silent-aaaa";
    release?: Promise<void>;
  };
}

/** A name server on a loopback port; `questions` holds what was asked of it, as `name A` and `name AAAA`. */
async function startNameServer(zone: Zone) {
  const socket = createSocket("udp4");
  const questions: string[] = [];
  const emitter = new EventTarget();
  socket.on("message", (query, from) => {
    const labels: string[] = [];
    let at = 12;
    for (; query[at] !== 0; at += query[at]! + 1) {
      labels.push(query.toString("latin1", at + 1, at + 1 + query[at]!));
    }
    const name = labels.join(".").toLowerCase();
    const type = query.readUInt16BE(at + 1) === 28 ? "AAAA" : "A";
    questions.push(`${name} ${type}`);
    emitter.dispatchEvent(new Event("question"));
    const entry = zone[name];
    if (entry?.fault === "silent" || (entry?.fault === "silent-aaaa" && type === "AAAA")) {
      return;
    }
    const addresses = (type === "A" ? entry?.a : entry?.aaaa) ?? [];
    const code = entry === undefined ? 3 : entry.fault === "servfail" ? 2 : 0;
    const answers = addresses.map((address) => {
      const data = type === "AAAA" && address.includes(".") ? mapped(address) : parseIpAddress(address)!.bytes;
      const head = Buffer.from([0xc0, 12, 0, type === "A" ? 1 : 28, 0, 1, 0, 0, 0, 60, 0, data.length]);
      return Buffer.concat([head, data]);
    });
    const header = Buffer.from(query.subarray(0, 12));
    header.writeUInt16BE(0x8180 | code, 2);
    header.writeUInt16BE(answers.length, 6);
    header.writeUInt32BE(0, 8);
    const reply = Buffer.concat([header, query.subarray(12, at + 5), ...answers]);
    void (entry?.release ?? Promise.resolve()).then(() => socket.send(reply, from.port, from.address));
  });
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  return {
    address: `127.0.0.1:${socket.address().port}`,
    questions,
    nextQuestion: () => new Promise((resolve) => emitter.addEventListener("question", resolve, { once: true })),
    close: () => socket.close(),
  };
}

const mapped = (address: string) =>
  Buffer.concat([Buffer.alloc(10), Buffer.from([255, 255]), parseIpAddress(address)!.bytes]);

/** The reason for which a name was not resolved. */
const failure = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "resolved",
    (error: unknown) => (error instanceof ResolveError ? error.reason : "another error"),
  );

let directory: string;
let server: Awaited<ReturnType<typeof startNameServer>>;
let zone: Zone;
let nowMs: number;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "resolver-"));
  zone = {};
  server = await startNameServer(zone);
  nowMs = 1_000;
});

afterEach(() => {
  server.close();
  rmSync(directory, { recursive: true });
});

function file(name: string, text: string): string {
  const path = join(directory, name);
  writeFileSync(path, text);
  return path;
}

function makeResolver(options: ResolverOptions = {}): Resolver {
  return new Resolver({
    servers: [server.address],
    hostsFile: join(directory, "hosts"),
    resolvConfFile: join(directory, "resolv.conf"),
    now: () => nowMs,
    ...options,
  });
}

describe("a resolver", () => {
  test("gives the addresses of both families, IPv6 first", async () => {
    zone["db.corp.example"] = { a: ["10.0.0.1", "10.0.0.2"], aaaa: ["2001:db8::1"] };
    const addresses = await makeResolver().resolve("db.corp.example");
    expect(addresses[0]).toBe("2001:db8::1");
    expect(addresses.slice(1).sort()).toEqual(["10.0.0.1", "10.0.0.2"]);
  });

  test.each([
    ["10.0.0.1", "10.0.0.1"],
    ["2001:DB8::1", "2001:db8::1"],
    ["::ffff:10.0.0.1", "10.0.0.1"],
  ])("passes the literal %s through without a question", async (literal, expected) => {
    expect(await makeResolver().resolve(literal)).toEqual([expected]);
    expect(server.questions).toEqual([]);
  });

  test.each(["localhost", "LOCALHOST", "localhost.", "db.localhost"])("takes %s for loopback", async (name) => {
    file("hosts", "10.0.0.1 localhost db.localhost\n");
    expect(await makeResolver().resolve(name)).toEqual(["127.0.0.1", "::1"]);
    expect(server.questions).toEqual([]);
  });

  test.each([
    "0x7f.1",
    "0x7f000001",
    "0x",
    "0X7F.0X1",
    "017700000001",
    "2130706433",
    "127.1",
    "127.0.1",
    "127.0.0.01",
    "127.0.0.1.",
    "127.0.0.256",
    "1.2.3.4.5",
    "db.0x7f",
    "fe80::1%eth0",
    "[::1]",
    "",
    ".",
    "a..b",
    ".a",
    "-a.example",
    "a-.example",
    "a b",
    "a\0.example",
    "a/b",
    "user@host",
    "host:22",
    "*.example",
    "d\u00fc.example",
    "\uff11\uff12\uff17.0.0.1",
    "10\u30020\u30020\u30021",
    `${"a".repeat(64)}.example`,
    `${"a.".repeat(127)}aaa`,
  ])("refuses %j as a name and asks nobody", async (name) => {
    expect(await failure(makeResolver().resolve(name))).toBe("invalid_name");
    expect(server.questions).toEqual([]);
  });

  test("unwraps a mapped address that a name server sends", async () => {
    zone["sly.example"] = { aaaa: ["127.0.0.1"] };
    expect(await makeResolver().resolve("sly.example")).toEqual(["127.0.0.1"]);
  });

  test("is satisfied with one family when the other has no address", async () => {
    zone["four.example"] = { a: ["10.0.0.1"] };
    zone["six.example"] = { aaaa: ["2001:db8::1"] };
    const resolver = makeResolver();
    expect(await resolver.resolve("four.example")).toEqual(["10.0.0.1"]);
    expect(await resolver.resolve("six.example")).toEqual(["2001:db8::1"]);
  });

  test("does not wait for a family that is never answered", async () => {
    zone["half.example"] = { a: ["10.0.0.1"], fault: "silent-aaaa" };
    const started = performance.now();
    expect(await makeResolver().resolve("half.example")).toEqual(["10.0.0.1"]);
    expect(performance.now() - started).toBeLessThan(1_400);
  });

  test.each([
    ["missing.example", "not_found"],
    ["empty.example", "not_found"],
    ["broken.example", "server_failure"],
    ["silent.example", "timeout"],
  ])("says about %s: %s", async (name, reason) => {
    zone["empty.example"] = {};
    zone["broken.example"] = { fault: "servfail" };
    zone["silent.example"] = { fault: "silent" };
    expect(await failure(makeResolver({ timeoutMs: 200 }).resolve(name))).toBe(reason);
  });

  test("gives up after its time although the name server is dead", async () => {
    zone["silent.example"] = { fault: "silent" };
    const started = performance.now();
    expect(await failure(makeResolver({ timeoutMs: 100 }).resolve("silent.example"))).toBe("timeout");
    expect(performance.now() - started).toBeLessThan(1_000);
  });

  test("answers for other names while a hundred wait for a silent server", async () => {
    zone["live.example"] = { a: ["10.0.0.1"] };
    const names = Array.from({ length: 100 }, (_, index) => `silent${index}.example`);
    for (const name of names) {
      zone[name] = { fault: "silent" };
    }
    const resolver = makeResolver({ timeoutMs: 2_000 });
    let settled = 0;
    const waiting = names.map((name) => failure(resolver.resolve(name)).finally(() => settled++));
    expect(await resolver.resolve("live.example")).toEqual(["10.0.0.1"]);
    expect(await resolver.resolve("127.0.0.1")).toEqual(["127.0.0.1"]);
    expect(settled).toBe(0);
    expect(new Set(await Promise.all(waiting))).toEqual(new Set(["timeout"]));
  });

  test("asks once for callers at the same time, whatever the case", async () => {
    zone["db.example"] = { a: ["10.0.0.1"] };
    const resolver = makeResolver();
    const answers = await Promise.all(["db.example", "DB.example", "db.EXAMPLE"].map((name) => resolver.resolve(name)));
    expect(answers).toEqual([["10.0.0.1"], ["10.0.0.1"], ["10.0.0.1"]]);
    expect(server.questions.sort()).toEqual(["db.example A", "db.example AAAA"]);
  });

  test("remembers an answer for five seconds and not longer", async () => {
    zone["db.example"] = { a: ["10.0.0.1"] };
    const resolver = makeResolver();
    await resolver.resolve("db.example");
    zone["db.example"] = { a: ["10.0.0.2"] };
    nowMs += 4_999;
    expect(await resolver.resolve("db.example")).toEqual(["10.0.0.1"]);
    nowMs += 1;
    expect(await resolver.resolve("db.example")).toEqual(["10.0.0.2"]);
  });

  test("remembers that a name does not exist for one second", async () => {
    const resolver = makeResolver();
    expect(await failure(resolver.resolve("new.example"))).toBe("not_found");
    zone["new.example"] = { a: ["10.0.0.1"] };
    nowMs += 999;
    expect(await failure(resolver.resolve("new.example"))).toBe("not_found");
    nowMs += 1;
    expect(await resolver.resolve("new.example")).toEqual(["10.0.0.1"]);
  });

  test("forgets the oldest answer when it remembers too many", async () => {
    zone["a.example"] = { a: ["10.0.0.1"] };
    zone["b.example"] = { a: ["10.0.0.2"] };
    zone["c.example"] = { a: ["10.0.0.3"] };
    const resolver = makeResolver({ maxEntries: 2 });
    for (const name of ["a.example", "b.example", "c.example"]) {
      await resolver.resolve(name);
    }
    server.questions.length = 0;
    await resolver.resolve("c.example");
    await resolver.resolve("b.example");
    expect(server.questions).toEqual([]);
    await resolver.resolve("a.example");
    expect(server.questions).toHaveLength(2);
  });

  test("changes to a returned list do not reach the next caller", async () => {
    zone["db.example"] = { a: ["10.0.0.1"] };
    const resolver = makeResolver();
    (await resolver.resolve("db.example")).length = 0;
    expect(await resolver.resolve("db.example")).toEqual(["10.0.0.1"]);
  });

  test("refuses a further name when too many are being looked up, but not a running one", async () => {
    let release = () => {};
    zone["slow.example"] = { a: ["10.0.0.1"], release: new Promise((resolve) => (release = resolve)) };
    const resolver = makeResolver({ maxPending: 1 });
    const first = resolver.resolve("slow.example");
    const second = resolver.resolve("slow.example");
    expect(await failure(resolver.resolve("other.example"))).toBe("busy");
    release();
    expect(await Promise.all([first, second])).toEqual([["10.0.0.1"], ["10.0.0.1"]]);
    expect(await failure(resolver.resolve("other.example"))).toBe("not_found");
  });

  test("lets one caller go and serves the other", async () => {
    let release = () => {};
    zone["slow.example"] = { a: ["10.0.0.1"], release: new Promise((resolve) => (release = resolve)) };
    const resolver = makeResolver();
    const controller = new AbortController();
    const asked = server.nextQuestion();
    const leaving = failure(resolver.resolve("slow.example", { signal: controller.signal }));
    const staying = resolver.resolve("slow.example");
    await asked;
    controller.abort();
    expect(await leaving).toBe("cancelled");
    release();
    expect(await staying).toEqual(["10.0.0.1"]);
    expect(await failure(resolver.resolve("slow.example", { signal: controller.signal }))).toBe("cancelled");
  });
});

describe("the hosts file", () => {
  test("answers before the name server, for all addresses of the name", async () => {
    zone["db.example"] = { a: ["10.9.9.9"] };
    file(
      "hosts",
      "# ours\n10.0.0.1\tDB.example db # primary\r\n::1 ip6\n2001:db8::1 db.example\nfe80::1%eth0 db.example\n",
    );
    const resolver = makeResolver();
    expect(await resolver.resolve("db.example")).toEqual(["10.0.0.1", "2001:db8::1"]);
    expect(await resolver.resolve("db.example.")).toEqual(["10.0.0.1", "2001:db8::1"]);
    expect(await resolver.resolve("DB")).toEqual(["10.0.0.1"]);
    expect(server.questions).toEqual([]);
  });

  test("passes over lines whose address is not canonical", async () => {
    file("hosts", "127.1 short\n0x7f.0.0.1 hex\n010.0.0.1 octal\n");
    const resolver = makeResolver();
    expect(await Promise.all(["short", "hex", "octal"].map((name) => failure(resolver.resolve(name))))).toEqual([
      "not_found",
      "not_found",
      "not_found",
    ]);
  });

  test("is read again after it changed, at most every five seconds", async () => {
    file("hosts", "10.0.0.1 db\n");
    const resolver = makeResolver();
    expect(await resolver.resolve("db")).toEqual(["10.0.0.1"]);
    file("hosts", "10.0.0.22 db\n");
    nowMs += 4_999;
    expect(await resolver.resolve("db")).toEqual(["10.0.0.1"]);
    nowMs += 1;
    expect(await resolver.resolve("db")).toEqual(["10.0.0.22"]);
    rmSync(join(directory, "hosts"));
    nowMs += 5_000;
    expect(await failure(resolver.resolve("db"))).toBe("not_found");
  });
});

describe("search domains", () => {
  const questionsFor = async (resolvConf: string, name: string) => {
    file("resolv.conf", resolvConf);
    await failure(makeResolver().resolve(name));
    return server.questions.filter((question) => question.endsWith(" A")).map((question) => question.slice(0, -2));
  };

  test.each([
    ["", "db", ["db"]],
    ["search corp.example lab.example\n", "db", ["db.corp.example", "db.lab.example", "db"]],
    ["search corp.example.\n", "db.x", ["db.x", "db.x.corp.example"]],
    ["search corp.example\noptions timeout:1 ndots:2\n", "db.x", ["db.x.corp.example", "db.x"]],
    ["search corp.example\n", "db.", ["db"]],
    ["domain a.example\nsearch b.example\n", "db", ["db.b.example", "db"]],
    ["search b.example\ndomain a.example\n", "db", ["db.a.example", "db"]],
    ["# search no.example\n;search no.example\nsearch corp.example # ours\n", "db", ["db.corp.example", "db"]],
  ])("with %j the name %s is asked for as %j", async (resolvConf, name, expected) => {
    expect(await questionsFor(resolvConf, name)).toEqual(expected);
  });

  test("end at the first name that exists", async () => {
    zone["db.corp.example"] = { a: ["10.0.0.1"] };
    expect(await questionsFor("search corp.example lab.example\n", "db")).toEqual(["db.corp.example"]);
  });

  test("end where a name server fails, so that a fault leads nowhere else", async () => {
    zone["db.corp.example"] = { fault: "servfail" };
    zone["db.lab.example"] = { a: ["10.6.6.6"] };
    file("resolv.conf", "search corp.example lab.example\n");
    expect(await failure(makeResolver().resolve("db"))).toBe("server_failure");
  });
});

test("every address comes back in canonical form", async () => {
  zone["db.example"] = { aaaa: ["2001:DB8:0:0:0:0:0:1"] };
  const [address] = await makeResolver().resolve("db.example");
  expect(address).toBe(formatIpAddress(parseIpAddress(address!)!));
});
