import { describe, expect, it } from "vitest";
import { MAX_FRAME_BYTES } from "./frame.ts";
import { type Framing, FrameWriter, recordBytes } from "./frame-writer.ts";

/** The header of a masked WebSocket message. */
const framing: Framing = {
  headerBytes: (length) => (length < 126 ? 6 : 8),
  writeHeader: (out, at, length) => out.fill(0x82, at, at + (length < 126 ? 6 : 8)),
};
const RECORD = 16_384;

describe("a frame writer", () => {
  it("puts frames one behind the other, each behind its header", () => {
    const writer = new FrameWriter(new Uint8Array(64), framing);
    writer.put(new Uint8Array([1, 2, 3]));
    writer.put(new Uint8Array([4]));
    expect(writer.used).toBe(16);
    expect([...writer.bytes.subarray(0, 17)]).toEqual([
      0x82, 0x82, 0x82, 0x82, 0x82, 0x82, 1, 2, 3, 0x82, 0x82, 0x82, 0x82, 0x82, 0x82, 4, 0,
    ]);
    writer.clear();
    expect(writer.used).toBe(0);
  });

  it("knows what fits to the byte", () => {
    const writer = new FrameWriter(new Uint8Array(20), framing);
    expect([writer.fits(14), writer.fits(15)]).toEqual([true, false]);
    writer.begin(8);
    expect([writer.fits(0), writer.fits(1)]).toEqual([true, false]);
  });

  it("fills whole TLS records from an empty buffer", () => {
    const writer = new FrameWriter(new Uint8Array(4 * RECORD), framing);
    const ends: number[] = [];
    for (let room = writer.room(); room > 0; room = writer.room()) {
      writer.begin(room);
      ends.push(writer.used);
    }
    expect(ends).toEqual([RECORD, 2 * RECORD, 3 * RECORD, 4 * RECORD]);
  });

  it.each([1, 100, 5_000, RECORD - 1_025, RECORD - 1_024, RECORD - 1_000, RECORD - 40, RECORD - 7])(
    "returns to record boundaries after %i bytes of small frames",
    (small) => {
      const writer = new FrameWriter(new Uint8Array(4 * RECORD), framing);
      writer.begin(Math.max(0, small - framing.headerBytes(small)));
      const ends: number[] = [];
      for (let room = writer.room(); room > 0; room = writer.room()) {
        expect(room).toBeLessThanOrEqual(MAX_FRAME_BYTES);
        writer.begin(room);
        ends.push(writer.used);
      }
      expect(ends.slice(0, 2).some((end) => end % RECORD === 0)).toBe(true);
      expect(ends.at(-1)).toBe(4 * RECORD);
    },
  );

  it("fills records of just its frames where a header is shorter, so that no frame lies in two", () => {
    const short: Framing = { headerBytes: () => 4, writeHeader: (out, at) => out.fill(0x82, at, at + 4) };
    expect([recordBytes(framing), recordBytes(short)]).toEqual([RECORD, RECORD - 4]);
    const writer = new FrameWriter(new Uint8Array(4 * recordBytes(short)), short);
    writer.begin(100);
    const ends: number[] = [];
    for (let room = writer.room(); room > 0; room = writer.room()) {
      writer.begin(room);
      ends.push(writer.used / recordBytes(short));
    }
    expect(ends).toEqual([1, 2, 3, 4]);
  });

  it("never offers more than is left", () => {
    for (let left = 0; left < 3_000; left += 7) {
      const writer = new FrameWriter(new Uint8Array(RECORD), framing);
      writer.begin(RECORD - left - framing.headerBytes(RECORD - left));
      const room = writer.room();
      expect(room === 0 || writer.fits(room)).toBe(true);
    }
  });

  it("offers nothing when what is left is not worth a frame, and something in every empty buffer", () => {
    const writer = new FrameWriter(new Uint8Array(RECORD), framing);
    writer.begin(RECORD - 1_000);
    expect(writer.room()).toBe(0);
    expect(new FrameWriter(new Uint8Array(600), framing).room()).toBe(592);
    expect(new FrameWriter(new Uint8Array(4), framing).room()).toBe(0);
  });
});
