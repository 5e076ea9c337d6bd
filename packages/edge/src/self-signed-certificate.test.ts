import { createPrivateKey, X509Certificate } from "node:crypto";
import { describe, expect, test } from "vitest";
import { makeSelfSignedCertificate } from "./self-signed-certificate.ts";

test("the certificate belongs to its P-256 key, signs itself and is no authority", async () => {
  const { key, certificate } = await makeSelfSignedCertificate({ host: "edge.example.com" });
  const parsed = new X509Certificate(certificate);
  const privateKey = createPrivateKey(key);
  expect(privateKey.asymmetricKeyDetails).toEqual({ namedCurve: "prime256v1" });
  expect(parsed.checkPrivateKey(privateKey)).toBe(true);
  expect(parsed.verify(parsed.publicKey)).toBe(true);
  expect(parsed.ca).toBe(false);
});

test("it is valid for ten years from the day before", async () => {
  const parsed = new X509Certificate(
    (await makeSelfSignedCertificate({ host: "edge", from: new Date("2026-03-01T00:00:00Z") })).certificate,
  );
  expect(new Date(parsed.validFrom).toISOString()).toBe("2026-02-28T00:00:00.000Z");
  expect(new Date(parsed.validTo).toISOString()).toBe("2036-03-01T00:00:00.000Z");
});

describe.each([
  ["edge.example.com", "DNS:edge.example.com"],
  ["192.0.2.1", "IP Address:192.0.2.1"],
  ["2001:db8::1", "IP Address:2001:DB8:0:0:0:0:0:1"],
])("for %s", (host, subjectAltName) => {
  test("it carries the public address", async () => {
    const { certificate } = await makeSelfSignedCertificate({ host });
    expect(new X509Certificate(certificate).subjectAltName).toBe(subjectAltName);
  });
});

test("two certificates never share a key or a serial number", async () => {
  const [a, b] = await Promise.all([1, 2].map(() => makeSelfSignedCertificate({ host: "edge" })));
  expect(a!.key).not.toBe(b!.key);
  expect(new X509Certificate(a!.certificate).serialNumber).not.toBe(new X509Certificate(b!.certificate).serialNumber);
});
