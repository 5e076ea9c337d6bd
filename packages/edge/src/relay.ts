/**
 * Joins two TCP sockets: direct mode, in which the edge dials the target itself. The rules are those of the tunnel's
 * splice: reading follows writing, each direction ends on its own, an abort of one side is an abort of the other.
 *
 * The relay closes both sockets.
 */
import type { Socket } from "node:net";
import { ResetCode } from "@sallyport/protocol";
import {
  abandon,
  ActivityTimer,
  afterTargetEnded,
  Ended,
  type Ending,
  endingOf,
  flowPauses,
  onConfirmedEnd,
  readSocket,
  resetSocket,
  SocketWriter,
} from "@sallyport/tunnel";

export interface RelayOptions {
  readonly partner: Socket;
  readonly target: Socket;
  readonly idleTimeoutMs: number;
  readonly halfCloseTimeoutMs: number;
  /** Once, when both sockets are closed or being closed. */
  readonly onEnd: (ending: Ending) => void;
}

export class Relay {
  bytesFromPartner = 0;
  bytesToPartner = 0;
  firstByteFromPartnerAt: number | undefined;
  firstByteToPartnerAt: number | undefined;

  readonly #partner: Socket;
  readonly #target: Socket;
  readonly #onEnd: (ending: Ending) => void;
  readonly #timer: ActivityTimer;
  #ended = false;
  #targetEnded = false;

  /** Both sockets were made with `allowHalfOpen` and are paused. */
  constructor(options: RelayOptions) {
    this.#partner = options.partner;
    this.#target = options.target;
    this.#onEnd = options.onEnd;
    this.#timer = new ActivityTimer({
      idleTimeoutMs: options.idleTimeoutMs,
      halfCloseTimeoutMs: options.halfCloseTimeoutMs,
      delivered: () => [this.#partner, this.#target].every((to) => !to.writableEnded || to.writableFinished),
      onIdle: (kind) => this.#timeOut(kind === "idle" ? Ended.idleTimeout : Ended.halfCloseTimeout),
    });
    this.#join(this.#partner, this.#target, {
      broken: Ended.partnerReset,
      onBytes: (count) => {
        this.firstByteFromPartnerAt ??= performance.now();
        this.bytesFromPartner += count;
      },
    });
    this.#join(this.#target, this.#partner, {
      broken: Ended.targetReset,
      onBytes: (count) => {
        this.firstByteToPartnerAt ??= performance.now();
        this.bytesToPartner += count;
      },
    });
    // Of a socket with a byte rate.
    this.#partner.on("passed", () => this.#timer.touch());
    this.#partner.resume();
    this.#target.resume();
  }

  abort(code: ResetCode): void {
    this.#cut(endingOf({ type: "aborted", code }, { side: "edge", connected: true }));
  }

  #join(from: Socket, to: Socket, { broken, onBytes }: { broken: Ending; onBytes: (count: number) => void }): void {
    const writer = new SocketWriter(to, () => {
      this.#timer.touch();
      if (writer.idle && from.isPaused()) from.resume();
    });
    readSocket(from, (bytes) => {
      onBytes(bytes.length);
      this.#timer.touch();
      writer.write(bytes);
      writer.flush();
      // A target that takes all of it at once never stops the source; one that does not holds two reads at the most.
      if (to.writableLength === 0) return;
      flowPauses.total += 1;
      from.pause();
    });
    onConfirmedEnd(from, () => {
      if (from === this.#target) this.#targetEnded = true;
      this.#timer.halfClose();
      writer.end();
    });
    from.on("error", () => this.#cut(broken));
    from.on("close", () => {
      if (!from.readableEnded || !from.writableFinished) this.#cut(broken);
      else if (to.closed) this.#finish(Ended.normal);
    });
    if (from.destroyed) this.#cut(broken);
  }

  #timeOut(ending: Ending): void {
    this.#finish(this.#inPhase(ending));
    abandon(this.#partner);
    abandon(this.#target);
  }

  #cut(ending: Ending): void {
    if (this.#ended) return;
    this.#finish(this.#inPhase(ending));
    resetSocket(this.#partner);
    resetSocket(this.#target);
  }

  #inPhase(ending: Ending): Ending {
    return this.#targetEnded ? afterTargetEnded(ending) : ending;
  }

  #finish(ending: Ending): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#timer.stop();
    this.#onEnd(ending);
  }
}
