import { chmod, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Failure } from "@sallyport/host";
import { deriveVerifier, encodeToken } from "@sallyport/tunnel";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ClientStore } from "./client-store.ts";

const isPosix = process.platform !== "win32";
let stateDir: string;
let path: string;
let store: ClientStore;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "sallyport-clients-"));
  path = join(stateDir, "clients.json");
  store = await ClientStore.open(stateDir);
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

async function failureOf(work: Promise<unknown>): Promise<Failure> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(Failure);
  return error as Failure;
}

test("a new edge knows no clients", () => {
  expect(store.list()).toEqual([]);
  expect(store.verifiers("lan")).toEqual([]);
});

test("pairing makes a token whose verifier is valid at once and after a restart", async () => {
  const { token, tokenId } = await store.pair("lan");
  const verifier = deriveVerifier(token, "lan");
  for (const opened of [store, await ClientStore.open(stateDir)]) {
    expect(opened.verifiers("lan")).toMatchObject([verifier]);
    expect(opened.list()).toEqual([{ client: "lan", tokens: [{ tokenId, createdAt: expect.any(String) }] }]);
  }
});

test("neither token nor verifier leave the store by its lists, and the token is not in the file", async () => {
  const { token } = await store.pair("lan");
  const verifier = deriveVerifier(token, "lan").key;
  const file = await readFile(path, "utf8");
  const list = JSON.stringify(store.list());
  for (const encoding of ["base64url", "base64", "hex"] as const) {
    expect(file).not.toContain(token.toString(encoding));
    expect(list).not.toContain(token.toString(encoding));
    expect(list).not.toContain(verifier.toString(encoding));
  }
  expect(file).not.toContain(encodeToken(token));
});

test.runIf(isPosix)("the file is for the edge alone", async () => {
  await store.pair("lan");
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  await chmod(path, 0o640);
  expect(await failureOf(ClientStore.open(stateDir))).toMatchObject({ exitCode: 77, where: path });
});

test("a second pairing is refused and points to rotation", async () => {
  const { tokenId } = await store.pair("lan");
  const failure = await failureOf(store.pair("lan"));
  expect(failure).toMatchObject({ exitCode: 64, where: "lan" });
  expect(failure.what).toContain(tokenId);
  expect(failure.what).toContain("client rotate lan");
});

test("rotation: two tokens are valid until one is revoked, a third is refused and the oldest named", async () => {
  expect((await failureOf(store.rotate("lan"))).what).toContain("sallyport-edge pair lan");
  const first = await store.pair("lan");
  const second = await store.rotate("lan");
  expect(store.verifiers("lan").map(({ tokenId }) => tokenId)).toEqual([first.tokenId, second.tokenId]);

  const failure = await failureOf(store.rotate("lan"));
  expect(failure).toMatchObject({ exitCode: 64 });
  expect(failure.what).toContain(`client revoke lan ${first.tokenId}`);

  expect(await store.revoke("lan", first.tokenId)).toEqual([first.tokenId]);
  expect(store.verifiers("lan")).toMatchObject([deriveVerifier(second.token, "lan")]);
  await store.rotate("lan");
  expect(store.verifiers("lan")).toHaveLength(2);
});

test("revoking without a token's name revokes all", async () => {
  const first = await store.pair("lan");
  const second = await store.rotate("lan");
  expect(await store.revoke("lan")).toEqual([first.tokenId, second.tokenId]);
  expect(store.verifiers("lan")).toEqual([]);
  expect(store.list()).toEqual([]);
  expect((await failureOf(store.revoke("lan"))).what).toMatch(/not paired/);
});

test("revoking a token that the client does not have changes nothing and names those it has", async () => {
  const { tokenId } = await store.pair("lan");
  expect((await failureOf(store.revoke("lan", "00000000"))).what).toContain(tokenId);
  expect(store.verifiers("lan")).toHaveLength(1);
});

test("changes that come at the same time are all kept", async () => {
  await Promise.all(["a", "b", "c", "d"].map((client) => store.pair(client)));
  expect((await ClientStore.open(stateDir)).list().map(({ client }) => client)).toEqual(["a", "b", "c", "d"]);
});

test("changes of several processes at the same time are all kept", async () => {
  const stores = await Promise.all(
    ["a", "b", "c", "d", "e"].map(async (client) => [client, await ClientStore.open(stateDir)] as const),
  );
  await Promise.all(stores.map(([client, other]) => other.pair(client)));
  expect((await ClientStore.open(stateDir)).list().map(({ client }) => client)).toEqual(["a", "b", "c", "d", "e"]);
});

