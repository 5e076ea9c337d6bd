/** Ways to spoil a message, from a generator that repeats itself: the same seed makes the same inputs. */

/** A small generator (mulberry32) with the calls that mutations need. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** A 32-bit number. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let value = this.#state;
    value = Math.imul(value ^ (value >>> 15), value | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return (value ^ (value >>> 14)) >>> 0;
  }

  below(bound: number): number {
    return this.next() % bound;
  }

  pick<T>(items: readonly T[]): T {
    const item = items[this.below(items.length)];
    if (item === undefined) throw new Error("nothing to pick from");
    return item;
  }

  bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.next());
  }
}

/** Bytes that mean something to msgpack or at the borders of numbers. */
const INTERESTING = [
  0x00, 0x01, 0x7f, 0x80, 0x81, 0x8f, 0x90, 0x91, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc4, 0xc6, 0xc7, 0xc9, 0xca, 0xcb,
  0xcf, 0xd3, 0xd4, 0xd6, 0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xff,
];

/** One mutation of a seed, or two or three, or of two seeds spliced together. */
export function mutate(random: Random, seeds: readonly Uint8Array[]): Uint8Array {
  let bytes: Uint8Array = random.pick(seeds).slice();
  for (let count = random.pick([1, 1, 1, 2, 3]); count > 0; count -= 1) {
    const at = random.below(bytes.length + 1);
    switch (random.below(9)) {
      case 0:
        if (at < bytes.length) bytes[at] = (bytes[at] ?? 0) ^ (1 << random.below(8));
        break;
      case 1:
        if (at < bytes.length) bytes[at] = random.pick(INTERESTING);
        break;
      case 2:
        bytes = bytes.slice(0, at);
        break;
      case 3:
        bytes = joined(bytes, random.bytes(random.below(20)));
        break;
      case 4:
        bytes = joined(bytes.subarray(0, at), random.bytes(1 + random.below(8)), bytes.subarray(at));
        break;
      case 5:
        bytes = joined(bytes.subarray(0, at), bytes.subarray(at + 1 + random.below(8)));
        break;
      case 6: {
        const other = random.pick(seeds);
        bytes = joined(bytes.subarray(0, at), other.subarray(random.below(other.length + 1)));
        break;
      }
      case 7:
        bytes.fill(random.pick(INTERESTING), at, at + 1 + random.below(8));
        break;
      default: {
        // A piece twice: keys, elements and headers that come again.
        const end = Math.min(bytes.length, at + 1 + random.below(40));
        bytes = joined(bytes.subarray(0, end), bytes.subarray(at, end), bytes.subarray(end));
      }
    }
  }
  return bytes.length > 20_000 ? bytes.slice(0, 20_000) : bytes;
}

function joined(...parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
