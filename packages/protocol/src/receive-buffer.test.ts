import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ProtocolError } from "./codes.ts";
import { CreditExceeded, ReceiveBuffer } from "./receive-buffer.ts";

const byteAt = (offset: number) => (offset * 31 + (offset >>> 8)) & 0xff;
const bytesFrom = (offset: number, count: number) =>
  Uint8Array.from({ length: count }, (_, index) => byteAt(offset + index));

/** Everything that becomes deliverable with a frame. */
function receive(buffer: ReceiveBuffer, offset: number, bytes: Uint8Array): number[] {
  const delivered: number[] = [];
  for (let part = buffer.receive(offset, bytes); part !== undefined; part = buffer.takeHeld()) delivered.push(...part);
  return delivered;
}

describe("a receive buffer", () => {
  it("hands over what comes in order, as a view", () => {
    const buffer = new ReceiveBuffer(100, 100);
    const bytes = bytesFrom(0, 10);
    expect(buffer.receive(0, bytes)).toBe(bytes);
    expect(buffer.takeHeld()).toBeUndefined();
    expect([buffer.received, buffer.consumed, buffer.unconsumed]).toEqual([10, 0, 10]);
  });

  it("drops what came before, whole or in part", () => {
    const buffer = new ReceiveBuffer(100, 100);
    receive(buffer, 0, bytesFrom(0, 10));
    expect(receive(buffer, 0, bytesFrom(0, 10))).toEqual([]);
    expect(receive(buffer, 5, bytesFrom(5, 10))).toEqual([...bytesFrom(10, 5)]);
  });

  it("holds what overtook a gap and hands it over behind the gap", () => {
    const buffer = new ReceiveBuffer(100, 100);
    expect(receive(buffer, 20, bytesFrom(20, 10))).toEqual([]);
    expect(receive(buffer, 10, bytesFrom(10, 10))).toEqual([]);
    expect(buffer.unconsumed).toBe(20);
    expect(receive(buffer, 0, bytesFrom(0, 10))).toEqual([...bytesFrom(0, 30)]);
  });

  it("holds a copy: the message, and the chunk that a Node buffer is a view of, can be let go", () => {
    const buffer = new ReceiveBuffer(100_000, 100_000);
    const message = Buffer.from(new ArrayBuffer(65_536), 100, 10);
    message.set(bytesFrom(10, 10));
    buffer.receive(10, message);
    message.fill(0);
    buffer.receive(0, bytesFrom(0, 10));
    const held = buffer.takeHeld();
    expect([...(held ?? [])]).toEqual([...bytesFrom(10, 10)]);
    expect(held?.buffer.byteLength).toBe(10);
  });

  it("refuses a byte more than its limit, and nothing of it is taken", () => {
    const buffer = new ReceiveBuffer(10, 100);
    expect(() => buffer.receive(0, bytesFrom(0, 11))).toThrow(CreditExceeded);
    expect(buffer.received).toBe(0);
    expect(receive(buffer, 0, bytesFrom(0, 10))).toHaveLength(10);
    expect(() => buffer.receive(10, bytesFrom(10, 1))).toThrow(CreditExceeded);
    expect(() => buffer.receive(Number.MAX_SAFE_INTEGER, bytesFrom(0, 1))).toThrow(CreditExceeded);
  });

  it("refuses more pieces than an honest sender leaves", () => {
    const buffer = new ReceiveBuffer(100_000, 100_000);
    const leavePiecesBeyond = () => {
      for (let offset = 2; offset < 4_000; offset += 2) buffer.receive(offset, bytesFrom(offset, 1));
    };
    expect(leavePiecesBeyond).toThrow(CreditExceeded);
    expect(buffer.unconsumed).toBe(1_024);
  });

  it("holds pieces that were joined in little more memory than their bytes", () => {
    const buffer = new ReceiveBuffer(100_000, 100_000);
    // The worst that the limits allow: a gap before every two bytes, which come one by one.
    for (let offset = 3; offset < 3 * 1_000; offset += 3) {
      buffer.receive(offset, bytesFrom(offset, 1));
      buffer.receive(offset + 1, bytesFrom(offset + 1, 1));
    }
    let allocated = 0;
    for (let offset = 0; offset < 3 * 1_000; offset += 1) {
      buffer.receive(offset, bytesFrom(offset, 1));
      for (let held = buffer.takeHeld(); held !== undefined; held = buffer.takeHeld()) {
        allocated += held.buffer.byteLength;
        offset += held.length;
      }
    }
    expect(buffer.received).toBe(3_000);
    expect(allocated).toBeLessThanOrEqual(1_000 * 32);
  });

  it("is complete when the end stands and every byte before it is there", () => {
    const buffer = new ReceiveBuffer(100, 100);
    expect(buffer.complete).toBe(false);
    buffer.end(10);
    expect(buffer.complete).toBe(false);
    receive(buffer, 0, bytesFrom(0, 10));
    expect(buffer.complete).toBe(true);
    buffer.end(10);
    expect(buffer.complete).toBe(true);
  });

  it.each([
    ["an end before what arrived", (buffer: ReceiveBuffer) => buffer.end(9)],
    ["an end before what is held", (buffer: ReceiveBuffer) => (buffer.receive(30, bytesFrom(30, 10)), buffer.end(39))],
    ["two ends", (buffer: ReceiveBuffer) => (buffer.end(10), buffer.end(11))],
    ["data behind the end", (buffer: ReceiveBuffer) => (buffer.end(10), buffer.receive(10, bytesFrom(10, 1)))],
    ["held data behind the end", (buffer: ReceiveBuffer) => (buffer.end(20), buffer.receive(15, bytesFrom(15, 6)))],
    ["an end beyond the limit", (buffer: ReceiveBuffer) => buffer.end(101)],
  ])("refuses %s", (_, act) => {
    const buffer = new ReceiveBuffer(100, 100);
    receive(buffer, 0, bytesFrom(0, 10));
    expect(() => act(buffer)).toThrow(ProtocolError);
  });

  it("refuses to consume what was not delivered", () => {
    const buffer = new ReceiveBuffer(100, 100);
    receive(buffer, 0, bytesFrom(0, 10));
    expect(() => buffer.consume(11)).toThrow(RangeError);
    expect(() => buffer.consume(-1)).toThrow(RangeError);
    expect(buffer.consumed).toBe(0);
  });
});

