/**
 * IP addresses and CIDRs as bytes. Text is accepted in its canonical grammar only: no octal or hexadecimal parts, no short
 * IPv4 forms (`10.1`), no zone, no host bits. What differs between two readers of the same text is how filters are
 * bypassed (CVE-2021-28918 and its kin), so anything that could be read in two ways is refused here.
 *
 * An IPv4 address mapped into IPv6 (`::ffff:192.0.2.1`, what a dual-stack socket reports for an IPv4 peer) becomes IPv4 at
 * the border, once. From there on the families never meet: `::/0` holds no IPv4 address, `0.0.0.0/0` no IPv6 address.
 */
import { isIPv4, isIPv6 } from "node:net";

const COLON = 58;
const DOT = 46;

/**
 * The values of hexadecimal digits by their codes. A table, because digits and letters alternate at random in an address:
 * with branches that tell them apart, reading one takes 0.25 µs instead of 0.14.
 */
const NO_DIGIT = -1;
const HEX_DIGITS = new Int8Array(128).fill(NO_DIGIT);
for (let value = 0; value < 16; value++) {
  const digit = value.toString(16);
  HEX_DIGITS[digit.charCodeAt(0)] = value;
  HEX_DIGITS[digit.toUpperCase().charCodeAt(0)] = value;
}

export type IpFamily = 4 | 6;

/** An address in network byte order: 4 bytes or 16, as `family` says. Family 6 never holds a mapped IPv4 address. */
export interface IpAddress {
  readonly family: IpFamily;
  readonly bytes: Uint8Array;
}

/** A block of addresses. All bits of `address` behind `prefixLength` (0-32 or 0-128, in bits) are zero. */
export interface Cidr {
  readonly family: IpFamily;
  readonly address: IpAddress;
  readonly prefixLength: number;
}

/** Kinds of addresses that nothing may dial unless the configuration lists them. */
export type SpecialAddress = "loopback" | "link-local" | "multicast" | "unspecified" | "metadata" | "broadcast";

/** Parses an address in canonical grammar; undefined for anything else, a zone (`fe80::1%eth0`) included. */
export function parseIpAddress(text: string): IpAddress | undefined {
  // Two readers have to agree: Node's grammar and the reader below. The former alone would let a zone pass. Its pattern of
  // IPv6 takes ten milliseconds to be compiled, so it is not asked about what cannot be IPv6.
  const isAddress = text.includes(":") ? isIPv6(text) : isIPv4(text);
  return isAddress ? readWhole(text) : undefined;
}

function readWhole(text: string): IpAddress | undefined {
  const bytes = new Uint8Array(16);
  const family = readIpAddress(text, bytes);
  return family === 0 ? undefined : { family, bytes: bytes.slice(0, family === 4 ? 4 : 16) };
}

/**
 * Parses what the kernel reports as the address of a peer (`socket.remoteAddress`). A zone (`fe80::1%eth0`) names an
 * interface of this machine, is no part of the address, and is dropped. Undefined when the socket has no address any more.
 */
export function parsePeerAddress(remoteAddress: string | undefined): IpAddress | undefined {
  if (remoteAddress === undefined) {
    return undefined;
  }
  const zone = remoteAddress.indexOf("%");
  return parseIpAddress(zone === -1 ? remoteAddress : remoteAddress.slice(0, zone));
}

/**
 * Reads the address in `text` before the index `end` (default: the whole text) into the first 4 or 16 bytes of `into` and
 * returns its family, or 0 when there is no canonical address; `into`, of 16 bytes at least, then holds rubbish. Allocates
 * nothing, which is why it stands beside `parseIpAddress`: it runs for every connection.
 */
export function readIpAddress(text: string, into: Uint8Array, end: number = text.length): IpFamily | 0 {
  if (readIpv4(text, 0, end, into, 0)) {
    return 4;
  }
  if (!readIpv6(text, end, into)) {
    return 0;
  }
  if (!isMapped(into)) {
    return 6;
  }
  for (let at = 0; at < 4; at++) {
    into[at] = into[12 + at] ?? 0;
  }
  return 4;
}

