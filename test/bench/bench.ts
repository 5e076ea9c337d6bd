import { EmulatedPath } from "../support/link-emulator.ts";
import type { PathOptions } from "../support/link-emulator.ts";
import { LOOPBACK_SITE, PeerRun } from "./peer-run.ts";
import type { Site } from "./peer-run.ts";
import type { Certificates } from "./certificates.ts";
import type { Load } from "./iperf.ts";
import type { Peer } from "./peer.ts";
import { Targets } from "./targets.ts";
import type { TargetName } from "./targets.ts";

export interface BenchOptions {
  /** Of each single measurement. */
  readonly seconds: number;
  readonly isSmoke: boolean;
  readonly certificates: Certificates;
}

/** A long way between the two ends, and targets that the inner end reaches on a short one. */
export interface FarSite {
  readonly site: Site;
  readonly targets: Targets;
}

interface OpenFarSite extends FarSite {
  readonly key: string;
  readonly path: EmulatedPath;
}

/** What measurements work with: the targets on loopback, which stay, and runs of peers, which do not. */
export class Bench {
  readonly seconds: number;
  /** Only whether everything works counts: the shortest durations and the smallest numbers. */
  readonly isSmoke: boolean;
  readonly certificates: Certificates;
  readonly targets: Targets;
  /** One at a time: the next one takes its place. */
  #farSite: OpenFarSite | undefined;

  private constructor(options: BenchOptions, targets: Targets) {
    this.seconds = options.seconds;
    this.isSmoke = options.isSmoke;
    this.certificates = options.certificates;
    this.targets = targets;
  }

  static async open(options: BenchOptions): Promise<Bench> {
    return new Bench(options, await Targets.on(LOOPBACK_SITE.targetHost));
  }

  /**
   * What iperf3 sends: for so many seconds, or little when only whether it works counts. It is more than fits into the
   * buffers on the way, or the receiver could have nothing when the sender is done.
   */
  load(seconds: number): Load {
    return this.isSmoke ? { bytes: 2 ** 24 } : { seconds };
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

  /** Stays until one with other options is asked for, or until `close`. */
  async farSite(options: PathOptions): Promise<FarSite> {
    const key = JSON.stringify(options);
    if (this.#farSite?.key === key) return this.#farSite;
    await this.#closeFarSite();
    const path = await EmulatedPath.start(options);
    const site: Site = {
      edgeHost: path.nearHost,
      agentHost: path.farHost,
      targetHost: path.besideHost,
      agentCommand: path.farCommand,
    };
    this.#farSite = { key, path, site, targets: await Targets.on(path.besideHost) };
    return this.#farSite;
  }

  async close(): Promise<void> {
    await this.#closeFarSite();
    await this.targets.close();
  }

  async #closeFarSite(): Promise<void> {
    const open = this.#farSite;
    this.#farSite = undefined;
    await open?.targets.close();
    await open?.path.close();
  }
}
