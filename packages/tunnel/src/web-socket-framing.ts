/**
 * How a frame of the protocol stands in the byte stream of a WebSocket: one unfragmented binary message each, with the
 * header of RFC 6455 §5.2 written in place. `ws` keeps the handshake, receiving, ping, pong and close; frames of ours
 * bypass its sender so that many of them go out as one buffer, without a copy and a `writev` for each.
 *
 * Towards the edge every message must be masked (RFC 6455 §5.3). The masking key is zero: masks protect plaintext
 * intermediaries from being confused by chosen bytes, and there is none inside TLS (docs/security.md). `ws` skips the
 * unmasking of a zero key.
 */
import type { Framing } from "@sallyport/protocol";

const FIN_BINARY = 0x82;
const MASKED = 0x80;
const LENGTH_16 = 126;

function headerBytes(length: number): number {
  return length < LENGTH_16 ? 2 : 4;
}

/** From the edge to the agent: without mask. */
export const edgeFraming: Framing = {
  headerBytes,
  writeHeader(out, at, length) {
    out[at] = FIN_BINARY;
    if (length < LENGTH_16) {
      out[at + 1] = length;
    } else {
      out[at + 1] = LENGTH_16;
      out[at + 2] = length >>> 8;
      out[at + 3] = length;
    }
  },
};

/** From the agent to the edge: with a zero masking key. */
export const agentFraming: Framing = {
  headerBytes: (length) => headerBytes(length) + 4,
  writeHeader(out, at, length) {
    edgeFraming.writeHeader(out, at, length);
    out[at + 1] = MASKED | (out[at + 1] ?? 0);
    out.fill(0, at + headerBytes(length), at + headerBytes(length) + 4);
  },
};
