import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { ProtocolError } from "./codes.ts";
import {
  DATA_HEADER_BYTES,
  decodeFrame,
  encodeFrame,
  type Frame,
  FrameType,
  MAX_CONTROL_FRAME_BYTES,
  MAX_DATA_BYTES,
  MAX_FRAME_BYTES,
} from "./frame.ts";

interface Vectors {
  readonly valid: readonly { readonly name: string; readonly hex: string; readonly frame: Record<string, unknown> }[];
  readonly invalid: readonly {
    readonly name: string;
    readonly hex: string;
    readonly reason: string;
    readonly code: number;
  }[];
}

// The vectors were made by a program that shares no code with this package.
const vectors = JSON.parse(
  readFileSync(new URL("../../../test/vectors/frames.json", import.meta.url), "utf8"),
) as Vectors;

const bytesOf = (hex: string) => new Uint8Array(Buffer.from(hex, "hex"));
/** In the vectors, bytes of data are written in hexadecimal. */
const plain = (frame: Frame) =>
  frame.type === "data" ? { ...frame, bytes: Buffer.from(frame.bytes).toString("hex") } : frame;
const frameOf = (value: Record<string, unknown>) =>
  ({ ...value, ...(typeof value["bytes"] === "string" ? { bytes: bytesOf(value["bytes"]) } : {}) }) as Frame;

/** What the decoder throws; undefined when it accepts. Everything but a ProtocolError fails the test. */
function refusal(bytes: Uint8Array): ProtocolError | undefined {
  try {
    decodeFrame(bytes);
    return undefined;
  } catch (error) {
    if (error instanceof ProtocolError) return error;
    throw error;
  }
}

function isRefused(bytes: Uint8Array): boolean {
  return refusal(bytes) !== undefined;
}

describe("a frame", () => {
  it("has vectors for every type, valid and invalid", () => {
    expect([vectors.valid.length, vectors.invalid.length]).toEqual([33, 90]);
    expect(new Set(vectors.valid.map(({ frame }) => frame["type"]))).toEqual(new Set(Object.keys(FrameType)));
  });

  it.each(vectors.valid)("reads $name", ({ hex, frame }) => {
    expect(plain(decodeFrame(bytesOf(hex)))).toEqual(frame);
  });

  it.each(vectors.valid)("writes $name as it was read", ({ hex, frame }) => {
    expect(Buffer.from(encodeFrame(frameOf(frame))).toString("hex")).toBe(hex);
  });

  it.each(vectors.valid.filter(({ frame }) => frame["type"] !== "data"))("refuses every prefix of $name", ({ hex }) => {
    const bytes = bytesOf(hex);
    const prefixes = Array.from(bytes, (_, length) => bytes.subarray(0, length));
    expect(prefixes.filter((prefix) => !isRefused(prefix))).toEqual([]);
  });

  it.each(vectors.valid.filter(({ frame }) => frame["type"] !== "data"))(
    "refuses a byte behind $name, whatever it is",
    ({ hex }) => {
      const longer = Array.from({ length: 256 }, (_, value) => new Uint8Array([...bytesOf(hex), value]));
      expect(longer.filter((bytes) => !isRefused(bytes))).toEqual([]);
    },
  );

  // A message holds one frame, and the rest of a DATA frame is data: cut short, it is a shorter one.
  it("refuses every prefix of data that has no data in it", () => {
    const bytes = encodeFrame({ type: "data", stream: 1, offset: 5, bytes: new Uint8Array(1) });
    const prefixes = Array.from(bytes, (_, length) => bytes.subarray(0, length));
    expect(prefixes.filter((prefix) => !isRefused(prefix))).toEqual([]);
  });

  it.each(vectors.invalid)("refuses $name", ({ hex, reason, code }) => {
    const error = refusal(bytesOf(hex));
    expect({ reason: error?.message, code: error?.code }).toEqual({ reason, code });
  });

  it.each([0x10, 0x03, 0x91])("refuses 64 KiB that begin with %i before it reads them", (type) => {
    const bytes = new Uint8Array(65_536).fill(0x91);
    bytes[0] = type;
    expect(refusal(bytes)).toMatchObject({ message: "frame is too large", code: 4413 });
  });

  it("refuses each byte that is no type, alone and with a body", () => {
    const known = new Set<number>(Object.values(FrameType));
    const unknown = Array.from({ length: 256 }, (_, type) => type).filter((type) => !known.has(type));
    for (const type of unknown) {
      expect(refusal(new Uint8Array([type]))?.message).toBe("unknown frame type");
      expect(refusal(new Uint8Array([type, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]))?.message).toBe("unknown frame type");
    }
  });

  it("fits one TLS record with the longest WebSocket header", () => {
    expect(MAX_FRAME_BYTES + 8).toBe(16_384);
    expect(MAX_DATA_BYTES + DATA_HEADER_BYTES).toBe(MAX_FRAME_BYTES);
  });

  it("views the message that carried it and copies nothing", () => {
    const message = encodeFrame({ type: "data", stream: 1, offset: 0, bytes: new Uint8Array([1, 2, 3]) });
    const frame = decodeFrame(message);
    expect(frame.type === "data" && frame.bytes.buffer === message.buffer).toBe(true);
  });

  it("never shows a value of the peer in its refusal", () => {
    const secret = "canary-5f2a";
    const body = encodeFrame({ type: "goAway", code: 4000, reason: secret });
    const spoilt = Buffer.from(body);
    // The reason becomes too wild for a log, and nothing of it may reach one.
    spoilt[spoilt.indexOf(secret)] = 0x1b;
    expect(refusal(spoilt)?.message).toBe("goAway is malformed: reason: invalid_format");
  });
});

describe("what this end sends", () => {
  const open = {
    type: "open",
    stream: 1,
    connection: "c",
    target: "t",
    deployment: "d",
    partner: "",
    limit: 0,
  } as const;

  it.each<[string, Frame]>([
    ["a target that is too long", { ...open, target: "t".repeat(301) }],
    ["a target that is no ASCII", { ...open, target: "sftp–1" }],
    ["a stream that does not exist", { ...open, stream: 0 }],
    ["an address with a line feed", { type: "accept", stream: 1, address: "a\n", limit: 0 }],
    ["a reason that is too long", { type: "goAway", code: 4000, reason: "r".repeat(201) }],
  ])("is checked before it goes: %s", (_, frame) => {
    expect(() => encodeFrame(frame)).toThrow(RangeError);
  });

  it("names the field and not its value", () => {
    expect(() => encodeFrame({ ...open, target: "canary\n" })).toThrow(/^open cannot be sent: target: invalid_format$/);
  });

  it("stays below the bound of a control frame at its longest", () => {
    const lengths = vectors.valid
      .filter(({ frame }) => ["hello", "welcome", "open", "accept", "goAway"].includes(String(frame["type"])))
      .map(({ hex }) => hex.length / 2);
    expect(Math.max(...lengths)).toBeLessThan(MAX_CONTROL_FRAME_BYTES / 2);
  });
});
