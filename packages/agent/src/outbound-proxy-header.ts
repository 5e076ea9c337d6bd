/**
 * The PROXY header that an edge asks for, in front of everything that a target gets. The addresses in it are what the edge
 * claims; this agent vouches for none of them, and writes them only where its own file allows it.
 */
import type { Socket } from "node:net";
import { encodeProxyHeader, ownProxyHeader, parseProxyEndpoint } from "@sallyport/host";
import type { Open } from "@sallyport/protocol";

export interface OutboundProxyHeader {
  readonly version: 1 | 2;
  /** The bytes, for the connection that stands now. */
  encode(socket: Socket): Buffer;
}

/** Reads what OPEN asks for. Undefined: no header can be made of it. */
export function outboundProxyHeader(open: Open): OutboundProxyHeader | undefined {
  const [wanted, sourceText, destinationText, authority, alpn] = open.proxy ?? [];
  if (wanted !== 1 && wanted !== 2) return undefined;
  if (sourceText === "" && destinationText === "") {
    return {
      version: wanted,
      encode: (socket) => ownProxyHeader(socket, wanted),
    };
  }
  const source = parseProxyEndpoint(sourceText ?? "");
  const destination = parseProxyEndpoint(destinationText ?? "");
  if (source === undefined || destination === undefined) return undefined;
  const bytes = encodeProxyHeader({
    version: wanted,
    source,
    destination,
    authority: textBytes(authority),
    alpn: textBytes(alpn),
    uniqueId: textBytes(open.connection),
  });
  return { version: wanted, encode: () => bytes };
}

function textBytes(text: string | undefined): Buffer | undefined {
  return text === undefined || text === "" ? undefined : Buffer.from(text, "latin1");
}
