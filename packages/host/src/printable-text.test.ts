import { expect, test } from "vitest";
import { printableText } from "./printable-text.ts";

test.each([
  ["plain text", "plain text"],
  ["größe 漢字 🚪", "größe 漢字 🚪"],
  ["a\nb\r\tc", "a\\u000ab\\u000d\\u0009c"],
  ["\u001b[31mred\u007f", "\\u001b[31mred\\u007f"],
  ["\u009b31m\u0085", "\\u009b31m\\u0085"],
  ["a\u2028b\u2029c", "a\\u2028b\\u2029c"],
  ["abc\u202egpj.exe\u2066", "abc\\u202egpj.exe\\u2066"],
  ["\ud800x", "\\ud800x"],
  ["\u{e0041}", "\\udb40\\udc41"],
])("%j is printed as %j", (text, printed) => {
  expect(printableText(text)).toBe(printed);
});

test("a text that is too long is cut and says so", () => {
  expect(printableText("abcdef", 3)).toBe("abc…");
  expect(printableText("abc", 3)).toBe("abc");
});
