/** One stream over several links: in order and whole, whichever link is slow, stalls or is lost. */
import { describe, expect, it } from "vitest";
import { Pair } from "../../../test/support/pair.ts";
import { seededRandom } from "../../../test/support/seeded-random.ts";

const TOTAL = 6_000_000;
const whole = { outcomes: ["finished", "finished"], missing: [0, 0], streams: [0, 0] };

function ending(pair: Pair, id: number): object {
  const [edge, agent] = [pair.edge.stream(id), pair.agent.stream(id)];
  return {
    outcomes: [edge.outcome, agent.outcome],
    missing: [agent.written - edge.received, edge.written - agent.received],
    streams: [pair.edge.session.streamCount, pair.agent.session.streamCount],
  };
}

function start(options: { links: number; stripe?: boolean; linkBytes?: number }) {
  const dataBytes = new Map<number, number>();
  const session = { stripe: options.stripe ?? true };
  const pair = new Pair({
    links: options.links,
    latencyMs: 25,
    linkBytes: options.linkBytes ?? 2_000_000,
    edge: session,
    agent: session,
    observe: (what, { link, frame }) => {
      if (what === "sent" && frame.type === "data")
        dataBytes.set(link, (dataBytes.get(link) ?? 0) + frame.bytes.length);
    },
  });
  // The first round trips are measured before the transfer begins.
  pair.settle();
  const id = pair.edge.open();
  return { pair, id, dataBytes };
}

function transfer(pair: Pair, id: number): void {
  pair.agent.send(id, TOTAL);
  pair.agent.end(id);
  pair.edge.send(id, TOTAL);
  pair.edge.end(id);
}

describe("a striped stream", () => {
  it("uses every link when its own is busy", () => {
    const { pair, id, dataBytes } = start({ links: 4, linkBytes: 100_000 });
    pair.settle();
    transfer(pair, id);
    pair.settle();
    expect(ending(pair, id)).toEqual(whole);
    expect([...dataBytes.values()].filter((bytes) => bytes > 200_000)).toHaveLength(4);
    expect(pair.edge.session.counters.stripedBytes).toBeGreaterThan(0);
    expect(pair.edge.session.counters.retransmittedBytes).toBe(0);
  });

  it("stays on one link where striping is off", () => {
    const { pair, id, dataBytes } = start({ links: 4, stripe: false });
    pair.settle();
    transfer(pair, id);
    pair.settle();
    expect(ending(pair, id)).toEqual(whole);
    expect(dataBytes.size).toBe(1);
  });

  it("waits for a link that stalls, and goes on without loss when it is found to be dead", () => {
    const { pair, id } = start({ links: 3 });
    pair.settle();
    transfer(pair, id);
    pair.run(60);
    // Nobody notices: what it carried is missing until its heartbeat is.
    pair.loseLink(3, { edgeNoticesMs: 2_000, agentNoticesMs: 1_500 });
    pair.run(30_000);
    pair.settle();
    expect(ending(pair, id)).toEqual(whole);
  });

  it.each(Array.from({ length: 40 }, (_, seed) => seed + 1))(
    "loses nothing with links that come and go (seed %i)",
    (seed) => {
      const random = seededRandom(String(seed));
      const below = (bound: number) => Math.floor(random() * bound);
      const { pair, id } = start({ links: 1 + below(4), linkBytes: 50_000 + below(400_000) });
      pair.settle();
      transfer(pair, id);
      for (let step = 0; step < 25; step += 1) {
        pair.run(below(40));
        const links = pair.liveLinks;
        const link = links[below(Math.max(1, links.length))];
        if (link !== undefined && below(3) === 0) {
          const noticesMs = () => below(300);
          pair.loseLink(link, {
            edgeNoticesMs: noticesMs(),
            agentNoticesMs: noticesMs(),
            deliverInFlight: below(2) === 0,
          });
        } else if (links.length < 5 && below(2) === 0) {
          const latency = () => 1 + below(120);
          pair.addLink({ toEdge: latency(), toAgent: latency() });
        }
      }
      if (pair.liveLinks.length === 0) pair.addLink();
      pair.run(1_000);
      pair.settle();
      if (pair.liveLinks.length === 0) pair.addLink();
      pair.settle();
      expect(ending(pair, id)).toEqual(whole);
    },
  );
});
