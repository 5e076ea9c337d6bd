/**
 * The header of the PROXY protocol, version 1 (a line) and 2 (binary), by which a proxy tells the one behind it who the
 * client is (haproxy doc/proxy-protocol.txt). Pure: bytes in, header out, and back.
 *
 * The reader is strict, because what two readers understand differently is how a client's address is forged: one form
 * each, no guessing whether there is a header, nothing read beyond it, and a checksum that is there is checked.
 */
import { crc32c } from "./crc32c.ts";
import { formatIpAddress, type IpAddress, parseIpAddress, readIpAddress } from "./ip-address.ts";

/** The longest line of version 1, CRLF included; the specification's own worst case. */
export const PROXY_V1_MAX_BYTES = 107;
/** The longest header of version 2 that is accepted. Its length field allows 65,551 bytes, which nobody sends. */
export const PROXY_V2_MAX_BYTES = 4_096;
/** What a reader has to keep, at most, until it knows. */
export const PROXY_HEADER_MAX_BYTES = PROXY_V2_MAX_BYTES;
/** Bound of the specification for UNIQUE_ID. */
export const PROXY_UNIQUE_ID_MAX_BYTES = 128;

export interface ProxyEndpoint {
  readonly address: IpAddress;
  readonly port: number;
}

/** What a header of version 2 may add. Values are as they came: whoever shows one escapes it. */
export interface ProxyAdditions {
  /** Name that the client asked for (SNI, HTTP authority). */
  readonly authority?: Uint8Array | undefined;
  /** Id that the proxy gave the connection; 0 to 128 bytes. */
  readonly uniqueId?: Uint8Array | undefined;
  /** Protocol that the client and the proxy agreed upon. */
  readonly alpn?: Uint8Array | undefined;
}

export type ProxyHeader =
  /** The connection is the proxy's own, such as a health check; only version 2 says so. */
  | { readonly type: "local" }
  /** Relayed, but the addresses are not known or no TCP ones: those of the connection itself hold. */
  | ({ readonly type: "unknown"; readonly version: 1 | 2 } & ProxyAdditions)
  | ({
      readonly type: "proxied";
      readonly version: 1 | 2;
      /** The client. IPv4-mapped addresses are unwrapped. */
      readonly source: ProxyEndpoint;
      /** What the client has reached. */
      readonly destination: ProxyEndpoint;
    } & ProxyAdditions);

export type ProxyHeaderParse =
  /** So far it may become a header. Never said of `PROXY_HEADER_MAX_BYTES` and more. */
  | { readonly type: "incomplete" }
  /** The first `length` bytes are the header; what follows belongs to the connection. */
  | { readonly type: "header"; readonly header: ProxyHeader; readonly length: number }
  | { readonly type: "invalid"; readonly reason: string };

const SIGNATURE_V1 = Buffer.from("PROXY ");
const SIGNATURE_V2 = Buffer.from("0d0a0d0a000d0a515549540a", "hex");
/** Signature, version and command, family and transport, length. */
const FIXED_V2_BYTES = 16;

const TLV_ALPN = 0x01;
const TLV_AUTHORITY = 0x02;
const TLV_CRC32C = 0x03;
const TLV_UNIQUE_ID = 0x05;

const CR = 13;
const LF = 10;

const INCOMPLETE: ProxyHeaderParse = { type: "incomplete" };

/** Reads the header at the start of `bytes`, which are all that came so far. Never throws. */
export function parseProxyHeader(bytes: Uint8Array): ProxyHeaderParse {
  if (bytes.length === 0) return INCOMPLETE;
  if (startsLike(bytes, SIGNATURE_V2)) {
    return bytes.length < SIGNATURE_V2.length ? INCOMPLETE : parseV2(bytes);
  }
  if (startsLike(bytes, SIGNATURE_V1)) {
    return bytes.length < SIGNATURE_V1.length ? INCOMPLETE : parseV1(bytes);
  }
  return invalid("no PROXY header");
}

