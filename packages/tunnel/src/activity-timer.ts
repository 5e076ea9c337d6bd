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
  #halfClosed = false;
  #activeAt = performance.now();
  #timer: NodeJS.Timeout | undefined;

  /**
   * A timeout of 0 never comes. `stop` ends the timer; nothing else does. `progress` is a number that changes when the
   * far end moves bytes that this end does not see; it is asked when the timer fires.
   */
  constructor(options: {
    progress?: () => number;
    idleTimeoutMs: number;
    halfCloseTimeoutMs: number;
    onIdle: (kind: "idle" | "halfClose") => void;
  }) {
    this.#idleTimeoutMs = options.idleTimeoutMs;
    this.#halfCloseTimeoutMs = options.halfCloseTimeoutMs;
    this.#onIdle = options.onIdle;
    this.#progress = options.progress ?? (() => 0);
    this.#arm(this.#timeoutMs);
  }

  /** A byte moved. */
  touch(): void {
    this.#activeAt = performance.now();
  }

  /** One direction has ended: from now on the shorter of the two timeouts holds. */
  halfClose(): void {
    if (this.#halfClosed) return;
    this.#halfClosed = true;
    this.touch();
    this.stop();
    this.#arm(this.#timeoutMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  get #timeoutMs(): number {
    const idle = this.#idleTimeoutMs;
    const half = this.#halfCloseTimeoutMs;
    if (!this.#halfClosed || half === 0) return idle;
    return idle === 0 ? half : Math.min(idle, half);
  }

  #arm(afterMs: number): void {
    if (this.#timeoutMs === 0) return;
    // Node limits a timer to 2^31 - 1 milliseconds and fires longer ones at once.
    this.#timer = setTimeout(this.#onTimer, Math.min(Math.max(1, Math.ceil(afterMs)), 2_147_483_647));
  }

  readonly #onTimer = (): void => {
    const progress = this.#progress();
    if (progress !== this.#lastProgress) {
      this.#lastProgress = progress;
      if (this.#activeAt + this.#timeoutMs <= performance.now()) this.touch();
    }
    const left = this.#activeAt + this.#timeoutMs - performance.now();
    if (left > 0) this.#arm(left);
    else this.#onIdle(this.#halfClosed ? "halfClose" : "idle");
  };
}
