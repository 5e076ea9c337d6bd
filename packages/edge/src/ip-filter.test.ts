import { connect, createServer } from "node:net";
import { once } from "node:events";
import { formatIpAddress, type IpAddress, parseCidr, parseIpAddress } from "@sallyport/host";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { IpFilter, type IpFilterRule } from "./ip-filter.ts";
import type { RuleAction } from "./rule-prefixes.ts";

const allow = (cidr: string): IpFilterRule => ({ action: "allow", cidr: parseCidr(cidr) });
const block = (cidr: string): IpFilterRule => ({ action: "block", cidr: parseCidr(cidr) });

describe("an IP filter", () => {
  const partners = new IpFilter({
    default: "block",
    rules: [
      { ...allow("203.0.113.0/24"), description: "ACME" },
      block("203.0.113.66"),
      allow("203.0.113.64/26"),
      block("198.51.100.0/24"),
      allow("198.51.100.7"),
      allow("2001:db8::/32"),
      block("2001:db8:bad::/48"),
    ],
  });

  test.each([
    ["203.0.113.1", "allow", 0],
    ["203.0.113.65", "allow", 2],
    ["203.0.113.66", "block", 1],
    ["198.51.100.7", "block", 3],
    ["192.0.2.1", "block", undefined],
    ["2001:db8::1", "allow", 5],
    ["2001:db8:bad::1", "block", 6],
    ["2001:db9::1", "block", undefined],
    ["::ffff:203.0.113.1", "allow", 0],
    ["::ffff:203.0.113.66", "block", 1],
    ["::ffff:cb00:7142", "block", 1],
    ["2001:db8::1%eth0", "allow", 5],
    ["::203.0.113.1", "block", undefined],
    ["64:ff9b::203.0.113.1", "block", undefined],
    ["2002:cb00:7101::", "block", undefined],
  ])("decides over %s: %s by rule %s", (remoteAddress, action, rule) => {
    const decision = partners.decidePeer(remoteAddress);
    expect(decision.action).toBe(action);
    expect(decision.rule?.index).toBe(rule);
  });

  test("names the deciding rule in full", () => {
    expect(partners.explain(parseIpAddress("203.0.113.1")!)).toEqual({
      action: "allow",
      rule: { index: 0, action: "allow", cidr: "203.0.113.0/24", description: "ACME", trusted: false },
    });
    expect(partners.explain(parseIpAddress("203.0.113.66")!).rule).toEqual({
      index: 1,
      action: "block",
      cidr: "203.0.113.66/32",
      description: "",
      trusted: false,
    });
  });

  test("lets a wide block rule win over a narrow allow rule, in whichever order they stand", () => {
    const rules = [allow("10.1.2.3"), block("10.0.0.0/8")];
    for (const ordered of [rules, rules.toReversed()]) {
      const filter = new IpFilter({ default: "allow", rules: ordered });
      expect(filter.decidePeer("10.1.2.3").rule).toMatchObject({ action: "block", cidr: "10.0.0.0/8" });
    }
  });

  test.each(["allow", "block"] as const)("without rules answers with its default, %s", (action) => {
    const filter = new IpFilter({ default: action, rules: [] });
    expect(filter.decidePeer("192.0.2.1")).toEqual({ action });
    expect(filter.decidePeer("2001:db8::1")).toEqual({ action });
    expect(filter.defaultHits).toBe(2);
  });

  test("keeps ::/0 and IPv4 apart", () => {
    const filter = new IpFilter({ default: "block", rules: [allow("::/0")] });
    expect(filter.decidePeer("192.0.2.1").action).toBe("block");
    expect(filter.decidePeer("::ffff:192.0.2.1").action).toBe("block");
    expect(filter.decidePeer("2001:db8::1").action).toBe("allow");
  });

  test("keeps 0.0.0.0/0 and IPv6 apart", () => {
    const filter = new IpFilter({ default: "block", rules: [allow("0.0.0.0/0")] });
    expect(filter.decidePeer("2001:db8::1").action).toBe("block");
    expect(filter.decidePeer("::192.0.2.1").action).toBe("block");
    expect(filter.decidePeer("::ffff:192.0.2.1").action).toBe("allow");
  });

  test.each([undefined, "", "%eth0", "nonsense", "010.0.0.1", "0x7f.1", "10.1", "2130706433"])(
    "blocks the unreadable peer %j even where the default allows",
    (remoteAddress) => {
      const filter = new IpFilter({ default: "allow", rules: [allow("0.0.0.0/0"), allow("::/0")] });
      expect(filter.decidePeer(remoteAddress)).toEqual({ action: "block" });
    },
  );

  test("counts what each rule decided, and questions do not count", () => {
    const filter = new IpFilter({ default: "block", rules: [allow("10.0.0.0/8"), block("10.0.0.1")] });
    filter.decidePeer("10.0.0.1");
    filter.decidePeer("10.0.0.2");
    filter.decidePeer("::ffff:10.0.0.3");
    filter.decidePeer("192.0.2.1");
    filter.explain(parseIpAddress("10.0.0.2")!);
    filter.decide(parseIpAddress("10.0.0.2")!);
    filter.decidePeer("nonsense");
    expect([filter.hitsOf(0), filter.hitsOf(1), filter.defaultHits]).toEqual([3, 1, 1]);
  });

  test("hands out the same decision again instead of making a new one", () => {
    expect(partners.decidePeer("203.0.113.1")).toBe(partners.decidePeer("203.0.113.2"));
    expect(partners.decidePeer("192.0.2.1")).toBe(partners.decidePeer("192.0.2.2"));
  });

  test("reports the first of two equal rules", () => {
    const filter = new IpFilter({ default: "block", rules: [allow("10.0.0.0/8"), allow("10.0.0.0/8")] });
    expect(filter.decidePeer("10.0.0.1").rule?.index).toBe(0);
  });
});

