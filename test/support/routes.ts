import { SallyportPair } from "./sallyport-pair.ts";

/** The two ways in which a partner's connection reaches its target. */
export const ROUTE_MODES = ["tunnelled", "direct"] as const;
export type RouteMode = (typeof ROUTE_MODES)[number];

/**
 * Both routes to each of some targets through one pair: a deployment that goes through the tunnel and one that the edge
 * dials itself. The caller awaits `stop()`.
 *
 * `SALLYPORT_TEST_BASELINE=1` leaves the product out and hands out the targets' own ports. When a test fails in the same
 * way without the product, the fault lies in the test or in the machine. It has no effect where `CI` is set.
 */
export class Routes<Target extends string> {
  readonly pair: SallyportPair | undefined;
  readonly #targetPorts: Readonly<Record<Target, number>>;

  private constructor(targetPorts: Readonly<Record<Target, number>>, pair: SallyportPair | undefined) {
    this.#targetPorts = targetPorts;
    this.pair = pair;
  }

  /** Takes each target's name and its port on 127.0.0.1. */
  static async to<Target extends string>(targetPorts: Readonly<Record<Target, number>>): Promise<Routes<Target>> {
    if (process.env.SALLYPORT_TEST_BASELINE === "1" && process.env.CI === undefined) {
      return new Routes(targetPorts, undefined);
    }
    const addresses = Object.entries<number>(targetPorts).map(([name, port]) => [name, `127.0.0.1:${port}`] as const);
    const pair = await SallyportPair.start({
      deployments: addresses.flatMap(([name, address]) => [
        { name: deploymentName(name, "tunnelled"), target: name },
        { name: deploymentName(name, "direct"), target: address, direct: true },
      ]),
      services: Object.fromEntries(addresses),
    });
    return new Routes(targetPorts, pair);
  }

  port(target: Target, mode: RouteMode): number {
    return this.pair?.listenerPort(deploymentName(target, mode)) ?? this.#targetPorts[target];
  }

  /**
   * Rejects unless at least `count` connections of this route come to their end and are recorded: by the edge under the
   * route's deployment, and for the tunnelled route by the agent, too.
   */
  async expectCarried(target: Target, mode: RouteMode, count: number): Promise<void> {
    if (this.pair === undefined) return;
    await this.pair.waitForEdgeRecords(deploymentName(target, mode), count);
    if (mode === "tunnelled") await this.pair.waitForAgentRecords(count);
  }

  async stop(): Promise<void> {
    await this.pair?.stop();
  }
}

function deploymentName(target: string, mode: RouteMode): string {
  return `${target}-${mode}`;
}
