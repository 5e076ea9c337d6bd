import { MAX_FRAME_BYTES } from "@sallyport/protocol";

/** What both ends agree on in the upgrade: path and WebSocket subprotocol. */
export const TUNNEL_PATH = "/sallyport/v1";
export const TUNNEL_SUBPROTOCOL = "sallyport.v1";

/** TLS 1.3 suites, AES-128-GCM first: it costs a tenth less than AES-256 where the CPU has AES, and is as far from broken. */
export const TUNNEL_CIPHERS = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

/** Buffer of a tunnel's sockets. Node's default differs between versions, so it is set. */
export const SOCKET_HIGH_WATER_MARK_BYTES = 65_536;

/** The same at both ends. The defaults of `ws` are for browsers that send large messages in many fragments; we do not. */
export const webSocketOptions = {
  /** Compression beside secrets leaks them, and the bytes carried are mostly encrypted already. */
  perMessageDeflate: false,
  /** A message is one frame of the protocol; a larger one is refused by its declared length, before it is buffered. */
  maxPayload: MAX_FRAME_BYTES,
  /** One frame, one fragment. */
  maxFragments: 1,
  /** A message of one TLS record arrives in two or three chunks; one that trickles in by single bytes is cut. */
  maxBufferedChunks: 64,
  autoPong: true,
  /** Pongs that wait for a peer that pings and does not read; then it is cut. */
  maxPendingAutoPongs: 16,
  /** Milliseconds for the peer to answer a close frame. */
  closeTimeout: 2_000,
  /** Several messages of one chunk in one tick. */
  allowSynchronousEvents: true,
  skipUTF8Validation: false,
};