describe("a peer's address in every spelling", () => {
  // Each address as a kernel or a careless library may write it.
  const spellings: ReadonlyArray<readonly [address: string, wide: string, written: readonly string[]]> = [
    [
      "10.1.2.3",
      "10.0.0.0/8",
      [
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "::FFFF:10.1.2.3",
        "::ffff:a01:203",
        "::ffff:0a01:0203",
        "0:0:0:0:0:ffff:10.1.2.3",
        "0000:0000:0000:0000:0000:ffff:0a01:0203",
        "0::ffff:10.1.2.3",
        "::ffff:10.1.2.3%lo",
      ],
    ],
    [
      "2001:db8::1",
      "2000::/8",
      [
        "2001:db8::1",
        "2001:DB8::1",
        "2001:0db8::0001",
        "2001:db8:0:0:0:0:0:1",
        "2001:db8::0:1",
        "2001:0db8:0000:0000:0000:0000:0000:0001",
        "2001:db8::0.0.0.1",
      ],
    ],
    [
      "fe80::1",
      "fe00::/8",
      ["fe80::1", "fe80::1%eth0", "fe80::1%1", "FE80::1", "fe80:0:0:0:0:0:0:1", "fe80:0:0:0::1%25eth0"],
    ],
  ];
  const refused = [
    "010.1.2.3",
    "012.1.2.3",
    "10.1.2.03",
    "10.66051",
    "10.1.515",
    "0x0a010203",
    "0x0a.1.2.3",
    "167838211",
    "01200201003",
    "10.1.2.3.",
    " 10.1.2.3",
    "[::ffff:10.1.2.3]",
    "::ffff:010.1.2.3",
    "\uff11\uff10.1.2.3",
  ];
  const cidrs = (address: string, wide: string): string[] => [
    address,
    wide,
    "0.0.0.0/0",
    "::/0",
    "::ffff:10.0.0.0/104",
    "::ffff:0:0/96",
  ];

  test.each(
    spellings.flatMap(([address, wide, written]) =>
      written.flatMap((text) =>
        cidrs(address, wide).flatMap((cidr) => [
          { text, cidr, action: "allow" as const, address },
          { text, cidr, action: "block" as const, address },
        ]),
      ),
    ),
  )("$text meets the rule $action $cidr as $address does", ({ text, cidr, action, address }) => {
    const filter = new IpFilter({
      default: action === "allow" ? "block" : "allow",
      rules: [{ action, cidr: parseCidr(cidr) }],
    });
    const isIpv4 = address === "10.1.2.3";
    const isIpv4Rule = cidr !== "::/0" && (cidr.includes(".") || cidr.startsWith("::ffff"));
    expect(filter.decidePeer(text)).toEqual(filter.explain(parseIpAddress(address)!));
    expect(filter.decidePeer(text).rule !== undefined).toBe(isIpv4 === isIpv4Rule);
  });

  test.each(refused)("%j is never taken for 10.1.2.3", (text) => {
    const filter = new IpFilter({
      default: "allow",
      rules: [allow("10.1.2.3"), allow("8.0.0.0/8"), allow("0.0.0.0/0")],
    });
    expect(filter.decidePeer(text)).toEqual({ action: "block" });
  });
});

