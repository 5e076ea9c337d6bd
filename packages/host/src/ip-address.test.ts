import { isIP } from "node:net";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  cidrContains,
  formatCidr,
  formatIpAddress,
  type IpAddress,
  isSpecialAddress,
  parseCidr,
  parseIpAddress,
  parsePeerAddress,
  readIpAddress,
} from "./ip-address.ts";

const reformat = (text: string): string | undefined => {
  const address = parseIpAddress(text);
  return address && formatIpAddress(address);
};

/** IPv6 in the spellings the grammar allows, right and nearly right. */
const anyText = fc.oneof(
  fc.ipV4(),
  fc.ipV6(),
  fc.ipV4Extended(),
  fc.string({ unit: fc.constantFrom(..."0123456789abcdefAF:.%/x".split("")), maxLength: 45 }),
  fc
    .tuple(fc.array(fc.constantFrom("0", "1", "ffff", "FFFF", "00", "abcd", "1.2.3.4", ""), { maxLength: 9 }))
    .map(([groups]) => groups.join(":")),
);

describe("an address", () => {
  test.each([
    ["0.0.0.0", "0.0.0.0"],
    ["255.255.255.255", "255.255.255.255"],
    ["192.0.2.1", "192.0.2.1"],
    ["::", "::"],
    ["::1", "::1"],
    ["1::", "1::"],
    ["2001:DB8:0:0:0:0:0:1", "2001:db8::1"],
    ["2001:0db8::0001", "2001:db8::1"],
    ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
    ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
    ["1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"],
    ["64:ff9b::192.0.2.1", "64:ff9b::c000:201"],
    ["::ffff:192.0.2.1", "192.0.2.1"],
    ["::FFFF:c000:201", "192.0.2.1"],
    ["0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"],
    ["::ffff:0:192.0.2.1", "::ffff:0:c000:201"],
    ["::192.0.2.1", "::c000:201"],
  ])("%s is read and written as %s", (text, expected) => {
    expect(reformat(text)).toBe(expected);
  });

  test.each([
    "",
    " ",
    "10.1",
    "10",
    "127.1",
    "2130706433",
    "017700000001",
    "0x7f.1",
    "0x7f000001",
    "010.0.0.1",
    "10.0.0.01",
    "00.0.0.0",
    "10.0.0.256",
    "10.0.0.1.",
    ".10.0.0.1",
    "10..0.1",
    "10.0.0.1.1",
    "10.0.0.-1",
    "+10.0.0.1",
    "1e1.0.0.1",
    " 10.0.0.1",
    "10.0.0.1 ",
    "10.0.0.1\n",
    "10.0.0.1\0",
    "\uff11\uff10.0.0.1",
    "10\u30020\u30020\u30021",
    "\u0661\u0660.0.0.1",
    "fe80::1%eth0",
    "fe80::1%",
    "::ffff:010.0.0.1",
    "::ffff:10.1",
    "::ffff:127.0.0.1%lo",
    "[::1]",
    ":",
    ":::",
    ":1",
    "1:",
    "1:::2",
    "1::2::3",
    "12345::",
    "::g",
    "1:2:3:4:5:6:7",
    "1:2:3:4:5:6:7:8:9",
    "1:2:3:4:5:6:7:8::",
    "::1.2.3.4:1",
    "1:2:3:4:5:6:7:1.2.3.4",
    "localhost",
  ])("%j is none", (text) => {
    expect(parseIpAddress(text)).toBeUndefined();
  });

  test("is accepted exactly when Node accepts it, zones apart", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const family = text.includes("%") ? 0 : isIP(text);
        const read = readIpAddress(text, new Uint8Array(16));
        expect(read === 0).toBe(family === 0);
        expect(read === 4 || family !== 4).toBe(true);
      }),
      { numRuns: 20_000 },
    );
  });

  test("survives being written and read again", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), fc.constantFrom(0, 2, 6, 10), (random, zeros) => {
        const bytes = random.slice().fill(0, 2, 2 + zeros);
        bytes[0] = 0x20;
        const text = formatIpAddress({ family: 6, bytes });
        expect(isIP(text)).toBe(6);
        expect(parseIpAddress(text)?.bytes).toEqual(bytes);
      }),
      { numRuns: 5_000 },
    );
  });

  test("is read up to the given end and not beyond", () => {
    const into = new Uint8Array(16);
    expect(readIpAddress("10.0.0.123", into, 8)).toBe(4);
    expect([...into.subarray(0, 4)]).toEqual([10, 0, 0, 1]);
    expect(readIpAddress("::1:2", into, 4)).toBe(0);
    expect(readIpAddress("::1:2", into, 3)).toBe(6);
    expect(readIpAddress("::", into, 1)).toBe(0);
    expect(readIpAddress("10.0.0.1", into, 0)).toBe(0);
  });

  test.each([
    ["fe80::1%eth0", "fe80::1"],
    ["::ffff:127.0.0.1", "127.0.0.1"],
    ["::ffff:127.0.0.1%lo", "127.0.0.1"],
    ["10.0.0.1", "10.0.0.1"],
  ])("of a peer, %s, is taken as %s", (text, expected) => {
    expect(formatIpAddress(parsePeerAddress(text)!)).toBe(expected);
  });

  test.each([undefined, "", "%", "%eth0", "nonsense"])("of a peer is unknown for %j", (text) => {
    expect(parsePeerAddress(text)).toBeUndefined();
  });
});

