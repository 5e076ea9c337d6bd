import * as fc from "fast-check";
import { MAX_FRAME_BYTES } from "@sallyport/protocol";
import { describe, expect, test } from "vitest";
import { MessageReader } from "./message-reader.ts";

/** A frame as RFC 6455 §5.2 writes it. */
function frame(payload: Uint8Array, options: { first?: number; mask?: readonly number[] } = {}): Uint8Array {
  const { first = 0x82, mask } = options;
  const length = payload.length < 126 ? [payload.length] : [126, (payload.length >> 8) & 0xff, payload.length & 0xff];
  const header = [first, (mask === undefined ? 0 : 0x80) | (length[0] ?? 0), ...length.slice(1), ...(mask ?? [])];
  const body = payload.map((byte, at) => byte ^ (mask?.[at & 3] ?? 0));
  return Uint8Array.from([...header, ...body]);
}

const concat = (parts: readonly Uint8Array[]) => Uint8Array.from(parts.flatMap((part) => [...part]));
const payloadOf = (length: number) => Uint8Array.from({ length }, (_, at) => (at * 7 + length) & 0xff);

function readerOf(options: { masked: boolean; maxPieces?: number }) {
  const messages: Uint8Array[] = [];
  const reader = new MessageReader({
    masked: options.masked,
    maxPieces: options.maxPieces ?? 1_000,
    onMessage: (message) => messages.push(Uint8Array.from(message)),
  });
  return { reader, messages };
}

describe("messages are found", () => {
  test.for([
    ["without a mask", undefined],
    ["behind a zero mask", [0, 0, 0, 0]],
    ["behind any other mask", [0x11, 0xff, 0, 0x80]],
  ] as const)("%s, of every length, in one piece", ([, mask]) => {
    const { reader, messages } = readerOf({ masked: mask !== undefined });
    const payloads = [0, 1, 125, 126, 127, 1_000, MAX_FRAME_BYTES].map(payloadOf);
    const bytes = concat(payloads.map((payload) => frame(payload, mask === undefined ? {} : { mask })));
    expect(reader.read(bytes)).toBeUndefined();
    expect(messages).toEqual(payloads);
  });

  test("however the bytes are cut", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 400 }), { minLength: 1, maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 300 }), { maxLength: 40 }),
        fc.boolean(),
        (lengths, cuts, masked) => {
          const { reader, messages } = readerOf({ masked });
          const payloads = lengths.map(payloadOf);
          const options = masked ? { mask: [1, 2, 3, 4] } : {};
          let rest: Uint8Array = concat(payloads.map((payload) => frame(payload, options)));
          for (const cut of [...cuts, rest.length]) {
            expect(reader.read(Uint8Array.from(rest.subarray(0, cut)))).toBeUndefined();
            rest = rest.subarray(cut);
          }
          expect(messages).toEqual(payloads);
        },
      ),
      { numRuns: 300 },
    );
  });
});

describe("what is none of our messages is handed over from its first byte on", () => {
  const good = frame(payloadOf(10));
  test.for([
    ["a ping", Uint8Array.of(0x89, 0)],
    ["a text message", frame(payloadOf(3), { first: 0x81 })],
    ["a fragment", frame(payloadOf(3), { first: 0x02 })],
    ["a reserved bit", frame(payloadOf(3), { first: 0xc2 })],
    ["a length of 64 bits", Uint8Array.of(0x82, 127, 0, 0, 0, 0, 0, 0, 0, 1, 7)],
    ["a length beyond a frame", frame(payloadOf(MAX_FRAME_BYTES + 1)).subarray(0, 20)],
    ["a mask where none belongs", frame(payloadOf(3), { mask: [1, 2, 3, 4] })],
  ] as const)("%s", ([, foreign]) => {
    const whole = readerOf({ masked: false });
    const bytes = concat([good, foreign, good]);
    expect(whole.reader.read(bytes)).toEqual(bytes.subarray(good.length));
    expect(whole.messages).toEqual([payloadOf(10)]);
    // The same, byte by byte: what is handed over begins with the foreign frame and nothing is lost.
    const split = readerOf({ masked: false });
    const handed: number[] = [];
    for (const byte of bytes) {
      if (handed.length > 0) handed.push(byte);
      else handed.push(...(split.reader.read(Uint8Array.of(byte)) ?? []));
    }
    expect(Uint8Array.from(handed)).toEqual(Uint8Array.from(bytes.subarray(good.length)));
    expect(split.messages).toEqual([payloadOf(10)]);
  });

  test("a message that trickles in by more pieces than are allowed", () => {
    const { reader, messages } = readerOf({ masked: false, maxPieces: 4 });
    const bytes = frame(payloadOf(20));
    for (let at = 0; at < 4; at += 1) expect(reader.read(bytes.subarray(at, at + 1))).toBeUndefined();
    expect(reader.read(bytes.subarray(4, 5))).toEqual(bytes.subarray(0, 5));
    expect(messages).toEqual([]);
  });
});

test("a reader that was stopped delivers nothing more, not even from the same chunk", () => {
  const messages: Uint8Array[] = [];
  const stopping = new MessageReader({
    masked: false,
    maxPieces: 10,
    onMessage: (message) => {
      messages.push(Uint8Array.from(message));
      stopping.stop();
    },
  });
  const one = frame(payloadOf(5));
  expect(stopping.read(concat([one, one, one]))).toEqual(concat([one, one]));
  expect(stopping.read(one)).toEqual(one);
  expect(messages).toEqual([payloadOf(5)]);
});
