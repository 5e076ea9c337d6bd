import { describe, expect, it } from "vitest";
import { LinkPace } from "./link-pace.ts";
import { SharedPath } from "./shared-path.ts";

const KIBIBYTE = 1_024;

/** A link that delivers `rate` bytes a millisecond, `oneWayMs` away, driven as fast as the pace lets it. */
class SaturatedLink {
  readonly pace = new LinkPace();
  rate: number;
  oneWayMs: number;
  now = 0;
  pings = 0;
  mostInFlight = 0;
  delivered = 0;
  #token = 0;
  /** When the last byte written leaves the bottleneck. */
  #freeAt = 0;
  #pongs: { readonly at: number; readonly token: number; readonly sent: number }[] = [];
  #sent = 0;

  constructor(options: { readonly rate: number; readonly oneWayMs: number }) {
    this.rate = options.rate;
    this.oneWayMs = options.oneWayMs;
    this.#ping();
  }

  run(durationMs: number): void {
    const until = this.now + durationMs;
    while (this.now < until) {
      // Nothing is sent before the first PONG; there would be no end to it.
      while (Number.isFinite(this.pace.limitBytes) && this.pace.admits("bulk")) {
        this.#sent += 16 * KIBIBYTE;
        this.pace.sent(16 * KIBIBYTE);
        this.#freeAt = Math.max(this.#freeAt, this.now) + (16 * KIBIBYTE) / this.rate;
        this.mostInFlight = Math.max(this.mostInFlight, this.pace.inFlightBytes);
        if (this.pace.pingDue(this.now)) this.#ping();
      }
      if (this.pace.pingDue(this.now)) this.#ping();
      this.now += 0.25;
      while (this.#pongs[0] !== undefined && this.#pongs[0].at <= this.now) {
        const { token, sent } = this.#pongs.shift()!;
        this.delivered = sent;
        this.pace.ponged(token, this.now);
      }
    }
  }

  #ping(): void {
    this.#token += 1;
    this.pings += 1;
    this.pace.pinged(this.#token, this.now);
    const at = Math.max(this.#freeAt, this.now) + 2 * this.oneWayMs;
    this.#pongs.push({ at, token: this.#token, sent: this.#sent });
  }
}

interface ModelLink {
  readonly pace: LinkPace;
  token: number;
  sent: number;
  queued: number;
  delivered: number;
  /** PINGs behind so many bytes, and when their PONG comes. */
  readonly pongs: { readonly token: number; readonly behind: number; at: number | undefined }[];
}

/** Two links of one session through one queue, in which each has the share of the rate that it has of the bytes. */
class Bottleneck {
  readonly #rate: number;
  readonly #roundTripMs: number;
  readonly #links: ModelLink[];
  #now = 1;