describe("credit", () => {
  it("grows when bytes are consumed and not when they arrive", () => {
    const buffer = new ReceiveBuffer(1_000, 1_000);
    receive(buffer, 0, bytesFrom(0, 900));
    expect(buffer.creditDue).toBe(false);
    buffer.consume(249);
    expect(buffer.creditDue).toBe(false);
    buffer.consume(1);
    expect(buffer.creditDue).toBe(true);
    expect(buffer.announce()).toEqual({ consumed: 250, limit: 1_250 });
    expect(buffer.creditDue).toBe(false);
  });

  it("comes at the latest after 64 KiB, however wide the window is", () => {
    const buffer = new ReceiveBuffer(1_048_576, 1_048_576);
    buffer.receive(0, new Uint8Array(200_000));
    buffer.consume(65_535);
    expect(buffer.creditDue).toBe(false);
    buffer.consume(1);
    expect(buffer.creditDue).toBe(true);
  });

  it("is never taken back by a window that shrinks", () => {
    const buffer = new ReceiveBuffer(1_000, 1_000);
    buffer.setWindow(100);
    expect(buffer.announce()).toEqual({ consumed: 0, limit: 1_000 });
    receive(buffer, 0, bytesFrom(0, 1_000));
    buffer.consume(1_000);
    expect(buffer.announce()).toEqual({ consumed: 1_000, limit: 1_100 });
  });

  it("is due at once when the window is wider than the first credit", () => {
    const buffer = new ReceiveBuffer(100, 1_000);
    expect(buffer.creditDue).toBe(true);
    expect(buffer.announce().limit).toBe(1_000);
  });

  it("is not worth a frame when nothing can come any more", () => {
    const buffer = new ReceiveBuffer(1_000, 1_000);
    receive(buffer, 0, bytesFrom(0, 1_000));
    buffer.end(1_000);
    buffer.consume(1_000);
    expect(buffer.creditDue).toBe(false);
  });
});