test("of two pairings of one client at the same time one is refused", async () => {
  const results = await Promise.allSettled([store.pair("lan"), store.pair("lan")]);
  expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected"]);
});

test("a change made by another process is kept, and seen after reload", async () => {
  const elsewhere = await ClientStore.open(stateDir);
  await elsewhere.pair("other");
  expect(store.verifiers("other")).toEqual([]);
  await store.reload();
  expect(store.verifiers("other")).toHaveLength(1);
  await elsewhere.pair("third");
  await store.pair("lan");
  expect((await ClientStore.open(stateDir)).list().map(({ client }) => client)).toEqual(["lan", "other", "third"]);
});

test("names that mean something to JavaScript are clients like any other", async () => {
  for (const name of ["__proto__", "constructor", "toString"]) {
    expect(store.verifiers(name)).toEqual([]);
    await store.pair(name);
  }
  expect((await ClientStore.open(stateDir)).list()).toHaveLength(3);
});

test.each(["", "a b", "../lan", "a".repeat(256), "lan\n"])("a client cannot be called %j", async (name) => {
  expect(await failureOf(store.pair(name))).toMatchObject({ exitCode: 64 });
});

test("a pairing that cannot be written is no pairing", async () => {
  await rm(stateDir, { recursive: true });
  await writeFile(stateDir, "a file where the directory belongs");
  expect((await failureOf(store.pair("lan"))).exitCode).toBe(74);
  expect(store.verifiers("lan")).toEqual([]);
});

test("a file that would be too large to be read again is not written", async () => {
  const clients = Array.from({ length: 700 }, (_, index) => `${"c".repeat(200)}${index}`);
  const results: string[] = [];
  for (const client of clients) {
    const result = await store.pair(client).catch((error: unknown) => error);
    results.push(result instanceof Failure ? result.what : "paired");
    if (result instanceof Failure) break;
  }
  expect(results.at(-1)).toMatch(/no room/);
  expect((await ClientStore.open(stateDir)).list()).toHaveLength(results.length - 1);
});

describe("a damaged file is refused by name, repeats nothing of itself and is left alone", () => {
  let good: { version: number; clients: { client: string; tokens: Record<string, unknown>[] }[] };
  beforeEach(async () => {
    await store.pair("lan");
    good = JSON.parse(await readFile(path, "utf8"));
  });
  const client = () => good.clients[0]!;
  const token = () => client().tokens[0]!;

  test.each<[string, () => unknown]>([
    ["nothing", () => ""],
    ["half of it", () => JSON.stringify(good).slice(0, 80)],
    ["no object", () => []],
    ["another version", () => ({ ...good, version: 2 })],
    ["a key that is not known", () => ({ ...good, extra: 1 })],
    [
      "a token with a key that is not known",
      () => ({ ...good, clients: [{ ...client(), tokens: [{ ...token(), token: "x" }] }] }),
    ],
    ["a client without tokens", () => ({ ...good, clients: [{ ...client(), tokens: [] }] })],
    ["three tokens", () => ({ ...good, clients: [{ ...client(), tokens: [token(), token(), token()] }] })],
    ["a client twice", () => ({ ...good, clients: [client(), client()] })],
    ["a short verifier", () => ({ ...good, clients: [{ ...client(), tokens: [{ ...token(), verifier: "AAAA" }] }] })],
    [
      "the id of another token",
      () => ({ ...good, clients: [{ ...client(), tokens: [{ ...token(), tokenId: "00000000" }] }] }),
    ],
    [
      "a time that is none",
      () => ({ ...good, clients: [{ ...client(), tokens: [{ ...token(), createdAt: "yesterday" }] }] }),
    ],
    ["a name that is none", () => ({ ...good, clients: [{ ...client(), client: "a b" }] })],
  ])("%s", async (_name, content) => {
    const made = content();
    const text = typeof made === "string" ? made : JSON.stringify(made);
    const verifier = String(token()["verifier"]);
    await writeFile(path, text);
    for (const failure of [await failureOf(ClientStore.open(stateDir)), await failureOf(store.pair("other"))]) {
      expect(failure).toMatchObject({ exitCode: 78, where: path });
      expect(failure.message).not.toContain(verifier);
    }
    expect(await readFile(path, "utf8")).toBe(text);
    expect(store.verifiers("lan")).toHaveLength(1);
  });
});
