/**
 * How many bytes of one link may be under way: written, and not yet read by the peer's process. What is beyond that waits
 * in the session, where streams take turns and a small one goes first; in the buffers of two kernels it would stand in
 * front of everybody, megabytes deep.
 *
 * The measure is a PING behind the data: its PONG says that all before it was read. The limit is what the link delivers in
 * four round trips and a few milliseconds, so it grows fourfold with each round trip as long as more is delivered, faster than
 * the transport below it finds its own pace. Twice the bandwidth-delay product (as BBR) would do on a path that loses
 * nothing; where packets are lost, a byte and all behind it arrive one or two round trips later, and a link that waited
 * for them would carry less and less. On a long path the kernel's own buffer, which follows the path, is the lower bound
 * for what queues; on a short one the round trips are nothing beside the milliseconds. The round trip is that of the quiet
 * path: one that included the queue would let the queue grow with itself.
 *
 * Links of one session mostly share their path. A rate that is measured under a limit made from it would then keep whatever
 * share a link once had: of two links of one bottleneck, the one with more under way goes on to deliver more. So a link that
 * has to wait counts with the mean of those that do where that is more, up to twice its own rate, and they meet.
 *
 * Nothing is held back before the first PONG: a peer that answers none is not paced, and lost after a while.
 */
import { type PathUser, SharedPath } from "./shared-path.ts";

/** The least that may be under way: two writes of the link. */
const MIN_BYTES = 131_072;
/** How far a stream may go beyond the limit that had nothing to send until now. */
const FRESH_BYTES = 32_768;
const LIMIT_ROUND_TRIPS = 4;
/** How long the peer's process may take for what it reads at a time, besides the round trip. */
const TURN_MS = 2;
/** The same while one stream has the path to itself: it is the only one who waits, and a link that runs dry costs it more. */
const ALONE_TURN_MS = 5;
/** The rate is measured over no less than this: shorter, it would be that of single turns of the event loop. */
const MIN_EPOCH_MS = 20;
/** The most PINGs that wait for their PONG; a further one takes the place of the oldest. */
const MAX_PINGS = 8;
/** A PING behind less is one that measures nothing to the peer, which bears only so many (`LinkState.pinged`). */
const MIN_PING_BYTES = 32_768;
/** Over all links of a session, save where a link has to wait: a measure that comes more often costs more than it tells. */
const PING_SPACING_MS = 0.75;
/** So many may go early: what is sent at once, because a PONG has let it, gets its measures in between and not behind all of it. */
const PING_BURST = 3;
/** A path on which no more is under way in either direction does not delay a PING. */
const QUIET_BYTES = 32_768;

export class LinkPace implements PathUser {
  readonly #path: SharedPath;
  #sentBytes = 0;
  #deliveredBytes = 0;
  #receivedBytes = 0;
  #limitBytes = Number.POSITIVE_INFINITY;
  #busyBytes = Number.POSITIVE_INFINITY;
  #quietRoundTripMs: number | undefined;
  /** In bytes per millisecond; 0 before it was measured. */
  #rate = 0;
  #epochAt = 0;
  #epochDelivered = 0;
  /** Something had to wait in this epoch: what was delivered in it is all that the link can do. */
  #limited = false;
  #wasLimited = false;
  /** The PINGs that wait for their PONG, oldest first; a ring. Tokens rise. */
  readonly #pings = Array.from({ length: MAX_PINGS }, () => ({ token: 0, at: 0, sent: 0, received: 0, quiet: false }));
  #first = 0;
  #count = 0;
  #pingedBytes = 0;
  /** When the next one were due if they went at equal times (a leaky bucket, as ITU-T I.371). */
  #nextPingAt = 0;

  /** `path`: what all links of the session have in common; the pace adds itself. Default: a path of its own. */
  constructor(path = new SharedPath()) {
    this.#path = path;
    path.add(this);
  }

  /** Bytes that were written and of which it is not known that the peer has read them. */
  get inFlightBytes(): number {
    return this.#sentBytes - this.#deliveredBytes;
  }

  /** Bytes of all messages that came. */
  get receivedBytes(): number {
    return this.#receivedBytes;
  }

  /** Infinite before the first PONG. */
  get limitBytes(): number {
    return this.#limitBytes;
  }

  /** What it delivers, in bytes per millisecond, if something has had to wait lately; undefined otherwise. */
  get contendedRate(): number | undefined {
    return this.#limited || this.#wasLimited ? this.#rate : undefined;
  }

  /** The round trip in milliseconds when nothing queues on the link; undefined before the first PONG. */
  get quietRoundTripMs(): number | undefined {
    return this.#quietRoundTripMs;
  }

  /**
   * About as much is under way as the link delivers in a round trip when it is full: what is more may as well take another.
   * False before the first PONG.
   */
  get isBusy(): boolean {
    return this.inFlightBytes >= this.#busyBytes;
  }

