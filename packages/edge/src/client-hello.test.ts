import { connect as connectTls, type ConnectionOptions } from "node:tls";
import { Duplex } from "node:stream";
import { expect, test } from "vitest";
import { CLIENT_HELLO_MAX_BYTES, parseClientHello } from "./client-hello.ts";

const u8 = (value: number) => Buffer.from([value]);
const u16 = (value: number) => Buffer.from([value >> 8, value & 255]);
const u24 = (value: number) => Buffer.from([value >> 16, (value >> 8) & 255, value & 255]);
const vector8 = (...parts: Uint8Array[]) => Buffer.concat([u8(Buffer.concat(parts).length), ...parts]);
const vector16 = (...parts: Uint8Array[]) => Buffer.concat([u16(Buffer.concat(parts).length), ...parts]);
const extension = (type: number, ...body: Uint8Array[]) => Buffer.concat([u16(type), vector16(...body)]);
const sni = (name: string) => extension(0, vector16(u8(0), vector16(Buffer.from(name, "latin1"))));
const alpn = (...names: string[]) =>
  extension(16, vector16(...names.map((name) => vector8(Buffer.from(name, "latin1")))));
const grease = extension(0x0a0a, u8(0));

/** A message of the parts that a test changes. */
function message(
  extensions: Uint8Array | undefined,
  { version = 0x0303, suites = u16(0x1301), compression = u8(0) } = {},
) {
  const body = Buffer.concat([
    u16(version),
    Buffer.alloc(32, 7),
    vector8(Buffer.alloc(32, 9)),
    vector16(suites),
    vector8(compression),
    extensions === undefined ? Buffer.alloc(0) : vector16(extensions),
  ]);
  return Buffer.concat([u8(1), u24(body.length), body]);
}

/** `bytes` in records of at most `size` bytes. */
function records(bytes: Uint8Array, size = 16_384): Buffer {
  const parts: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; at += size) {
    parts.push(u8(22), u16(0x0301), vector16(bytes.subarray(at, at + size)));
  }
  return Buffer.concat(parts);
}

const hello = (...extensions: Uint8Array[]) => records(message(Buffer.concat(extensions)));
const WHOLE = hello(grease, sni("SFTP.Corp.Example"), alpn("\x1a\x1a", "h2", "http/1.1"));
const WHOLE_SAYS = { type: "hello", hello: { serverName: "sftp.corp.example", alpn: ["h2", "http/1.1"] } };

/** What Node, and OpenSSL in it, sends first. */
async function helloOfNode(options: ConnectionOptions): Promise<Buffer> {
  let socket: ReturnType<typeof connectTls> | undefined;
  const first = await new Promise<Buffer>((resolve) => {
    const wire = new Duplex({ read() {}, write: (chunk: Buffer) => resolve(chunk) });
    socket = connectTls({ socket: wire, ...options });
    socket.on("error", () => undefined);
  });
  socket?.destroy();
  return first;
}

test.each<[string, ConnectionOptions, object]>([
  ["TLS 1.3", { servername: "a.example", ALPNProtocols: ["h2", "x"] }, { serverName: "a.example", alpn: ["h2", "x"] }],
  ["TLS 1.2", { servername: "a.example", maxVersion: "TLSv1.2" }, { serverName: "a.example", alpn: [] }],
  ["no name", { servername: "" }, { serverName: undefined, alpn: [] }],
])("the ClientHello of a real client with %s is read", async (_, options, says) => {
  expect(parseClientHello(await helloOfNode(options))).toEqual({ type: "hello", hello: says });
});

test("names are lower case, GREASE is left out, what follows is ignored", () => {
  expect(parseClientHello(WHOLE)).toEqual(WHOLE_SAYS);
  expect(parseClientHello(Buffer.concat([WHOLE, Buffer.alloc(20_000, 1)]))).toEqual(WHOLE_SAYS);
  const together = Buffer.concat([message(sni("a.example")), Buffer.alloc(10)]);
  expect(parseClientHello(records(together))).toEqual({ type: "hello", hello: { serverName: "a.example", alpn: [] } });
});

test("every prefix needs more, however the message is split over records", () => {
  const whole = message(Buffer.concat([grease, sni("SFTP.Corp.Example"), alpn("h2", "http/1.1")]));
  for (const size of [1, 2, 3, 4, 5, 7, 40, 16_384]) {
    const bytes = records(whole, size);
    for (let length = 0; length < bytes.length; length++) {
      expect(parseClientHello(bytes.subarray(0, length)), `${size} ${length}`).toEqual({ type: "incomplete" });
    }
    expect(parseClientHello(bytes)).toEqual(WHOLE_SAYS);
  }
});

