import { formatIpAddress, type IpAddress, parseCidr, parseIpAddress } from "@sallyport/host";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { BanList } from "./ban-list.ts";

const HOUR = 3_600_000;
const address = (text: string): IpAddress => parseIpAddress(text)!;
const manual = (cidr: string, ttlMs = HOUR) => ({ cidr: parseCidr(cidr), origin: "manual" as const, ttlMs });
const auto = (cidr: string, ttlMs = HOUR) => ({ cidr: parseCidr(cidr), origin: "auto:connectRate" as const, ttlMs });

describe("a list of bans", () => {
  test("finds the longest prefix that holds the address, and knows families apart", () => {
    const bans = new BanList();
    for (const cidr of ["0.0.0.0/0", "192.0.2.0/24", "192.0.2.7", "2001:db8::/32"]) bans.add(manual(cidr), 0);
    const found = (text: string) => bans.match(address(text), 1)?.text;
    expect(found("192.0.2.7")).toBe("192.0.2.7/32");
    expect(found("192.0.2.8")).toBe("192.0.2.0/24");
    expect(found("198.51.100.1")).toBe("0.0.0.0/0");
    expect(found("::ffff:192.0.2.8")).toBe("192.0.2.0/24");
    expect(found("2001:db8::1")).toBe("2001:db8::/32");
    expect(found("2001:db9::1")).toBeUndefined();
  });

  test("a ban ends on its millisecond, one without an end never", () => {
    const bans = new BanList();
    bans.add(manual("192.0.2.1", 1_000), 5_000);
    bans.add(manual("192.0.2.2", 0), 5_000);
    expect(bans.match(address("192.0.2.1"), 5_999)?.text).toBe("192.0.2.1/32");
    expect(bans.match(address("192.0.2.1"), 6_000)).toBeUndefined();
    expect([...bans.list(6_000)].map(({ text }) => text)).toEqual(["192.0.2.2/32"]);
    expect(bans.sweep(6_000)).toBe(1);
    expect([bans.size, bans.match(address("192.0.2.2"), Number.MAX_SAFE_INTEGER)?.text]).toEqual([1, "192.0.2.2/32"]);
  });

  test("a shorter ban that has ended does not hide a wider one", () => {
    const bans = new BanList();
    bans.add(manual("192.0.2.0/24", 10_000), 0);
    bans.add(manual("192.0.2.1", 1_000), 0);
    expect(bans.match(address("192.0.2.1"), 2_000)?.text).toBe("192.0.2.0/24");
  });

  test("sweeping after a long sleep forgets everything that has ended", () => {
    const bans = new BanList();
    for (let at = 0; at < 100; at += 1) bans.add(manual(`192.0.2.${at}`, (at + 1) * 1_000), 0);
    expect(bans.sweep(50_000)).toBe(50);
    expect(bans.sweep(30 * 24 * HOUR)).toBe(50);
    expect(bans.size).toBe(0);
  });

  test("a detector neither shortens nor replaces the ban of an operator", () => {
    const bans = new BanList();
    bans.add({ ...manual("192.0.2.1", 0), comment: "by hand" }, 0);
    expect(bans.add(auto("192.0.2.1"), 1)?.comment).toBe("by hand");
    expect(bans.get("192.0.2.1/32", 2)?.origin).toBe("manual");
  });

  test("when it is full an operator's ban is refused, and a detector's takes the place of the oldest of a detector", () => {
    const bans = new BanList({ maxBans: 3 });
    bans.add(manual("192.0.2.1"), 0);
    bans.add(auto("192.0.2.2"), 1);
    bans.add(auto("192.0.2.3"), 2);
    expect(bans.add(manual("192.0.2.4"), 3)).toBeUndefined();
    expect(bans.add(auto("192.0.2.5"), 4)?.text).toBe("192.0.2.5/32");
    expect([...bans.list(5)].map(({ text }) => text)).toEqual(["192.0.2.1/32", "192.0.2.3/32", "192.0.2.5/32"]);
    expect(bans.add(manual("192.0.2.1", 0), 5)?.expiresAt).toBeUndefined();
  });

  test("flushes by origin, and counts by origin", () => {
    const bans = new BanList();
    bans.add(manual("192.0.2.1"), 0);
    bans.add(auto("192.0.2.2"), 0);
    bans.add({ cidr: parseCidr("192.0.2.3"), origin: "auto:earlyResets", ttlMs: 0 }, 0);
    expect(Object.fromEntries(bans.byOrigin)).toEqual({ manual: 1, "auto:connectRate": 1, "auto:earlyResets": 1 });
    expect(bans.flush("auto")).toBe(2);
    expect(Object.fromEntries(bans.byOrigin)).toEqual({ manual: 1 });
    expect(bans.flush()).toBe(1);
  });

  test("tells which bans touch a block", () => {
    const bans = new BanList();
    for (const cidr of ["192.0.2.0/25", "192.0.2.1", "198.51.100.0/24"]) bans.add(manual(cidr), 0);
    expect(bans.overlapping(parseCidr("192.0.2.0/24"), 1).map(({ text }) => text)).toEqual([
      "192.0.2.0/25",
      "192.0.2.1/32",
    ]);
  });

  test("200,000 bans are found and forgotten in bounded time", () => {
    const bans = new BanList();
    const started = performance.now();
    const nth = (at: number) => address(`10.${at >> 16}.${(at >> 8) & 255}.${at & 255}`);
    for (let at = 0; at < 200_000; at += 1) {
      bans.add(
        { cidr: { family: 4, address: nth(at), prefixLength: 32 }, origin: "auto:connectRate", ttlMs: 1_000 + at },
        0,
      );
    }
    let missing = 0;
    for (let at = 0; at < 200_000; at += 1) if (bans.match(nth(at), 1) === undefined) missing += 1;
    expect([missing, bans.size]).toEqual([0, 200_000]);
    expect(bans.sweep(HOUR)).toBe(200_000);
    expect(performance.now() - started).toBeLessThan(20_000);
  });
});

