import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { runSuccessfully } from "../support/child-process.ts";

/** A certificate authority and one server certificate of it, for the peers that take files. */
export interface Certificates {
  readonly caFile: string;
  readonly certFile: string;
  readonly keyFile: string;
  /** Certificate and key in one, with the password `bench`. */
  readonly pkcs12File: string;
  /** A name in the certificate, next to the addresses. */
  readonly name: string;
}

const NAME = "bench.example";

/** ECDSA P-256 keys, as our own edge makes them. The caller removes the directory. */
export async function makeCertificates(directory: string, addresses: readonly string[]): Promise<Certificates> {
  const path = (name: string): string => join(directory, name);
  const openssl = (...args: string[]) => runSuccessfully({ command: "openssl", args });
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  await openssl("req", "-x509", ...key, "-keyout", path("ca.key"), "-out", path("ca.crt"), "-subj", "/CN=bench CA");
  await openssl(
    "req",
    ...key.slice(0, -2),
    "-keyout",
    path("server.key"),
    "-out",
    path("server.csr"),
    "-subj",
    `/CN=${NAME}`,
  );
  const names = [`DNS:${NAME}`, "DNS:localhost", ...addresses.map((address) => `IP:${address}`)].join(",");
  await writeFile(
    path("server.ext"),
    `subjectAltName=${names}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n`,
  );
  const sign = ["-CA", path("ca.crt"), "-CAkey", path("ca.key"), "-CAcreateserial", "-days", "2"];
  await openssl(
    "x509",
    "-req",
    "-in",
    path("server.csr"),
    "-out",
    path("server.crt"),
    "-extfile",
    path("server.ext"),
    ...sign,
  );
  const pair = ["-inkey", path("server.key"), "-in", path("server.crt"), "-certfile", path("ca.crt")];
  await openssl("pkcs12", "-export", "-out", path("server.p12"), ...pair, "-passout", "pass:bench");
  return {
    caFile: path("ca.crt"),
    certFile: path("server.crt"),
    keyFile: path("server.key"),
    pkcs12File: path("server.p12"),
    name: NAME,
  };
}
