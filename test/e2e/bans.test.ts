/** Bans, trust and guards through the real programs: what an operator types, and what a partner sees of it. */
import { readFile, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { pollUntil } from "../support/deadline.ts";
import { startEchoServer } from "../support/echo-server.ts";
import { metric } from "../support/metric.ts";
import { type LogRecord, SallyportPair } from "../support/sallyport-pair.ts";
import { socketEnding } from "../support/socket-ending.ts";
import type { TcpServer } from "../support/tcp-server.ts";

let pair: SallyportPair;
let target: TcpServer;

/** 127.0.0.0/8 is the partners' network; a Linux host has all of it on loopback. */
const filter = (rules: object[] = []) => [
  {
    name: "loopback",
    default: "block",
    rules: [{ action: "allow", cidr: "127.0.0.0/8" }, { action: "allow", cidr: "127.0.0.9", trusted: true }, ...rules],
  },
];

beforeAll(async () => {
  target = await startEchoServer();
  pair = await SallyportPair.start({
    services: { echo: `127.0.0.1:${target.port}` },
    deployments: [
      { name: "tunnelled", target: "echo" },
      { name: "direct", target: `127.0.0.1:${target.port}`, direct: true },
    ],
    edgeConfig: {
      ipFilters: filter(),
      detectors: { emptyConnections: { threshold: 3, window: "1m", ttl: "1h" } },
    },
  });
});
afterAll(async () => {
  await pair.stop();
  await target.close();
});
beforeEach(async () => {
  await command("ban", "flush");
  await command("table", "clear");
});

const command = (...args: string[]) => pair.command("edge", [...args, "--config", pair.edge.configPath]);
const json = async (...args: string[]) => JSON.parse(await command(...args, "--json")) as Record<string, unknown>;

function come(deployment: string, localAddress: string): Socket {
  const socket = connect({ port: pair.listenerPort(deployment), host: "127.0.0.1", localAddress });
  socket.on("error", () => undefined);
  return socket;
}

/** Sends something; resolves with what comes back, or the code of the error. */
async function ask(deployment: string, localAddress: string): Promise<string> {
  const socket = come(deployment, localAddress);
  socket.end("hello");
  const chunks: Buffer[] = [];
  socket.on("data", (bytes: Buffer) => chunks.push(bytes));
  const { how, code } = await socketEnding(socket);
  return how === "end" ? Buffer.concat(chunks).toString() : (code ?? how);
}

/** Resolves when a record of this partner with these values has come, with the last such one. */
const recordOf = (localAddress: string, wanted: Readonly<Record<string, string>>): Promise<LogRecord> =>
  pollUntil(
    () =>
      pair
        .records()
        .edge.findLast(
          (record) =>
            String(record["partner"]).startsWith(`${localAddress}:`) &&
            Object.entries(wanted).every(([key, value]) => record[key] === value),
        ),
    { what: `a record of ${localAddress} with ${JSON.stringify(wanted)}` },
  );

test.each(["tunnelled", "direct"])(
  "a ban refuses on %s, with a record that names it, until it is removed",
  async (name) => {
    expect(await ask(name, "127.0.0.5")).toBe("hello");
    const before = target.acceptedConnections;
    expect(await command("ban", "add", "127.0.0.4/31", "--ttl", "1h", "--comment", "guest network")).toMatch(
      /^banned 127\.0\.0\.4\/31 until \d{4}-/,
    );
    expect(await ask(name, "127.0.0.5")).toBe("ECONNRESET");
    const record = await pollUntil(
      () => pair.records().edge.findLast(({ denied, listener }) => denied === "ban" && listener === name),
      { what: "the record of a refusal" },
    );
    expect(record).toMatchObject({ code: "PA", reason: "banned", rule: "ban 127.0.0.4/31 (manual)", bytesIn: 0 });
    expect(target.acceptedConnections).toBe(before);
    expect(await json("ban", "get", "127.0.0.5")).toMatchObject({
      bans: [{ cidr: "127.0.0.4/31", origin: "manual", comment: "guest network", hits: 1 }],
    });
    expect(metric(await pair.edgeMetrics(), "edge_banned_sources", 'origin="manual"')).toBe(1);
    expect(await ask(name, "127.0.0.6")).toBe("hello");
    await command("ban", "remove", "127.0.0.4/31");
    expect(await ask(name, "127.0.0.5")).toBe("hello");
  },
);

test("a ban survives a restart, is there for one who asks while the edge is down, and ends on time", async () => {
  await command("ban", "add", "127.0.0.5", "--ttl", "0", "--comment", "for good");
  await pair.edge.process.stop();
  expect(await command("ban", "list")).toContain("for good");
  // Made while no edge runs: the next one knows of it.
  await command("ban", "add", "127.0.0.6", "--ttl", "30s");
  await pair.restartEdge();
  await pair.waitUntilReady();
  expect(await ask("direct", "127.0.0.5")).toBe("ECONNRESET");
  const { bans } = (await json("ban", "list")) as { bans: { cidr: string; expiresAt?: string }[] };
  expect(bans.map(({ cidr }) => cidr)).toEqual(["127.0.0.5/32", "127.0.0.6/32"]);
  await command("ban", "add", "127.0.0.6", "--ttl", "2s");
  expect(await ask("direct", "127.0.0.6")).toBe("ECONNRESET");
  await pollUntil(async () => ((await ask("direct", "127.0.0.6")) === "hello" ? true : undefined), {
    what: "the end of a ban",
  });
});

test("what is trusted cannot be banned, and a ban over it says so", async () => {
  const answer = await json("ban", "add", "127.0.0.0/8", "--ttl", "1h", "--close-existing");
  expect(answer).toMatchObject({ trusted: [{ filter: "loopback", cidr: "127.0.0.9/32" }] });
  expect(await ask("direct", "127.0.0.9")).toBe("hello");
  expect(await ask("direct", "127.0.0.10")).toBe("ECONNRESET");
});

test("check-ip says what happens on each listener, why, and for how long", async () => {
  await command("ban", "add", "127.0.0.5", "--ttl", "1h", "--comment", "ticket 4711");
  const answer = (await json("check-ip", "127.0.0.5")) as { listeners: Record<string, unknown>[] };
  expect(answer.listeners.map(({ listener }) => listener)).toEqual(["tunnelled", "direct"]);
  for (const listener of answer.listeners) {
    expect(listener).toMatchObject({
      verdict: "refuse",
      reason: "ban",
      trusted: false,
      ban: { cidr: "127.0.0.5/32", comment: "ticket 4711" },
    });
    expect(listener["forSeconds"]).toBeGreaterThan(3_500);
  }
  const [sentence] = (await command("check-ip", "127.0.0.5")).split("\n");
  expect(sentence).toMatch(
    /^127\.0\.0\.5 is refused on tunnelled: ban 127\.0\.0\.5\/32 \(manual\) "ticket 4711", until \S+, 3\d{3} s from now$/,
  );
  expect(await command("check-ip", "127.0.0.9")).toContain("is allowed on direct: by allow 127.0.0.9/32, trusted");
  expect(await command("check-ip", "192.0.2.1")).toContain("is refused on direct: ipFilter, default");
});

test.each(["tunnelled", "direct"])("--close-existing cuts what is connected to %s, and nobody else", async (name) => {
  const [bad, good] = ["127.0.0.5", "127.0.0.6"].map((from) => come(name, from));
  for (const socket of [bad!, good!]) {
    socket.write("x");
    await new Promise((resolve) => socket.once("data", resolve));
  }
  expect(await json("ban", "add", "127.0.0.5", "--close-existing")).toMatchObject({ closed: 1 });
  expect(await socketEnding(bad!)).toMatchObject({ how: "error", code: "ECONNRESET" });
  expect(await recordOf("127.0.0.5", { code: "PD", listener: name })).toMatchObject({
    code: "PD",
    reason: "banned",
    bytesIn: 1,
  });
  good!.end("y");
  expect((await socketEnding(good!)).how).toBe("end");
});

test("a detector bans who only knocks, for as long as it says, and no trusted source", async () => {
  for (let at = 0; at < 3; at += 1) {
    for (const from of ["127.0.0.7", "127.0.0.9"]) {
      const socket = come("direct", from);
      socket.end();
      await socketEnding(socket);
    }
  }
  await pollUntil(async () => ((await ask("direct", "127.0.0.7")) === "ECONNRESET" ? true : undefined), {
    what: "a ban by the detector",
  });
  expect(await json("ban", "list", "--origin", "auto")).toMatchObject({
    bans: [{ cidr: "127.0.0.7/32", origin: "auto:emptyConnections", repeats: 1 }],
  });
  expect(await ask("direct", "127.0.0.9")).toBe("hello");
  expect(metric(await pair.edgeMetrics(), "edge_bans_total", 'origin="auto:emptyConnections"')).toBe(1);
});

test.each(["tunnelled", "direct"])("detectors ban who sends nothing, and who sends too little, on %s", async (name) => {
  const config = JSON.parse(await readFile(pair.edge.configPath, "utf8")) as { listeners: Record<string, unknown>[] };
  const listeners = config.listeners.map((listener) => ({ ...listener, limits: { firstByteTimeout: "300ms" } }));
  const detectors = {
    noFirstByte: { threshold: 2, window: "1m", ttl: "1h" },
    slowBytes: { threshold: 2, window: "1m", ttl: "1h", after: "1s", minBytes: "16B" },
  };
  await writeFile(pair.edge.configPath, JSON.stringify({ ...config, listeners, detectors }));
  await command("reload");
  const bansByDetector = async () => {
    const { bans } = (await json("ban", "list", "--origin", "auto")) as { bans: { cidr: string; origin: string }[] };
    return bans.map(({ cidr, origin }) => `${cidr} ${origin}`).sort();
  };
  // One who sends enough is nobody's business, nor is one who comes once.
  const honest = [come(name, "127.0.0.22"), come(name, "127.0.0.22")];
  for (const socket of honest) socket.write("sixteen bytes and more");
  const slow = [come(name, "127.0.0.21"), come(name, "127.0.0.21"), come(name, "127.0.0.23")];
  for (const socket of slow) socket.write("slow");
  for (const from of ["127.0.0.20", "127.0.0.20", "127.0.0.24"]) {
    expect(await socketEnding(come(name, from))).toMatchObject({ code: "ECONNRESET" });
  }
  await pollUntil(async () => ((await bansByDetector()).length === 2 ? true : undefined), {
    what: "bans by two detectors",
  });
  expect(await bansByDetector()).toEqual(["127.0.0.20/32 auto:noFirstByte", "127.0.0.21/32 auto:slowBytes"]);
  for (const [from, answer] of [
    ["127.0.0.20", "ECONNRESET"],
    ["127.0.0.21", "ECONNRESET"],
    ["127.0.0.22", "hello"],
    ["127.0.0.23", "hello"],
    ["127.0.0.24", "hello"],
  ] as const) {
    expect([from, await ask(name, from)]).toEqual([from, answer]);
  }
  for (const socket of [...honest, ...slow]) socket.destroy();
  await writeFile(pair.edge.configPath, JSON.stringify(config));
  await command("reload");
});

test("a reload that forbids an address cuts its connections where that is configured; hits of rules that stay are kept", async () => {
  const config = JSON.parse(await readFile(pair.edge.configPath, "utf8")) as Record<string, unknown>;
  const reloadWith = async (change: object) => {
    await writeFile(pair.edge.configPath, JSON.stringify({ ...config, ...change }));
    await command("reload");
  };
  const socket = come("tunnelled", "127.0.0.5");
  socket.write("x");
  await new Promise((resolve) => socket.once("data", resolve));
  const rules = async () => (await json("ip-filter", "show", "loopback"))["rules"] as { cidr: string; hits: number }[];
  const hits = (await rules()).find(({ cidr }) => cidr === "127.0.0.0/8")!.hits;
  expect(hits).toBeGreaterThan(0);
  const forbidding = filter([{ action: "block", cidr: "127.0.0.5" }]);
  await reloadWith({ ipFilters: forbidding });
  socket.write("y");
  await new Promise((resolve) => socket.once("data", resolve));
  await reloadWith({ ipFilters: forbidding, admission: { closeExisting: true } });
  expect(await socketEnding(socket)).toMatchObject({ how: "error", code: "ECONNRESET" });
  expect(await recordOf("127.0.0.5", { code: "PD", reason: "blocked by IP filter" })).toMatchObject({
    code: "PD",
    reason: "blocked by IP filter",
    rule: "block 127.0.0.5/32",
  });
  expect((await rules()).find(({ cidr }) => cidr === "127.0.0.0/8")!.hits).toBeGreaterThanOrEqual(hits);
  await reloadWith({});
});

test("the answer of a rule is RST, FIN or silence for a while, and dry run is none", async () => {
  const config = JSON.parse(await readFile(pair.edge.configPath, "utf8")) as Record<string, unknown>;
  const reloadWith = async (ban: object) => {
    const admission = { tarpit: { hold: "1s", max: 1 }, rules: { ban } };
    await writeFile(pair.edge.configPath, JSON.stringify({ ...config, admission }));
    await command("reload");
  };
  await command("ban", "add", "127.0.0.15");
  const knock = async () => {
    const socket = come("direct", "127.0.0.15");
    const { how, code } = await socketEnding(socket);
    socket.destroy();
    return code ?? how;
  };
  await reloadWith({ onDeny: "close" });
  expect(await knock()).toBe("end");
  await reloadWith({ onDeny: "tarpit" });
  const startedAt = performance.now();
  const held = knock();
  await pollUntil(async () => metric(await pair.edgeMetrics(), "edge_tarpitted") === 1 || undefined, {
    what: "a connection in the tarpit",
  });
  // There is room for one.
  expect(await knock()).toBe("ECONNRESET");
  expect(await held).toBe("ECONNRESET");
  expect(performance.now() - startedAt).toBeGreaterThan(900);
  await reloadWith({ dryRun: true });
  expect(await ask("direct", "127.0.0.15")).toBe("hello");
  expect(await recordOf("127.0.0.15", { code: "--" })).toMatchObject({ code: "--", dryRun: ["ban"] });
  expect(metric(await pair.edgeMetrics(), "edge_connections_would_deny_total", 'reason="ban"')).toBe(1);
  await writeFile(pair.edge.configPath, JSON.stringify(config));
  await command("reload");
});

test("guards: a first byte in time, a longest duration, a byte rate", async () => {
  const config = JSON.parse(await readFile(pair.edge.configPath, "utf8")) as {
    listeners: Record<string, unknown>[];
  };
  const reloadWith = async (limits: object) => {
    const listeners = config.listeners.map((listener) => ({ ...listener, limits }));
    await writeFile(pair.edge.configPath, JSON.stringify({ ...config, listeners }));
    await command("reload");
  };
  await reloadWith({ firstByteTimeout: "500ms" });
  for (const name of ["tunnelled", "direct"]) {
    const before = target.acceptedConnections;
    expect(await socketEnding(come(name, "127.0.0.5"))).toMatchObject({ code: "ECONNRESET" });
    expect(await recordOf("127.0.0.5", { code: "cA", listener: name })).toMatchObject({
      code: "cA",
      denied: "firstByteTimeout",
      listener: name,
    });
    expect(target.acceptedConnections).toBe(before);
    expect(await ask(name, "127.0.0.5")).toBe("hello");
  }
  await reloadWith({ maxDuration: "1s" });
  for (const name of ["tunnelled", "direct"]) {
    const socket = come(name, "127.0.0.6");
    socket.write("x");
    expect(await socketEnding(socket)).toMatchObject({ code: "ECONNRESET", receivedBytes: 1 });
    expect(await recordOf("127.0.0.6", { code: "PD", listener: name })).toMatchObject({
      code: "PD",
      reason: "longest duration reached",
    });
  }
  await reloadWith({ connectionBytesPerSecond: "100KiB" });
  for (const name of ["tunnelled", "direct"]) {
    const socket = come(name, "127.0.0.8");
    const startedAt = performance.now();
    const sent = Buffer.from(Uint8Array.from({ length: 150 * 1_024 }, (_, at) => (at * 31 + (at >> 8)) & 255));
    const back: Buffer[] = [];
    socket.on("data", (bytes: Buffer) => back.push(bytes));
    socket.end(sent);
    expect((await socketEnding(socket)).how).toBe("end");
    expect(Buffer.concat(back).equals(sent)).toBe(true);
    expect((performance.now() - startedAt) / 1_000).toBeGreaterThan((150 - 16) / 100 - 0.05);
  }
  await writeFile(pair.edge.configPath, JSON.stringify(config));
  await command("reload");
});