export interface ProxyHeaderToWrite extends ProxyAdditions {
  readonly version: 1 | 2;
  readonly source: ProxyEndpoint;
  readonly destination: ProxyEndpoint;
}

/**
 * The bytes of a header. Version 2 carries a checksum; version 1 has no place for what `ProxyAdditions` adds. Endpoints of
 * two families are both written as IPv6.
 *
 * @throws RangeError when an addition is longer than its field
 */
export function encodeProxyHeader(header: ProxyHeaderToWrite): Buffer {
  return header.version === 1 ? encodeV1(header) : encodeV2(header);
}

/** Reads `address:port`, IPv6 in brackets; undefined for a name and anything else. */
export function parseProxyEndpoint(text: string): ProxyEndpoint | undefined {
  const [, inBrackets, plain, port = ""] = /^(?:\[([^[\]]+)\]|([^:[\]]+)):(0|[1-9][0-9]{0,4})$/.exec(text) ?? [];
  const address = parseIpAddress(inBrackets ?? plain ?? "");
  return address === undefined || Number(port) > 65_535 ? undefined : { address, port: Number(port) };
}

/** The header of a connection that is the writer's own, as a health check is. Version 2 only. */
export function encodeLocalProxyHeader(): Buffer {
  return Buffer.concat([SIGNATURE_V2, Buffer.from([0x20, 0x00, 0x00, 0x00])]);
}

function invalid(reason: string): ProxyHeaderParse {
  return { type: "invalid", reason };
}

/** Whether the shorter of both is the start of the longer. */
function startsLike(bytes: Uint8Array, signature: Uint8Array): boolean {
  const end = Math.min(bytes.length, signature.length);
  for (let at = 0; at < end; at++) if (bytes[at] !== signature[at]) return false;
  return true;
}

// ── version 1 ──

function parseV1(bytes: Uint8Array): ProxyHeaderParse {
  const end = Math.min(bytes.length, PROXY_V1_MAX_BYTES);
  for (let at = SIGNATURE_V1.length; at < end; at++) {
    const byte = bytes[at];
    if (byte === LF) return invalid("line feed without carriage return");
    if (byte !== CR) continue;
    if (at + 1 === end) break;
    if (bytes[at + 1] !== LF) return invalid("carriage return without line feed");
    return parseLine(latin1(bytes.subarray(SIGNATURE_V1.length, at)), at + 2);
  }
  return end === PROXY_V1_MAX_BYTES ? invalid(`no end of line within ${PROXY_V1_MAX_BYTES} bytes`) : INCOMPLETE;
}

/** `text` is what stands between `PROXY ` and CRLF. */
function parseLine(text: string, length: number): ProxyHeaderParse {
  if (text === "UNKNOWN" || text.startsWith("UNKNOWN ")) {
    return { type: "header", header: { type: "unknown", version: 1 }, length };
  }
  const fields = text.split(" ");
  const [family, sourceText = "", destinationText = "", sourcePort = "", destinationPort = ""] = fields;
  if (family !== "TCP4" && family !== "TCP6") return invalid("protocol is none of TCP4, TCP6, UNKNOWN");
  if (fields.length !== 5) return invalid("not exactly two addresses and two ports");
  const source = endpoint(sourceText, sourcePort, family);
  const destination = endpoint(destinationText, destinationPort, family);
  if (typeof source === "string") return invalid(`source ${source}`);
  if (typeof destination === "string") return invalid(`destination ${destination}`);
  return { type: "header", header: { type: "proxied", version: 1, source, destination }, length };
}

function endpoint(text: string, port: string, family: "TCP4" | "TCP6"): ProxyEndpoint | string {
  const address = text.includes(":") === (family === "TCP6") ? parseIpAddress(text) : undefined;
  if (address === undefined) return `address is no canonical ${family === "TCP4" ? "IPv4" : "IPv6"} address`;
  if (!/^(?:0|[1-9][0-9]{0,4})$/.test(port) || Number(port) > 65_535) return "port is no decimal number of 0 to 65535";
  return { address, port: Number(port) };
}

