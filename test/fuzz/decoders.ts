/**
 * Every decoder that reads what a stranger or a peer wrote. One entry here is all that a new decoder needs to be fuzzed:
 * `decoders.test.ts` mutates its seeds, and holds it to its errors, to its time, to its memory, and, where it has them, to
 * its encoder and to bytes that come in pieces.
 */
import { readFileSync } from "node:fs";
import {
  formatCidr,
  formatHostPort,
  formatIpAddress,
  parseCidr,
  parseHostPort,
  parseIpAddress,
  parseProxyHeader,
} from "@sallyport/host";
import { decodeFrame, encodeFrame, type Frame, ProtocolError } from "@sallyport/protocol";
import {
  formatAgentHello,
  formatEdgeHello,
  formatPairingLine,
  parseAgentHello,
  parseEdgeHello,
  parsePairingLine,
} from "@sallyport/tunnel";
import { parseClientHello } from "../../packages/edge/src/client-hello.ts";

/** Takes bytes as they arrive; what it makes of them does not depend on where they were split. */
export interface StreamingDecoder {
  /** The value once it is complete; undefined while more is needed. */
  push(chunk: Uint8Array): unknown;
}

export interface FuzzedDecoder {
  readonly name: string;
  /** Of all inputs, in relation to the other decoders. */
  readonly weight: number;
  /** What valid and nearly valid inputs look like; at least one that is accepted. */
  readonly seeds: readonly Uint8Array[];
  /** The value, or undefined for an input that is none. */
  readonly decode: (bytes: Uint8Array) => unknown;
  /** A checksum guards it, so that next to no mutation is accepted. */
  readonly sealed?: true;
  /** The only errors that may be thrown. Default: none may. */
  readonly allows?: (error: unknown) => boolean;
  /** Writes an accepted value again; decoding that gives the same value. */
  readonly encode?: (value: never) => Uint8Array;
  /** A fresh decoder for bytes in pieces, when the product has one: it agrees with `decode`. */
  readonly stream?: () => StreamingDecoder;
}

/** Keeps the type of a decoder's value between `decode` and `encode`. */
function decoder<Value>(
  options: Omit<FuzzedDecoder, "decode" | "encode"> & {
    readonly decode: (bytes: Uint8Array) => Value | undefined;
    readonly encode?: (value: Value) => Uint8Array;
  },
): FuzzedDecoder {
  return options as FuzzedDecoder;
}

const vectors = JSON.parse(readFileSync(new URL("../vectors/frames.json", import.meta.url), "utf8")) as {
  valid: { hex: string }[];
  invalid: { hex: string }[];
};
// Most mutations begin at what is valid: what is not is refused early as it is.
const frames = [...vectors.valid, ...vectors.valid, ...vectors.valid, ...vectors.invalid]
  .map(({ hex }) => new Uint8Array(Buffer.from(hex, "hex")))
  // The longest vectors stand for lengths only; mutating them is slow and finds nothing.
  .filter((bytes) => bytes.length < 1_000);
const isControl = (bytes: Uint8Array) => (bytes[0] ?? 0) < 0x10;

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString("latin1");
const seeds = (...texts: string[]) => texts.map((one) => new Uint8Array(Buffer.from(one, "latin1")));
/** A reason for people, and no accident such as a TypeError. */
const isReason = (error: unknown) => error instanceof Error && error.constructor === Error;

const proof = { nonce: Buffer.alloc(32, 5), mac: Buffer.alloc(32, 9) };
const pairing = { address: "edge.example.com:7443", client: "lan", token: "A".repeat(43) };

/** Of HAProxy, nginx and AWS, and what the specification allows besides. */
const proxyHeaders = [
  ...seeds(
    "PROXY TCP4 203.0.113.9 198.51.100.20 40000 443\r\n",
    "PROXY TCP6 2001:db8::1 ::1 35710 19611\r\nrest",
    "PROXY UNKNOWN\r\n",
    "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
  ),
  ...[
    "20000000",
    "21000003ffffff",
    "2111000c7f0000017f000001b20a4c9c",
    "21110014cb007107c6336414c73801bb2000050000000000",
    "2111001ccb007107c6336414c73801bb0100026832020002612e040002ffffea0000",
    `21210024${"00".repeat(15)}01${"00".repeat(15)}018b7e4c9b`,
    "2111003bcb007107c6336414c73801bb020010736674702e6578616d706c652e636f6d050012632d3031323334353637383961626364656603000465394080",
  ].map((rest) => new Uint8Array(Buffer.from(`0d0a0d0a000d0a515549540a${rest}`, "hex"))),
];

function proxyHeaderOf(bytes: Uint8Array) {
  const parsed = parseProxyHeader(bytes);
  return parsed.type === "header" ? parsed : undefined;
}

