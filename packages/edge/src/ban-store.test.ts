import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseCidr } from "@sallyport/host";
import * as fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { BanStore } from "./ban-store.ts";

let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "sallyport-bans-"));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

const list = (store: BanStore, now: number) => [...store.list.list(now)];

describe("the store of bans", () => {
  test("gives back what it was given, whatever the comment says, but not what has expired", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.record({
            address: fc.oneof(fc.ipV4(), fc.ipV6()),
            comment: fc.string({ maxLength: 200, unit: "binary" }),
            ttlMs: fc.integer({ min: 0, max: 1_000 }),
            origin: fc.constantFrom("manual" as const, "auto:slowBytes" as const, "log:sshd" as const),
          }),
          { maxLength: 20 },
        ),
        fc.nat(1_000),
        async (bans, later) => {
          await rm(join(stateDir, "bans.json"), { force: true });
          const store = await BanStore.open(stateDir, { now: () => 1_000 });
          for (const { address, ...ban } of bans) store.add({ cidr: parseCidr(address), ...ban });
          await store.save();
          const again = await BanStore.open(stateDir, { now: () => 1_000 + later });
          expect(list(again, 1_000 + later)).toEqual(list(store, 1_000 + later));
        },
      ),
      { numRuns: 50 },
    );
  });

  test("is on the disk when save resolves, mode 0600 and nothing left beside it", async () => {
    const store = await BanStore.open(stateDir);
    store.add({ cidr: parseCidr("192.0.2.0/24"), origin: "manual", ttlMs: 0, comment: "guest network" });
    await store.save();
    expect(await readdir(stateDir)).toEqual(["bans.json"]);
    const [header, line] = (await readFile(join(stateDir, "bans.json"), "utf8")).split("\n");
    expect(JSON.parse(header!)).toEqual({ format: "sallyport-bans", version: 1 });
    expect(JSON.parse(line!)).toMatchObject({ cidr: "192.0.2.0/24", origin: "manual", comment: "guest network" });
  });

  test("writes by itself what nobody waits for", async () => {
    const store = await BanStore.open(stateDir);
    store.add({ cidr: parseCidr("192.0.2.1"), origin: "auto:earlyResets", ttlMs: 60_000 });
    await expect
      .poll(async () => readFile(join(stateDir, "bans.json"), "utf8").catch(() => ""), { timeout: 10_000 })
      .toContain("192.0.2.1/32");
  });

  test("takes 50,000 bans to the disk and back", async () => {
    const store = await BanStore.open(stateDir);
    for (let at = 0; at < 50_000; at += 1) {
      store.add({
        cidr: parseCidr(`10.${at >> 16}.${(at >> 8) & 255}.${at & 255}`),
        origin: "auto:connectRate",
        ttlMs: 3_600_000,
      });
    }
    await store.save();
    const again = await BanStore.open(stateDir);
    expect(again.list.size).toBe(50_000);
  }, 60_000);

  test.each([
    ["no header", "{}\n", 1],
    ["another version", '{"format":"sallyport-bans","version":2}\n', 1],
    ["a half line", '{"format":"sallyport-bans","version":1}\n{"cidr":"192.0.', 2],
    ["host bits", line({ cidr: "192.0.2.1/24" }), 2],
    ["an unknown key", line({ colour: "red" }), 2],
    ["a strange origin", line({ origin: "auto:\nforged" }), 2],
  ])("refuses a file with %s, with the line", async (_, text, at) => {
    await writeFile(join(stateDir, "bans.json"), text);
    await expect(BanStore.open(stateDir)).rejects.toMatchObject({
      where: `${join(stateDir, "bans.json")}:${at}`,
      exitCode: 78,
    });
  });

  test("says when the disk does not take it, and keeps the ban in memory", async () => {
    const store = await BanStore.open(stateDir);
    store.add({ cidr: parseCidr("192.0.2.1"), origin: "manual", ttlMs: 0 });
    await rm(stateDir, { recursive: true });
    await expect(store.save()).rejects.toMatchObject({ exitCode: 74 });
    expect(store.list.size).toBe(1);
  });
});

function line(change: object): string {
  const ban = { cidr: "192.0.2.1/32", origin: "manual", comment: "", createdAt: 1, repeats: 1, hits: 0, ...change };
  return `{"format":"sallyport-bans","version":1}\n${JSON.stringify(ban)}\n`;
}