describe("a peer on a real socket", () => {
  const filter = new IpFilter({ default: "block", rules: [allow("127.0.0.0/8"), block("127.0.0.2"), allow("::1")] });

  test.each([
    ["::", "127.0.0.1", "127.0.0.1", "allow", 0],
    ["::", "127.0.0.1", "127.0.0.2", "block", 1],
    ["::", "::1", "::1", "allow", 2],
    ["0.0.0.0", "127.0.0.1", "127.0.0.1", "allow", 0],
  ])("on a listener at %s to %s from %s: %s", async (listen, host, localAddress, action, rule) => {
    const server = createServer();
    server.listen(0, listen);
    await once(server, "listening");
    const { port } = server.address() as { port: number };
    const accepted = once(server, "connection");
    const client = connect({ host, port, localAddress });
    client.on("error", () => {});
    const [socket] = await accepted;
    const decision = filter.decidePeer(socket.remoteAddress);
    client.destroy();
    socket.destroy();
    server.close();
    expect(decision.action).toBe(action);
    expect(decision.rule?.index).toBe(rule);
  });
});

describe("an IP filter with random rules", () => {
  /** The same question put to numbers of arbitrary size, rule by rule. */
  function reference(rules: readonly IpFilterRule[], fallback: RuleAction, address: IpAddress): [RuleAction, number] {
    const width = address.family === 4 ? 32 : 128;
    for (const action of ["block", "allow"] as const) {
      let best = -1;
      for (const [index, rule] of rules.entries()) {
        const shift = BigInt(width - rule.cidr.prefixLength);
        if (
          rule.action === action &&
          rule.cidr.family === address.family &&
          toBigInt(rule.cidr.address) >> shift === toBigInt(address) >> shift &&
          (best === -1 || rule.cidr.prefixLength > rules[best].cidr.prefixLength)
        ) {
          best = index;
        }
      }
      if (best !== -1) {
        return [action, best];
      }
    }
    return [fallback, -1];
  }

  const toBigInt = (address: IpAddress): bigint => BigInt(`0x${Buffer.from(address.bytes).toString("hex")}`);

  // Few distinct bytes, so that rules nest, meet and miss by a bit instead of standing apart.
  const someAddress: fc.Arbitrary<IpAddress> = fc.constantFrom(4 as const, 6 as const).chain((family) =>
    fc
      .array(fc.constantFrom(0, 1, 0x7f, 0x80, 0xfe, 0xff), {
        minLength: family === 4 ? 4 : 16,
        maxLength: family === 4 ? 4 : 16,
      })
      .map((bytes) => parseIpAddress(formatIpAddress({ family, bytes: Uint8Array.from(bytes) }))!),
  );
  const someRule: fc.Arbitrary<IpFilterRule> = fc
    .record({
      address: someAddress,
      length: fc.nat(128),
      action: fc.constantFrom("allow" as const, "block" as const),
    })
    .map(({ address, length, action }) => {
      const width = address.family === 4 ? 32 : 128;
      const prefixLength = address.family === 4 ? length >> 2 : length;
      const shift = BigInt(width - prefixLength);
      const hex = ((toBigInt(address) >> shift) << shift).toString(16).padStart(width / 4, "0");
      const masked = { family: address.family, bytes: Uint8Array.from(Buffer.from(hex, "hex")) };
      return { action, cidr: { family: address.family, address: masked, prefixLength } };
    });

  // One run asks for fifty addresses. SALLYPORT_TEST_IP_PAIRS=1000000 is the long form.
  const pairs = Number(process.env["SALLYPORT_TEST_IP_PAIRS"] ?? 100_000);

  /** Rules that lie so close that nodes branch by many bits. They differ in 12 bits, behind which there are `shift` more. */
  const crowdedRules = (family: 4 | 6, shift: number): fc.Arbitrary<IpFilterRule[]> =>
    fc.array(
      fc
        .record({
          number: fc.nat(4_095),
          wildcardBits: fc.oneof(fc.constant(0), fc.nat(13)),
          action: fc.constantFrom("allow" as const, "block" as const),
        })
        .map(({ number, wildcardBits, action }) => ({
          action,
          cidr: {
            family,
            address: crowdedAddress(family, shift, (number >> wildcardBits) << wildcardBits),
            prefixLength: (family === 4 ? 32 : 128) - shift - wildcardBits,
          },
        })),
      { minLength: 300, maxLength: 1_500 },
    );

  function crowdedAddress(family: 4 | 6, shift: number, number: number): IpAddress {
    const value = (family === 4 ? 0x0a00_0000n : 0x2001_0db8n << 96n) + (BigInt(number) << BigInt(shift));
    const hex = value.toString(16).padStart(family === 4 ? 8 : 32, "0");
    return { family, bytes: Uint8Array.from(Buffer.from(hex, "hex")) };
  }

  test.each([
    [4, 0],
    [4, 7],
    [6, 0],
    [6, 25],
    [6, 60],
  ] as const)(
    "that are crowded agrees with arithmetic, IPv%i with %i bits behind",
    (family, shift) => {
      fc.assert(
        fc.property(crowdedRules(family, shift), fc.array(fc.nat(8_191), { minLength: 20 }), (rules, numbers) => {
          const filter = new IpFilter({ default: "block", rules });
          const addresses = numbers.map((number) => crowdedAddress(family, shift, number));
          const found = addresses.map((address) => filter.explain(address).rule?.index ?? -1);
          expect(found).toEqual(addresses.map((address) => reference(rules, "block", address)[1]));
        }),
        { numRuns: 20 },
      );
    },
    60_000,
  );

  test(`agrees with arithmetic on whole numbers, ${pairs} times`, () => {
    fc.assert(
      fc.property(
        fc.array(someRule, { maxLength: 40 }),
        fc.array(someAddress, { minLength: 50, maxLength: 50 }),
        fc.constantFrom("allow" as const, "block" as const),
        (rules, addresses, fallback) => {
          const filter = new IpFilter({ default: fallback, rules });
          for (const address of addresses) {
            const decision = filter.explain(address);
            const [action, index] = reference(rules, fallback, address);
            if (
              decision.action !== action ||
              (decision.rule?.index ?? -1) !== index ||
              filter.decidePeer(formatIpAddress(address)) !== decision
            ) {
              throw new Error(
                `${formatIpAddress(address)}: ${JSON.stringify(decision)}, but ${action} by rule ${index}`,
              );
            }
          }
        },
      ),
      { numRuns: Math.ceil(pairs / 50) },
    );
    expect(pairs).toBeGreaterThanOrEqual(100_000);
  }, 600_000);
});

describe("an IP filter with 100,000 rules", () => {
  test.each([4, 6] as const)("is built in bounded time and finds each rule, IPv%i", (family) => {
    const rules: IpFilterRule[] = Array.from({ length: 100_000 }, (_, index) => {
      const bytes = new Uint8Array(family === 4 ? 4 : 16);
      // An odd factor scatters the indices over the whole range without meeting twice.
      new DataView(bytes.buffer).setUint32(0, Math.imul(index, 0x9e3779b1));
      return { action: "block", cidr: { family, address: { family, bytes }, prefixLength: family === 4 ? 32 : 128 } };
    });
    const started = performance.now();
    const filter = new IpFilter({ default: "allow", rules });
    const elapsedMs = performance.now() - started;
    const wrong = rules.findIndex((rule, index) => filter.explain(rule.cidr.address).rule?.index !== index);
    expect(wrong).toBe(-1);
    // A few hundred milliseconds on a slow machine; quadratic growth would be minutes.
    expect(elapsedMs).toBeLessThan(5_000);
  });
});