describe("a list of bans that changes at random", () => {
  const toBigInt = ({ bytes }: IpAddress): bigint => BigInt(`0x${Buffer.from(bytes).toString("hex")}`);
  // Few distinct bytes, so that blocks nest, meet and miss by a bit.
  const someAddress = fc.constantFrom(4 as const, 6 as const).chain((family) =>
    fc
      .array(fc.constantFrom(0, 1, 0x7f, 0x80, 0xfe, 0xff), {
        minLength: family === 4 ? 4 : 16,
        maxLength: family === 4 ? 4 : 16,
      })
      .map((bytes) => parseIpAddress(formatIpAddress({ family, bytes: Uint8Array.from(bytes) }))!),
  );
  const someCidr = fc.tuple(someAddress, fc.nat(128)).map(([{ family, bytes }, length]) => {
    const width = family === 4 ? 32 : 128;
    const prefixLength = family === 4 ? length >> 2 : length;
    const shift = BigInt(width - prefixLength);
    const hex = ((toBigInt({ family, bytes }) >> shift) << shift).toString(16).padStart(width / 4, "0");
    return { family, address: { family, bytes: Uint8Array.from(Buffer.from(hex, "hex")) }, prefixLength };
  });
  const someStep = fc.oneof(
    fc.record({ type: fc.constant("add" as const), cidr: someCidr, ttlMs: fc.integer({ min: 0, max: 5_000 }) }),
    fc.record({ type: fc.constant("remove" as const), which: fc.nat(50) }),
    fc.record({ type: fc.constant("wait" as const), ms: fc.nat(2_000) }),
  );

  test("agrees with arithmetic on whole numbers", () => {
    fc.assert(
      fc.property(
        fc.array(someStep, { maxLength: 40 }),
        fc.array(someAddress, { minLength: 20, maxLength: 20 }),
        (steps, addresses) => {
          const bans = new BanList();
          const reference = new Map<string, { cidr: (typeof steps)[number] & { type: "add" }; expiresAt: number }>();
          let now = 0;
          for (const step of steps) {
            if (step.type === "wait") {
              now += step.ms;
              bans.sweep(now);
            } else if (step.type === "add") {
              const ban = bans.add({ cidr: step.cidr, origin: "auto:connectRate", ttlMs: step.ttlMs }, now)!;
              reference.set(ban.text, {
                cidr: step,
                expiresAt: step.ttlMs === 0 ? Number.POSITIVE_INFINITY : now + step.ttlMs,
              });
            } else {
              const text = [...reference.keys()][step.which];
              if (text !== undefined) {
                bans.remove(text);
                reference.delete(text);
              }
            }
            for (const source of addresses) {
              const width = source.family === 4 ? 32 : 128;
              let best: string | undefined;
              let bestLength = -1;
              for (const [text, { cidr: added, expiresAt }] of reference) {
                const { family, address: first, prefixLength } = added.cidr;
                const shift = BigInt(width - prefixLength);
                if (family !== source.family || expiresAt <= now || prefixLength <= bestLength) continue;
                if (toBigInt(first) >> shift !== toBigInt(source) >> shift) continue;
                best = text;
                bestLength = prefixLength;
              }
              expect(bans.match(source, now)?.text).toBe(best);
            }
          }
          expect([...bans.list(now)].map(({ text }) => text).sort()).toEqual(
            [...reference]
              .filter(([, { expiresAt }]) => expiresAt > now)
              .map(([text]) => text)
              .sort(),
          );
        },
      ),
      { numRuns: 200 },
    );
  });
});
