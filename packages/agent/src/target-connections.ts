/** The connections of the agent: those that live, and the totals of all that ever were. */
import type { DialErrorReason } from "@sallyport/host";
import { type Open, ResetCode } from "@sallyport/protocol";
import type { StreamHandler, TunnelStream } from "@sallyport/tunnel";
import { TargetConnection, type TargetConnectionEvents, type TargetContext } from "./target-connection.ts";

/** The label of targets that `allow` admits. No service can have this name. */
export const ALLOW_LABEL = "(allow)";

export class TargetConnections implements TargetConnectionEvents {
  /** For connections to come; replaced by a reload. */
  context: TargetContext;
  /** Bounded by the dial limits. */
  readonly live = new Set<TargetConnection>();

  /** Totals that only grow, for metrics. */
  forbidden = 0;
  /** Dials begun, by service; bounded by the services that were ever configured. */
  readonly dialled = new Map<string, number>();
  /** Those that live, by service; bounded by them. */
  readonly #active = new Map<string, number>();
  /** The same of checks, which are not among the dials. */
  readonly checks = new Map<string, number>();
  readonly dialErrors: Partial<Record<DialErrorReason | "limit", number>> = {};
  #bytesIn = 0;
  #bytesOut = 0;
  #whenEmpty: (() => void)[] = [];

  constructor(context: TargetContext) {
    this.context = context;
  }

  /** Bytes of all connections so far; they move while a transfer runs. */
  get bytes(): { readonly in: number; readonly out: number } {
    let bytesIn = this.#bytesIn;
    let bytesOut = this.#bytesOut;
    for (const connection of this.live) {
      bytesIn += connection.bytesIn;
      bytesOut += connection.bytesOut;
    }
    return { in: bytesIn, out: bytesOut };
  }

  /** Carries an OPEN of `edge` out. */
  serve(edge: string, open: Open, stream: TunnelStream): StreamHandler | undefined {
    return TargetConnection.serve({ edge, open, stream, context: this.context, events: this });
  }

  /** Ends the connection of this id; false when there is none. Ids come from edges, so there may be several. */
  kill(id: string): boolean {
    const found = [...this.live].filter((connection) => connection.id === id);
    for (const connection of found) connection.abort(ResetCode.killed);
    return found.length > 0;
  }

  /** Resets all connections. */
  shutDown(): void {
    for (const connection of this.live) connection.abort(ResetCode.shutdown);
  }

  /** Resolves when no connection lives. */
  async whenEmpty(): Promise<void> {
    if (this.live.size === 0) return;
    await new Promise<void>((resolve) => this.#whenEmpty.push(resolve));
  }

  onDialling(connection: TargetConnection): void {
    this.live.add(connection);
    const label = connection.service ?? ALLOW_LABEL;
    if (connection.isCheck) this.checks.set(label, (this.checks.get(label) ?? 0) + 1);
    else this.dialled.set(label, (this.dialled.get(label) ?? 0) + 1);
    this.#active.set(label, (this.#active.get(label) ?? 0) + 1);
  }

  active({ service }: TargetConnection): { agent: number; service: number | undefined } {
    return {
      agent: this.live.size,
      service: service === undefined ? undefined : (this.#active.get(service) ?? 0),
    };
  }

  onEnded(connection: TargetConnection): void {
    if (!this.live.delete(connection)) return;
    this.#bytesIn += connection.bytesIn;
    this.#bytesOut += connection.bytesOut;
    const label = connection.service ?? ALLOW_LABEL;
    const left = (this.#active.get(label) ?? 1) - 1;
    if (left === 0) this.#active.delete(label);
    else this.#active.set(label, left);
    if (this.live.size > 0) return;
    for (const resolve of this.#whenEmpty.splice(0)) resolve();
  }

  onForbidden(): void {
    this.forbidden += 1;
  }

  onDialError(reason: DialErrorReason | "limit"): void {
    this.dialErrors[reason] = (this.dialErrors[reason] ?? 0) + 1;
  }
}
