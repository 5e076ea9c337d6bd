/** Thins out the same failure over and over: the first is told, then one a minute with how many there were. */

const TELL_AGAIN_MS = 60_000;

export class RepeatedFailure {
  #last: string | undefined;
  #toldAt = 0;
  #untold = 0;

  /** How many failures a line stands for, this one included; undefined: no line now. */
  note(failure: string, nowMs: number): number | undefined {
    if (failure === this.#last && nowMs - this.#toldAt < TELL_AGAIN_MS) {
      this.#untold += 1;
      return undefined;
    }
    const count = failure === this.#last ? this.#untold + 1 : 1;
    this.#last = failure;
    this.#toldAt = nowMs;
    this.#untold = 0;
    return count;
  }

  /** It went well: the next failure is news. */
  clear(): void {
    this.#last = undefined;
    this.#untold = 0;
  }
}
