/** How many connections something has, of at most so many: a deployment, or one target of a pool. */
export class ConnectionCount {
  #active = 0;
  /** Undefined: no limit of its own. What is active stays when it is lowered. */
  max: number | undefined;

  constructor(max?: number) {
    this.max = max;
  }

  get active(): number {
    return this.#active;
  }

  get isFull(): boolean {
    return this.max !== undefined && this.#active >= this.max;
  }

  /** Takes a place whatever the limit is; ask `isFull` before. Whoever takes it calls `release` once. */
  take(): void {
    this.#active += 1;
  }

  release(): void {
    this.#active -= 1;
  }
}
