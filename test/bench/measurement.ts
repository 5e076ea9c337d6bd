import type { Bench } from "./bench.ts";
import type { Peer } from "./peer.ts";

/** One figure of the report. */
export interface Column {
  /** In raw results; unique over all measurements. */
  readonly id: string;
  /** In the report, under the title of its measurement. */
  readonly title: string;
  readonly unit: string;
  readonly better: "more" | "less";
}

/** A number in the column's unit, or why there is none. */
export type Value = number | string;
export type Values = Readonly<Record<string, Value>>;

/** A group of columns that are measured together on one run of a peer. */
export interface Measurement {
  /** What `--columns` takes. */
  readonly id: string;
  readonly title: string;
  /** How it is measured, in the report. */
  readonly method: string;
  readonly columns: readonly Column[];
  /** Of the harness' own; without one of them the whole group is "not installed". */
  readonly programs: readonly string[];
  /** For figures that hardly differ between rounds and take long. Default: every round. */
  readonly maxRounds?: number;
  /** Left out of `--smoke`. */
  readonly isSlow?: true;
  /** How long it takes for one peer, start and stop included, in seconds; for the estimate. */
  readonly estimateSeconds: (seconds: number) => number;
  readonly suits: (peer: Peer) => boolean;
  readonly measure: (bench: Bench, peer: Peer) => Promise<Values>;
}
