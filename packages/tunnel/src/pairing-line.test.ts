import { createHash, X509Certificate } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { makeSelfSignedCertificate } from "../../edge/src/self-signed-certificate.ts";
import {
  certificatePin,
  formatPairingLine,
  MAX_PAIRING_LINE_CHARACTERS,
  type Pairing,
  pairingCertificate,
  parsePairingLine,
  splitAddress,
} from "./pairing-line.ts";
import { createToken, encodeToken } from "./token.ts";

const token = encodeToken(createToken());
const plain: Pairing = { address: "edge.example.com:7443", client: "lan", token };
let pinned: Pairing;
let pem: string;
beforeAll(async () => {
  pem = (await makeSelfSignedCertificate({ host: "edge.example.com" })).certificate;
  const der = new X509Certificate(pem).raw;
  pinned = { ...plain, pin: certificatePin(der), certificate: der.toString("base64") };
});

/** A line with a right checksum around whatever stands inside. */
function lineOf(content: unknown, prefix = "sallyport-pair:1:"): string {
  const json = typeof content === "string" ? content : JSON.stringify(content);
  const body = `${prefix}${Buffer.from(json).toString("base64url")}`;
  return `${body}:${createHash("sha256").update(body).digest("hex").slice(0, 8)}`;
}

function reasonOf(line: string): string {
  try {
    parsePairingLine(line);
  } catch (error) {
    return (error as Error).message;
  }
  throw new Error("the line was taken");
}

test("a pairing survives being written and read, with a pin and without", () => {
  expect(parsePairingLine(formatPairingLine(pinned))).toEqual(pinned);
  expect(parsePairingLine(formatPairingLine({ ...plain, serverName: "edge" }))).toEqual({
    ...plain,
    serverName: "edge",
  });
});

test("the line is one word of printable ASCII", () => {
  expect(formatPairingLine(pinned)).toMatch(/^sallyport-pair:1:[A-Za-z0-9_-]+:[0-9a-f]{8}$/);
});

test("white space around the line is ignored", () => {
  expect(parsePairingLine(`  ${formatPairingLine(plain)}\r\n`)).toEqual(plain);
});

test("the paired certificate comes out as it went in", () => {
  expect(pairingCertificate(pinned)?.trim()).toBe(pem.trim());
  expect(pairingCertificate(plain)).toBeUndefined();
});

test("every line that is cut off is refused, and the reason holds no token", () => {
  const line = formatPairingLine(pinned);
  for (let length = 0; length < line.length; length++) {
    expect(reasonOf(line.slice(0, length))).not.toContain(token);
  }
});

test("every line in which one character was changed is refused", () => {
  const line = formatPairingLine(plain);
  for (let at = 0; at < line.length; at++) {
    expect(reasonOf(`${line.slice(0, at)}${line[at] === "A" ? "B" : "A"}${line.slice(at + 1)}`)).not.toContain(token);
  }
});

describe("the reason says what is wrong", () => {
  test.each<[string, () => string, RegExp]>([
    ["an empty line", () => " \n", /no pairing line/],
    ["something else", () => token, /not a pairing line/],
    ["a line wrapped by a terminal", () => formatPairingLine(plain).replace(/^(.{60})/, "$1\n"), /line break inside/],
    ["a line that is cut off", () => formatPairingLine(plain).slice(0, -20), /cut off/],
    ["two lines in one", () => `${formatPairingLine(plain)}:${formatPairingLine(plain)}`, /damaged/],
    ["a later version", () => lineOf(plain, "sallyport-pair:2:"), /version 2/],
    ["an endless line", () => "a".repeat(MAX_PAIRING_LINE_CHARACTERS + 1), /too long/],
    ["no JSON", () => lineOf(`{"token":"${token}"`), /not a JSON object/],
    ["JSON that is no object", () => lineOf("[1]"), /not a JSON object/],
    ["a key that is not known", () => lineOf({ ...plain, [token]: 1 }), /key that this program does not know/],
    ["no address", () => lineOf({ client: "lan", token }), /address is missing/],
    ["an address without port", () => lineOf({ ...plain, address: "edge" }), /address must be host:port/],
    ["port 0", () => lineOf({ ...plain, address: "edge:0" }), /address must be host:port/],
    ["port 65536", () => lineOf({ ...plain, address: "edge:65536" }), /address must be host:port/],
    ["an IPv6 address without brackets", () => lineOf({ ...plain, address: "::1:7443" }), /address must be host:port/],
    ["an address that is a URL", () => lineOf({ ...plain, address: "https://edge:1" }), /address must be host:port/],
    ["a client with a space", () => lineOf({ ...plain, client: "l an" }), /client must be/],
    ["a short token", () => lineOf({ ...plain, token: token.slice(1) }), /token must be 43 base64url characters/],
    ["a token that is a number", () => lineOf({ ...plain, token: 1 }), /token is missing or of the wrong type/],
    ["a pin without certificate", () => lineOf({ ...plain, pin: pinned.pin }), /both/],
    ["a certificate without pin", () => lineOf({ ...plain, certificate: pinned.certificate }), /both/],
    ["the pin of another certificate", () => lineOf({ ...pinned, pin: "0".repeat(64) }), /pin does not belong/],
    ["a certificate that is none", () => lineOf({ ...pinned, certificate: "AAAA" }), /certificate must be/],
    ["a pin in capitals", () => lineOf({ ...pinned, pin: pinned.pin?.toUpperCase() }), /pin must be 64/],
  ])("%s", (_name, line, reason) => {
    const message = reasonOf(line());
    expect(message).toMatch(reason);
    expect(message).not.toContain(token);
    expect(message).not.toContain(token.slice(1));
  });
});

test("an address is split into host and port", () => {
  expect(splitAddress("edge.example.com:7443")).toEqual({ host: "edge.example.com", port: 7443 });
  expect(splitAddress("[2001:db8::1]:443")).toEqual({ host: "2001:db8::1", port: 443 });
  expect(() => splitAddress("edge")).toThrow(/host:port/);
});
