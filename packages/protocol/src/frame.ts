/**
 * Frames: what one WebSocket binary message holds. DATA and the frames that accompany it have fixed binary layouts;
 * OPEN, ACCEPT, GO_AWAY and the two greetings are msgpack maps (see messages.ts). The order here is that of
 * docs/protocol.md §3.
 */
import { CloseCode, ProtocolError } from "./codes.ts";
import {
  type Accept,
  decodeAccept,
  decodeGoAway,
  decodeHello,
  decodeOpen,
  decodeWelcome,
  encodeMessage,
  type GoAway,
  type Hello,
  type MessageType,
  type Open,
  type Welcome,
} from "./messages.ts";
import { readU8, readU16, readU32, readU64, writeU16, writeU32, writeU64 } from "./wire.ts";

/**
 * The most bytes of a frame, header included: one TLS record (2^14 bytes, RFC 8446 §5.1) less the longest WebSocket
 * header that such a message has (2 + 2 bytes, and 4 of masking key towards the edge; RFC 6455 §5.2).
 */
export const MAX_FRAME_BYTES = 16_384 - 8;

/** The most bytes of a control frame, type byte included; checked before anything is decoded. */
export const MAX_CONTROL_FRAME_BYTES = 4_096;

/** Header of DATA: type, stream, offset. */
export const DATA_HEADER_BYTES = 13;

/** The most payload of one DATA frame. */
export const MAX_DATA_BYTES = MAX_FRAME_BYTES - DATA_HEADER_BYTES;

/** The first byte of every frame. */
export const FrameType = {
  hello: 0x01,
  welcome: 0x02,
  open: 0x03,
  accept: 0x04,
  goAway: 0x05,
  data: 0x10,
  end: 0x11,
  reset: 0x12,
  closed: 0x13,
  credit: 0x14,
  resume: 0x15,
  ping: 0x20,
  pong: 0x21,
} as const;

const ResumeFlag = { endReceived: 1, endConsumed: 2, all: 3 } as const;
const CreditFlag = { endConsumed: 1, all: 1 } as const;

/** Bytes of a stream at an absolute offset. Never empty. */
export interface DataFrame {
  readonly type: "data";
  readonly stream: number;
  readonly offset: number;
  /** A view of the message that carried the frame; whoever keeps it for long copies it. */
  readonly bytes: Uint8Array;
}

/** No more bytes in this direction; `offset` is their final number. */
export interface EndFrame {
  readonly type: "end";
  readonly stream: number;
  readonly offset: number;
}

/** The stream is aborted in both directions. `offset` is how many bytes its sender had sent. */
export interface ResetFrame {
  readonly type: "reset";
  readonly stream: number;
  readonly offset: number;
  readonly code: number;
}

/** The sender keeps no state of this stream: the answer to RESET, and to RESUME of a stream that has ended. */
export interface ClosedFrame {
  readonly type: "closed";
  readonly stream: number;
}

/** All bytes below `consumed` have left the process at the receiver; bytes below `limit` may be sent. */
export interface CreditFrame {
  readonly type: "credit";
  readonly stream: number;
  readonly consumed: number;
  readonly limit: number;
  /** The END has been carried out, too. */
  readonly endConsumed: boolean;
}

/** Where the sender stands after the stream moved to this link; `received` is where the peer continues from. */
export interface ResumeFrame {
  readonly type: "resume";
  readonly stream: number;
  /**
   * The number of the sender's latest request for this stream, 0 before the first. In a request, its own number; in an
   * answer, it tells which of the sender's requests the answer has overtaken.
   */
  readonly epoch: number;
  /** The number of the peer's request that this frame answers; 0 in a request. */
  readonly answers: number;
  readonly received: number;
  readonly consumed: number;
  readonly limit: number;
  readonly endReceived: boolean;
  readonly endConsumed: boolean;
}

/** A sign of life that is answered by PONG with the same `token`. */
export interface PingFrame {
  readonly type: "ping" | "pong";
  readonly token: number;
}