function encodeV1({ source, destination }: ProxyHeaderToWrite): Buffer {
  const isIpv4 = source.address.family === 4 && destination.address.family === 4;
  const text = ({ address }: ProxyEndpoint) =>
    isIpv4 || address.family === 6 ? formatIpAddress(address) : `::ffff:${formatIpAddress(address)}`;
  const addresses = `${text(source)} ${text(destination)} ${source.port} ${destination.port}`;
  return Buffer.from(`PROXY ${isIpv4 ? "TCP4" : "TCP6"} ${addresses}\r\n`, "latin1");
}

// ── version 2 ──

/** Length of the address block by family and transport; every other pair is refused. */
const addressBytes: Readonly<Record<number, number>> = {
  0x00: 0,
  0x11: 12,
  0x12: 12,
  0x21: 36,
  0x22: 36,
  0x31: 216,
  0x32: 216,
};

function parseV2(bytes: Uint8Array): ProxyHeaderParse {
  const versionAndCommand = bytes[12];
  if (versionAndCommand === undefined) return INCOMPLETE;
  if (versionAndCommand >> 4 !== 2) return invalid("version is not 2");
  const isLocal = versionAndCommand === 0x20;
  if (!isLocal && versionAndCommand !== 0x21) return invalid("command is neither LOCAL nor PROXY");
  const family = bytes[13];
  if (family === undefined) return INCOMPLETE;
  const addressLength = addressBytes[family];
  // Of LOCAL the whole block is ignored, the family included.
  if (!isLocal && addressLength === undefined) return invalid("family and transport are not known");
  if (bytes.length < FIXED_V2_BYTES) return INCOMPLETE;
  const length = FIXED_V2_BYTES + (((bytes[14] ?? 0) << 8) | (bytes[15] ?? 0));
  if (length > PROXY_V2_MAX_BYTES) return invalid(`longer than ${PROXY_V2_MAX_BYTES} bytes`);
  if (!isLocal && length < FIXED_V2_BYTES + (addressLength ?? 0)) return invalid("shorter than its addresses");
  if (bytes.length < length) return INCOMPLETE;
  if (isLocal) return { type: "header", header: { type: "local" }, length };
  // Without a family there is no place at which additions could be told from addresses.
  if (family === 0x00) return { type: "header", header: { type: "unknown", version: 2 }, length };
  const additions = parseAdditions(bytes.subarray(0, length), FIXED_V2_BYTES + (addressLength ?? 0));
  if (typeof additions === "string") return invalid(additions);
  const endpoints = parseEndpoints(bytes, family);
  const header: ProxyHeader =
    endpoints === undefined
      ? { type: "unknown", version: 2, ...additions }
      : { type: "proxied", version: 2, ...endpoints, ...additions };
  return { type: "header", header, length };
}

/** Undefined for what is no TCP address: datagrams and sockets of the UNIX family. */
function parseEndpoints(
  bytes: Uint8Array,
  family: number,
): { source: ProxyEndpoint; destination: ProxyEndpoint } | undefined {
  if (family !== 0x11 && family !== 0x21) return undefined;
  const size = family === 0x11 ? 4 : 16;
  const portsAt = FIXED_V2_BYTES + 2 * size;
  const at = (start: number, portAt: number): ProxyEndpoint => ({
    address: addressOf(copyOf(bytes, start, start + size)),
    port: ((bytes[portAt] ?? 0) << 8) | (bytes[portAt + 1] ?? 0),
  });
  return { source: at(FIXED_V2_BYTES, portsAt), destination: at(FIXED_V2_BYTES + size, portsAt + 2) };
}

