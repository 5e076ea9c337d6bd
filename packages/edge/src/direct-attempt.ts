/** A try in which the edge dials the target itself. Nothing is read from the partner meanwhile. */
import { DialError, dial, type Resolver } from "@sallyport/host";
import { type Attempt, type AttemptEvents, dialFailures } from "./attempt.ts";

export interface DirectAttemptOptions {
  readonly host: string;
  readonly port: number;
  readonly resolver: Resolver;
  readonly connectTimeoutMs: number;
  readonly events: AttemptEvents;
}

export class DirectAttempt implements Attempt {
  readonly #options: DirectAttemptOptions;
  readonly #abort = new AbortController();

  constructor(options: DirectAttemptOptions) {
    this.#options = options;
  }

  start(): void {
    const { host, port, resolver, connectTimeoutMs: timeoutMs, events } = this.#options;
    const { signal } = this.#abort;
    dial({ host, port, timeoutMs, resolver, signal }).then(
      ({ socket, address }) => {
        if (signal.aborted) socket.resetAndDestroy();
        else events.onConnected({ type: "direct", socket, address: withPort(address, port) });
      },
      (error: unknown) => {
        if (!(error instanceof DialError)) throw error;
        if (signal.aborted) return;
        const address = error.address === undefined ? undefined : withPort(error.address, port);
        events.onFailed({ ...dialFailures[error.reason], address });
      },
    );
  }

  cancel(): void {
    this.#abort.abort();
  }
}

function withPort(address: string, port: number): string {
  return `${address.includes(":") ? `[${address}]` : address}:${port}`;
}
