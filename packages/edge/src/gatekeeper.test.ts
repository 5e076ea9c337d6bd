import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseCidr, parseIpAddress } from "@sallyport/host";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { AdmissionDoor, type Admitted, DEFAULT_POLICY } from "./admission.ts";
import type { Ban } from "./ban-list.ts";
import { BanStore } from "./ban-store.ts";
import type { DetectorName } from "./detectors.ts";
import { type Conduct, Gatekeeper } from "./gatekeeper.ts";
import { IpFilter } from "./ip-filter.ts";

let stateDir: string;
let now: number;
let banned: Ban[];
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "sallyport-gate-"));
  now = 1_000;
  banned = [];
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

const ipFilter = new IpFilter({
  default: "allow",
  rules: [{ action: "allow", cidr: parseCidr("203.0.113.0/24"), trusted: true }],
});
const door = new AdmissionDoor({
  name: "sftp",
  ipFilter,
  maxConnections: undefined,
  connectionRate: undefined,
  policy: DEFAULT_POLICY,
  behindProxy: false,
});
const source = parseIpAddress("192.0.2.1")!;
const trusted = parseIpAddress("203.0.113.1")!;

async function gatekeeper(detector: DetectorName, change: { dryRun?: boolean } = {}) {
  return new Gatekeeper(
    {
      limits: { maxConnections: 100, maxConnectionsPerSource: 100 },
      detectors: {
        prefixes: { ipv4: 32, ipv6: 64 },
        detectors: {
          [detector]: { threshold: 3, windowMs: 10_000, ttlMs: 60_000, maxTtlMs: 600_000, dryRun: false, ...change },
        },
      },
      tarpit: { holdMs: 1_000, max: 1 },
    },
    {
      bans: await BanStore.open(stateDir, { now: () => now }),
      log: pino({ level: "silent" }),
      onBan: (ban) => banned.push(ban),
      now: () => now,
    },
  );
}

const enter = (gate: Gatekeeper, address = source) => gate.admit(address, door);
const visit = (gate: Gatekeeper, conduct: Conduct, address = source) => {
  const answer = enter(gate, address);
  if (answer.type === "admitted") gate.leave(answer, conduct);
  return answer.type;
};

const empty: Conduct = { bytesIn: 0, ageMs: 5_000, by: "finished" };
const early: Conduct = { bytesIn: 10, ageMs: 20, by: "partnerReset" };

describe("the gatekeeper", () => {
  test.each<[DetectorName, Conduct, Conduct]>([
    ["emptyConnections", empty, { ...empty, bytesIn: 1 }],
    ["emptyConnections", empty, { ...empty, by: "other" }],
    ["earlyResets", early, { ...early, ageMs: 1_000 }],
    ["earlyResets", early, { ...early, by: "finished" }],
  ])("%s bans for %j and not for %j", async (detector, bad, honest) => {
    const gate = await gatekeeper(detector);
    expect(Array.from({ length: 50 }, () => visit(gate, honest))).not.toContain("denial");
    expect(Array.from({ length: 4 }, () => visit(gate, bad))).toEqual(["admitted", "admitted", "admitted", "denial"]);
    expect(banned.map(({ text, origin }) => [text, origin])).toEqual([["192.0.2.1/32", `auto:${detector}`]]);
    now += 60_000;
    expect(enter(gate).type).toBe("admitted");
  });

  test("the connection that is one too many is refused already", async () => {
    const gate = await gatekeeper("connectRate");
    expect(Array.from({ length: 3 }, () => enter(gate).type)).toEqual(["admitted", "admitted", "denial"]);
  });

  test("knocking on while banned does not make the ban longer", async () => {
    const gate = await gatekeeper("connectRate");
    for (let at = 0; at < 100; at += 1) enter(gate);
    expect(banned.length).toBe(1);
    expect(gate.bans.list.match(source, now)?.hits).toBe(98);
  });

  test("concurrency is seen when connections are held, and not when they come and go", async () => {
    const gate = await gatekeeper("concurrency");
    const places: Admitted[] = [];
    for (let at = 0; at < 5; at += 1) {
      const answer = enter(gate);
      if (answer.type === "admitted") places.push(answer);
    }
    for (const place of places) gate.leave(place, { bytesIn: 1, ageMs: 1, by: "finished" });
    now += 20_000;
    for (let at = 0; at < 5; at += 1) enter(gate);
    expect(banned).toEqual([]);
    now += 20_000;
    enter(gate);
    expect(banned.map(({ origin }) => origin)).toEqual(["auto:concurrency"]);
  });

  test("nothing is held against a trusted source", async () => {
    for (const [detector, conduct] of [
      ["emptyConnections", empty],
      ["earlyResets", early],
      ["connectRate", empty],
      ["concurrency", empty],
    ] as const) {
      const gate = await gatekeeper(detector);
      for (let at = 0; at < 50; at += 1) visit(gate, conduct, trusted);
      expect([banned.length, gate.detectors.size]).toEqual([0, 0]);
    }
  });

  test("in dry run a detector counts and bans nobody", async () => {
    const gate = await gatekeeper("connectRate", { dryRun: true });
    for (let at = 0; at < 10; at += 1) expect(enter(gate).type).toBe("admitted");
    expect([banned.length, gate.detectors.counters.connectRate?.dryRun]).toEqual([0, 3]);
  });
});
