/** What is counted of connections when they end: how they ended, and how long each part of them took. */
import { Ended, type Ending } from "@sallyport/tunnel";
import type { ConnectionFacts } from "./access-record.ts";
import { CONNECT_BOUNDS, DurationHistogram, SESSION_BOUNDS } from "./duration-histogram.ts";
import { noServerName } from "./prelude.ts";

export interface EndedOfDeployment {
  readonly listener: string;
  readonly deployment: string;
  /** By the two letters, of which there are some thirty. */
  readonly codes: Map<string, number>;
  readonly timeouts: { idle: number; halfClose: number };
  /** Those that reached the longest duration. */
  maxDuration: number;
  /** Those for which there was no deployment, or no agent in time. */
  noRoute: number;
  readonly queue: DurationHistogram;
  readonly connect: DurationHistogram;
  readonly session: DurationHistogram;
}

const withoutRoute: ReadonlySet<string> = new Set(
  [Ended.noAgent, Ended.noAgentInTime, Ended.holdFull, noServerName].map(({ reason }) => reason),
);

export class EndedConnections {
  /** By listener and deployment. `keep` bounds them by the configuration. */
  readonly #all = new Map<string, EndedOfDeployment>();

  /** One that admission let through, or that it refused. */
  count(facts: ConnectionFacts, ending: Ending): void {
    const { listener, deployment = "" } = facts;
    // Names hold no space.
    const key = `${listener} ${deployment}`;
    let ended = this.#all.get(key);
    if (ended === undefined) {
      ended = {
        listener,
        deployment,
        codes: new Map(),
        timeouts: { idle: 0, halfClose: 0 },
        maxDuration: 0,
        noRoute: 0,
        queue: new DurationHistogram(CONNECT_BOUNDS),
        connect: new DurationHistogram(CONNECT_BOUNDS),
        session: new DurationHistogram(SESSION_BOUNDS),
      };
      this.#all.set(key, ended);
    }
    ended.codes.set(ending.code, (ended.codes.get(ending.code) ?? 0) + 1);
    const { reason } = ending;
    if (reason === Ended.idleTimeout.reason || reason === Ended.idleTimeoutLast.reason) ended.timeouts.idle += 1;
    else if (reason === Ended.halfCloseTimeout.reason) ended.timeouts.halfClose += 1;
    else if (reason === Ended.maxDuration.reason) ended.maxDuration += 1;
    else if (withoutRoute.has(reason)) ended.noRoute += 1;
    if (facts.denied !== undefined) return;
    ended.queue.observeMs(facts.queueMs);
    ended.connect.observeMs(facts.connectMs);
    ended.session.observeMs(facts.totalMs);
  }

  /** Forgets what the configuration no longer has; answers with the rest. */
  keep(isKnown: (listener: string, deployment: string) => boolean): EndedOfDeployment[] {
    for (const [key, { listener, deployment }] of this.#all) {
      if (!isKnown(listener, deployment)) this.#all.delete(key);
    }
    return [...this.#all.values()];
  }
}
