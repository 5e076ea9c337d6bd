import * as fc from "fast-check";
import { expect, test } from "vitest";
import { crc32c } from "./crc32c.ts";
import { formatIpAddress, type IpAddress, parseIpAddress } from "./ip-address.ts";
import {
  encodeLocalProxyHeader,
  encodeProxyHeader,
  PROXY_HEADER_MAX_BYTES,
  type ProxyEndpoint,
  parseProxyHeader,
} from "./proxy-header.ts";

const SIGNATURE = "0d0a0d0a000d0a515549540a";
const hex = (text: string) => Buffer.from(text.replaceAll(" ", ""), "hex");
const v2 = (rest: string) => hex(SIGNATURE + rest);
const line = (text: string) => Buffer.from(text, "latin1");
const ip = (text: string): IpAddress => parseIpAddress(text)!;
const at = (address: string, port: number): ProxyEndpoint => ({ address: ip(address), port });

/** 203.0.113.7:51000 → 198.51.100.20:443 with authority, unique id and checksum; HAProxy 2.6 has taken it. */
const FULL = v2(
  "2111003bcb007107c6336414c73801bb020010736674702e6578616d706c652e636f6d050012632d3031323334353637383961626364656603000465394080",
);
const ADDRESSES_V4 = "cb007107 c6336414 c738 01bb";
const ADDRESSES_V6 = `${"00".repeat(15)}01 ${"00".repeat(15)}01 8b7e 4c9b`;

/** What a header says, in short. */
function told(bytes: Uint8Array): string {
  const parsed = parseProxyHeader(bytes);
  if (parsed.type !== "header") return parsed.type;
  const { header, length } = parsed;
  const text = ({ address, port }: ProxyEndpoint) => `${formatIpAddress(address)} ${port}`;
  const says = header.type === "proxied" ? `${text(header.source)} > ${text(header.destination)}` : header.type;
  return `${says}, ${length} bytes`;
}

const valid: readonly (readonly [string, Uint8Array, string])[] = [
  [
    "v1 as HAProxy sends it",
    line("PROXY TCP4 127.0.0.1 127.0.0.1 35598 19611\r\n"),
    "127.0.0.1 35598 > 127.0.0.1 19611, 44 bytes",
  ],
  ["v1 with IPv6", line("PROXY TCP6 ::1 ::1 35710 19611\r\n"), "::1 35710 > ::1 19611, 32 bytes"],
  [
    "v1 at its longest",
    line(`PROXY TCP6 ${"ffff:".repeat(7)}ffff ${"ffff:".repeat(7)}ffff 65535 65535\r\n`),
    `${"ffff:".repeat(7)}ffff 65535 > ${"ffff:".repeat(7)}ffff 65535, 104 bytes`,
  ],
  ["v1 with port 0", line("PROXY TCP4 0.0.0.0 255.255.255.255 0 0\r\n"), "0.0.0.0 0 > 255.255.255.255 0, 40 bytes"],
  [
    "v1 with a mapped address, which is unwrapped",
    line("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"),
    "192.0.2.1 1 > ::1 2, 37 bytes",
  ],
  ["v1 UNKNOWN", line("PROXY UNKNOWN\r\n"), "unknown, 15 bytes"],
  ["v1 UNKNOWN with anything behind it", line("PROXY UNKNOWN \0anything \xff\r\n"), "unknown, 27 bytes"],
  ["v1 UNKNOWN of 107 bytes", line(`PROXY UNKNOWN ${"f".repeat(91)}\r\n`), "unknown, 107 bytes"],
  ["v2 as HAProxy sends it", v2("2111000c 7f000001 7f000001 b20a 4c9c"), "127.0.0.1 45578 > 127.0.0.1 19612, 28 bytes"],
  ["v2 with IPv6", v2(`21210024 ${ADDRESSES_V6}`), "::1 35710 > ::1 19611, 52 bytes"],
  [
    "v2 with a mapped address, which is unwrapped",
    v2(`21210024 ${"00".repeat(10)}ffffc0000201 ${"00".repeat(15)}01 0001 0002`),
    "192.0.2.1 1 > ::1 2, 52 bytes",
  ],
  ["v2 with additions", FULL, "203.0.113.7 51000 > 198.51.100.20 443, 75 bytes"],
  [
    "v2 with an empty unique id",
    v2(`2111000f ${ADDRESSES_V4} 050000`),
    "203.0.113.7 51000 > 198.51.100.20 443, 31 bytes",
  ],
  [
    "v2 with padding and an unknown addition",
    v2(`21110014 ${ADDRESSES_V4} 040002ffff ea0000`),
    "203.0.113.7 51000 > 198.51.100.20 443, 36 bytes",
  ],
  [
    "v2 with an addition of TLS facts",
    v2(`21110014 ${ADDRESSES_V4} 200005 0000000000`),
    "203.0.113.7 51000 > 198.51.100.20 443, 36 bytes",
  ],
  ["v2 LOCAL", v2("20000000"), "local, 16 bytes"],
  ["v2 LOCAL with a block, which is ignored", v2("20000005 0000000000"), "local, 21 bytes"],
  ["v2 LOCAL with a family, which is ignored", v2("20ff0003 ffffff"), "local, 19 bytes"],
  ["v2 UNSPEC", v2("21000000"), "unknown, 16 bytes"],
  ["v2 UNSPEC with a block", v2("21000003 ffffff"), "unknown, 19 bytes"],
  ["v2 for datagrams", v2(`2112000c ${ADDRESSES_V4}`), "unknown, 28 bytes"],
  ["v2 for UNIX sockets", v2(`213100d8 ${"00".repeat(216)}`), "unknown, 232 bytes"],
  [
    "v2 of 4,096 bytes",
    v2(`21110ff0 ${ADDRESSES_V4} 040fe1 ${"00".repeat(0xfe1)}`),
    "203.0.113.7 51000 > 198.51.100.20 443, 4096 bytes",
  ],
];