describe("a receive buffer and a naive one", () => {
  const frame = fc.record({
    offset: fc.nat({ max: 300 }),
    count: fc.integer({ min: 1, max: 60 }),
    consume: fc.nat({ max: 80 }),
  });

  it("deliver the same bytes for any order, overlap and repetition of frames", () => {
    fc.assert(
      fc.property(fc.array(frame, { maxLength: 60, size: "max" }), (frames) => {
        const buffer = new ReceiveBuffer(200, 200);
        const there = new Set<number>();
        const delivered: number[] = [];
        for (const { offset, count, consume } of frames) {
          // Beyond the limit is another test's matter.
          const fitting = Math.min(count, buffer.limit - offset);
          for (let at = offset; at < offset + fitting; at += 1) there.add(at);
          if (fitting > 0) delivered.push(...receive(buffer, offset, bytesFrom(offset, fitting)));
          let expected = 0;
          while (there.has(expected)) expected += 1;
          expect(delivered).toEqual([...bytesFrom(0, expected)]);
          expect(buffer.received).toBe(expected);
          expect(buffer.unconsumed).toBe(there.size - buffer.consumed);
          buffer.consume(Math.min(consume, buffer.received - buffer.consumed));
          if (buffer.creditDue) buffer.announce();
          expect(buffer.limit).toBeLessThanOrEqual(buffer.consumed + 200);
        }
      }),
      { numRuns: 1_000 },
    );
  });
});

describe("a sender that ran out of credit", () => {
  /** A buffer with a window of 1,000 after its first CREDIT, and all consumed. */
  function told(): ReceiveBuffer {
    const buffer = new ReceiveBuffer(500, 1_000);
    receive(buffer, 0, bytesFrom(0, 500));
    buffer.consume(500);
    expect(buffer.announce().limit).toBe(1_500);
    return buffer;
  }

  it("is one whose DATA ends where a limit was told, once", () => {
    const buffer = told();
    receive(buffer, 500, bytesFrom(500, 500));
    buffer.consume(500);
    expect(buffer.takeRanOut()).toBe(false);
    receive(buffer, 1_000, bytesFrom(1_000, 500));
    expect(buffer.takeRanOut()).toBe(false);
    buffer.consume(499);
    expect(buffer.takeRanOut()).toBe(false);
    buffer.consume(1);
    expect([buffer.takeRanOut(), buffer.takeRanOut()]).toEqual([true, false]);
  });

  it("is told from one that passes an older limit", () => {
    const buffer = told();
    receive(buffer, 500, bytesFrom(500, 300));
    buffer.consume(300);
    expect(buffer.announce().limit).toBe(1_800);
    receive(buffer, 800, bytesFrom(800, 800));
    buffer.consume(800);
    expect(buffer.takeRanOut()).toBe(false);
    receive(buffer, 1_600, bytesFrom(1_600, 200));
    buffer.consume(200);
    expect(buffer.takeRanOut()).toBe(true);
  });

  it("is not blamed on the window while the destination is what is slow", () => {
    const buffer = told();
    receive(buffer, 500, bytesFrom(500, 1_000));
    for (let consumed = 500; consumed < 10_000; consumed += 250) {
      buffer.consume(250);
      const before = buffer.limit;
      receive(buffer, before, bytesFrom(before, buffer.announce().limit - before));
      expect(buffer.takeRanOut()).toBe(false);
    }
  });

  it("is not seen in the first limit, which was given before anything was known", () => {
    const buffer = new ReceiveBuffer(500, 1_000);
    receive(buffer, 0, bytesFrom(0, 500));
    buffer.consume(500);
    expect(buffer.takeRanOut()).toBe(false);
  });

  it("does not count what was told before the window grew", () => {
    const buffer = told();
    receive(buffer, 500, bytesFrom(500, 300));
    buffer.consume(300);
    buffer.announce();
    receive(buffer, 800, bytesFrom(800, 700));
    buffer.consume(700);
    expect(buffer.takeRanOut()).toBe(true);
    receive(buffer, 1_500, bytesFrom(1_500, 300));
    buffer.consume(300);
    expect(buffer.takeRanOut()).toBe(false);
  });
});
