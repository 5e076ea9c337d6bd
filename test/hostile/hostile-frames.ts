/**
 * Every kind of hostile frame that we know of, what is sent of it in each state of a link, and what it costs whom: the one
 * table of them. `hostile-frames.test.ts` drives each cell against a real edge and a real agent.
 *
 * The kinds are 14 of WebSocket (W) and 37 of the protocol (M); numbers that are missing were never given. States are those of
 * one link: before authentication, before its greeting, idle, and in the middle of a transfer. A cell without variants says
 * why.
 */
import { encode } from "@msgpack/msgpack";
import { encodeFrame, type Frame } from "../../packages/protocol/src/index.ts";
import { control, fields, repeatedKey, spoiledKey, validFrames } from "./malformed-frames.ts";

export const states = ["before authentication", "before greeting", "idle", "mid-transfer"] as const;
export type State = (typeof states)[number];

/** Who is attacked: the edge, by an agent that was taken over, or the agent, by an edge that was. */
export const victims = ["edge", "agent"] as const;
export type Victim = (typeof victims)[number];

/** What happens to who sends it. Codes are those of docs/protocol.md §10, and of RFC 6455 §7.4.1 for WebSocket itself. */
export type Outcome =
  /**
   * Nothing, and the link lives: it is of use, or it takes one from the budget of frames that carry nothing (the counting is
   * shown in packages/protocol/src/session-violations.test.ts).
   */
  | { readonly is: "ignored"; readonly cost: "free" | "budget" }
  /** The stream is aborted with this reset code, and the link lives. */
  | { readonly is: "reset"; readonly code: number }
  /** The link, or the session and its links, are closed with this code. */
  | { readonly is: "closed"; readonly code: number }
  /** The connection is cut without a word, because nobody would read it. */
  | { readonly is: "cut" }
  /** No link comes about: the edge answers with this HTTP status, 0 for no answer at all. */
  | { readonly is: "refused"; readonly status: number }
  /** No link comes about: the agent hangs up and knows this reason. */
  | { readonly is: "hung up"; readonly reason: "protocol" | "proof" | "version" | "timeout" }
  /** The edge answers 101, and without what was asked for. */
  | { readonly is: "served" };

/** How bytes are put together towards this victim, and where its link stands. */
export interface Position {
  readonly victim: Victim;
  /** The stream of the transfer; 1 where there is none. */
  readonly stream: number;
  /** Bytes that we have sent on it. */
  readonly sent: number;
  /** Bytes that the victim has sent on it. */
  readonly received: number;
  /** Below which we may send. */
  readonly limit: number;
  /** The most streams of the session. */
  readonly maxStreams: number;
  /** The id of a session that is another's. */
  readonly foreignSession: string;
}

export interface Variant {
  readonly what: string;
  /** Bytes below WebSocket, straight into TLS. */
  readonly bytes: (at: Position, round: number) => Uint8Array;
  readonly expect: Outcome;
  /** Which stream a reset is of. Default: that of the transfer. */
  readonly stream?: (at: Position) => number;
  /** Sent so many times, each when the victim has answered a PING behind the last. Default 1. */
  readonly rounds?: number;
  /** Goes on sending and reads nothing until it is cut. */
  readonly deaf?: boolean;
  /** Says nothing more and answers no PING. */
  readonly silent?: boolean;
  /** Nothing of it reaches who is behind the victim. */
  readonly inert?: boolean;
  /** Who is behind the victim sends two megabytes first. */
  readonly farSideWrites?: boolean;
}

/** A handshake that goes wrong, made by the driver, which has the keys. */
export type Handshake =
  | "stalled"
  | "wrong MAC"
  | "replayed"
  | "reflected"
  | "through a relay"
  | "unknown version"
  | "with compression";

export interface HandshakeVariant {
  readonly what: string;
  readonly handshake: Handshake;
  readonly expect: Outcome;
}

/** What is sent in one state, or why nothing is. */
export type Cell = readonly Variant[] | string;

export interface Column {
  /** `raw`: what is sent before the greeting, in the place of a handshake. */
  readonly "before authentication": readonly HandshakeVariant[] | string;
  readonly "before greeting": Cell;
  readonly idle: Cell;
  readonly "mid-transfer": Cell;
}

export interface Row {
  readonly id: string;
  readonly kind: string;
  readonly edge: Column;
  readonly agent: Column;
}

const closed = (code: number): Outcome => ({ is: "closed", code });
const reset = (code: number): Outcome => ({ is: "reset", code });
const free: Outcome = { is: "ignored", cost: "free" };
const budget: Outcome = { is: "ignored", cost: "budget" };
const cut: Outcome = { is: "cut" };

const PROTOCOL = 4400;
const SESSION_UNKNOWN = 4404;
const TIMEOUT = 4408;
const REPLACED = 4409;
const TOO_LARGE = 4413;
const BUDGET = 4429;
const ResetCode = { forbidden: 6, limit: 7, flowControl: 13, stateLost: 14 } as const;

