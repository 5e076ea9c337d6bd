/** A way from a partner to a target: our product, what would be taken instead, or the floor below both. */
import type { PeerRun } from "./peer-run.ts";

/**
 * `floor`: no product, but what the machine or the runtime can do. `relay`: no tunnel, one program beside the partner, as
 * the edge's direct mode. `tunnel`: two programs, and the inner one dials.
 */
export type PeerKind = "floor" | "relay" | "tunnel";

export interface Peer {
  /** In options and raw results; lower case. */
  readonly id: string;
  /** In the report. */
  readonly title: string;
  readonly kind: PeerKind;
  /** What protects the way between its two ends; the report shows it. */
  readonly protection: string;
  /** Settings that differ from the program's defaults, in a few words for the report. */
  readonly settings: string;
  /** What it needs on PATH. One that is missing makes it a row "not installed". */
  readonly programs: readonly string[];
  /** The product under test, in any of its variants. */
  readonly isOurs?: true;
  /** Only these groups of columns make sense for it. Default: all that suit its kind. */
  readonly onlyGroups?: readonly string[];
  /** Why it cannot be measured here, when its programs are there and it can't. */
  readonly unavailable?: () => string | undefined;
  /** The version, as short as it can be told. */
  readonly version: () => Promise<string>;
  /**
   * Prepares keys and configurations, launches the ends through `run` and resolves with the port on 127.0.0.1 at which
   * partners reach each route. It need not wait until bytes flow: `PeerRun` does.
   */
  readonly start: (run: PeerRun) => Promise<ReadonlyMap<string, number>>;
}
