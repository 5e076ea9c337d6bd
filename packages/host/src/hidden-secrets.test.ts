import { expect, test } from "vitest";
import { ExitCode, Failure } from "./failure.ts";
import { hideSecrets } from "./hidden-secrets.ts";

const token = "3M4LN2a45Nus49m3S5POQk9J3fzR0BMfS1OhZS40Ybk";

test.each([
  [token, "(hidden)"],
  [`/nowhere/${token}/edge.yaml`, "/nowhere/(hidden)/edge.yaml"],
  [`${token}: unknown key`, "(hidden): unknown key"],
  ["sallyport-pair:1:eyJhZGRyZXNzIjoi:be55c9c1: no such client", "(hidden) no such client"],
  ["sallyport-pair:1:eyJhZGRyZXNz…: unknown key", "(hidden) unknown key"],
  [`a ${token} b ${token}`, "a (hidden) b (hidden)"],
])("of %j is shown: %j", (text, shown) => {
  expect(hideSecrets(text)).toBe(shown);
});

test.each([
  "/etc/sallyport/edge.yaml:3:1",
  `${token}x`,
  token.slice(1),
  "partner-sftp",
  "it begins with sallyport-pair:",
  "",
])("%j is shown as it is", (text) => {
  expect(hideSecrets(text)).toBe(text);
});

test("no failure shows a secret, whether in its place or in its reason", () => {
  const failure = new Failure(ExitCode.usage, token, `no deployment ${token}`);
  expect([failure.where, failure.what, failure.message, String(failure)].join("\n")).not.toContain(token);
});
