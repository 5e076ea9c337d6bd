/**
 * The idle and half-close timeouts of one connection. Activity only notes the time; the timer looks at it when it
 * fires and is set again for what is left, so that a busy connection costs no timer work.
 */
export class ActivityTimer {
  readonly #onIdle: (kind: "idle" | "halfClose") => void;
  readonly #progress: () => number;
  #lastProgress = 0;
  readonly #idleTimeoutMs: number;
  readonly #halfCloseTimeoutMs: number;
  readonly #delivered: () => boolean;
  #halfClosed = false;
  #activeAt = performance.now();
  #timer: NodeJS.Timeout | undefined;

  /**
   * A timeout of 0 never comes. `stop` ends the timer; nothing else does. `progress` is a number that changes when the
   * far end moves bytes that this end does not see; it is asked when the timer fires, and so is `delivered`: whether the
   * receiver of a direction that has ended has been given all of it.
   */
  constructor(options: {
    progress?: () => number;
    delivered?: () => boolean;
    idleTimeoutMs: number;
    halfCloseTimeoutMs: number;
    onIdle: (kind: "idle" | "halfClose") => void;
  }) {
    this.#idleTimeoutMs = options.idleTimeoutMs;
    this.#halfCloseTimeoutMs = options.halfCloseTimeoutMs;
    this.#onIdle = options.onIdle;
    this.#progress = options.progress ?? (() => 0);
    this.#delivered = options.delivered ?? (() => true);
    this.#arm(this.#idleTimeoutMs);
  }

  /** A byte moved. */
  touch(): void {
    this.#activeAt = performance.now();
  }

  /**
   * One direction has ended: once it is delivered, the shorter of the two timeouts holds. Until then only the idle one
   * does, since a slow receiver may take more than a half-close timeout from one piece to the next.
   */
  halfClose(): void {
    if (this.#halfClosed) return;
    this.#halfClosed = true;
    this.touch();
    this.stop();
    this.#arm(this.#idleTimeoutMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #arm(afterMs: number): void {
    const half = this.#halfClosed ? this.#halfCloseTimeoutMs : 0;
    if (afterMs === 0 && half === 0) return;
    const dueMs = Math.min(afterMs === 0 ? half : afterMs, half === 0 ? afterMs : half);
    // Node limits a timer to 2^31 - 1 milliseconds and fires longer ones at once.
    this.#timer = setTimeout(this.#onTimer, Math.min(Math.max(1, Math.ceil(dueMs)), 2_147_483_647));
  }

  readonly #onTimer = (): void => {
    const progress = this.#progress();
    if (progress !== this.#lastProgress) {
      this.#lastProgress = progress;
      this.touch();
    }
    const idle = this.#idleTimeoutMs;
    const half = this.#halfClosed && this.#delivered() ? this.#halfCloseTimeoutMs : 0;
    const timeoutMs = idle === 0 || half === 0 ? idle + half : Math.min(idle, half);
    // Nothing holds while a direction that ended is delivered without an idle timeout; the timer looks again later.
    const left = timeoutMs === 0 ? 0 : this.#activeAt + timeoutMs - performance.now();
    if (timeoutMs === 0 || left > 0) this.#arm(left);
    else this.#onIdle(half === 0 ? "idle" : "halfClose");
  };
}