/** The address as people write it: dotted IPv4, or IPv6 in the form of RFC 5952 (lower case, longest run of zeros as `::`). */
export function formatIpAddress(address: IpAddress): string {
  const { bytes } = address;
  if (address.family === 4) {
    return bytes.join(".");
  }
  const groups: number[] = [];
  for (let at = 0; at < 16; at += 2) {
    groups.push(((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0));
  }
  // Only a run of two groups and more is shortened, the first of the longest ones (RFC 5952 §4.2).
  let best = { start: 0, length: 1 };
  let start = 0;
  for (let at = 0; at <= 8; at++) {
    if (groups[at] !== 0) {
      if (at - start > best.length) {
        best = { start, length: at - start };
      }
      start = at + 1;
    }
  }
  const hex = groups.map((group) => group.toString(16));
  return best.length === 1
    ? hex.join(":")
    : `${hex.slice(0, best.start).join(":")}::${hex.slice(best.start + best.length).join(":")}`;
}

/**
 * Parses `ADDRESS/LENGTH`, or a bare address as the block of just that address. A block of mapped IPv4 addresses
 * (`::ffff:10.0.0.0/104`) becomes the IPv4 block.
 *
 * @throws Error whose message is a reason fit for the person who wrote the text; the text is not repeated in it.
 */
export function parseCidr(text: string): Cidr {
  return cidrOf(text, parseIpAddress);
}

/** One that is written in this file, which needs no second reader. */
function ownCidr(text: string): Cidr {
  return cidrOf(text, readWhole);
}

function cidrOf(text: string, parseAddress: (text: string) => IpAddress | undefined): Cidr {
  const slash = text.indexOf("/");
  const addressText = slash === -1 ? text : text.slice(0, slash);
  const address = parseAddress(addressText);
  if (address === undefined) {
    throw new Error("not a canonical IP address or CIDR");
  }
  const maxLength = address.family === 4 ? 32 : 128;
  if (slash === -1) {
    return { family: address.family, address, prefixLength: maxLength };
  }

  const writtenAsIpv6 = addressText.includes(":");
  const writtenLength = parsePrefixLength(text.slice(slash + 1), writtenAsIpv6 ? 128 : 32);
  if (writtenLength === undefined) {
    throw new Error(`prefix length must be ${writtenAsIpv6 ? "0-128" : "0-32"}`);
  }
  const isMappedBlock = writtenAsIpv6 && address.family === 4;
  const prefixLength = isMappedBlock ? writtenLength - 96 : writtenLength;
  if (prefixLength < 0) {
    throw new Error("prefix length of an IPv4-mapped address must be 96-128; write it as an IPv4 CIDR");
  }

  const masked: Cidr = { family: address.family, address: maskAddress(address, prefixLength), prefixLength };
  if (!masked.address.bytes.every((byte, at) => byte === address.bytes[at])) {
    throw new Error(`host bits set; did you mean ${formatCidr(masked)}`);
  }
  return masked;
}

/** `ADDRESS/LENGTH`; a block of one address keeps its `/32` or `/128`. */
export function formatCidr(cidr: Cidr): string {
  return `${formatIpAddress(cidr.address)}/${cidr.prefixLength}`;
}

/** Whether the block holds the address. Addresses of the other family are never in it. */
export function cidrContains(cidr: Cidr, address: IpAddress): boolean {
  if (cidr.family !== address.family) {
    return false;
  }
  const wholeBytes = cidr.prefixLength >> 3;
  for (let at = 0; at < wholeBytes; at++) {
    if (cidr.address.bytes[at] !== address.bytes[at]) {
      return false;
    }
  }
  const mask = byteMask(cidr.prefixLength & 7);
  return mask === 0 || (((cidr.address.bytes[wholeBytes] ?? 0) ^ (address.bytes[wholeBytes] ?? 0)) & mask) === 0;
}

/**
 * Says when an address is one that a target hardly ever has on purpose. Metadata services of cloud providers come first:
 * most of them are link-local as well, and their name tells more. IPv6 forms that carry an IPv4 address for a translator
 * (NAT64, 6to4, IPv4-compatible) are judged by that IPv4 address.
 */
export function isSpecialAddress(address: IpAddress): SpecialAddress | undefined {
  for (const [kind, cidrs] of SPECIAL_CIDRS) {
    if (cidrs.some((cidr) => cidrContains(cidr, address))) {
      return kind;
    }
  }
  const carried = TRANSLATED_CIDRS.find(({ cidr }) => cidrContains(cidr, address));
  return carried === undefined
    ? undefined
    : isSpecialAddress({ family: 4, bytes: address.bytes.slice(carried.at, carried.at + 4) });
}

const SPECIAL_CIDRS: ReadonlyArray<readonly [SpecialAddress, readonly Cidr[]]> = [
  [
    "metadata",
    [
      "169.254.169.254", // AWS, Azure, Google, OpenStack and most others
      "fd00:ec2::254", // AWS
      "169.254.170.2", // AWS, credentials of containers
      "169.254.170.23", // AWS, credentials of pods
      "fd00:ec2::23", // AWS, credentials of pods
      "fd20:ce::254", // Google
      "168.63.129.16", // Azure, host services
      "100.100.100.200", // Alibaba
      "192.0.0.192", // Oracle
      "169.254.42.42", // Scaleway
      "fd00:42::42", // Scaleway
    ].map(ownCidr),
  ],
  // The whole of 0.0.0.0/8 means "this host" (RFC 1122 §3.2.1.3); Linux takes 0.0.0.0 and :: for loopback when dialled.
  ["unspecified", ["0.0.0.0/8", "::"].map(ownCidr)],
  ["loopback", ["127.0.0.0/8", "::1"].map(ownCidr)],
  ["link-local", ["169.254.0.0/16", "fe80::/10"].map(ownCidr)],
  ["multicast", ["224.0.0.0/4", "ff00::/8"].map(ownCidr)],
  ["broadcast", ["255.255.255.255"].map(ownCidr)],
];

/** IPv6 blocks whose addresses carry an IPv4 address, and the byte it starts at. */
const TRANSLATED_CIDRS: ReadonlyArray<{ cidr: Cidr; at: number }> = [
  { cidr: ownCidr("64:ff9b::/96"), at: 12 }, // NAT64, RFC 6052
  { cidr: ownCidr("2002::/16"), at: 2 }, // 6to4, RFC 3056
  { cidr: ownCidr("::/96"), at: 12 }, // IPv4-compatible, RFC 4291 §2.5.5.1
];

function isMapped(bytes: Uint8Array): boolean {
  for (let at = 0; at < 10; at++) {
    if (bytes[at] !== 0) {
      return false;
    }
  }
  return bytes[10] === 0xff && bytes[11] === 0xff;
}

function maskAddress(address: IpAddress, prefixLength: number): IpAddress {
  const bytes = address.bytes.map((byte, at) => byte & byteMask(Math.min(Math.max(prefixLength - 8 * at, 0), 8)));
  return { family: address.family, bytes };
}

/** The byte whose first `bits` (0-8) bits are one. */
function byteMask(bits: number): number {
  return (0xff00 >> bits) & 0xff;
}

/** A decimal number without sign, fraction and leading zeros, of at most `max`. */
function parsePrefixLength(text: string, max: number): number | undefined {
  return /^(?:0|[1-9][0-9]{0,2})$/.test(text) && Number(text) <= max ? Number(text) : undefined;
}

/**
 * Four decimal parts of 0-255 without leading zeros, between `start` and `end`, into four bytes from `firstByte` on. Plain
 * arguments instead of an options object, because that would be an allocation for every connection.
 */
function readIpv4(text: string, start: number, end: number, into: Uint8Array, firstByte: number): boolean {
  let index = start;
  for (let at = firstByte; ; at++) {
    let value = 0;
    let digits = 0;
    for (; index < end; index++, digits++) {
      const digit = text.charCodeAt(index) - 48;
      if (digit < 0 || digit > 9) {
        break;
      }
      if (digits === 3 || (digits > 0 && value === 0)) {
        return false;
      }
      value = value * 10 + digit;
    }
    if (digits === 0 || value > 255) {
      return false;
    }
    into[at] = value;
    if (at === firstByte + 3) {
      return index === end;
    }
    if (index === end || text.charCodeAt(index) !== DOT) {
      return false;
    }
    index++;
  }
}

/** RFC 4291 §2.2: groups of one to four hexadecimal digits, at most one `::`, an IPv4 address allowed as the last 32 bits. */
function readIpv6(text: string, end: number, into: Uint8Array): boolean {
  let at = 0;
  let gap = -1;
  let group = 0;
  let groupStart = 0;
  let index = 0;
  if (text.charCodeAt(0) === COLON) {
    // A colon in front is only ever the first half of "::".
    if (end < 2 || text.charCodeAt(1) !== COLON) {
      return false;
    }
    index = 1;
    groupStart = 1;
  }
  for (; index < end; index++) {
    const code = text.charCodeAt(index);
    const digit = HEX_DIGITS[code] ?? NO_DIGIT;
    if (digit !== NO_DIGIT) {
      if (index - groupStart === 4) {
        return false;
      }
      group = (group << 4) | digit;
    } else if (code === COLON) {
      if (index === groupStart) {
        if (gap !== -1) {
          return false;
        }
        gap = at;
      } else if (index + 1 === end || at === 16) {
        return false;
      } else {
        into[at++] = group >> 8;
        into[at++] = group & 0xff;
      }
      group = 0;
      groupStart = index + 1;
    } else if (code === DOT && at <= 12 && readIpv4(text, groupStart, end, into, at)) {
      at += 4;
      groupStart = end;
      break;
    } else {
      return false;
    }
  }
  if (groupStart < end) {
    if (at === 16) {
      return false;
    }
    into[at++] = group >> 8;
    into[at++] = group & 0xff;
  }
  if (gap === -1) {
    return at === 16;
  }
  // "::" stands for one group of zeros at least.
  if (at === 16) {
    return false;
  }
  // What stands behind the gap moves to the end. A call of `copyWithin` or `fill` costs more than so few bytes.
  let to = 16;
  while (at > gap) {
    into[--to] = into[--at] ?? 0;
  }
  while (to > gap) {
    into[--to] = 0;
  }
  return true;
}