  constructor(options: { readonly rate: number; readonly roundTripMs: number }) {
    this.#rate = options.rate;
    this.#roundTripMs = options.roundTripMs;
    const path = new SharedPath();
    this.#links = [1, 2].map(() => ({
      pace: new LinkPace(path),
      token: 0,
      sent: 0,
      queued: 0,
      delivered: 0,
      pongs: [],
    }));
    for (const { pace } of this.#links) {
      pace.pinged(0, 0);
      pace.ponged(0, this.#roundTripMs);
    }
  }

  get delivered(): number[] {
    return this.#links.map(({ delivered }) => delivered);
  }

  /** The first `busy` of them always have something to send. */
  run(durationMs: number, busy: number): void {
    const STEP_MS = 0.25;
    const until = this.#now + durationMs;
    for (; this.#now < until; this.#now += STEP_MS) {
      for (const link of this.#links.slice(0, busy)) {
        while (link.pace.admits("bulk")) {
          link.pace.sent(16 * KIBIBYTE);
          link.sent += 16 * KIBIBYTE;
          link.queued += 16 * KIBIBYTE;
          this.#pingIfDue(link);
        }
        this.#pingIfDue(link);
      }
      const queued = this.#links.reduce((sum, link) => sum + link.queued, 0);
      for (const link of this.#links) {
        const served = Math.min(link.queued, (this.#rate * STEP_MS * link.queued) / Math.max(1, queued));
        link.queued -= served;
        link.delivered += served;
        for (const pong of link.pongs) {
          if (link.delivered >= pong.behind - 1) pong.at ??= this.#now + this.#roundTripMs;
        }
        while ((link.pongs[0]?.at ?? Number.POSITIVE_INFINITY) <= this.#now) {
          link.pace.ponged(link.pongs.shift()!.token, this.#now);
        }
      }
    }
  }

  #pingIfDue(link: ModelLink): void {
    if (!link.pace.pingDue(this.#now)) return;
    link.token += 1;
    link.pace.pinged(link.token, this.#now);
    link.pongs.push({ token: link.token, behind: link.sent, at: undefined });
  }
}

describe("the pace of a link", () => {
  const table = [
    { what: "loopback", rate: 50_000, oneWayMs: 0.1 },
    { what: "a fast LAN", rate: 125_000, oneWayMs: 0.25 },
    { what: "100 Mbit/s over 50 ms", rate: 12_500, oneWayMs: 25 },
    { what: "1 Gbit/s over 100 ms", rate: 125_000, oneWayMs: 50 },
    { what: "1 Mbit/s over 500 ms", rate: 125, oneWayMs: 250 },
  ];
  it.each(table)("lets $what deliver all it can, and little stands before others", ({ rate, oneWayMs }) => {
    const link = new SaturatedLink({ rate, oneWayMs });
    link.run(oneWayMs * 2 * 16 + 1_000);
    const { delivered, now, pings } = link;
    link.mostInFlight = 0;
    link.run(20_000);
    const elapsedMs = link.now - now;
    expect((link.delivered - delivered) / elapsedMs).toBeGreaterThanOrEqual(0.95 * rate);
    // Four round trips and some milliseconds of the link's rate are under way. PINGs an eighth of the limit apart, and
    // no less than 32 KiB, tell the rate to no more than that.
    const bound = 1.25 * Math.max(128 * KIBIBYTE, rate * (4 * (2 * oneWayMs + 0.5) + 6)) + 80 * KIBIBYTE;
    expect(link.mostInFlight).toBeLessThanOrEqual(bound);
    // Behind 32 KiB and more, so that the peer does not count them (`LinkState.pinged`), and few beside those.
    expect(((link.pings - pings) * 1_000) / elapsedMs).toBeLessThan(1_400);
  });

  it("follows a link that becomes slower within two seconds", () => {
    const link = new SaturatedLink({ rate: 100_000, oneWayMs: 5 });
    link.run(2_000);
    link.rate = 10_000;
    link.run(2_000);
    link.mostInFlight = 0;
    link.run(1_000);
    expect(link.mostInFlight).toBeLessThanOrEqual(10_000 * (4 * 10.5 + 6) * 1.2 + 16 * KIBIBYTE);
  });

  it("meets that of another link behind the same bottleneck, though that was there first", () => {
    const bottleneck = new Bottleneck({ rate: 200_000, roundTripMs: 0.4 });
    bottleneck.run(2_000, 1);
    bottleneck.run(2_000, 2);
    const before = bottleneck.delivered;
    bottleneck.run(2_000, 2);
    const [first, second] = bottleneck.delivered.map((bytes, at) => bytes - before[at]!) as [number, number];
    expect(Math.min(first, second) / Math.max(first, second)).toBeGreaterThan(0.8);
    expect(first + second).toBeGreaterThan(0.95 * 200_000 * 2_000);
  });

  it("lets more be under way for a stream that has the path to itself, until another one speaks", () => {
    const path = new SharedPath();
    const pace = new LinkPace(path);
    let now = 0;
    let token = 0;
    const deliver = (): number => {
      for (const until = now + 1_000; now < until; now += 1) {
        pace.sent(100_000);
        path.sends(1, now);
        token += 1;
        pace.pinged(token, now);
        pace.ponged(token, now + 0.1);
      }
      return pace.limitBytes;
    };
    const alone = deliver();
    path.sends(2, now);
    pace.pinged(0, now);
    pace.ponged(0, now + 0.1);
    expect(alone / pace.limitBytes).toBeCloseTo(5.4 / 2.4, 1);
    expect(deliver()).toBeCloseTo(alone, -4);
  });

  it("holds nothing back before the first PONG", () => {
    const pace = new LinkPace();
    pace.pinged(1, 0);
    pace.sent(100_000_000);
    expect(pace.admits("bulk")).toBe(true);
  });

  it("lets a stream through that had nothing to send when others have to wait", () => {
    const path = new SharedPath();
    const [pace] = Array.from({ length: 16 }, () => new LinkPace(path)) as [LinkPace];
    pace.pinged(1, 0);
    pace.ponged(1, 1);
    pace.sent(128 * KIBIBYTE);
    expect([pace.admits("bulk"), pace.admits("fresh")]).toEqual([false, true]);
    pace.sent(32 * KIBIBYTE);
    expect(pace.admits("fresh")).toBe(false);
    // What waits is heard of: without a PING under way one is due.
    expect(pace.pingDue(1)).toBe(true);
  });

  it("takes the round trip of a quiet link, also when it has become longer, and of a busy one only what is less", () => {
    const pace = new LinkPace();
    pace.pinged(1, 0);
    expect(pace.ponged(1, 10)).toBe(10);
    pace.pinged(2, 1_000);
    pace.ponged(2, 1_030);
    expect(pace.quietRoundTripMs).toBe(30);
    pace.sent(100 * KIBIBYTE);
    pace.pinged(3, 2_000);
    expect(pace.ponged(3, 2_100)).toBe(100);
    expect(pace.quietRoundTripMs).toBe(30);
    pace.pinged(4, 3_000);
    pace.received(100 * KIBIBYTE);
    pace.ponged(4, 3_200);
    expect(pace.quietRoundTripMs).toBe(30);
  });

  it("knows a PONG once, and by it that those before it need none", () => {
    const pace = new LinkPace();
    for (const token of [3, 5, 9]) pace.pinged(token, token);
    expect(pace.ponged(4, 20)).toBeUndefined();
    expect(pace.ponged(5, 20)).toBe(15);
    expect(pace.ponged(3, 20)).toBeUndefined();
    expect(pace.ponged(5, 20)).toBeUndefined();
    expect(pace.ponged(9, 21)).toBe(12);
  });
});
