import { createHash, hkdfSync, randomBytes } from "node:crypto";

/** Size of a token. 32 random bytes cannot be guessed, so nothing needs to slow a guesser down for the token's sake. */
export const TOKEN_BYTES = 32;

/** Size of a verifier and of every MAC made with it. */
export const VERIFIER_BYTES = 32;

/** What a client name looks like, as in the configuration of both programs. */
export const CLIENT_NAME_PATTERN = /^[a-zA-Z0-9_-]{1,255}$/;

/**
 * What the edge keeps of a token. It proves a client just as the token does, so it is as secret as the token; but it is
 * bound to the client's name, so that it is of no use for another client, and the token cannot be computed from it.
 */
export interface Verifier {
  /** Public name of the token it was made from, see {@link tokenIdOf}. */
  readonly tokenId: string;
  /** {@link VERIFIER_BYTES} bytes. Secret. */
  readonly key: Buffer;
}

/** Makes a token: {@link TOKEN_BYTES} random bytes, the secret that an edge and the agents of one client share. */
export function createToken(): Buffer {
  return randomBytes(TOKEN_BYTES);
}

/** The token as it stands in pairing lines and credentials files: 43 characters of base64url without padding. */
export function encodeToken(token: Buffer): string {
  return token.toString("base64url");
}

/** The bytes of a token's text, or undefined for anything but exactly what {@link encodeToken} writes. */
export function decodeToken(text: string): Buffer | undefined {
  if (!/^[A-Za-z0-9_-]{43}$/.test(text)) {
    return undefined;
  }
  const token = Buffer.from(text, "base64url");
  // The last character carries two bits that mean nothing; only one of the four spellings is a token.
  return encodeToken(token) === text ? token : undefined;
}

/**
 * Derives from a token what the edge stores: HKDF-SHA256 (RFC 5869) with the client's name as salt. Both ends derive it:
 * the edge once, when it pairs; the agent at every connection.
 */
export function deriveVerifier(token: Buffer, client: string): Verifier {
  const key = Buffer.from(
    hkdfSync("sha256", token, Buffer.from(client, "utf8"), "sallyport v1 verifier", VERIFIER_BYTES),
  );
  return { tokenId: tokenIdOf(key), key };
}

/**
 * The public name of a token in lists, commands and logs: 8 hexadecimal characters of a hash of its verifier. It tells
 * tokens of one client apart and says nothing about them.
 */
export function tokenIdOf(verifierKey: Buffer): string {
  return createHash("sha256").update("sallyport v1 token id").update(verifierKey).digest("hex").slice(0, 8);
}
