/**
 * The PROXY header with which a target hears who the partner is. Whoever dials writes it: the edge itself, or an agent that is
 * asked to and allows it.
 */
import { encodeProxyHeader, parseProxyEndpoint } from "@sallyport/host";
import type { OpenProxy } from "@sallyport/protocol";

export type OutboundProxyProtocol = "v1" | "v2";

/** What a header says of a connection. */
export interface OutboundFacts {
  readonly version: OutboundProxyProtocol;
  /** Id of the connection: UNIQUE_ID of version 2. */
  readonly connection: string;
  /** `address:port` of the partner that is believed in. */
  readonly partner: string;
  /** `address:port` of the edge that the partner reached. */
  readonly local: string;
  readonly sni?: string | undefined;
  readonly alpn?: readonly string[] | undefined;
}

/** What an agent is asked to write; OPEN names the connection itself. */
export function proxyOfOpen(facts: OutboundFacts): OpenProxy {
  const { version, partner, local, sni } = facts;
  return [version === "v1" ? 1 : 2, partner, local, sni ?? "", onlyProtocol(facts) ?? ""];
}

/** What an agent is asked to write for a connection of the edge's own, such as a check. */
export function localProxyOfOpen(version: OutboundProxyProtocol): OpenProxy {
  return [version === "v1" ? 1 : 2, "", "", "", ""];
}

/** The bytes that the edge writes where it dials itself. */
export function proxyHeaderBytes(facts: OutboundFacts): Buffer {
  const source = parseProxyEndpoint(facts.partner);
  const destination = parseProxyEndpoint(facts.local);
  if (source === undefined || destination === undefined) throw new Error("a connection without addresses was routed");
  const alpn = onlyProtocol(facts);
  return encodeProxyHeader({
    version: facts.version === "v1" ? 1 : 2,
    source,
    destination,
    authority: facts.sni === undefined ? undefined : Buffer.from(facts.sni, "latin1"),
    alpn: alpn === undefined ? undefined : Buffer.from(alpn, "latin1"),
    uniqueId: Buffer.from(facts.connection, "latin1"),
  });
}

/** ALPN of a header is what is spoken, not what is offered: with one offer both are the same. */
function onlyProtocol({ alpn }: OutboundFacts): string | undefined {
  const [only, ...others] = alpn ?? [];
  return only !== undefined && others.length === 0 && /^[\x20-\x7e]{1,255}$/.test(only) ? only : undefined;
}
