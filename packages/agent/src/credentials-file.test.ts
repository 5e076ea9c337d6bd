import { X509Certificate } from "node:crypto";
import { chmod, mkdtemp, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Failure } from "@sallyport/host";
import { certificatePin, createToken, encodeToken, type Pairing } from "@sallyport/tunnel";
import { afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { makeSelfSignedCertificate } from "../../edge/src/self-signed-certificate.ts";
import { readCredentials, writeCredentials } from "./credentials-file.ts";

const isPosix = process.platform !== "win32";
const token = createToken();
const plain: Pairing = { address: "[2001:db8::1]:7443", client: "lan", token: encodeToken(token) };
let pinned: Pairing;
let certificate: string;
let directory: string;
let path: string;
beforeAll(async () => {
  certificate = (await makeSelfSignedCertificate({ host: "edge" })).certificate;
  const der = new X509Certificate(certificate).raw;
  pinned = { ...plain, pin: certificatePin(der), certificate: der.toString("base64"), serverName: "edge" };
});
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "sallyport-credentials-"));
  path = join(directory, "dmz.credentials");
});
afterEach(() => rm(directory, { recursive: true, force: true }));

async function failureOf(work: Promise<unknown>): Promise<Failure> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(Failure);
  return error as Failure;
}

test("what was written is read as connectTunnel takes it", async () => {
  await writeCredentials(path, pinned);
  const read = await readCredentials(path);
  expect({ ...read, certificate: read.certificate?.trim() }).toEqual({
    address: { host: "2001:db8::1", port: 7443 },
    client: "lan",
    token,
    serverName: "edge",
    pin: pinned.pin,
    certificate: certificate.trim(),
  });
});

test("without a pin the system's trust is left to decide", async () => {
  await writeCredentials(path, plain);
  expect(await readCredentials(path)).toEqual({ address: { host: "2001:db8::1", port: 7443 }, client: "lan", token });
});

test.runIf(isPosix)("the file is for the agent alone, and refused when it is not", async () => {
  await writeCredentials(path, plain);
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  for (const mode of [0o640, 0o604, 0o660]) {
    await chmod(path, mode);
    expect(await failureOf(readCredentials(path))).toMatchObject({ exitCode: 77, where: path });
  }
});

test("a file that exists is only replaced when told to", async () => {
  await writeCredentials(path, plain);
  const failure = await failureOf(writeCredentials(path, { ...plain, client: "other" }));
  expect(failure).toMatchObject({ exitCode: 64, where: path });
  expect(failure.what).toContain("--force");
  expect((await readCredentials(path)).client).toBe("lan");
  await writeCredentials(path, { ...plain, client: "other" }, { force: true });
  expect((await readCredentials(path)).client).toBe("other");
});

test("a link that points nowhere is a file that exists", async () => {
  await symlink(join(directory, "nowhere"), path);
  expect(await failureOf(writeCredentials(path, plain))).toMatchObject({ exitCode: 64 });
});

test("a directory that does not exist is an I/O error", async () => {
  expect(await failureOf(writeCredentials(join(directory, "no", "file"), plain))).toMatchObject({ exitCode: 74 });
  expect(await failureOf(readCredentials(path))).toMatchObject({
    exitCode: 74,
    where: path,
    what: "does not exist; write it with `sallyport-agent join --out FILE`",
  });
});

test("line breaks at the end do not matter", async () => {
  await writeCredentials(path, plain);
  await writeFile(path, `${await readFile(path, "utf8")}\r\n\n`);
  expect((await readCredentials(path)).client).toBe("lan");
});

describe("a file that join did not write is refused, and nothing of it repeated", () => {
  const secret = encodeToken(token);
  test.each<[string, () => unknown]>([
    ["nothing", () => ""],
    ["half of it", () => JSON.stringify(plain).slice(0, -2)],
    ["the bare token", () => secret],
    ["a list", () => [plain]],
    ["a key that is not known", () => ({ ...plain, [secret]: 1 })],
    ["no address", () => ({ client: "lan", token: secret })],
    ["an address without port", () => ({ ...plain, address: "edge" })],
    ["a token with 42 characters", () => ({ ...plain, token: secret.slice(1) })],
    ["a token with a line break", () => ({ ...plain, token: `${secret}\n` })],
    ["a token in hexadecimal", () => ({ ...plain, token: token.toString("hex") })],
    ["a certificate without pin", () => ({ ...plain, certificate: pinned.certificate })],
    ["the pin of another certificate", () => ({ ...pinned, pin: "0".repeat(64) })],
  ])("%s", async (_name, content) => {
    const made = content();
    await writeFile(path, typeof made === "string" ? made : JSON.stringify(made), { mode: 0o600 });
    const failure = await failureOf(readCredentials(path));
    expect(failure).toMatchObject({ exitCode: 78, where: path });
    expect(failure.message).toContain("sallyport-agent join");
    expect(failure.message).not.toContain(secret.slice(1, -1));
    expect(failure.message).not.toContain(token.toString("hex"));
  });
});
