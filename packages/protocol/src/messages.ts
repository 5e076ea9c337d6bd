/**
 * The messages that are msgpack maps: the two greetings of a link, and OPEN, ACCEPT and GO_AWAY of a session. Every
 * schema is strict, an unknown key is a violation: a control message is an order, and an order that is only half
 * understood is not carried out.
 */
import { Decoder, Encoder } from "@msgpack/msgpack";
import { z } from "zod";
import { ProtocolError } from "./codes.ts";

/** The versions of the protocol that this code speaks, newest first. */
export const PROTOCOL_VERSIONS = [1] as const;

const MAX_STREAM = 0xffff_ffff;
const uint = (max: number) => z.int().min(0).max(max);
const streamId = uint(MAX_STREAM).min(1);
const offset = uint(Number.MAX_SAFE_INTEGER);
/** Names as in the configuration files. */
const name = z.string().regex(/^[a-zA-Z0-9_-]{1,255}$/);
/** Words that travel into logs of the other end: bounded, and printable ASCII only. */
const text = (max: number) => z.string().regex(new RegExp(`^[\\x20-\\x7e]{0,${max}}$`));
/** 16 random bytes in hexadecimal. */
const randomId = z.string().regex(/^[0-9a-f]{32}$/);
const features = z.array(text(32)).max(32);

/** A feature: what its end receives of one stream may come over several links at once. */
export const STRIPE_FEATURE = "stripe";
/** OPEN may ask for a PROXY header in front of the stream's bytes (docs/protocol.md §11). */
export const PROXY_HEADER_FEATURE = "proxy-header";
/** What this code can do beyond the version; each end names it in its greeting. */
export const FEATURES: readonly string[] = [STRIPE_FEATURE, PROXY_HEADER_FEATURE];

const helloSchema = z.strictObject({
  /** Name of the agent, from its configuration. */
  agent: name,
  /** Drawn by each agent process at its start: tells a process that returns from one that replaces it. */
  process: randomId,
  /** The session to join with this link; empty for a new one. */
  session: z.union([randomId, z.literal("")]),
  /** What this end can do beyond the version; names that the other end does not know are ignored. */
  features,
  /** Credit that each stream has towards the agent before ACCEPT grants more, in bytes. */
  initialCredit: uint(16_777_216),
  /** The most streams that the agent takes at once. */
  maxStreams: uint(1_000_000).min(1),
  /** The most links that the agent brings to this session. */
  links: uint(16).min(1),
});

const welcomeSchema = z.strictObject({
  /** Name of the edge, from its configuration. */
  edge: name,
  /** The session that this link now belongs to. */
  session: randomId,
  /** Whether the session existed before this link. */
  resumed: z.boolean(),
  features,
  /** How long the edge keeps a session that has no link, in milliseconds. */
  resumeTimeoutMs: uint(86_400_000),
});

/** `partner` of an OPEN that no partner is behind: the edge asks whether the target can be reached. */
export const CHECK_PARTNER = "check";

const openSchema = z.strictObject({
  stream: streamId,
  /** Connection id of the partner's connection, the same in the records of both ends. */
  connection: text(64).min(1),
  /** A service of the agent, or `host:port`. Only the agent's own file decides what it means and whether it is dialled. */
  target: text(300).min(1),
  deployment: name,
  /** Address of the partner as `address:port`, or `CHECK_PARTNER`; the edge's claim, for the agent's records only. */
  partner: text(64),
  /** Credit of the agent towards the edge, in bytes from offset 0. */
  limit: offset,
  /**
   * The PROXY header that the agent is asked to write to the target before everything else: its version, source and
   * destination as `address:port`, and of what the partner's ClientHello asks for the server name and the protocol, or
   * empty. With both addresses empty the connection is the edge's own (LOCAL). Only where both ends name the feature.
   */
  proxy: z.tuple([uint(2).min(1), text(64), text(64), text(255), text(255)]).optional(),
});