export type Frame =
  | ({ readonly type: "hello" } & Hello)
  | ({ readonly type: "welcome" } & Welcome)
  | ({ readonly type: "open" } & Open)
  | ({ readonly type: "accept" } & Accept)
  | ({ readonly type: "goAway" } & GoAway)
  | DataFrame
  | EndFrame
  | ResetFrame
  | ClosedFrame
  | CreditFrame
  | ResumeFrame
  | PingFrame;

function expectLength(bytes: Uint8Array, length: number, name: string): void {
  if (bytes.length !== length) throw new ProtocolError(`${name} must have ${length} bytes, has ${bytes.length}`);
}

function streamAt(bytes: Uint8Array, at: number): number {
  const stream = readU32(bytes, at);
  if (stream === 0) throw new ProtocolError("stream 0 does not exist");
  return stream;
}

function flagsAt(bytes: Uint8Array, at: number, known: number): number {
  const flags = readU8(bytes, at);
  if ((flags & ~known) !== 0) throw new ProtocolError("unknown flag");
  return flags;
}

/**
 * Decodes one whole message.
 *
 * @throws ProtocolError when the message is not exactly one valid frame. Sizes are checked before anything is read.
 */
export function decodeFrame(bytes: Uint8Array): Frame {
  if (bytes.length > MAX_FRAME_BYTES) throw new ProtocolError("frame is too large", CloseCode.tooLarge);
  const type = readU8(bytes, 0);
  switch (type) {
    case FrameType.data:
      if (bytes.length <= DATA_HEADER_BYTES) throw new ProtocolError("data without bytes");
      return {
        type: "data",
        stream: streamAt(bytes, 1),
        offset: readU64(bytes, 5),
        bytes: bytes.subarray(DATA_HEADER_BYTES),
      };
    case FrameType.end:
      expectLength(bytes, 13, "end");
      return { type: "end", stream: streamAt(bytes, 1), offset: readU64(bytes, 5) };
    case FrameType.reset:
      expectLength(bytes, 15, "reset");
      return { type: "reset", stream: streamAt(bytes, 1), offset: readU64(bytes, 5), code: readU16(bytes, 13) };
    case FrameType.closed:
      expectLength(bytes, 5, "closed");
      return { type: "closed", stream: streamAt(bytes, 1) };
    case FrameType.credit: {
      expectLength(bytes, 22, "credit");
      const flags = flagsAt(bytes, 21, CreditFlag.all);
      return {
        type: "credit",
        stream: streamAt(bytes, 1),
        consumed: readU64(bytes, 5),
        limit: readU64(bytes, 13),
        endConsumed: (flags & CreditFlag.endConsumed) !== 0,
      };
    }
    case FrameType.resume: {
      expectLength(bytes, 38, "resume");
      const flags = flagsAt(bytes, 37, ResumeFlag.all);
      const epoch = readU32(bytes, 5);
      const answers = readU32(bytes, 9);
      if (epoch === 0 && answers === 0) throw new ProtocolError("resume request 0 does not exist");
      return {
        type: "resume",
        stream: streamAt(bytes, 1),
        epoch,
        answers,
        received: readU64(bytes, 13),
        consumed: readU64(bytes, 21),
        limit: readU64(bytes, 29),
        endReceived: (flags & ResumeFlag.endReceived) !== 0,
        endConsumed: (flags & ResumeFlag.endConsumed) !== 0,
      };
    }
    case FrameType.ping:
    case FrameType.pong:
      expectLength(bytes, 9, "ping");
      return { type: type === FrameType.ping ? "ping" : "pong", token: readU64(bytes, 1) };
    default:
      return decodeControl(type, bytes);
  }
}

