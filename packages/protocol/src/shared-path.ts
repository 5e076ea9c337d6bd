/**
 * What the links of one session have in common: mostly the whole path. What one of them has under way delays the others, and
 * what one delivers it takes from the others.
 *
 * The pace of a link adds itself, and the session removes it with its link; there are 32 at the most.
 */
export interface PathUser {
  /** Bytes that were written and of which it is not known that the peer has read them. */
  readonly inFlightBytes: number;
  /** What it delivers, in bytes per millisecond, if something has had to wait lately; undefined otherwise. */
  readonly contendedRate: number | undefined;
}

/** Longer than streams take to have their turns, and than those pause who talk back and forth. */
const ALONE_MS = 200;

export class SharedPath {
  readonly #users = new Set<PathUser>();
  /** Bytes of all messages that came on any link; only grows. */
  receivedBytes = 0;
  #sender = 0;
  #changedAt = Number.NEGATIVE_INFINITY;

  add(user: PathUser): void {
    this.#users.add(user);
  }

  remove(user: PathUser): void {
    this.#users.delete(user);
  }

  get links(): number {
    return this.#users.size;
  }

  /** A stream sends DATA. */
  sends(stream: number, now: number): void {
    if (stream === this.#sender) return;
    this.#sender = stream;
    this.#changedAt = now;
  }

  /** Whether only one stream has sent DATA for a while: nobody is kept waiting by what it has under way. */
  isAlone(now: number): boolean {
    return now - this.#changedAt > ALONE_MS;
  }

  /** Of all links together. */
  get inFlightBytes(): number {
    let bytes = 0;
    for (const user of this.#users) bytes += user.inFlightBytes;
    return bytes;
  }

  /** The mean of what links deliver on which something has to wait, in bytes per millisecond; 0 without any. */
  get contendedRate(): number {
    let sum = 0;
    let count = 0;
    for (const { contendedRate } of this.#users) {
      if (contendedRate === undefined) continue;
      sum += contendedRate;
      count += 1;
    }
    return count === 0 ? 0 : sum / count;
  }
}
