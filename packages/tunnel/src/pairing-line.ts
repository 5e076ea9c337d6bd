import { createHash, X509Certificate } from "node:crypto";
import { isIPv6 } from "node:net";
import { z } from "zod";
import { CLIENT_NAME_PATTERN, decodeToken } from "./token.ts";

const PREFIX = "sallyport-pair:";
const VERSION = "1";
const CHECKSUM_CHARACTERS = 8;

/** Longest line that is looked at. A pairing with a P-256 certificate takes about 1,200 characters. */
export const MAX_PAIRING_LINE_CHARACTERS = 64 * 1024;

/**
 * The strict form of what a pairing carries, in a pairing line and in a credentials file. Reasons in its issues never
 * hold a value.
 */
export const pairingSchema = z
  .strictObject({
    /** Where the edge's tunnel is reached: `host:port`, an IPv6 address in brackets. */
    address: z.string().max(300).refine(isAddress, "must be host:port, an IPv6 address in brackets"),
    /** The name that TLS asks for and that the certificate must carry when it is not pinned. Default: the host. */
    serverName: z
      .string()
      .regex(/^[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$/, "must be a DNS name")
      .optional(),
    client: z.string().regex(CLIENT_NAME_PATTERN, "must be 1 to 255 letters, digits, _ or -"),
    token: z.string().refine((text) => decodeToken(text) !== undefined, "must be 43 base64url characters"),
    /** SHA-256 of the edge's certificate (DER), 64 hexadecimal characters. Absent: the system's authorities decide. */
    pin: z
      .string()
      .regex(/^[0-9a-f]{64}$/, "must be 64 lower-case hexadecimal characters")
      .optional(),
    /** The edge's certificate, DER in base64. Present exactly when `pin` is. */
    certificate: z
      .string()
      .max(32 * 1024)
      .refine(isCertificate, "must be an X.509 certificate, DER in base64")
      .optional(),
  })
  .refine((pairing) => (pairing.pin === undefined) === (pairing.certificate === undefined), {
    message: "pin and certificate must both be present or both be absent",
    path: ["pin"],
  })
  .refine(
    ({ pin, certificate }) =>
      certificate === undefined || pin === undefined || certificatePin(Buffer.from(certificate, "base64")) === pin,
    { message: "does not belong to the certificate", path: ["pin"] },
  );

/** What an agent needs to know of an edge: where it is, who the agent is there, the token, and the certificate's pin. */
export type Pairing = z.output<typeof pairingSchema>;

/** SHA-256 of a certificate in DER, 64 lower-case hexadecimal characters. */
export function certificatePin(der: Buffer): string {
  return createHash("sha256").update(der).digest("hex");
}

/** The certificate of a pairing as PEM, for `ca` of a TLS connection; undefined when nothing is pinned. */
export function pairingCertificate(pairing: Pairing): string | undefined {
  return pairing.certificate === undefined
    ? undefined
    : new X509Certificate(Buffer.from(pairing.certificate, "base64")).toString();
}

/** Host and port of a pairing's address, the brackets of an IPv6 address taken off. */
export function splitAddress(address: string): { host: string; port: number } {
  const [, bracketed, plain, port] = addressPattern.exec(address) ?? [];
  const host = bracketed ?? plain;
  if (host === undefined || port === undefined) {
    throw new Error("the address must be host:port, an IPv6 address in brackets");
  }
  return { host, port: Number(port) };
}

/**
 * Writes a pairing as one line of printable ASCII without spaces:
 * `sallyport-pair:1:<JSON in base64url>:<first 8 hexadecimal characters of the SHA-256 of everything before>`.
 * The line holds the token: it is as secret as the token.
 */
export function formatPairingLine(pairing: Pairing): string {
  const body = `${PREFIX}${VERSION}:${Buffer.from(JSON.stringify(pairingSchema.parse(pairing)), "utf8").toString("base64url")}`;
  return `${body}:${checksum(body)}`;
}

/**
 * Reads a pairing line; white space around it is ignored. Throws an Error whose message says what is wrong and holds
 * nothing of the line, because the line holds a token.
 */
export function parsePairingLine(text: string): Pairing {
  const line = text.length > MAX_PAIRING_LINE_CHARACTERS ? "" : text.trim();
  if (text.length > MAX_PAIRING_LINE_CHARACTERS) {
    throw new Error("the pairing line is too long");
  }
  if (line === "") {
    throw new Error("there is no pairing line; paste the line that `sallyport-edge pair` printed");
  }
  if (!line.startsWith(PREFIX)) {
    throw new Error(`this is not a pairing line; it begins with ${PREFIX}`);
  }
  if (/\s/.test(line)) {
    throw new Error("the pairing line has white space or a line break inside; copy it as one line");
  }
  const [, version, json, sum] = line.split(":");
  if (version !== VERSION && version !== undefined && /^[0-9]{1,9}$/.test(version) && json !== undefined) {
    throw new Error(`the pairing line has version ${version}, this program reads version ${VERSION}`);
  }
  const body = `${PREFIX}${version ?? ""}:${json ?? ""}`;
  if (json === undefined || sum === undefined || sum !== checksum(body) || line !== `${body}:${sum}`) {
    throw new Error("the pairing line is damaged or cut off (its checksum is wrong); copy the whole line");
  }
  const result = pairingSchema.safeParse(parseJson(Buffer.from(json, "base64url").toString("utf8")));
  if (!result.success) {
    throw new Error(`the pairing line is not valid: ${pairingIssue(result.error)}`);
  }
  return result.data;
}

/** The first issue of a failed {@link pairingSchema} as one phrase that holds key names and reasons, never a value. */
export function pairingIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  if (issue?.code === "unrecognized_keys") {
    return "it has a key that this program does not know";
  }
  const key = issue?.path.map(String).join(".");
  const reason =
    issue?.code === "invalid_type" ? "is missing or of the wrong type" : (issue?.message ?? "is not valid");
  return key === undefined || key === "" ? "it is not a JSON object" : `${key} ${reason}`;
}

/** Undefined, which no schema here takes, for text that is not JSON: the parser's own message quotes the text. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function checksum(body: string): string {
  return createHash("sha256").update(body).digest("hex").slice(0, CHECKSUM_CHARACTERS);
}

const addressPattern = /^(?:\[([0-9a-fA-F:.]{2,45})\]|([A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})?)):([1-9][0-9]{0,4})$/;

function isAddress(text: string): boolean {
  const [, bracketed, , port] = addressPattern.exec(text) ?? [];
  return port !== undefined && Number(port) <= 65_535 && (bracketed === undefined || isIPv6(bracketed));
}

function isCertificate(text: string): boolean {
  try {
    const der = Buffer.from(text, "base64");
    // Only the spelling that toString writes is taken, and nothing behind the certificate.
    return der.toString("base64") === text && new X509Certificate(der).raw.equals(der);
  } catch {
    return false;
  }
}