test.each(valid)("%s is read", (_, bytes, says) => {
  expect(told(bytes)).toBe(says);
});

test.each(valid)("every prefix of %s needs more, and what follows is not touched", (_, bytes, says) => {
  for (let length = 0; length < bytes.length; length++) {
    expect(parseProxyHeader(bytes.subarray(0, length)), `${length} bytes`).toEqual({ type: "incomplete" });
  }
  expect(told(Buffer.concat([bytes, Buffer.alloc(5_000, 0x50)]))).toBe(says);
});

test.each<[string, Uint8Array, string]>([
  // P1, P3, P5 to P8 of the suite: what is no version 1.
  ["another protocol", line("GET / HTTP/1.0\r\n\r\n"), "no PROXY header"],
  ["one byte of another protocol", line("S"), "no PROXY header"],
  ["lower case", line("proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n"), "no PROXY header"],
  ["a tab", line("PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2\r\n"), "no PROXY header"],
  [
    "a protocol in lower case",
    line("PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n"),
    "protocol is none of TCP4, TCP6, UNKNOWN",
  ],
  ["another protocol name", line("PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n"), "protocol is none of TCP4, TCP6, UNKNOWN"],
  ["UNKNOWN that goes on", line("PROXY UNKNOWNS\r\n"), "protocol is none of TCP4, TCP6, UNKNOWN"],
  ["nothing", line("PROXY \r\n"), "protocol is none of TCP4, TCP6, UNKNOWN"],
  ["two spaces", line("PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n"), "not exactly two addresses and two ports"],
  ["a space at the end", line("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n"), "not exactly two addresses and two ports"],
  ["a port too few", line("PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n"), "not exactly two addresses and two ports"],
  ["a lone line feed", line("PROXY TCP4 203.0.113.9 198.51.100.20 40000 443\n"), "line feed without carriage return"],
  ["a lone line feed behind UNKNOWN", line("PROXY UNKNOWN\n"), "line feed without carriage return"],
  ["a lone carriage return", line("PROXY UNKNOWN\r\r\n"), "carriage return without line feed"],
  ["108 bytes without an end", line(`PROXY UNKNOWN ${"f".repeat(94)}`), "no end of line within 107 bytes"],
  ["a line of 108 bytes", line(`PROXY UNKNOWN ${"f".repeat(92)}\r\n`), "no end of line within 107 bytes"],
  ["IPv6 under TCP4", line("PROXY TCP4 ::1 192.0.2.2 1 2\r\n"), "source address is no canonical IPv4 address"],
  ["IPv4 under TCP6", line("PROXY TCP6 ::1 192.0.2.2 1 2\r\n"), "destination address is no canonical IPv6 address"],
  [
    "an address with leading zeros",
    line("PROXY TCP4 192.0.02.1 192.0.2.2 1 2\r\n"),
    "source address is no canonical IPv4 address",
  ],
  ["an octal address", line("PROXY TCP4 0300.0.2.1 192.0.2.2 1 2\r\n"), "source address is no canonical IPv4 address"],
  ["a short address", line("PROXY TCP4 10.1 192.0.2.2 1 2\r\n"), "source address is no canonical IPv4 address"],
  ["a zone", line("PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n"), "source address is no canonical IPv6 address"],
  ["a name", line("PROXY TCP4 localhost 192.0.2.2 1 2\r\n"), "source address is no canonical IPv4 address"],
  [
    "a port with a leading zero",
    line("PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n"),
    "source port is no decimal number of 0 to 65535",
  ],
  [
    "a port with a sign",
    line("PROXY TCP4 192.0.2.1 192.0.2.2 1 +2\r\n"),
    "destination port is no decimal number of 0 to 65535",
  ],
  [
    "a port that is too large",
    line("PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n"),
    "source port is no decimal number of 0 to 65535",
  ],
  [
    "a port in hexadecimal",
    line("PROXY TCP4 192.0.2.1 192.0.2.2 0x1 2\r\n"),
    "source port is no decimal number of 0 to 65535",
  ],
  // P9 to P13: what is no version 2.
  ["a wrong signature", hex("0d0a0d0a000d0a515549540b"), "no PROXY header"],
  ["CRLF of another protocol", line("\r\n\r\nGET"), "no PROXY header"],
  ["version 1 in binary", v2("11"), "version is not 2"],
  ["version 3", v2("31"), "version is not 2"],
  ["an unknown command", v2("22"), "command is neither LOCAL nor PROXY"],
  ["an unknown family", v2("2141"), "family and transport are not known"],
  ["an unknown transport", v2("2113"), "family and transport are not known"],
  ["a family without transport", v2("2110"), "family and transport are not known"],
  ["a transport without family", v2("2101"), "family and transport are not known"],
  ["length 0 with PROXY", v2("21110000"), "shorter than its addresses"],
  ["IPv4 that is a byte short", v2("2111000b"), "shorter than its addresses"],
  ["IPv6 that is a byte short", v2("21210023"), "shorter than its addresses"],
  ["a length of 65,535", v2("2111ffff"), "longer than 4096 bytes"],
  ["LOCAL with a length of 65,535", v2("2000ffff"), "longer than 4096 bytes"],
  ["a header of 4,097 bytes", v2("21110ff1"), "longer than 4096 bytes"],
  ["an addition beyond the end", v2(`21110010 ${ADDRESSES_V4} 04000200`), "an addition reaches beyond its end"],
  ["stray bytes", v2(`2111000e ${ADDRESSES_V4} 0400`), "stray bytes at its end"],
  ["a checksum of three bytes", v2(`21110012 ${ADDRESSES_V4} 030003 000000`), "checksum is wrong"],
  ["a wrong checksum", v2(`21110013 ${ADDRESSES_V4} 030004 00000000`), "checksum is wrong"],
  [
    "a unique id of 129 bytes",
    v2(`21110090 ${ADDRESSES_V4} 050081 ${"61".repeat(129)}`),
    "unique id is longer than 128 bytes",
  ],
  ["an authority that comes twice", v2(`21110014 ${ADDRESSES_V4} 02000161 02000162`), "an addition comes twice"],
])("%s is refused", (_, bytes, reason) => {
  expect(parseProxyHeader(bytes)).toEqual({ type: "invalid", reason });
});