test("a client without extensions names nothing", () => {
  expect(parseClientHello(records(message(undefined)))).toEqual({
    type: "hello",
    hello: { serverName: undefined, alpn: [] },
  });
});

test.each<[string, Uint8Array, string]>([
  ["another protocol", Buffer.from("SSH-2.0-OpenSSH_9.2p1\r\n"), "not TLS"],
  ["a PROXY header", Buffer.from("PROXY TCP4 "), "not TLS"],
  ["SSL 2", Buffer.from("802e010002", "hex"), "not TLS"],
  ["another version of records", Buffer.from("160501", "hex"), "not TLS"],
  ["an alert", Buffer.from("15030100020100", "hex"), "not TLS"],
  ["an empty record", Buffer.from("1603010000", "hex"), "a record of a forbidden length"],
  ["a record that is too long", Buffer.from("1603014001", "hex"), "a record of a forbidden length"],
  ["a ServerHello", records(Buffer.from("02000000", "hex")), "the first message is no ClientHello"],
  ["an alert in between", Buffer.concat([WHOLE.subarray(0, 5), u8(0)]), "the first message is no ClientHello"],
  [
    "another record in between",
    Buffer.concat([records(WHOLE.subarray(5, 15)), Buffer.from("15030100020100", "hex")]),
    "another record in between",
  ],
  ["a message that is too long", records(Buffer.from("01004001", "hex")), "longer than 16384 bytes"],
  ["an empty message", records(Buffer.from("01000000", "hex")), "a length reaches beyond its end"],
  ["another TLS", records(message(undefined, { version: 0x0203 })), "another version of TLS"],
  ["no cipher suite", records(message(undefined, { suites: Buffer.alloc(0) })), "a field of a forbidden length"],
  ["half a cipher suite", records(message(undefined, { suites: Buffer.alloc(3) })), "a field of a forbidden length"],
  ["no compression", records(message(undefined, { compression: Buffer.alloc(0) })), "a field of a forbidden length"],
  ["an extension beyond the end", hello(Buffer.from("00000005aa", "hex")), "a length reaches beyond its end"],
  ["half an extension", hello(Buffer.from("000a", "hex")), "a length reaches beyond its end"],
  ["an extension that comes twice", hello(sni("a.example"), sni("b.example")), "an extension comes twice"],
  ["an empty server name", hello(extension(0)), "a length reaches beyond its end"],
  ["an empty list of names", hello(extension(0, vector16())), "a field of a forbidden length"],
  ["a name of another kind", hello(extension(0, vector16(u8(1), vector16(u8(97))))), "the server name is no host name"],
  [
    "two names",
    hello(extension(0, vector16(u8(0), vector16(u8(97)), u8(0), vector16(u8(98))))),
    "the server name is no host name",
  ],
  ["an address as name", hello(sni("192.0.2.1")), "the server name is no host name"],
  ["a name with a line feed", hello(sni("a\nb")), "the server name is no host name"],
  ["a name with a zero byte", hello(sni("a.example\0.b")), "the server name is no host name"],
  ["a name with a final dot", hello(sni("a.example.")), "the server name is no host name"],
  ["a name of 254 bytes", hello(sni(`${"a.".repeat(126)}aa`)), "the server name is no host name"],
  ["a wildcard as name", hello(sni("*.example")), "the server name is no host name"],
  ["an empty list of protocols", hello(extension(16, vector16())), "a field of a forbidden length"],
  ["an empty protocol", hello(extension(16, vector16(vector8(), vector8(u8(1))))), "a field of a forbidden length"],
])("%s names nothing", (_, bytes, reason) => {
  expect(parseClientHello(bytes)).toEqual({ type: "other", reason });
});

test("bytes behind the extensions name nothing", () => {
  const whole = message(sni("a.example"));
  const longer = Buffer.concat([u8(1), u24(whole.length - 4 + 1), whole.subarray(4), u8(0)]);
  expect(parseClientHello(records(longer))).toEqual({ type: "other", reason: "bytes behind the extensions" });
});

test("no more is waited for than the bound, in however small records it comes", () => {
  const endless = records(Buffer.concat([Buffer.from("01003f00", "hex"), Buffer.alloc(16_128)]), 1);
  expect(parseClientHello(endless.subarray(0, CLIENT_HELLO_MAX_BYTES - 1)).type).toBe("incomplete");
  expect(parseClientHello(endless.subarray(0, CLIENT_HELLO_MAX_BYTES)).type).toBe("other");
});
