import { randomBytes } from "node:crypto";
import { describe, expect, test } from "vitest";
import {
  type AgentTranscript,
  agentProof,
  createNonce,
  type EdgeTranscript,
  edgeProof,
  findVerifier,
  formatAgentHello,
  formatEdgeHello,
  macsEqual,
  parseAgentHello,
  parseEdgeHello,
} from "./authentication.ts";
import { createToken, deriveVerifier } from "./token.ts";

const verifier = deriveVerifier(createToken(), "lan");
const transcript: AgentTranscript = {
  exporter: randomBytes(32),
  client: "lan",
  versions: [1, 2],
  agentNonce: createNonce(),
};
const edgeTranscript: EdgeTranscript = { ...transcript, version: 1, edgeNonce: createNonce() };

describe("the agent's proof", () => {
  const mac = agentProof(verifier.key, transcript);

  test("is found to belong to the token it was made with", () => {
    const other = deriveVerifier(createToken(), "lan");
    expect(findVerifier([verifier], transcript, mac)).toBe(verifier);
    expect(findVerifier([other, verifier], transcript, mac)).toBe(verifier);
    expect(findVerifier([verifier, other], transcript, mac)).toBe(verifier);
  });

  test("belongs to no other token, and to none when the client is unknown", () => {
    expect(findVerifier([deriveVerifier(createToken(), "lan")], transcript, mac)).toBeUndefined();
    expect(findVerifier([], transcript, mac)).toBeUndefined();
  });

  test.each<[string, Partial<AgentTranscript>]>([
    ["TLS connection", { exporter: randomBytes(32) }],
    ["client", { client: "lan2" }],
    ["list of versions", { versions: [2, 1] }],
    ["list of versions cut short", { versions: [1] }],
    ["nonce", { agentNonce: createNonce() }],
  ])("does not hold for another %s", (_name, change) => {
    expect(findVerifier([verifier], { ...transcript, ...change }, mac)).toBeUndefined();
  });

  test("does not hold when bytes move from one field to the next", () => {
    const { exporter } = transcript;
    const shifted = { ...transcript, exporter: exporter.subarray(0, 31), client: `${String.fromCharCode(0)}lan` };
    expect(agentProof(verifier.key, shifted).equals(mac)).toBe(false);
  });
});

describe("the edge's proof", () => {
  const mac = edgeProof(verifier.key, edgeTranscript);

  test.each<[string, Partial<EdgeTranscript>]>([
    ["TLS connection", { exporter: randomBytes(32) }],
    ["client", { client: "lan2" }],
    ["list of versions", { versions: [1] }],
    ["version", { version: 2 }],
    ["nonce of the agent", { agentNonce: createNonce() }],
    ["nonce of its own", { edgeNonce: createNonce() }],
  ])("differs for another %s", (_name, change) => {
    expect(edgeProof(verifier.key, { ...edgeTranscript, ...change }).equals(mac)).toBe(false);
  });

  test("is never what the agent sent, whatever nonces are chosen", () => {
    expect(agentProof(verifier.key, transcript).equals(mac)).toBe(false);
    expect(findVerifier([verifier], transcript, mac)).toBeUndefined();
  });
});

test("MACs of another size are unequal and no error", () => {
  const mac = randomBytes(32);
  expect(macsEqual(mac, Buffer.from(mac))).toBe(true);
  expect(macsEqual(mac, mac.subarray(1))).toBe(false);
  expect(macsEqual(Buffer.alloc(0), Buffer.alloc(0))).toBe(false);
});

describe("the headers", () => {
  const agentHello = { client: "lan", nonce: createNonce(), versions: [1, 12], mac: randomBytes(32) };
  const edgeHello = { nonce: createNonce(), version: 3, mac: randomBytes(32) };

  test("survive being written and read", () => {
    expect(parseAgentHello(formatAgentHello(agentHello))).toEqual(agentHello);
    expect(parseEdgeHello(formatEdgeHello(edgeHello))).toEqual(edgeHello);
  });

  const good = formatAgentHello(agentHello);
  test.each([
    ["nothing", ""],
    ["another scheme", good.replace("Sallyport", "Bearer")],
    ["no client", good.replace('client="lan", ', "")],
    ["an empty client", good.replace('"lan"', '""')],
    ["a client with a quote", good.replace('"lan"', '"l"an"')],
    ["a client of 256 characters", good.replace('"lan"', `"${"a".repeat(256)}"`)],
    ["a client with a path", good.replace('"lan"', '"../lan"')],
    ["a nonce of 15 bytes", good.replace(/nonce="[^"]*"/, `nonce="${randomBytes(15).toString("base64url")}"`)],
    ["a nonce of 65 bytes", good.replace(/nonce="[^"]*"/, `nonce="${randomBytes(65).toString("base64url")}"`)],
    ["no versions", good.replace('"1,12"', '""')],
    ["version 0", good.replace('"1,12"', '"0"')],
    ["a version with a leading zero", good.replace('"1,12"', '"01"')],
    ["a version that is no number", good.replace('"1,12"', '"1e3"')],
    ["17 versions", good.replace('"1,12"', `"${Array.from({ length: 17 }, (_, i) => i + 1).join(",")}"`)],
    ["a MAC that is too short", good.replace(/mac="[^"]*"/, `mac="${randomBytes(31).toString("base64url")}"`)],
    ["a MAC that is too long", good.replace(/mac="[^"]*"/, `mac="${randomBytes(33).toString("base64url")}"`)],
    ["something behind", `${good}, x="1"`],
    ["the header twice", `${good}, ${good}`],
  ])("are refused with %s", (_name, header) => {
    expect(parseAgentHello(header)).toBeUndefined();
    expect(parseEdgeHello(header)).toBeUndefined();
  });

  test("are refused when absent", () => {
    expect(parseAgentHello(undefined)).toBeUndefined();
    expect(parseEdgeHello(undefined)).toBeUndefined();
  });

  test("are refused at every prefix", () => {
    const edge = formatEdgeHello(edgeHello);
    for (let length = 0; length < good.length; length++) {
      expect(parseAgentHello(good.slice(0, length))).toBeUndefined();
    }
    for (let length = 0; length < edge.length; length++) {
      expect(parseEdgeHello(edge.slice(0, length))).toBeUndefined();
    }
  });
});
