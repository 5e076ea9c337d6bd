import { expect, test } from "vitest";
import { sourcePrefix, unmapAddress } from "./source-prefix.ts";

test.each([
  ["192.0.2.1", "192.0.2.1"],
  ["::ffff:192.0.2.1", "192.0.2.1"],
  ["::FFFF:192.0.2.1", "192.0.2.1"],
  ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"],
  ["2001:db8:1:2::6", "2001:db8:1:2::/64"],
  ["2001:db8:1:2::", "2001:db8:1:2::/64"],
  ["2001:0DB8:0001:0002::1", "2001:db8:1:2::/64"],
  ["2001:db8::1", "2001:db8:0:0::/64"],
  ["::1", "0:0:0:0::/64"],
  ["::", "0:0:0:0::/64"],
  ["64:ff9b::192.0.2.1", "64:ff9b:0:0::/64"],
  ["1::2:3:4:5:6.7.8.9", "1:0:2:3::/64"],
  ["fe80::1%eth0", "fe80:0:0:0::/64"],
  ["fe80::2%eth1", "fe80:0:0:0::/64"],
  ["", "unknown"],
  [undefined, "unknown"],
])("%s counts as %s", (address, prefix) => {
  expect(sourcePrefix(address)).toBe(prefix);
});

test("only a mapped IPv4 address is shown as IPv4", () => {
  expect(unmapAddress("::ffff:10.0.0.1")).toBe("10.0.0.1");
  expect(unmapAddress("::ffff:a00:1")).toBe("::ffff:a00:1");
  expect(unmapAddress("2001:db8::1")).toBe("2001:db8::1");
});
