import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SendBuffer } from "./send-buffer.ts";

/** Byte at `offset` of everything that is ever written. */
const byteAt = (offset: number) => (offset * 31 + (offset >>> 8)) & 0xff;
const bytesFrom = (offset: number, count: number) =>
  Uint8Array.from({ length: count }, (_, index) => byteAt(offset + index));

function read(buffer: SendBuffer, from: number, max: number): number[] {
  const out = new Uint8Array(max + 2).fill(0xee);
  const count = buffer.read(from, max, out, 1);
  expect([out[0], out[count + 1]]).toEqual([0xee, 0xee]);
  return [...out.subarray(1, 1 + count)];
}

describe("a send buffer", () => {
  it("is empty at first and after everything was acknowledged", () => {
    const buffer = new SendBuffer();
    expect([buffer.size, buffer.queued, buffer.acknowledged]).toEqual([0, 0, 0]);
    buffer.append(bytesFrom(0, 5_000));
    buffer.acknowledge(5_000);
    expect([buffer.size, buffer.queued, buffer.acknowledged]).toEqual([0, 5_000, 5_000]);
    expect(read(buffer, 5_000, 10)).toEqual([]);
  });

  it("reads across chunks, from any offset that is not acknowledged", () => {
    const buffer = new SendBuffer();
    buffer.append(bytesFrom(0, 1_500));
    buffer.append(bytesFrom(1_500, 2_000));
    buffer.append(bytesFrom(3_500, 3));
    buffer.acknowledge(700);
    expect(read(buffer, 700, 5_000)).toEqual([...bytesFrom(700, 2_803)]);
    expect(read(buffer, 1_400, 200)).toEqual([...bytesFrom(1_400, 200)]);
    expect(read(buffer, 3_502, 200)).toEqual([byteAt(3_502)]);
  });

  it("gives the same bytes again when a stream is resumed", () => {
    const buffer = new SendBuffer();
    buffer.append(bytesFrom(0, 3_000));
    expect(read(buffer, 0, 3_000)).toEqual(read(buffer, 0, 3_000));
  });

  it("collects keystrokes, and those that come after the last was read", () => {
    const buffer = new SendBuffer();
    for (let offset = 0; offset < 3_000; offset += 1) {
      buffer.append(bytesFrom(offset, 1));
      expect(read(buffer, offset, 100)).toEqual([byteAt(offset)]);
    }
    expect(read(buffer, 0, 3_000)).toEqual([...bytesFrom(0, 3_000)]);
  });

  it("lets a caller's small chunk go at once: it may be changed afterwards", () => {
    const buffer = new SendBuffer();
    const chunk = new Uint8Array([1, 2, 3]);
    buffer.append(chunk);
    chunk.fill(9);
    expect(read(buffer, 0, 3)).toEqual([1, 2, 3]);
  });

  it("ignores an acknowledgement that is older than what is known", () => {
    const buffer = new SendBuffer();
    buffer.append(bytesFrom(0, 100));
    buffer.acknowledge(60);
    buffer.acknowledge(20);
    expect(buffer.acknowledged).toBe(60);
  });

  it("holds nothing after clear", () => {
    const buffer = new SendBuffer();
    buffer.append(bytesFrom(0, 10_000));
    buffer.clear();
    expect(buffer.size).toBe(0);
  });

  it("does what a plain array of bytes would, in any order of calls", () => {
    const call = fc.oneof(
      fc.record({ call: fc.constant("append" as const), count: fc.oneof(fc.nat({ max: 40 }), fc.nat({ max: 5_000 })) }),
      fc.record({ call: fc.constant("acknowledge" as const), part: fc.double({ min: 0, max: 1, noNaN: true }) }),
      fc.record({
        call: fc.constant("read" as const),
        part: fc.double({ min: 0, max: 1, noNaN: true }),
        max: fc.nat({ max: 20_000 }),
      }),
      fc.record({ call: fc.constant("next" as const), max: fc.nat({ max: 3_000 }) }),
    );
    fc.assert(
      fc.property(fc.array(call, { maxLength: 150, size: "max" }), (calls) => {
        const buffer = new SendBuffer();
        let next = 0;
        for (const it of calls) {
          const { acknowledged, queued } = buffer;
          if (it.call === "append") buffer.append(bytesFrom(queued, it.count));
          if (it.call === "acknowledge")
            buffer.acknowledge(acknowledged + Math.floor((queued - acknowledged) * it.part));
          next = Math.max(next, buffer.acknowledged);
          const from = it.call === "read" ? acknowledged + Math.floor((queued - acknowledged) * it.part) : next;
          const max = it.call === "read" || it.call === "next" ? it.max : 1;
          const bytes = read(buffer, from, max);
          expect(Buffer.compare(new Uint8Array(bytes), bytesFrom(from, Math.min(max, buffer.queued - from)))).toBe(0);
          if (it.call === "next") next += bytes.length;
          expect(buffer.size).toBe(buffer.queued - buffer.acknowledged);
        }
      }),
      { numRuns: 150 },
    );
  });
});