function decodeControl(type: number, bytes: Uint8Array): Frame {
  if (bytes.length > MAX_CONTROL_FRAME_BYTES) {
    throw new ProtocolError("control frame is too large", CloseCode.tooLarge);
  }
  const body = bytes.subarray(1);
  switch (type) {
    case FrameType.hello:
      return { type: "hello", ...decodeHello(body) };
    case FrameType.welcome:
      return { type: "welcome", ...decodeWelcome(body) };
    case FrameType.open:
      return { type: "open", ...decodeOpen(body) };
    case FrameType.accept:
      return { type: "accept", ...decodeAccept(body) };
    case FrameType.goAway:
      return { type: "goAway", ...decodeGoAway(body) };
    default:
      throw new ProtocolError("unknown frame type");
  }
}

/** Writes the header of a DATA frame; the payload follows at `at + DATA_HEADER_BYTES`. */
export function writeDataHeader(out: Uint8Array, at: number, header: { stream: number; offset: number }): void {
  out[at] = FrameType.data;
  writeU32(out, at + 1, header.stream);
  writeU64(out, at + 5, header.offset);
}

/** The bounds of its texts keep every control message below `MAX_CONTROL_FRAME_BYTES`. */
function encodeControl(type: MessageType, message: object): Uint8Array {
  const body = encodeMessage(type, message);
  const frame = new Uint8Array(1 + body.length);
  frame[0] = FrameType[type];
  frame.set(body, 1);
  return frame;
}

/**
 * Encodes a frame into bytes of its own. DATA on the data path is written in place instead, see `writeDataHeader`.
 *
 * @throws RangeError for a control message that the peer would refuse: what is sent was checked where it came from
 */
export function encodeFrame(frame: Frame): Uint8Array {
  switch (frame.type) {
    case "hello": {
      const { type: _, ...message } = frame;
      return encodeControl("hello", message);
    }
    case "welcome": {
      const { type: _, ...message } = frame;
      return encodeControl("welcome", message);
    }
    case "open": {
      const { type: _, ...message } = frame;
      return encodeControl("open", message);
    }
    case "accept": {
      const { type: _, ...message } = frame;
      return encodeControl("accept", message);
    }
    case "goAway": {
      const { type: _, ...message } = frame;
      return encodeControl("goAway", message);
    }
    case "data": {
      const out = new Uint8Array(DATA_HEADER_BYTES + frame.bytes.length);
      writeDataHeader(out, 0, frame);
      out.set(frame.bytes, DATA_HEADER_BYTES);
      return out;
    }
    case "end": {
      const out = new Uint8Array(13);
      out[0] = FrameType.end;
      writeU32(out, 1, frame.stream);
      writeU64(out, 5, frame.offset);
      return out;
    }
    case "reset": {
      const out = new Uint8Array(15);
      out[0] = FrameType.reset;
      writeU32(out, 1, frame.stream);
      writeU64(out, 5, frame.offset);
      writeU16(out, 13, frame.code);
      return out;
    }
    case "closed": {
      const out = new Uint8Array(5);
      out[0] = FrameType.closed;
      writeU32(out, 1, frame.stream);
      return out;
    }
    case "credit": {
      const out = new Uint8Array(22);
      out[0] = FrameType.credit;
      writeU32(out, 1, frame.stream);
      writeU64(out, 5, frame.consumed);
      writeU64(out, 13, frame.limit);
      out[21] = frame.endConsumed ? CreditFlag.endConsumed : 0;
      return out;
    }
    case "resume": {
      const out = new Uint8Array(38);
      out[0] = FrameType.resume;
      writeU32(out, 1, frame.stream);
      writeU32(out, 5, frame.epoch);
      writeU32(out, 9, frame.answers);
      writeU64(out, 13, frame.received);
      writeU64(out, 21, frame.consumed);
      writeU64(out, 29, frame.limit);
      out[37] = (frame.endReceived ? ResumeFlag.endReceived : 0) | (frame.endConsumed ? ResumeFlag.endConsumed : 0);
      return out;
    }
    case "ping":
    case "pong": {
      const out = new Uint8Array(9);
      out[0] = frame.type === "ping" ? FrameType.ping : FrameType.pong;
      writeU64(out, 1, frame.token);
      return out;
    }
  }
}
