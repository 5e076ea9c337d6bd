/**
 * What a pinned certificate means to TLS: it alone is trusted. Made once for each certificate, since an agent that waits for its
 * edge tries several times a second, and reading a certificate and making a context are half the work of a try.
 */
import { X509Certificate } from "node:crypto";
import { createSecureContext, type SecureContext } from "node:tls";
import { certificatePin } from "./pairing-line.ts";
import { TUNNEL_CIPHERS } from "./web-socket-options.ts";

export interface PinnedTrust {
  /** SHA-256 of the certificate, 64 hexadecimal characters. */
  readonly pin: string;
  readonly secureContext: SecureContext;
}

/** An agent has as many edges at the most; the oldest makes room. */
const MAX_KEPT = 16;
const kept = new Map<string, PinnedTrust>();

/** @throws when `certificate` is no certificate as PEM */
export function pinnedTrust(certificate: string): PinnedTrust {
  const known = kept.get(certificate);
  if (known !== undefined) return known;
  const trust: PinnedTrust = {
    pin: certificatePin(new X509Certificate(certificate).raw),
    // A pinned certificate may be a leaf that some authority signed; it is trusted for itself.
    secureContext: createSecureContext({
      ca: [certificate],
      allowPartialTrustChain: true,
      minVersion: "TLSv1.3",
      maxVersion: "TLSv1.3",
      ciphers: TUNNEL_CIPHERS,
    }),
  };
  if (kept.size >= MAX_KEPT) for (const oldest of [...kept.keys()].slice(0, 1)) kept.delete(oldest);
  kept.set(certificate, trust);
  return trust;
}
