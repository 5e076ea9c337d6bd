import { expect, test } from "vitest";
import { crc32c } from "./crc32c.ts";

test.each([
  ["the check value of the polynomial", Buffer.from("123456789"), 0xe3069283],
  ["32 bytes of zeros (RFC 3720 B.4)", Buffer.alloc(32), 0x8a9136aa],
  ["32 bytes of ones (RFC 3720 B.4)", Buffer.alloc(32, 0xff), 0x62a8ab43],
  ["nothing", Buffer.alloc(0), 0],
])("the checksum of %s is right", (_, bytes, sum) => {
  expect(crc32c(bytes)).toBe(sum);
});

test("a checksum goes on over pieces", () => {
  expect(crc32c(Buffer.from("6789"), crc32c(Buffer.from("12345")))).toBe(0xe3069283);
});
