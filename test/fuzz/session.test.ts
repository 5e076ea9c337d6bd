/**
 * Frames of a peer that follows no rule, into a session that is idle and into one in the middle of transfers. Most of
 * them are well formed, with ids, offsets and numbers near those in use, since the decoder stops the others.
 *
 * FUZZ_RUNS sets how many inputs there are, of which these frames are two fifths, FUZZ_SEED where the generator starts.
 */
import { encodeFrame, type Frame, type SessionEvent } from "@sallyport/protocol";
import { describe, expect, it } from "vitest";
import { LoneSession } from "../support/lone-session.ts";
import { Random } from "./mutation.ts";
import { DECODER_SHARE, fuzzRuns, fuzzSeed as seed } from "./runs.ts";

const runs = fuzzRuns * (1 - DECODER_SHARE);

const WINDOW = 20_000;
const SEND_BUFFER = 131_072;
const STREAMS = 8;
const CHUNK = 5_000;

/** What the peer has seen and said of one stream. */
interface View {
  accepted: boolean;
  /** What the session has sent: bytes, and whether its END is out. */
  sent: number;
  endSent: boolean;
  /** What the peer has sent itself. */
  offset: number;
  acknowledged: number;
  epoch: number;
}

/** A number that a peer could mean honestly, between `low` and `high`, or now and then one that it could not. */
function number(random: Random, low: number, high: number): number {
  if (random.below(150) === 0) return random.pick([0, high + 1, high + WINDOW, 2 ** 32, Number.MAX_SAFE_INTEGER]);
  return random.pick([low, high, low + random.below(Math.max(1, high - low + 1))]);
}

/** A frame that is mostly plausible for what the peer knows of the stream; the nonsense in it is what is tested. */
function frame(random: Random, role: "edge" | "agent", stream: number, view: View): Frame {
  const wild = random.below(200) === 0;
  const ended = view.endSent || wild;
  const kind = random.below(14);
  if (kind < 3) {
    if (role === "agent" || wild) {
      const target = random.below(100) === 0 ? "b" : "a";
      return { type: "open", stream, connection: "c", target, deployment: "d", partner: "", limit: WINDOW };
    }
    view.accepted = true;
    return { type: "accept", stream, address: "", limit: number(random, 0, 2 * WINDOW) };
  }
  if (kind < 8 && (role === "agent" || view.accepted || wild)) {
    const offset = number(random, Math.max(0, view.offset - 500), view.offset + random.pick([0, 0, 0, 300]));
    if (random.below(12) === 0) return { type: "end", stream, offset: view.offset };
    const bytes = new Uint8Array(1 + random.below(random.pick([10, 2_000])));
    view.offset = Math.max(view.offset, offset + bytes.length);
    return { type: "data", stream, offset, bytes };
  }
  if (kind < 10) {
    const consumed = number(random, 0, view.sent);
    const endConsumed = ended && consumed === view.sent && random.below(3) === 0;
    view.acknowledged = Math.max(view.acknowledged, consumed);
    return { type: "credit", stream, consumed, limit: consumed + number(random, 0, 2 * WINDOW), endConsumed };
  }
  if (kind < 12) {
    view.epoch += random.below(2);
    const received = number(random, view.acknowledged, view.sent);
    return {
      type: "resume",
      stream,
      epoch: Math.max(1, view.epoch),
      answers: random.below(30) === 0 ? 1 : 0,
      received,
      consumed: Math.min(received, number(random, 0, received)),
      limit: received + number(random, 0, 2 * WINDOW),
      endReceived: ended && random.below(2) === 0,
      endConsumed: false,
    };
  }
  switch (random.below(8)) {
    case 0:
      return { type: "reset", stream, offset: 0, code: random.below(20) };
    case 1:
      return { type: "closed", stream };
    case 2:
      return { type: "goAway", code: 4000, reason: "" };
    case 3:
      return { type: "pong", token: random.below(9) };
    default:
      return { type: "ping", token: random.below(9) };
  }
}

function open(stream: number): Frame {
  return { type: "open", stream, connection: "c", target: "a", deployment: "d", partner: "", limit: WINDOW };
}

/** What an application may rely on: each stream begins once and ends once, with nothing behind its end. */
class Rules {
  readonly #state = new Map<number, { ended: boolean; received: number }>();
  lastStream = 0;

