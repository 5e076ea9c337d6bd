/*
 * How agent and edge prove to each other that they hold the same token, in the headers of the WebSocket upgrade.
 *
 * Each side sends a MAC over a transcript of the handshake. The token does not cross the wire, and a MAC is worth nothing
 * elsewhere: the transcript holds the keying material that TLS exports for "tls-exporter" channel binding (RFC 9266).
 * A relay that ends TLS towards both sides has two TLS connections with two different exporters, so neither side accepts
 * what it passes on, even where certificates are not checked. For the same reason a recorded request is refused on every
 * other connection.
 *
 * Agent and edge use different keys, derived from the verifier, and different labels. So an edge's proof is never an agent's,
 * and a false edge cannot answer with what the agent has just sent.
 */
import { createHmac, hkdfSync, randomBytes, timingSafeEqual } from "node:crypto";
import type { TLSSocket } from "node:tls";
import { VERIFIER_BYTES, type Verifier } from "./token.ts";

/** Size of the nonces that this version sends; anything from {@link MIN_NONCE_BYTES} to 64 bytes is accepted. */
export const NONCE_BYTES = 32;
export const MIN_NONCE_BYTES = 16;

/** Size of a proof: one HMAC-SHA256. */
export const MAC_BYTES = 32;

/** Label and size of the exported keying material, RFC 9266 §2. The context is empty. */
const EXPORTER_LABEL = "EXPORTER-Channel-Binding";
const EXPORTER_BYTES = 32;

const TRANSCRIPT_LABEL = "sallyport v1 handshake";

/** A client may have this many tokens at once: the one in use and, while it is rotated, the next. */
export const MAX_TOKENS_PER_CLIENT = 2;

/**
 * Stands in for a client that does not exist, so that refusing it costs what refusing a wrong proof costs. Random in every
 * process: nobody can hold a token for it.
 */
const dummyVerifier: Verifier = { tokenId: "00000000", key: randomBytes(VERIFIER_BYTES) };

/** What the agent's proof covers. */
export interface AgentTranscript {
  /** Keying material of this TLS connection, from {@link exportChannelBinding}. */
  readonly exporter: Buffer;
  readonly client: string;
  /** Protocol versions that the agent offers, as it lists them. */
  readonly versions: readonly number[];
  readonly agentNonce: Buffer;
}

/** What the edge's proof covers: all that the agent's does, and the edge's own choices. */
export interface EdgeTranscript extends AgentTranscript {
  /** The version that the edge chose among those offered. */
  readonly version: number;
  readonly edgeNonce: Buffer;
}

/** The agent's half of the handshake: the value of the `Authorization` header. */
export interface AgentHello {
  readonly client: string;
  readonly nonce: Buffer;
  readonly versions: readonly number[];
  readonly mac: Buffer;
}

/** The edge's half: the value of the `Sallyport-Authentication` header of its response. */
export interface EdgeHello {
  readonly nonce: Buffer;
  readonly version: number;
  readonly mac: Buffer;
}

/**
 * The `tls-exporter` channel binding of a finished TLS 1.3 handshake (RFC 9266): both ends of one TLS connection compute
 * the same 32 bytes, and no other connection does.
 */
export function exportChannelBinding(socket: TLSSocket): Buffer {
  return socket.exportKeyingMaterial(EXPORTER_BYTES, EXPORTER_LABEL, Buffer.alloc(0));
}

export function createNonce(): Buffer {
  return randomBytes(NONCE_BYTES);
}

/** The MAC by which an agent proves that it holds the token. */
export function agentProof(verifierKey: Buffer, transcript: AgentTranscript): Buffer {
  return createHmac("sha256", macKey(verifierKey, "agent"))
    .update(encodeTranscript(["agent", ...agentFields(transcript)]))
    .digest();
}

/** The MAC by which an edge proves that it holds the verifier, and which versions and nonces it saw. */
export function edgeProof(verifierKey: Buffer, transcript: EdgeTranscript): Buffer {
  return createHmac("sha256", macKey(verifierKey, "edge"))
    .update(encodeTranscript(["edge", ...agentFields(transcript), String(transcript.version), transcript.edgeNonce]))
    .digest();
}

/**
 * Finds the verifier that an agent's proof was made with, in time that tells nothing: an unknown client, a client with one
 * token and a client with two take the same number of MACs and of comparisons.
 */
