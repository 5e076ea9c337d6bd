import { isIP } from "node:net";

export interface SelfSignedCertificate {
  /** PKCS#8, PEM. Secret. */
  readonly key: string;
  /** PEM. */
  readonly certificate: string;
}

export interface SelfSignedCertificateOptions {
  /** Host name or IP address for the subject alternative name. Agents pin the certificate and do not look at it. */
  readonly host: string;
  /** Default: now. */
  readonly from?: Date;
}

/** Ten years. Replacing a pinned certificate means pairing again, so the operator chooses the time, not the calendar. */
const LIFETIME_DAYS = 3_653;

/** An agent whose clock is slow by up to a day must be able to connect. */
const BACKDATED_DAYS = 1;

/**
 * Makes a P-256 key and a certificate signed by itself, valid for ten years. It is no certificate authority: nothing can
 * be signed with it.
 */
export async function makeSelfSignedCertificate(options: SelfSignedCertificateOptions): Promise<SelfSignedCertificate> {
  // Needed at first start only, and slow to load. The second module expects the first to have been loaded.
  await import("reflect-metadata");
  const x509 = await import("@peculiar/x509");
  const { webcrypto } = await import("node:crypto");
  const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const from = (options.from ?? new Date()).getTime();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned(
    {
      name: "CN=sallyport-edge",
      notBefore: new Date(from - BACKDATED_DAYS * 86_400_000),
      notAfter: new Date(from + LIFETIME_DAYS * 86_400_000),
      signingAlgorithm: algorithm,
      keys,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
        new x509.SubjectAlternativeNameExtension([
          { type: isIP(options.host) === 0 ? "dns" : "ip", value: options.host },
        ]),
      ],
    },
    webcrypto,
  );
  const pkcs8 = Buffer.from(await webcrypto.subtle.exportKey("pkcs8", keys.privateKey));
  return { key: x509.PemConverter.encode(pkcs8, "PRIVATE KEY"), certificate: certificate.toString("pem") };
}
