import { encode } from "@msgpack/msgpack";
import { encodeFrame, type Frame, type PingFrame } from "../../packages/protocol/src/index.ts";

const id = "ab".repeat(16);

type FrameOf<Type extends Frame["type"]> = Type extends "ping" | "pong" ? PingFrame : Extract<Frame, { type: Type }>;

/** One valid frame of each type, on stream 1 where it has a stream. */
export const validFrames: { readonly [Type in Frame["type"]]: FrameOf<Type> } = {
  hello: {
    type: "hello",
    agent: "a",
    process: id,
    session: "",
    features: [],
    initialCredit: 16_384,
    maxStreams: 10,
    links: 1,
  },
  welcome: { type: "welcome", edge: "e", session: id, resumed: false, features: [], resumeTimeoutMs: 1_000 },
  open: {
    type: "open",
    stream: 1,
    connection: "c-1",
    target: "echo",
    deployment: "d",
    partner: "192.0.2.1:1",
    limit: 65_536,
  },
  accept: { type: "accept", stream: 1, address: "192.0.2.1:1", limit: 65_536 },
  goAway: { type: "goAway", code: 4_000, reason: "" },
  data: { type: "data", stream: 1, offset: 0, bytes: new Uint8Array([1]) },
  end: { type: "end", stream: 1, offset: 0 },
  reset: { type: "reset", stream: 1, offset: 0, code: 0 },
  closed: { type: "closed", stream: 1 },
  credit: { type: "credit", stream: 1, consumed: 0, limit: 1, endConsumed: false },
  resume: {
    type: "resume",
    stream: 1,
    epoch: 1,
    answers: 0,
    received: 0,
    consumed: 0,
    limit: 1,
    endReceived: false,
    endConsumed: false,
  },
  ping: { type: "ping", token: 1 },
  pong: { type: "pong", token: 1 },
};

const binaryTypes = ["data", "end", "reset", "closed", "credit", "resume", "ping", "pong"] as const;
const controlTypes = ["hello", "welcome", "open", "accept", "goAway"] as const;

/** A control frame with this body, whatever it is. */
export function control(type: (typeof controlTypes)[number], body: unknown): Uint8Array {
  return Buffer.concat([encodeFrame(validFrames[type]).subarray(0, 1), encode(body)]);
}

/** The fields of a valid message, for a test to spoil. */
export function fields(type: (typeof controlTypes)[number]): Record<string, unknown> {
  const { type: _, ...message } = validFrames[type];
  return { ...message };
}

function changed(frame: Uint8Array, at: number, value: number): Uint8Array {
  const copy = Uint8Array.from(frame);
  copy[at] = value;
  return copy;
}

/** A frame that no state allows, with the code that ends the link. */
export type MalformedFrame = readonly [name: string, bytes: Uint8Array, code: number];

/** Every type that a peer can send, spoiled in every way that its form knows. None of them may have any effect. */
export function malformedFrames(): MalformedFrame[] {
  const frames: MalformedFrame[] = [
    ["an empty message", new Uint8Array(0), 4400],
    ["type 0", Uint8Array.of(0), 4400],
    ["type 0x16", Uint8Array.of(0x16, 0, 0, 0, 1), 4400],
    ["type 0xff", Uint8Array.of(0xff), 4400],
    ["data without bytes", encodeFrame(validFrames.data).subarray(0, 13), 4400],
    ["the greatest frame of an unknown type", new Uint8Array(16_376).fill(0x7f), 4413],
    ["one byte more than a message may have", new Uint8Array(16_377).fill(0x10), 1009],
    ["a control frame of 5,000 nested arrays", Buffer.concat([Uint8Array.of(0x03), Buffer.alloc(5_000, 0x91)]), 4413],
    ["a control frame of 4,000 nested arrays", Buffer.concat([Uint8Array.of(0x03), Buffer.alloc(4_000, 0x91)]), 4400],
    [
      "a map that declares 2^32-1 entries",
      Buffer.concat([Uint8Array.of(0x05, 0xdf), Buffer.alloc(4, 0xff), Buffer.alloc(8)]),
      4400,
    ],
    ["a text that declares 2^32-1 bytes", Uint8Array.of(0x05, 0x81, 0xdb, 0xff, 0xff, 0xff, 0xff, 0x61), 4400],
  ];
  for (const type of binaryTypes) {
    const frame = encodeFrame(validFrames[type]);
    frames.push([`${type}, the type byte alone`, frame.subarray(0, 1), 4400]);
    if (type !== "data") {
      frames.push([`${type}, one byte short`, frame.subarray(0, -1), 4400]);
      frames.push([`${type}, one byte long`, Buffer.concat([frame, Buffer.alloc(1)]), 4400]);
    }
    if (type !== "ping" && type !== "pong") frames.push([`${type} of stream 0`, changed(frame, 4, 0), 4400]);
  }
  for (const type of ["data", "end", "reset", "credit"] as const) {
    frames.push([`${type} at an offset beyond 2^53`, changed(encodeFrame(validFrames[type]), 5, 0xff), 4400]);
  }
  frames.push(["ping with a token beyond 2^53", changed(encodeFrame(validFrames.ping), 1, 0xff), 4400]);
  frames.push(["credit with an unknown flag", changed(encodeFrame(validFrames.credit), 21, 0x82), 4400]);
  frames.push(["resume with an unknown flag", changed(encodeFrame(validFrames.resume), 37, 0x84), 4400]);
  frames.push(["resume request 0", changed(encodeFrame(validFrames.resume), 8, 0), 4400]);
  for (const type of controlTypes) {
    const message = fields(type);
    const [first] = Object.keys(message) as [string];
    frames.push([`${type} without body`, control(type, 0).subarray(0, 1), 4400]);
    frames.push([`${type}, one byte short`, encodeFrame(validFrames[type]).subarray(0, -1), 4400]);
    frames.push([
      `${type} with bytes behind it`,
      Buffer.concat([encodeFrame(validFrames[type]), Buffer.alloc(1)]),
      4400,
    ]);
    frames.push([`${type} that is a list`, control(type, Object.values(message)), 4400]);
    frames.push([`${type} with an unknown key`, control(type, { ...message, host: "10.0.0.9" }), 4400]);
    frames.push([`${type} without its first key`, control(type, { ...message, [first]: undefined }), 4400]);
    frames.push([`${type} with a key of another kind`, control(type, { ...message, [first]: { a: 1 } }), 4400]);
    frames.push([`${type} with __proto__`, spoiledKey(type, "__proto__"), 4400]);
    frames.push([`${type} with a repeated key`, repeatedKey(type), 4400]);
  }
  return frames;
}

/** A message with one key more. The msgpack encoder of JavaScript objects cannot write these, so the map is put together by hand. */
export function spoiledKey(type: (typeof controlTypes)[number], key: string): Uint8Array {
  return handMadeMap(type, [...Object.entries(fields(type)), [key, { polluted: true }]]);
}

/** A message whose first key comes again at its end. */
export function repeatedKey(type: (typeof controlTypes)[number]): Uint8Array {
  const entries = Object.entries(fields(type));
  return handMadeMap(type, [...entries, entries[0]!]);
}

function handMadeMap(type: (typeof controlTypes)[number], entries: readonly [string, unknown][]): Uint8Array {
  return Buffer.concat([
    encodeFrame(validFrames[type]).subarray(0, 1),
    Uint8Array.of(0x80 | entries.length),
    ...entries.flatMap(([key, value]) => [encode(key), encode(value)]),
  ]);
}