test("a refusal comes with the first byte that is wrong", () => {
  const late = line("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\nrest");
  const wrongAt = late.indexOf("\n");
  expect(parseProxyHeader(late.subarray(0, wrongAt)).type).toBe("incomplete");
  expect(parseProxyHeader(late.subarray(0, wrongAt + 1)).type).toBe("invalid");
});

test("a checksum that is there protects every byte of the header", () => {
  for (let byte = 16; byte < FULL.length; byte++) {
    for (let bit = 0; bit < 8; bit++) {
      const spoilt = Buffer.from(FULL);
      spoilt[byte]! ^= 1 << bit;
      // A checksum whose type or length is spoilt is none; everything else is noticed by it.
      if (byte >= FULL.length - 7 && byte < FULL.length - 4) continue;
      // One that breaks the additions apart is refused for that.
      expect(parseProxyHeader(spoilt).type, `byte ${byte} bit ${bit}`).toBe("invalid");
    }
  }
});

test("the additions of a header are handed over as they came", () => {
  const parsed = parseProxyHeader(FULL);
  expect(parsed).toMatchObject({ type: "header", header: { type: "proxied", version: 2, alpn: undefined } });
  if (parsed.type !== "header" || parsed.header.type !== "proxied") throw new Error("not read");
  expect(Buffer.from(parsed.header.authority!).toString()).toBe("sftp.example.com");
  expect(Buffer.from(parsed.header.uniqueId!).toString()).toBe("c-0123456789abcdef");
});

test("a written header is the vector that HAProxy has taken", () => {
  const bytes = encodeProxyHeader({
    version: 2,
    source: at("203.0.113.7", 51_000),
    destination: at("198.51.100.20", 443),
    authority: Buffer.from("sftp.example.com"),
    uniqueId: Buffer.from("c-0123456789abcdef"),
  });
  expect(bytes.toString("hex")).toBe(FULL.toString("hex"));
});

