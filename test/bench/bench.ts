import { LOOPBACK_SITE, PeerRun } from "./peer-run.ts";
import type { Site } from "./peer-run.ts";
import type { Certificates } from "./certificates.ts";
import type { Peer } from "./peer.ts";
import { Targets } from "./targets.ts";
import type { TargetName } from "./targets.ts";

export interface BenchOptions {
  /** Of each single measurement. */
  readonly seconds: number;
  readonly isSmoke: boolean;
  readonly certificates: Certificates;
}

/** What measurements work with: the targets on loopback, which stay, and runs of peers, which do not. */
export class Bench {
  readonly seconds: number;
  /** Only whether everything works counts: the shortest durations and the smallest numbers. */
  readonly isSmoke: boolean;
  readonly certificates: Certificates;
  readonly targets: Targets;

  private constructor(options: BenchOptions, targets: Targets) {
    this.seconds = options.seconds;
    this.isSmoke = options.isSmoke;
    this.certificates = options.certificates;
    this.targets = targets;
  }

  static async open(options: BenchOptions): Promise<Bench> {
    return new Bench(options, await Targets.on(LOOPBACK_SITE.targetHost));
  }

  /** Starts the peer in front of these targets and of the echo target, and stops it however `use` ends. */
  async withPeer<T>(
    peer: Peer,
    names: readonly TargetName[],
    use: (run: PeerRun) => Promise<T>,
    { site = LOOPBACK_SITE, targets = this.targets }: { readonly site?: Site; readonly targets?: Targets } = {},
  ): Promise<T> {
    const routes = [];
    for (const name of new Set<TargetName>(["echo", ...names])) routes.push({ name, port: await targets.port(name) });
    const run = await PeerRun.start({ peer, site, routes, certificates: this.certificates });
    try {
      return await use(run);
    } finally {
      await run.stop();
    }
  }

  close(): Promise<void> {
    return this.targets.close();
  }
}