// ── bytes ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A WebSocket frame (RFC 6455 §5.2) of any first byte; masked towards the edge, with a key of zeros. */
function webSocket(at: Position, first: number, payload: Uint8Array, options: { masked?: boolean } = {}): Buffer {
  const masked = options.masked ?? at.victim === "edge";
  const bit = masked ? 0x80 : 0;
  const { length } = payload;
  const header =
    length < 126
      ? Buffer.of(first, bit | length)
      : length < 65_536
        ? Buffer.of(first, bit | 126, length >> 8, length & 0xff)
        : Buffer.of(
            first,
            bit | 127,
            0,
            0,
            0,
            0,
            length >>> 24,
            (length >>> 16) & 0xff,
            (length >>> 8) & 0xff,
            length & 0xff,
          );
  return Buffer.concat([header, Buffer.alloc(masked ? 4 : 0), payload]);
}

/** Frames of ours, or bytes in their place, a message each. */
function messages(at: Position, ...frames: (Frame | Uint8Array)[]): Buffer {
  return Buffer.concat(
    frames.map((frame) => webSocket(at, 0x82, frame instanceof Uint8Array ? frame : encodeFrame(frame))),
  );
}

type Make = (at: Position) => (Frame | Uint8Array)[];

const variant = (what: string, make: Make, expect: Outcome, more: Partial<Variant> = {}): Variant => ({
  what,
  bytes: (at) => messages(at, ...make(at)),
  expect,
  ...more,
});

const raw = (what: string, bytes: Variant["bytes"], expect: Outcome, more: Partial<Variant> = {}): Variant => ({
  what,
  bytes,
  expect,
  ...more,
});

/** So many that any budget of the rig is used up. */
const FLOOD = 5_000;
const flood = (what: string, make: (at: Position, index: number) => Frame, before: Make = () => []): Variant =>
  variant(
    `${FLOOD} of ${what}`,
    (at) => [...before(at), ...Array.from({ length: FLOOD }, (_, index) => make(at, index))],
    closed(BUDGET),
  );

const data = (stream: number, offset: number, length = 1): Frame => ({
  type: "data",
  stream,
  offset,
  bytes: Buffer.alloc(length, 0x61),
});
const end = (stream: number, offset: number): Frame => ({ type: "end", stream, offset });
const resetOf = (stream: number): Frame => ({ type: "reset", stream, offset: 0, code: 1 });
const open = (stream: number, target = "echo"): Frame => ({
  ...validFrames.open,
  stream,
  target,
  connection: `c-${stream}`,
});
const accept = (stream: number): Frame => ({ ...validFrames.accept, stream });
const credit = (stream: number, consumed: number, limit: number, endConsumed = false): Frame => ({
  type: "credit",
  stream,
  consumed,
  limit,
  endConsumed,
});
const resume = (stream: number, changes: Partial<Extract<Frame, { type: "resume" }>> = {}): Frame => ({
  ...validFrames.resume,
  stream,
  limit: 65_536,
  ...changes,
});
const ping = (token: number): Frame => ({ type: "ping", token });
const pong = (token: number): Frame => ({ type: "pong", token });
const { goAway } = validFrames;

const byte = (...values: number[]) => Uint8Array.from(values);
const short = (frame: Frame) => encodeFrame(frame).subarray(0, -1);
const long = (frame: Frame) => Buffer.concat([encodeFrame(frame), Buffer.alloc(1)]);
const streamZero = (frame: Frame) => {
  const bytes = Uint8Array.from(encodeFrame(frame));
  bytes.fill(0, 1, 5);
  return bytes;
};
const changedByte = (frame: Frame, at: number, value: number) => {
  const bytes = Uint8Array.from(encodeFrame(frame));
  bytes[at] = value;
  return bytes;
};

// ── columns ────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Codes that a message earns wherever it comes, because of its form; any other that is no greeting is 4400 before one. */
const ofForm: ReadonlySet<number> = new Set([1002, 1007, 1008, 1009, TOO_LARGE]);

const atGreeting = (cell: Cell): Cell =>
  typeof cell === "string"
    ? cell
    : cell.map((one) => {
        const { rounds: _, inert: __, farSideWrites: ___, stream: ____, ...rest } = one;
        const isOfForm = one.expect.is === "closed" && ofForm.has(one.expect.code);
        return { ...rest, expect: isOfForm || one.expect.is === "cut" ? one.expect : closed(PROTOCOL) };
      });

const over = "authentication is over";
const nothingOpen = "no stream is there, so that every frame of one is M5";

/** Before authentication every byte that is no handshake is the same: the first variant stands for all. */
function column(idle: Cell, midTransfer: Cell = idle, greeting: Cell = atGreeting(idle)): Column {
  // Where idle has nothing, what the transfer's row sends comes before the greeting, too.
  const first = typeof greeting === "string" ? atGreeting(midTransfer) : greeting;
  return { "before authentication": "raw", "before greeting": first, idle, "mid-transfer": midTransfer };
}

const none = (why: string): Column => ({
  "before authentication": why,
  "before greeting": why,
  idle: why,
  "mid-transfer": why,
});

const handshakes = (variants: readonly HandshakeVariant[]): Column => ({
  "before authentication": variants,
  "before greeting": over,
  idle: over,
  "mid-transfer": over,
});