/** The filter has to see through a mapped address, as it does through that of a socket. */
function addressOf(bytes: Uint8Array): IpAddress {
  if (bytes.length === 4) return { family: 4, bytes };
  const text = formatIpAddress({ family: 6, bytes });
  const into = new Uint8Array(16);
  const family = readIpAddress(text, into);
  return family === 4 ? { family, bytes: into.slice(0, 4) } : { family: 6, bytes };
}

function parseAdditions(header: Uint8Array, start: number): ProxyAdditions | string {
  const found = new Map<number, Uint8Array>();
  for (let at = start; at < header.length; ) {
    if (at + 3 > header.length) return "stray bytes at its end";
    const type = header[at] ?? 0;
    const length = ((header[at + 1] ?? 0) << 8) | (header[at + 2] ?? 0);
    const valueAt = at + 3;
    at = valueAt + length;
    if (at > header.length) return "an addition reaches beyond its end";
    if (type !== TLV_ALPN && type !== TLV_AUTHORITY && type !== TLV_CRC32C && type !== TLV_UNIQUE_ID) continue;
    if (found.has(type)) return "an addition comes twice";
    if (type === TLV_UNIQUE_ID && length > PROXY_UNIQUE_ID_MAX_BYTES) return "unique id is longer than 128 bytes";
    if (type === TLV_CRC32C && (length !== 4 || !checksumHolds(header, valueAt))) return "checksum is wrong";
    found.set(type, copyOf(header, valueAt, at));
  }
  return { authority: found.get(TLV_AUTHORITY), uniqueId: found.get(TLV_UNIQUE_ID), alpn: found.get(TLV_ALPN) };
}

/** The checksum is that of the whole header with the checksum itself as zeros. */
function checksumHolds(header: Uint8Array, at: number): boolean {
  const before = crc32c(new Uint8Array(4), crc32c(header.subarray(0, at)));
  return crc32c(header.subarray(at + 4), before) === Buffer.from(header.subarray(at, at + 4)).readUInt32BE();
}

function encodeV2(header: ProxyHeaderToWrite): Buffer {
  const { source, destination } = header;
  const isIpv4 = source.address.family === 4 && destination.address.family === 4;
  const ports = Buffer.alloc(4);
  ports.writeUInt16BE(source.port, 0);
  ports.writeUInt16BE(destination.port, 2);
  const additions = Buffer.concat([
    ...addition(TLV_ALPN, header.alpn, 255),
    ...addition(TLV_AUTHORITY, header.authority, 1_024),
    ...addition(TLV_UNIQUE_ID, header.uniqueId, PROXY_UNIQUE_ID_MAX_BYTES),
    ...addition(TLV_CRC32C, new Uint8Array(4), 4),
  ]);
  const addresses = [source, destination].map(({ address }) => wide(address, isIpv4));
  const fixed = Buffer.from([0x21, isIpv4 ? 0x11 : 0x21, 0, 0]);
  fixed.writeUInt16BE((isIpv4 ? 12 : 36) + additions.length, 2);
  const bytes = Buffer.concat([SIGNATURE_V2, fixed, ...addresses, ports, additions]);
  bytes.writeUInt32BE(crc32c(bytes), bytes.length - 4);
  return bytes;
}

function addition(type: number, value: Uint8Array | undefined, maxBytes: number): Uint8Array[] {
  if (value === undefined) return [];
  if (value.length > maxBytes) throw new RangeError(`an addition of type ${type} has at most ${maxBytes} bytes`);
  return [Buffer.from([type, value.length >> 8, value.length & 255]), value];
}

function wide(address: IpAddress, isIpv4: boolean): Uint8Array {
  if (isIpv4 || address.family === 6) return address.bytes;
  return Buffer.concat([new Uint8Array(10), Buffer.from([255, 255]), address.bytes]);
}

/** `slice` of a Buffer is a view, which would keep everything that was read with it in memory. */
function copyOf(bytes: Uint8Array, start: number, end: number): Uint8Array {
  return new Uint8Array(bytes.subarray(start, end));
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
}