const withLength = (hex: string) => (hex.length / 2).toString(16).padStart(4, "0") + hex;
/** What a TLS client sends for `sftp.example` and `h2`. */
const helloBody =
  `0303${"07".repeat(32)}000006130113021303` +
  "0100" +
  withLength(
    "00000011000f00000c736674702e6578616d706c65" +
      "0010000500030268320a0a0001000033000400020000002d00020101002b0003020304000d0006000408040403000a00040002001d",
  );
const helloMessage = `0100${withLength(helloBody)}`;
/** The message in records of so many bytes. */
function inRecords(size: number): Uint8Array {
  const fragments = helloMessage.match(new RegExp(`.{1,${2 * size}}`, "g")) ?? [];
  return new Uint8Array(Buffer.from(fragments.map((fragment) => `160301${withLength(fragment)}`).join(""), "hex"));
}

function clientHelloOf(bytes: Uint8Array) {
  const parsed = parseClientHello(bytes);
  return parsed.type === "hello" ? parsed.hello : undefined;
}

/** A parser that wants everything from the start, given pieces: as the edge gives them to it. */
function accumulating(decode: (bytes: Uint8Array) => unknown): StreamingDecoder {
  let bytes = Buffer.alloc(0);
  let value: unknown;
  return {
    push: (chunk) => {
      bytes = Buffer.concat([bytes, chunk]);
      value ??= decode(bytes);
      return value;
    },
  };
}

export const decoders: readonly FuzzedDecoder[] = [
  decoder<Frame>({
    name: "frames",
    weight: 3,
    seeds: frames.filter((bytes) => !isControl(bytes)),
    decode: decodeFrame,
    encode: encodeFrame,
    allows: (error) => error instanceof ProtocolError,
  }),
  decoder<Frame>({
    name: "control messages",
    weight: 4,
    seeds: frames.filter(isControl),
    decode: decodeFrame,
    encode: encodeFrame,
    allows: (error) => error instanceof ProtocolError,
  }),
  decoder({
    name: "proofs of agents",
    weight: 0.5,
    seeds: seeds(
      formatAgentHello({ client: "lan", versions: [1], ...proof }),
      formatAgentHello({ client: "a-b_c", versions: [65_535, 1], ...proof }),
    ),
    decode: (bytes) => parseAgentHello(text(bytes)),
    encode: (hello) => Buffer.from(formatAgentHello(hello)),
  }),
  decoder({
    name: "proofs of edges",
    weight: 0.5,
    seeds: seeds(formatEdgeHello({ version: 1, ...proof })),
    decode: (bytes) => parseEdgeHello(text(bytes)),
    encode: (hello) => Buffer.from(formatEdgeHello(hello)),
  }),
  decoder({
    name: "pairing lines",
    sealed: true,
    weight: 0.5,
    seeds: seeds(formatPairingLine(pairing), formatPairingLine({ ...pairing, serverName: "edge" })),
    decode: (bytes) => parsePairingLine(text(bytes)),
    encode: (value) => Buffer.from(formatPairingLine(value)),
    allows: isReason,
  }),
  decoder({
    name: "addresses",
    weight: 0.5,
    seeds: seeds("192.0.2.1", "::1", "2001:db8::ff00:42:8329", "::ffff:192.0.2.128", "fe80::1%eth0", "012.1.2.3"),
    decode: (bytes) => parseIpAddress(text(bytes)),
    encode: (address) => Buffer.from(formatIpAddress(address)),
  }),
  decoder({
    name: "CIDRs",
    weight: 0.5,
    seeds: seeds("10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::/0", "10.0.0.5/8", "0.0.0.0/0"),
    decode: (bytes) => parseCidr(text(bytes)),
    encode: (cidr) => Buffer.from(formatCidr(cidr)),
    allows: isReason,
  }),
  decoder({
    name: "host and port",
    weight: 0.5,
    seeds: seeds("db.corp.example:5432", "[2001:db8::1]:22", "192.0.2.1:65535", "localhost:080"),
    decode: (bytes) => parseHostPort(text(bytes)),
    encode: (value) => Buffer.from(formatHostPort(value)),
    allows: isReason,
  }),
  decoder({
    name: "PROXY headers",
    weight: 1,
    seeds: proxyHeaders,
    decode: proxyHeaderOf,
    stream: () => accumulating(proxyHeaderOf),
  }),
  decoder({
    name: "greetings of TLS clients",
    weight: 1,
    seeds: [inRecords(16_384), inRecords(40), inRecords(1)],
    decode: clientHelloOf,
    stream: () => accumulating(clientHelloOf),
  }),
];