describe("a CIDR", () => {
  test.each([
    ["10.0.0.0/8", "10.0.0.0/8"],
    ["0.0.0.0/0", "0.0.0.0/0"],
    ["10.1.2.3", "10.1.2.3/32"],
    ["10.1.2.3/32", "10.1.2.3/32"],
    ["::/0", "::/0"],
    ["2001:db8::/33", "2001:db8::/33"],
    ["2001:db8::1", "2001:db8::1/128"],
    ["::ffff:10.0.0.0/104", "10.0.0.0/8"],
    ["::ffff:0:0/96", "0.0.0.0/0"],
    ["::ffff:10.1.2.3/128", "10.1.2.3/32"],
    ["::ffff:10.1.2.3", "10.1.2.3/32"],
  ])("%s is read as %s", (text, expected) => {
    expect(formatCidr(parseCidr(text))).toBe(expected);
  });

  test.each([
    ["10.0.0.5/8", "host bits set; did you mean 10.0.0.0/8"],
    ["10.0.0.1/0", "host bits set; did you mean 0.0.0.0/0"],
    ["2001:db8::1/64", "host bits set; did you mean 2001:db8::/64"],
    ["::ffff:10.0.0.5/104", "host bits set; did you mean 10.0.0.0/8"],
    ["::ffff:10.0.0.0/32", "prefix length of an IPv4-mapped address must be 96-128; write it as an IPv4 CIDR"],
    ["10.0.0.0/33", "prefix length must be 0-32"],
    ["10.0.0.0/08", "prefix length must be 0-32"],
    ["10.0.0.0/-1", "prefix length must be 0-32"],
    ["10.0.0.0/+8", "prefix length must be 0-32"],
    ["10.0.0.0/8.5", "prefix length must be 0-32"],
    ["10.0.0.0/8 ", "prefix length must be 0-32"],
    ["10.0.0.0/", "prefix length must be 0-32"],
    ["10.0.0.0/8/8", "prefix length must be 0-32"],
    ["10.0.0.0/0x8", "prefix length must be 0-32"],
    ["10.0.0.0/1e1", "prefix length must be 0-32"],
    ["10.0.0.0/255.0.0.0", "prefix length must be 0-32"],
    ["10.0.0.0/\uff18", "prefix length must be 0-32"],
    ["::/129", "prefix length must be 0-128"],
    ["::/999", "prefix length must be 0-128"],
    ["10/8", "not a canonical IP address or CIDR"],
    ["10.0/8", "not a canonical IP address or CIDR"],
    ["010.0.0.0/8", "not a canonical IP address or CIDR"],
    ["0x0a.0.0.0/8", "not a canonical IP address or CIDR"],
    ["fe80::1%eth0/64", "not a canonical IP address or CIDR"],
    ["fe80::%eth0/10", "not a canonical IP address or CIDR"],
    ["1\uff10.0.0.0/8", "not a canonical IP address or CIDR"],
    ["/8", "not a canonical IP address or CIDR"],
    ["", "not a canonical IP address or CIDR"],
    ["*", "not a canonical IP address or CIDR"],
    ["any", "not a canonical IP address or CIDR"],
  ])("%j is refused: %s", (text, reason) => {
    expect(() => parseCidr(text)).toThrow(new Error(reason));
  });

  test.each([
    ["10.0.0.0/8", "10.255.0.1", true],
    ["10.0.0.0/8", "11.0.0.0", false],
    ["10.0.0.0/9", "10.127.255.255", true],
    ["10.0.0.0/9", "10.128.0.0", false],
    ["10.1.2.3", "10.1.2.3", true],
    ["10.1.2.3", "10.1.2.2", false],
    ["0.0.0.0/0", "255.1.2.3", true],
    ["0.0.0.0/0", "2001:db8::1", false],
    ["0.0.0.0/0", "::", false],
    ["::/0", "2001:db8::1", true],
    ["::/0", "10.0.0.1", false],
    ["::/0", "::ffff:10.0.0.1", false],
    ["::ffff:10.0.0.0/104", "10.0.0.1", true],
    ["10.0.0.0/8", "::10.1.2.3", false],
    ["10.0.0.0/8", "64:ff9b::10.1.2.3", false],
    ["2001:db8::/33", "2001:db8:7fff::", true],
    ["2001:db8::/33", "2001:db8:8000::", false],
  ])("%s and %s: %s", (cidr, address, expected) => {
    expect(cidrContains(parseCidr(cidr), parseIpAddress(address)!)).toBe(expected);
  });
});

describe("a special address", () => {
  test.each([
    ["127.0.0.1", "loopback"],
    ["127.255.255.254", "loopback"],
    ["::1", "loopback"],
    ["::ffff:127.0.0.1", "loopback"],
    ["::127.0.0.1", "loopback"],
    ["64:ff9b::127.0.0.1", "loopback"],
    ["2002:7f00:1::", "loopback"],
    ["169.254.1.1", "link-local"],
    ["fe80::1", "link-local"],
    ["febf::1", "link-local"],
    ["224.0.0.1", "multicast"],
    ["239.255.255.255", "multicast"],
    ["ff02::1", "multicast"],
    ["0.0.0.0", "unspecified"],
    ["0.1.2.3", "unspecified"],
    ["::", "unspecified"],
    ["255.255.255.255", "broadcast"],
    ["169.254.169.254", "metadata"],
    ["::ffff:169.254.169.254", "metadata"],
    ["64:ff9b::169.254.169.254", "metadata"],
    ["fd00:ec2::254", "metadata"],
    ["100.100.100.200", "metadata"],
  ])("%s is %s", (text, expected) => {
    expect(isSpecialAddress(parseIpAddress(text) as IpAddress)).toBe(expected);
  });

  test.each([
    "10.0.0.1",
    "192.168.1.1",
    "8.8.8.8",
    "128.0.0.1",
    "2001:db8::1",
    "fd00::1",
    "fec0::1",
    "64:ff9b::8.8.8.8",
  ])("%s is not one", (text) => {
    expect(isSpecialAddress(parseIpAddress(text) as IpAddress)).toBeUndefined();
  });
});