const acceptSchema = z.strictObject({
  stream: streamId,
  /** The address that was dialled, as `address:port`. */
  address: text(64),
  limit: offset,
});

const goAwaySchema = z.strictObject({
  code: uint(4_999).min(4_000),
  reason: text(200),
});

/** What OPEN asks for in `proxy`. */
export type OpenProxy = NonNullable<z.output<typeof openSchema>["proxy"]>;

export type Hello = z.output<typeof helloSchema>;
export type Welcome = z.output<typeof welcomeSchema>;
export type Open = z.output<typeof openSchema>;
export type Accept = z.output<typeof acceptSchema>;
export type GoAway = z.output<typeof goAwaySchema>;

// `encodeSharedRef` is not used: its buffer is overwritten by the next message while a socket still holds it.
const encoder = new Encoder({ maxDepth: 4, initialBufferSize: 512 });
// All five limits are set; the library's own are 2^32 - 1. The 4 KiB bound of a control frame holds before these.
const decoder = new Decoder({
  maxStrLength: 1_024,
  maxBinLength: 0,
  maxArrayLength: 64,
  maxMapLength: 32,
  maxExtLength: 0,
});

const schemas = {
  hello: helloSchema,
  welcome: welcomeSchema,
  open: openSchema,
  accept: acceptSchema,
  goAway: goAwaySchema,
} as const;

export type MessageType = keyof typeof schemas;

/**
 * Refuses a message of this end that the peer would refuse.
 *
 * @throws RangeError that names the field, not its value: a bug of the caller, who has not checked its input
 */
export function checkMessage(type: MessageType, message: object): void {
  const result = schemas[type].safeParse(message);
  if (!result.success) throw new RangeError(`${type} cannot be sent: ${firstIssue(result.error)}`);
}

/**
 * Encodes a control message into bytes of its own.
 *
 * @throws RangeError as `checkMessage`
 */
export function encodeMessage(type: MessageType, message: object): Uint8Array {
  checkMessage(type, message);
  return encoder.encode(message);
}

/** Path and code of a fault; the value itself stays out of every log. */
function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  const path = issue?.path.map(String).join(".") ?? "";
  return `${path === "" ? "" : `${path}: `}${issue?.code ?? "invalid"}`;
}

/** How many keys the map at the start of `body` declares; 0 for anything else. */
function declaredKeys(body: Uint8Array): number {
  const first = body[0] ?? 0;
  if ((first & 0xf0) === 0x80) return first & 0x0f;
  // map 16; a map 32 has no business in 4 KiB.
  return first === 0xde ? (body[1] ?? 0) * 256 + (body[2] ?? 0) : 0;
}

function decodeMessage<T extends object>(body: Uint8Array, schema: z.ZodType<T>, type: MessageType): T {
  let value: unknown;
  try {
    value = decoder.decode(body);
  } catch {
    throw new ProtocolError(`${type} is not a valid msgpack message`);
  }
  const result = schema.safeParse(value);
  if (!result.success) throw new ProtocolError(`${type} is malformed: ${firstIssue(result.error)}`);
  // The decoder lets the last of two equal keys win; two readers could see two different orders.
  if (Object.keys(result.data).length !== declaredKeys(body)) throw new ProtocolError(`${type} repeats a key`);
  return result.data;
}

export function decodeHello(body: Uint8Array): Hello {
  return decodeMessage(body, helloSchema, "hello");
}

export function decodeWelcome(body: Uint8Array): Welcome {
  return decodeMessage(body, welcomeSchema, "welcome");
}

export function decodeOpen(body: Uint8Array): Open {
  return decodeMessage(body, openSchema, "open");
}

export function decodeAccept(body: Uint8Array): Accept {
  return decodeMessage(body, acceptSchema, "accept");
}

export function decodeGoAway(body: Uint8Array): GoAway {
  return decodeMessage(body, goAwaySchema, "goAway");
}