  /** Whether more data may be written now. */
  admits(who: "fresh" | "bulk"): boolean {
    const limit = who === "fresh" ? this.#limitBytes + FRESH_BYTES : this.#limitBytes;
    if (this.inFlightBytes < limit) return true;
    this.#limited = true;
    return false;
  }

  sent(bytes: number): void {
    this.#sentBytes += bytes;
  }

  received(bytes: number): void {
    this.#receivedBytes += bytes;
    this.#path.receivedBytes += bytes;
  }

  /** Whether a PING is due behind what was sent. */
  pingDue(now: number): boolean {
    const unconfirmed = this.#sentBytes - this.#pingedBytes;
    // Without one under way, what waits would wait for ever.
    if (this.#count === 0 && unconfirmed >= this.#limitBytes) return true;
    return (
      this.#count < MAX_PINGS &&
      unconfirmed >= Math.max(MIN_PING_BYTES, this.#limitBytes / MAX_PINGS) &&
      this.#nextPingAt - now <= PING_BURST * this.#pingSpacingMs
    );
  }

  /** A PING was written behind all that was sent. */
  pinged(token: number, now: number): void {
    if (this.#count === MAX_PINGS) this.#drop();
    if (this.#count === 0 && now - this.#epochAt > 2 * MIN_EPOCH_MS) this.#beginEpoch(now);
    const ping = this.#pings[(this.#first + this.#count) % MAX_PINGS];
    if (ping === undefined) return;
    this.#count += 1;
    ping.token = token;
    ping.at = now;
    ping.sent = this.#sentBytes;
    ping.received = this.#path.receivedBytes;
    ping.quiet = this.#path.inFlightBytes <= QUIET_BYTES;
    this.#pingedBytes = this.#sentBytes;
    this.#nextPingAt = Math.max(now, this.#nextPingAt) + this.#pingSpacingMs;
  }

  /**
   * A PONG came, which answers its PING and all before it. Returns the round trip in milliseconds; undefined for a token
   * that was not asked for, or was answered.
   */
  ponged(token: number, now: number): number | undefined {
    if (!this.#asked(token)) return undefined;
    let ping = this.#drop();
    while (ping.token !== token) ping = this.#drop();
    this.#deliveredBytes = Math.max(this.#deliveredBytes, ping.sent);
    const sampleMs = now - ping.at;
    const quiet =
      ping.quiet && this.#path.inFlightBytes <= QUIET_BYTES && this.#path.receivedBytes - ping.received <= QUIET_BYTES;
    if (this.#quietRoundTripMs === undefined || quiet || sampleMs < this.#quietRoundTripMs) {
      this.#quietRoundTripMs = sampleMs;
    }
    this.#measure(now, this.#quietRoundTripMs);
    return sampleMs;
  }

  #measure(now: number, quietRoundTripMs: number): void {
    const elapsedMs = now - this.#epochAt;
    if (elapsedMs >= Math.max(MIN_EPOCH_MS, quietRoundTripMs)) {
      const rate = (this.#deliveredBytes - this.#epochDelivered) / elapsedMs;
      if (rate > this.#rate) this.#rate = rate;
      else if (this.#limited) this.#rate += (rate - this.#rate) / 8;
      this.#beginEpoch(now);
    }
    this.#busyBytes = Math.max(MIN_BYTES / 2, this.#rate * (0.75 * quietRoundTripMs + TURN_MS / 2));
    const turnMs = this.#path.isAlone(now) ? ALONE_TURN_MS : TURN_MS;
    const rate = Math.max(this.#rate, Math.min(this.#path.contendedRate, 2 * this.#rate));
    this.#limitBytes = Math.max(MIN_BYTES, Math.round(rate * (LIMIT_ROUND_TRIPS * quietRoundTripMs + turnMs)));
  }

  /** The links of a session share what it spends on PINGs. */
  get #pingSpacingMs(): number {
    return PING_SPACING_MS * this.#path.links;
  }

  #beginEpoch(now: number): void {
    this.#epochAt = now;
    this.#epochDelivered = this.#deliveredBytes;
    this.#wasLimited = this.#limited;
    this.#limited = false;
  }

  #asked(token: number): boolean {
    for (let index = 0; index < this.#count; index += 1) {
      if (this.#pings[(this.#first + index) % MAX_PINGS]?.token === token) return true;
    }
    return false;
  }

  #drop(): { readonly token: number; readonly at: number; readonly sent: number; received: number; quiet: boolean } {
    const ping = this.#pings[this.#first];
    if (ping === undefined || this.#count === 0) throw new Error("no PING is waited for");
    this.#first = (this.#first + 1) % MAX_PINGS;
    this.#count -= 1;
    return ping;
  }
}
