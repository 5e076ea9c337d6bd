import { describe, expect, it } from "vitest";
import { DialLimits, type DialPermit } from "./dial-limits.ts";

function limits(options: {
  maxConnections?: number;
  dialsPerSecond?: number;
  services?: Record<string, { maxConnections?: number; dialsPerSecond?: number }>;
}): DialLimits {
  return new DialLimits(settings(options));
}

function settings(options: Parameters<typeof limits>[0]) {
  return {
    maxConnections: options.maxConnections ?? 1_000,
    dialsPerSecond: options.dialsPerSecond ?? 1_000,
    services: new Map(
      Object.entries(options.services ?? {}).map(([name, { maxConnections, dialsPerSecond }]) => [
        name,
        { maxConnections, dialsPerSecond },
      ]),
    ),
  };
}

function permit(answer: DialPermit | string): DialPermit {
  if (typeof answer === "string") throw new Error(answer);
  return answer;
}

describe("dial limits", () => {
  it("count a dial until its permit is released, and once only", () => {
    const subject = limits({ maxConnections: 2 });
    const first = permit(subject.admit(undefined, 0));
    permit(subject.admit("sftp", 0));
    expect(subject.admit(undefined, 0)).toBe("maxConnections");
    first.release();
    first.release();
    expect(subject.active).toBe(1);
    permit(subject.admit(undefined, 0));
    expect(subject.admit(undefined, 0)).toBe("maxConnections");
  });

  it("hold for each service on its own", () => {
    const subject = limits({ services: { a: { maxConnections: 1 }, b: { maxConnections: 1 } } });
    permit(subject.admit("a", 0));
    expect(subject.admit("a", 0)).toBe("serviceMaxConnections");
    permit(subject.admit("b", 0));
    permit(subject.admit(undefined, 0));
  });

  it("let as many dials through as a second earns, and no more", () => {
    const subject = limits({ dialsPerSecond: 3 });
    for (let dial = 0; dial < 3; dial += 1) permit(subject.admit(undefined, 0)).release();
    expect(subject.admit(undefined, 0)).toBe("dialsPerSecond");
    expect(subject.admit(undefined, 300)).toBe("dialsPerSecond");
    permit(subject.admit(undefined, 340)).release();
    expect(subject.admit(undefined, 340)).toBe("dialsPerSecond");
    for (let dial = 0; dial < 3; dial += 1) permit(subject.admit(undefined, 60_000)).release();
    expect(subject.admit(undefined, 60_000)).toBe("dialsPerSecond");
  });

  it("take nothing from the common budget when a service's own is used up", () => {
    const subject = limits({ dialsPerSecond: 2, services: { a: { dialsPerSecond: 1 } } });
    permit(subject.admit("a", 0)).release();
    expect(subject.admit("a", 0)).toBe("serviceDialsPerSecond");
    permit(subject.admit(undefined, 0)).release();
  });

  it("never go backwards with the clock", () => {
    const subject = limits({ dialsPerSecond: 1 });
    permit(subject.admit(undefined, 10_000)).release();
    expect(subject.admit(undefined, 1_000)).toBe("dialsPerSecond");
  });

  it("bound a flood of opens and resets by the rate", () => {
    const subject = limits({ dialsPerSecond: 100 });
    let dials = 0;
    for (let at = 0; at < 20_000; at += 1) {
      const answer = subject.admit(undefined, at / 20);
      if (typeof answer !== "string") {
        dials += 1;
        answer.release();
      }
    }
    expect(dials).toBeGreaterThanOrEqual(199);
    expect(dials).toBeLessThanOrEqual(201);
  });

  it("take a new configuration over while connections run", () => {
    const subject = limits({ services: { a: { maxConnections: 5 } } });
    const running = [permit(subject.admit("a", 0)), permit(subject.admit("a", 0))];
    subject.update(settings({ services: { a: { maxConnections: 2 } } }));
    expect(subject.admit("a", 0)).toBe("serviceMaxConnections");
    for (const each of running) each.release();
    permit(subject.admit("a", 0));
    subject.update(settings({ services: {} }));
    expect(subject.active).toBe(1);
  });
});
