import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { addBan, listBans } from "./ban-commands.ts";
import { BanStore } from "./ban-store.ts";

let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "sallyport-ban-commands-"));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

test("a ban lasts at most a hundred years, or is for good, and every one that is there can be listed", async () => {
  const store = await BanStore.open(stateDir);
  const day = 86_400_000;
  await addBan(store, { cidr: "192.0.2.1", ttlMs: 36_500 * day, comment: "" }, Date.now());
  await addBan(store, { cidr: "192.0.2.2", ttlMs: 0, comment: "" }, Date.now());
  const tooLong = addBan(store, { cidr: "192.0.2.3", ttlMs: 9_999_999_999 * day, comment: "" }, Date.now());
  await expect(tooLong).rejects.toThrow("--ttl: may be 36500d at most");
  expect(listBans(store, undefined, Date.now()).bans.map(({ cidr }) => cidr)).toEqual(["192.0.2.1/32", "192.0.2.2/32"]);
});
