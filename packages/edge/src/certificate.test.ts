import { generateKeyPairSync } from "node:crypto";
import { chmod, mkdtemp, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Failure } from "@sallyport/host";
import { afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { loadTunnelCertificate } from "./certificate.ts";
import { makeSelfSignedCertificate, type SelfSignedCertificate } from "./self-signed-certificate.ts";

const isPosix = process.platform !== "win32";
const generated = { name: "dmz", listen: { host: "0.0.0.0" }, publicAddress: { host: "edge.example.com" } };

let stateDir: string;
let own: SelfSignedCertificate;
let other: SelfSignedCertificate;
beforeAll(async () => {
  own = await makeSelfSignedCertificate({ host: "edge" });
  other = await makeSelfSignedCertificate({ host: "edge" });
});
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "sallyport-certificate-"));
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

describe("a tunnel without configured certificate", () => {
  test("gets one at first start and keeps it", async () => {
    const first = await loadTunnelCertificate(generated, stateDir);
    expect(await loadTunnelCertificate(generated, stateDir)).toEqual(first);
    expect(first.cert).toContain("BEGIN CERTIFICATE");
  });

  test.runIf(isPosix)("keeps the key where only the edge reads it", async () => {
    await loadTunnelCertificate(generated, stateDir);
    expect((await stat(join(stateDir, "tls", "dmz.pem"))).mode & 0o777).toBe(0o600);
    expect((await stat(join(stateDir, "tls"))).mode & 0o777).toBe(0o700);
  });

  test("gets one and the same when several ask at once", async () => {
    const all = await Promise.all([1, 2, 3].map(() => loadTunnelCertificate(generated, stateDir)));
    expect(new Set(all.map(({ cert }) => cert)).size).toBe(1);
  });

  test("has another certificate than the next tunnel", async () => {
    const first = await loadTunnelCertificate(generated, stateDir);
    const second = await loadTunnelCertificate({ ...generated, name: "second" }, stateDir);
    expect(second.cert).not.toBe(first.cert);
  });

  test.each([
    ["empty", () => ""],
    ["cut off", () => `${own.certificate}${own.key.slice(0, 60)}`],
    ["without its key", () => own.certificate],
    ["of two halves that do not fit", () => `${own.certificate}${other.key}`],
  ])("does not replace a file that is %s, because agents have pinned it", async (_name, content) => {
    await loadTunnelCertificate(generated, stateDir);
    const path = join(stateDir, "tls", "dmz.pem");
    await writeFile(path, content());
    const failure = await failureOf(loadTunnelCertificate(generated, stateDir));
    expect(failure).toMatchObject({ exitCode: 78, where: path });
    expect(await readFile(path, "utf8")).toBe(content());
  });

  test.runIf(isPosix)("is refused when others can read the key", async () => {
    await loadTunnelCertificate(generated, stateDir);
    await chmod(join(stateDir, "tls", "dmz.pem"), 0o644);
    expect(await failureOf(loadTunnelCertificate(generated, stateDir))).toMatchObject({ exitCode: 77 });
  });
});

describe("a tunnel with configured certificate", () => {
  async function configure(cert: string, key: string, keyMode = 0o600) {
    const certFile = join(stateDir, "cert.pem");
    const keyFile = join(stateDir, "key.pem");
    await writeFile(certFile, cert);
    await writeFile(keyFile, key);
    await chmod(keyFile, keyMode);
    return { ...generated, tls: { certFile, keyFile } };
  }

  test("takes it as it is", async () => {
    const settings = await configure(own.certificate, own.key);
    expect(await loadTunnelCertificate(settings, stateDir)).toEqual({ cert: own.certificate, key: own.key });
  });

  test("reads it through links, as certificate clients lay them out", async () => {
    const settings = await configure(own.certificate, own.key);
    const link = join(stateDir, "live.pem");
    await symlink(settings.tls.certFile, link);
    expect(
      await loadTunnelCertificate({ ...settings, tls: { ...settings.tls, certFile: link } }, stateDir),
    ).toMatchObject({
      cert: own.certificate,
    });
  });

  test.runIf(isPosix)("may keep the key readable for a group, but not for everybody", async () => {
    await loadTunnelCertificate(await configure(own.certificate, own.key, 0o640), stateDir);
    const failure = await failureOf(loadTunnelCertificate(await configure(own.certificate, own.key, 0o644), stateDir));
    expect(failure).toMatchObject({ exitCode: 77, where: join(stateDir, "key.pem") });
  });

  const encrypted = generateKeyPairSync("ec", {
    namedCurve: "P-256",
    publicKeyEncoding: { type: "spki", format: "pem" },
    privateKeyEncoding: { type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: "x" },
  }).privateKey;
  test.each<[string, () => string, () => string, string, RegExp]>([
    ["an empty certificate file", () => "", () => own.key, "cert.pem", /no certificate in PEM form/],
    ["the key where the certificate belongs", () => own.key, () => own.key, "cert.pem", /no certificate in PEM form/],
    ["a damaged certificate", () => own.certificate.replace("MII", "AAA"), () => own.key, "cert.pem", /cannot be read/],
    ["an empty key file", () => own.certificate, () => "", "key.pem", /no private key in PEM form/],
    [
      "the certificate where the key belongs",
      () => own.certificate,
      () => own.certificate,
      "key.pem",
      /no private key/,
    ],
    ["a key with a passphrase", () => own.certificate, () => encrypted, "key.pem", /passphrase/],
    ["another key", () => own.certificate, () => other.key, "key.pem", /another key than that of the certificate/],
    ["a damaged key", () => own.certificate, () => own.key.replace("MIG", "AAA"), "key.pem", /cannot be used for TLS/],
  ])("is refused with %s", async (_name, cert, key, file, reason) => {
    const failure = await failureOf(loadTunnelCertificate(await configure(cert(), key()), stateDir));
    expect(failure).toMatchObject({ exitCode: 78, where: join(stateDir, file) });
    expect(failure.what).toMatch(reason);
    expect(failure.message).not.toContain(own.key.split("\n")[1]);
  });

  test("is refused when it has expired, with the date", async () => {
    const old = await makeSelfSignedCertificate({ host: "edge", from: new Date("2010-01-01T00:00:00Z") });
    const failure = await failureOf(loadTunnelCertificate(await configure(old.certificate, old.key), stateDir));
    expect(failure).toMatchObject({ exitCode: 78 });
    expect(failure.what).toMatch(/expired on Jan .* 2020/);
  });

  test("is refused when a file is missing, or when one of the two is not configured", async () => {
    const { tls } = await configure(own.certificate, own.key);
    const missing = { ...generated, tls: { ...tls, keyFile: join(stateDir, "nothing.pem") } };
    expect(await failureOf(loadTunnelCertificate(missing, stateDir))).toMatchObject({ exitCode: 74 });
    const half = { ...generated, tls: { certFile: tls.certFile } };
    expect(await failureOf(loadTunnelCertificate(half, stateDir))).toMatchObject({
      exitCode: 78,
      where: "tunnels.dmz.tls",
    });
    const directory = { ...generated, tls: { ...tls, certFile: stateDir } };
    expect(await failureOf(loadTunnelCertificate(directory, stateDir))).toMatchObject({
      exitCode: 78,
      where: stateDir,
    });
  });
});
