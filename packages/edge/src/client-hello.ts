/**
 * Reads the ClientHello with which a TLS client begins (RFC 8446 §4.1.2, and its like in older versions), for the name
 * and the protocols that it asks for (RFC 6066 §3, RFC 7301). Nothing is answered and no TLS is terminated: the bytes go
 * to the target as they came. Pure.
 *
 * The reader is strict: what it cannot read in exactly one way names nothing. It only chooses among targets; whoever
 * trusts the name in a certificate is the target itself.
 */
import { isDnsName } from "@sallyport/host";

/** A ClientHello, its records included, that is longer is not read. Real ones have 200 to 2,000 bytes. */
export const CLIENT_HELLO_MAX_BYTES = 16_384;

export interface ClientHello {
  /** Lower case; undefined when the client names none. */
  readonly serverName: string | undefined;
  /** In the client's order of preference; without the values that only try out tolerance (GREASE, RFC 8701). */
  readonly alpn: readonly string[];
}

export type ClientHelloParse =
  /** So far it may become one. Never said of `CLIENT_HELLO_MAX_BYTES` and more. */
  | { readonly type: "incomplete" }
  | { readonly type: "hello"; readonly hello: ClientHello }
  /** It is none: another protocol, or TLS that is not well-formed. */
  | { readonly type: "other"; readonly reason: string };

const RECORD_HEADER_BYTES = 5;
const RECORD_HANDSHAKE = 22;
/** RFC 8446 §5.1. */
const RECORD_MAX_BYTES = 16_384;
const HANDSHAKE_HEADER_BYTES = 4;
const HANDSHAKE_CLIENT_HELLO = 1;
const EXTENSION_SERVER_NAME = 0;
const EXTENSION_ALPN = 16;
const NAME_TYPE_HOST = 0;

const TOO_LONG = `longer than ${CLIENT_HELLO_MAX_BYTES} bytes`;
const INCOMPLETE: ClientHelloParse = { type: "incomplete" };

/** Reads the ClientHello at the start of `bytes`, which are all that came so far. Never throws. */
export function parseClientHello(bytes: Uint8Array): ClientHelloParse {
  const fragments: Uint8Array[] = [];
  const header = new Uint8Array(HANDSHAKE_HEADER_BYTES);
  let received = 0;
  let end = Number.POSITIVE_INFINITY;
  for (let at = 0; at < bytes.length && received < end; ) {
    if (bytes[at] !== RECORD_HANDSHAKE) return other(at === 0 ? "not TLS" : "another record in between");
    if ((bytes[at + 1] ?? 3) !== 3 || (bytes[at + 2] ?? 0) > 4) return other("not TLS");
    if (at + RECORD_HEADER_BYTES > bytes.length) break;
    const length = ((bytes[at + 3] ?? 0) << 8) | (bytes[at + 4] ?? 0);
    if (length === 0 || length > RECORD_MAX_BYTES) return other("a record of a forbidden length");
    at += RECORD_HEADER_BYTES;
    const fragment = bytes.subarray(at, at + length);
    if (received < HANDSHAKE_HEADER_BYTES)
      header.set(fragment.subarray(0, HANDSHAKE_HEADER_BYTES - received), received);
    fragments.push(fragment);
    received += fragment.length;
    at += length;
    if (received > 0 && header[0] !== HANDSHAKE_CLIENT_HELLO) return other("the first message is no ClientHello");
    if (received >= HANDSHAKE_HEADER_BYTES) {
      end = HANDSHAKE_HEADER_BYTES + (((header[1] ?? 0) << 16) | ((header[2] ?? 0) << 8) | (header[3] ?? 0));
      if (end > CLIENT_HELLO_MAX_BYTES) return other(TOO_LONG);
    }
  }
  // What follows a whole ClientHello is nobody's business here.
  if (received < end) return bytes.length >= CLIENT_HELLO_MAX_BYTES ? other(TOO_LONG) : INCOMPLETE;
  const hello = parseMessage(new Reader(Buffer.concat(fragments).subarray(HANDSHAKE_HEADER_BYTES, end)));
  return typeof hello === "string" ? other(hello) : { type: "hello", hello };
}

