/*
 * Key and certificate of a tunnel: the operator's, or one that the edge makes at first start and agents pin.
 *
 * A generated pair lives in one file, so that it is written whole or not at all: agents have pinned the certificate, and a
 * key without it, or the other way round, would lock all of them out.
 */
import { X509Certificate } from "node:crypto";
import { chown, mkdir, open, stat } from "node:fs/promises";
import { join } from "node:path";
import { createSecureContext } from "node:tls";
import {
  ExitCode,
  errorFacts,
  Failure,
  readSecretFile,
  systemFailure,
  withFileLock,
  writeFileAtomically,
} from "@sallyport/host";
import type { TunnelTls } from "@sallyport/tunnel";
import { makeSelfSignedCertificate } from "./self-signed-certificate.ts";

/** The part of a tunnel's configuration that concerns its certificate. */
export interface CertificateSettings {
  /** Names the generated file. */
  readonly name: string;
  readonly listen: { readonly host: string };
  readonly publicAddress?: { readonly host: string } | undefined;
  /** Both or neither of the files. */
  readonly tls?: { readonly certFile?: string | undefined; readonly keyFile?: string | undefined } | undefined;
}

/** Larger than any chain; a wrong path to something huge costs nothing. */
const MAX_FILE_BYTES = 1024 * 1024;

/**
 * Loads the configured key and certificate, or the generated ones in `stateDir/tls/NAME.pem`, which are made when they do
 * not exist.
 *
 * @throws Failure 78 when they do not fit together, have expired or are none; 77 when others can read the key, or a
 *   permission is missing; 74 when a file cannot be read or written. It names the file and holds nothing of the key
 */
export async function loadTunnelCertificate(
  settings: CertificateSettings,
  stateDir: string,
): Promise<{ key: string; cert: string } & TunnelTls> {
  const { certFile, keyFile } = settings.tls ?? {};
  if (certFile === undefined && keyFile === undefined) {
    return loadGenerated(settings, stateDir);
  }
  if (certFile === undefined || keyFile === undefined) {
    throw new Failure(
      ExitCode.configuration,
      `tunnels.${settings.name}.tls`,
      "certFile and keyFile go together; give both",
    );
  }
  const cert = await readCertificateFile(certFile);
  const key = await readKeyFile(keyFile);
  check({ key, cert, certWhere: certFile, keyWhere: keyFile });
  return { key, cert };
}

async function loadGenerated(settings: CertificateSettings, stateDir: string): Promise<{ key: string; cert: string }> {
  const directory = join(stateDir, "tls");
  const path = join(directory, `${settings.name}.pem`);
  if (await exists(path)) return readGenerated(path);
  await makeDirectory(directory, stateDir);
  // `pair` and `serve` may be started at the same time; the certificate that one pins is the one that the other shows.
  return withFileLock(path, async () => {
    if (await exists(path)) return readGenerated(path);
    const { host } = settings.publicAddress ?? settings.listen;
    const made = await makeSelfSignedCertificate({ host });
    const { key, cert } = { key: `${made.key.trim()}\n`, cert: `${made.certificate.trim()}\n` };
    await writeFileAtomically(path, `${cert}${key}`, 0o600);
    return { key, cert };
  });
}

async function readGenerated(path: string): Promise<{ key: string; cert: string }> {
  const existing = await readSecretFile(path);
  const key = /-----BEGIN PRIVATE KEY-----[^-]+-----END PRIVATE KEY-----\n?/.exec(existing)?.[0] ?? "";
  const cert = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\n?/.exec(existing)?.[0] ?? "";
  check({ key, cert, certWhere: path, keyWhere: path });
  return { key, cert };
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (errorFacts(error).code === "ENOENT") {
      return false;
    }
    throw systemFailure(error, path, "look at the file");
  }
}

/** A directory that root makes when it runs a command by hand goes to the owner of the state directory, as files do. */
async function makeDirectory(directory: string, stateDir: string): Promise<void> {
  try {
    const made = await mkdir(directory, { recursive: true, mode: 0o700 });
    if (made !== undefined && process.getuid?.() === 0) {
      const owner = await stat(stateDir);
      await chown(directory, owner.uid, owner.gid);
    }
  } catch (error) {
    throw systemFailure(error, directory, "make the directory");
  }
}

async function readCertificateFile(path: string): Promise<string> {
  return (await readBoundedFile(path)).text;
}

/** A key may be readable by a group, as Debian's `ssl-cert` does it, but not by everybody. */
async function readKeyFile(path: string): Promise<string> {
  const { text, mode } = await readBoundedFile(path);
  if (process.platform !== "win32" && (mode & 0o007) !== 0) {
    throw new Failure(
      ExitCode.permission,
      path,
      "holds a private key that everybody can read; needed is mode 0600 or 0640",
    );
  }
  return text;
}

async function readBoundedFile(path: string): Promise<{ text: string; mode: number }> {
  try {
    const file = await open(path, "r");
    try {
      const stats = await file.stat();
      if (!stats.isFile() || stats.size > MAX_FILE_BYTES) {
        throw new Failure(ExitCode.configuration, path, "is not a PEM file");
      }
      return { text: await file.readFile("utf8"), mode: stats.mode };
    } finally {
      await file.close();
    }
  } catch (error) {
    throw error instanceof Failure ? error : systemFailure(error, path, "read the file");
  }
}

/** Everything that TLS would otherwise complain about at the first connection, or never. */
function check(pair: { key: string; cert: string; certWhere: string; keyWhere: string }): void {
  const { key, cert, certWhere, keyWhere } = pair;
  const wrong = (where: string, what: string) => new Failure(ExitCode.configuration, where, what);
  if (!cert.includes("-----BEGIN CERTIFICATE-----")) {
    throw wrong(certWhere, "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)");
  }
  if (/-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED/.test(key)) {
    throw wrong(keyWhere, "holds a key that is protected by a passphrase; store it without one");
  }
  if (!/-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----/.test(key)) {
    throw wrong(keyWhere, "holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)");
  }
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(cert);
  } catch {
    throw wrong(certWhere, "holds a certificate that cannot be read");
  }
  if (Date.parse(certificate.validTo) < Date.now()) {
    throw wrong(certWhere, `holds a certificate that expired on ${certificate.validTo}; agents would refuse it`);
  }
  try {
    createSecureContext({ key, cert, minVersion: "TLSv1.3" });
  } catch (error) {
    const { code } = errorFacts(error);
    throw code === "ERR_OSSL_X509_KEY_VALUES_MISMATCH"
      ? wrong(keyWhere, `holds another key than that of the certificate in ${certWhere}`)
      : wrong(keyWhere, `and ${certWhere} cannot be used for TLS (${code ?? "unknown reason"})`);
  }
}