  begin(stream: number): void {
    if (stream <= 0 || this.#state.has(stream)) throw new Error(`stream ${stream} began twice`);
    this.#state.set(stream, { ended: false, received: 0 });
    this.lastStream = Math.max(this.lastStream, stream);
  }

  received(stream: number): number {
    return this.#state.get(stream)?.received ?? 0;
  }

  get live(): number[] {
    return [...this.#state.keys()];
  }

  check(event: SessionEvent): void {
    if (event.type === "open") return this.begin(event.stream);
    if (!("stream" in event)) return;
    const state = this.#state.get(event.stream);
    if (state === undefined) throw new Error(`${event.type} of stream ${event.stream}, which is over or never began`);
    if (event.type === "data") {
      if (state.ended || event.bytes.length === 0) throw new Error("data behind the end, or none");
      state.received += event.bytes.length;
    }
    if (event.type === "end") {
      if (state.ended) throw new Error("two ends");
      state.ended = true;
    }
    if (event.type === "reset" || event.type === "finished") this.#state.delete(event.stream);
  }

  /** The application has reset it itself and hears no more. */
  forget(stream: number): void {
    this.#state.delete(stream);
  }
}

/** Plays one session against random frames until it ends; returns how many it took. */
function attack(role: "edge" | "agent", random: Random, midTransfer: boolean): number {
  const lone = new LoneSession(role, {
    links: 2,
    maxStreams: STREAMS,
    initialCredit: WINDOW,
    windowBytes: WINDOW,
    sendBufferBytes: SEND_BUFFER,
  });
  const rules = new Rules();
  const { session } = lone;
  const ended = new Set<number>();
  const sent = new Map<number, number>();
  const consumed = new Map<number, number>();

  const begin = () => {
    const id = session.open({ connection: "c", target: "a", deployment: "d", partner: "" });
    if (typeof id === "number") rules.begin(id);
  };
  /** What an honest application does now and then. */
  const act = () => {
    if (role === "edge" && random.below(3) === 0) begin();
    const [id] = rules.live.length === 0 ? [] : [random.pick(rules.live)];
    if (id === undefined) return;
    if (role === "agent") session.accept(id, "");
    switch (random.below(6)) {
      case 0:
      case 1:
        if (!ended.has(id) && (sent.get(id) ?? 0) < 1e6 && session.write(id, new Uint8Array(0))) {
          session.write(id, new Uint8Array(CHUNK));
          sent.set(id, (sent.get(id) ?? 0) + CHUNK);
        }
        return;
      case 2:
        if (random.below(4) === 0) {
          ended.add(id);
          session.end(id);
        }
        return;
      case 3:
        if (random.below(6) === 0) {
          session.reset(id, 1);
          rules.forget(id);
        }
        return;
      default: {
        const count = rules.received(id) - (consumed.get(id) ?? 0);
        session.consume(id, count);
        consumed.set(id, (consumed.get(id) ?? 0) + count);
        session.consumeEnd(id);
      }
    }
  };

  if (role === "edge") begin();
  else if (midTransfer) {
    for (let id = 1; id <= STREAMS / 2; id += 1) lone.receive(open(id));
    for (const event of lone.events) rules.check(event);
    lone.events.length = 0;
  }
  if (midTransfer) for (let count = 0; count < 12; count += 1) act();
  const views = new Map<number, View>();
  const viewOf = (id: number): View => {
    const view = views.get(id) ?? { accepted: false, sent: 0, endSent: false, offset: 0, acknowledged: 0, epoch: 0 };
    views.set(id, view);
    return view;
  };
  const read = (link: number) => {
    for (const sent of lone.sentFrames(link)) {
      if (sent.type === "data")
        viewOf(sent.stream).sent = Math.max(viewOf(sent.stream).sent, sent.offset + sent.bytes.length);
      if (sent.type === "end") viewOf(sent.stream).endSent = true;
    }
  };
  let frames = 0;
  for (; frames < 400 && !session.ended; frames += 1) {
    if (random.below(3) === 0) act();
    if (random.below(2) === 0) for (const link of [1, 2]) read(link);
    const fresh = role === "agent" && random.below(6) === 0 ? 1 : 0;
    const stream = Math.max(
      1,
      random.below(3) === 0 ? rules.lastStream + fresh : random.pick([rules.lastStream, ...rules.live]),
    );
    lone.now += random.below(50);
    const opened = stream <= rules.lastStream || role === "edge";
    const said = opened ? frame(random, role, stream, viewOf(stream)) : open(stream);
    const message = random.below(1_000) === 0 ? random.bytes(random.below(40)) : encodeFrame(said);
    lone.receive(message, 1 + random.below(2));
    if (random.below(100) === 0) session.detach(1 + random.below(2), lone.now);
    if (random.below(50) === 0) session.tick(lone.now);
    for (const event of lone.events) rules.check(event);
    lone.events.length = 0;
    // Two windows of what arrives (consumed and not), what a stream may hold for sending, and a chunk.
    const bound = session.streamCount * (WINDOW + SEND_BUFFER + CHUNK);
    if (session.heldBytes > bound) throw new Error(`${session.heldBytes} bytes held by ${session.streamCount} streams`);
    if (session.streamCount > STREAMS) throw new Error(`${session.streamCount} streams`);
  }
  session.close(4000, "");
  lone.lines();
  for (const event of lone.events) rules.check(event);
  if (rules.live.length > 0) throw new Error(`streams ${rules.live.join()} did not end`);
  return frames;
}

describe(`a session and a peer without rules, from seed ${seed}`, () => {
  it.each([
    ["edge", "idle", false],
    ["edge", "in the middle of transfers", true],
    ["agent", "idle", false],
    ["agent", "in the middle of transfers", true],
  ] as const)("of the %s, %s, keeps its rules and its bounds", { timeout: 3_600_000 }, (role, state, midTransfer) => {
    const startedAt = performance.now();
    let frames = 0;
    let sessions = 0;
    for (; frames < runs / 4; sessions += 1) {
      const from = seed + sessions;
      try {
        frames += attack(role, new Random(from), midTransfer);
      } catch (error) {
        throw new Error(`FUZZ_SEED=${from}`, { cause: error });
      }
    }
    const seconds = (performance.now() - startedAt) / 1_000;
    console.log(
      `fuzz sessions of the ${role}, ${state}: ${frames} frames, ${sessions} sessions in ${seconds.toFixed(1)} s ` +
        `(${Math.round(frames / seconds)}/s)`,
    );
    // Sessions that end with the first frame test nothing.
    expect(frames / sessions).toBeGreaterThan(20);
  });
});