function other(reason: string): ClientHelloParse {
  return { type: "other", reason };
}

/** A wrong length; becomes a reason at the one place that calls. */
class Malformed extends Error {}

class Reader {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get isAtEnd(): boolean {
    return this.#at === this.#bytes.length;
  }

  take(count: number): Uint8Array {
    const end = this.#at + count;
    if (end > this.#bytes.length) throw new Malformed("a length reaches beyond its end");
    const taken = this.#bytes.subarray(this.#at, end);
    this.#at = end;
    return taken;
  }

  number(size: 1 | 2): number {
    let value = 0;
    for (const byte of this.take(size)) value = value * 256 + byte;
    return value;
  }

  /** A vector with its length in front. */
  vector(lengthSize: 1 | 2, bounds: { readonly min: number; readonly max?: number }): Reader {
    const length = this.number(lengthSize);
    if (length < bounds.min || length > (bounds.max ?? 65_535)) throw new Malformed("a field of a forbidden length");
    return new Reader(this.take(length));
  }

  rest(): Uint8Array {
    return this.take(this.#bytes.length - this.#at);
  }
}

function parseMessage(reader: Reader): ClientHello | string {
  try {
    const major = reader.number(1);
    if (major !== 3) return "another version of TLS";
    reader.take(1);
    reader.take(32);
    reader.vector(1, { min: 0, max: 32 });
    const suites = reader.vector(2, { min: 2 }).rest();
    if (suites.length % 2 !== 0) return "a field of a forbidden length";
    reader.vector(1, { min: 1 });
    // Before TLS 1.3 a client may send none.
    if (reader.isAtEnd) return { serverName: undefined, alpn: [] };
    const extensions = reader.vector(2, { min: 0 });
    if (!reader.isAtEnd) return "bytes behind the extensions";
    return parseExtensions(extensions);
  } catch (error) {
    if (error instanceof Malformed) return error.message;
    throw error;
  }
}

function parseExtensions(extensions: Reader): ClientHello | string {
  let serverName: string | undefined;
  let alpn: readonly string[] = [];
  const seen = new Set<number>();
  while (!extensions.isAtEnd) {
    const type = extensions.number(2);
    const body = extensions.vector(2, { min: 0 });
    if (seen.has(type)) return "an extension comes twice";
    seen.add(type);
    if (type === EXTENSION_SERVER_NAME) {
      serverName = parseServerName(body);
      if (serverName === undefined) return "the server name is no host name";
    } else if (type === EXTENSION_ALPN) {
      alpn = parseAlpn(body);
    }
  }
  return { serverName, alpn };
}

/** The list has one entry in practice and one of each kind at most; host names are the only kind that there is. */
function parseServerName(body: Reader): string | undefined {
  const list = body.vector(2, { min: 1 });
  if (!body.isAtEnd || list.number(1) !== NAME_TYPE_HOST) return undefined;
  const name = Buffer.from(list.vector(2, { min: 1 }).rest())
    .toString("latin1")
    .toLowerCase();
  return list.isAtEnd && isDnsName(name) ? name : undefined;
}

function parseAlpn(body: Reader): string[] {
  const list = body.vector(2, { min: 2 });
  if (!body.isAtEnd) throw new Malformed("a field of a forbidden length");
  const names: string[] = [];
  while (!list.isAtEnd) {
    const name = list.vector(1, { min: 1 }).rest();
    const isGrease = name.length === 2 && name[0] === name[1] && ((name[0] ?? 0) & 0x0f) === 0x0a;
    if (!isGrease) names.push(Buffer.from(name).toString("latin1"));
  }
  return names;
}
