import { formatCidr, type IpAddress, parseIpAddress } from "@sallyport/host";
import { describe, expect, test } from "vitest";
import { BanList } from "./ban-list.ts";
import { type DetectorName, Detectors, type DetectorSettings, type Trip } from "./detectors.ts";

const address = (text: string): IpAddress => parseIpAddress(text)!;
const settings: DetectorSettings = {
  threshold: 5,
  windowMs: 10_000,
  ttlMs: 60_000,
  maxTtlMs: 300_000,
  dryRun: false,
};
const prefixes = { ipv4: 32, ipv6: 64 };
const only = (name: DetectorName, change: Partial<DetectorSettings> = {}) =>
  new Detectors({ prefixes, detectors: { [name]: { ...settings, ...change } } });

const source = address("192.0.2.1");

interface Behaviour {
  readonly detector: DetectorName;
  /** Something that is to be banned, from `now` on; the trips come back. */
  readonly bad: (detectors: Detectors, from: number) => (Trip | undefined)[];
  /** Something like it that an honest partner does. */
  readonly honest: (detectors: Detectors) => (Trip | undefined)[];
}

const times = <T>(count: number, run: (at: number) => T): T[] => Array.from({ length: count }, (_, at) => run(at));
const noted = (detector: DetectorName): Behaviour => ({
  detector,
  bad: (detectors, from) => times(5, (at) => detectors.note(detector, source, from + at * 100)),
  // As many in all, but spread: never five within the window.
  honest: (detectors) => times(100, (at) => detectors.note(detector, source, at * 3_000)),
});

const behaviours: readonly Behaviour[] = [
  {
    detector: "connectRate",
    bad: (detectors, from) => times(5, (at) => detectors.connected(source, "sftp", from + at * 100)),
    honest: (detectors) => times(100, (at) => detectors.connected(source, "sftp", at * 3_000)),
  },
  {
    detector: "concurrency",
    // Ten connections held for longer than the window; the next one shows it.
    bad: (detectors, from) => [
      ...times(10, (at) => detectors.active(source, at + 1, from)),
      detectors.active(source, 11, from + 10_000),
    ],
    // A burst of ten that ends in time, again and again.
    honest: (detectors) =>
      times(20, (round) => [
        ...times(10, (at) => detectors.active(source, at + 1, round * 20_000 + at)),
        ...times(10, (at) => detectors.active(source, 9 - at, round * 20_000 + 5_000 + at)),
      ]).flat(),
  },
  {
    detector: "listenerScan",
    bad: (detectors, from) => times(5, (at) => detectors.connected(source, `listener-${at}`, from + at * 100)),
    // Four listeners as often as it likes, and a fifth only once the first is long ago.
    honest: (detectors) => [
      ...times(400, (at) => detectors.connected(source, `listener-${at % 4}`, at)),
      detectors.connected(source, "listener-9", 30_000),
    ],
  },
  ...(["emptyConnections", "noFirstByte", "slowBytes", "badProxyHeader", "earlyResets"] as const).map(noted),
];

const trips = (outcomes: (Trip | undefined)[]) => outcomes.filter((trip) => trip !== undefined);

describe.each(behaviours)("the detector $detector", ({ detector, bad, honest }) => {
  test("trips once, and the ban it asks for ends in time", () => {
    const detectors = only(detector);
    const [trip, ...more] = trips(bad(detectors, 1_000));
    expect(more).toEqual([]);
    expect({ ...trip, cidr: formatCidr(trip!.cidr) }).toEqual({
      detector,
      cidr: "192.0.2.1/32",
      ttlMs: 60_000,
      repeats: 1,
      dryRun: false,
    });
    const bans = new BanList();
    bans.add({ cidr: trip!.cidr, origin: `auto:${detector}`, ttlMs: trip!.ttlMs }, 11_000);
    expect(bans.match(source, 70_999)?.origin).toBe(`auto:${detector}`);
    expect(bans.match(source, 71_000)).toBeUndefined();
  });

  test("leaves its honest twin alone", () => {
    expect(trips(honest(only(detector)))).toEqual([]);
  });

  test("doubles the ban on repetition up to the longest one, and forgets after good behaviour", () => {
    const detectors = only(detector);
    let now = 0;
    const next = (pauseMs: number) => {
      const [trip] = trips(bad(detectors, (now += pauseMs)));
      now += 20_000;
      return trip?.ttlMs;
    };
    expect(times(5, () => next(60_000))).toEqual([60_000, 120_000, 240_000, 300_000, 300_000]);
    expect(next(300_000 + 300_000 + 1)).toBe(60_000);
  });

  test("says so in dry run, and counts apart", () => {
    const detectors = only(detector, { dryRun: true });
    expect(trips(bad(detectors, 0)).map(({ dryRun }) => dryRun)).toEqual([true]);
    expect(detectors.counters[detector]).toEqual({ trips: 0, dryRun: 1 });
  });

  test("is off until it is configured, and costs no memory then", () => {
    const detectors = new Detectors();
    expect(trips(bad(detectors, 0))).toEqual([]);
    expect(detectors.size).toBe(0);
  });
});

describe("detectors", () => {
  test("count a /64 of IPv6 as one source, and ban it as one", () => {
    const detectors = only("connectRate");
    const outcomes = times(5, (at) => detectors.connected(address(`2001:db8:0:1::${at + 1}`), "sftp", at));
    expect(trips(outcomes).map(({ cidr }) => formatCidr(cidr))).toEqual(["2001:db8:0:1::/64"]);
  });

  test("keep sources apart", () => {
    const detectors = only("connectRate");
    const outcomes = times(250, (at) => detectors.connected(address(`192.0.2.${at}`), "sftp", at));
    expect(trips(outcomes)).toEqual([]);
    expect(detectors.size).toBe(250);
  });

  test("remember a bounded number of sources, the oldest go first", () => {
    const detectors = new Detectors(
      { prefixes, detectors: { connectRate: { ...settings, threshold: 2 } } },
      { maxSources: 100 },
    );
    for (let at = 0; at < 250; at += 1) detectors.connected(address(`192.0.2.${at}`), "sftp", 0);
    expect([detectors.size, detectors.evicted]).toEqual([100, 150]);
    expect(detectors.connected(address("192.0.2.0"), "sftp", 1)).toBeUndefined();
    expect(detectors.connected(address("192.0.2.249"), "sftp", 1)?.detector).toBe("connectRate");
  });

  test("describe what is counted of a source, until it is cleared", () => {
    const detectors = only("connectRate");
    times(3, () => detectors.connected(source, "sftp", 0));
    expect(detectors.describe(source, 0)).toEqual({ connectRate: 3 });
    expect(detectors.clear(source)).toBe(1);
    expect(detectors.describe(source, 0)).toBeUndefined();
  });
});