test.each([
  [at("203.0.113.7", 1), at("198.51.100.20", 65_535), "PROXY TCP4 203.0.113.7 198.51.100.20 1 65535\r\n"],
  [at("2001:db8::1", 1), at("::1", 2), "PROXY TCP6 2001:db8::1 ::1 1 2\r\n"],
  [at("192.0.2.1", 1), at("2001:db8::1", 2), "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n"],
])("version 1 is written as one line", (source, destination, text) => {
  expect(encodeProxyHeader({ version: 1, source, destination }).toString()).toBe(text);
});

test("a LOCAL header is 16 bytes", () => {
  expect(encodeLocalProxyHeader().toString("hex")).toBe(`${SIGNATURE}20000000`);
});

test.each([
  ["authority", { authority: Buffer.alloc(1_025) }],
  ["uniqueId", { uniqueId: Buffer.alloc(129) }],
  ["alpn", { alpn: Buffer.alloc(256) }],
])("%s that is too long is not written", (_, additions) => {
  const header = { version: 2, source: at("192.0.2.1", 1), destination: at("192.0.2.2", 2), ...additions } as const;
  expect(() => encodeProxyHeader(header)).toThrow(RangeError);
});

const address = fc
  .oneof(fc.uint8Array({ minLength: 4, maxLength: 4 }), fc.uint8Array({ minLength: 16, maxLength: 16 }))
  .map((bytes): IpAddress => ({ family: bytes.length === 4 ? 4 : 6, bytes }))
  // As everywhere else, family 6 never holds a mapped address.
  .filter((value) => value.family === 4 || ip(formatIpAddress(value)).family === 6);
const endpoint = fc.record({ address, port: fc.integer({ min: 0, max: 65_535 }) });
const plain = ({ address: { family, bytes }, port }: ProxyEndpoint) => [family, [...bytes], port];

test("what is written is read back, in both versions, whatever follows", () => {
  fc.assert(
    fc.property(
      fc.record({
        version: fc.constantFrom(1 as const, 2 as const),
        source: endpoint,
        destination: endpoint,
        authority: fc.option(fc.uint8Array({ maxLength: 255 }), { nil: undefined }),
        uniqueId: fc.option(fc.uint8Array({ maxLength: 128 }), { nil: undefined }),
        alpn: fc.option(fc.uint8Array({ maxLength: 255 }), { nil: undefined }),
      }),
      fc.uint8Array({ maxLength: 50 }),
      (header, rest) => {
        const bytes = encodeProxyHeader(header);
        const parsed = parseProxyHeader(Buffer.concat([bytes, rest]));
        if (parsed.type !== "header" || parsed.header.type !== "proxied") throw new Error(JSON.stringify(parsed));
        expect(parsed.length).toBe(bytes.length);
        expect(plain(parsed.header.source)).toEqual(plain(header.source));
        expect(plain(parsed.header.destination)).toEqual(plain(header.destination));
        if (header.version === 1) return;
        for (const key of ["authority", "uniqueId", "alpn"] as const) {
          expect(parsed.header[key] && [...parsed.header[key]]).toEqual(header[key] && [...header[key]]);
        }
        const unsummed = Buffer.from(bytes);
        unsummed.writeUInt32BE(0, bytes.length - 4);
        expect(crc32c(unsummed)).toBe(bytes.readUInt32BE(bytes.length - 4));
      },
    ),
  );
});

test("no bytes at all make the reader throw, wait beyond its bound or read beyond what came", () => {
  const seeds = valid.map(([, bytes]) => [...bytes]);
  const spoilt = fc
    .tuple(fc.constantFrom(...seeds), fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }), fc.nat())
    .map(([seed, changes, cut]) => {
      const bytes = Uint8Array.from(seed);
      for (const [position, value] of changes) bytes[position % bytes.length] = value;
      return bytes.subarray(0, 1 + (cut % (2 * bytes.length)));
    });
  fc.assert(
    fc.property(fc.oneof(spoilt, fc.uint8Array({ maxLength: 5_000 })), (bytes) => {
      const parsed = parseProxyHeader(bytes);
      const bound = parsed.type === "incomplete" ? PROXY_HEADER_MAX_BYTES - 1 : 5_000;
      expect(bytes.length).toBeLessThanOrEqual(bound);
      expect(parsed.type === "header" ? parsed.length : 0).toBeLessThanOrEqual(bytes.length);
    }),
    { numRuns: 20_000 },
  );
});