const both = (make: Column): Pick<Row, "edge" | "agent"> => ({ edge: make, agent: make });

const binary: readonly Frame[] = [
  validFrames.data,
  validFrames.end,
  validFrames.reset,
  validFrames.closed,
  validFrames.credit,
  validFrames.resume,
  validFrames.ping,
  validFrames.pong,
];
const ofStream = binary.filter(
  (frame): frame is Exclude<Frame, { type: "hello" | "welcome" | "goAway" | "ping" | "pong" }> => "stream" in frame,
);
const onStream = (frame: Frame, stream: number): Frame => ({ ...frame, stream }) as Frame;

/** A control message of which one field says something else. */
const spoiled = (
  type: "open" | "accept" | "goAway" | "hello" | "welcome",
  changes: Record<string, unknown>,
): Uint8Array => control(type, { ...fields(type), ...changes });

/** Numbers that no field of a control message takes. */
const notNumbers: readonly [string, unknown][] = [
  ["-1", -1],
  ["1.5", 1.5],
  ["NaN", Number.NaN],
  ["infinity", Number.POSITIVE_INFINITY],
  ["2^53", 2 ** 53],
  ["2^64 - 1", 2n ** 64n - 1n],
  ["a text", "1"],
];
const encodeBig = (type: "open" | "accept", key: string, value: unknown): Uint8Array =>
  typeof value === "bigint" ? bigField(type, key, value) : spoiled(type, { [key]: value });

/** As `control`, with one field in the eight bytes of an unsigned integer. */
function bigField(type: "open" | "accept", key: string, value: bigint): Uint8Array {
  const entries = Object.entries(fields(type));
  const eight = Buffer.alloc(9);
  eight[0] = 0xcf;
  eight.writeBigUInt64BE(value, 1);
  return Buffer.concat([
    encodeFrame(validFrames[type]).subarray(0, 1),
    Uint8Array.of(0x80 | entries.length),
    ...entries.flatMap(([name, own]) => [encode(name), name === key ? eight : encode(own)]),
  ]);
}

const closeFrame = (at: Position, ...payload: number[]) => webSocket(at, 0x88, byte(...payload));

/** A header that declares 16,376 bytes, and the first hundred of them. */
const unfinished = (at: Position) =>
  at.victim === "edge"
    ? Buffer.concat([byte(0x82, 0xfe, 0x3f, 0xf8, 0, 0, 0, 0), Buffer.alloc(100, 0x7f)])
    : Buffer.concat([byte(0x82, 0x7e, 0x3f, 0xf8), Buffer.alloc(100, 0x7f)]);
const unfinishedColumn = (): Column => {
  const never = [raw("a message that is never finished", unfinished, cut, { silent: true })];
  const fragment = [
    raw("the first of two fragments", (at) => webSocket(at, 0x02, byte(0x20)), cut, { silent: true }),
    raw(
      "a message in two fragments",
      (at) => Buffer.concat([webSocket(at, 0x02, byte(0x20)), webSocket(at, 0x80, Buffer.alloc(8))]),
      closed(1008),
    ),
  ];
  const greeting = [...never, ...fragment].map((one) => (one.silent ? { ...one, expect: closed(TIMEOUT) } : one));
  return column([...never, ...fragment], [...never, ...fragment], greeting);
};

const declares = (at: Position, ...length: number[]) =>
  Buffer.concat([
    byte(0x82, at.victim === "edge" ? 0xff : 0x7f, ...length),
    Buffer.alloc(at.victim === "edge" ? 4 : 0),
  ]);

const wsPing = (at: Position) => webSocket(at, 0x89, Buffer.alloc(125));

const unopened = (offset: number, victim: Victim): Variant[] =>
  ofStream
    // A RESET alone is how an edge gives up a stream whose OPEN never went out.
    .filter(({ type }) => victim === "edge" || type !== "reset")
    .map((frame) =>
      variant(
        `${frame.type} of a stream that was not opened`,
        (at) => [onStream(frame, at.stream + offset)],
        closed(PROTOCOL),
      ),
    );

const honestReset = (offset: number): Variant =>
  variant("a reset alone, as of a stream that its edge gave up", (at) => [resetOf(at.stream + offset)], free);

const malformed = (what: string, make: Make): Variant => variant(what, make, closed(PROTOCOL));

// ── the table ──────────────────────────────────────────────────────────────────────────────────────────────────────

const elsewhereRaces =
  "races are random schedules of a model: test/property/session-schedule.test.ts plays 10,000 of them for each change";

