/** What a run has measured, as it is kept: `docs/benchmarks.json`. */
import type { Value, Values } from "./measurement.ts";

export interface PeerDescription {
  readonly id: string;
  readonly title: string;
  readonly kind: string;
  readonly protection: string;
  readonly settings: string;
  readonly version: string;
  readonly isOurs: boolean;
  /** Why it was not measured at all, such as "not installed". */
  readonly absent?: string;
}

export interface Sample {
  readonly round: number;
  readonly measurement: string;
  readonly peer: string;
  readonly values: Values;
}

export interface Result {
  readonly startedAt: string;
  readonly durationSeconds: number;
  readonly command: string;
  readonly rounds: number;
  readonly seconds: number;
  /** The short form: the figures say only that something was measured. */
  readonly isSmoke: boolean;
  /** Machine, kernel, and the versions of runtime and of the programs that make load; names to values. */
  readonly machine: Readonly<Record<string, string>>;
  readonly peers: readonly PeerDescription[];
  /** Ids of the measurements that were taken. */
  readonly measurements: readonly string[];
  readonly samples: readonly Sample[];
}

/** A column of a peer over all rounds. */
export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly rounds: number;
}

/** What one peer had in one column, by round. */
function byRound(result: Result, peer: string, column: string): Map<number, Value> {
  const values = new Map<number, Value>();
  for (const sample of result.samples) {
    const value = sample.values[column];
    if (sample.peer === peer && value !== undefined) values.set(sample.round, value);
  }
  return values;
}

/** A text says why there is no figure; `undefined`: it was not measured. One round with a figure is enough. */
export function summaryOf(result: Result, peer: string, column: string): Summary | string | undefined {
  const values = [...byRound(result, peer, column).values()];
  return (
    summarize(values.filter((value) => typeof value === "number")) ?? values.find((value) => typeof value === "string")
  );
}

/** Of the ratios of `peer` to `base` within each round: what disturbs a whole round cancels out. */
export function pairedRatio(
  result: Result,
  { peer, base, column }: { readonly peer: string; readonly base: string; readonly column: string },
): Summary | undefined {
  const bases = byRound(result, base, column);
  const ratios = [...byRound(result, peer, column)].flatMap(([round, value]) => {
    const other = bases.get(round);
    return typeof value === "number" && typeof other === "number" && other > 0 ? [value / other] : [];
  });
  return summarize(ratios);
}

function summarize(values: readonly number[]): Summary | undefined {
  if (values.length === 0) return undefined;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return {
    median: sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2,
    min: sorted[0]!,
    max: sorted.at(-1)!,
    rounds: sorted.length,
  };
}
