import { describe, expect, test } from "vitest";
import { createToken, decodeToken, deriveVerifier, encodeToken, TOKEN_BYTES } from "./token.ts";

const token = Buffer.alloc(TOKEN_BYTES, 7);

test("a token survives being written and read", () => {
  const made = createToken();
  expect(made).toHaveLength(TOKEN_BYTES);
  expect(encodeToken(made)).toMatch(/^[A-Za-z0-9_-]{43}$/);
  expect(decodeToken(encodeToken(made))).toEqual(made);
});

test("two tokens are different", () => {
  expect(createToken().equals(createToken())).toBe(false);
});

const valid = encodeToken(token);
describe.each([
  ["an empty text", ""],
  ["a token that lacks its last character", valid.slice(0, -1)],
  ["a token with one character too many", `${valid}A`],
  ["padding", `${valid}=`],
  ["a line break behind it", `${valid}\n`],
  ["plain base64 characters", `+/${valid.slice(2)}`],
  ["spare bits that are set", `${valid.slice(0, -1)}d`],
])("%s", (_name, text) => {
  test("is no token", () => {
    expect(decodeToken(text)).toBeUndefined();
  });
});

test("a verifier is the same on both ends and bound to token and client", () => {
  const verifier = deriveVerifier(token, "lan");
  expect(deriveVerifier(Buffer.from(token), "lan")).toEqual(verifier);
  expect(deriveVerifier(token, "lan2").key.equals(verifier.key)).toBe(false);
  expect(deriveVerifier(createToken(), "lan").key.equals(verifier.key)).toBe(false);
  expect(verifier.key.equals(token)).toBe(false);
});

test("a verifier does not change from version to version", () => {
  // From the definition: HKDF-SHA256, salt = client, info = "sallyport v1 verifier", computed with another implementation.
  expect(deriveVerifier(token, "lan").key.toString("hex")).toBe(
    "d8fff658a7ea1ef74fd0db0b7ef2d81bdd52d09e4d74b333f96beb8459c0f20d",
  );
});

test("a token's id is public: eight hexadecimal characters that differ between tokens and clients", () => {
  const ids = [deriveVerifier(token, "lan"), deriveVerifier(token, "lan2"), deriveVerifier(createToken(), "lan")].map(
    ({ tokenId }) => tokenId,
  );
  for (const id of ids) {
    expect(id).toMatch(/^[0-9a-f]{8}$/);
  }
  expect(new Set(ids).size).toBe(3);
});