export const rows: readonly Row[] = [
  {
    id: "W1",
    kind: "text message",
    ...both(column([raw("a text", (at) => webSocket(at, 0x81, Buffer.from("hi")), closed(PROTOCOL))])),
  },
  {
    id: "W2",
    kind: "mask where none belongs, none where one does",
    ...both(
      column([
        raw("a message", (at) => webSocket(at, 0x82, byte(0x20), { masked: at.victim !== "edge" }), closed(1002)),
        raw("a ping", (at) => webSocket(at, 0x89, byte(1), { masked: at.victim !== "edge" }), closed(1002)),
      ]),
    ),
  },
  {
    id: "W3",
    kind: "reserved bits",
    ...both(
      column([
        raw("bit 2", (at) => webSocket(at, 0xa2, byte(0x20)), closed(1002)),
        raw("bit 3", (at) => webSocket(at, 0x92, byte(0x20)), closed(1002)),
        raw("all bits of a ping", (at) => webSocket(at, 0xf9, byte(0x20)), closed(1002)),
      ]),
    ),
  },
  {
    id: "W4",
    kind: "reserved opcodes",
    ...both(
      column(
        [0x83, 0x87, 0x8b, 0x8f].map((first) =>
          raw(`opcode ${first & 0x0f}`, (at) => webSocket(at, first, byte(0x20)), closed(1002)),
        ),
      ),
    ),
  },
  {
    id: "W5",
    kind: "fragmented control",
    ...both(
      column(
        [0x08, 0x09, 0x0a].map((first) =>
          raw(`opcode ${first}`, (at) => webSocket(at, first, byte(3, 0xe8)), closed(1002)),
        ),
      ),
    ),
  },
  {
    id: "W6",
    kind: "control of more than 125 bytes",
    ...both(
      column(
        [0x88, 0x89, 0x8a].map((first) =>
          raw(`opcode ${first & 0x0f}`, (at) => webSocket(at, first, Buffer.alloc(126, 3)), closed(1002)),
        ),
      ),
    ),
  },
  {
    id: "W7",
    kind: "continuation of nothing",
    ...both(
      column([
        raw("the last", (at) => webSocket(at, 0x80, byte(0x20)), closed(1002)),
        raw("one of more", (at) => webSocket(at, 0x00, byte(0x20)), closed(1002)),
      ]),
    ),
  },
  {
    id: "W8",
    kind: "declared length beyond what is taken",
    ...both(
      column([
        raw("2^63", (at) => declares(at, 0x80, 0, 0, 0, 0, 0, 0, 0), closed(1009)),
        raw("1 GiB", (at) => declares(at, 0, 0, 0, 0, 0x40, 0, 0, 0), closed(1009)),
        raw("16,377", (at) => declares(at, 0, 0, 0, 0, 0, 0, 0x3f, 0xf9), closed(1009)),
      ]),
    ),
  },
  {
    id: "W10",
    kind: "WebSocket pings without reading",
    ...both(
      column([raw("pings", (at) => Buffer.concat(Array.from({ length: 400 }, () => wsPing(at))), cut, { deaf: true })]),
    ),
  },
  {
    id: "W11",
    kind: "compression",
    edge: {
      ...column([raw("reserved bit 1", (at) => webSocket(at, 0xc2, byte(0x20)), closed(1002))]),
      "before authentication": [
        { what: "offered in the request", handshake: "with compression", expect: { is: "served" } },
      ],
    },
    agent: {
      ...column([raw("reserved bit 1", (at) => webSocket(at, 0xc2, byte(0x20)), closed(1002))]),
      "before authentication": [
        { what: "in the answer", handshake: "with compression", expect: { is: "hung up", reason: "protocol" } },
      ],
    },
  },
  {
    id: "W12",
    kind: "bad close frames",
    ...both(
      column([
        raw("one byte", (at) => closeFrame(at, 3), closed(1002)),
        raw("code 1005", (at) => closeFrame(at, 3, 0xed), closed(1002)),
        raw("code 999", (at) => closeFrame(at, 3, 0xe7), closed(1002)),
        raw("code 5000", (at) => closeFrame(at, 0x13, 0x88), closed(1002)),
        raw("a reason that is no UTF-8", (at) => closeFrame(at, 3, 0xe8, 0xff, 0xc0), closed(1007)),
      ]),
    ),
  },
  { id: "W13", kind: "message that is not finished, or in fragments", ...both(unfinishedColumn()) },
  {
    id: "W14",
    kind: "upgrade that stalls",
    edge: handshakes([{ what: "half a request", handshake: "stalled", expect: { is: "refused", status: 0 } }]),
    agent: handshakes([{ what: "no answer", handshake: "stalled", expect: { is: "hung up", reason: "timeout" } }]),
  },
  {
    id: "W16",
    kind: "999 frames behind a fatal one, in one chunk",
    ...both(
      column(
        [
          variant(
            "pings",
            () => [byte(0xff), ...Array.from({ length: 999 }, (_, token) => ping(1e6 + token))],
            closed(PROTOCOL),
            { inert: true },
          ),
        ],
        [
          variant(
            "data",
            (at) => [byte(0xff), ...Array.from({ length: 999 }, (_, index) => data(at.stream, at.sent + index))],
            closed(PROTOCOL),
            { inert: true },
          ),
        ],
      ),
    ),
  },
  {
    id: "M1",
    kind: "unknown type",
    ...both(
      column([0x00, 0x06, 0x16, 0x22, 0xff].map((type) => malformed(`type ${type}`, () => [byte(type, 0, 0, 0, 1)]))),
    ),
  },
  {
    id: "M2",
    kind: "empty or short header",
    ...both(
      column([
        malformed("an empty message", () => [byte()]),
        ...binary.map((frame) =>
          malformed(`the type byte of ${frame.type} alone`, () => [encodeFrame(frame).subarray(0, 1)]),
        ),
      ]),
    ),
  },
  {
    id: "M3",
    kind: "length that is not the payload's",
    ...both(
      column(
        binary
          .filter(({ type }) => type !== "data")
          .flatMap((frame) => [
            malformed(`${frame.type}, a byte short`, () => [short(frame)]),
            malformed(`${frame.type}, a byte long`, () => [long(frame)]),
          ]),
      ),
    ),
  },
  {
    id: "M4",
    kind: "a byte more than a message may have",
    ...both(
      column([
        variant("data of 16,377 bytes", () => [new Uint8Array(16_377).fill(0x10)], closed(1009)),
        variant("a control message of 4,097 bytes", () => [new Uint8Array(4_097).fill(0x05)], closed(TOO_LARGE)),
        variant("16,376 bytes of no type", () => [new Uint8Array(16_376).fill(0x7f)], closed(TOO_LARGE)),
      ]),
    ),
  },
  {
    id: "M5",
    kind: "frames of a stream that was not opened",
    edge: column(unopened(0, "edge"), unopened(1, "edge")),
    agent: column([...unopened(0, "agent"), honestReset(0)], [...unopened(1, "agent"), honestReset(1)]),
  },
  {
    id: "M6",
    kind: "frames of a stream that has ended",
    ...both(
      column("no stream has ended, so that every frame of one is M5", [
        ...ofStream.map((frame) =>
          variant(`${frame.type} behind a reset`, (at) => [resetOf(at.stream), onStream(frame, at.stream)], budget),
        ),
        variant(
          "a long piece of data, which was under way",
          (at) => [resetOf(at.stream), data(at.stream, at.sent, 5_000)],
          free,
        ),
      ]),
    ),
  },
  {
    id: "M7",
    kind: "data behind the end",
    ...both(
      column(nothingOpen, [
        malformed("data", (at) => [end(at.stream, at.sent), data(at.stream, at.sent)]),
        malformed("a second end elsewhere", (at) => [end(at.stream, at.sent), end(at.stream, at.sent + 1)]),
        malformed("an end before what was sent", (at) => [end(at.stream, at.sent - 1)]),
      ]),
    ),
  },
  {
    id: "M8",
    kind: "stream 0",
    ...both(column(ofStream.map((frame) => malformed(frame.type, () => [streamZero(frame)])))),
  },
  {
    id: "M9",
    kind: "OPEN and ACCEPT from the wrong side",
    edge: column([
      malformed("an OPEN", (at) => [open(at.stream)]),
      malformed("an OPEN of a new id", (at) => [open(at.stream + 1)]),
    ]),
    agent: column([malformed("an ACCEPT", (at) => [accept(at.stream)])]),
  },
  {
    id: "M10",
    kind: "an id again",
    edge: column(nothingOpen, [
      malformed("an OPEN with the id of a stream", (at) => [open(at.stream)]),
      variant("an ACCEPT again", (at) => [accept(at.stream)], budget),
    ]),
    agent: column(nothingOpen, [
      malformed("an OPEN that says something else", (at) => [open(at.stream, "other")]),
      variant("the same OPEN", (at) => [open(at.stream)], budget),
      variant("the OPEN of a stream that has ended", (at) => [resetOf(at.stream), open(at.stream)], budget),
      flood("the same OPEN", (at) => open(at.stream)),
    ]),
  },
  {
    id: "M11",
    kind: "ids that do not rise, or leap",
    edge: none("the edge numbers the streams itself; an id that it has not given is M5"),
    agent: column(
      [
        malformed("one more skipped than is allowed", ({ maxStreams }) => [open(maxStreams + 1_026, "nowhere")]),
        variant(
          "as many skipped as are allowed",
          ({ maxStreams }) => [open(maxStreams + 1_024, "nowhere")],
          reset(ResetCode.forbidden),
          {
            stream: ({ maxStreams }) => maxStreams + 1_024,
          },
        ),
      ],
      [
        malformed("one more skipped than is allowed", ({ maxStreams }) => [open(maxStreams + 1_027, "nowhere")]),
        variant(
          "a lower id after a higher one",
          () => [open(9, "nowhere"), open(5, "nowhere")],
          reset(ResetCode.forbidden),
          { stream: () => 5 },
        ),
      ],
    ),
  },
  {
    id: "M12",
    kind: "more OPENs than streams are taken",
    edge: none("an OPEN at an edge is M9"),
    agent: column([
      variant(
        "one too many",
        ({ stream, maxStreams }) => Array.from({ length: maxStreams + 1 }, (_, index) => open(stream + 1 + index)),
        reset(ResetCode.limit),
        { stream: ({ stream, maxStreams }) => stream + 1 + maxStreams },
      ),
    ]),
  },
  {
    id: "M13",
    kind: "OPEN and RESET as fast as they go",
    edge: column(
      [malformed("resets of a stream that was not opened", (at) => [resetOf(at.stream), resetOf(at.stream)])],
      [flood("resets of one stream", (at) => resetOf(at.stream))],
    ),
    agent: column([
      raw(
        "two thousand, each batch when the last is answered",
        (at, round) =>
          messages(
            at,
            ...Array.from({ length: 200 }, (_, index) => at.stream + 1 + round * 200 + index).flatMap((id) => [
              open(id, "nowhere"),
              resetOf(id),
            ]),
          ),
        free,
        { rounds: 10 },
      ),
    ]),
  },
  {
    id: "M15",
    kind: "a byte beyond the window",
    ...both(
      column(nothingOpen, [variant("a byte", (at) => [data(at.stream, at.limit)], reset(ResetCode.flowControl))]),
    ),
  },
  {
    id: "M16",
    kind: "credit that gives nothing",
    ...both(
      column(nothingOpen, [
        variant("once", (at) => [credit(at.stream, 0, 1)], budget),
        flood("it", (at) => credit(at.stream, 0, 1)),
      ]),
    ),
  },
  {
    id: "M17",
    kind: "credit without bounds",
    ...both(
      column(
        [malformed("a limit beyond 2^53", () => [changedByte(validFrames.credit, 13, 0xff)])],
        [
          malformed("a limit beyond 2^53", (at) => [changedByte(credit(at.stream, 0, 1), 13, 0xff)]),
          malformed("a limit below what was consumed", (at) => [credit(at.stream, at.received, at.received - 1)]),
          variant("the greatest that there is", (at) => [credit(at.stream, 0, Number.MAX_SAFE_INTEGER)], free),
        ],
      ),
    ),
  },
  {
    id: "M18",
    kind: "credit for unknown streams",
    ...both(
      column(
        [malformed("one that was not opened", (at) => [credit(at.stream, 0, 1)])],
        [
          malformed("one that was not opened", (at) => [credit(at.stream + 1, 0, 1)]),
          flood(
            "credit for one that has ended",
            (at) => credit(at.stream, 0, 1),
            (at) => [resetOf(at.stream)],
          ),
        ],
      ),
    ),
  },
  {
    id: "M19",
    kind: "numbers that are none",
    edge: column(
      [
        ...notNumbers.map(([name, value]) =>
          malformed(`a limit of ${name}`, () => [encodeBig("accept", "limit", value)]),
        ),
        malformed("a code below its range", () => [spoiled("goAway", { code: 3_999 })]),
        malformed("a code above its range", () => [spoiled("goAway", { code: 5_000 })]),
      ],
      undefined,
      [
        ["initialCredit", -1],
        ["initialCredit", 16_777_217],
        ["maxStreams", 0],
        ["maxStreams", 1_000_001],
        ["links", 17],
        ["links", 1.5],
      ].map(([key, value]) =>
        malformed(`HELLO with ${key} ${value}`, () => [spoiled("hello", { [key as string]: value })]),
      ),
    ),
    agent: column(
      notNumbers.flatMap(([name, value]) => [
        malformed(`a stream id of ${name}`, () => [encodeBig("open", "stream", value)]),
        malformed(`a limit of ${name}`, () => [encodeBig("open", "limit", value)]),
      ]),
      undefined,
      [-1, 86_400_001, 1.5, "1"].map((value) =>
        malformed(`WELCOME with resumeTimeoutMs ${value}`, () => [spoiled("welcome", { resumeTimeoutMs: value })]),
      ),
    ),
  },
  {
    id: "M20",
    kind: "a window that never opens",
    ...both({
      "before authentication": "nothing is sent",
      "before greeting": "nothing is sent; who says nothing is W13",
      idle: nothingOpen,
      "mid-transfer": [variant("no credit while two megabytes wait", () => [], free, { farSideWrites: true })],
    }),
  },
  {
    id: "M22",
    kind: "empty data",
    ...both(
      column([
        malformed("a hundred", (at) =>
          Array.from({ length: 100 }, () => encodeFrame(data(at.stream, at.sent)).subarray(0, 13)),
        ),
      ]),
    ),
  },
  {
    id: "M23",
    kind: "data of one byte",
    ...both(
      column(nothingOpen, [
        flood(
          "it, for a stream that has ended",
          (at, index) => data(at.stream, at.sent + index),
          (at) => [resetOf(at.stream)],
        ),
        variant(
          `${FLOOD} of it, in order and within the window`,
          (at) => Array.from({ length: FLOOD }, (_, index) => data(at.stream, at.sent + index)),
          free,
        ),
      ]),
    ),
  },
  { id: "M24", kind: "pings", ...both(column([flood("them", (_, index) => ping(index))])) },
  {
    id: "M25",
    kind: "pongs that nobody asked for",
    ...both(
      column([variant("one", () => [pong(9_999_999)], budget), flood("them", (_, index) => pong(9_999_999 + index))]),
    ),
  },
  {
    id: "M26",
    kind: "greetings out of place",
    edge: column(
      [malformed("a second HELLO", () => [validFrames.hello]), malformed("a WELCOME", () => [validFrames.welcome])],
      undefined,
      [
        malformed("data before HELLO", () => [validFrames.data]),
        malformed("WELCOME for HELLO", () => [validFrames.welcome]),
      ],
    ),
    agent: column(
      [malformed("a second WELCOME", () => [validFrames.welcome]), malformed("a HELLO", () => [validFrames.hello])],
      undefined,
      [
        malformed("an OPEN before WELCOME", () => [validFrames.open]),
        malformed("HELLO for WELCOME", () => [validFrames.hello]),
      ],
    ),
  },
  {
    id: "M27",
    kind: "versions and features",
    edge: {
      "before authentication": [
        { what: "a version that is not spoken", handshake: "unknown version", expect: { is: "refused", status: 426 } },
      ],
      "before greeting": [
        malformed("33 features", () => [spoiled("hello", { features: Array.from({ length: 33 }, () => "f") })]),
      ],
      idle: "features are named in the greeting, versions in the upgrade",
      "mid-transfer": "features are named in the greeting, versions in the upgrade",
    },
    agent: {
      "before authentication": [
        {
          what: "a version that was not offered",
          handshake: "unknown version",
          expect: { is: "hung up", reason: "version" },
        },
      ],
      "before greeting": [
        malformed("33 features", () => [spoiled("welcome", { features: Array.from({ length: 33 }, () => "f") })]),
      ],
      idle: "features are named in the greeting, versions in the upgrade",
      "mid-transfer": "features are named in the greeting, versions in the upgrade",
    },
  },
  {
    id: "M28",
    kind: "arrays in arrays",
    ...both(
      column([
        variant("64 KiB of them", () => [new Uint8Array(65_536).fill(0x91)], closed(1009)),
        variant("5,000 of them", () => [Buffer.concat([byte(0x05), Buffer.alloc(5_000, 0x91)])], closed(TOO_LARGE)),
        malformed("4,000 of them", () => [Buffer.concat([byte(0x05), Buffer.alloc(4_000, 0x91)])]),
      ]),
    ),
  },
  {
    id: "M29",
    kind: "lengths that lie",
    ...both(
      column(
        (
          [
            ["a map", 0xdf],
            ["an array", 0xdd],
            ["a text", 0xdb],
            ["bytes", 0xc6],
            ["an extension", 0xc9],
          ] as const
        ).flatMap(([name, type]) => [
          malformed(`${name} of 2^32 - 1 for a message`, () => [byte(0x05, type, 0xff, 0xff, 0xff, 0xff, 0x61)]),
          malformed(`${name} of 2^32 - 1 in a message`, () => [
            Buffer.concat([byte(0x05, 0x81), encode("code"), byte(type, 0xff, 0xff, 0xff, 0xff, 0x61)]),
          ]),
        ]),
      ),
    ),
  },
  {
    id: "M30",
    kind: "keys that come twice or mean something to JavaScript, bytes behind, extensions",
    ...both(
      column([
        malformed("a key twice", () => [repeatedKey("goAway")]),
        malformed("__proto__", () => [spoiledKey("goAway", "__proto__")]),
        malformed("constructor", () => [spoiledKey("goAway", "constructor")]),
        malformed("a byte behind the message", () => [long(goAway)]),
        malformed("an extension for a number", () => [
          Buffer.concat([byte(0x05, 0x81), encode("code"), byte(0xd4, 1, 1)]),
        ]),
        malformed("a time for a number", () => [
          Buffer.concat([byte(0x05, 0x81), encode("code"), byte(0xd6, 0xff, 1, 1, 1, 1)]),
        ]),
      ]),
    ),
  },
  {
    id: "M31",
    kind: "targets that are not theirs, keys that do not exist",
    edge: column([
      malformed("an ACCEPT with a host", () => [spoiled("accept", { host: "10.0.0.9" })]),
      malformed("a GO_AWAY with a policy", () => [spoiled("goAway", { allow: ["0.0.0.0/0:*"] })]),
    ]),
    agent: column([
      malformed("a host and a port beside the target", () => [spoiled("open", { host: "127.0.0.1", port: 22 })]),
      malformed("a policy beside the target", () => [spoiled("open", { allow: ["0.0.0.0/0:*"] })]),
      ...["nowhere", "__proto__", "127.0.0.1:22", "../echo"].map((target) =>
        variant(`target ${target}`, (at) => [open(at.stream + 1, target)], reset(ResetCode.forbidden), {
          stream: ({ stream }) => stream + 1,
        }),
      ),
    ]),
  },
  {
    id: "M32",
    kind: "texts that are too long or cannot be printed",
    edge: column([
      malformed("an address with an escape", () => [spoiled("accept", { address: "\u001b[31m" })]),
      malformed("an address of 65 characters", () => [spoiled("accept", { address: "a".repeat(65) })]),
      malformed("a reason with a line's end", () => [spoiled("goAway", { reason: 'a\n{"level":"fatal"}' })]),
      malformed("a reason with U+2028", () => [spoiled("goAway", { reason: "\u2028" })]),
      variant(
        "a reason of 16,300 characters",
        () => [spoiled("goAway", { reason: "a".repeat(16_300) })],
        closed(TOO_LARGE),
      ),
      variant("a reason of 64 KiB", () => [spoiled("goAway", { reason: "a".repeat(65_536) })], closed(1009)),
    ]),
    agent: column([
      malformed("a target with an escape", () => [spoiled("open", { target: "\u001b[31m" })]),
      malformed("a target of 301 characters", () => [spoiled("open", { target: "a".repeat(301) })]),
      malformed("a partner with a line's end", () => [spoiled("open", { partner: 'a\n{"level":"fatal"}' })]),
      malformed("a connection id with C1 control characters", () => [spoiled("open", { connection: "\u009b31m" })]),
      variant(
        "a target of 16,000 characters",
        () => [spoiled("open", { target: "a".repeat(16_000) })],
        closed(TOO_LARGE),
      ),
      variant("a target of 64 KiB", () => [spoiled("open", { target: "a".repeat(65_536) })], closed(1009)),
    ]),
  },
  {
    id: "M33",
    kind: "RESUME: unknown, foreign, rolled back, beyond what was sent",
    edge: column(resumeIdle(), resumeMidTransfer(), [
      variant(
        "HELLO for a session that does not exist",
        () => [{ ...validFrames.hello, session: "0".repeat(32) }],
        closed(SESSION_UNKNOWN),
      ),
      variant(
        "HELLO for a session of another",
        ({ foreignSession }) => [{ ...validFrames.hello, session: foreignSession }],
        closed(SESSION_UNKNOWN),
      ),
    ]),
    agent: column(resumeIdle(), resumeMidTransfer(), atGreeting(resumeIdle())),
  },
  {
    id: "M34",
    kind: "acknowledgements beyond what was sent, or falling",
    ...both(
      column(nothingOpen, [
        malformed("a byte more than was sent", (at) => [credit(at.stream, at.received + 1, at.received + 2)]),
        variant(
          "one that falls",
          (at) => [
            credit(at.stream, at.received, at.received + 65_536),
            credit(at.stream, at.received - 1, at.received),
          ],
          budget,
        ),
        malformed("an end that was not sent", (at) => [credit(at.stream, at.received, at.received + 65_536, true)]),
      ]),
    ),
  },
  {
    id: "M35",
    kind: "GO_AWAY that is none",
    ...both(
      column([
        variant("a second one", () => [goAway, goAway], budget),
        malformed("a code that cannot be", () => [spoiled("goAway", { code: 1_000 })]),
        flood("it", () => goAway),
      ]),
    ),
  },
  {
    id: "M36",
    kind: "handshakes that prove nothing",
    edge: handshakes([
      { what: "a wrong MAC", handshake: "wrong MAC", expect: { is: "refused", status: 401 } },
      { what: "the header of another connection", handshake: "replayed", expect: { is: "refused", status: 401 } },
      {
        what: "a proof made as the edge makes its own",
        handshake: "reflected",
        expect: { is: "refused", status: 401 },
      },
    ]),
    agent: handshakes([
      { what: "a wrong MAC", handshake: "wrong MAC", expect: { is: "hung up", reason: "proof" } },
      { what: "the header of another connection", handshake: "replayed", expect: { is: "hung up", reason: "proof" } },
      { what: "the agent's own nonce and MAC", handshake: "reflected", expect: { is: "hung up", reason: "proof" } },
    ]),
  },
  {
    id: "M37",
    kind: "a relay that ends TLS in the middle",
    edge: handshakes([
      { what: "the proof for another exporter", handshake: "through a relay", expect: { is: "refused", status: 401 } },
    ]),
    agent: handshakes([
      {
        what: "the proof for another exporter",
        handshake: "through a relay",
        expect: { is: "hung up", reason: "proof" },
      },
    ]),
  },
  {
    id: "M38",
    kind: "a second tunnel with the same credentials",
    edge: {
      "before authentication": "who it is shows in HELLO: a second link of one client is what replicas and renewal are",
      "before greeting": [
        variant(
          "HELLO of another process with the name of an agent that lives",
          () => [{ ...validFrames.hello, agent: "steady", process: "77".repeat(16) }],
          closed(REPLACED),
        ),
      ],
      idle: "a link greets once: M26",
      "mid-transfer": "a link greets once: M26",
    },
    agent: none("the agent dials; nobody can open a link to it"),
  },
  { id: "M40", kind: "OPEN, END and RESET that cross", ...both(none(elsewhereRaces)) },
];

function resumeIdle(): Variant[] {
  return [
    malformed("a request for a stream that was not opened", (at) => [resume(at.stream)]),
    malformed("an answer to a request that was not made", (at) => [resume(at.stream, { epoch: 0, answers: 9 })]),
  ];
}

function resumeMidTransfer(): Variant[] {
  return [
    malformed("a request for a stream that was not opened", (at) => [resume(at.stream + 1)]),
    malformed("an answer to a request that was not made", (at) => [resume(at.stream, { epoch: 0, answers: 9 })]),
    malformed("received beyond what was sent", (at) => [resume(at.stream, { received: at.received + 1, limit: 1e6 })]),
    malformed("consumed beyond received", (at) => [resume(at.stream, { received: 1, consumed: 2 })]),
    malformed("an end that was not sent", (at) => [resume(at.stream, { received: at.received, endReceived: true })]),
    variant(
      "rolled back behind what was acknowledged",
      (at) => [credit(at.stream, at.received, at.received + 65_536), resume(at.stream, { received: 0 })],
      reset(ResetCode.stateLost),
    ),
    flood("requests", (at, index) => resume(at.stream, { epoch: index + 1 })),
  ];
}
