/**
 * The streams that wait for their turn on a link. A doubly linked list whose nodes belong to the streams: a stream
 * leaves in constant time when it moves to another link, nothing is allocated per turn, and a list can never be longer
 * than the session has streams, however often a peer moves them.
 */
import type { Stream } from "./stream.ts";

/** The place of one stream in at most one list. */
export class Turn {
  readonly stream: Stream;
  list: TurnList | undefined;
  previous: Turn | undefined;
  next: Turn | undefined;

  constructor(stream: Stream) {
    this.stream = stream;
  }

  /** Whether the stream waits in some list. */
  get waiting(): boolean {
    return this.list !== undefined;
  }

  /** Gives the place up, if there is one. */
  leave(): void {
    this.list?.remove(this);
  }
}

export class TurnList {
  #first: Turn | undefined;
  #last: Turn | undefined;

  get empty(): boolean {
    return this.#first === undefined;
  }

  /** The turn that comes next. */
  get first(): Turn | undefined {
    return this.#first;
  }

  /** Appends a turn that stands in no list. */
  push(turn: Turn): void {
    turn.list = this;
    turn.previous = this.#last;
    turn.next = undefined;
    if (this.#last === undefined) this.#first = turn;
    else this.#last.next = turn;
    this.#last = turn;
  }

  /** Puts a turn that stands in no list before all others. */
  unshift(turn: Turn): void {
    turn.list = this;
    turn.previous = undefined;
    turn.next = this.#first;
    if (this.#first === undefined) this.#last = turn;
    else this.#first.previous = turn;
    this.#first = turn;
  }

  /** Takes the first stream out. */
  shift(): Stream | undefined {
    const turn = this.#first;
    if (turn === undefined) return undefined;
    this.remove(turn);
    return turn.stream;
  }

  remove(turn: Turn): void {
    if (turn.previous === undefined) this.#first = turn.next;
    else turn.previous.next = turn.next;
    if (turn.next === undefined) this.#last = turn.previous;
    else turn.next.previous = turn.previous;
    turn.list = undefined;
    turn.previous = undefined;
    turn.next = undefined;
  }
}