export function findVerifier(
  verifiers: readonly Verifier[],
  transcript: AgentTranscript,
  mac: Buffer,
): Verifier | undefined {
  let found: Verifier | undefined;
  for (let index = 0; index < Math.max(MAX_TOKENS_PER_CLIENT, verifiers.length); index++) {
    const verifier = verifiers[index];
    const expected = agentProof((verifier ?? dummyVerifier).key, transcript);
    if (macsEqual(expected, mac) && verifier !== undefined) {
      found ??= verifier;
    }
  }
  return found;
}

/** Compares two MACs in constant time. A MAC of another size is unequal; sizes are no secret. */
export function macsEqual(expected: Buffer, given: Buffer): boolean {
  // timingSafeEqual throws on unequal lengths.
  return expected.length === MAC_BYTES && given.length === MAC_BYTES && timingSafeEqual(expected, given);
}

export function formatAgentHello(hello: AgentHello): string {
  return (
    `Sallyport client="${hello.client}", nonce="${hello.nonce.toString("base64url")}", ` +
    `versions="${hello.versions.join(",")}", mac="${hello.mac.toString("base64url")}"`
  );
}

const agentHelloPattern =
  /^Sallyport client="([a-zA-Z0-9_-]{1,255})", nonce="([A-Za-z0-9_-]{22,86})", versions="([1-9][0-9]{0,4}(?:,[1-9][0-9]{0,4}){0,15})", mac="([A-Za-z0-9_-]{43})"$/;

/** Reads an `Authorization` header; undefined for anything that {@link formatAgentHello} does not write. */
export function parseAgentHello(header: string | undefined): AgentHello | undefined {
  const [, client, nonceText, versionsText, macText] = agentHelloPattern.exec(header ?? "") ?? [];
  const nonce = decodeNonce(nonceText);
  const mac = decodeMac(macText);
  if (client === undefined || versionsText === undefined || nonce === undefined || mac === undefined) {
    return undefined;
  }
  return { client, nonce, versions: versionsText.split(",").map(Number), mac };
}

export function formatEdgeHello(hello: EdgeHello): string {
  return (
    `nonce="${hello.nonce.toString("base64url")}", version="${hello.version}", ` +
    `mac="${hello.mac.toString("base64url")}"`
  );
}

const edgeHelloPattern = /^nonce="([A-Za-z0-9_-]{22,86})", version="([1-9][0-9]{0,4})", mac="([A-Za-z0-9_-]{43})"$/;

/** Reads a `Sallyport-Authentication` header; undefined for anything that {@link formatEdgeHello} does not write. */
export function parseEdgeHello(header: string | undefined): EdgeHello | undefined {
  const [, nonceText, versionText, macText] = edgeHelloPattern.exec(header ?? "") ?? [];
  const nonce = decodeNonce(nonceText);
  const mac = decodeMac(macText);
  if (versionText === undefined || nonce === undefined || mac === undefined) {
    return undefined;
  }
  return { nonce, version: Number(versionText), mac };
}

function decodeNonce(text: string | undefined): Buffer | undefined {
  const nonce = Buffer.from(text ?? "", "base64url");
  return nonce.length >= MIN_NONCE_BYTES ? nonce : undefined;
}

function decodeMac(text: string | undefined): Buffer | undefined {
  const mac = Buffer.from(text ?? "", "base64url");
  return mac.length === MAC_BYTES ? mac : undefined;
}

function macKey(verifierKey: Buffer, role: "agent" | "edge"): Buffer {
  return Buffer.from(hkdfSync("sha256", verifierKey, "", `sallyport v1 ${role} proof`, MAC_BYTES));
}

function agentFields(transcript: AgentTranscript): (string | Buffer)[] {
  return [transcript.exporter, transcript.client, transcript.versions.join(","), transcript.agentNonce];
}

/** Each field behind its length in four bytes, so that no two lists of fields make the same bytes. */
function encodeTranscript(fields: readonly (string | Buffer)[]): Buffer {
  const parts: Buffer[] = [];
  for (const field of [TRANSCRIPT_LABEL, ...fields]) {
    const bytes = typeof field === "string" ? Buffer.from(field, "utf8") : field;
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    parts.push(length, bytes);
  }
  return Buffer.concat(parts);
}
